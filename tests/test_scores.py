"""Scores: cases a reader can check with a pencil, and an independent slow version."""

import numpy as np
import pytest
import torch

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


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_scores_of_random_videos_equal_the_definitions_written_out_video_by_video(density):
    rng = np.random.default_rng(int(10 * density))
    for N, T, C in [(1, 1, 1), (3, 12, 3), (40, 10, 25), (5, 60, 4)]:
        arrays = [rng.random((N, T, C)) < density for _ in range(4)]
        assert parsing_scores(*map(torch.from_numpy, arrays)) == pytest.approx(plain_scores(*arrays), abs=1e-6)


def test_scores_do_not_depend_on_the_order_of_videos_classes_or_the_direction_of_time():
    arrays = [torch.rand(20, 10, 5, generator=torch.Generator().manual_seed(n)) < 0.4 for n in range(4)]
    assert parsing_scores(*(x.flip((0, 1, 2)) for x in arrays)) == pytest.approx(parsing_scores(*arrays))


def test_predicting_the_truth_scores_100():
    truth = [torch.rand(20, 10, 5, generator=torch.Generator().manual_seed(n)) < 0.4 for n in range(2)]
    assert set(parsing_scores(*truth, *truth).values()) == {100.0}
