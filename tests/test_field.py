"""LEAP, MM-Pyramid and MGN agree with inputs and outputs recorded from their public code, and with hand-made cases."""

import re
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import uwav
from field import leap, mgn, mm_pyramid
from train import checkpoints, stages

TOLERANCE = 2e-5  # of the larger of 1 and the array


def assert_near(ours, theirs, name: str = "") -> None:
    ours, theirs = torch.as_tensor(ours).detach(), torch.as_tensor(theirs)
    assert ours.shape == theirs.shape, f"{name}: {tuple(ours.shape)} {tuple(theirs.shape)}"
    difference = float((ours - theirs).abs().max()) / max(1.0, float(theirs.abs().max()))
    assert difference <= TOLERANCE, f"{name}: {difference:.1e}"


def weights(case: dict, prefix: str) -> dict:
    return {k[len(prefix):]: v for k, v in case.items() if k.startswith(prefix)}


def renamed(state: dict, names: tuple[tuple[str, str], ...]) -> dict:
    """Under our names; what has none of them is left out."""
    found = {}
    for name, x in state.items():
        new = name
        for theirs, ours in names:
            new = re.sub(theirs, ours, new)
        if new.startswith("="):
            found[new[1:]] = x
    return found


class ThreeLinear(nn.Module):
    """The visual projection as the public code has it: 2D and 3D features each through a layer, then both through a third."""

    def __init__(self, dim_2d: int, dim_3d: int, hidden: int):
        super().__init__()
        self.dims = dim_2d, dim_3d
        self.fc_v, self.fc_st, self.fc_fusion = nn.Linear(dim_2d, hidden), nn.Linear(dim_3d, hidden), nn.Linear(2 * hidden, hidden)

    def forward(self, x):
        two, three = x.split(self.dims, -1)
        return self.fc_fusion(torch.cat([self.fc_v(two), self.fc_st(three)], -1))


# ---- MM-Pyramid ------------------------------------------------------------------------------------

LAYER = ((r"self_attn\.linears\.0", "query"), (r"self_attn\.linears\.1", "key"), (r"self_attn\.linears\.2", "value"), (r"self_attn\.linears\.3", "out"),
         (r"feed_forward\.w_", "linear"), (r"sublayer\.0\.norm", "norm1"), (r"sublayer\.1\.norm", "norm2"))
PYRAMID = (*LAYER, (r"MMP\.capture\.msa\.(\d)\.vsablock\.layer", r"=layers.\1.visual.attention"),
           (r"MMP\.capture\.msa\.(\d)\.asablock\.layer", r"=layers.\1.audio.attention"),
           (r"MMP\.capture\.msa\.(\d)\.cmablock\.layer", r"=layers.\1.cross"),
           (r"MMP\.capture\.vnetwork\.(\d)\.conv1", r"=layers.\1.visual.conv3"), (r"MMP\.capture\.anetwork\.(\d)\.conv1", r"=layers.\1.audio.conv3"),
           (r"MMP\.capture\.vnetwork\.(\d)\.conv2", r"=layers.\1.visual.conv1"), (r"MMP\.capture\.anetwork\.(\d)\.conv2", r"=layers.\1.audio.conv1"),
           (r"MMP\.capture\.msa\.(\d)\.l([av])gates", lambda m: f"=layers.{m[1]}.{dict(a='audio', v='visual')[m[2]]}.gates"),
           (r"MMP\.fusion\.vadaptiveinteraction", "=visual_fusion.layer"), (r"MMP\.fusion\.aadaptiveinteraction", "=audio_fusion.layer"),
           (r"MMP\.fusion\.vselectfusion", "=visual_fusion.gate"), (r"MMP\.fusion\.aselectfusion", "=audio_fusion.gate"),
           (r"^fc_(v|st|fusion)\.", r"=visual_proj.fc_\1."), (r"^fc_a\.", "=audio_proj."),
           (r"^fc_prob\.", "=classifier."), (r"^fc_frame_att\.", "=time_pool."), (r"^fc_av_att\.", "=modal_pool."))


def of_pyramid(state: dict) -> dict:
    """Recorded weights, or gradients, under our names: the two gates of a modality are one matrix here."""
    state = dict(state)
    for name in [n for n in state if re.search(r"\.l[av]1\.", n)]:
        state[re.sub(r"(l[av])1\.", r"\1gates.", name)] = torch.cat([state[name], state[name.replace("1.weight", "2.weight").replace("1.bias", "2.bias")]])
    return renamed(state, PYRAMID)


def losses_of_pyramid(model: uwav.HAN, output: uwav.HANOutput, weak: torch.Tensor) -> torch.Tensor:
    """What the public code trains with, and the HAN of 2020, where there are only weak labels (B, C) -> (3,): of the pooled probability, and of each
    modality's own, which is asked for every class, of the visual a little less."""
    terms = [uwav.video_loss(output.video_prob, weak)]
    for feat, logit, label in ((output.audio_feat, output.audio_logit, weak), (output.visual_feat, output.visual_logit, 0.9 * weak + 0.05)):
        w_time = model.time_pool(feat).float().softmax(1)  # (B, T, C), sums to 1 over T
        terms.append(uwav.video_loss((w_time * logit.float().sigmoid()).sum(1), label))
    return torch.stack(terms)


@pytest.fixture(scope="module")
def pyramid(golden):
    case = golden("mmpyramid")
    model = mm_pyramid.MMPyramid(mm_pyramid.MMPyramidConfig(
        audio_dim=6, visual_2d_dim=8, visual_3d_dim=5, hidden=16, heads=4, feedforward=24)).eval()
    model.visual_proj = ThreeLinear(8, 5, 16)
    model.load_state_dict(of_pyramid(weights(case, "sd.")))
    return case, model


@pytest.mark.parametrize("name, inputs", [("eval", "in"), ("long", "in_long")])
def test_mm_pyramid_equals_the_public_code(pyramid, name, inputs):
    case, model = pyramid
    features = [case[f"{inputs}.{k}"] for k in ("audio", "visual_2d", "visual_3d")]
    a, v = model.project(*features)
    assert_near(a, case[f"{name}.a0"])
    assert_near(v, case[f"{name}.v0"])
    levels = []
    for n, unit in enumerate(model.layers):
        a, v = unit(a, v)
        levels.append((a, v))
        assert_near(a, case[f"{name}.l{n}.a_out"], f"unit {n}")
        assert_near(v, case[f"{name}.l{n}.v_out"], f"unit {n}")
    output = model(*features)
    assert_near(output.audio_feat, case[f"{name}.a_feat"])
    assert_near(output.visual_feat, case[f"{name}.v_feat"])
    swapped = torch.stack([output.visual_logit, output.audio_logit], 2)  # there, stream 0 is that of pictures
    assert_near(swapped, case[f"{name}.logit"])
    assert_near(swapped.sigmoid(), case[f"{name}.out.frame_prob"])
    assert_near(output.video_prob, case[f"{name}.out.video_prob"])


@pytest.mark.parametrize("name, inputs", [("eval", "in"), ("long", "in_long")])
def test_mm_pyramid_losses_and_gradients_equal_the_public_code(pyramid, name, inputs):
    case, model = pyramid
    model.zero_grad()
    output = model(*(case[f"{inputs}.{k}"] for k in ("audio", "visual_2d", "visual_3d")))
    exchanged = output._replace(audio_logit=output.visual_logit, visual_logit=output.audio_logit,  # what is called audio there
                                audio_feat=output.visual_feat, visual_feat=output.audio_feat)
    losses = losses_of_pyramid(model, exchanged, case[f"{inputs}.target"])
    for ours, theirs in zip([*losses, losses.sum()], ("video", "first", "second", "total"), strict=True):
        assert_near(ours, case[f"{name}.loss.{theirs}"], theirs)
    losses.sum().backward()
    norm = torch.stack([p.grad.square().sum() for p in model.parameters()]).sum().sqrt()
    assert_near(norm, case[f"{name}.grad_norm_total"], "norm")
    recorded = of_pyramid(weights(case, f"{name}.grad."))
    if name == "eval":
        for parameter, x in model.named_parameters():
            assert_near(x.grad, recorded[parameter], parameter)


# ---- LEAP ------------------------------------------------------------------------------------------

DECODER = (*LAYER, (r"AVL\.lv_cma_network", "=visual_decoder"), (r"AVL\.la_cma_network", "=audio_decoder"),
           (r"^fc_l\.", "=name_proj."), (r"^fc_la\.", "=heard."), (r"^fc_lv\.", "=seen."))


def of_leap(state: dict) -> dict:
    found = of_pyramid(state)
    own = {k: found.pop(k) for k in list(found) if k.startswith(("audio_proj", "visual_proj"))}
    return {f"pyramid.{k}": x for k, x in found.items()} | own | renamed(state, DECODER)


class Recorded(leap.LEAP):
    """With the encoder and the visual projection that the public code has."""

    def __init__(self):
        sizes = dict(audio_dim=6, visual_2d_dim=10, visual_3d_dim=7, hidden=16, dropout=0.0, audio_mlp=False)
        super().__init__(leap.LEAPConfig(**sizes, layers=0, text_dim=9, decoder_heads=2, decoder_feedforward=12, decoder_dropout=0.0,
                                         attention_dropout=0.0))
        self.visual_proj = ThreeLinear(10, 7, 16)
        self.pyramid = mm_pyramid.MMPyramid(mm_pyramid.MMPyramidConfig(**sizes, heads=4, feedforward=12, attention_dropout=0.0))
        for name in ("audio_proj", "visual_proj", "classifier", "time_pool", "modal_pool"):
            delattr(self.pyramid, name)

    def encode(self, a, v):
        return self.pyramid.encode(a, v)


def recorded_leap(case: dict, prefix: str = "sd.") -> Recorded:
    model = Recorded().eval()
    model.load_state_dict(of_leap(weights(case, prefix)) | dict(names=case["in.texts"]))
    return model


def batch_of(case: dict, n: int) -> tuple[list, tuple]:
    return [case[f"in.{k}"][n] for k in ("audio", "visual_2d", "visual_3d")], (case["in.pseudo_audio"][n], case["in.pseudo_visual"][n])


def test_the_decoder_of_leap_equals_the_public_code(golden):
    """From the recorded features of the encoder alone."""
    case = golden("leap")
    model = recorded_leap(case)
    assert_near(model.name_proj(model.names).expand(8, -1, -1), case["fwd.label_in"])
    for m, layers in (("audio", model.audio_decoder), ("visual", model.visual_decoder)):
        x = case["fwd.label_in"]
        for n, layer in enumerate(layers):
            x, logit = layer(x, case[f"fwd.feat_{m}"])
            assert_near(x, case[f"fwd.decoder_{m}.{n}.label"])
            assert_near(logit, case[f"fwd.decoder_{m}.{n}.score"].mean(1).transpose(1, 2))  # the mean over heads
    output = model.head(case["fwd.feat_audio"], case["fwd.feat_visual"])
    assert_near(output.heard_prob, case["fwd.audio_prob"])
    assert_near(output.seen_prob, case["fwd.visual_prob"])
    assert torch.equal((output.video_prob >= uwav.GATE).float(), case["fwd.global_prob"])
    assert_near(output.audio_logit.sigmoid(), case["fwd.audio_frame_prob"])
    assert_near(output.visual_logit.sigmoid(), case["fwd.visual_frame_prob"])


def test_leap_equals_the_public_code_from_features_to_scores(golden):
    case = golden("leap")
    model, predicted = recorded_leap(case), []
    for n in range(2):
        output = model(*batch_of(case, n)[0])
        if n == 0:
            assert_near(output.audio_feat, case["fwd.feat_audio"])
            assert_near(output.visual_feat, case["fwd.feat_visual"])
            assert_near(output.audio_logit.sigmoid(), case["fwd.audio_frame_prob"])
        predicted.append(torch.stack(uwav.gated_predictions(output.video_prob, output.audio_logit.sigmoid(), output.visual_logit.sigmoid())))
    predicted = torch.cat(predicted, 1)  # (2, N, T, C)
    assert torch.equal(predicted.to(case["eval.pred"].dtype), case["eval.pred"])
    assert uwav.parsing_scores(*predicted, *case["eval.truth"])["seg_type"] == pytest.approx(float(case["eval.seg_type"]), abs=1e-6)


def test_leap_losses_and_gradients_equal_the_public_code(golden):
    case = golden("leap")
    model = recorded_leap(case)
    features, labels = batch_of(case, 0)
    output = model(*features)
    assert_near(leap.similarity_target(*labels), case["step0.avss_target"])
    losses = leap.leap_losses(output, *labels)
    assert_near(losses, case["step0.terms"][[0, 1, 3, 4, 5]])
    constant = uwav.video_loss((output.video_prob >= uwav.GATE).float(), case["in.weak"][0])  # the third there: without a gradient
    assert_near(constant, case["step0.terms"][2])
    losses.sum().backward()
    recorded = of_leap(weights(case, "step0.grad."))
    for name, parameter in model.named_parameters():
        assert_near(parameter.grad, recorded[name], name)


def test_ten_training_steps_of_leap_follow_the_public_code(golden):
    case = golden("leap")
    model = recorded_leap(case)
    config = leap.LEAPTraining(peak_lr=1e-3, drop_every=2)
    optimizer = uwav.adamw(model, config)
    for step in range(10):
        optimizer.param_groups[0]["lr"] = config.learning_rate(1 + step // 2)
        assert config.learning_rate(1 + step // 2) == pytest.approx(float(case["traj.lr"][step // 2]))
        features, labels = batch_of(case, step % 2)
        losses = leap.leap_losses(model(*features), *labels)
        losses.sum().backward()
        assert_near(losses, case["traj.terms"][step][[0, 1, 3, 4, 5]], f"step {step}")
        assert_near(nn.utils.get_total_norm(p.grad for p in model.parameters()), case["traj.grad_norm"][step], f"step {step}")
        optimizer.step()
        optimizer.zero_grad()
    end = recorded_leap(case, "end.").state_dict()
    for name, ours in model.state_dict().items():
        # A softmax cancels the biases of keys, so Adam turns their rounding into steps; the last block's act on the logits, too.
        if not name.endswith("key.bias") or name.endswith("decoder.1.key.bias"):
            assert_near(ours, end[name], name)


def test_leap_target_of_similarity_by_hand():
    """Two seconds; A: {0}, {0, 1, 2}; V: {0, 1}, {}. The most labels of a second: 3."""
    a, v = torch.tensor([[[1.0, 0, 0], [1, 1, 1]]]), torch.tensor([[[1.0, 1, 0], [0, 0, 0]]])
    shared = torch.tensor([[[1.0, 0], [2, 0]]]) / 3
    torch.testing.assert_close(leap.similarity_target(a, v), shared / (1 + shared) + 0.01)
    assert leap.similarity_target(0 * a, 0 * v).eq(0.01).all()  # no label at all: no NaN


def test_leap_begins_with_equal_projections_and_blocks():
    model = leap.LEAP(leap.LEAPConfig(hidden=16, heads=2, layers=1))
    first = model.audio_decoder[0].state_dict()
    assert torch.equal(first["query.weight"], first["out.weight"]) and torch.equal(first["query.bias"], first["key.bias"])
    for layer in (*model.audio_decoder, *model.visual_decoder):
        assert all(torch.equal(x, first[name]) for name, x in layer.state_dict().items())


# ---- MGN -------------------------------------------------------------------------------------------

NAMES = ((r"^([av])\w+_token$", lambda m: f"={dict(a='audio', v='visual')[m[1]]}_tokens"), (r"^(audio|visual)_cug\.blocks", r"=\1_blocks"),
         (r"^(audio|visual)_cug\.grouping", r"=\1_groups"), (r"^audio_cug\.han_encoder", "=merge"), (r"^av_mcg\.blocks", "=cross_blocks"),
         (r"^av_mcg\.grouping", "=cross_groups"), (r"^fc_cls", "=classifier"), (r"^fc_(v|st|fusion)\.", r"=visual_proj.fc_\1."), (r"^fc_a\.", "=audio_proj."),
         (r"pre_assign_attn\.norm_post", "norm_query"), (r"pre_assign_attn\.norm2", "norm_attn"), (r"pre_assign_attn\.", ""),
         (r"attn\.qkv", "attn.in_proj"), (r"attn\.proj", "attn.out_proj"), (r"mlp_inter", "mix"), (r"mlp_channels", "mlp_out"),
         (r"fc1", "0"), (r"fc2", "2"), (r"norm_post_tokens", "norm_mixed"), (r"norm_x", "norm_members"), (r"norm_new_x", "norm_out"),
         (r"assign\.q_proj", "query"), (r"assign\.k_proj", "key"), (r"assign\.v_proj", "value"), (r"assign\.proj", "out"),
         (r"^fc_prob\.", "=heads.video."), (r"^fc_prob_a\.", "=heads.audio."), (r"^fc_prob_v\.", "=heads.visual."))


def of_mgn(state: dict) -> dict:
    """Recorded weights, or gradients, under our names: query, key and value of attention are one matrix here."""
    state = dict(state)
    for name in [n for n in state if ".attn.q_proj." in n]:
        state[name.replace("q_proj", "qkv")] = torch.cat([state.pop(name.replace("q_proj", f"{x}_proj")) for x in "qkv"])
    return renamed(state, NAMES)


class Heads(nn.Module):
    """The published predictions, from MGN.group; ours are the HAN's, of the features that MGN.encode gives."""

    def __init__(self, config: mgn.MGNConfig):
        super().__init__()
        self.hard = config.hard
        self.video, self.audio, self.visual = (nn.Linear(config.hidden, 1) for _ in range(3))

    def forward(self, merged: mgn.Groups, audio: mgn.Groups, visual: mgn.Groups, both: mgn.Groups) -> tuple[torch.Tensor, ...]:
        """Probabilities of the video by both, by sound, by pictures, (B, C) each; of its seconds, (B, T, C) each."""
        p_av, p_a, p_v = (head(x.features).sigmoid() for head, x in ((self.video, both), (self.audio, audio), (self.visual, visual)))  # (B, C, 1) each
        # A second softmax, over time, of shares that are one: with 10 seconds the factor lies between 1.04 and 1.23.
        seconds = (p * (x.shares if self.hard else 1 + x.shares.softmax(-1)) for p, x in ((p_a, audio), (p_v, visual)))
        return *(x[..., 0] for x in (p_av, p_a, p_v)), *(x.transpose(1, 2) for x in seconds)


def losses_of_mgn(model: mgn.MGN, video_prob: torch.Tensor, audio_prob: torch.Tensor, visual_prob: torch.Tensor, weak: torch.Tensor) -> torch.Tensor:
    """What the public code trains with, (B, C) each -> (5,). None of its terms touches a second."""
    own = torch.arange(model.config.classes)  # (C,): each class's token is of that class
    tokens = (nn.functional.cross_entropy(model.classifier(x), own) for x in (model.audio_tokens, model.visual_tokens))
    pairs = (video_prob, weak), (audio_prob, weak), (visual_prob, 0.9 * weak + 0.05)
    return torch.stack([*tokens, *(uwav.video_loss(*pair) for pair in pairs)])


def recorded_mgn(case: dict, hard: bool, any_t: bool = False) -> mgn.MGN:
    """With the published heads and visual projection, and the merging tokens mixed."""
    config = mgn.MGNConfig(audio_dim=6, visual_2d_dim=8, visual_3d_dim=5, hidden=16, feedforward=64, dropout=0.0, hard=hard)
    model = mgn.MGN(config)
    model.visual_proj, model.heads = ThreeLinear(8, 5, 16), Heads(config)
    if not any_t:
        model.merge = mgn.Grouping(config, 10, not hard)
    missing, extra = model.load_state_dict(of_mgn(weights(case, "sd.")), strict=False)
    assert {name.split(".")[0] for name in missing} == {"time_pool", "modal_pool"}  # ours
    assert all(any_t and name.startswith("merge.mix.") for name in extra)
    return model


@pytest.mark.parametrize("name", ["eval_soft", "eval_hard", "train_soft", "train_hard", "any_t"])
def test_mgn_equals_the_public_code(golden, monkeypatch, name):
    case = golden("mgn")
    model = recorded_mgn(case, name.endswith("hard"), name == "any_t").train(name.startswith("train"))
    noise = (case[f"{name}.gumbel{n}"][:, 0] for n in range(3))  # in the order in which it was drawn
    monkeypatch.setattr(mgn, "gumbel", lambda score: next(noise))
    inputs = "in_any_t" if name == "any_t" else "in"
    a, v = model.project(*(case[f"{inputs}.{k}"] for k in ("audio", "visual_2d", "visual_3d")))
    assert_near(a, case[f"{name}.a0"])
    assert_near(v, case[f"{name}.v0"])
    found = model.group(a, v)
    for short, groups in zip(("merge", "a", "v", "av"), found, strict=True):
        assert_near(groups.shares, case[f"{name}.{short}.map"][:, 0], f"{short} shares")
        assert_near(groups.features, case[f"{name}.{short}.{'out' if short == 'merge' else 'group'}"], f"{short} features")
    output = model.heads(*found)
    for ours, theirs in zip(output, ("video_prob", "audio_prob", "visual_prob", "audio_frame", "visual_frame"), strict=True):
        assert_near(ours, case[f"{name}.out.{theirs}"], theirs)
    losses = losses_of_mgn(model, *output[:3], case[f"{inputs}.target"])
    for ours, theirs in zip([*losses, losses.sum()], ("cls_audio", "cls_visual", "video", "audio", "visual", "total"), strict=True):
        assert_near(ours, case[f"{name}.loss.{theirs}"], theirs)
    losses.sum().backward()
    with_gradient = {n: p.grad for n, p in model.named_parameters() if "_pool." not in n}
    assert_near(torch.stack([x.square().sum() for x in with_gradient.values()]).sum().sqrt(), case[f"{name}.grad_norm_total"], "norm")
    if name == "eval_soft":
        recorded = of_mgn(weights(case, "eval_soft.grad."))
        for parameter, x in with_gradient.items():
            assert_near(x, recorded[parameter], parameter)


def test_features_of_mgn_are_seconds_and_what_their_classes_gathered_in_the_recorded_case(golden):
    """The adaption, computed from recorded arrays alone: they have the merging tokens mixed, so the test's model has, too."""
    case = golden("mgn")
    model = recorded_mgn(case, hard=False).eval()
    output = model(*(case[f"in.{k}"] for k in ("audio", "visual_2d", "visual_3d")))
    for m, short, norm in (("audio", "a", "audio_cug.han_encoder"), ("visual", "v", "visual_cug.grouping")):
        x = nn.functional.layer_norm(case[f"eval_soft.{short}.tokens"][:, :10], (16,), *(case[f"sd.{norm}.norm_x.{w}"] for w in ("weight", "bias")))
        shares, gathered = case[f"eval_soft.{short}.map"][:, 0], case[f"eval_soft.{short}.group"] + case["eval_soft.av.group"]
        f = x + torch.einsum("bct,bch->bth", shares, gathered)
        assert_near(getattr(output, f"{m}_feat"), f, m)
        assert_near(getattr(output, f"{m}_logit"), f @ case["sd.fc_cls.weight"].T + case["sd.fc_cls.bias"], m)


def test_drop_path_of_mgn_leaves_out_whole_videos_and_keeps_the_mean():
    block = mgn.Block(mgn.MGNConfig(hidden=8, heads=2, feedforward=8, dropout=0.25)).train()
    torch.manual_seed(0)
    y = block.drop_path(torch.ones(4000, 3, 8))
    assert all(len(x.unique()) == 1 for x in y[:50]) and set(y.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert y.mean() == pytest.approx(1, abs=0.03)
    assert torch.equal(block.eval().drop_path(y), y)


# ---- what all three must do: any size, training, checkpoints ----------------------------------------

SIZES = dict(classes=4, audio_dim=6, visual_2d_dim=8, visual_3d_dim=3, hidden=16, heads=2, feedforward=24, layers=2)
CONFIGS = {leap.LEAP: leap.LEAPConfig(**SIZES, text_dim=7, decoder_heads=2, decoder_feedforward=12),
           mm_pyramid.MMPyramid: mm_pyramid.MMPyramidConfig(**SIZES), mgn.MGN: mgn.MGNConfig(**SIZES, cross_layers=2)}
NETWORKS = pytest.mark.parametrize("network", CONFIGS, ids=lambda network: network.__name__)


def drawn(network: type) -> uwav.HAN:
    """All weights at random, so that nothing is near uniform."""
    torch.manual_seed(0)
    model = network(CONFIGS[network]).eval()
    for x in model.state_dict().values():
        x.normal_(std=0.3)
    return model


def split(videos: int, T: int, seed: int) -> uwav.TargetSplit:
    """Features are the truth, seen through a random matrix, and noise."""
    rng = torch.Generator().manual_seed(seed)
    audio, visual = ((torch.rand(videos, 1, 4, generator=rng) < 0.5) & (torch.rand(videos, T, 4, generator=rng) < 0.6) for _ in range(2))

    def features(truth, size: int):
        basis = torch.randn(4, size, generator=torch.Generator().manual_seed(size))
        return (truth.float() @ basis + 0.1 * torch.randn(videos, T, size, generator=rng)).half()

    return uwav.TargetSplit(features(audio, 6), features(visual, 8), features(visual, 3), (audio | visual).any(1).float(), audio.byte(), visual.byte())


def test_sizes_are_the_published_ones():
    with torch.device("meta"):
        sets = dict(base={}, clip_clap=dict(audio_dim=512, visual_2d_dim=768, visual_3d_dim=0))
        found = {(network.__name__, name): sum(p.numel() for p in network(config(**sizes)).parameters()) for name, sizes in sets.items()
                 for network, config in ((mgn.MGN, mgn.MGNConfig), (mm_pyramid.MMPyramid, mm_pyramid.MMPyramidConfig))}
        model = leap.LEAP()
    assert found == {("MGN", "base"): 4_337_750, ("MMPyramid", "base"): 40_302_157, ("MGN", "clip_clap"): 4_157_526, ("MMPyramid", "clip_clap"): 39_581_261}
    encoder = sum(x.numel() for part in (model.audio_proj, model.visual_proj, model.layers) for x in part.parameters())
    assert sum(x.numel() for x in model.parameters()) - encoder == 6_467_074


@NETWORKS
@pytest.mark.parametrize("T", [1, 4, 13])
def test_any_length_works_and_a_video_does_not_see_the_others_of_its_batch(network, T):
    model, data = drawn(network), split(3, T, 0)
    together = model(*data.inputs(slice(None)))
    for n in range(3):
        alone = model(*data.inputs(slice(n, n + 1)))
        for x, y in zip(alone, together, strict=True):
            assert x.isfinite().all()
            torch.testing.assert_close(x, y[n : n + 1], rtol=1e-4, atol=1e-5)
    assert together.audio_logit.shape == together.visual_logit.shape == (3, T, 4) and together.video_prob.shape == (3, 4)


def saved(network: type, path: Path, **changed) -> uwav.HAN:
    """A model, and its checkpoint; `changed` is what its config says otherwise."""
    model = drawn(network)
    torch.save(dict(kind=network.__name__, config=asdict(model.config) | changed, settings={}, weights=model.state_dict()), path)
    return model


@NETWORKS
def test_a_checkpoint_rebuilds_all_that_the_network_is(network, tmp_path):
    model, data = saved(network, tmp_path / "han.pt"), split(2, 5, 0)
    again = checkpoints.load_model(tmp_path / "han.pt", kind=uwav.HAN)
    assert type(again) is network and again.config == model.config
    for x, y in zip(model(*data.inputs(slice(None))), again(*data.inputs(slice(None))), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("network, field", [(mgn.MGN, "layers"), (mgn.MGN, "cross_layers"), (leap.LEAP, "decoder_layers"), (mm_pyramid.MMPyramid, "layers")])
def test_a_checkpoint_that_claims_endless_layers_is_refused_at_once(network, field, tmp_path):
    saved(network, tmp_path / "han.pt", **{field: 10**12})
    with pytest.raises(ValueError, match=f"han.pt: .*{field} = 1000000000000"):
        checkpoints.load_model(tmp_path / "han.pt")


def trainer(network: type, data: uwav.TargetSplit, validation: uwav.TargetSplit | None):
    """Training as the field's command does it, waiting for its Run."""
    labels = uwav.PseudoLabels(data.audio_truth.float(), data.visual_truth.float())
    if network is leap.LEAP:
        names = leap.name_vectors(torch.randn(4, 5, generator=torch.Generator().manual_seed(1)), torch.randn(4, 6, generator=torch.Generator().manual_seed(2)))
        return partial(leap.train, data, validation, labels, names, CONFIGS[network], leap.LEAPTraining(epochs=4, batch=8, peak_lr=3e-3))
    config = uwav.TrainConfig(epochs=4, batch=8, warmup=1, peak_lr=3e-3, pseudo_label="hard")
    return partial(uwav.train_han, data, validation, labels, CONFIGS[network], config, network=network)


@NETWORKS
def test_training_learns_and_resumes_to_the_same_bytes(network, tmp_path, monkeypatch):
    """It stops after each of the first two epochs, as a crash would."""
    monkeypatch.setattr(checkpoints, "SAVING_SHARE", 1e9)
    train = trainer(network, split(24, 7, 0), split(6, 7, 1))

    def run(folder: Path) -> checkpoints.Run:
        folder.mkdir(exist_ok=True)
        return checkpoints.Run(folder / "han.pt", "test", dict(data="x"))

    whole = run(tmp_path / "whole")
    model = train(run=whole)
    losses = [x["loss"] for x in whole.history]
    assert losses[-1] < losses[0] and all(p.isfinite().all() for p in model.parameters())
    end_epoch = checkpoints.Run.end_epoch
    for stop_after in (1, 2):
        def stopping(self, record, *arguments, stop_after=stop_after, **named):
            end_epoch(self, record, *arguments, **named)
            if record["epoch"] == stop_after:
                raise RuntimeError("power cut")

        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
            patch.setattr(checkpoints.Run, "end_epoch", stopping)
            train(run=run(tmp_path / "part"))
    train(run=run(tmp_path / "part"))
    for name in ("han.pt", "han.jsonl"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@NETWORKS
def test_without_a_validation_split_the_last_epoch_is_kept(network):
    run = uwav.Run()
    train = trainer(network, split(16, 4, 0), None)
    model = train(run=run)
    assert len(run.history) == 4 and run.best_score == 4 and not model.training
    assert all(torch.equal(x, run.best_weights[name]) for name, x in model.state_dict().items())


def test_leap_keeps_the_last_of_equally_good_epochs(monkeypatch):
    monkeypatch.setattr(leap, "han_scores", lambda model, data: dict(seg_type=50.0))
    seen, run = [], uwav.Run()
    monkeypatch.setattr(run, "finish", lambda: seen.append(run.best_weights))
    trainer(leap.LEAP, split(16, 4, 0), split(4, 4, 1))(run=run)
    assert all(torch.equal(x, seen[0][name]) for name, x in run.model.state_dict().items())


def test_name_vectors_differ_by_class_alone_and_have_a_mean_square_of_one():
    shared, own = torch.randn(1, 6), torch.randn(5, 6)
    x = leap.name_vectors(3 * shared + 0.01 * own, torch.ones(5, 2))
    assert x.shape == (5, 8) and x.square().mean() == pytest.approx(1) and x[:, 6:].eq(0).all()
    torch.testing.assert_close(x[:, :6] / x[0, 0], (own - own.mean(0)) / (own - own.mean(0))[0, 0], rtol=1e-3, atol=1e-3)
    assert leap.name_vectors(shared, torch.ones(1, 2)).eq(0).all()  # a single class: no NaN


def test_the_gates_of_leap_are_those_of_its_modalities():
    """Of `evaluate --gate`: by a modality's own probability."""
    model, data = drawn(leap.LEAP), split(5, 6, 0)
    output = model(*data.inputs(slice(None)))
    own = stages.modality_prob(model, output)
    assert torch.equal(own, torch.stack([output.heard_prob, output.seen_prob], 1))
    assert torch.equal(own.amax(1), output.video_prob)
    assert set(stages.gate_scores(model, data, *uwav.han_probabilities(model, data))) == set(stages.GATES)


def test_hidden_that_heads_do_not_divide_is_refused_in_one_sentence():
    for network, config, said in ((leap.LEAP, leap.LEAPConfig(**SIZES, decoder_heads=3), "decoder_heads = 3"),
                                  (mm_pyramid.MMPyramid, mm_pyramid.MMPyramidConfig(**SIZES | dict(heads=3)), "heads = 3"),
                                  (mgn.MGN, mgn.MGNConfig(**SIZES | dict(heads=5)), "heads = 5")):
        with pytest.raises(ValueError, match=f"hidden = 16 cannot be divided among {said}"):
            network(config)
