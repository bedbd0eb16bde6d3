"""MM-Pyramid: a multimodal pyramid of attention and convolution (ACM MM 2022), a backbone in the place of the HAN's.

The idea. Events last one second or ten, so look at several reaches: four units, one upon the other, in which a second
sees those up to 1, 2, 4 and 8 seconds away. A unit attends to its own modality and to the other one, weighs the two by
learnt gates, and convolves over time, at a dilation as large as its reach. What the units give, four vectors a second,
attend to each other and are summed by gates once more. Classifier and pooling are the HAN's, to the letter.

What it changes on the HAN: `encode`, and one linear layer instead of two on the audio features. UWAV's labels and
losses train it as they are: `uwav.train_han(..., network=MMPyramid)`. What its authors used: tests/test_field.py.

Source: Yu et al., arXiv 2111.12374, of which no more than the abstract was to be had; public code JustinYuu/MM_Pyramid
at 1c641a5 (MIT), which is followed where nothing is said. Departures:

1. There the two streams are exchanged behind the encoder, so that "audio" is predicted from the stream of pictures.
   Here they are not; neither are they in LEAP's public code, which has this encoder.
2. Three linear layers in a row on the visual features are one here: the same functions.
3. Feed-forward layers start different from one another; there all of them start as copies of one.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uwav import HAN, HANConfig


@dataclass(frozen=True)
class MMPyramidConfig(HANConfig):
    heads: int = 8
    feedforward: int = 512
    layers: int = 4  # units; the reach of the n-th is 2^n seconds, n from 0
    dropout: float = 0.2
    attention_dropout: float = 0.1  # of attention weights
    audio_mlp: bool = False


class Layer(nn.Module):
    """Attention from x to source, then a feed-forward layer, each added to x."""

    def __init__(self, config: MMPyramidConfig):
        super().__init__()
        h, self.heads, self.attention_dropout = config.hidden, config.heads, config.attention_dropout
        if h % self.heads:
            raise ValueError(f"hidden = {h} cannot be divided among heads = {self.heads}")
        self.query = nn.Linear(h, h)
        self.key, self.value, self.out = (copy.deepcopy(self.query) for _ in range(3))  # equal at first, as published
        self.norm1, self.norm2, self.drop = nn.LayerNorm(h), nn.LayerNorm(h), nn.Dropout(config.dropout)
        self.linear1, self.linear2 = nn.Linear(h, config.feedforward), nn.Linear(config.feedforward, h)

    def forward(self, x: Tensor, source: Tensor, near: Tensor | None = None) -> Tensor:
        """x, source (B, T, h); near (T, T) bool, True = second i sees second j, None = it sees all -> (B, T, h)."""
        # Only queries are normalised, in self-attention, too: keys and values are of x as it came.
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (
            self.query(self.norm1(x)), self.key(source), self.value(source)))  # (B, H, T, h / H) each
        y = F.scaled_dot_product_attention(q, k, v, near, self.attention_dropout if self.training else 0.0)
        x = x + self.drop(self.out(y.transpose(1, 2).flatten(2)))
        return x + self.drop(self.linear2(self.drop(F.relu(self.linear1(self.norm2(x))))))  # no norm at the end


class Stream(nn.Module):
    """What a modality has of its own in a unit."""

    def __init__(self, config: MMPyramidConfig, reach: int):
        super().__init__()
        h = config.hidden
        self.attention, self.gates = Layer(config), nn.Linear(2 * h, 2 * h)
        self.conv3 = nn.Conv1d(h, h, 3, padding=reach, dilation=reach)  # sees t - reach, t and t + reach
        self.conv1 = nn.Conv1d(h, h, 1)

    def forward(self, x: Tensor, cross: Tensor, near: Tensor) -> Tensor:
        own = self.attention(x, x, near)  # (B, T, h)
        g_own, g_cross = self.gates(torch.cat([own, cross], -1)).sigmoid().chunk(2, -1)  # need not sum to 1
        x = (g_own * own + g_cross * cross).transpose(1, 2)  # (B, h, T)
        return F.relu(x + self.conv1(F.relu(self.conv3(x)))).transpose(1, 2)  # (B, T, h)


class Unit(nn.Module):
    """Both modalities, within a reach of some seconds."""

    def __init__(self, config: MMPyramidConfig, reach: int):
        super().__init__()
        self.reach, self.cross = reach, Layer(config)  # one for both directions
        self.audio, self.visual = Stream(config, reach), Stream(config, reach)

    def forward(self, a: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        t = torch.arange(a.shape[1], device=a.device)
        near = (t[:, None] - t).abs() <= self.reach  # (T, T)
        a_cross, v_cross = self.cross(a, v, near), self.cross(v, a, near)  # from what came in, not from self-attention
        return self.audio(a, a_cross, near), self.visual(v, v_cross, near)  # (B, T, h) each


class Fusion(nn.Module):
    """One vector a second out of those of all L units."""

    def __init__(self, config: MMPyramidConfig):
        super().__init__()
        self.layer, self.gate = Layer(config), nn.Linear(config.hidden, 1)

    def forward(self, levels: tuple[Tensor, ...]) -> Tensor:
        x = torch.stack(levels, 2)  # (B, T, L, h)
        x = self.layer(*[x.flatten(0, 1)] * 2).view_as(x)  # the levels of a second see each other
        return (self.gate(x).sigmoid() * x).sum(2)  # (B, T, h); the gates of the levels need not sum to 1


class MMPyramid(HAN):
    def __init__(self, config: MMPyramidConfig = MMPyramidConfig()):
        super().__init__(replace(config, layers=0))  # none of the HAN's
        self.config = config
        self.layers = nn.ModuleList(Unit(config, 2**n) for n in range(config.layers))
        self.audio_fusion, self.visual_fusion = Fusion(config), Fusion(config)

    def encode(self, a: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        levels = []
        for unit in self.layers:
            a, v = unit(a, v)  # (B, T, h) each
            levels.append((a, v))
        audio, visual = zip(*levels)
        return self.audio_fusion(audio), self.visual_fusion(visual)
