"""Clips of your own that lack sound or picture: their features of it are zeros, which are no silence. What is not there
has no label, no loss and no part in thresholds and weights; the parser is given the zeros, as by parse.py.

N videos, B in a batch, T segments, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

import uwav


def present(data: uwav.TargetSplit) -> Tensor:
    """Which videos have sound, and which have pictures, (2, N) bool: an embedding, of unit length, is never 0."""
    return torch.stack([x[:].flatten(1).any(1) for x in (data.audio, data.visual_2d)])  # also of what stays on disk


def pseudo_labels(logits: tuple[Tensor, Tensor], thresholds: tuple[Tensor, Tensor], data: uwav.TargetSplit,
                  config: uwav.TrainConfig) -> uwav.PseudoLabels:
    """uwav.pseudo_labels of what is there; NaN for the rest."""
    labels, weights = [], []
    for m, rows in enumerate(present(data)):  # (N,)
        labels.append(torch.full_like(logits[m], torch.nan))  # (N, T, C)
        weights.append((1.0, 1.0))
        if rows.any():
            made = uwav.pseudo_labels(tuple(z[rows] for z in logits), thresholds, data.weak[rows], config)
            labels[m][rows], weights[m] = made[m], made[2 + m]
    return uwav.PseudoLabels(*labels, *weights)


def losses(model: uwav.HAN, output: uwav.HANOutput, weak: Tensor, labels: uwav.PseudoLabels,
           mixup: list[tuple[Tensor, Tensor]] | None) -> Tensor:
    """uwav.han_losses of what is there, (5,): L_video of the videos that lack nothing, the others by modality."""
    there = [~x.isnan().flatten(1).any(1) for x in labels[:2]]  # (B,) each
    terms, whole = [output.video_prob.new_zeros(())] * 5, there[0] & there[1]
    if whole.any():
        terms[0] = uwav.video_loss(output.video_prob[whole], weak[whole])
    for m, rows in enumerate(there):
        label, logit, feat = labels[m][rows], output[1 + m][rows], output[3 + m][rows]
        if len(label):
            terms[1 + m] = uwav.segment_loss(logit, label, weak[rows], *labels[2 + m])
        if len(label) and mixup:
            perm = torch.randperm(label[..., 0].numel(), device=label.device)  # of the segments that are there
            terms[3 + m] = uwav.mixup_loss(feat, label, model.classifier, mixup[m][0], perm)
    return torch.stack(terms)
