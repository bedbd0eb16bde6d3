"""A packed folder (layout.py) -> the arrays that uwav.py trains on: whole splits in memory, in half precision, on the
device that trains.

Nothing is read during training. Every array is compared with the hash that index.json records of it, so what is read is
what was packed and checked then. Shapes: N videos in a split, T segments, C classes, D feature size.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.files import hash_of, made_by, regular
from data.layout import FEATURE_SETS, TEXTED, read_index
from uwav import SourceSplit, TargetSplit


def load(folder: str | Path, name: str) -> np.ndarray:
    """An array of a packed folder. Raises FileNotFoundError or ValueError naming the file."""
    path, index = Path(folder) / name, read_index(folder)
    made = "pack SOURCE" if isinstance(index["source"], str) else "demo"  # the demo world's is a dict
    with made_by(f"python features.py {made} {folder}", path):
        content = regular(path).read_bytes()
        if hash_of(content) != index["files"].get(name):
            raise ValueError("it is not the file that index.json records")
        return np.load(io.BytesIO(content), allow_pickle=False)


def load_target(folder: str | Path, split: str, features: str, device: str | torch.device) -> TargetSplit:
    """Read one split of `llp/` from a packed folder; features: a key of FEATURE_SETS.

    Raises FileNotFoundError or ValueError naming what is not there or damaged."""
    names = FEATURE_SETS[features]
    missing = [name for name in names if name and name not in read_index(folder)["llp"]["features"]]
    if missing:
        raise FileNotFoundError(f"{folder}: feature set {features!r} needs {', '.join(missing)}, which was not packed")
    arrays = (name and _tensor(folder, f"llp/{split}/{name}.npy", device) for name in names)
    truth = (None, None) if split == "train" else load_truth(folder, split, device)
    return TargetSplit(*arrays, load_weak(folder, split, device), *truth)


def load_weak(folder: str | Path, split: str, device: str | torch.device = "cpu") -> Tensor:
    """The weak labels of a split of `llp/`, (N, C) float of 0 and 1."""
    return _tensor(folder, f"llp/{split}/weak.npy", device).float()


def load_truth(folder: str | Path, split: str, device: str | torch.device = "cpu") -> tuple[Tensor, Tensor]:
    """What is audible and what is visible in a split of `llp/`, (N, T, C) uint8 each.

    Raises FileNotFoundError if nobody annotated the split, too."""
    if f"llp/{split}/audio.npy" not in read_index(folder)["files"]:
        raise FileNotFoundError(f"the {split} split has no dense truth (in {folder})")
    return tuple(_tensor(folder, f"llp/{split}/{m}.npy", device) for m in ("audio", "visual"))


def load_source(folder: str | Path, split: str, device: str | torch.device) -> SourceSplit:
    """Read one split of `unav/` from a packed folder."""
    names = (*TEXTED, "label")
    return SourceSplit(*(_tensor(folder, f"unav/{split}/{name}.npy", device) for name in names),
                       load(folder, f"unav/{split}/length.npy"))


def load_text(folder: str | Path, dataset: str, device: str | torch.device) -> tuple[Tensor, Tensor]:
    """Class text embeddings (C, 512) for audio and (C, 768) for visual; dataset: llp | unav."""
    return tuple(_tensor(folder, f"{dataset}/text_{name}.npy", device) for name in TEXTED)


def _tensor(folder: str | Path, name: str, device: str | torch.device) -> Tensor:
    return torch.from_numpy(load(folder, name)).to(device)
