"""Clips of your own that lack sound or picture: their features of it are zeros, which are no silence. What is not there
has no label, no loss and no part in thresholds and weights; the parser is given the zeros, as parse.py does.

N videos, B in a batch, T segments, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

import uwav
from train.checkpoints import Run


def present(data: uwav.TargetSplit) -> Tensor:
    """Which videos have sound, and which have pictures, (2, N) bool: an embedding, of unit length, is never 0."""
    return torch.stack([x.flatten(1).any(1) for x in (data.audio, data.visual_2d)])


def pseudo_labels(logits: tuple[Tensor, Tensor], thresholds: tuple[Tensor, Tensor], data: uwav.TargetSplit,
                  config: uwav.TrainConfig) -> uwav.PseudoLabels:
    """uwav.pseudo_labels of what is there; NaN for the rest."""
    labels, weights = [], []
    for m, (rows, z) in enumerate(zip(present(data), logits)):
        labels.append(torch.full_like(z, torch.nan))
        weights.append((1.0, 1.0))
        if rows.any():
            part = uwav.pseudo_labels(tuple(x[rows] for x in logits), thresholds, data.weak[rows], config)
            labels[m][rows], weights[m] = part[m], part[2 + m]
    return uwav.PseudoLabels(*labels, *weights)


def losses(model: uwav.HAN, output: uwav.HANOutput, weak: Tensor, labels: uwav.PseudoLabels,
           mixup: list[tuple[Tensor, Tensor]] | None) -> Tensor:
    """uwav.han_losses of what is there, (5,): L_video of whole videos, the others of each modality by itself."""
    there = [~x.isnan().flatten(1).any(1) for x in (labels.audio, labels.visual)]  # (B,) each
    terms, whole = [output.video_prob.new_zeros(())] * 5, there[0] & there[1]
    if whole.any():
        terms[0] = uwav.video_loss(output.video_prob[whole], weak[whole])
    for m, rows in enumerate(there):
        if not rows.any():
            continue
        label, logit, feat = labels[m][rows], output[1 + m][rows], output[3 + m][rows]
        terms[1 + m] = uwav.segment_loss(logit, label, weak[rows], *labels[2 + m])
        if mixup is not None:
            lam, perm = mixup[m]
            kept = rows.repeat_interleave(feat.shape[1])  # (B T,)
            number = kept.cumsum(0) - 1  # (B T,): among those that are kept
            terms[3 + m] = uwav.mixup_loss(feat, label, model.classifier, lam, number[perm[kept[perm]]])
    return torch.stack(terms)


class LackingRun(Run):
    """A training run with these losses. Their shapes follow the batch, so --fast leaves them as they are."""

    def fast(self, function, one_shape: bool):
        return losses if function is uwav.han_losses else super().fast(function, one_shape)
