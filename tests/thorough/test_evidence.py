"""Intervals, calibration and class scores: by hand, against slow independent versions, and as properties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from reporting import evidence
from train import ablation
from uwav import parsing_scores, video_scores

numbers = hnp.arrays(float, st.tuples(st.integers(1, 20), st.integers(1, 3)), elements=st.floats(-100, 100))


# ---- per-video scores ----


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.just(4), st.integers(1, 4), st.integers(1, 6), st.integers(1, 3)), elements=st.integers(0, 1)))
def test_scores_of_a_video_are_those_of_a_set_of_one_and_their_mean_is_the_score(arrays):
    arrays = torch.from_numpy(arrays)
    per_video, together = video_scores(*arrays), parsing_scores(*arrays)
    for n in range(arrays.shape[1]):
        alone = parsing_scores(*arrays[:, n : n + 1])
        assert {k: 100 * float(x[n]) for k, x in per_video.items()} == pytest.approx(alone)
    assert {k: 100 * float(x.mean()) for k, x in per_video.items()} == pytest.approx(together)


# ---- bootstrap ----


def slow_interval(values: np.ndarray, resamples: int) -> list[float]:
    """The textbook's loop, with another random generator."""
    rng = np.random.RandomState(7)
    means = sorted(np.mean([values[rng.randint(len(values))] for _ in values]) for _ in range(resamples))
    return [means[round(0.025 * resamples)], means[round(0.975 * resamples) - 1]]


def test_interval_agrees_with_a_loop_over_resamples():
    values = np.random.default_rng(0).exponential(10, 60) - 5  # skewed, as differences of scores are
    fast = ablation.bootstrap_intervals(values[:, None])[0]
    slow = slow_interval(values, 4000)
    width = slow[1] - slow[0]
    assert fast == pytest.approx(slow, abs=0.05 * width)


def test_interval_of_two_videos_by_hand():
    """Means of two draws from {0, 1}: 0, 0.5, 1 with chances 1/4, 1/2, 1/4, so the middle 95% is all of it."""
    assert ablation.bootstrap_intervals(np.array([[0.0], [1.0]])).tolist() == [[0.0, 1.0]]


def test_interval_covers_the_truth_about_95_times_of_100():
    rng = np.random.default_rng(1)
    samples = rng.normal(3.0, 2.0, (400, 100))  # 400 experiments of 100 videos each
    intervals = [ablation.bootstrap_intervals(x[:, None], 500)[0] for x in samples]
    covered = np.mean([low <= 3.0 <= high for low, high in intervals])
    assert 0.90 < covered < 0.98


@settings(max_examples=50, deadline=None)
@given(numbers)
def test_interval_lies_within_the_values_moves_with_them_and_is_repeatable(values):
    low, high = ablation.bootstrap_intervals(values, 200).T
    assert (values.min(0) - 1e-9 <= low).all() and (low <= high + 1e-9).all() and (high <= values.max(0) + 1e-9).all()
    np.testing.assert_allclose(ablation.bootstrap_intervals(values + 5, 200).T, [low + 5, high + 5])
    assert np.array_equal(ablation.bootstrap_intervals(values, 200).T, [low, high])


def test_paired_difference_of_two_seeds_and_three_videos_by_hand():
    scores = {"a": [dict(x=torch.tensor([0.1, 0.2, 0.3])), dict(x=torch.tensor([0.1, 0.2, 0.6]))],
              "b": [dict(x=torch.tensor([0.2, 0.3, 0.4])), dict(x=torch.tensor([0.4, 0.5, 0.9]))]}
    (result,) = ablation.paired_differences(scores, (("a", "b"),))
    assert (result["first"], result["second"]) == ("a", "b")
    assert result["scores"]["x"]["by_seed"] == pytest.approx([10, 30])
    assert result["scores"]["x"]["mean"] == pytest.approx(20)
    assert result["scores"]["x"]["interval"] == pytest.approx([20, 20])  # every video gains 20 on average over seeds


# ---- calibration ----


def test_calibration_error_by_hand():
    # two bins: 0.2 0.4 (mean 0.3), true in 1 of 2: gap 0.2;  0.9 (mean 0.9), true: gap 0.1;  (2 * 0.2 + 1 * 0.1) / 3
    r = evidence.reliability(np.array([0.2, 0.4, 0.9]), np.array([0, 1, 1]), bins=2)
    assert r.count.tolist() == [2, 1] and r.frequency == pytest.approx([0.5, 1.0])
    assert r.calibration_error == pytest.approx((2 * 0.2 + 0.1) / 3)


def slow_calibration_error(probability, truth, bins):
    total = 0.0
    for b in range(bins):
        inside = [n for n, p in enumerate(probability) if b <= p * bins < b + 1 or (b == bins - 1 and p == 1)]
        if inside:
            total += abs(sum(probability[n] for n in inside) - sum(float(truth[n]) for n in inside))
    return total / len(probability)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.integers(1, 20))
def test_calibration_error_equals_the_slow_definition(entries, bins):
    probability, truth = np.array([p for p, _ in entries]), np.array([t for _, t in entries])
    r = evidence.reliability(probability, truth, bins)
    assert r.count.sum() == len(entries)
    assert r.calibration_error == pytest.approx(slow_calibration_error(probability, truth, bins), abs=1e-9)


def test_probabilities_that_are_frequencies_have_hardly_any_calibration_error():
    rng = np.random.default_rng(0)
    p = rng.random(200_000)
    assert evidence.reliability(p, rng.random(len(p)) < p).calibration_error < 0.01
    assert evidence.reliability(p, rng.random(len(p)) < 0.5).calibration_error == pytest.approx(0.25, abs=0.01)


def test_only_entries_of_the_weak_label_are_looked_at():
    x = torch.arange(12.0).reshape(2, 2, 3)  # (N, T, C)
    assert evidence.labelled(x, torch.tensor([[1, 0, 0], [0, 0, 1]])).tolist() == [0, 3, 8, 11]


# ---- scores of classes, choice of videos ----


def test_class_scores_by_hand():
    truth, pred = (torch.tensor([x]).T[None] for x in ([1, 1, 0, 0], [1, 1, 1, 0]))  # (1, 4, 1) each
    assert evidence.class_f_scores(pred, truth) == pytest.approx([80.0])  # 2 correct of 3 and 2
    assert np.isnan(evidence.class_f_scores(0 * pred, 0 * truth)).all()


def test_chosen_videos_are_the_best_the_median_the_worst_and_the_least_aligned():
    score = np.array([0.5, 1.0, 0.0, 1.0, 0.4])
    audio, visual = torch.zeros(5, 4, 2), torch.zeros(5, 4, 2)
    audio[:, :2, 0] = visual[:, :2, 0] = 1
    audio[3, :, 1] = 1  # as good as video 1, with more in it
    visual[4, :, 0] = torch.tensor([0, 1, 1, 1])  # overlap 1 of 4 s
    assert evidence.choose_videos(score, audio, visual) == {"best": 3, "median": 0, "worst": 2, "most unaligned": 4}
