"""The systems that train with denoised or self-made labels: prototypes, JoMoLD, CoLeaF."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import uwav
from common.released import with_weights
from data import annotations
from field import coleaf, jomold, prototypes
from train import checkpoints

C, T = 4, 10


def world(videos: int, seed: int, seconds: int = T, visual_3d: int = 3) -> uwav.TargetSplit:
    """A small split whose features show its classes: dense truth, the weak label that follows, features of truth + noise."""
    rng = torch.Generator().manual_seed(seed)
    audio, visual = ((torch.rand(videos, 1, C, generator=rng) < 0.5) & (torch.rand(videos, seconds, C, generator=rng) < 0.6) for _ in range(2))
    weak = (audio | visual).any(1).float()

    def features(truth, size: int):
        basis = torch.randn(C, size, generator=torch.Generator().manual_seed(size))
        return (truth.float() @ basis + 0.1 * torch.randn(videos, seconds, size, generator=rng)).half()

    return uwav.TargetSplit(features(audio, 6), features(visual, 8), features(visual, visual_3d) if visual_3d else None, weak, audio.byte(), visual.byte())


TINY = dict(classes=C, audio_dim=6, visual_2d_dim=8, visual_3d_dim=3, hidden=16, heads=1, feedforward=16, layers=1)


# ---- prototype labels: no recorded case, so cases by hand ----


def test_k_means_finds_clusters_made_by_hand_and_drops_empty_ones():
    axes = torch.eye(3, 5)
    x = F.normalize(axes.repeat_interleave(20, 0) + 0.05 * torch.randn(60, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    found = 0
    for seed in range(8):
        centres = prototypes.k_means(x, 3, 10, torch.Generator().manual_seed(seed))
        assert torch.allclose(centres.norm(dim=-1), torch.ones(len(centres)))
        found += bool(((centres @ axes.T).amax(0) > 0.99).all())
        mine = F.one_hot((x @ centres.T).argmax(1), len(centres)).float()
        assert torch.allclose(centres, F.normalize(mine.T @ x, dim=-1), atol=1e-6), "each centre is the mean of its own"
    assert found >= 1
    same = torch.ones(4, 5) / 5**0.5
    assert prototypes.k_means(same, 3, 10, torch.Generator().manual_seed(0)).shape == (1, 5)
    assert prototypes.k_means(same[:0], 3, 10, torch.Generator().manual_seed(0)).shape == (0, 5)


def test_prototypes_come_from_the_highest_seconds_of_the_videos_that_have_the_class():
    feat = torch.eye(6).reshape(2, 3, 6)  # six seconds, each its own direction
    logit = torch.tensor([[5.0, 1.0, 4.0], [9.0, 9.0, 9.0]])[..., None].expand(2, 3, 3)
    weak = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    config = prototypes.PrototypeConfig(share=0.67, clusters=2)
    first, none, both = prototypes.prototypes(feat, logit, weak, config, torch.Generator().manual_seed(0))
    assert sorted(first.argmax(1).tolist()) == [0, 2] and none.shape == (0, 6)
    assert set(both.nonzero()[:, 1].tolist()) == {0, 3, 4, 5}, "4 of 6 seconds: those of 9, and 5"
    z = prototypes.similarity(feat, [first, none, both])
    assert z[0, :, 0].tolist() == [1, 0, 1] and (z[..., 1] == -1).all() and z.shape == (2, 3, 3)
    few = prototypes.prototypes(feat, logit, weak, prototypes.PrototypeConfig(share=0.01, clusters=3), torch.Generator().manual_seed(0))
    assert len(few[0]) == 3 and sorted(few[2].argmax(1).tolist()) == [3, 4, 5], "at least as many seconds as clusters"


@pytest.mark.parametrize("visual_3d", (3, 0))
def test_prototype_labels_train_a_parser_better_than_the_one_that_made_them(visual_3d):
    splits = dict(train=world(64, 0, visual_3d=visual_3d), validation=world(48, 1, visual_3d=visual_3d))
    model_config = uwav.HANConfig(**TINY | dict(visual_3d_dim=visual_3d))
    config = uwav.TrainConfig(epochs=10, batch=16, peak_lr=0.006, pseudo_label="none", reweight=False, mixup=False)
    han = uwav.train_han(*splits.values(), None, model_config, config)
    z = prototypes.logits(han, splits)
    again = prototypes.logits(han, splits)
    for name, data in splits.items():
        assert all(torch.equal(a, b) and a.shape == data.audio_truth.shape and a.abs().max() <= 1 + 1e-6 for a, b in zip(z[name], again[name]))
    validation = splits["validation"]
    thresholds = [uwav.fit_thresholds(x, truth, validation.weak)[0] for x, truth in zip(z["validation"], (validation.audio_truth, validation.visual_truth))]
    hard = uwav.TrainConfig(epochs=10, batch=16, peak_lr=0.006, pseudo_label="hard", reweight=False, mixup=False)
    labels = uwav.pseudo_labels(z["train"], thresholds, splits["train"].weak, hard)
    parser = uwav.train_han(*splits.values(), labels, model_config, hard)
    assert uwav.han_scores(parser, validation)["seg_type"] > uwav.han_scores(han, validation)["seg_type"] + 3


# ---- JoMoLD: recorded from its public code ----


def close(ours: torch.Tensor, recorded: torch.Tensor, what: str = "") -> None:
    """Within 2e-5 of the larger of 1 and the array."""
    ours, recorded = ours.detach().double(), recorded.double()
    assert ours.shape == recorded.shape, what
    assert (ours - recorded).abs().max() <= 2e-5 * max(1.0, float(recorded.abs().max())), what


LAYER = {"self_attn.in_proj_": "self_attn.in_proj.", "cm_attn.in_proj_": "cross_attn.in_proj.", "cm_attn.out": "cross_attn.out",
         "linear": "feedforward.linear", "norm1": "norm", "norm2": "feedforward.norm", "hat_encoder.": ""}
JOMOLD = LAYER | {"fc_prob.": "classifier.", "fc_frame_att.": "time_pool.", "fc_av_att.": "modal_pool.", "fc_a.": "audio_proj.",
                  "fc_v.": "visual_proj.parts.0.", "fc_st.": "visual_proj.parts.1.", "fc_fusion.": "visual_proj.fusion."}


def renamed(case: dict, prefix: str, names: dict[str, str]) -> dict[str, torch.Tensor]:
    """What lies under a prefix, by our names; the two LayerNorms that the public code never uses left out."""
    found = {k[len(prefix):]: v for k, v in case.items() if k.startswith(prefix) and not k.startswith(prefix + "hat_encoder.norm")}
    for public, ours in names.items():
        found = {k.replace(public, ours): v for k, v in found.items()}
    return found


def same_weights(model: torch.nn.Module, recorded: dict[str, torch.Tensor]) -> None:
    """All weights but those that a softmax cannot see: their gradient is rounding, which Adam turns into steps."""
    assert recorded
    for name, ours in model.state_dict().items():
        if name in recorded and not name.endswith(("time_pool.bias", "modal_pool.bias")):
            theirs = recorded[name].reshape(ours.shape)
            if name.endswith("in_proj.bias"):
                ours, theirs = (torch.cat([x[: len(x) // 3], x[2 * len(x) // 3:]]) for x in (ours, theirs))
            close(ours, theirs, name)


def recorded_split(arrays: dict, config, epoch: int) -> uwav.TargetSplit:
    """The recorded videos, placed so that the shuffle of an epoch meets them in the recorded order."""
    order = np.random.default_rng((config.seed, epoch)).permutation(len(arrays["in.weak"]))
    place = torch.from_numpy(np.argsort(order))
    return uwav.TargetSplit(*(arrays[f"in.{name}"][place] for name in ("audio", "visual_2d", "visual_3d", "weak")), None, None)


@pytest.fixture(scope="module")
def recorded(golden) -> dict:
    return golden("jomold")


def recorded_jomold(case: dict) -> jomold.JoMoLD:
    config = jomold.JoMoLDConfig(audio_dim=6, visual_2d_dim=8, visual_3d_dim=7, hidden=16, feedforward=24, dropout=0.0, visual_dropout=0.0)
    model = jomold.JoMoLD(config)
    model.load_state_dict(renamed(case, "sd.", JOMOLD))
    return model


def watch(optimizer, model) -> list[dict]:
    """The gradients of every step, as the optimiser finds them."""
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append({k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}))
    return seen


def norm(gradients: dict) -> torch.Tensor:
    return torch.stack([g.norm() for g in gradients.values()]).norm()


def test_jomold_forward_equals_the_public_code(recorded):
    model = recorded_jomold(recorded).eval()
    inputs = [recorded[f"in.{name}"][:6] for name in ("audio", "visual_2d", "visual_3d")]
    for cross in (True, False):
        case = {k: recorded[f"forward.{'cross' if cross else 'self'}.{k}"] for k in ("video_prob", "audio_prob", "visual_prob", "segment_prob", "audio_feat", "visual_feat", "similarity")}
        output = model(*inputs, cross=cross)
        for name in ("video_prob", "audio_prob", "visual_prob", "audio_feat", "visual_feat"):
            close(getattr(output, name), case[name], name)
        close(torch.stack([output.audio_logit, output.visual_logit], 2).sigmoid(), case["segment_prob"])
        a, v = F.normalize(output.audio_feat, dim=-1), F.normalize(output.visual_feat, dim=-1)
        close((a @ v.transpose(1, 2) / jomold.TEMPERATURE).flatten(0, 1), case["similarity"])


def test_jomold_estimator_takes_the_recorded_steps(recorded):
    model, config = recorded_jomold(recorded), jomold.JoMoLDTraining(batch=8)
    optimizer = uwav.adamw(model, config)
    seen = watch(optimizer, model)
    data = recorded_split(recorded, config, 1)
    terms = torch.stack(list(jomold.train_epoch(model, model, optimizer, data, None, config, 1)))  # (6, 4)
    for k, name in enumerate(("audio", "visual", "global", "nce")):
        close(terms[:, k], recorded[f"estimator.loss_{name}"], name)
    close(terms.sum(1), recorded["estimator.loss"])
    close(torch.stack([norm(g) for g in seen]), recorded["estimator.grad_norm"])
    gradients = renamed(recorded, "estimator.grad.", JOMOLD)
    assert seen[0].keys() == gradients.keys(), "cross-attention has none"
    for name, gradient in gradients.items():
        close(seen[0][name], gradient, name)
    same_weights(model, renamed(recorded, "estimator.end.", JOMOLD))


def test_jomold_noise_ratios_equal_the_public_code(recorded, monkeypatch):
    probs, weak = [recorded[f"noise.{m}_prob"] for m in ("audio", "visual")], recorded["noise.weak"]
    def given(model, data, cross):
        assert not cross, "each modality by itself"
        return *[None] * 5, *probs

    monkeypatch.setattr(jomold, "outputs", given)
    ours = jomold.noise_ratios(None, uwav.TargetSplit(None, None, None, weak, None, None))
    batch_means = [torch.stack([x.mean(0) for x in p.split(int(recorded["noise.batch"]))]).mean(0) for p in probs]
    theirs = (jomold.noise_ratio(probs[0], batch_means[0], weak, 0.6), jomold.noise_ratio(0.95 * probs[1], batch_means[1], weak, 1.8))
    for k, m in enumerate(("audio", "visual")):
        assert torch.equal(ours[k], recorded[f"noise.ratio_{m}_equal_batches"])
        assert torch.equal(theirs[k], recorded[f"noise.ratio_{m}"])


@pytest.mark.parametrize("level", ("low", "mid", "high"))
def test_jomold_removes_the_recorded_labels(recorded, level):
    ratios = [recorded[f"refine.{level}.ratio_{m}"] for m in ("audio", "visual")]
    refined = jomold.refine_labels((recorded["refine.audio_prob"], recorded["refine.visual_prob"]), recorded["refine.weak"], ratios)
    for ours, m in zip(refined, ("audio", "visual")):
        theirs = recorded[f"refine.{level}.{m}"]
        assert torch.equal(ours == 0, theirs == 0)
        close(ours, theirs)


def test_jomold_denoising_takes_the_recorded_steps(recorded, monkeypatch):
    model, config = recorded_jomold(recorded), jomold.JoMoLDTraining(batch=16)
    optimizer = uwav.adamw(model, config)
    seen, labels, in_force = watch(optimizer, model), [], []
    refine = jomold.refine_labels

    def watched(probs, weak, ratios):
        in_force.append(torch.stack(list(ratios), -1))
        labels.append((*probs, *refine(probs, weak, ratios)))
        return labels[-1][2:]

    monkeypatch.setattr(jomold, "refine_labels", watched)
    ratios, terms = [recorded[f"denoise.ratio_{m}"] for m in ("audio", "visual")], []
    for epoch in (1, 2, 3):
        data = recorded_split(recorded, config, epoch)
        terms += jomold.train_epoch(model, model, optimizer, data, ratios, config, epoch)
    terms = torch.stack(terms)  # (9, 4)
    close(terms.sum(1), recorded["denoise.loss"])
    terms[:, 0] /= 2
    for k, name in enumerate(("audio", "visual", "global", "nce")):
        close(terms[:, k], recorded[f"denoise.loss_{name}"], name)
    close(torch.stack([norm(g) for g in seen]), recorded["denoise.grad_norm"])
    assert torch.equal(torch.stack(in_force), recorded["denoise.ratio_used"].flatten(0, 1))
    for k, name in enumerate(("audio_prob_self", "visual_prob_self", "audio_labels", "visual_labels")):
        ours, theirs = torch.stack([x[k] for x in labels]), recorded[f"denoise.{name}"]
        close(ours, theirs, name)
        assert torch.equal(ours == 0, theirs == 0)
    for name, gradient in renamed(recorded, "denoise.grad5.", JOMOLD).items():
        close(seen[4][name], gradient, name)
    same_weights(model, renamed(recorded, "denoise.end.", JOMOLD))


def val_truth(shared, videos: int) -> list[torch.Tensor]:
    """Dense truth of LLP's first validation videos, audio and visual (N, T, C)."""
    val = annotations.read_llp(shared / "data/llp", report=lambda line: None).val
    return [torch.from_numpy(x[:videos]) for x in (val.audio, val.visual)]


def test_jomold_rate_gate_and_scores_are_the_recorded_ones(recorded, shared):
    config = jomold.JoMoLDTraining()
    assert [config.learning_rate(e) for e in range(1, 26)] == pytest.approx(recorded["lr"].tolist())
    pooled = [recorded[f"eval.{m}_prob"].float() for m in ("audio", "visual")]
    segments = recorded["eval.segment_prob"].float()
    truth = val_truth(shared, 60)
    scores = uwav.parsing_scores(*(jomold.gated(pooled[m], segments[:, :, m]) for m in (0, 1)), *truth)
    assert list(scores.values()) == pytest.approx(recorded["eval.scores"].tolist(), abs=2e-5)


# ---- CoLeaF: recorded from its public code ----

ANCHOR = LAYER | {"fc_prob.": "classifier.", "fc_prob_beta.": "absence.", "fc_frame_att.": "time_pool.", "fc_a.0.": "audio_proj.", "fc_v.0.": "visual_proj.parts.0.",
                  "fc_st.0.": "visual_proj.parts.1.", "fc_fusion.0.": "visual_proj.fusion.", "v2a.0.": "audio_together.", "a2v.0.": "visual_together.",
                  "classifier1.0.": "joint_hidden.", "classifier2.": "joint."}
REFERENCE = LAYER | {"cls_tokens_a": "tokens", "cls_tokens_v": "tokens", "fc_prob.": "classifier.", "fc_frame_att.": "time_pool.", "fc_a.": "proj.",
                     "fc_v.": "proj.parts.0.", "fc_st.": "proj.parts.1.", "fc_fusion.": "proj.fusion."}
PARTS = dict(anchor=("anchor", ANCHOR), audio_reference=("ref_audio", REFERENCE), visual_reference=("ref_visual", REFERENCE))


@pytest.fixture(scope="module")
def case(golden) -> dict:
    case = golden("coleaf")
    return case | {k: v.flatten(0, 1) for k, v in case.items() if k.startswith("in.")}


def recorded_coleaf(case: dict, prefix: str = "sd") -> coleaf.CoLeaF:
    config = coleaf.CoLeaFConfig(audio_dim=6, visual_2d_dim=10, visual_3d_dim=7, hidden=16, feedforward=16, dropout=0.0, absence_dropout=0.0, visual_dropout=0.0)
    model = coleaf.CoLeaF(config)
    for part, (public, names) in PARTS.items():
        weights = renamed(case, f"{prefix}.{public}.", names)
        weights = {k: v[0] if k == "tokens" else v for k, v in weights.items()}
        missing, unexpected = getattr(model, part).load_state_dict(weights, strict=False)
        assert not unexpected and all("cross_attn" in k and "reference" in part for k in missing), "a reference has no cross-attention"
    return model


def gradients_of(seen: dict, part: str) -> dict:
    return {k.removeprefix(f"{part}."): v for k, v in seen.items() if k.startswith(part)}


def test_coleaf_forward_equals_the_public_code(case):
    model = recorded_coleaf(case).eval()
    inputs = [case[f"in.{name}"][:16] for name in ("audio", "visual_2d", "visual_3d")]
    for cross in (True, False):
        output, prefix = model.anchor(*inputs, cross), f"fwd.{'cross' if cross else 'self'}."
        for ours, theirs in dict(joint_prob="global_prob", audio_prob="audio_prob", visual_prob="visual_prob", joint_doubt="global_unc", audio_doubt="audio_unc",
                                 visual_doubt="visual_unc", audio_feat="feat_audio", visual_feat="feat_visual").items():
            close(getattr(output, ours), case[prefix + theirs], ours)
        close(torch.stack([output.audio_seconds, output.visual_seconds], 2), case[prefix + "frame_prob"])
    visual = torch.cat([inputs[1].unflatten(1, (10, -1)).mean(2), inputs[2]], -1)
    for reference, x, public in ((model.audio_reference, inputs[0], "ref_audio"), (model.visual_reference, visual, "ref_visual")):
        reference.classifier.register_forward_hook(lambda _module, _inputs, logit, public=public: close(logit.sigmoid(), case[f"fwd.{public}.frame_prob"], public))
        output = reference(x)
        for name in ("prob", "token_prob", "feat"):
            close(getattr(output, name), case[f"fwd.{public}.{name}"], f"{public} {name}")
    fused = model(*inputs)
    close(fused[1], 0.7 * case["fwd.cross.audio_prob"] + 0.3 * case["fwd.self.audio_prob"])
    close(fused[4], 0.7 * case["fwd.cross.frame_prob"][:, :, 1] + 0.3 * case["fwd.self.frame_prob"][:, :, 1])


def watched_steps(case: dict, monkeypatch, epochs: dict[int, float]) -> tuple[coleaf.CoLeaF, dict[str, list]]:
    """Train on the two recorded batches in the epochs given, each at its rate, and note what each step makes on its way."""
    model, config, seen = recorded_coleaf(case), coleaf.CoLeaFTraining(batch=16), {}

    def watch_function(module, name: str) -> None:
        function = getattr(module, name)

        def watched(*inputs, **named):
            seen.setdefault(name, []).append((inputs, function(*inputs, **named)))
            return seen[name][-1][1]

        monkeypatch.setattr(module, name, watched)

    for name in ("reference_loss", "unaligned_share", "cooccurrence_goal", "anchor_losses"):
        watch_function(coleaf, name)
    watch_function(jomold, "refine_labels")
    optimizer = uwav.adamw(model, config)
    seen["gradients"] = watch(optimizer, model)
    forwards = [model.anchor, model.audio_reference, model.visual_reference]
    ratios = [case[f"ratio.{m}"] for m in ("audio", "visual")]
    for epoch, lr in epochs.items():
        optimizer.param_groups[0]["lr"] = lr
        list(coleaf.train_epoch(model, forwards, optimizer, recorded_split(case, config, epoch), ratios, config, epoch))
    return model, seen


def total(terms: torch.Tensor, epoch: int) -> torch.Tensor:
    """Of the nine terms, by the weights that the page states."""
    late = float(epoch >= 2)
    return (terms * terms.new_tensor([2, 1, 2, 1, 1, 1e-4 * late, 1e-4 * late, 0.009 * late, late])).sum()


def test_coleaf_takes_the_two_recorded_steps_of_epoch_4(case, monkeypatch):
    _, seen = watched_steps(case, monkeypatch, {4: 5e-4})
    for step in (0, 1):
        def theirs(name: str) -> torch.Tensor:
            return case[f"step{step}.{name}"]

        (probs, weak, ratios), targets = seen["refine_labels"][step]
        for k, m in enumerate("av"):
            close(targets[k], theirs(f"p{m}"))
            assert torch.equal(targets[k] == 0, theirs(f"p{m}") == 0), "removed labels"
            (output, _, labels, *_), loss = seen["reference_loss"][2 * step + k]
            close(labels, theirs(f"g_{m}"))
            close(loss, theirs(f"ref_loss_{m}"))
            close(seen["unaligned_share"][2 * step + k][1][:, 0], theirs(f"w_{m}"))
            (prob, reference, *_), goal = seen["cooccurrence_goal"][2 * step + k]
            close(reference, theirs(f"s_{m}"))
            close(goal, theirs(f"t_{m}"))
            close(prob, theirs(f"{m}_prob"))
            if step == 0:
                unsmoothed = (weak, 0.9 * weak + 0.05)[k]
                close(F.binary_cross_entropy(probs[k], unsmoothed, reduction="none"), theirs(f"loss_{m}"))
                close(ratios[k], theirs(f"ratio_{m}"))
                close(output.prob, theirs(f"ref_prob1_{m}"))
                close(seen["anchor_losses"][0][0][1][k].feat, theirs(f"x_{m}"))
        (output, *_), terms = seen["anchor_losses"][step]
        close(output.joint_prob.clamp(1e-7, 1 - 1e-7), theirs("output"))
        close(torch.cat([terms, total(terms, 4)[None]]), theirs("terms"))
        references, anchor = seen["gradients"][2 * step: 2 * step + 2]
        assert all(k.startswith("anchor") for k in anchor) and not any(k.startswith("anchor") for k in references)
        close(norm(anchor), theirs("grad_norm"))
        for m, part in (("a", "audio_reference"), ("v", "visual_reference")):
            close(norm(gradients_of(references, part)), theirs(f"ref_grad_{m}_norm"))
            if step == 0:
                for name, gradient in renamed(case, f"step0.ref_grad_{m}.", REFERENCE).items():
                    close(gradients_of(references, part)[name], gradient.reshape_as(gradients_of(references, part)[name]), name)
        if step == 0:
            gradients = renamed(case, "step0.grad.", ANCHOR)
            assert gradients.keys() == gradients_of(anchor, "anchor").keys()
            for name, gradient in gradients.items():
                close(gradients_of(anchor, "anchor")[name], gradient, name)


def test_coleaf_trains_through_the_recorded_five_epochs(case, monkeypatch):
    config = coleaf.CoLeaFTraining(lr_epochs=2)
    epochs = {e: config.learning_rate(e) for e in range(1, 6)}
    assert list(epochs.values()) == pytest.approx(case["traj.lr"].tolist())
    model, seen = watched_steps(case, monkeypatch, epochs)
    terms = torch.stack([torch.cat([x, total(x, 1 + k // 2)[None]]) for k, (_, x) in enumerate(seen["anchor_losses"])])
    close(terms, case["traj.terms"])
    close(torch.stack([x for _, x in seen["reference_loss"]]).reshape(10, 2), case["traj.ref_loss"])
    close(torch.stack([norm(x) for x in seen["gradients"][1::2]]), case["traj.grad_norm"])
    for k, (inputs, targets) in enumerate(seen["refine_labels"]):
        before = jomold.targets(inputs[1])
        assert [int((x != y).sum()) for x, y in zip(targets, before)] == case["traj.removed"][k].tolist()
        close(torch.stack([x.sum() for x in inputs[2]]), case["traj.ratio_sum"][k])
    for part, (public, names) in PARTS.items():
        same_weights(getattr(model, part), renamed(case, f"end.{public}.", names))
    data = uwav.TargetSplit(*(case[f"in.{name}"][:12] for name in ("audio", "visual_2d", "visual_3d", "weak")), *case["eval.truth"])
    for ours, theirs in zip(coleaf.predictions(model, data), case["eval.pred"]):
        assert torch.equal(ours, theirs > 0)
    usual = uwav.parsing_scores(*case["eval.pred"], *case["eval.truth"])
    for ours, theirs in zip((usual, coleaf.only_scores(*coleaf.predictions(model, data), *case["eval.truth"])), case["eval.scores"]):
        assert [*ours.values(), sum(ours.values()) / 10] == pytest.approx(theirs.tolist(), abs=2e-5)


def test_scores_of_audible_only_and_visible_only_are_the_recorded_ones(case):
    usual, only = (f(*case["only.pred"], *case["only.truth"]) for f in (uwav.parsing_scores, coleaf.only_scores))
    for ours, theirs in zip((usual, only), case["only.scores"]):
        assert list(ours) == list(uwav.SCORES)
        assert [*ours.values(), sum(ours.values()) / 10] == pytest.approx(theirs.tolist(), abs=2e-5)


# ---- by hand, and whole trainings on a small world ----


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(4))
def test_labels_go_as_a_search_class_by_class_says(seed):
    """Slowly, with sorted lists, on probabilities at the edge of 0 and 1 as well."""
    B, classes = 32, 5
    audio, visual = (drawn(B, classes, seed=10 * seed + k).pow(4) for k in (0, 1))
    weak = (drawn(B, classes, seed=10 * seed + 2) < 0.5).float()
    weak[:, 4] = 0  # a class that the batch has not
    ratios = tuple(drawn(classes, seed=10 * seed + k).double() for k in (3, 4))
    ratios[1][0] = 1.0
    ours = jomold.refine_labels((audio, visual), weak, ratios)
    expected = [weak.clone(), 0.9 * weak + 0.05]
    for c in range(classes):
        positives = [b for b in range(B) if weak[b, c]]
        loss_a = {b: -float(audio[b, c].log()) for b in positives}
        loss_v = {b: -float(0.95 * visual[b, c].log() + 0.05 * (1 - visual[b, c]).log()) for b in positives}
        for k, (large, small) in enumerate(((loss_a, loss_v), (loss_v, loss_a))):
            n = int(float(ratios[k][c]) * len(positives))
            gone = set(sorted(positives, key=lambda b: -large[b])[:n]) & set(sorted(positives, key=lambda b: small[b])[:n])
            expected[k][list(gone), c] = 0
    assert all(torch.allclose(x, y) and torch.equal(x == 0, y == 0) for x, y in zip(ours, expected))
    assert ((ours[1] == 0).sum(0)[:4] > 0).any()


def test_noise_ratio_counts_positives_below_so_many_times_the_mean_of_all_videos():
    prob = torch.tensor([[0.1, 0.9], [0.2, 0.9], [0.9, 0.9]])
    weak = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert jomold.noise_ratio(prob, prob.mean(0), weak, 0.6).tolist() == [2 / 3, 0]
    assert jomold.noise_ratio(prob, prob.mean(0), weak, 1.0 / 4 + 0.01).tolist() == [1 / 3, 0]
    assert jomold.noise_ratio(prob, prob.mean(0), weak, 3.0).tolist() == [1, 0]


@pytest.mark.parametrize("seconds", (1, 7))
def test_contrast_asks_in_one_direction_within_a_video_and_smooths_inside_the_logarithm(seconds):
    asks, answers = (F.normalize(drawn(3, seconds, 4, seed=s) - 0.5, dim=-1) for s in (0, 1))
    weight, slow = torch.tensor([[1.0], [0.0], [0.5]]), 0.0
    for b in range(3):
        for t in range(seconds):
            e = [float((asks[b, t] @ answers[b, s] / 0.2).exp()) for s in range(seconds)]
            rest = [0.1 / (seconds - 1) * x for s, x in enumerate(e) if s != t]
            slow -= float(weight[b]) * np.log((0.9 * e[t] + sum(rest)) / sum(e)) / (3 * seconds)
    assert float(jomold.contrast(asks, answers, weight)) == pytest.approx(slow, abs=1e-5)
    if seconds > 1:
        assert float(jomold.contrast(answers, asks, weight)) != pytest.approx(slow, abs=1e-3)


def test_gates_let_their_very_edge_through():
    edge = torch.tensor([[0.5, 0.49]])
    assert jomold.gated(edge, torch.tensor([[[0.5, 0.5], [0.49, 0.9]]])).tolist() == [[[True, False], [False, False]]]
    assert jomold.gated(torch.tensor([[0.52, 0.51]]), torch.tensor([[[0.25, 0.9], [0.24, 0.9]]]), *coleaf.GATES).tolist() == [[[True, False], [False, False]]]


def test_losses_of_coleaf_are_their_definitions():
    p, y = drawn(6, 4), torch.tensor([1.0, 0.95, 0.05, 0.0]).expand(6, 4)
    slow = 0.0
    for a, b in zip(p.flatten().tolist(), y.flatten().tolist()):
        q = min(1 - a + 0.05, 1)
        slow -= (1 - a * b - q * (1 - b)) * (b * np.log(a) + (1 - b) * np.log(q))
    assert float(coleaf.asymmetric_loss(p, y)) == pytest.approx(slow, rel=1e-5)
    goal = drawn(6, 4, seed=1)
    slow = 6 / 4 * sum((float(goal[b, i] * goal[b, j] - p[b, i] * p[b, j])) ** 2 for b in range(6) for i in range(4) for j in range(4))
    assert float(coleaf.cooccurrence_loss(p, goal)) == pytest.approx(slow, rel=1e-5)
    own, other = torch.tensor([[0.5, 0.9, 0.1, 0.8], [0.1, 0.2, 0.3, 0.4]]), torch.tensor([[0.5, 0.4, 0.9, 0.49], [0.9] * 4])
    assert coleaf.unaligned_share(own, other).tolist() == [[pytest.approx(2 / 3)], [0.0]]
    prob, reference = torch.tensor([[0.3, 0.3, 0.3, 0.3]]), torch.tensor([[0.6, 0.4, 0.5, 0.7]])
    target = torch.tensor([[0.95, 0.05, 0.95, 0.0]])
    assert coleaf.cooccurrence_goal(prob, reference, target, coleaf.VISUAL_TRUST)[0].tolist() == pytest.approx([0.95 * 0.6 + 0.05 * 0.3, 0.05 * 0.4 + 0.95 * 0.3, 0.3, 0.3])
    probability, doubt = coleaf.opinion(torch.tensor([[0.0, 0.0], [3.0, 3.0], [50.0, -50.0]]))
    assert probability[:2].tolist() == [0.5, 0.5] and probability[2] < 1 and doubt[0] == 0.5 > doubt[1] > doubt[2]


def test_mutual_loss_teaches_in_turns_and_moves_the_uncertainties():
    weak = (drawn(4, 3) < 0.5).float()
    for odd in (True, False):
        joint, audio, visual, *doubts = (drawn(4, 3, seed=s).requires_grad_() for s in range(1, 6))
        video = torch.tensor([0.5, 0.95, 0.99, 0.92], requires_grad=True)
        output = coleaf.AnchorOutput(*[None] * 5, video, *doubts, None, None)
        loss = coleaf.mutual_loss(joint, audio, visual, output, weak, odd)
        slow = 0.0
        for b in range(4):
            for c in range(3):
                a, v, (u_a, u_v) = float(audio[b, c].detach()), float(visual[b, c].detach()), (float(d[b, c].detach()) for d in doubts)
                q, u = (max((a, u_a), (v, u_v))) if weak[b, c] else ((a + v) / 2, (u_a + u_v) / 2)
                V = max(float(video[b].detach()), 0.9)
                slow += (V if odd else 1 - V) * (1 - u) * (float(joint[b, c].detach()) - q) ** 2 / 12
        assert loss.item() == pytest.approx(slow, rel=1e-5)
        loss.backward()
        assert (joint.grad is not None) == odd and (audio.grad is not None) == (not odd)
        assert all(d.grad.abs().sum() > 0 for d in doubts) and video.grad[0] == 0 and (video.grad[1:] != 0).all()


def test_scores_of_one_modality_alone_forget_what_is_in_both():
    truth_a, truth_v = torch.zeros(1, 4, 2), torch.zeros(1, 4, 2)
    truth_a[0, :, 0], truth_v[0, 2:, 0] = 1, 1  # audible 0-3, visible 2-3: audible only 0-1
    predicted_a = truth_a.clone()
    predicted_a[0, 0, 0] = 0
    only = coleaf.only_scores(predicted_a, truth_v, truth_a, truth_v)
    assert only["seg_a"] == pytest.approx(100 * 2 / 3) and only["seg_v"] == 100 and only["seg_av"] == 100
    assert only["seg_type"] == pytest.approx((200 / 3 + 200) / 3) and only["seg_event"] == pytest.approx(200 / 3)


def test_the_anchor_bends_every_frame_before_their_mean_and_the_linear_networks_need_not():
    frames = drawn(2, 3 * 8, 8) * 4 - 2
    mean, audio, visual_3d = frames.unflatten(1, (3, -1)).mean(2), drawn(2, 3, 6), drawn(2, 3, 3)
    anchor = coleaf.CoLeaF(coleaf.CoLeaFConfig(**TINY)).eval().anchor
    assert not torch.allclose(anchor(audio, frames, visual_3d).visual_prob, anchor(audio, mean, visual_3d).visual_prob, atol=1e-4)
    model = jomold.JoMoLD(jomold.JoMoLDConfig(**TINY)).eval()
    assert torch.allclose(model(audio, frames, visual_3d).visual_prob, model(audio, mean, visual_3d).visual_prob, atol=1e-6)


def test_published_sizes():
    numbers = lambda model: sum(x.numel() for x in model.parameters())  # noqa: E731
    norms = 2 * 2 * 512  # two LayerNorms that the public code never uses
    assert numbers(jomold.JoMoLD()) == 4_571_723 - norms
    model = coleaf.CoLeaF()
    assert numbers(model.anchor) == 5_686_422 - 303_129
    assert not model.audio_reference.tokens.any() and not model.visual_reference.tokens.any()
    assert [numbers(model.audio_reference), numbers(model.visual_reference)] == [2_735_154 - norms, 4_505_650 - norms]


class Killed(checkpoints.Run):
    """A run that is killed after its first epoch."""

    def end_epoch(self, *arguments, **named) -> None:
        super().end_epoch(*arguments, **named)
        raise KeyboardInterrupt


SMALL = dict(epochs=3, batch=16, peak_lr=0.005)


def trainings(visual_3d: int, seconds: int):
    """name -> a function of a run that trains it on a small world."""
    data, validation = world(40, 0, seconds, visual_3d), world(20, 1, seconds, visual_3d)
    sizes = TINY | dict(visual_3d_dim=visual_3d)
    ratios = (torch.full((C,), 0.4).double(), torch.full((C,), 0.7).double())
    first, later = (jomold.JoMoLDConfig(**sizes), jomold.JoMoLDTraining(**SMALL)), (coleaf.CoLeaFConfig(**sizes), replace(coleaf.CoLeaFTraining(**SMALL), anchor_from=2))
    return validation, dict(estimator=lambda run: jomold.train(data, validation, None, *first, run),
                            jomold=lambda run: jomold.train(data, validation, ratios, *first, run),
                            coleaf=lambda run: coleaf.train(data, validation, ratios, *later, run))


@pytest.mark.parametrize("name", ("estimator", "jomold", "coleaf"))
@pytest.mark.parametrize("visual_3d, seconds", ((3, 10), (0, 6)))
def test_trains_and_resumes_to_the_same_bytes(name, visual_3d, seconds, tmp_path):
    validation, train = trainings(visual_3d, seconds)
    whole, stopped = (tmp_path / f / "model.pt" for f in ("whole", "stopped"))
    for path in (whole, stopped):
        path.parent.mkdir()
    model = train[name](checkpoints.Run(whole, name, {}))
    with pytest.raises(KeyboardInterrupt):
        train[name](Killed(stopped, name, {}))
    assert stopped.with_suffix(".state.pt").exists() and not stopped.exists()
    train[name](checkpoints.Run(stopped, name, {}))
    assert whole.read_bytes() == stopped.read_bytes()
    content = checkpoints.load_file(whole)
    assert all(np.isfinite(record["loss"]) for record in content["history"])
    # The checkpoint alone makes the model again, and the score that kept the epoch is the system's own.
    kind, config = (coleaf.CoLeaF, coleaf.CoLeaFConfig) if name == "coleaf" else (jomold.JoMoLD, jomold.JoMoLDConfig)
    assert content["kind"] == kind.__name__ and content["config"] == asdict(model.config)
    again = with_weights(lambda: kind(config(**content["config"])), content["weights"]).eval()
    truth = validation.audio_truth, validation.visual_truth
    if name == "coleaf":
        kept = [sum(r["val"].values()) / 10 for r in content["history"]]
        scores = coleaf.only_scores(*coleaf.predictions(again, validation), *truth)
        assert content["score"] == pytest.approx(sum(scores.values()) / 10)
        video, audio, visual = coleaf.joint(again, validation)
    else:
        kept = [r["val"]["event_a"] for r in content["history"]]
        scores = uwav.parsing_scores(*jomold.predictions(again, validation, cross=name == "jomold"), *truth)
        assert content["score"] == pytest.approx(scores["event_a"])
        video, audio, visual = jomold.joint(again, validation)
        assert len(torch.stack(jomold.noise_ratios(again, validation)).flatten()) == 2 * C
    best = max(range(3), key=lambda k: (kept[k], k))  # of equals the last
    assert content["history"][best]["val"] == pytest.approx(scores)
    assert video.shape == (20, C) and audio.shape == visual.shape == (20, seconds, C)
    assert all(((x >= 0) & (x <= 2)).all() for x in (video, audio, visual))


def test_of_epochs_that_score_alike_and_without_validation_the_last_is_kept(monkeypatch):
    data, ratios = world(20, 0), (torch.ones(C).double(), torch.ones(C).double())
    for module, model_config, config in ((jomold, jomold.JoMoLDConfig(**TINY), jomold.JoMoLDTraining(**SMALL)), (coleaf, coleaf.CoLeaFConfig(**TINY), coleaf.CoLeaFTraining(**SMALL))):
        monkeypatch.setattr(module, "predictions", lambda model, data, *cross: (data.audio_truth > 2, data.visual_truth > 2))
        runs = uwav.Run(), uwav.Run()
        models = [module.train(data, validation, ratios, model_config, config, run) for validation, run in zip((None, data), runs)]
        assert [r["val"] for r in runs[0].history] == [None] * 3 and len({r["val"]["seg_a"] for r in runs[1].history}) == 1
        assert all(torch.equal(x, y) for x, y in zip(*(m.state_dict().values() for m in models)))


def test_fast_trains_like_the_plain_way(tmp_path):
    data, ratios = world(20, 0), (torch.full((C,), 0.4).double(), torch.full((C,), 0.7).double())
    for module, model_config, config in ((jomold, jomold.JoMoLDConfig(**TINY), jomold.JoMoLDTraining(**SMALL)), (coleaf, coleaf.CoLeaFConfig(**TINY), coleaf.CoLeaFTraining(**SMALL))):
        runs = [checkpoints.Run(tmp_path / f"{module.__name__}{fast}.pt", "x", {}) for fast in (False, True)]
        for run, fast in zip(runs, (False, True)):
            module.train(data, None, ratios, model_config, replace(config, fast=fast, epochs=1), run)
        plain, fast = (run.history[0]["loss"] for run in runs)
        assert plain != fast and fast == pytest.approx(plain, rel=0.02)


class Flip(torch.nn.Module):
    """In the place of a dropout: shows what it acts on, without chance."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flip(1)


def test_dropout_before_the_heads_is_where_the_public_code_has_it():
    inputs = drawn(2, T, 6), drawn(2, T, 8), drawn(2, T, 3)
    model = jomold.JoMoLD(jomold.JoMoLDConfig(**TINY)).eval()
    before = model(*inputs)
    model.visual_drop = Flip()
    after = model(*inputs)
    for name in ("audio_logit", "audio_feat", "visual_feat", "audio_prob"):
        assert torch.equal(getattr(before, name), getattr(after, name)), name
    assert torch.allclose(after.visual_logit, before.visual_logit.flip(1), atol=1e-6) and torch.allclose(after.visual_prob, before.visual_prob, atol=1e-6)

    model = coleaf.CoLeaF(coleaf.CoLeaFConfig(**TINY)).eval()
    before = model.anchor(*inputs)
    model.anchor.visual_drop = Flip()
    after = model.anchor(*inputs)
    for name in ("joint_prob", "joint_doubt", "audio_feat", "visual_feat"):
        assert torch.equal(getattr(before, name), getattr(after, name)), name
    assert not torch.allclose(before.audio_prob, after.audio_prob, atol=1e-6), "absence of sound looks at the dropped features, too"
    for reference, x, same in ((model.audio_reference, inputs[0], False), (model.visual_reference, torch.cat(inputs[1:], -1), True)):
        seconds = []
        reference.classifier.register_forward_hook(lambda _module, _inputs, logit, seconds=seconds: seconds.append(logit))
        before = reference(x)
        reference.drop = Flip()
        after = reference(x)
        assert torch.equal(before.feat, after.feat) and torch.allclose(seconds[1], seconds[0].flip(1), atol=1e-6)
        assert torch.allclose(before.prob, after.prob, atol=1e-6) == same, "audio drops what is classified, visual the weights as well"
    assert [m.visual_drop.p for m in (jomold.JoMoLD(), coleaf.CoLeaF().anchor)] == [0.5, 0.5] and coleaf.CoLeaF().audio_reference.drop.p == 0.5
