"""How far the numbers of a run can be trusted, computed from what the run saved.

N videos, T segments, C classes, M entries: the (video, segment, class) triples that are looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# ---- Soft labels as probabilities ----------------------------------------------------------------

BINS = 15  # equal-width bins of the calibration error


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


# ---- What the parser gets right and wrong, per modality, (N, T, C) of 0 / 1 -----------------------

def class_f_scores(pred: Tensor, truth: Tensor) -> np.ndarray:
    """Segment-level F in percent of every class, its segments counted over all videos; NaN: never true or predicted."""
    pred, truth = pred.bool().flatten(0, 1), truth.bool().flatten(0, 1)  # (N T, C)
    correct, size = (pred & truth).sum(0), pred.sum(0) + truth.sum(0)  # (C,)
    return (100 * 2 * correct / torch.where(size > 0, size, torch.nan)).numpy()


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
