"""How far the numbers of a run can be trusted, computed from what the run saved.

N videos, T segments, C classes, M entries: the (video, segment, class) triples that are looked at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from uwav import hard_labels

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


def accuracy_by_distance(logit: Tensor, threshold: Tensor, truth: Tensor, weak: Tensor,
                         bins: int = DISTANCE_BINS) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Of hard labels in bins of equal count: mean distance |z - theta| and accuracy, (bins,) each, and concordance.

    logit, truth (N, T, C), threshold (C,), weak (N, C); entries of the weak label with a finite threshold only. None
    if there are none. Concordance: chance that a correct label lies farther away than a wrong one; 0.5 says nothing."""
    weak = weak * threshold.isfinite()  # (N, C)
    distance = labelled((logit - threshold).abs(), weak).astype(float)  # (M,)
    correct = labelled(hard_labels(logit, threshold, weak) == truth, weak)  # (M,) bool
    if not len(distance):
        return None
    order = np.argsort(distance, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    means = [np.array([x[part].mean() for part in parts]) for x in (distance, correct)]
    return *means, concordance(distance[correct], distance[~correct])


def concordance(larger: np.ndarray, smaller: np.ndarray) -> float:
    """Share of all pairs in which the first is larger, ties counting half; NaN without a pair."""
    if not len(larger) or not len(smaller):
        return math.nan
    smaller = np.sort(smaller)
    below = np.searchsorted(smaller, larger, "left") + np.searchsorted(smaller, larger, "right")
    return float(below.sum() / 2 / len(larger) / len(smaller))


# ---- What the parser gets right and wrong, per modality, (N, T, C) of 0 / 1 -----------------------

EXPERIENCES = ("both", "visible only", "audible only", "neither")  # 3 - audible - 2 visible


def class_f_scores(pred: Tensor, truth: Tensor) -> np.ndarray:
    """Segment-level F in percent of every class, its segments counted over all videos; NaN: never true or predicted."""
    pred, truth = pred.bool().flatten(0, 1), truth.bool().flatten(0, 1)  # (N T, C)
    correct, size = (pred & truth).sum(0), pred.sum(0) + truth.sum(0)  # (C,)
    return (100 * 2 * correct / torch.where(size > 0, size, torch.nan)).numpy()


def modality_confusion(audio_pred: Tensor, visual_pred: Tensor,
                       audio_truth: Tensor, visual_truth: Tensor) -> np.ndarray:
    """(4, 4) counts of (video, segment, class): row, the truth, and column, the prediction, are EXPERIENCES."""
    pairs = (audio_truth, visual_truth), (audio_pred, visual_pred)
    true, predicted = (3 - a.long() - 2 * v.long() for a, v in pairs)  # (N, T, C), index in EXPERIENCES
    return torch.bincount((4 * true + predicted).flatten(), minlength=16).reshape(4, 4).numpy()


def choose_videos(score: np.ndarray, audio_truth: Tensor, visual_truth: Tensor) -> dict[str, int]:
    """Four videos worth a look: score (N,) -> title -> number of the video. Of equals, the one with the most events.

    Most unaligned: least overlap in time (intersection over union) of what is audible and what is visible, among the
    classes that are both in that video."""
    a, v = audio_truth.bool(), visual_truth.bool()
    events = (a.any(1).sum(-1) + v.any(1).sum(-1)).numpy()  # (N,) audible and visible classes
    shared = a.any(1) & v.any(1)  # (N, C)
    overlap = ((a & v).sum(1) * shared).sum(-1) / ((a | v).sum(1) * shared).sum(-1)  # (N,); NaN: no shared class
    overlap = overlap.nan_to_num(1.0).numpy()
    ranks = {"best": -score, "median": np.abs(score - np.median(score)), "worst": score}
    if (overlap < 1).any():
        ranks["most unaligned"] = overlap
    return {kind: int(np.lexsort((-events, rank))[0]) for kind, rank in ranks.items()}
