"""UWAV: uncertainty-weighted weakly-supervised audio-visual video parsing (CVPR 2025), in one file.

The task. A video is cut into T one-second segments; all we know for training is which of C event classes
occur *somewhere* in it (the weak label). We want to know, for each second, which are audible and which visible.

The method, in the order of this file (equation numbers are the paper's):

    1  Configurations          every default is the published run
    2  Attention               written out, shared by both models
    3  HAN            Eq. 1    the parser: Hybrid Attention Network with MMIL pooling
    4  Teacher        Eq. 2-3  two temporal transformers on CLAP / CLIP, pre-trained on UnAV-100
    5  Pseudo-labels  Eq. 4    thresholds, hard labels, soft labels
    6  Losses         Eq. 5-9  uncertainty-weighted, class-balanced, feature mixup
    7  Inference               the gate, and the ten scores
    8  Training                the two loops
    9  Released checkpoints    weights that were trained with the authors' code

Shapes: B videos in a batch, T segments, C classes, D feature size, N videos in a split.
`released code:` marks a choice that the published numbers were made with and the paper does not state,
or states otherwise; docs/method.md lists them all.

`import uwav` loads no other file of this project. The command line, `python uwav.py --help`, is train/cli.py.
"""

from __future__ import annotations

import math
import runpy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ---- 1  Configurations ---------------------------------------------------------------------------

@dataclass(frozen=True)
class TeacherConfig:
    audio_dim: int = 512  # CLAP
    visual_dim: int = 768  # CLIP ViT-L/14
    hidden: int = 1024
    heads: int = 16
    feedforward: int = 2048
    layers: int = 5
    dropout: float = 0.3
    audio_scale: float = 3.2912  # released code: ln of CLAP's temperature, 26.9
    visual_scale: float = 4.6052  # released code: ln of CLIP's temperature, 100


@dataclass(frozen=True)
class PretrainConfig:
    """Pre-training of the teacher on UnAV-100."""

    seed: int = 1000
    epochs: int = 80
    batch: int = 64  # videos
    peak_lr: float = 1e-4
    min_lr: float = 1e-5
    warmup: int = 10  # epochs
    weight_decay: float = 1e-3
    beta1: float = 0.5  # of AdamW
    beta2: float = 0.999
    clip: float = 2.0  # gradient norm; released code: the paper says 1.0
    pos_weight: float = 5.0  # released code: weight of the classes that occur in the video
    length_pool: int = 8  # batches drawn together and sorted by length, so that padding is rare; 1: plain shuffling
    fast: bool = False  # bf16, and compiled on a GPU: common/devices.py

    def learning_rate(self, epoch: int) -> float:
        return learning_rate(epoch, self.epochs, self.peak_lr, self.min_lr, self.warmup)


@dataclass(frozen=True)
class HANConfig:
    classes: int = 25
    audio_dim: int = 128  # VGGish
    visual_2d_dim: int = 2048  # ResNet-152
    visual_3d_dim: int = 512  # R(2+1)D-18; 0: no 3D features
    hidden: int = 512
    heads: int = 16
    feedforward: int = 2048
    layers: int = 5
    dropout: float = 0.1
    project_visual: bool = True  # False: visual features enter as they are (their size must be `hidden`)
    audio_first: bool = True  # released code: visual attends to the already updated audio; False: symmetric
    audio_mlp: bool = True  # False: one linear layer for the audio features, as in the HAN of 2020 and in VALOR's


@dataclass(frozen=True)
class TrainConfig:
    """Training of the HAN on LLP. The last block switches the parts of L_total (Eq. 9)."""

    seed: int = 20000
    epochs: int = 80
    batch: int = 64  # videos
    peak_lr: float = 1e-4
    min_lr: float = 5e-6
    warmup: int = 10  # epochs
    weight_decay: float = 1e-4
    beta1: float = 0.9  # of AdamW
    beta2: float = 0.999
    clip: float = 1.0  # gradient norm

    pseudo_label: str = "soft"  # none | hard | soft
    temperature: float = 2.0  # of the soft labels; released code: the paper's Eq. 4 has 1
    reweight: bool = True  # class-balanced weights (Eq. 7-8)
    W: float = 0.5  # of w_pos, Eq. 7
    balance_sum: bool = True  # released code: weights C times those of Eq. 7-8
    mixup: bool = True  # uncertainty-weighted feature mixup
    alpha: float = 1.7  # lambda ~ Beta(alpha, alpha)
    fast: bool = False  # bf16, and compiled on a GPU: common/devices.py

    def learning_rate(self, epoch: int) -> float:
        return learning_rate(epoch, self.epochs, self.peak_lr, self.min_lr, self.warmup)


# The HAN of feature set `clip_clap`; released code: its visual input, CLIP, enters the encoder unprojected.
CLIP_CLAP = HANConfig(audio_dim=512, visual_2d_dim=768, visual_3d_dim=0, hidden=768, project_visual=False)

# ---- 2  Attention --------------------------------------------------------------------------------

def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


class Attention(nn.Module):
    """Multi-head attention, the computation and initialisation of nn.MultiheadAttention written out."""

    def __init__(self, hidden: int, heads: int, dropout: float):
        super().__init__()
        if hidden % heads:
            raise ValueError(f"hidden = {hidden} cannot be divided among heads = {heads}")
        self.hidden, self.heads, self.dropout = hidden, heads, dropout
        self.in_proj = nn.Linear(hidden, 3 * hidden)  # query, key, value
        self.out_proj = nn.Linear(hidden, hidden)
        nn.init.xavier_uniform_(self.in_proj.weight)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, source: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Queries from x (B, T, D), keys and values from source (B, S, D), or x itself; mask (B, S), True = attend."""
        if source is None:
            q, k, v = self.split_heads(self.in_proj(x)).chunk(3, 1)  # (B, H, T, D/H) each
        else:
            (w_q, w_kv), (b_q, b_kv) = (p.split([self.hidden, 2 * self.hidden]) for p in self.in_proj.parameters())
            q = self.split_heads(F.linear(x, w_q, b_q))  # (B, H, T, D/H)
            k, v = self.split_heads(F.linear(source, w_kv, b_kv)).chunk(2, 1)  # (B, H, S, D/H) each
        mask = None if mask is None else mask[:, None, None, :]  # (B, 1, 1, S)
        y = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)  # (B, H, T, D/H)
        return self.out_proj(y.transpose(1, 2).flatten(2))  # (B, T, D)

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (-1, self.hidden // self.heads)).transpose(1, 2)  # (B, T, n D) -> (B, n H, T, D/H)


class FeedForward(nn.Module):
    """x <- LN(x + drop(W2 drop(relu(W1 x)))), the second half of every layer here."""

    def __init__(self, hidden: int, feedforward: int, dropout: float):
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(hidden, feedforward), nn.Linear(feedforward, hidden)
        self.norm, self.drop = nn.LayerNorm(hidden), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.drop(self.linear2(self.drop(F.relu(self.linear1(x))))))  # (B, T, D)


# ---- 3  HAN: the parser (Eq. 1) ------------------------------------------------------------------

class HANLayer(nn.Module):
    """Hybrid attention: self- and cross-attention side by side; one set of weights serves both modalities."""

    def __init__(self, config: HANConfig):
        super().__init__()
        self.audio_first = config.audio_first
        self.self_attn = Attention(config.hidden, config.heads, config.dropout)
        self.cross_attn = Attention(config.hidden, config.heads, config.dropout)
        self.norm, self.drop = nn.LayerNorm(config.hidden), nn.Dropout(config.dropout)
        self.feedforward = FeedForward(config.hidden, config.feedforward, config.dropout)

    def forward(self, a: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Both modalities, (B, T, h) each, in and out."""
        both = torch.cat([a, v])  # (2 B, T, h): self-attention in one go
        own_a, own_v = (both + self.drop(self.self_attn(both))).unflatten(0, (2, -1))  # (B, T, h) each
        new_a = self.with_other(own_a, a, v)
        return new_a, self.with_other(own_v, v, new_a if self.audio_first else a)  # released code: the updated audio

    def with_other(self, own: Tensor, x: Tensor, other: Tensor) -> Tensor:
        return self.feedforward(self.norm(own + self.drop(self.cross_attn(x, other))))  # (B, T, h)


class HANOutput(NamedTuple):
    video_prob: Tensor  # (B, C)
    audio_logit: Tensor  # (B, T, C)
    visual_logit: Tensor  # (B, T, C)
    audio_feat: Tensor  # (B, T, h)
    visual_feat: Tensor  # (B, T, h)


class HAN(nn.Module):
    """Hybrid Attention Network with multi-modal multiple-instance (MMIL) pooling."""

    def __init__(self, config: HANConfig = HANConfig()):
        super().__init__()
        self.config = config
        h, C, visual_dim = config.hidden, config.classes, config.visual_2d_dim + config.visual_3d_dim
        if not config.project_visual and visual_dim != h:
            raise ValueError(f"project_visual = False needs hidden = {visual_dim} (the visual features), not {h}")
        self.audio_proj = mlp(config.audio_dim, 2 * h, h) if config.audio_mlp else nn.Linear(config.audio_dim, h)
        self.visual_proj = nn.Linear(visual_dim, h) if config.project_visual else nn.Identity()
        self.layers = nn.ModuleList(HANLayer(config) for _ in range(config.layers))
        self.classifier = nn.Linear(h, C)  # shared by both modalities
        self.time_pool = nn.Linear(h, C)
        self.modal_pool = nn.Linear(h, C)

    def forward(self, audio: Tensor, visual_2d: Tensor, visual_3d: Tensor | None = None) -> HANOutput:
        """audio (B, T, Da); visual_2d (B, T, D2), or (B, k T, D2) at k vectors a second; visual_3d (B, T, D3)."""
        return self.head(*self.encode(*self.project(audio, visual_2d, visual_3d)))

    def project(self, audio: Tensor, visual_2d: Tensor, visual_3d: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features of both modalities, one vector of size h a second: (B, T, h) each."""
        B, T, _ = audio.shape
        if visual_2d.shape[1] != T:
            visual_2d = visual_2d.reshape(B, T, -1, visual_2d.shape[2]).mean(2)  # (B, k T, D2) -> (B, T, D2)
        visual = visual_2d if visual_3d is None else torch.cat([visual_2d, visual_3d], -1)  # (B, T, D2 + D3)
        return self.audio_proj(audio), self.visual_proj(visual)  # (B, T, h) each

    def encode(self, a: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Each second in the light of the others and of the other modality: (B, T, h) each, in and out."""
        for layer in self.layers:
            a, v = layer(a, v)
        return a, v

    def head(self, a: Tensor, v: Tensor) -> HANOutput:
        x = torch.stack([a, v], 2)  # (B, T, 2, h)
        logit = self.classifier(x)  # (B, T, 2, C)
        return HANOutput(self.pool(x, logit), *logit.unbind(2), a, v)

    def pool(self, x: Tensor, logit: Tensor) -> Tensor:
        """MMIL (Eq. 1): segment probabilities summed with weights over time and modalities -> (B, C), from 0 to 2."""
        p = logit.float().sigmoid()  # (B, T, 2, C)
        w_time = self.time_pool(x).float().softmax(1)  # (B, T, 2, C), sums to 1 over T
        w_modal = self.modal_pool(x).float().softmax(2)  # (B, T, 2, C), sums to 1 over the modalities
        return (w_time * w_modal * p).sum((1, 2))  # (B, C); the products of weights may sum to more than 1


# ---- 4  Teacher: the pseudo-label generator (Eq. 2-3) --------------------------------------------

class TeacherLayer(nn.Module):
    """A post-norm transformer encoder layer."""

    def __init__(self, hidden: int, heads: int, feedforward: int, dropout: float):
        super().__init__()
        self.self_attn = Attention(hidden, heads, dropout)
        self.norm, self.drop = nn.LayerNorm(hidden), nn.Dropout(dropout)
        self.feedforward = FeedForward(hidden, feedforward, dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.feedforward(self.norm(x + self.drop(self.self_attn(x, mask=mask))))  # (B, T, h)


class TeacherBranch(nn.Module):
    """One modality: per-second embeddings in, embeddings that know their neighbours out. No positional encoding."""

    def __init__(self, dim: int, scale: float, config: TeacherConfig):
        super().__init__()
        h = config.hidden
        self.scale = scale
        self.mlp_in = mlp(dim, 2 * h, h)  # released code: the two MLPs are not in the paper
        self.layers = nn.ModuleList(
            TeacherLayer(h, config.heads, config.feedforward, config.dropout) for _ in range(config.layers))
        self.mlp_out = mlp(h, dim, dim)

    def forward(self, x: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        x = self.mlp_in(x)  # (B, T, d) -> (B, T, h)
        for layer in self.layers:
            x = layer(x, mask)
        g = self.mlp_out(x)  # (B, T, d), not normalised
        return self.scale * g @ text.T  # (B, T, C); released code: Eq. 2 has no scale


class Teacher(nn.Module):
    """Logit of class c in segment t (Eq. 2): inner product of a contextualised embedding and the class's text.

    Classes enter only through their text embeddings, so the same weights serve the 100 classes of
    UnAV, the 25 of LLP, or any other list."""

    def __init__(self, config: TeacherConfig = TeacherConfig()):
        super().__init__()
        self.config = config
        self.audio = TeacherBranch(config.audio_dim, config.audio_scale, config)
        self.visual = TeacherBranch(config.visual_dim, config.visual_scale, config)

    def forward(self, audio: Tensor, visual: Tensor, audio_text: Tensor, visual_text: Tensor,
                mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """audio (B, T, 512), visual (B, T, 768), text (C, 512) and (C, 768) of unit length,
        mask (B, T) bool, True = a real segment, None = all are -> two logits (B, T, C)."""
        return self.audio(audio, audio_text, mask), self.visual(visual, visual_text, mask)


PROBABILITY_MARGIN = 1e-7  # from 0 and 1: keeps logarithms finite


def teacher_loss(audio_logit: Tensor, visual_logit: Tensor, label: Tensor, mask: Tensor,
                 pos_weight: float = 5.0) -> Tensor:
    """Eq. 3: BCE of p_av = p_a * p_v against the audio-visual label, over the valid segments.

    Logits and label (B, T, C), mask (B, T) bool."""
    log_p = F.logsigmoid(audio_logit.float()) + F.logsigmoid(visual_logit.float())  # (B, T, C), ln p_av
    log_not_p = torch.log1p(-log_p.exp().clamp(max=1 - PROBABILITY_MARGIN))  # (B, T, C), ln (1 - p_av)
    bce = -(label * log_p + (1 - label) * log_not_p)  # (B, T, C)
    occurs = (label * mask[..., None]).amax(1, keepdim=True) > 0  # (B, 1, C)
    weight = torch.where(occurs, pos_weight, 1.0) * mask[..., None]  # (B, T, C); released code: pos_weight
    return (weight * bce).sum() / (mask.sum() * label.shape[-1])


# ---- 5  Pseudo-labels (Eq. 4) --------------------------------------------------------------------

def fit_thresholds(logit: Tensor, truth: Tensor, weak: Tensor) -> tuple[Tensor, Tensor]:
    """Per class, the threshold at which `logit > threshold` has the best F1 over all (video, segment) pairs.

    logit, truth (N, T, C), weak (N, C), all of the validation split -> threshold, f1 (C,). Logits of classes
    absent from a video's weak label count as -inf. Candidates: midpoints between distinct neighbours in the sorted
    logits, and -inf (every segment of a video that has the class). Of equal F1 the lowest threshold wins."""
    C = logit.shape[-1]
    score = logit.masked_fill(weak[:, None, :] == 0, -torch.inf).reshape(-1, C)  # (M, C), M = N * T
    truth = truth.reshape(-1, C) > 0  # (M, C)
    score, order = score.sort(0, descending=True)  # (M, C)
    predicted = torch.arange(1, len(score) + 1, device=score.device, dtype=torch.float64)  # (M,): the k highest
    f1 = 2 * truth.gather(0, order).cumsum(0) / (predicted[:, None] + truth.sum(0))  # (M, C): 2 TP / (predicted + true)
    below = torch.cat([score[1:], torch.full_like(score[:1], -torch.inf)])  # (M, C): the next lower logit
    f1 = f1.masked_fill((score == below) | (score == -torch.inf), 0.0)  # no threshold cuts there
    best = f1.amax(0)  # (C,)
    cut = len(f1) - 1 - (f1 == best).flip(0).byte().argmax(0)  # (C,): the last, so the lowest
    upper, lower = score.gather(0, cut[None])[0], below.gather(0, cut[None])[0]  # (C,) each
    middle = upper / 2 + lower / 2  # their sum may be infinite
    threshold = torch.where(middle < upper, middle, lower)  # adjacent floats: the midpoint may round up
    return threshold.masked_fill(best == 0, -torch.inf), best.to(logit.dtype)


def hard_labels(logit: Tensor, threshold: Tensor, weak: Tensor) -> Tensor:
    """1[z > theta] * y: logit (N, T, C), threshold (C,), weak (N, C) -> (N, T, C) of 0 / 1."""
    return (logit > threshold).to(logit.dtype) * weak[:, None, :]  # (N, T, C)


def soft_labels(logit: Tensor, threshold: Tensor, weak: Tensor, temperature: float = 2.0) -> Tensor:
    """Eq. 4, sigmoid((z - theta) / temperature) * y -> (N, T, C): the farther from the threshold, the more certain.

    A threshold of -inf counts as (the lowest logit of that class among the logits given) - 1."""
    lowest = logit.amin((0, 1)) - 1  # (C,); released code: the lowest of the batch, here of the set
    threshold = torch.where(threshold == -torch.inf, lowest, threshold)
    return torch.sigmoid((logit - threshold) / temperature) * weak[:, None, :]  # released code: temperature 2


# ---- 6  Losses of the HAN (Eq. 5-9) --------------------------------------------------------------

def video_loss(video_prob: Tensor, weak: Tensor) -> Tensor:
    """L_video: BCE of the pooled probability against the weak label, (B, C) each."""
    p = video_prob.clamp(PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN)
    return -(weak * p.log() + (1 - weak) * (1 - p).log()).mean()


def class_balance(hard: Tensor, W: float = 0.5, balance_sum: bool = True) -> tuple[Tensor, Tensor]:
    """Eq. 7-8 from the hard labels (N, T, C) of the training set: rare positives weigh more than the many negatives.

    Paper: w_neg = positive rate, w_pos = W (1 - positive rate). released code: both C times that (balance_sum)."""
    rate = hard.float().mean()  # over N, T, C
    factor = hard.shape[-1] if balance_sum else 1
    return W * factor * (1 - rate), factor * rate  # w_pos, w_neg


def segment_loss(logit: Tensor, label: Tensor, weak: Tensor,
                 w_pos: float | Tensor = 1.0, w_neg: float | Tensor = 1.0) -> Tensor:
    """L_w-soft of one modality (Eq. 5-6): BCE weighted w_pos for the classes of the weak label, w_neg for the others.

    logit, label (B, T, C), weak (B, C)."""
    weight = torch.where(weak[:, None, :] > 0, w_pos, w_neg)  # (B, 1, C)
    return F.binary_cross_entropy_with_logits(logit.float(), label, weight)


def mix(x: Tensor, lam: float | Tensor, perm: Tensor) -> Tensor:
    """Each of the M segments of x (M, D) mixed with another: lam of itself, 1 - lam of the one that perm names."""
    return torch.lerp(x[perm], x, lam)  # lam x + (1 - lam) x[perm]


def mixup_loss(feat: Tensor, label: Tensor, classifier: nn.Module, lam: float | Tensor, perm: Tensor) -> Tensor:
    """L_mix of one modality: segments mixed across the batch, judged by equally mixed labels.

    feat (B, T, h), released code: the HAN's, not the teacher's as in the paper; label (B, T, C); lam, perm of mix."""
    mixed_feat, mixed_label = (mix(x.float().flatten(0, 1), lam, perm) for x in (feat, label))  # (B T, h), (B T, C)
    return F.binary_cross_entropy_with_logits(classifier(mixed_feat).float(), mixed_label)


class PseudoLabels(NamedTuple):
    """What the HAN learns from besides the weak labels: (N, T, C) labels and the weights of Eq. 7-8, per modality."""

    audio: Tensor
    visual: Tensor
    audio_weights: tuple[float | Tensor, float | Tensor] = (1.0, 1.0)  # w_pos, w_neg
    visual_weights: tuple[float | Tensor, float | Tensor] = (1.0, 1.0)

    def of(self, index: Tensor) -> PseudoLabels:
        """Those of some videos, (B, T, C)."""
        return self._replace(audio=self.audio[index], visual=self.visual[index])


LOSSES = ("loss_video", "loss_audio", "loss_visual", "loss_mix_audio", "loss_mix_visual")  # the terms of L_total


def han_losses(model: HAN, output: HANOutput, weak: Tensor, labels: PseudoLabels | None,
               mixup: list[tuple[Tensor | float, Tensor]] | None) -> Tensor:
    """The terms of L_total (Eq. 9), (5,), in the order of LOSSES; 0 if switched off.

    weak (B, C) and labels (B, T, C) are the batch's; mixup: (lam, perm) of audio and (lam, perm) of visual."""
    terms = [video_loss(output.video_prob, weak)]
    if labels is not None:
        terms += [segment_loss(output.audio_logit, labels.audio, weak, *labels.audio_weights),
                  segment_loss(output.visual_logit, labels.visual, weak, *labels.visual_weights)]
    if mixup is not None:
        terms += [mixup_loss(output.audio_feat, labels.audio, model.classifier, *mixup[0]),
                  mixup_loss(output.visual_feat, labels.visual, model.classifier, *mixup[1])]
    return torch.stack(terms + [weak.new_zeros(()) for _ in LOSSES[len(terms):]])


# ---- 7  Inference: the gate, and the ten scores --------------------------------------------------

GATE = 0.5  # a segment or video probability above it is a prediction
MIN_IOU = 0.5  # for an event to be found


def gated_predictions(video_prob: Tensor, audio_prob: Tensor, visual_prob: Tensor) -> tuple[Tensor, Tensor]:
    """Segment predictions (N, T, C) bool; a class may occur only in a video whose pooled probability (N, C) says so."""
    gate = video_prob[:, None, :] > GATE  # (N, 1, C)
    return (audio_prob > GATE) & gate, (visual_prob > GATE) & gate


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
    type: mean of these three; event: counts of a and v pooled before the F-score."""
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
    at the two runs it lies in: their IoU decides for both of them."""
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
SCORES = tuple(f"{level}_{kind}" for level in LEVELS for kind in ("a", "v", "av", "type", "event"))


# ---- 8  Training: the data in memory, the two loops, what both share -----------------------------

EVAL_BATCH = 64  # videos at a time where no gradient is needed
SEED_STRIDE = 10_000  # seeds * stride + epoch: no two epochs of any two seeds share their random numbers


@dataclass(frozen=True)
class SourceSplit:
    """One split of UnAV in memory: the segments of all videos end to end (S in total), as lengths differ."""

    audio: Tensor  # (S, 512) half
    visual: Tensor  # (S, 768) half
    label: Tensor  # (S, C) uint8
    length: np.ndarray  # (N,) segments of each video

    def batch(self, videos: np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Some videos, padded to the longest of them: audio (B, T, 512), visual (B, T, 768), label (B, T, C), all
        float, and mask (B, T) bool, True = a real segment; padding holds the first segment of all."""
        first = np.cumsum(self.length) - self.length  # (N,)
        t = np.arange(self.length[videos].max())  # (T,)
        valid = t < self.length[videos, None]  # (B, T)
        rows = torch.from_numpy(np.where(valid, first[videos, None] + t, 0)).to(self.audio.device)  # (B, T)
        mask = torch.from_numpy(valid).to(self.audio.device)
        return self.audio[rows].float(), self.visual[rows].float(), self.label[rows].float(), mask


@dataclass(frozen=True)
class TargetSplit:
    """One split of LLP (or of your own data) in memory."""

    audio: Tensor  # (N, T, Da) half
    visual_2d: Tensor  # (N, T, D2) half
    visual_3d: Tensor | None  # (N, T, D3) half
    weak: Tensor  # (N, C) float
    audio_truth: Tensor | None  # (N, T, C) uint8
    visual_truth: Tensor | None

    def inputs(self, index: Tensor | slice) -> tuple[Tensor, Tensor, Tensor | None]:
        """Float features of some videos, in the order of HAN.forward."""
        return tuple(None if x is None else x[index].float() for x in (self.audio, self.visual_2d, self.visual_3d))


def learning_rate(epoch: int, epochs: int, peak: float, minimum: float, warmup: int = 10) -> float:
    """Linear warm-up to `peak`, then a cosine down to `minimum`; epoch counts from 1."""
    if epoch < warmup:
        return epoch / warmup * peak
    progress = (epoch - warmup) / max(1, epochs - warmup)
    return minimum + (peak - minimum) / 2 * (1 + math.cos(math.pi * progress))


class Run:
    """What a training loop leaves to others. This one keeps losses and the weights of the best epoch in memory;
    train/checkpoints.py has one with files, resuming, a progress bar and --fast."""

    def begin(self, model: nn.Module, config: PretrainConfig | TrainConfig, videos: int) -> torch.optim.Optimizer:
        self.model, self.config, self.steps = model, config, math.ceil(videos / config.batch)
        self.history, self.best_score, self.best_weights = [], -math.inf, None
        self.optimizer = adamw(model, config)
        return self.optimizer

    def fast(self, function: Callable, one_shape: bool) -> Callable:
        """The same model, or function of a batch, faster; here as it is. one_shape: of all batches but the last."""
        return function

    def epochs(self) -> Iterator[tuple[int, float]]:
        """The epochs to do, with their learning rates; each has random numbers of its own: resumed, they repeat."""
        for epoch in range(len(self.history) + 1, self.config.epochs + 1):
            torch.manual_seed(self.config.seed * SEED_STRIDE + epoch)
            lr = self.config.learning_rate(epoch)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            yield epoch, lr

    def mean(self, steps: Callable[..., Iterator[Tensor]], *inputs) -> list[float]:
        """Go through an epoch, `steps(*inputs)`; the mean of its losses, a number or (K,) each."""
        return (sum(steps(*inputs)) / self.steps).reshape(-1).tolist()

    def end_epoch(self, record: dict, score: float, last_of_equals: bool = False) -> None:
        """Note an epoch; keep its weights if its score is the best so far, of equal ones the first (or the last)."""
        self.history.append(record)
        if score > self.best_score or last_of_equals and score == self.best_score:
            self.best_score = score
            self.best_weights = {k: v.detach().clone() for k, v in self.model.state_dict().items()}

    def finish(self) -> nn.Module:
        """The model of the best epoch, ready for inference."""
        self.model.load_state_dict(self.best_weights)
        return self.model.eval()


def adamw(model: nn.Module, config: PretrainConfig | TrainConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=config.peak_lr, betas=(config.beta1, config.beta2), eps=1e-8,
                             weight_decay=config.weight_decay, fused=True)


def train_teacher(data: SourceSplit, validation: SourceSplit, text: tuple[Tensor, Tensor], model_config: TeacherConfig,
                  config: PretrainConfig, run: Run | None = None) -> Teacher:
    """Pre-train the teacher (Eq. 3) and keep the epoch of best validation AV F-score."""
    run = run or Run()
    torch.manual_seed(config.seed)
    model = Teacher(model_config).to(data.audio.device)
    optimizer = run.begin(model, config, videos=len(data.length))
    forward = run.fast(model, one_shape=False)
    for epoch, lr in run.epochs():
        (loss,) = run.mean(teacher_epoch, model, forward, optimizer, data, text, config, epoch)
        scores = teacher_scores(model, validation, text)
        run.end_epoch(dict(epoch=epoch, lr=lr, loss=loss, val=scores), scores["av"])
    return run.finish()


def teacher_epoch(model: Teacher, forward: Callable, optimizer: torch.optim.Optimizer, data: SourceSplit,
                  text: tuple[Tensor, Tensor], config: PretrainConfig, epoch: int) -> Iterator[Tensor]:
    """One epoch of pre-training, step by step; yields the loss of each and never waits for a GPU."""
    rng = np.random.default_rng((config.seed, epoch))
    model.train()
    for videos in batches_by_length(data.length, config.batch, config.length_pool, rng):
        audio, visual, label, mask = data.batch(videos)  # (B, T, 512) (B, T, 768) (B, T, C) (B, T)
        audio_logit, visual_logit = forward(audio, visual, *text, mask)  # (B, T, C) each
        loss = teacher_loss(audio_logit, visual_logit, label, mask, config.pos_weight)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.detach()


def batches_by_length(length: np.ndarray, batch: int, pool: int, rng: np.random.Generator) -> list[np.ndarray]:
    """A shuffled epoch as lists of video numbers; `pool` batches at a time are sorted by length, to save padding."""
    order, batches = rng.permutation(len(length)), []
    for i in range(0, len(order), batch * pool):
        videos = order[i : i + batch * pool]
        if pool > 1:
            videos = videos[np.argsort(length[videos], kind="stable")]
        batches += np.split(videos, range(batch, len(videos), batch))
    return [batches[i] for i in rng.permutation(len(batches))]


DEAD_BRANCH = 0.25  # a spread below it; seen on the demo world: 0.09 to 0.17 dead, from 0.4 on alive


@torch.no_grad()
def teacher_scores(model: Teacher, data: SourceSplit, text: tuple[Tensor, Tensor]) -> dict[str, float]:
    """`av`, the segment-level AV F-score in percent, predictions being p_av >= 0.5; and the `spread` of each branch:
    how its logits deviate over the seconds of a video, for the classes that the video has, as a share of how they do
    over all videos. Near 0 the branch is dead: it says yes all the time, and p_a * p_v hides it."""
    model.eval()
    counts, within, logits = [], [], []
    order = np.argsort(data.length, kind="stable")  # (N,), so that padding is rare
    for videos in np.split(order, range(EVAL_BATCH, len(order), EVAL_BATCH)):
        audio, visual, label, mask = data.batch(videos)
        z = torch.stack(model(audio, visual, *text, mask))  # (2, B, T, C)
        valid = mask[..., None]  # (B, T, 1)
        pred, truth = (z.sigmoid().prod(0) >= GATE) & valid, (label > 0) & valid  # (B, T, C) each
        counts.append(segment_counts(pred.transpose(1, 2), truth.transpose(1, 2)))  # (3, B, C)
        mean, square = ((x * valid).sum(2) / mask.sum(1)[:, None] for x in (z, z**2))  # (2, B, C) each
        occurs = truth.any(1)  # (B, C)
        within.append((square - mean**2).clamp(min=0).sqrt()[:, occurs])  # (2, classes of these videos)
        logits.append(z[:, valid & occurs[:, None]])  # (2, their seconds)
    spread = torch.cat(within, 1).mean(1) / torch.cat(logits, 1).std(1, correction=0).clamp(min=1e-9)  # (2,)
    av = 100 * float(f_scores(torch.cat(counts, 1)).mean())
    return dict(zip(("av", "spread_audio", "spread_visual"), (av, *spread.tolist())))


@torch.no_grad()
def teacher_logits(model: Teacher, data: TargetSplit, text: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits of every video of a split loaded with the features `clip_clap` -> two (N, T, C)."""
    model.eval()
    pairs = [model(*data.inputs(slice(i, i + EVAL_BATCH))[:2], *text) for i in range(0, len(data.weak), EVAL_BATCH)]
    return tuple(torch.cat(x) for x in zip(*pairs))


def pseudo_labels(logits: tuple[Tensor, Tensor], thresholds: tuple[Tensor, Tensor], weak: Tensor,
                  config: TrainConfig) -> PseudoLabels | None:
    """The labels and class-balance weights that `config` asks for; None for pseudo_label = none.

    Per modality: logits (N, T, C), thresholds (C,); weak (N, C)."""
    if config.pseudo_label == "none":
        return None
    hard = [hard_labels(z, theta, weak) for z, theta in zip(logits, thresholds)]  # (N, T, C) each
    soft = [soft_labels(z, theta, weak, config.temperature) for z, theta in zip(logits, thresholds)]
    weights = [class_balance(h, config.W, config.balance_sum) for h in hard] if config.reweight else [(1.0, 1.0)] * 2
    return PseudoLabels(*(hard if config.pseudo_label == "hard" else soft), *weights)


def train_han(data: TargetSplit, validation: TargetSplit | None, labels: PseudoLabels | None, model_config: HANConfig,
              config: TrainConfig, run: Run | None = None, network: type[HAN] = HAN) -> HAN:
    """Train the HAN (Eq. 9), or a network that ends like it, and keep the epoch of best validation Type score; without
    a validation split (own data, nothing annotated), the last."""
    run = run or Run()
    if config.mixup and labels is None:
        raise ValueError("mixup needs pseudo-labels: pseudo_label = none goes with mixup = False")
    torch.manual_seed(config.seed)
    model = network(model_config).to(data.weak.device)
    optimizer = run.begin(model, config, videos=len(data.weak))
    forward, losses_of = run.fast(model, one_shape=True), run.fast(han_losses, one_shape=True)
    for epoch, lr in run.epochs():
        terms = run.mean(han_epoch, model, forward, losses_of, optimizer, data, labels, config, epoch)  # (5,)
        scores = validation and han_scores(model, validation)
        run.end_epoch(dict(epoch=epoch, lr=lr, loss=sum(terms), **dict(zip(LOSSES, terms)), val=scores),
                      scores["seg_type"] if scores else epoch)
    return run.finish()


def han_epoch(model: HAN, forward: Callable, losses_of: Callable, optimizer: torch.optim.Optimizer, data: TargetSplit,
              labels: PseudoLabels | None, config: TrainConfig, epoch: int) -> Iterator[Tensor]:
    """One epoch of training, step by step; yields the terms of the loss, (5,), of each and never waits for a GPU."""
    rng, device, T = np.random.default_rng((config.seed, epoch)), data.weak.device, data.audio.shape[1]
    order = torch.from_numpy(rng.permutation(len(data.weak))).to(device)  # (N,)
    model.train()
    for index in order.split(config.batch):
        mixup = draw_mixup(len(index) * T, config.alpha, rng, device) if config.mixup else None
        output = forward(*data.inputs(index))  # logits (B, T, C), features (B, T, h)
        losses = losses_of(model, output, data.weak[index], labels and labels.of(index), mixup)  # (5,)
        losses.sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad()
        yield losses.detach()


def draw_mixup(segments: int, alpha: float, rng: np.random.Generator,
               device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """lambda ~ Beta(alpha, alpha) and a permutation of the batch's B * T segments, for audio and for visual."""
    return [(torch.tensor(rng.beta(alpha, alpha), dtype=torch.float32, device=device),
             torch.from_numpy(rng.permutation(segments)).to(device)) for _ in range(2)]


@torch.no_grad()
def han_probabilities(model: HAN, data: TargetSplit) -> tuple[Tensor, Tensor, Tensor]:
    """Video (N, C), audio (N, T, C) and visual (N, T, C) probabilities of a whole split."""
    model.eval()
    outputs = [model(*data.inputs(slice(i, i + EVAL_BATCH))) for i in range(0, len(data.weak), EVAL_BATCH)]
    video, audio, visual = (torch.cat([o[k] for o in outputs]) for k in range(3))
    return video, audio.sigmoid(), visual.sigmoid()


def han_scores(model: HAN, data: TargetSplit) -> dict[str, float]:
    """The ten parsing scores on a split that has dense truth."""
    return parsing_scores(*gated_predictions(*han_probabilities(model, data)), data.audio_truth, data.visual_truth)


# ---- 9  Released checkpoints: weights that were trained with the authors' code -------------------

def load_released_teacher(state_dict: dict[str, Tensor], heads: int = 16) -> Teacher:
    """A teacher trained with the released code. Sizes are read off the weights; the number of heads cannot be."""
    from common.released import teacher_of, with_weights

    config, weights = teacher_of(state_dict, heads)
    return with_weights(lambda: Teacher(TeacherConfig(**config)), weights)


def load_released_han(state_dict: dict[str, Tensor], heads: int | None = None, visual_3d_dim: int | None = None) -> HAN:
    """A HAN trained with the released code, or with that of the HAN of 2020 or of VALOR. What weights do not tell is as
    published unless told: 16, 1 or 8 heads; and, of UWAV's alone, how many of the visual inputs are 3D features, 512
    where there are as many inputs as published, else none."""
    from common.released import han_of, with_weights

    config, weights = han_of(state_dict, heads, visual_3d_dim)
    return with_weights(lambda: HAN(HANConfig(**config)), weights)


if __name__ == "__main__":
    sys.modules["uwav"] = sys.modules["__main__"]  # the command line finds this very module, not a second copy
    runpy.run_module("train.cli", run_name="__main__")
