"""A packed folder (layout.py) -> the arrays that uwav.py trains on: whole splits in memory, in half precision, on the
device that trains.

Nothing is read during training. Shapes: N videos in a split, B in a batch, T segments, C classes, D feature size.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.files import read_array, shaped
from data.annotations import LLP_SEGMENTS
from data.layout import FEATURE_SETS, LLP_FEATURES, TEXT_FILES, UNAV_FEATURES, read_index
from uwav import SourceSplit, TargetSplit


def load_target(folder: str | Path, split: str, features: str, device: str | torch.device) -> TargetSplit:
    """Read one split of `llp/` from a packed folder; features: a key of FEATURE_SETS.

    Raises FileNotFoundError or ValueError naming the file: all arrays are checked against index.json and each other.
    """
    part, names = Path(folder) / "llp" / split, FEATURE_SETS[features]
    missing = [n for n in names if n and not (part / f"{n}.npy").exists()]
    if missing:
        raise FileNotFoundError(f"{part}: feature set {features!r} needs {', '.join(missing)}, which was not packed")
    N, T, _ = target_shape(folder, split)
    arrays = (name and _load(part / f"{name}.npy", (N, T, LLP_FEATURES[name][2]), np.float16, device) for name in names)
    truth = (None, None) if split == "train" else load_truth(folder, split, device)
    return TargetSplit(*arrays, load_weak(folder, split, device), *truth)


def load_weak(folder: str | Path, split: str, device: str | torch.device = "cpu") -> Tensor:
    """The weak labels of a split of `llp/`, (N, C) float of 0 and 1, checked in the same way."""
    N, _, C = target_shape(folder, split)
    return _load(Path(folder) / "llp" / split / "weak.npy", (N, C), np.uint8, device).float()


def load_truth(folder: str | Path, split: str, device: str | torch.device = "cpu") -> tuple[Tensor, Tensor]:
    """What is audible and what is visible in a split of `llp/`, (N, T, C) uint8 each, checked in the same way.

    Raises FileNotFoundError if nobody annotated the split, too.
    """
    paths = [Path(folder) / "llp" / split / f"{m}.npy" for m in ("audio", "visual")]
    if not all(path.exists() for path in paths):
        raise FileNotFoundError(f"the {split} split has no dense truth ({paths[0]})")
    return tuple(_load(path, target_shape(folder, split), np.uint8, device) for path in paths)


def target_shape(folder: str | Path, split: str) -> tuple[int, int, int]:
    """N, T, C of a split of `llp/`, from index.json."""
    index = _index(folder, "llp", split)
    return len(index["videos"][split]), index.get("segments", LLP_SEGMENTS), len(index["classes"])


def _index(folder: str | Path, dataset: str, split: str) -> dict:
    index = read_index(folder)
    if dataset not in index or split not in index[dataset]["videos"]:
        raise FileNotFoundError(f"{Path(folder) / 'index.json'}: there is no {split} split of {dataset}")
    return index[dataset]


def _load(path: Path, shape: tuple[int | None, ...], dtype: type, device: str | torch.device) -> Tensor:
    """An array on the device: finite if it is float, of zeros and ones if it is uint8, which only labels are."""
    x = read_array(path)
    if x.dtype != dtype:
        raise ValueError(f"{path}: holds {x.dtype}, expected {np.dtype(dtype)}")
    tensor = torch.from_numpy(shaped(x, shape, path)).to(device)
    low, high = map(float, tensor.aminmax())  # of a tensor with NaN both are NaN
    if not math.isfinite(low) or not math.isfinite(high):
        raise ValueError(f"{path}: holds NaN or infinite values; pack again")
    if dtype == np.uint8 and high > 1:
        raise ValueError(f"{path}: holds {high:.0f}, expected labels of 0 and 1; pack again")
    return tensor


def load_source(folder: str | Path, split: str, device: str | torch.device) -> SourceSplit:
    """Read one split of `unav/` from a packed folder, checked in the same way."""
    part, index = Path(folder) / "unav" / split, _index(folder, "unav", split)
    path = part / "length.npy"
    length = shaped(read_array(path), (len(index["videos"][split]),), path)
    if length.dtype != np.int64 or length.min() < 1:
        raise ValueError(f"{path}: holds {length.dtype} from {length.min()} on, expected whole numbers above 0 (int64)")
    S = sum(length.tolist())
    features = (_load(part / f"{name}.npy", (S, size), np.float16, device)
                for name, (_, size) in UNAV_FEATURES.items())
    return SourceSplit(*features, _load(part / "label.npy", (S, len(index["classes"])), np.uint8, device), length)


def load_text(folder: str | Path, dataset: str, device: str | torch.device) -> tuple[Tensor, Tensor]:
    """Class text embeddings (C, 512) for audio and (C, 768) for visual; dataset: llp | unav."""
    C = len(_index(folder, dataset, "train")["classes"])
    return tuple(_load(Path(folder) / dataset / f"text_{name}.npy", (C, size), np.float32, device)
                 for name, (_, size) in TEXT_FILES.items())
