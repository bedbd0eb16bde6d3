"""The arrays that uwav.py trains on: whole splits in memory, in half precision, on the device that trains.

Nothing is read during training. Shapes: N videos in a split, B in a batch, T segments, C classes, D feature size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from files import read_array

# Feature set -> names of (audio, visual 2D, visual 3D) arrays in a packed folder.
FEATURE_SETS = {"base": ("vggish", "res152", "r2plus1d_18"), "clip_clap": ("clap", "clip", None)}


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


def load_target(folder: str | Path, split: str, features: str, device: str | torch.device) -> TargetSplit:
    """Read one split of `llp/` from a packed folder; features: a key of FEATURE_SETS. Raises FileNotFoundError."""
    part = Path(folder) / "llp" / split

    def load(name: str | None) -> Tensor | None:
        path = part / f"{name}.npy"
        return torch.from_numpy(read_array(path)).to(device) if name and path.exists() else None

    names = FEATURE_SETS[features]
    missing = [n for n in names if n and not (part / f"{n}.npy").exists()]
    if missing:
        raise FileNotFoundError(f"{part}: feature set {features!r} needs {', '.join(missing)}, which was not packed")
    return TargetSplit(*(load(n) for n in names), load("weak").float(), load("audio"), load("visual"))


@dataclass(frozen=True)
class SourceSplit:
    """One split of UnAV: the segments of all videos end to end (S in total), as lengths differ."""

    audio: Tensor  # (S, 512) half
    visual: Tensor  # (S, 768) half
    label: Tensor  # (S, C) uint8
    length: np.ndarray  # (N,) segments of each video

    def rows(self, videos: np.ndarray) -> tuple[Tensor, Tensor]:
        """Where the segments of some videos lie: row numbers (B, T) and validity mask (B, T), T the longest of them."""
        first = np.cumsum(self.length) - self.length  # (N,)
        t = np.arange(self.length[videos].max())
        mask = t < self.length[videos, None]  # (B, T)
        rows = np.where(mask, first[videos, None] + t, 0)  # (B, T)
        return torch.from_numpy(rows).to(self.audio.device), torch.from_numpy(mask).to(self.audio.device)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """rows (B, T) -> audio (B, T, 512), visual (B, T, 768), label (B, T, C), all float; padding holds row 0."""
        return self.audio[rows].float(), self.visual[rows].float(), self.label[rows].float()


def load_source(folder: str | Path, split: str, device: str | torch.device) -> SourceSplit:
    """Read one split of `unav/` from a packed folder."""
    part = Path(folder) / "unav" / split
    arrays = (torch.from_numpy(read_array(part / f"{name}.npy")).to(device) for name in ("clap", "clip", "label"))
    return SourceSplit(*arrays, read_array(part / "length.npy"))


def load_text(folder: str | Path, dataset: str, device: str | torch.device) -> tuple[Tensor, Tensor]:
    """Class text embeddings (C, 512) for audio and (C, 768) for visual; dataset: llp | unav."""
    paths = (Path(folder) / dataset / f"text_{name}.npy" for name in ("clap", "clip"))
    return tuple(torch.from_numpy(read_array(path)).float().to(device) for path in paths)
