"""What holds of the method's parts for any input: hypothesis looks for one of which it does not."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

import uwav
from data import pack
from slow import f1, plain_scores
from uwav import parsing_scores

# ---- scores ----

shapes = st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 3))
four_arrays = shapes.flatmap(lambda s: st.tuples(*[hnp.arrays(np.uint8, s, elements=st.integers(0, 1))] * 4))


@settings(max_examples=200, deadline=None)
@given(four_arrays)
def test_scores_equal_the_definitions_written_out_video_by_video(arrays):
    fast = parsing_scores(*(torch.from_numpy(x) for x in arrays))
    assert fast == pytest.approx(plain_scores(*(x > 0 for x in arrays)), abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(four_arrays)
def test_exchanging_audio_and_visual_exchanges_their_scores(arrays):
    ap, vp, at, vt = (torch.from_numpy(x) for x in arrays)
    s, t = parsing_scores(ap, vp, at, vt), parsing_scores(vp, ap, vt, at)
    assert [s["seg_a"], s["event_v"], s["seg_av"], s["event_event"]] == pytest.approx(
        [t["seg_v"], t["event_a"], t["seg_av"], t["event_event"]])


@settings(max_examples=50, deadline=None)
@given(four_arrays)
def test_scores_do_not_depend_on_the_order_of_videos_classes_or_the_direction_of_time(arrays):
    tensors = [torch.from_numpy(x) for x in arrays]
    assert parsing_scores(*(x.flip((0, 1, 2)) for x in tensors)) == pytest.approx(parsing_scores(*tensors))


@settings(max_examples=50, deadline=None)
@given(four_arrays)
def test_predicting_the_truth_scores_100_and_segment_f_is_symmetric(arrays):
    ap, vp, at, vt = (torch.from_numpy(x) for x in arrays)
    assert set(parsing_scores(at, vt, at, vt).values()) == {100.0}
    there, back = parsing_scores(ap, vp, at, vt), parsing_scores(at, vt, ap, vp)
    assert [there[k] for k in there if k.startswith("seg")] == pytest.approx([back[k] for k in back if k.startswith("seg")])


# ---- thresholds and labels ----

few_values = st.sampled_from([-1.5, -1.0, 0.0, 0.25, 1.0, float(np.nextafter(np.float32(1), np.float32(2)))])  # ties, neighbours
videos = st.integers(1, 4).flatmap(lambda n: st.tuples(
    hnp.arrays(np.float32, (n, 4, 1), elements=few_values | st.floats(-3, 3, width=32)),
    hnp.arrays(np.uint8, (n, 4, 1), elements=st.integers(0, 1)), hnp.arrays(np.uint8, (n, 1), elements=st.integers(0, 1))))


@settings(max_examples=300, deadline=None)
@given(videos)
def test_thresholds_attain_the_f1_they_report_and_no_threshold_is_better(case):
    logit, truth, weak = (torch.from_numpy(x) for x in case)
    threshold, best = uwav.fit_thresholds(logit, truth, weak)
    one = logit[..., 0], truth[..., 0], weak[:, 0]
    assert float(best) == pytest.approx(f1(*one, threshold), abs=1e-6)
    for other in [-math.inf, *logit.flatten().tolist()]:  # every distinct cut: above each value
        assert f1(*one, other) <= float(best) + 1e-6
        if other < float(threshold) and f1(*one, other) == pytest.approx(float(best), abs=1e-9):
            # of equal F1 the lowest wins: a lower cut may only tie if it is the same cut
            between = (logit > other) & (logit <= threshold) & (weak[:, None] > 0)
            assert not between.any()


@settings(max_examples=50, deadline=None)
@given(videos)
def test_soft_labels_lie_above_one_half_exactly_where_hard_labels_are_one(case):
    logit, truth, weak = (torch.from_numpy(x) for x in case)
    weak = weak.float()
    threshold, _ = uwav.fit_thresholds(logit, truth, weak)
    soft, hard = uwav.soft_labels(logit, threshold, weak), uwav.hard_labels(logit, threshold, weak)
    assert torch.equal(soft > 0.5, (hard == 1) & (torch.sigmoid((logit - threshold) / 2) > 0.5))
    assert torch.equal(soft == 0, (weak[:, None] == 0).expand_as(soft))


# ---- mixup, pooling over time ----


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.booleans())
def test_mixing_with_lambda_one_or_with_itself_is_the_plain_loss(seed, identity):
    generator = torch.Generator().manual_seed(seed)
    feat, label = torch.randn(2, 3, 4, generator=generator), torch.rand(2, 3, 5, generator=generator)
    classifier = nn.Linear(4, 5)
    plain = F.binary_cross_entropy_with_logits(classifier(feat), label)
    lam, perm = (0.3, torch.arange(6)) if identity else (1.0, torch.randperm(6, generator=generator))
    torch.testing.assert_close(uwav.mixup_loss(feat, label, classifier, lam, perm), plain)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 99))
def test_pooling_averages_the_vectors_that_a_segment_touches(length, segments, seed):
    x = np.random.default_rng(seed).standard_normal((length, 3)).astype(np.float32)
    expected = [x[t * length // segments : -(-(t + 1) * length // segments)].mean(0) for t in range(segments)]
    np.testing.assert_allclose(pack.pool_to(x, segments), expected, rtol=1e-5, atol=1e-5)
