"""What tests compare with: the same numbers by counting. (The slow version of the ten scores: bench.plain_scores.)"""

from torch import Tensor


def f1(logit: Tensor, truth: Tensor, weak: Tensor, threshold: float) -> float:
    """Of `logit > threshold`, over all segments of the videos that have the class. logit, truth (N, T), weak (N,)."""
    pred = (logit > threshold) & (weak[:, None] > 0)
    tp = int((pred & (truth > 0)).sum())
    return 2 * tp / max(1, int(pred.sum()) + int((truth > 0).sum()))
