"""JoMoLD, joint-modal label denoising (ECCV 2022), in one file.

The idea. A weak label holds in at least one modality, often not in both. So each modality gets a video-level loss of
its own. In every batch, class by class, visual labels go whose video has a large visual and a small audio loss, and
audio labels the other way round. How many, the *noise ratio* of a class and modality says. It is estimated once, from a
first network that knows no other modality: train without ratios, noise_ratios, train with them.

What it changes on the HAN: one layer, one head, no MLP on audio, a switch that leaves cross-attention out, dropout on
the visual features before the heads, a pooled probability for each modality besides the video's, and the gate.

What goes depends on class frequency and batch: k = ratio x (positives in the batch), cut to a whole number. On LLP nine
in ten visual labels removed are Speech's, which half of all videos have. On other data, too, a class in over about half
of the videos loses nearly all its visual labels, whatever is true.

Source: Cheng, Liu, Zhou, Qian, Wu, Wang, arXiv 2204.11573; all constants from its public code, MCG-NJU/JoMoLD at
a7dc2d5, as the text was not to be had. Departures of ours:

    1  noise_ratios compares with the mean over all videos, not with the mean of the means of unequal batches
    2  two LayerNorms that are made and never used there are not here; random numbers are drawn in another order
    3  without 3D features the fusion reads the 2D features alone; nothing is published for that
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import uwav


@dataclass(frozen=True)
class JoMoLDConfig(uwav.HANConfig):
    heads: int = 1
    feedforward: int = 512
    layers: int = 1
    audio_first: bool = False  # both modalities read what entered the layer
    audio_mlp: bool = False
    visual_dropout: float = 0.5  # of the visual features, before the heads


@dataclass(frozen=True)
class JoMoLDTraining:
    seed: int = 6  # all fields hold for both networks
    epochs: int = 25
    batch: int = 128  # videos; what is removed depends on it
    peak_lr: float = 5e-4
    beta1: float = 0.9  # of AdamW, which without decay is Adam
    beta2: float = 0.999
    weight_decay: float = 0.0
    lr_epochs: int = 6  # the rate falls after every so many, without warm-up
    lr_factor: float = 0.25
    audio_weight: float = 2.0  # of the audio loss; 1 for the estimator
    fast: bool = False  # bf16, and compiled on a GPU: common/devices.py

    def learning_rate(self, epoch: int) -> float:
        return self.peak_lr * self.lr_factor ** ((epoch - 1) // self.lr_epochs)


# ---- The network ---------------------------------------------------------------------------------

class Layer(uwav.HANLayer):
    def alone(self, x: Tensor) -> Tensor:
        """The same layer without cross-attention."""
        return self.feedforward(self.norm(x + self.drop(self.self_attn(x))))  # (B, T, h)


class VisualInput(nn.Module):
    """A linear map of the 2D features, one of the 3D features, one of both results. As nothing bends, the mean of a
    second's frames may come first, as in HAN.project, or last, as in the public code."""

    def __init__(self, config: JoMoLDConfig):
        super().__init__()
        if not config.project_visual:
            raise ValueError("JoMoLD and CoLeaF project their visual features: project_visual = False is not for them")
        self.sizes = [size for size in (config.visual_2d_dim, config.visual_3d_dim) if size]
        self.parts = nn.ModuleList(nn.Linear(size, config.hidden) for size in self.sizes)
        self.fusion = nn.Linear(len(self.sizes) * config.hidden, config.hidden)

    def forward(self, visual: Tensor) -> Tensor:
        parts = [part(x) for part, x in zip(self.parts, visual.split(self.sizes, -1))]  # (B, T, h) each
        return self.fusion(torch.cat(parts, -1))  # (B, T, D2 + D3) -> (B, T, h)


# HANOutput, and what denoising looks at: probabilities (B, C) of the video, pooled over time within a modality.
JoMoLDOutput = namedtuple("JoMoLDOutput", (*uwav.HANOutput._fields, "audio_prob", "visual_prob"))


def pool_time(weight: Tensor, logit: Tensor) -> Tensor:
    """Probability of one modality, <= 1, from logits of time and class, (B, T, C) each -> (B, C)."""
    return (weight.float().softmax(1) * logit.float().sigmoid()).sum(1)


class JoMoLD(uwav.HAN):
    def __init__(self, config: JoMoLDConfig = JoMoLDConfig()):
        super().__init__(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.visual_proj = VisualInput(config)
        self.visual_drop = nn.Dropout(config.visual_dropout)

    def forward(self, audio: Tensor, visual_2d: Tensor, visual_3d: Tensor | None = None,
                cross: bool = True) -> JoMoLDOutput:
        """As HAN.forward; cross = False: self-attention only."""
        a, v = self.encode(*self.project(audio, visual_2d, visual_3d), cross)  # (B, T, h) each
        dropped = self.visual_drop(v)  # for the classifier and both poolings, not for the contrast
        output = self.head(a, dropped)._replace(visual_feat=v)
        audio_prob = pool_time(self.time_pool(a), output.audio_logit)  # (B, C)
        visual_prob = pool_time(self.time_pool(dropped), output.visual_logit)  # (B, C)
        return JoMoLDOutput(*output, audio_prob, visual_prob)

    def encode(self, a: Tensor, v: Tensor, cross: bool = True) -> tuple[Tensor, Tensor]:
        if cross:
            return super().encode(a, v)
        for layer in self.layers:
            a, v = layer.alone(a), layer.alone(v)
        return a, v  # (B, T, h) each


# ---- Losses and labels ---------------------------------------------------------------------------

VISUAL_SMOOTHING = 0.9  # visual targets are 0.95 and 0.05; audio targets are not smoothed
TEMPERATURE = 0.2  # of the contrast
OWN_SECOND = 0.9  # share of the contrast's goal; the video's other seconds have the rest
AUDIO_DOUBT, VISUAL_DOUBT = 0.6, 1.8  # a positive below so many times the class's mean probability counts as noise
LOSSES = ("loss_audio", "loss_visual", "loss_video", "loss_contrast")


def targets(weak: Tensor) -> tuple[Tensor, Tensor]:
    """Of audio and visual, (B, C) each."""
    return weak, VISUAL_SMOOTHING * weak + (1 - VISUAL_SMOOTHING) / 2


def contrast(asks: Tensor, answers: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """Each second of `asks` shall find its own among the seconds that `answers` has of the same video. One direction
    only, never across videos. (B, T, h) each, of unit length; weight (B, 1)."""
    T = asks.shape[1]
    q = (asks.float() @ answers.float().mT / TEMPERATURE).softmax(2)  # (B, T, T), over the seconds of `answers`
    own = q.diagonal(dim1=1, dim2=2)  # (B, T)
    mixed = OWN_SECOND * own + (1 - OWN_SECOND) / max(1, T - 1) * (q.sum(2) - own)  # smoothed inside the logarithm
    return -(weight * mixed.log()).mean()


def losses(output: JoMoLDOutput, weak: Tensor, audio_target: Tensor, visual_target: Tensor) -> Tensor:
    """Those of LOSSES, (4,). The video's target is the weak label, never denoised."""
    return torch.stack([
        uwav.video_loss(output.audio_prob, audio_target), uwav.video_loss(output.visual_prob, visual_target),
        uwav.video_loss(output.video_prob, weak),
        contrast(F.normalize(output.audio_feat, dim=-1), F.normalize(output.visual_feat, dim=-1))])


def noise_ratio(prob: Tensor, mean: Tensor, weak: Tensor, doubt: float) -> Tensor:
    """Share of a class's positives that are doubtful, (C,) double. prob, weak (N, C); mean (C,) over all videos, not
    over the positives: so it depends on how frequent the class is."""
    positive = weak > 0
    return (positive & (prob / mean < doubt)).sum(0).double() / positive.sum(0).clamp(min=1)


def noise_ratios(model: JoMoLD, data: uwav.TargetSplit) -> tuple[Tensor, Tensor]:
    """Of audio and visual, (C,) each, from the estimator and the training videos."""
    audio, visual = outputs(model, data, False)[5:]  # (N, C) each
    smoothed = (1 + VISUAL_SMOOTHING) / 2 * visual  # public code: times the smoothed target, so in truth 1.895 x mean
    return (noise_ratio(audio, audio.mean(0), data.weak, AUDIO_DOUBT),
            noise_ratio(smoothed, visual.mean(0), data.weak, VISUAL_DOUBT))


def refine_labels(probs: tuple[Tensor, Tensor], weak: Tensor, ratios: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Targets of a batch without the labels that look wrong. Probabilities and weak (B, C), ratios (C,) double.

    Per class, among its positives: a visual label goes if its video is among the k of smallest audio loss *and* among
    the k of largest visual loss. Both choices see the labels before any removal; a label may go in both."""
    audio_target, visual_target = targets(weak)
    audio_loss, visual_loss = (F.binary_cross_entropy_with_logits(p.logit(uwav.PROBABILITY_MARGIN), y, reduction="none")
                               for p, y in zip(probs, (audio_target, visual_target)))  # (B, C) each
    audio_k, visual_k = ((ratio * (weak > 0).sum(0)).long() for ratio in ratios)  # (C,); in double, then cut

    def lowest(loss: Tensor, k: Tensor) -> Tensor:  # is it among the k lowest of the positives?
        order = loss.masked_fill(weak == 0, torch.inf).argsort(dim=0, stable=True)
        return order.argsort(0) < k  # (B, C)

    no_audio = lowest(-audio_loss, audio_k) & lowest(visual_loss, audio_k)
    no_visual = lowest(audio_loss, visual_k) & lowest(-visual_loss, visual_k)
    return audio_target.masked_fill(no_audio, 0.0), visual_target.masked_fill(no_visual, 0.0)  # 0, not 0.05


def in_force(ratios: tuple[Tensor, Tensor], epoch: int) -> tuple[Tensor, Tensor]:
    """No ramp: the public code means one over the first 0.9 epochs, but multiplies the already multiplied ratios, and
    the first factor is 0. So epoch 1 removes nothing, and from epoch 2 on the full ratios hold."""
    return ratios if epoch > 1 else tuple(map(torch.zeros_like, ratios))


# ---- Training ------------------------------------------------------------------------------------

def train(data: uwav.TargetSplit, validation: uwav.TargetSplit | None, ratios: tuple[Tensor, Tensor] | None,
          model_config: JoMoLDConfig, config: JoMoLDTraining, run: uwav.Run | None = None) -> JoMoLD:
    """A new network, which takes over the ratios only; None: the first, without cross-attention in training, validation
    and all later use, no label removed. Kept: the epoch of best event-level audio F on the validation split, of equals
    the last; without that split, the last."""
    run = run or uwav.Run()
    torch.manual_seed(config.seed)
    model = JoMoLD(model_config).to(data.weak.device)
    optimizer = run.begin(model, config, videos=len(data.weak))
    forward, cross = run.fast(model, one_shape=True), ratios is not None
    for epoch, lr in run.epochs():
        terms = run.mean(train_epoch, model, forward, optimizer, data, ratios, config, epoch)  # (4,)
        scores = validation and uwav.parsing_scores(*predictions(model, validation, cross), validation.audio_truth,
                                                    validation.visual_truth)
        run.end_epoch(dict(epoch=epoch, lr=lr, loss=sum(terms), **dict(zip(LOSSES, terms)), val=scores),
                      scores["event_a"] if scores else epoch, last_of_equals=True)
    return run.finish()


def train_epoch(model: JoMoLD, forward: Callable, optimizer: torch.optim.Optimizer, data: uwav.TargetSplit,
                ratios: tuple[Tensor, Tensor] | None, config: JoMoLDTraining, epoch: int) -> Iterator[Tensor]:
    """One epoch, step by step; yields the weighted losses, (4,), of each."""
    rng, cross = np.random.default_rng((config.seed, epoch)), ratios is not None
    order = torch.from_numpy(rng.permutation(len(data.weak))).to(data.weak.device)  # (N,)
    weights = data.weak.new_tensor([config.audio_weight if cross else 1.0, 1.0, 1.0, 1.0])  # (4,)
    model.train()  # for both passes: the one without gradient draws its own dropout, too
    for index in order.split(config.batch):
        inputs, weak, labels = data.inputs(index), data.weak[index], targets(data.weak[index])  # (B, C) each
        if cross:
            with torch.no_grad():
                alone = forward(*inputs, False)  # without cross-attention: what each modality knows by itself
            labels = refine_labels(alone[5:], weak, in_force(ratios, epoch))  # for this step only
        terms = weights * losses(forward(*inputs, cross), weak, *labels)  # (4,)
        terms.sum().backward()  # and no clipping
        optimizer.step()
        optimizer.zero_grad()
        yield terms.detach()


# ---- Decision ------------------------------------------------------------------------------------

@torch.no_grad()
def outputs(model: nn.Module, data: uwav.TargetSplit, *cross: bool) -> tuple[Tensor, ...]:
    """All that a network gives, of a whole split."""
    model.eval()
    starts = range(0, len(data.weak), uwav.EVAL_BATCH)
    batches = [model(*data.inputs(slice(i, i + uwav.EVAL_BATCH)), *cross) for i in starts]
    return tuple(torch.cat(x) for x in zip(*batches))


def predictions(model: JoMoLD, data: uwav.TargetSplit, cross: bool = True) -> tuple[Tensor, Tensor]:
    """Audible and visible, bool (N, T, C) each, by JoMoLD's own rule."""
    _, audio_logit, visual_logit, _, _, audio, visual = outputs(model, data, cross)
    return gated(audio, audio_logit.sigmoid()), gated(visual, visual_logit.sigmoid())


def gated(pooled: Tensor, prob: Tensor, video_gate: float = uwav.GATE, segment_gate: float = uwav.GATE) -> Tensor:
    """(N, C), (N, T, C) -> bool (N, T, C). The modality itself decides, and with >=; for UWAV the video, and with >."""
    return (prob >= segment_gate) & (pooled >= video_gate)[:, None, :]


joint = uwav.han_probabilities  # of video (N, C), audio and visual (N, T, C), for UWAV's gate
