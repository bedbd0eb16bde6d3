"""The scores of audio-visual video parsing: F-scores over segments and over events.

Everything works on whole tensors, for any number of segments, on any device; no loop over videos.
N videos, T segments, C classes; R rows, the (video, class) pairs that are predicted or true.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_IOU = 0.5  # for an event to be found


def parsing_scores(audio_pred: Tensor, visual_pred: Tensor,
                   audio_truth: Tensor, visual_truth: Tensor) -> dict[str, float]:
    """The field's ten scores in percent, from (N, T, C) arrays of 0 / 1: means of `video_scores` over the videos."""
    mean = {name: f.mean() for name, f in video_scores(audio_pred, visual_pred, audio_truth, visual_truth).items()}
    for level in LEVELS:  # the mean of the three means: that of the videos' Type but for the last bit
        mean[f"{level}_type"] = (mean[f"{level}_a"] + mean[f"{level}_v"] + mean[f"{level}_av"]) / 3
    return dict(zip(mean, (100 * torch.stack(list(mean.values()))).tolist()))


def video_scores(audio_pred: Tensor, visual_pred: Tensor,
                 audio_truth: Tensor, visual_truth: Tensor) -> dict[str, Tensor]:
    """The ten scores of every video, from 0 to 1: (N, T, C) arrays of 0 / 1 -> name -> (N,).

    seg_* compare seconds, event_* compare events (maximal runs of positive seconds). a, v, av: audible, visible, both;
    type: mean of these three; event: counts of a and v pooled before the F-score.
    """
    arrays = [torch.as_tensor(x).bool().transpose(1, 2)
              for x in (audio_pred, visual_pred, audio_truth, visual_truth)]  # (N, C, T) each
    occurs = torch.stack([x.any(-1) for x in arrays]).any(0)  # (N, C): few classes of a video are predicted or true,
    ap, vp, at, vt = (x[occurs] for x in arrays)  # (R, T): only these rows need counting
    scores = {}
    for level, counts in LEVELS.items():
        found = torch.stack([counts(ap, at), counts(vp, vt), counts(ap & vp, at & vt)])  # (3 kinds, 3 counts, R)
        a, v, av = found.new_zeros(3, 3, *occurs.shape).masked_scatter(occurs, found)  # (3, N, C) each
        f_a, f_v, f_av = (f_scores(x) for x in (a, v, av))  # (N,) each
        values = (f_a, f_v, f_av, (f_a + f_v + f_av) / 3, f_scores(a + v))
        scores |= {f"{level}_{kind}": x for kind, x in zip(("a", "v", "av", "type", "event"), values)}
    return scores


def segment_counts(pred: Tensor, truth: Tensor) -> Tensor:
    """TP, FP, FN in segments: two (..., T) bool -> (3, ...)."""
    return torch.stack([(pred & truth).sum(-1), (pred & ~truth).sum(-1), (~pred & truth).sum(-1)])


def event_counts(pred: Tensor, truth: Tensor) -> Tensor:
    """TP, FP, FN in events: two (R, T) bool -> (3, R).

    Two runs that overlap share a segment, so it is enough to look, in every segment where both are positive,
    at the two runs it lies in: their IoU decides for both of them.
    """
    pred_start, pred_end = run_bounds(pred)  # (R, T) each
    true_start, true_end = run_bounds(truth)
    intersection = torch.minimum(pred_end, true_end) - torch.maximum(pred_start, true_start) + 1
    union = torch.maximum(pred_end, true_end) - torch.minimum(pred_start, true_start) + 1
    hit = pred & truth & (intersection >= MIN_IOU * union)  # (R, T)
    tp, found = count_runs_with(hit, pred_start), count_runs_with(hit, true_start)  # (R,) each
    return torch.stack([tp, count_runs_with(pred, pred_start) - tp, count_runs_with(truth, true_start) - found])


def run_bounds(x: Tensor) -> tuple[Tensor, Tensor]:
    """First and last segment of the run that each positive segment of x (R, T) lies in; meaningless elsewhere."""
    t = torch.arange(x.shape[-1], device=x.device, dtype=torch.int32)
    before, after = F.pad(x, (1, -1)), F.pad(x, (-1, 1))  # (R, T): x one segment earlier, later
    start = torch.where(x & ~before, t, 0).cummax(-1).values  # (R, T)
    end = torch.where(x & ~after, t, x.shape[-1]).flip(-1).cummin(-1).values.flip(-1)  # (R, T)
    return start, end


def count_runs_with(hit: Tensor, start: Tensor) -> Tensor:
    """How many different runs (told apart by their first segment) have a hit: (R, T) -> (R,)."""
    marked = torch.zeros_like(hit, dtype=torch.uint8)
    return marked.scatter_reduce_(-1, start.long(), hit.byte(), "amax").sum(-1)


def f_scores(counts: Tensor) -> Tensor:
    """Counts (3, N, C) -> (N,): each video's mean F over the classes predicted or true; 1 if there are none."""
    tp, fp, fn = counts.double()
    size = 2 * tp + fp + fn  # (N, C); 0: the class is neither predicted nor true
    f = 2 * tp / size.clamp(min=1)
    present = (size > 0).sum(-1)  # (N,)
    return torch.where(present > 0, f.sum(-1) / present.clamp(min=1), 1.0)


LEVELS = {"seg": segment_counts, "event": event_counts}
