"""What tests compare with: the same numbers by counting."""

import numpy as np
from torch import Tensor

import uwav


def f1(logit: Tensor, truth: Tensor, weak: Tensor, threshold: float) -> float:
    """Of `logit > threshold`, over all segments of the videos that have the class. logit, truth (N, T), weak (N,)."""
    pred = (logit > threshold) & (weak[:, None] > 0)
    tp = int((pred & (truth > 0)).sum())
    return 2 * tp / max(1, int(pred.sum()) + int((truth > 0).sum()))


def plain_events(x: np.ndarray) -> list[tuple[int, int]]:
    """Runs of positive segments, x (T,) -> [(first, last + 1), ...]."""
    padded = [0, *x, 0]
    changes = [t for t in range(len(x) + 1) if padded[t] != padded[t + 1]]
    return list(zip(changes[::2], changes[1::2]))


def plain_event_counts(predicted: np.ndarray, truth: np.ndarray) -> tuple[int, int, int]:
    """TP, FP, FN of one class in one video, both (T,)."""
    predicted, truth = plain_events(predicted), plain_events(truth)

    def found(a: tuple[int, int], others: list[tuple[int, int]]) -> bool:
        return any(2 * (min(a[1], b[1]) - max(a[0], b[0])) >= max(a[1], b[1]) - min(a[0], b[0]) for b in others)

    tp = sum(found(a, truth) for a in predicted)
    return tp, len(predicted) - tp, sum(not found(b, predicted) for b in truth)


def plain_segment_counts(predicted: np.ndarray, truth: np.ndarray) -> tuple[int, int, int]:
    return (predicted & truth).sum(), (predicted & ~truth).sum(), (~predicted & truth).sum()


def plain_scores(audio_pred: np.ndarray, visual_pred: np.ndarray, audio_truth: np.ndarray,
                 visual_truth: np.ndarray) -> dict[str, float]:
    """`parsing_scores` from the definitions: video by video, class by class; (N, T, C) bool each."""

    def f_score(counts: list[tuple[int, int, int]]) -> float:
        values = [2 * tp / (2 * tp + fp + fn) for tp, fp, fn in counts if tp + fp + fn > 0]
        return sum(values) / len(values) if values else 1.0

    per_video = []
    for ap, vp, at, vt in zip(audio_pred, visual_pred, audio_truth, visual_truth):  # (T, C) each
        row, pairs = [], ((ap, at), (vp, vt), (ap & vp, at & vt))  # audible, visible, both at once
        for count in (plain_segment_counts, plain_event_counts):
            a, v, av = ([count(p[:, c], t[:, c]) for c in range(ap.shape[1])] for p, t in pairs)
            pooled = [tuple(x + y for x, y in zip(*both)) for both in zip(a, v)]
            f = [f_score(x) for x in (a, v, av, pooled)]
            row += [*f[:3], sum(f[:3]) / 3, f[3]]
        per_video.append(row)
    return dict(zip(uwav.SCORES, (100 * np.mean(per_video, 0)).tolist()))
