"""Scores: cases a reader can check with a pencil, an independent slow version, and properties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from bench import plain_scores
from uwav import parsing_scores


def one_video(*rows: str) -> torch.Tensor:
    """One string of 0 / 1 a class -> (1, T, C)."""
    return torch.tensor([[int(x) for x in row] for row in rows]).T[None]


def test_segment_and_event_scores_of_one_class_by_hand():
    # audible:  truth 0-3, predicted 0-1 and 6       TP 2, FP 1, FN 2: F = 4/7
    #           event 0-1 has IoU 2/4 = 0.5: found;  event 6: false     TP 1, FP 1, FN 0: F = 2/3
    # visible:  truth 0-3, predicted 0-3             F = 1, event F = 1
    # both:     truth 0-3, predicted 0-1             TP 2, FN 2: F = 2/3; IoU 0.5: event F = 1
    # Event:    TP 2 + 4, FP 1, FN 2: F = 12/15; events TP 1 + 1, FP 1: F = 4/5
    truth = one_video("11110000")
    s = parsing_scores(one_video("11000010"), truth, truth, truth)
    expected = dict(seg_a=4 / 7, seg_v=1, seg_av=2 / 3, seg_type=(4 / 7 + 1 + 2 / 3) / 3, seg_event=12 / 15,
                    event_a=2 / 3, event_v=1, event_av=1, event_type=(2 / 3 + 1 + 1) / 3, event_event=4 / 5)
    assert s == pytest.approx({k: 100 * v for k, v in expected.items()})


def test_classes_neither_predicted_nor_true_do_not_count():
    truth, pred, none = one_video("1100", "0000", "0011"), one_video("1100", "0000", "0000"), one_video("0000", "0000", "0000")
    assert parsing_scores(pred, none, truth, none)["seg_a"] == pytest.approx(100 * (1 + 0) / 2)


def test_a_video_without_any_event_and_any_prediction_scores_100():
    none = torch.zeros(2, 5, 3)
    assert set(parsing_scores(none, none, none, none).values()) == {100.0}


def test_one_true_event_can_be_found_by_one_long_prediction_only_at_half_overlap():
    truth = one_video("1111110000")
    assert parsing_scores(one_video("1110000000"), truth, truth, truth)["event_a"] == 100  # IoU 3/6
    assert parsing_scores(one_video("1100000000"), truth, truth, truth)["event_a"] == 0  # IoU 2/6


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
