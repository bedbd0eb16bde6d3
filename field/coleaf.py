"""CoLeaF, contrastive-collaborative learning (ECCV 2024), in one file; denoising and contrast are JoMoLD's.

The idea. Cross-attention misleads where an event is in one modality alone. So in training two *references*, networks of
one modality each, stand beside the *anchor*, which has cross-attention and is all that is used afterwards. The anchor's
features are drawn to the references', the more so the more of a video's events are in one modality alone. The outer
product of its class probabilities (what occurs together) follows theirs. In return its predictions label their videos.

What it changes on the HAN: the anchor is CMPAE's network. Each modality has a presence and an absence logit, which make
a probability and an uncertainty; a joint head reads what enters the layer; 0.8 of the layer's output come with and 0.2
without cross-attention. A step trains the references, then the anchor, on labels denoised as by JoMoLD, whose estimator
also makes the noise ratios: see jomold.py, also for what they depend on.

Source: Sardari, Mustafa, Jackson, Hilton, arXiv 2405.10690; CMPAE: Gao, Chen, Xu, "Collecting Cross-Modal
Presence-Absence Evidence", CVPR 2023. All constants from public code, faeghehsardari/coleaf at a36a153, as the texts
were not to be had; a stranger's notes have another contrast (positives, direction), BCE for the references, and any HAN
as anchor. Departures of ours:

    1  one AdamW without decay in the place of three Adams: the same, as weights without a gradient are left alone
    2  packed `base` features hold the mean of a second's frames, and the mean of ELU is not ELU of the mean; with the
       frames themselves the code below is to the letter
    3  dead weights of the anchor are not here; 2 and 3 of jomold.py hold here, too
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import uwav
from field import jomold


@dataclass(frozen=True)
class CoLeaFConfig(jomold.JoMoLDConfig):
    absence_dropout: float = 0.2  # of what both modalities show together; visual_dropout is that of references, too


@dataclass(frozen=True)
class CoLeaFTraining(jomold.JoMoLDTraining):
    seed: int = 1
    epochs: int = 10
    joint_weight: float = 2.0  # of the joint head's loss; visual 1, audio 2
    cooccurrence: float = 1e-4  # weight, of a loss that is *summed*: 41 times its mean square at 128 videos, 25 classes
    audio_contrast: float = 0.009  # weight of the contrast with the audio reference
    visual_contrast: float = 1.0
    references_from: int = 2  # first epoch in which the anchor learns from the references
    anchor_from: int = 4  # first epoch in which the references learn from the anchor


# ---- The networks --------------------------------------------------------------------------------

CROSS_SHARE = 0.8  # of the features, in the pass with cross-attention
BOUND, TEMPERATURE = 10.0, 0.8  # of the logits that become evidence
LEAK = 0.2  # of LeakyReLU
CROSS_TRUST = 0.7  # at inference: of probabilities with cross-attention; the rest without


def alpha(logit: Tensor) -> Tensor:
    """Evidence + 1; so that a probability stays near 0.5 where there is little evidence."""
    return (logit.float().clamp(-BOUND, BOUND) / TEMPERATURE).exp() + 1


def opinion(logit: Tensor) -> tuple[Tensor, Tensor]:
    """Presence and absence logits (..., 2) -> probability and uncertainty (...), which is 1 without any evidence."""
    total = alpha(logit).sum(-1)
    return alpha(logit)[..., 0] / total, 2 / total


class AnchorOutput(NamedTuple):
    joint_prob: Tensor  # (B, C)
    audio_prob: Tensor  # (B, C)
    visual_prob: Tensor  # (B, C)
    audio_seconds: Tensor  # (B, T, C) probabilities
    visual_seconds: Tensor  # (B, T, C)
    joint_doubt: Tensor  # (B,) uncertainty: of the video, not of a class
    audio_doubt: Tensor  # (B, C)
    visual_doubt: Tensor  # (B, C)
    audio_feat: Tensor  # (B, T, h) of unit length, before the dropout that the heads see
    visual_feat: Tensor  # (B, T, h)


class Anchor(jomold.JoMoLD):
    """CMPAE's network: JoMoLD's input and layers; the classifier is that of presence."""

    def __init__(self, config: CoLeaFConfig):
        super().__init__(config)
        h, C = config.hidden, config.classes
        self.absence = nn.Linear(h, C)  # shared by both modalities, as the classifier
        self.audio_together, self.visual_together = nn.Linear(h, h), nn.Linear(h, h)
        self.time_pool, self.modal_pool = nn.Linear(h, 2 * C), None
        self.joint_hidden, self.joint = nn.Linear(h, h), nn.Linear(h, C)  # both serve audio and visual
        self.absence_drop = nn.Dropout(config.absence_dropout)

    def forward(self, audio: Tensor, visual_2d: Tensor, visual_3d: Tensor | None = None,
                cross: bool = True) -> AnchorOutput:
        """As HAN.forward; cross = False: self-attention only."""
        a0, v0 = self.project(audio, visual_2d, visual_3d)  # (B, T, h) each
        a, v = self.encode(a0, v0, False)
        if cross:  # two runs of the same layers on the same input, mixed as features
            a, v = (CROSS_SHARE * x + (1 - CROSS_SHARE) * y for x, y in zip(self.encode(a0, v0, True), (a, v)))
        joint_prob, joint_doubt = self.joint_head(a0, v0)
        feats = F.normalize(a, dim=-1), F.normalize(v, dim=-1)  # (B, T, h) each
        v = self.visual_drop(v)
        audio_prob, audio_doubt, audio = self.judge(a, self.audio_together(a + v))
        visual_prob, visual_doubt, visual = self.judge(v, self.visual_together(a + v))
        return AnchorOutput(joint_prob, audio_prob, visual_prob, audio, visual, joint_doubt, audio_doubt, visual_doubt,
                            *feats)

    def project(self, audio: Tensor, visual_2d: Tensor, visual_3d: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """JoMoLD's linear maps, each with ELU, of each frame *before* the mean of its second -> (B, T, h) each."""
        inputs = zip(self.visual_proj.parts, (visual_2d, visual_3d))
        visual = [F.elu(part(x)).unflatten(1, (audio.shape[1], -1)).mean(2) for part, x in inputs]  # (B, T, h) each
        return F.elu(self.audio_proj(audio)), F.elu(self.visual_proj.fusion(torch.cat(visual, -1)))

    def joint_head(self, a: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Probability (B, C) and uncertainty (B,) of the video, from what enters the layers."""
        logit = self.joint(sum(F.leaky_relu(self.joint_hidden(x), LEAK) for x in (a, v))).float()  # (B, T, C)
        return logit.sigmoid().mean(1), logit.shape[-1] / alpha(logit.mean(1)).sum(-1)

    def judge(self, x: Tensor, together: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of one modality, probability and uncertainty pooled over time, (B, C) each, and probabilities (B, T, C), from
        its own features and what both show together, (B, T, h) each."""
        absence = self.absence(x + F.leaky_relu(self.absence_drop(together), LEAK))
        logit = torch.stack([self.classifier(x), absence], -1).float()  # (B, T, C, 2)
        weight = self.time_pool(x).unflatten(-1, (-1, 2)).float().softmax(1)  # (B, T, C, 2): class by class, not (2, C)
        return *opinion((weight * logit).sum(1)), opinion(logit)[0]  # pooled are the logits, not the evidence


ReferenceOutput = namedtuple("ReferenceOutput", ("prob", "token_prob", "feat"))  # (B, C) twice; (B, T, h), length 1


class Reference(nn.Module):
    """One modality, a token per class before its seconds, self-attention only (the layer's cross-attention is unused).
    The tokens learn next to nothing: they begin equal, and the mean of a LayerNorm's output is about 0, whatever goes
    in; so their probabilities hardly tell one class from another."""

    def __init__(self, proj: nn.Module, config: CoLeaFConfig, dropped_weights: bool):
        super().__init__()
        h, C = config.hidden, config.classes
        self.proj, self.dropped_weights = proj, dropped_weights
        self.tokens = nn.Parameter(torch.zeros(C, h))
        self.layers = nn.ModuleList(jomold.Layer(config) for _ in range(config.layers))
        self.classifier, self.time_pool, self.drop = nn.Linear(h, C), nn.Linear(h, C), nn.Dropout(config.visual_dropout)

    def forward(self, x: Tensor) -> ReferenceOutput:
        C = len(self.tokens)
        x = torch.cat([self.tokens.expand(len(x), -1, -1), self.proj(x)], 1)  # (B, T, D) -> (B, C + T, h)
        for layer in self.layers:
            x = layer.alone(x)
        tokens, x = x[:, :C], x[:, C:]  # (B, C, h), (B, T, h)
        dropped = self.drop(x)
        prob = jomold.pool_time(self.time_pool(dropped if self.dropped_weights else x), self.classifier(dropped))
        return ReferenceOutput(prob, tokens.mean(2).sigmoid(), F.normalize(x, dim=-1))


class CoLeaF(nn.Module):
    def __init__(self, config: CoLeaFConfig = CoLeaFConfig()):
        super().__init__()
        self.config = config
        self.anchor = Anchor(config)
        self.audio_reference = Reference(nn.Linear(config.audio_dim, config.hidden), config, dropped_weights=False)
        self.visual_reference = Reference(jomold.VisualInput(config), config, dropped_weights=True)  # without ELU

    def forward(self, audio: Tensor, visual_2d: Tensor, visual_3d: Tensor | None = None) -> tuple[Tensor, ...]:
        """The anchor's probabilities, the first five of AnchorOutput, of both passes together."""
        passes = (self.anchor(audio, visual_2d, visual_3d, cross)[:5] for cross in (True, False))
        return tuple(CROSS_TRUST * x + (1 - CROSS_TRUST) * y for x, y in zip(*passes))


# ---- Losses --------------------------------------------------------------------------------------

ASL_MARGIN, ASL_FLOOR = 0.05, 1e-8
TOKENS = (1.2, 0.001), (1.0, 0.0)  # of audio, visual: weight of the tokens' loss, before and after `anchor_from`
CUTS = 0.5, 0.6  # of audio, visual: an anchor's probability from which it labels the reference
AUDIO_TRUST, VISUAL_TRUST = (0.1, 0.8), (0.4, 0.6)  # a reference is trusted below the first and above the second
LEAST_DOUBT = 0.9  # of the joint head
LOSSES = ("loss_audio", "loss_visual", "loss_joint", "loss_contrast", "loss_mutual", "loss_together_audio",
          "loss_together_visual", "loss_to_audio_reference", "loss_to_visual_reference",  # so far the anchor's
          "loss_audio_reference", "loss_visual_reference")


def asymmetric_loss(p: Tensor, y: Tensor) -> Tensor:
    """BCE in which what is already right weighs less, (B, C) each; summed over batch and classes, not averaged."""
    q = (1 - p + ASL_MARGIN).clamp(max=1)
    weight = (1 - (p * y + q * (1 - y))).detach()  # both gammas 1
    return -(weight * (y * p.clamp(min=ASL_FLOOR).log() + (1 - y) * q.clamp(min=ASL_FLOOR).log())).sum()


def reference_loss(output: ReferenceOutput, target: Tensor, anchor_label: Tensor, tokens: tuple[float, float],
                   learns: bool) -> Tensor:
    """Of one reference; learns: half of it from the anchor's labels (B, C)."""
    own, by_token = (asymmetric_loss(p, target) for p in (output.prob, output.token_prob))
    if not learns:
        return own + tokens[0] * by_token
    return (own + asymmetric_loss(output.prob, anchor_label)) / 2 + tokens[1] * by_token


def unaligned_share(own: Tensor, other: Tensor) -> Tensor:
    """Of the classes that one modality has, those that the other has not: (B, C) each -> (B, 1)."""
    has = own >= uwav.GATE
    return (has & (other < uwav.GATE)).sum(1, keepdim=True) / has.sum(1, keepdim=True).clamp(min=1)


def cooccurrence_goal(prob: Tensor, reference: Tensor, target: Tensor, trust: tuple[float, float]) -> Tensor:
    """The reference's probability where it is sure, else the anchor's own; a target of 0.95 or 0.05 blends. (B, C)"""
    k = ((reference <= trust[0]) | (reference >= trust[1])) * target
    return k * reference + (1 - k) * prob.detach()


def cooccurrence_loss(prob: Tensor, goal: Tensor) -> Tensor:
    """Outer products of class probabilities, (B, C) each: a sum *times* B / C, not divided by B."""
    outer, goal_outer = (x[:, :, None] * x[:, None, :] for x in (prob, goal))  # (B, C, C) each
    return prob.shape[0] / prob.shape[1] * (goal_outer - outer).square().sum()


def mutual_loss(joint: Tensor, audio: Tensor, visual: Tensor, output: AnchorOutput, weak: Tensor, odd: bool) -> Tensor:
    """CMPAE: joint and modality predictions (B, C) teach each other, in odd batches the joint, in even the modalities.
    The weights keep their gradient: the loss raises the uncertainties, too."""
    louder = torch.where(audio > visual, output.audio_doubt, output.visual_doubt)
    goal = torch.where(weak > 0, torch.maximum(audio, visual), (audio + visual) / 2)
    trust = 1 - torch.where(weak > 0, louder, (output.audio_doubt + output.visual_doubt) / 2)
    doubt = output.joint_doubt.clamp(min=LEAST_DOUBT)[:, None]  # (B, 1)
    if odd:
        return (doubt * trust * (joint - goal.detach()).square()).mean()
    return ((1 - doubt) * trust * (joint.detach() - goal).square()).mean()


def anchor_losses(output: AnchorOutput, references: tuple[ReferenceOutput, ReferenceOutput], weak: Tensor,
                  targets: tuple[Tensor, Tensor], odd: bool) -> Tensor:
    """The anchor's of LOSSES, (9,), unweighted. Joint head and mutual loss see the weak label, never denoised."""
    joint, audio, visual = (p.clamp(uwav.PROBABILITY_MARGIN, 1 - uwav.PROBABILITY_MARGIN) for p in output[:3])  # (B, C)
    (S_a, _, R_a), (S_v, _, R_v) = references
    return torch.stack([
        uwav.video_loss(audio, targets[0]), uwav.video_loss(visual, targets[1]), uwav.video_loss(joint, weak),
        jomold.contrast(output.audio_feat, output.visual_feat),
        mutual_loss(joint, audio, visual, output, weak, odd),
        cooccurrence_loss(audio, cooccurrence_goal(audio, S_a, targets[0], AUDIO_TRUST)),
        cooccurrence_loss(visual, cooccurrence_goal(visual, S_v, targets[1], VISUAL_TRUST)),
        jomold.contrast(R_a, output.audio_feat, unaligned_share(S_a, S_v)),  # the reference asks, the anchor answers:
        jomold.contrast(R_v, output.visual_feat, unaligned_share(S_v, S_a))])  # transposed it is another loss


# ---- Training ------------------------------------------------------------------------------------

def train(data: uwav.TargetSplit, validation: uwav.TargetSplit | None, ratios: tuple[Tensor, Tensor],
          model_config: CoLeaFConfig, config: CoLeaFTraining, run: uwav.Run | None = None) -> CoLeaF:
    """Noise ratios: jomold.noise_ratios, (C,) each. Kept: the epoch of the best mean of the ten `only_scores` on the
    validation split, of equals the last; without that split, the last."""
    run = run or uwav.Run()
    torch.manual_seed(config.seed)
    model = CoLeaF(model_config).to(data.weak.device)
    optimizer = run.begin(model, config, videos=len(data.weak))
    forwards = [run.fast(x, one_shape=False) for x in model.children()]  # no CUDA graphs: outputs outlive the next call
    for epoch, lr in run.epochs():
        terms = run.mean(train_epoch, model, forwards, optimizer, data, ratios, config, epoch)  # (11,)
        scores = validation and only_scores(*predictions(model, validation), validation.audio_truth,
                                            validation.visual_truth)
        run.end_epoch(dict(epoch=epoch, lr=lr, loss=sum(terms), **dict(zip(LOSSES, terms)), val=scores),
                      sum(scores.values()) / len(scores) if scores else epoch, last_of_equals=True)
    return run.finish()


def train_epoch(model: CoLeaF, forwards: list[Callable], optimizer: torch.optim.Optimizer, data: uwav.TargetSplit,
                ratios: tuple[Tensor, Tensor], config: CoLeaFTraining, epoch: int) -> Iterator[Tensor]:
    """One epoch, step by step; yields the weighted losses of anchor, (9,), and references, (2,), of each."""
    rng, T = np.random.default_rng((config.seed, epoch)), data.audio.shape[1]
    order = torch.from_numpy(rng.permutation(len(data.weak))).to(data.weak.device)  # (N,)
    anchor, *references = forwards
    learns, follows = epoch >= config.anchor_from, float(epoch >= config.references_from)
    weights = data.weak.new_tensor([
        config.audio_weight, 1, config.joint_weight, 1, 1, follows * config.cooccurrence, follows * config.cooccurrence,
        follows * config.audio_contrast, follows * config.visual_contrast])  # (9,)
    model.train()  # for all passes: those without gradient draw dropout, too
    for number, index in enumerate(order.split(config.batch)):
        inputs, weak = data.inputs(index), data.weak[index]  # weak (B, C)
        visual = [x.unflatten(1, (T, -1)).mean(2) for x in inputs[1:] if x is not None]  # (B, T, D2), (B, T, D3)
        by_modality = inputs[0], torch.cat(visual, -1)
        with torch.no_grad():  # denoised targets, and what the anchor tells the references
            alone, both = anchor(*inputs, False)[1:3], anchor(*inputs, True)[1:3]  # probabilities, (B, C) each
        targets = jomold.refine_labels(alone, weak, jomold.in_force(ratios, epoch))
        labels = [(p >= cut) * y for p, cut, y in zip(both, CUTS, targets)]

        outputs = [reference(x) for reference, x in zip(references, by_modality)]
        told = torch.stack([reference_loss(*x, learns) for x in zip(outputs, targets, labels, TOKENS)])  # (2,)
        told.sum().backward()
        optimizer.step()
        optimizer.zero_grad()

        with torch.no_grad():
            outputs = [reference(x) for reference, x in zip(references, by_modality)]  # with the new weights
        terms = weights * anchor_losses(anchor(*inputs, True), outputs, weak, targets, odd=number % 2 == 1)  # (9,)
        terms.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        yield torch.cat([terms, told]).detach()  # (11,)


# ---- Decision ------------------------------------------------------------------------------------

GATES = 0.52, 0.25  # of the modality in the video, and in a second: so low because of the 1 in alpha


def predictions(model: CoLeaF, data: uwav.TargetSplit) -> tuple[Tensor, Tensor]:
    """Audible and visible, bool (N, T, C) each, by CoLeaF's own rule, which leaves the joint head out."""
    _, audio, visual, audio_seconds, visual_seconds = jomold.outputs(model, data)
    return jomold.gated(audio, audio_seconds, *GATES), jomold.gated(visual, visual_seconds, *GATES)


def joint(model: CoLeaF, data: uwav.TargetSplit) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities of video (N, C; the joint head's), audio and visual (N, T, C), for UWAV's gate."""
    video, _, _, audio, visual = jomold.outputs(model, data)
    return video, audio, visual


def only_scores(audio_pred: Tensor, visual_pred: Tensor, audio_truth: Tensor, visual_truth: Tensor,
                scores_of: Callable = uwav.parsing_scores) -> dict:
    """The ten scores with A and V of what is in that modality *alone* (Ao, Vo), in predictions and truth; AV as ever.
    Type and Event follow: Event pools audible only and visible only. Arrays as of scores_of, which may be
    uwav.video_scores, too."""
    pa, pv, ta, tv = (torch.as_tensor(x) > 0 for x in (audio_pred, visual_pred, audio_truth, visual_truth))
    scores, usual = scores_of(pa & ~pv, pv & ~pa, ta & ~tv, tv & ~ta), scores_of(pa, pv, ta, tv)
    for level in uwav.LEVELS:
        scores[f"{level}_av"] = usual[f"{level}_av"]
        scores[f"{level}_type"] = sum(scores[f"{level}_{kind}"] for kind in ("a", "v", "av")) / 3
    return scores
