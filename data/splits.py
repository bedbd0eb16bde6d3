"""A packed folder (layout.py) -> the arrays that uwav.py trains on: whole splits in memory, in half precision, on the
device that trains.

Nothing is read during training, unless training features are to stay on disk (`Stored`): then an epoch takes one window
of them after the other (`by_windows`). Every array is compared with the hash that index.json records of it, so what is
read is what was packed and checked then; what is not there or damaged is a FileNotFoundError or a ValueError that names
it. Shapes: N videos in a split, T segments, C classes, D feature size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.files import file_hash, made_by, read_array
from data.layout import FEATURE_SETS, TEXTED, read_index
from uwav import PseudoLabels, SourceSplit, TargetSplit

WINDOW = 8  # blocks that are shuffled together, and trained on before the next ones


def load(folder: str | Path, name: str, mmap: bool = False) -> np.ndarray:
    """An array of a packed folder."""
    path, index = Path(folder) / name, read_index(folder)
    made = "pack SOURCE" if isinstance(index["source"], str) else "demo"  # the demo world's is a dict
    with made_by(f"python features.py {made} {folder}", path):
        if file_hash(path) != index["files"].get(name):
            raise ValueError("it is not the file that index.json records")
        return np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)


class Stored:
    """An array of a packed folder that stays on disk: as much of a tensor as the stages need. stream: MB, of all
    features, that are read at a time."""

    def __init__(self, folder: Path, name: str, device: str | torch.device, stream: float):
        self.path, self.device, self.stream = folder / name, torch.device(device), stream
        self.shape = load(folder, name, mmap=True).shape

    def __getitem__(self, rows: slice) -> Tensor:
        return torch.from_numpy(np.array(read_array(self.path, mmap=True)[rows])).to(self.device)


def by_windows(steps: Callable[..., Iterator[Tensor]], *inputs) -> Iterator[Tensor]:
    """What an epoch, `steps(..., config, epoch)`, yields. If the inputs hold a split whose features are stored: an
    epoch of each of its windows, in memory, while the next one is read. Blocks come in an order that config.seed and
    epoch decide, WINDOW at a time; if one window holds all, it is the epoch of the split in memory, bit for bit."""
    *inputs, config, epoch = inputs
    data = next((x for x in inputs if isinstance(getattr(x, "audio", None), Stored)), None)
    if data is None:
        yield from steps(*inputs, config, epoch)
        return
    first = np.append(0, np.cumsum(data.length)) if isinstance(data, SourceSplit) else np.arange(len(data.weak) + 1)
    videos, stored = len(first) - 1, [x for x in vars(data).values() if isinstance(x, Stored)]
    share = data.audio.stream * 1e6 / sum(x.path.stat().st_size for x in stored)  # of the split, in a block
    size = max(1, round(min(share, 1) * videos / config.batch)) * config.batch  # whole batches, so none is cut
    blocks = np.random.default_rng((config.seed, epoch, WINDOW)).permutation(-(-videos // size))
    windows = [np.sort(blocks[i : i + WINDOW]) * size for i in range(0, len(blocks), WINDOW)]  # their first videos

    def read(window: np.ndarray) -> list:
        """The inputs for a window."""
        spans = [(a, min(a + size, videos)) for a in window]
        index = np.concatenate([np.arange(*span) for span in spans])  # of videos
        parts = {name: torch.cat([x[first[a] : first[b]] for a, b in spans]) if isinstance(x, Stored)
                 else x if x is None else x[index] for name, x in vars(data).items()}
        return [replace(data, **parts) if x is data else x.of(torch.from_numpy(index)) if isinstance(x, PseudoLabels)
                else x for x in inputs]

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(read, windows[0])
        for number, after in enumerate([*windows[1:], None]):
            here, coming = coming.result(), None if after is None else pool.submit(read, after)
            yield from steps(*here, config, epoch + (number << 20))  # other random numbers than of other windows


def load_target(folder: str | Path, split: str, features: str, device: str | torch.device,
                stream: float = 0) -> TargetSplit:
    """One split of `llp/`; features: a key of FEATURE_SETS. stream: they stay on disk, and so many MB are read at a
    time."""
    names = FEATURE_SETS[features]
    missing = [name for name in names if name and name not in read_index(folder)["llp"]["features"]]
    if missing:
        raise FileNotFoundError(f"{folder}: feature set {features!r} needs {', '.join(missing)}, which was not packed")
    arrays = (name and _tensor(folder, f"llp/{split}/{name}.npy", device, stream) for name in names)
    truth = (None, None) if split == "train" else load_truth(folder, split, device)
    return TargetSplit(*arrays, load_weak(folder, split, device), *truth)


def load_weak(folder: str | Path, split: str, device: str | torch.device = "cpu") -> Tensor:
    """The weak labels of a split of `llp/`, (N, C) float of 0 and 1."""
    return _tensor(folder, f"llp/{split}/weak.npy", device).float()


def load_truth(folder: str | Path, split: str, device: str | torch.device = "cpu") -> tuple[Tensor, Tensor]:
    """What is audible and what is visible in a split of `llp/`, (N, T, C) uint8 each, if it has been annotated."""
    if f"llp/{split}/audio.npy" not in read_index(folder)["files"]:
        raise FileNotFoundError(f"the {split} split has no dense truth (in {folder})")
    return tuple(_tensor(folder, f"llp/{split}/{m}.npy", device) for m in ("audio", "visual"))


def load_source(folder: str | Path, split: str, device: str | torch.device, stream: float = 0) -> SourceSplit:
    """One split of `unav/`; stream: as of `load_target`."""
    return SourceSplit(*(_tensor(folder, f"unav/{split}/{name}.npy", device, stream) for name in (*TEXTED, "label")),
                       load(folder, f"unav/{split}/length.npy"))


def load_text(folder: str | Path, dataset: str, device: str | torch.device) -> tuple[Tensor, Tensor]:
    """Class text embeddings (C, 512) for audio and (C, 768) for visual; dataset: llp | unav."""
    return tuple(_tensor(folder, f"{dataset}/text_{name}.npy", device) for name in TEXTED)


def _tensor(folder: str | Path, name: str, device: str | torch.device, stream: float = 0) -> Tensor | Stored:
    return Stored(Path(folder), name, device, stream) if stream else torch.from_numpy(load(folder, name)).to(device)
