"""Agreement with inputs and outputs recorded from the authors' released code: the definition of correct.

The small cases are in tests/golden, so whoever clones can check them; the others need the shared folder."""

import json

import numpy as np
import pytest
import torch

import uwav
from conftest import GOLDEN
from data import annotations, pack
from train import presets, stages

GRAD = dict(rtol=1e-4, atol=1e-4)
VALUE = dict(rtol=1e-5, atol=1e-5)


def weights(case: dict, prefix: str) -> dict:
    return {k[len(prefix):]: v for k, v in case.items() if k.startswith(prefix)}


def heads(case: dict) -> int:
    """Of the recorded model: weights do not tell."""
    return json.loads(str(case["config"]))["nhead"]


def assert_same_gradients(model, load_released, case: dict) -> None:
    """Recorded gradients, put under our names by the same loader that renames weights, equal ours."""
    recorded = weights(case, "grad.")
    skeleton = {k: recorded.get(k, v) for k, v in weights(case, "sd.").items()}
    expected = dict(load_released(skeleton, heads=heads(case)).named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].data, **GRAD, msg=lambda m: f"{name}: {m}")


def labels_of(case: dict, setting: str) -> uwav.PseudoLabels | None:
    """Labels of an ablation row, from the recorded teacher logits, thresholds and class frequencies."""
    if setting == "video_only":
        return None
    config = uwav.TrainConfig(**presets.ABLATION[setting])
    weak = case["weak_label"]
    per_modality, balance = [], []
    for m in ("audio", "visual"):
        z, theta = case[f"{m}_teacher_logits"], case[f"{m}_thresholds"]
        hard = config.pseudo_label == "hard"
        per_modality.append(uwav.hard_labels(z, theta, weak) if hard else uwav.soft_labels(z, theta, weak))
        frequency = case[f"{m}_class_freq"]  # positive rate of each class over the whole training set
        sum_of_rates = frequency.sum()
        balance.append((config.W * (len(frequency) - sum_of_rates), sum_of_rates) if config.reweight else (1.0, 1.0))
    return uwav.PseudoLabels(*per_modality, *balance)


def losses_of(model, case: dict, setting: str) -> torch.Tensor:
    labels = labels_of(case, setting)
    mixup = None
    if presets.ABLATION[setting]["mixup"]:
        mixup = [(float(case["lam"][m]), case[f"perm_{name}"]) for m, name in enumerate(("audio", "visual"))]
    output = model(case["audio"], case["visual_2d"], case["visual_3d"])
    return uwav.han_losses(model, output, case["weak_label"], labels, mixup)


def test_han_outputs_equal_the_released_code(golden):
    case = golden("han")
    model = uwav.load_released_han(weights(case, "sd."), heads=heads(case)).eval()
    output = model(case["audio"], case["visual_2d"], case["visual_3d"])
    names = ("video_probs", "audio_logits", "visual_logits", "audio_feat", "visual_feat")
    for ours, theirs in zip(output, names, strict=True):
        torch.testing.assert_close(ours, case[f"out.{theirs}"], **VALUE)


@pytest.mark.parametrize("name, heads", [("han", 1), ("valor", 8)])
def test_the_public_hans_of_2020_and_of_valor_load_and_equal_their_code(golden, name, heads):
    case = weights(golden("public_hans"), f"{name}.")
    state = weights(case, "sd.")
    model = uwav.load_released_han(state, heads=int(case["heads"])).eval()
    output = model(*(case[f"in.{k}"] for k in ("audio", "visual_2d", "visual_3d")))
    torch.testing.assert_close(output.video_prob, case["out.video_prob"], **VALUE)
    segments = torch.stack([output.audio_logit, output.visual_logit], 2).sigmoid()  # (B, T, 2, C)
    torch.testing.assert_close(segments, case["out.segment_prob"], **VALUE)
    for m, own in zip(("audio", "visual"), stages.modality_prob(model, output).unbind(1)):
        torch.testing.assert_close(own, case[f"out.{m}_prob"], **VALUE)
    assert uwav.load_released_han(state).config.heads == heads  # as published, unless told
    assert model.config.audio_first == (name == "valor") and not model.config.audio_mlp


@pytest.mark.parametrize("inputs, split", [(2560, (2048, 512)), (2559, (2559, 0)), (2048, (2048, 0)), (2816, (2816, 0))])
def test_what_weights_do_not_tell_of_the_visual_inputs_is_as_published(golden, inputs, split):
    case = golden("han")
    state = weights(case, "sd.")
    state["fc_fusion.layers.0.weight"] = torch.zeros(len(state["fc_fusion.layers.0.weight"]), inputs)
    for told in (None, 7):
        config = uwav.load_released_han(state, heads(case), told).config
        assert (config.visual_2d_dim, config.visual_3d_dim) == ((inputs - told, told) if told else split)


@pytest.mark.parametrize("setting", presets.ABLATION)
def test_han_losses_of_every_ablation_row_equal_the_released_code(golden, setting):
    case = golden("han")
    model = uwav.load_released_han(weights(case, "sd."), heads=heads(case)).eval()
    losses = losses_of(model, case, setting)
    ours = torch.cat([losses, losses.sum()[None]])
    torch.testing.assert_close(ours.double(), case[f"loss.{setting}"], **VALUE)


def test_han_gradients_equal_the_released_code(golden):
    case = golden("han")
    model = uwav.load_released_han(weights(case, "sd."), heads=heads(case)).eval()
    losses_of(model, case, "full").sum().backward()
    assert_same_gradients(model, uwav.load_released_han, case)


def test_hard_labels_equal_the_released_code(golden):
    case = golden("han")
    for m in ("audio", "visual"):
        hard = uwav.hard_labels(case[f"{m}_teacher_logits"], case[f"{m}_thresholds"], case["weak_label"])
        assert torch.equal(hard, case[f"{m}_hard"])


def test_thirty_training_steps_follow_the_released_code(golden):
    case = golden("han_trajectory")
    model = uwav.load_released_han(weights(case, "sd."), heads=heads(case)).eval()  # recorded with dropout 0
    beta1, beta2 = case["betas"].tolist()
    decay = float(case["weight_decay"])
    config = uwav.TrainConfig(peak_lr=float(case["lr"]), weight_decay=decay, beta1=beta1, beta2=beta2)
    optimizer = uwav.adamw(model, config)
    steps = len(case["losses"])
    per_step = ("audio", "visual_2d", "visual_3d", "weak_label", "audio_teacher_logits", "visual_teacher_logits",
                "lam", "perm_audio", "perm_visual")
    for step in range(steps):
        batch = case | {name: case[name][step] for name in per_step}
        loss = losses_of(model, batch, "full").sum()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        assert loss.item() == pytest.approx(float(case["losses"][step]), rel=1e-4)
        assert float(norm) == pytest.approx(float(case["grad_norms"][step]), rel=1e-4)
    end = dict(uwav.load_released_han(weights(case, "end."), heads=heads(case)).named_parameters())
    for name, parameter in model.named_parameters():
        ours, theirs = parameter.data, end[name].data
        # A softmax cancels a constant added to all that it compares: the exact gradient of these biases is zero,
        # what AdamW sees is rounding noise, and it scales noise up to full steps. Nothing else may differ.
        if name in ("time_pool.bias", "modal_pool.bias"):
            continue
        if name.endswith("attn.in_proj.bias"):
            ours, theirs = (torch.cat([x.chunk(3)[0], x.chunk(3)[2]]) for x in (ours, theirs))  # without the key's
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, msg=lambda m: f"{name}: {m}")


def teacher_case(golden):
    case = golden("teacher")
    model = uwav.load_released_teacher(weights(case, "sd."), heads=heads(case)).eval()
    mask = torch.arange(case["audio"].shape[1]) < case["durations"][:, None]  # (B, T)
    logits = model(case["audio"], case["visual"], case["audio_event_feats"], case["visual_event_feats"], mask)
    return case, model, mask, logits


def test_teacher_logits_equal_the_released_code_on_valid_segments(golden):
    case, _, mask, logits = teacher_case(golden)
    for ours, m in zip(logits, ("audio", "visual")):
        torch.testing.assert_close(ours[mask], case[f"out.{m}_logits"][mask], **VALUE)


def test_teacher_loss_and_gradients_equal_the_released_code(golden):
    case, model, mask, logits = teacher_case(golden)
    loss = uwav.teacher_loss(*logits, case["labels"], mask, pos_weight=float(case["pos_weight"]))
    assert loss.item() == pytest.approx(float(case["loss"]), abs=1e-5)
    loss.backward()
    assert_same_gradients(model, uwav.load_released_teacher, case)


@pytest.fixture(scope="module")
def llp(shared):
    return annotations.read_llp(shared / "data/llp", report=lambda line: None)


def test_thresholds_on_llp_validation_equal_the_released_code(golden, llp):
    case = golden("thresholds_llp_val")
    weak = torch.from_numpy(llp.val.weak)
    for m in ("audio", "visual"):
        logit = case[f"{m}_logits"].transpose(1, 2)  # (N, C, T) -> (N, T, C)
        threshold, f1 = uwav.fit_thresholds(logit, torch.from_numpy(getattr(llp.val, m)), weak)
        assert torch.equal(threshold, case[f"{m}_thresholds"])
        torch.testing.assert_close(f1, case[f"{m}_f1"], rtol=0, atol=1e-7)


def truth_of(split: str) -> list[torch.Tensor]:
    """What is audible and visible in LLP's videos, in csv order: (N, 10, 25) of 0 / 1 each; stored as bits, in whole bytes."""
    with np.load(GOLDEN / "llp_truth.npz", allow_pickle=False) as file:
        bits = [np.unpackbits(file[f"{split}_{m}"]) for m in ("audio", "visual")]
    return [torch.from_numpy(x[: len(x) // 250 * 250]).reshape(-1, 10, 25) for x in bits]


@pytest.mark.parametrize("split", ["val", "test"])
def test_ten_scores_on_llp_equal_the_released_code(golden, split):
    case = golden(f"metrics_llp_{split}")
    pred = [case[f"{m}_pred"].transpose(1, 2) for m in ("audio", "visual")]  # (N, T, C)
    scores = uwav.parsing_scores(*pred, *truth_of(split))
    for name, expected in json.loads(str(case["summary"])).items():
        assert scores[name.lower().replace("-", "_")] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_truth_of_llp_is_read_from_its_files_in_their_order(golden, llp, split):
    read = getattr(llp, split)
    assert [f[:11] for f in golden(f"metrics_llp_{split}")["filenames"]] == read.ids
    for stored, ours in zip(truth_of(split), (read.audio, read.visual)):
        assert np.array_equal(stored.numpy(), ours)


def test_per_video_scores_of_long_videos_equal_the_released_code(golden):
    case = golden("metrics_long")
    arrays = [case[k].transpose(1, 2) for k in ("audio_pred", "visual_pred", "audio_gt", "visual_gt")]  # (N, T, C)
    names = [str(n) for n in golden("metrics_llp_val")["per_video_columns"]]
    together = uwav.video_scores(*arrays)
    torch.testing.assert_close(together["event_type"], sum(together[f"event_{x}"] for x in ("a", "v", "av")) / 3)
    for n, expected in enumerate(case["per_video"]):
        scores = uwav.parsing_scores(*(x[n : n + 1] for x in arrays))
        assert [float(together[k][n]) for k in names] == pytest.approx(expected.tolist(), abs=1e-6)
        assert [scores[k] / 100 for k in names] == pytest.approx(expected.tolist(), abs=1e-7)


def test_unav_labels_and_pooling_equal_the_released_code(golden):
    case = golden("unav_labels")
    unav = annotations.read_unav(GOLDEN / "unav_annotations.json", report=lambda line: None)
    by_id = dict(zip(unav.validation.ids, unav.validation.labels))
    ours = [by_id[i] for i in case["ids"]]
    assert [len(x) for x in ours] == case["durations"].tolist()
    assert np.array_equal(np.concatenate(ours), case["labels"].numpy())
    for T, expected in weights(case, "pool_").items():
        if T != "in":
            assert np.abs(pack.pool_to(case["pool_in"].numpy(), int(T)) - expected.numpy()).max() < 1e-6


@pytest.mark.parametrize("stage, config", [("teacher", uwav.PretrainConfig()), ("han", uwav.TrainConfig())])
def test_learning_rate_of_all_80_epochs_equals_the_released_code(stage, config):
    recorded = json.loads((GOLDEN / f"lr_{stage}.json").read_text())
    ours = [uwav.learning_rate(e, config.epochs, config.peak_lr, config.min_lr, config.warmup) for e in range(1, 81)]
    assert ours == pytest.approx(recorded, rel=1e-9)


def test_what_every_clone_has_is_a_part_of_what_was_recorded_and_small(shared):
    stored = list(GOLDEN.iterdir())
    assert sum(path.stat().st_size for path in stored) < 1_000_000
    for path in stored:
        if path.name == "unav_annotations.json":
            whole, part = (json.loads(x.read_text())["database"] for x in (shared / "data/unav/unav100_annotations.json", path))
            assert part.items() <= whole.items() and len(part) == 120 + 14
        elif path.name not in ("README.md", "llp_truth.npz"):
            assert path.read_bytes() == (shared / "golden" / path.name).read_bytes()
