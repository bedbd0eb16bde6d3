"""LEAP: label-anticipated event disentanglement (ECCV 2024), a decoder in place of the HAN's classifier and pooling.

The HAN (uwav.py, section 3) makes of B videos of T seconds one vector a second for sound, one for pictures, (B, T, h)
each; then `HAN.head` makes of each vector the logits of C classes, linearly, and pools them to the video's probability.

The idea. Each class is a query: the vector of its name. It looks at the seconds of one modality in two cross-attention
blocks, for sound and for pictures separately, and gathers what belongs to it. How well a class's query and a second
agree in the last block *is* the segment's logit; the gathered vector tells whether the class occurs in the video. Hard
pseudo-labels (0 or 1 for each class, second and modality, which something else guessed) teach both. A last loss makes a
second of sound and one of pictures of the same video the more similar, the more labels they share.

What it changes on the HAN: the encoder stays; `LEAP.head`, two `DecoderLayer`s a modality, comes in the place of
classifier, time_pool and modal_pool. Its output begins with that of the HAN, so whatever takes a HAN takes this.

Source: Zhou et al., arXiv 2407.08126, of which the full text was not to be had; public code jasongief/LEAP at fd4a8f5,
which is followed where nothing is said. Departures:

1. Encoder: uwav's HAN at its published sizes, as in the rows beside it. The public code has MM-Pyramid alone.
2. Names: CLAP's and CLIP's texts of a class end to end (`name_vectors`), which any list of classes has; there GloVe's
   300 numbers. In either, one vector serves both modalities.
3. The third loss there, weak labels against predictions already cut to 0 or 1, is a constant: left out.
4. A second or a video is positive above 0.5, as everywhere here; there from 0.5 on.
5. Code against paper: for the target of similarity the paper, by a second-hand account, takes intersection over union
   of two seconds' labels; the code divides by the most labels that a second of the video has, and squeezes.
"""

from __future__ import annotations

import copy
import math
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uwav import HAN, HANConfig, HANOutput, PseudoLabels, Run, TargetSplit, han_scores, video_loss


@dataclass(frozen=True)
class LEAPConfig(HANConfig):
    text_dim: int = 300  # numbers of a name's vector; `train` sets those of the vectors that it is given
    decoder_layers: int = 2
    decoder_heads: int = 8
    decoder_feedforward: int = 512
    decoder_dropout: float = 0.2
    attention_dropout: float = 0.1  # of the decoder's attention weights


@dataclass(frozen=True)
class LEAPTraining:
    seed: int = 1
    epochs: int = 30
    batch: int = 32  # videos
    peak_lr: float = 1e-4
    drop_every: int = 10  # epochs; then the rate is a tenth
    weight_decay: float = 0.0  # AdamW without decay is Adam
    beta1: float = 0.9
    beta2: float = 0.999
    fast: bool = False  # bf16, and compiled on a GPU: common/devices.py

    def learning_rate(self, epoch: int) -> float:
        return self.peak_lr * 0.1 ** ((epoch - 1) // self.drop_every)


# ---- The decoder ---------------------------------------------------------------------------------

class DecoderLayer(nn.Module):
    """Classes x (B, C, h) look at the seconds f (B, T, h) of one modality."""

    def __init__(self, config: LEAPConfig):
        super().__init__()
        h, self.heads, self.attention_dropout = config.hidden, config.decoder_heads, config.attention_dropout
        if h % self.heads:
            raise ValueError(f"hidden = {h} cannot be divided among decoder_heads = {self.heads}")
        self.query = nn.Linear(h, h)
        self.key, self.value, self.out = (copy.deepcopy(self.query) for _ in range(3))  # equal at first, as published
        self.norm1, self.norm2, self.drop = nn.LayerNorm(h), nn.LayerNorm(h), nn.Dropout(config.decoder_dropout)
        self.linear1, self.linear2 = nn.Linear(h, config.decoder_feedforward), nn.Linear(config.decoder_feedforward, h)

    def forward(self, x: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        """-> classes (B, C, h) that know their seconds, and the logit of each class in each second, (B, T, C)."""
        # Attention, softmax over the seconds; only the classes are normalised.
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (
            self.query(self.norm1(x)), self.key(f), self.value(f)))  # (B, H, C or T, h / H)
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attention_dropout if self.training else 0.0)
        x = x + self.drop(self.out(y.transpose(1, 2).flatten(2)))  # (B, C, h)
        # The same query and key once more, but after the residual, without the norm, and with no softmax: scores, not
        # weights. The mean of H heads' inner products / sqrt(h / H) is one inner product of all of them / sqrt(h H).
        logit = self.key(f) @ self.query(x).transpose(1, 2) / math.sqrt(x.shape[-1] * self.heads)  # (B, T, C)
        return x + self.drop(self.linear2(self.drop(F.relu(self.linear1(self.norm2(x)))))), logit


# HANOutput, and what its video_prob is the larger of: the video's classes (B, C) by its sound, and by its pictures.
LEAPOutput = namedtuple("LEAPOutput", (*HANOutput._fields, "heard_prob", "seen_prob"))


class LEAP(HAN):
    def __init__(self, config: LEAPConfig = LEAPConfig()):
        super().__init__(config)
        del self.classifier, self.time_pool, self.modal_pool  # in their place:
        self.register_buffer("names", torch.zeros(config.classes, config.text_dim))
        self.name_proj = nn.Linear(config.text_dim, config.hidden)
        layer = DecoderLayer(config)  # all blocks start equal, as published
        self.audio_decoder, self.visual_decoder = (
            nn.ModuleList(copy.deepcopy(layer) for _ in range(config.decoder_layers)) for _ in range(2))
        self.heard, self.seen = nn.Linear(config.hidden, 1), nn.Linear(config.hidden, 1)  # one map for all classes

    def head(self, a: Tensor, v: Tensor) -> LEAPOutput:
        """Of what the encoder gives, (B, T, h) each; HAN.forward calls it."""
        heard_prob, audio_logit = self.decode(self.audio_decoder, self.heard, a)  # (B, C), (B, T, C)
        seen_prob, visual_logit = self.decode(self.visual_decoder, self.seen, v)
        return LEAPOutput(torch.maximum(heard_prob, seen_prob), audio_logit, visual_logit, a, v, heard_prob, seen_prob)

    def decode(self, layers: nn.ModuleList, occurs: nn.Linear, f: Tensor) -> tuple[Tensor, Tensor]:
        x = self.name_proj(self.names).expand(f.shape[0], -1, -1)  # (B, C, h), the same for both modalities
        for layer in layers:
            x, logit = layer(x, f)
        return occurs(x)[..., 0].float().sigmoid(), logit  # (B, C), and (B, T, C) of the last block


def name_vectors(audio_text: Tensor, visual_text: Tensor) -> Tensor:
    """Vectors of the classes' names from their texts, (C, 512) of CLAP and (C, 768) of CLIP -> (C, 1280): what all
    classes share is taken away, and the numbers are brought to a mean square of 1, as the texts' are tiny."""
    x = torch.cat([audio_text, visual_text], -1)  # (C, 1280)
    x = x - x.mean(0)
    return x / x.square().mean().sqrt().clamp(min=1e-9)


# ---- Losses --------------------------------------------------------------------------------------

LOSSES = ("loss_heard", "loss_seen", "loss_visual", "loss_audio", "loss_similarity")  # all of weight 1
FLOOR = 0.01  # added to the target of similarity


def similarity_target(audio_label: Tensor, visual_label: Tensor) -> Tensor:
    """How similar audio second t and visual second t' of a video should be, from labels (B, T, C) -> (B, T, T)."""
    shared = audio_label @ visual_label.transpose(1, 2)  # (B, T, T): classes that both have
    most = torch.cat([audio_label, visual_label], 1).sum(-1).amax(1)  # (B,): labels of the second that has most
    x = shared / most.clamp(min=1e-8)[:, None, None]  # public code: of the whole video, not of the pair
    return x / (1 + x) + FLOOR  # from 0.01 to 0.51


def leap_losses(output: LEAPOutput, audio_label: Tensor, visual_label: Tensor) -> Tensor:
    """The terms of the loss, (5,), in the order of LOSSES, from pseudo-labels (B, T, C) and no weak ones."""
    a, v = (F.normalize(x.float(), dim=-1) for x in (output.audio_feat, output.visual_feat))  # (B, T, h) each
    cosine = a @ v.transpose(1, 2)  # (B, T, T): of every audible and every visible second
    return torch.stack([
        video_loss(output.heard_prob, audio_label.amax(1)),  # a class that is audible in some second
        video_loss(output.seen_prob, visual_label.amax(1)),
        F.binary_cross_entropy_with_logits(output.visual_logit.float(), visual_label),
        F.binary_cross_entropy_with_logits(output.audio_logit.float(), audio_label),
        (F.relu(cosine) - similarity_target(audio_label, visual_label)).square().mean()])  # of the encoder alone


# ---- Training ------------------------------------------------------------------------------------

def train(data: TargetSplit, validation: TargetSplit | None, labels: PseudoLabels, names: Tensor,
          model_config: LEAPConfig, config: LEAPTraining, run: Run | None = None) -> LEAP:
    """Train with pseudo-labels (published: hard ones) and the vectors of the classes' names (C, d); keep the epoch of
    best validation Type score, of equal ones the last; without a validation split, the last."""
    run = run or Run()
    torch.manual_seed(config.seed)
    model = LEAP(replace(model_config, text_dim=names.shape[1])).to(data.weak.device)
    model.names.copy_(names)
    optimizer = run.begin(model, config, videos=len(data.weak))
    forward, losses_of = run.fast(model, one_shape=True), run.fast(leap_losses, one_shape=True)
    for epoch, lr in run.epochs():
        terms = run.mean(leap_epoch, model, forward, losses_of, optimizer, data, labels, config, epoch)  # (5,)
        scores = validation and han_scores(model, validation)
        run.end_epoch(dict(epoch=epoch, lr=lr, loss=sum(terms), **dict(zip(LOSSES, terms)), val=scores),
                      scores["seg_type"] if scores else epoch, last_of_equals=True)
    return run.finish()


def leap_epoch(model: LEAP, forward: Callable, losses_of: Callable, optimizer: torch.optim.Optimizer, data: TargetSplit,
               labels: PseudoLabels, config: LEAPTraining, epoch: int) -> Iterator[Tensor]:
    """One epoch, step by step; yields the terms of the loss, (5,), of each."""
    rng = np.random.default_rng((config.seed, epoch))
    order = torch.from_numpy(rng.permutation(len(data.weak))).to(data.weak.device)  # (N,)
    model.train()
    for index in order.split(config.batch):
        losses = losses_of(forward(*data.inputs(index)), labels.audio[index], labels.visual[index])  # (5,)
        losses.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        yield losses.detach()
