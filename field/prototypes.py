"""Prototype labels: a HAN labels its own training videos, without a teacher, CLIP, CLAP or any other data.

The idea. A HAN that has learnt from weak labels alone knows the most telling seconds of a class, and misses the others.
Its features of those key seconds are clustered, for each class and modality, into a few prototypes. The logit of a
second is its largest cosine to the prototypes of a class. These logits stand where the teacher's stand: thresholds from
the validation split, hard labels masked by the weak label. A new HAN learns from them.

What it changes on the HAN: nothing. One is trained with pseudo_label = "none" and labels all splits with `logits`; then
uwav.fit_thresholds, uwav.pseudo_labels and uwav.train_han with pseudo_label = "hard" (a cosine spans tenths, which the
temperature of soft labels does not fit).

Source: ours to the last constant. Self-labelling by prototypes was published for this task at CVPR 2024 (Rachavarapu,
Ramakrishnan, Rajagopalan); neither text nor code was to be had. This is no reproduction. Departures from its abstract:

    1  one round: the labels are not estimated again from the HAN that was trained on them
    2  no contrastive loss on the features
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

import uwav


@dataclass(frozen=True)
class PrototypeConfig:
    seed: int = 0  # of the first centres
    share: float = 0.5  # of a class's seconds are key seconds
    clusters: int = 3  # prototypes of a class and modality, at most
    rounds: int = 10  # of k-means


def logits(model: uwav.HAN, splits: dict[str, uwav.TargetSplit],
           config: PrototypeConfig = PrototypeConfig()) -> dict[str, tuple[Tensor, Tensor]]:
    """Of every video of every split, audio and visual (N, T, C) each, in [-1, 1]; prototypes from splits["train"]."""
    outputs = {name: segments(model, data) for name, data in splits.items()}
    rng = Generator().manual_seed(config.seed)
    centres = [prototypes(feat, logit, splits["train"].weak, config, rng) for feat, logit in outputs["train"]]
    return {name: tuple(similarity(feat, centre) for (feat, _), centre in zip(pairs, centres))
            for name, pairs in outputs.items()}


@torch.no_grad()
def segments(model: uwav.HAN, data: uwav.TargetSplit) -> list[tuple[Tensor, Tensor]]:
    """Features of unit length (N, T, h) and logits (N, T, C) of a split: a pair for audio, a pair for visual."""
    model.eval()
    starts = range(0, len(data.weak), uwav.EVAL_BATCH)
    outputs = [model(*data.inputs(slice(i, i + uwav.EVAL_BATCH))) for i in starts]
    audio_logit, visual_logit, audio, visual = (torch.cat([o[k] for o in outputs]) for k in range(1, 5))
    return [(F.normalize(audio, dim=-1), audio_logit), (F.normalize(visual, dim=-1), visual_logit)]


def prototypes(feat: Tensor, logit: Tensor, weak: Tensor, config: PrototypeConfig, rng: Generator) -> list[Tensor]:
    """The prototypes of one modality, (K, h) for each of C classes, K = 0 where no video has the class.

    feat (N, T, h) of unit length, logit (N, T, C), weak (N, C). Key seconds: of all seconds of the videos that have the
    class, the `share` of highest logit, at least as many as clusters (if there are)."""
    centres = []
    for c in range(weak.shape[1]):
        x, z = feat[weak[:, c] > 0].flatten(0, 1), logit[weak[:, c] > 0, :, c].flatten()  # (M, h), (M,)
        keys = min(len(z), max(config.clusters, int(config.share * len(z))))
        centres.append(k_means(x[z.topk(keys).indices], config.clusters, config.rounds, rng))
    return centres


def k_means(x: Tensor, clusters: int, rounds: int, rng: Generator) -> Tensor:
    """Spherical k-means: x (M, h) of unit length -> (K, h) of unit length, K <= clusters, as empty clusters vanish."""
    centres = x[torch.randperm(len(x), generator=rng)[:clusters].to(x.device)]  # (K, h)
    for _ in range(rounds if len(x) else 0):
        member = F.one_hot((x @ centres.T).argmax(1), len(centres)).to(x.dtype)  # (M, K)
        centres = F.normalize((member.T @ x)[member.any(0)], dim=-1)  # (K, h)
    return centres


def similarity(feat: Tensor, centres: list[Tensor]) -> Tensor:
    """Logit of a class: the largest cosine to its prototypes, -1 if it has none. feat (N, T, h) -> (N, T, C)."""
    return torch.stack([(feat @ k.T).amax(-1) if len(k) else feat.new_full(feat.shape[:2], -1.0) for k in centres], -1)
