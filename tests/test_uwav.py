"""The method's parts: hand-computed cases and independent slow versions."""

import math
from dataclasses import asdict, replace
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import uwav
from slow import f1
from train import checkpoints, presets

ROOT = Path(__file__).resolve().parents[1]

SMALL_HAN = uwav.HANConfig(classes=3, audio_dim=6, visual_2d_dim=8, visual_3d_dim=4, hidden=8, heads=2, feedforward=16, layers=2)
SMALL_TEACHER = uwav.TeacherConfig(audio_dim=6, visual_dim=8, hidden=8, heads=2, feedforward=16, layers=2)


def count(model: nn.Module) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6


# ---- models ----


def test_paper_models_have_the_published_sizes():
    with torch.device("meta"):
        base, clip_clap = (count(uwav.HAN(presets.PRESETS["paper"].han[features])) for features in ("base", "clip_clap"))
        teacher = count(uwav.Teacher(presets.PRESETS["paper"].teacher))
    assert base == pytest.approx(23.02, abs=0.005) and teacher == pytest.approx(92.99, abs=0.005)
    said = (ROOT / "docs/method.md").read_text(encoding="utf-8")
    assert f"HAN {base:.2f} M parameters with features `base`, {clip_clap:.2f} M with `clip_clap`; teacher {teacher:.2f} M" in said


# The constants of the published run, by the sections of the specification that the recorded cases come with (SPEC.md).
PUBLISHED = {
    "teacher": (uwav.TeacherConfig(), dict(  # 1.1
        audio_dim=512, visual_dim=768, hidden=1024, heads=16, feedforward=2048, layers=5, dropout=0.3, audio_scale=3.2912, visual_scale=4.6052)),
    "pretraining": (uwav.PretrainConfig(), dict(  # 1.1; the paper has clip 1.0, and no weight 5 in Eq. 3
        seed=1000, epochs=80, batch=64, peak_lr=1e-4, min_lr=1e-5, warmup=10, weight_decay=1e-3, beta1=0.5, beta2=0.999, clip=2.0, pos_weight=5.0,
        length_pool=8, fast=False)),  # ours: to save padding
    "han base": (uwav.HANConfig(), dict(  # 1.3
        classes=25, audio_dim=128, visual_2d_dim=2048, visual_3d_dim=512, hidden=512, heads=16, feedforward=2048, layers=5, dropout=0.1,
        project_visual=True, audio_first=True, audio_mlp=True)),
    "han clip_clap": (uwav.CLIP_CLAP, dict(  # 1.3; of the supplement
        classes=25, audio_dim=512, visual_2d_dim=768, visual_3d_dim=0, hidden=768, heads=16, feedforward=2048, layers=5, dropout=0.1,
        project_visual=False, audio_first=True, audio_mlp=True)),
    "training": (uwav.TrainConfig(), dict(  # 1.4, temperature 1.2; the paper has temperature 1, and no factor C in Eq. 7-8
        seed=20000, epochs=80, batch=64, peak_lr=1e-4, min_lr=5e-6, warmup=10, weight_decay=1e-4, beta1=0.9, beta2=0.999, clip=1.0,
        pseudo_label="soft", temperature=2.0, reweight=True, W=0.5, balance_sum=True, mixup=True, alpha=1.7, fast=False)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_default_is_the_published_constant(name):
    config, published = PUBLISHED[name]
    assert asdict(config) == published


def test_constants_outside_of_the_configurations_are_the_published_ones():
    assert (uwav.GATE, uwav.MIN_IOU, uwav.PROBABILITY_MARGIN) == (0.5, 0.5, 1e-7)  # 1.5, 1.5, 1.4
    for config in (uwav.PretrainConfig(), uwav.TrainConfig()):
        (group,) = uwav.adamw(uwav.HAN(SMALL_HAN), config).param_groups
        assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (config.peak_lr, (config.beta1, config.beta2), 1e-8, config.weight_decay)
    defaults = {f.__name__: {k: p.default for k, p in signature(f).parameters.items() if p.default is not p.empty}
                for f in (uwav.teacher_loss, uwav.soft_labels, uwav.class_balance, uwav.segment_loss, uwav.learning_rate, uwav.load_released_teacher)}
    assert defaults == dict(teacher_loss=dict(pos_weight=5.0), soft_labels=dict(temperature=2.0), class_balance=dict(W=0.5, balance_sum=True),
                            segment_loss=dict(w_pos=1.0, w_neg=1.0), learning_rate=dict(warmup=10), load_released_teacher=dict(heads=16))


def test_dropout_has_the_rate_of_its_config_at_every_place():
    """In weights of attention and behind every product, in the teacher's layers and in the HAN's."""
    for model in (uwav.Teacher(replace(SMALL_TEACHER, dropout=0.23)), uwav.HAN(replace(SMALL_HAN, dropout=0.23))):
        rates = [m.p if isinstance(m, nn.Dropout) else m.dropout for m in model.modules() if isinstance(m, (nn.Dropout, uwav.Attention))]
        assert rates == [0.23] * (len(rates) or 1) and len(rates) == (12 if isinstance(model, uwav.Teacher) else 8)


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_nn_multihead_attention_with_the_same_weights(cross, masked):
    torch.manual_seed(0)
    ours, theirs = uwav.Attention(8, 2, 0.0), nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        for a, b in ((ours.in_proj.weight, theirs.in_proj_weight), (ours.in_proj.bias, theirs.in_proj_bias),
                     (ours.out_proj.weight, theirs.out_proj.weight), (ours.out_proj.bias, theirs.out_proj.bias)):
            b.copy_(a.normal_())
    x = torch.randn(3, 5, 8)
    source = torch.randn(3, 7, 8) if cross else x
    mask = torch.arange(source.shape[1]) < torch.tensor([[2], [4], [5]]) if masked else None
    expected, _ = theirs(x, source, source, key_padding_mask=None if mask is None else ~mask)
    torch.testing.assert_close(ours(x, source, mask), expected)


def test_padding_does_not_change_the_teacher():
    torch.manual_seed(0)
    model = uwav.Teacher(SMALL_TEACHER).eval()
    audio, visual, text = torch.randn(1, 5, 6), torch.randn(1, 5, 8), (torch.randn(4, 6), torch.randn(4, 8))
    alone = model(audio, visual, *text)
    padded = model(F.pad(audio, (0, 0, 0, 3), value=9.0), F.pad(visual, (0, 0, 0, 3), value=-9.0), *text,
                   torch.arange(8)[None] < 5)
    for a, p in zip(alone, padded):
        torch.testing.assert_close(p[:, :5], a)


def test_teacher_has_no_positional_encoding():
    torch.manual_seed(0)
    model = uwav.Teacher(SMALL_TEACHER).eval()
    audio, visual, text = torch.randn(2, 5, 6), torch.randn(2, 5, 8), (torch.randn(4, 6), torch.randn(4, 8))
    order = torch.tensor([3, 0, 4, 1, 2])
    for straight, shuffled in zip(model(audio, visual, *text), model(audio[:, order], visual[:, order], *text)):
        torch.testing.assert_close(straight[:, order], shuffled)


def test_video_probability_is_the_mean_of_segment_probabilities_when_attention_is_uniform():
    torch.manual_seed(0)
    model = uwav.HAN(SMALL_HAN).eval()
    for linear in (model.time_pool, model.modal_pool):
        nn.init.zeros_(linear.weight)
    out = model(torch.randn(2, 5, 6), torch.randn(2, 5, 8), torch.randn(2, 5, 4))
    mean = (out.audio_logit.sigmoid().mean(1) + out.visual_logit.sigmoid().mean(1)) / 2
    torch.testing.assert_close(out.video_prob, mean)


def test_video_probability_reaches_2_when_each_modality_attends_to_its_own_second():
    """Eq. 1 multiplies two attentions, one over time, one over modalities; nothing makes the products sum to 1."""
    han = uwav.HAN(SMALL_HAN)
    han.time_pool = han.modal_pool = nn.Identity()
    far, sure = 40.0, torch.full((1, 2, 2, 1), 40.0)
    a = torch.tensor([far, -far])[None, :, None]  # (1, 2, 1): audio attends to the first second, the picture to the other
    assert han.pool(torch.stack([a, -a], 2), sure).item() == pytest.approx(2.0)


def test_eight_visual_vectors_a_second_count_as_their_mean():
    torch.manual_seed(0)
    model = uwav.HAN(SMALL_HAN).eval()
    audio, visual, third = torch.randn(2, 5, 6), torch.randn(2, 40, 8), torch.randn(2, 5, 4)
    mean = visual.unflatten(1, (5, 8)).mean(2)
    torch.testing.assert_close(model(audio, visual, third).video_prob, model(audio, mean, third).video_prob)


def test_symmetric_option_treats_both_modalities_alike():
    """With equal inputs the paper's symmetric layers keep both streams equal; the released order does not."""
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    for audio_first, equal in ((False, True), (True, False)):
        config = uwav.HANConfig(classes=3, audio_dim=8, visual_2d_dim=8, visual_3d_dim=0, hidden=8, heads=2, feedforward=16,
                                layers=2, project_visual=False, audio_first=audio_first)
        model = uwav.HAN(config).eval()
        model.audio_proj = nn.Identity()
        out = model(x, x)
        assert torch.allclose(out.audio_feat, out.visual_feat) is equal


# ---- teacher loss, thresholds, labels ----


def test_teacher_loss_by_hand():
    # one video, two valid segments and one padded, two classes; all logits 0, so p_av = 1/2 * 1/2 = 1/4
    zero, mask = torch.zeros(1, 3, 2), torch.tensor([[True, True, False]])
    label = torch.tensor([[[1.0, 0], [0, 0], [0, 1]]])  # class 0 occurs; class 1 only in the padding, which does not count
    # class 0, weight 5: -ln 1/4 - ln 3/4; class 1, weight 1: -2 ln 3/4; divided by 2 segments x 2 classes
    expected = (5 * (math.log(4) + math.log(4 / 3)) + 2 * math.log(4 / 3)) / 4
    assert float(uwav.teacher_loss(zero, zero, label, mask)) == pytest.approx(expected)
    sure = torch.full((1, 3, 2), 99.0, requires_grad=True)  # of classes that are not there
    loss = uwav.teacher_loss(sure, sure, torch.zeros(1, 3, 2), mask)
    loss.backward()
    assert loss.isfinite() and sure.grad.isfinite().all()


def test_threshold_by_hand():
    # sorted 4 3 2 1 with truth 1 0 1 0: F1 above 3: 2/3, above 2: 2*1/(2+2), above 1: 2*2/(3+2) = 0.8 <-, all: 4/6
    logit = torch.tensor([[[4.0], [3.0], [2.0], [1.0]]])
    truth = torch.tensor([[[1], [0], [1], [0]]])
    threshold, best = uwav.fit_thresholds(logit, truth, torch.ones(1, 1))
    assert (float(threshold), float(best)) == (1.5, pytest.approx(0.8))


def test_threshold_is_minus_infinity_when_every_segment_is_positive_or_none_is():
    logit = torch.randn(2, 5, 2)
    truth = torch.stack([torch.ones(2, 5), torch.zeros(2, 5)], -1)
    threshold, best = uwav.fit_thresholds(logit, truth, torch.ones(2, 2))
    assert threshold.tolist() == [-math.inf, -math.inf] and best.tolist() == [1, 0]


def test_class_without_any_video_gets_threshold_minus_infinity_and_f1_zero():
    threshold, best = uwav.fit_thresholds(torch.randn(2, 5, 1), torch.zeros(2, 5, 1), torch.zeros(2, 1))
    assert (float(threshold), float(best)) == (-math.inf, 0)


def test_thresholds_of_random_logits_are_the_best_that_trying_every_cut_finds():
    """Logits are rounded, so that many are equal; videos without the class count as negative."""
    rng = torch.Generator().manual_seed(0)
    for trial in range(50):
        logit = (3 * torch.randn(6, 5, 1, generator=rng)).round(decimals=trial % 2)
        truth, weak = (torch.rand(6, 5, 1, generator=rng) < 0.3).byte(), (torch.rand(6, 1, generator=rng) < 0.7).float()
        threshold, best = uwav.fit_thresholds(logit, truth, weak)
        one = logit[..., 0], truth[..., 0], weak[:, 0]
        assert float(best) == pytest.approx(f1(*one, float(threshold)), abs=1e-6)
        assert float(best) == pytest.approx(max(f1(*one, cut) for cut in [-math.inf, *logit.flatten().tolist()]), abs=1e-6)


def test_hard_and_soft_labels_by_hand():
    logit, weak = torch.tensor([[[3.0, 3.0], [-1.0, -1.0]]]), torch.tensor([[1.0, 0.0]])
    threshold = torch.tensor([1.0, 1.0])
    assert uwav.hard_labels(logit, threshold, weak).tolist() == [[[1, 0], [0, 0]]]
    soft = uwav.soft_labels(logit, threshold, weak)  # sigmoid((3 - 1) / 2), sigmoid((-1 - 1) / 2); class 1 not in the video
    assert soft[0].tolist() == [[pytest.approx(1 / (1 + math.exp(-1))), 0], [pytest.approx(1 / (1 + math.exp(1))), 0]]
    paper = uwav.soft_labels(logit, threshold, weak, temperature=1.0)
    assert float(paper[0, 0, 0]) == pytest.approx(1 / (1 + math.exp(-2)))


def test_soft_label_of_an_infinite_threshold_counts_from_below_the_lowest_logit():
    logit = torch.tensor([[[3.0], [1.0]]])  # lowest 1, so the threshold counts as 0
    soft = uwav.soft_labels(logit, torch.tensor([-math.inf]), torch.ones(1, 1))
    assert soft[0, :, 0].tolist() == pytest.approx([1 / (1 + math.exp(-1.5)), 1 / (1 + math.exp(-0.5))])


# ---- HAN losses ----


def test_video_loss_by_hand_and_finite_at_certainty():
    assert float(uwav.video_loss(torch.tensor([[0.8, 0.4]]), torch.tensor([[1.0, 0.0]]))) == pytest.approx(
        -(math.log(0.8) + math.log(0.6)) / 2)
    assert uwav.video_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])).isfinite()


def test_segment_loss_by_hand():
    logit, label, weak = torch.zeros(1, 2, 2), torch.tensor([[[0.9, 0.0], [0.2, 0.0]]]), torch.tensor([[1.0, 0.0]])
    # sigmoid(0) = 1/2: every entry costs ln 2; two entries weigh 3, two weigh 0.5
    assert float(uwav.segment_loss(logit, label, weak, 3.0, 0.5)) == pytest.approx(math.log(2) * (3 + 0.5) / 2)


def test_labels_weigh_alike_without_class_balance():
    logit, weak, plain = torch.randn(2, 3, 2), torch.ones(2, 2), [(1.0, 1.0), (1.0, 1.0)]
    labels = uwav.pseudo_labels((logit, logit), (torch.zeros(2),) * 2, weak, uwav.TrainConfig(reweight=False))
    assert [labels.audio_weights, labels.visual_weights] == plain == [*uwav.PseudoLabels(logit, logit)[2:]]


def test_class_balance_by_hand():
    hard = torch.zeros(2, 5, 4)
    hard[0, :4, 0] = 1  # 4 of 40 entries: rate 0.1
    assert [float(w) for w in uwav.class_balance(hard)] == pytest.approx([0.5 * 4 * 0.9, 4 * 0.1])  # released code
    assert [float(w) for w in uwav.class_balance(hard, W=1.0, balance_sum=False)] == pytest.approx([0.9, 0.1])  # paper


def test_mixup_loss_by_hand():
    classifier = nn.Linear(1, 1)
    nn.init.constant_(classifier.weight, 2.0)
    nn.init.zeros_(classifier.bias)
    feat, label = torch.tensor([[[1.0], [3.0]]]), torch.tensor([[[1.0], [0.0]]])
    # lambda 1/4, exchanged: features 1/4 + 9/4 = 2.5 and 1.5, logits 5 and 3, labels 0.25 and 0.75
    expected = F.binary_cross_entropy_with_logits(torch.tensor([5.0, 3.0]), torch.tensor([0.25, 0.75]))
    assert uwav.mixup_loss(feat, label, classifier, 0.25, torch.tensor([1, 0])).item() == pytest.approx(float(expected))


def test_mixing_with_lambda_one_or_with_itself_is_the_plain_loss():
    torch.manual_seed(0)
    feat, label, classifier = torch.randn(2, 3, 4), torch.rand(2, 3, 5), nn.Linear(4, 5)
    plain = F.binary_cross_entropy_with_logits(classifier(feat), label)
    for lam, perm in ((0.3, torch.arange(6)), (1.0, torch.randperm(6))):
        torch.testing.assert_close(uwav.mixup_loss(feat, label, classifier, lam, perm), plain)


def test_learning_rate_warms_up_peaks_and_ends_at_the_minimum():
    assert uwav.learning_rate(1, 80, 1.0, 0.1) == pytest.approx(0.1)
    assert uwav.learning_rate(10, 80, 1.0, 0.1) == 1.0
    assert uwav.learning_rate(45, 80, 1.0, 0.1) == pytest.approx(0.55)  # half way down
    assert uwav.learning_rate(80, 80, 1.0, 0.1) == pytest.approx(0.1)
    assert uwav.learning_rate(10, 10, 1.0, 0.1) == 1.0  # nothing but warm-up
    assert uwav.learning_rate(11, 11, 1.0, 0.1) == pytest.approx(0.1)  # one epoch after it


def test_gate_needs_segment_and_video_probability_above_one_half():
    audio, visual = uwav.gated_predictions(torch.tensor([[0.6, 0.4, 0.6]]), torch.tensor([[[0.9, 0.9, 0.5]]]), torch.full((1, 1, 3), 0.51))
    assert audio.tolist() == [[[True, False, False]]] and visual.tolist() == [[[True, False, True]]]


# ---- loops ----


@pytest.mark.parametrize("clip", [1e9, 0.01])
def test_a_step_of_each_loop_is_the_clipped_gradient_of_the_whole_loss(clip):
    """Plain gradient descent at rate 1 in place of AdamW, which does not tell a gradient from five times that."""
    torch.manual_seed(0)
    N, T, C = 4, 5, 3
    data = uwav.TargetSplit(torch.randn(N, T, 6), torch.randn(N, T, 8), torch.randn(N, T, 4), torch.ones(N, C), None, None)
    config = uwav.TrainConfig(batch=N, clip=clip, mixup=False)
    labels = uwav.pseudo_labels((torch.randn(N, T, C), torch.randn(N, T, C)), (torch.zeros(C),) * 2, data.weak, config)
    han = uwav.HAN(replace(SMALL_HAN, dropout=0.0))
    source = uwav.SourceSplit(torch.randn(7, 6), torch.randn(7, 8), torch.randint(0, 2, (7, C)), np.array([3, 4]))
    text, teacher = (torch.randn(C, 6), torch.randn(C, 8)), uwav.Teacher(replace(SMALL_TEACHER, dropout=0.0))
    audio, visual, label, mask = source.batch(np.arange(2))
    for model, loss, epoch in (
            (han, lambda: uwav.han_losses(han, han(*data.inputs(slice(None))), data.weak, labels, None).sum(),
             lambda sgd: uwav.han_epoch(han, han, uwav.han_losses, sgd, data, labels, config, 1)),
            (teacher, lambda: uwav.teacher_loss(*teacher(audio, visual, *text, mask), label, mask, 5.0),
             lambda sgd: uwav.teacher_epoch(teacher, teacher, sgd, source, text, uwav.PretrainConfig(batch=2, clip=clip, pos_weight=5.0), 1))):
        before = [p.detach().clone() for p in model.parameters()]
        gradient = torch.autograd.grad(loss(), list(model.parameters()))
        length = torch.cat([g.flatten() for g in gradient]).norm()
        assert len(list(epoch(torch.optim.SGD(model.parameters(), lr=1.0)))) == 1
        for was, now, g in zip(before, model.parameters(), gradient):
            torch.testing.assert_close(was - now.detach(), g * min(1.0, clip / length), rtol=1e-4, atol=1e-6)


def test_an_epoch_s_losses_are_the_mean_of_its_steps():
    run = uwav.Run()
    run.begin(nn.Linear(1, 1), uwav.TrainConfig(batch=4), videos=10)  # three steps
    assert run.mean(lambda: iter(torch.tensor([[1.0, 2.0], [2.0, 4.0], [6.0, 0.0]]))) == [3.0, 2.0]


@pytest.mark.parametrize("last, kept", [(False, 2), (True, 3)])
def test_of_epochs_with_the_same_best_score_the_first_is_kept_or_the_last(last, kept):
    run, model = uwav.Run(), nn.Linear(1, 1)
    run.begin(model, uwav.TrainConfig(), videos=1)
    for epoch, score in enumerate((1.0, 5.0, 5.0, 4.0), 1):
        nn.init.constant_(model.weight, epoch)
        run.end_epoch({}, score, last)
    assert run.finish().weight.item() == kept


def test_the_teacher_s_score_counts_seconds_in_which_both_probabilities_multiply_to_a_half():
    z = torch.tensor([[2.0, 3.0, -3.0, -9.0], [2.0, 0.3, -3.0, 9.0]])  # sigmoids .88 .95 .05 0 and .88 .57 .05 1
    split = uwav.SourceSplit(torch.zeros(4, 1), torch.zeros(4, 1), torch.tensor([[1], [1], [0], [1]]), np.array([4]))

    class Stub:
        eval = staticmethod(lambda: None)
        __call__ = staticmethod(lambda *inputs: (z[0, None, :, None], z[1, None, :, None]))

    assert uwav.teacher_scores(Stub(), split, ())["av"] == pytest.approx(100 * 2 * 2 / (2 + 3))  # two predicted, both true; three are


# ---- data and batches ----


def test_batches_by_length_hold_every_video_once_and_pool_similar_lengths():
    length = np.random.default_rng(0).integers(10, 61, 1000)
    padded = {}
    for pool in (1, 2, 8):
        batches = uwav.batches_by_length(length, 64, pool, np.random.default_rng(1))
        assert sorted(np.concatenate(batches)) == list(range(1000))
        assert max(map(len, batches)) == 64
        padded[pool] = sum(len(b) * length[b].max() for b in batches)
    assert padded[8] < 1.1 * length.sum() < padded[2] < 0.95 * padded[1]


def test_source_batch_holds_each_video_s_own_segments():
    length = np.array([2, 3, 1])
    segments = torch.arange(6.0)[:, None]
    split = uwav.SourceSplit(segments, segments, segments, length)
    audio, _, _, mask = split.batch(np.array([1, 2]))
    assert audio[..., 0][mask].tolist() == [2, 3, 4, 5] and mask.tolist() == [[True] * 3, [True, False, False]]


# ---- configurations and checkpoints ----


def test_the_spread_of_a_branch_that_says_the_same_all_the_time_is_zero():
    torch.manual_seed(0)
    length, C, config = np.array([3, 5, 4]), 6, uwav.TeacherConfig(hidden=16, heads=2, feedforward=16, layers=1)
    split = uwav.SourceSplit(torch.randn(12, 512), torch.randn(12, 768), torch.ones(12, C, dtype=torch.uint8), length)
    text = F.normalize(torch.randn(C, 512), dim=-1), F.normalize(torch.randn(C, 768), dim=-1)
    model = uwav.Teacher(config)
    alive = uwav.teacher_scores(model, split, text)
    parts = [model.audio(x[None], text[0], None)[0].detach() for x in split.audio.split(length.tolist())]  # (T, C) each
    within = torch.stack([z.std(0, correction=0) for z in parts]).mean()  # written out, video by video
    assert alive["spread_audio"] == pytest.approx(float(within / torch.cat(parts).std(correction=0)), rel=1e-3)
    nn.init.zeros_(model.visual.mlp_in[0].weight)  # sees nothing
    dead = uwav.teacher_scores(model, split, text)
    assert dead["spread_visual"] < 1e-2 < uwav.DEAD_BRANCH and dead["spread_audio"] == alive["spread_audio"] > 0.01


def test_training_and_scoring_do_not_change_their_inputs():
    torch.manual_seed(0)
    model = uwav.HAN(SMALL_HAN).eval()
    inputs = torch.randn(2, 5, 6), torch.randn(2, 5, 8), torch.randn(2, 5, 4)
    copies = [x.clone() for x in inputs]
    out = model(*inputs)
    feat = out.audio_feat.clone()
    uwav.mixup_loss(out.audio_feat, torch.rand(2, 5, 3), model.classifier, 0.5, torch.randperm(10))
    assert all(torch.equal(a, b) for a, b in zip(inputs, copies)) and torch.equal(feat, out.audio_feat)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="hidden = 10 cannot be divided among heads = 4"):
        uwav.Attention(10, 4, 0.0)


def test_unprojected_visual_features_must_have_the_width_of_the_model():
    with pytest.raises(ValueError, match="project_visual"):
        uwav.HAN(uwav.HANConfig(project_visual=False))


class Canary:
    def __reduce__(self):
        return (open, ("canary-was-executed", "w"))


@pytest.mark.parametrize("content, message", [
    (b"no checkpoint", "not a readable checkpoint"), (b"", "not a readable checkpoint"), (None, "no such file")])
def test_bad_checkpoint_is_refused_with_one_sentence(tmp_path, content, message):
    path = tmp_path / "model.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        checkpoints.load_model(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_checkpoint_with_code_is_refused_and_nothing_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"kind": Canary()}, "model.pt")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        checkpoints.load_model("model.pt")
    assert not (tmp_path / "canary-was-executed").exists()


def test_checkpoint_of_something_else_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="not a checkpoint of a teacher or a HAN"):
        checkpoints.load_model(tmp_path / "model.pt")
