"""MGN: multi-modal grouping network (NeurIPS 2022), a backbone in the place of the HAN's.

The idea. Each class has a learnt token in each modality. Transformer blocks let a modality's seconds and class tokens
see each other; then the seconds are grouped: each is shared out among the class tokens by a softmax over the *classes*,
and each token gathers what it was given. Before that, sound is grouped once by the seconds of the pictures. A last
transformer lets the groups of both modalities see each other and groups them again.

What it changes on the HAN: `encode`, and one linear layer instead of two on the audio features. As published, MGN names
the classes of a video and hardly says when they occur: a class's score in a second is the video's, times 1.04 to 1.23.
So that UWAV's labels can teach its seconds, the features of a second are here the second itself and what its classes
gathered, handed back by the very shares it was given out in:

    f = LN(x) + A^T (g + g_av)    x seconds behind the blocks, A shares, g groups of the modality, g_av of both

Classifier and pooling are the HAN's, losses UWAV's: `uwav.train_han(..., network=MGN)`. Every part of MGN gets a
gradient, and no weight is new but the pooling's.

Source: Mo and Tian, NeurIPS 2022, read in the text of its submission; public code stoneMo/MGN at 11be034, which is
followed where nothing is said. Departures:

1. f, as above, and pooling. The published heads and losses are in tests/test_field.py, with the recorded cases.
2. The layer that mixes the tokens of the audio-visual grouping over time is left out: it ties the network to 10
   seconds, and the paper has none. `Grouping(config, tokens=10, hard=True)` is the public one.
3. Linear layers in a row on the visual features are one here: the same functions.
4. Code against paper: shares are divided by their sum + 1, there by their sum; the residual of a group is its token
   after mixing and attention, there the token itself; scores are scaled by 1 / sqrt(h), there not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from uwav import HAN, Attention, HANConfig


@dataclass(frozen=True)
class MGNConfig(HANConfig):
    hidden: int = 128
    heads: int = 8
    feedforward: int = 512
    layers: int = 3  # blocks of each modality
    cross_layers: int = 6  # blocks over the groups of both
    dropout: float = 0.1  # a branch of a block is left out for a whole video
    hard: bool = False  # groups of classes take each second whole; the audio-visual grouping does the opposite
    audio_mlp: bool = False


def mlp(size: int, inner: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, inner), nn.GELU(), nn.Linear(inner, size))


class Block(nn.Module):
    """A pre-norm transformer layer; in training a whole branch is left out for some videos."""

    def __init__(self, config: MGNConfig):
        super().__init__()
        h, self.dropout = config.hidden, config.dropout
        self.norm1, self.norm2 = nn.LayerNorm(h), nn.LayerNorm(h)
        self.attn, self.mlp = Attention(h, config.heads, 0.0), mlp(h, config.feedforward)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.drop_path(self.attn(y))
        return x + self.drop_path(self.mlp(self.norm2(x)))  # (B, L, h)

    def drop_path(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = torch.rand(x.shape[0], 1, 1, device=x.device) >= self.dropout  # (B, 1, 1)
        return x * kept / (1 - self.dropout)


class Groups(NamedTuple):
    features: Tensor  # (B, S, h)
    shares: Tensor  # (B, S, L), of each of L members; sums to 1 over the S groups
    members: Tensor  # (B, L, h), as the grouping sees them


def gumbel(x: Tensor) -> Tensor:
    """Gumbel(0, 1) noise of the shape of x."""
    return -torch.empty_like(x).exponential_().log()


class Grouping(nn.Module):
    """Shares out the members among tokens, which gather what they are given."""

    def __init__(self, config: MGNConfig, tokens: int, hard: bool):
        super().__init__()
        h, self.hard = config.hidden, hard
        self.norm_tokens, self.norm_mixed, self.norm_members = nn.LayerNorm(h), nn.LayerNorm(h), nn.LayerNorm(h)
        self.mix = mlp(tokens, h // 2) if tokens else nn.Identity()  # over the tokens, so their number is fixed
        self.attn, self.norm_attn = Attention(h, config.heads, 0.0), nn.LayerNorm(h)
        self.mlp, self.norm_query = mlp(h, config.feedforward), nn.LayerNorm(h)
        self.query, self.key, self.value, self.out = (nn.Linear(h, h) for _ in range(4))
        self.norm_out, self.mlp_out = nn.LayerNorm(h), mlp(h, config.feedforward)

    def forward(self, x: Tensor, tokens: Tensor) -> Groups:
        """Members (B, L, h) into tokens (B, S, h)."""
        x, s = self.norm_members(x), self.norm_tokens(tokens)
        s = self.norm_mixed(self.mix(s.transpose(1, 2)).transpose(1, 2))  # (B, S, h), no residual
        s = s + self.attn(s, x)  # no norm before it
        s = self.norm_query(s + self.mlp(self.norm_attn(s)))
        shares = self.share(self.query(s) @ self.key(x).transpose(1, 2) / x.shape[-1] ** 0.5)  # (B, S, L)
        given = shares @ self.value(x) / (shares.sum(-1, keepdim=True) + 1)  # public code: + 1
        g = s + self.out(given)
        return Groups(g + self.mlp_out(self.norm_out(g)), shares, x)

    def share(self, score: Tensor) -> Tensor:
        """Softmax over the groups, not over the members: (B, S, L); hard, a member goes to one group, with the gradient
        of the softmax, and in training by chance."""
        if not self.hard:
            return score.softmax(1)
        soft = (score + gumbel(score) if self.training else score).softmax(1)
        best = torch.arange(soft.shape[1], device=soft.device)[:, None] == soft.argmax(1, keepdim=True)  # (B, S, L)
        return best + (soft - soft.detach())


class MGN(HAN):
    def __init__(self, config: MGNConfig = MGNConfig()):
        super().__init__(replace(config, layers=0))  # none of the HAN's
        self.config = config
        C, h = config.classes, config.hidden
        self.audio_tokens, self.visual_tokens = (nn.Parameter(torch.zeros(C, h)) for _ in range(2))
        self.audio_blocks, self.visual_blocks, self.cross_blocks = (
            nn.Sequential(*(Block(config) for _ in range(depth)))
            for depth in (config.layers, config.layers, config.cross_layers))
        self.audio_groups, self.visual_groups, self.cross_groups = (Grouping(config, C, config.hard) for _ in range(3))
        self.merge = Grouping(config, 0, not config.hard)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def encode(self, a: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        merged, audio, visual, both = self.group(a, v)
        f_a = merged.members + audio.shares.transpose(1, 2) @ (audio.features + both.features)  # (B, T, h)
        f_v = visual.members + visual.shares.transpose(1, 2) @ (visual.features + both.features)  # (B, T, h)
        return f_a, f_v

    def group(self, a: Tensor, v: Tensor) -> tuple[Groups, Groups, Groups, Groups]:
        """Sound by the seconds of the pictures, sound by classes, pictures by classes, both modalities by classes."""
        B, T, _ = a.shape
        x_a = torch.cat([a, self.audio_tokens.expand(B, -1, -1)], 1)  # (B, T + C, h)
        x_v = torch.cat([v, self.visual_tokens.expand(B, -1, -1)], 1)
        x_a, x_v = self.audio_blocks(x_a), self.visual_blocks(x_v)
        visual = self.visual_groups(x_v[:, :T], x_v[:, T:])
        merged = self.merge(x_a[:, :T], v)  # T groups; the residual is v, so what it gives is of pictures, too
        audio = self.audio_groups(merged.features, x_a[:, T:])
        C = self.config.classes
        x = self.cross_blocks(torch.cat([audio.features, visual.features], 1))  # (B, 2 C, h)
        return merged, audio, visual, self.cross_groups(x[:, :C], x[:, C:])
