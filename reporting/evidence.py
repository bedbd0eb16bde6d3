"""How far the numbers of a run can be trusted, computed from what the run saved.

    soft labels as probabilities                `reliability`, `accuracy_by_distance`
    what the parser gets wrong                  `class_f_scores`, `modality_confusion`, `choose_videos`
    what mixup does to labels                   `mixed_pair`

N videos, T segments, C classes, M entries: the (video, segment, class) triples that are looked at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from uwav import hard_labels, mix

# ---- Soft labels as probabilities ----------------------------------------------------------------

BINS = 15  # equal-width bins of the calibration error
DISTANCE_BINS = 10  # equal-count bins of the distance to the threshold


@dataclass(frozen=True)
class Reliability:
    """Probabilities in equal-width bins; bins nobody fell into hold NaN."""

    count: np.ndarray  # (bins,)
    probability: np.ndarray  # (bins,) mean probability
    frequency: np.ndarray  # (bins,) how often it was true

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: |mean probability - frequency|, averaged over entries."""
        gap = np.abs(np.nan_to_num(self.probability - self.frequency))
        return float((self.count * gap).sum() / self.count.sum())


def reliability(probability: np.ndarray, truth: np.ndarray, bins: int = BINS) -> Reliability:
    """probability (M,) in 0 .. 1, truth (M,) of 0 / 1."""
    place = np.minimum((probability * bins).astype(int), bins - 1)  # (M,)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        sums = [np.bincount(place, x.astype(float), bins) / count for x in (probability, truth)]
    return Reliability(count, *sums)


def labelled(x: Tensor, weak: Tensor) -> np.ndarray:
    """The entries of x (N, T, C) whose class is in the video's weak label (N, C) -> (M,). Elsewhere labels are 0."""
    return x[(weak > 0)[:, None, :].expand(x.shape)].numpy()


@dataclass(frozen=True)
class DistanceAccuracy:
    """Accuracy of hard labels by distance from the threshold, |z - theta|, in bins of equal count."""

    distance: np.ndarray  # (bins,) mean
    accuracy: np.ndarray  # (bins,)
    concordance: float  # chance that a correct label lies farther away than a wrong one; 0.5: distance says nothing
    left_out: int  # classes whose threshold is -inf: there is no distance


def accuracy_by_distance(logit: Tensor, threshold: Tensor, truth: Tensor, weak: Tensor,
                         bins: int = DISTANCE_BINS) -> DistanceAccuracy | None:
    """logit, truth (N, T, C), threshold (C,), weak (N, C); entries of the weak label only. None if there are none."""
    finite = threshold.isfinite()  # (C,)
    weak, infinite = weak * finite, int((~finite).sum())
    distance = labelled((logit - threshold).abs(), weak).astype(float)  # (M,)
    correct = labelled(hard_labels(logit, threshold, weak) == truth, weak)  # (M,) bool
    if not len(distance):
        return None
    order = np.argsort(distance, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    means = [np.array([x[part].mean() for part in parts]) for x in (distance, correct)]
    return DistanceAccuracy(*means, concordance(distance[correct], distance[~correct]), infinite)


def concordance(larger: np.ndarray, smaller: np.ndarray) -> float:
    """Share of all pairs in which the first is larger, ties counting half; NaN without a pair."""
    if not len(larger) or not len(smaller):
        return math.nan
    smaller = np.sort(smaller)
    below = np.searchsorted(smaller, larger, "left") + np.searchsorted(smaller, larger, "right")
    return float(below.sum() / 2 / len(larger) / len(smaller))


# ---- What the parser gets right and wrong, per modality, (N, T, C) of 0 / 1; an example of mixup -

EXPERIENCES = ("audible only", "visible only", "both", "neither")


def class_f_scores(pred: Tensor, truth: Tensor) -> np.ndarray:
    """Segment-level F in percent of every class, its segments counted over all videos; NaN: never true or predicted."""
    pred, truth = pred.bool().flatten(0, 1), truth.bool().flatten(0, 1)  # (N T, C)
    correct, size = (pred & truth).sum(0), pred.sum(0) + truth.sum(0)  # (C,)
    return (100 * 2 * correct / torch.where(size > 0, size, torch.nan)).numpy()


def modality_confusion(audio_pred: Tensor, visual_pred: Tensor,
                       audio_truth: Tensor, visual_truth: Tensor) -> np.ndarray:
    """(4, 4) counts of (video, segment, class): row, the truth, and column, the prediction, are EXPERIENCES."""

    def experience(a: Tensor, v: Tensor) -> Tensor:
        a, v = a.bool(), v.bool()
        return torch.where(a & v, 2, torch.where(a, 0, torch.where(v, 1, 3)))  # (N, T, C), index in EXPERIENCES

    pairs = 4 * experience(audio_truth, visual_truth) + experience(audio_pred, visual_pred)
    return torch.bincount(pairs.flatten(), minlength=16).reshape(4, 4).numpy()


def choose_videos(score: np.ndarray, audio_truth: Tensor, visual_truth: Tensor) -> dict[str, int]:
    """Four videos worth a look: score (N,) -> title -> number of the video. Of equals, the one with the most events.

    Most unaligned: least overlap in time (intersection over union) of what is audible and what is visible, among the
    classes that are both in that video.
    """
    a, v = audio_truth.bool(), visual_truth.bool()
    events = (a.any(1).sum(-1) + v.any(1).sum(-1)).numpy()  # (N,) audible and visible classes
    shared = a.any(1) & v.any(1)  # (N, C)
    overlap = ((a & v).sum(1) * shared).sum(-1) / ((a | v).sum(1) * shared).sum(-1)  # (N,); NaN: no shared class
    overlap = overlap.nan_to_num(1.0).numpy()
    middle = np.abs(score - np.median(score))

    def first(*keys: np.ndarray) -> int:
        return int(np.lexsort(keys[::-1])[0])

    chosen = {"best": first(-score, -events), "median": first(middle, -events), "worst": first(score, -events)}
    if (overlap < 1).any():
        chosen["most unaligned"] = first(overlap, -events)
    return chosen


@dataclass(frozen=True)
class MixedPair:
    """Two segments of one batch and what mixup makes of their labels, each (C,)."""

    lam: float
    first: np.ndarray
    second: np.ndarray
    mixed: np.ndarray


def mixed_pair(soft: Tensor, alpha: float, batch: int, seed: int = 0) -> MixedPair | None:
    """One batch of soft labels (N, T, C), mixed as in training: its first segment whose partner has another likeliest
    class, both labels being above 0.2. None if there is no such segment."""
    torch.manual_seed(seed)
    labels = soft[torch.randperm(len(soft))[:batch]].flatten(0, 1)  # (M, C), M = B T
    perm = torch.randperm(len(labels))
    lam = torch.distributions.Beta(alpha, alpha).sample()
    mixed = mix(labels, lam, perm)  # (M, C)
    value, likeliest = labels.max(-1)  # (M,) each
    visible = 0.2  # an example should show something
    candidates = ((value > visible) & (value[perm] > visible) & (likeliest != likeliest[perm])).nonzero()
    if not len(candidates):
        return None
    m = int(candidates[0])
    return MixedPair(float(lam), *(x.numpy() for x in (labels[m], labels[perm[m]], mixed[m])))
