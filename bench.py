"""What things cost: one run, one table, one JSON. Beside each figure the plain way of doing it, and the floor.

    python bench.py                          # every row that needs no video; under 5 minutes and 4 GB on 2 CPU cores
    python bench.py score evaluate           # some rows
    python bench.py decode --video CLIP      # decoding of a video file
    python bench.py --preset paper --fast    # on a GPU: the published models, in bf16, compiled

The plain way is how the field's repositories do it, in our own straightforward version: one file per feature and
video, a DataLoader, nn.MultiheadAttention, evaluation video by video, scores in NumPy. The floor is what this machine
could do at best: operations over its measured rate of matrix products, or bytes over its measured bandwidth, whichever
is longer.

Sizes are real (10,000 + 1,200 videos of 10 s, the lengths of UnAV-100), data and weights random. Where a whole job
would take long, a part of it is timed and scaled up; the last column says which. Ours and the plain way take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import itertools
import json
import math
import multiprocessing
import os
import platform
import re
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import uwav
from common import devices
from common.command import one_sentence_errors
from common.files import write_json
from data import annotations, demo_world, layout
from data.annotations import LLP_CLASSES, LLP_SEGMENTS
from data.layout import FEATURE_SETS
from data.pack import pack
from train.presets import PRESETS
from uwav import SourceSplit, TargetSplit, parsing_scores

TRAIN, VAL, TEST, T, C = 10_000, 649, 1_200, LLP_SEGMENTS, len(LLP_CLASSES)  # LLP
SOURCE, SOURCE_CLASSES = 6_489, 100  # UnAV-100, training split
FILES = 400  # videos that exist as files; the plain ways read them again and again, from the page cache
SIZES = {name: (per_second, size) for name, (_, per_second, size) in layout.LLP_FEATURES.items()}
ROUNDS, ROUND_SECONDS = 3, 1.2  # how often ours and the plain way take turns, and for how long at a time


# ---------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------


@dataclass
class Row:
    """One figure. Times in seconds; the floor follows from `operations` and `bytes`."""

    what: str
    seconds: float
    plain: float | None = None
    operations: float = 0
    bytes: float = 0
    note: str = ""
    floor: float = 0


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure(device: torch.device, *functions: Callable, warm: int = 1) -> list[float]:
    """Seconds of one call of each: the medians of a few rounds in which they take turns."""
    counts, times = [], [[] for _ in functions]
    for function in functions:
        function()
        started = clock(device)
        function()
        counts.append(max(1, min(50, int(ROUND_SECONDS / (clock(device) - started)))))
    for _ in range(ROUNDS):
        for function, count, own in zip(functions, counts, times):
            for _ in range(warm):
                function()
            started = clock(device)
            for _ in range(count):
                function()
            own.append((clock(device) - started) / count)
    return [statistics.median(own) for own in times]


def rates(device: torch.device, half: bool) -> dict[str, float]:
    """What the machine can do: operations a second in matrix products, bytes a second in a copy (read and written)."""
    n = 4096 if device.type == "cpu" else 8192
    x = torch.randn(n, n, device=device, dtype=torch.bfloat16 if half else torch.float32)
    y = torch.empty(1 << 26, device=device)  # 256 MB
    out = torch.empty_like(y)
    multiply, copying = measure(device, lambda: x @ x, lambda: out.copy_(y))
    result = dict(torch_operations_per_s=2 * n**3 / multiply, bytes_per_s=2 * y.nbytes / copying)
    if device.type == "cpu" and not half and torch.backends.mkldnn.is_available():
        z = x.to_mkldnn()  # oneDNN, which PyTorch does not use for single precision; on some CPUs the faster library
        multiply = min(multiply, *measure(device, lambda: torch.ops.aten.mkldnn_linear(z, z)))
    return result | dict(operations_per_s=2 * n**3 / multiply)


def operations(function: Callable) -> float:
    """Floating-point operations of one call, in matrix products and attention."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def memory() -> float:
    """Resident memory of this process and its children in MB (Linux)."""
    total = 0
    for pid in (os.getpid(), *(p.pid for p in multiprocessing.active_children())):
        status = Path(f"/proc/{pid}/status").read_text()
        total += int(status.split("VmRSS:")[1].split()[0])  # kB
    return total / 1e3


def peak_memory() -> float:
    """The most that this process has held so far, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where getrusage counts what the parent process held, too
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if platform.system() == "Darwin" else 1e3)


# ---------------------------------------------------------------------------------------------
# Random data of real sizes
# ---------------------------------------------------------------------------------------------


def random_target(videos: int, names: tuple[str | None, ...], device: torch.device,
                  width: int | None = None) -> TargetSplit:
    """A split of LLP with random features and truth; `width` replaces the size of every feature."""
    torch.manual_seed(videos)
    sizes = [name and width or name and SIZES[name][1] for name in names]
    arrays = [size and torch.empty(videos, T, size, dtype=torch.half, device=device) for size in sizes]
    for x in arrays:
        for part in () if x is None else x.split(1000):
            part.copy_(torch.randn(part.shape, device=device))
    weak, *truth = random_annotations(videos, device)
    return TargetSplit(*arrays, weak.float(), *truth)


def random_annotations(videos: int, device: torch.device, again: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Weak labels (N, C), audible and visible (N, T, C), as dense as LLP's (1,000 videos, repeated); `again`: another
    draw of when the same classes are audible and visible, to serve as predictions."""
    weak = demo_world.draw_weak(1000, C, np.random.default_rng(0))
    drawn = (weak, *demo_world.draw_truth(weak, T, np.random.default_rng(2 if again else 1)))
    row = torch.arange(videos) % 1000
    return tuple(torch.from_numpy(x)[row].to(device) for x in drawn)


def random_source(length: np.ndarray, device: torch.device) -> SourceSplit:
    """The training split of UnAV with random features; length (N,) in segments."""
    torch.manual_seed(0)
    S = int(length.sum())
    arrays = [torch.empty(S, SIZES[name][1], dtype=torch.half, device=device) for name in ("clap", "clip")]
    for x in arrays:
        for part in x.split(10_000):
            part.copy_(torch.randn(part.shape, device=device))
    return SourceSplit(*arrays, (torch.rand(S, SOURCE_CLASSES, device=device) < 0.03).byte(), length)


def random_text(classes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    return tuple(F.normalize(torch.randn(classes, SIZES[name][1], device=device), dim=-1) for name in ("clap", "clip"))


def random_labels(data: TargetSplit, config: uwav.TrainConfig) -> uwav.PseudoLabels:
    logits = [torch.randn(len(data.weak), T, C, device=data.weak.device) for _ in range(2)]
    return uwav.pseudo_labels(logits, tuple(torch.zeros(2, C, device=data.weak.device)), data.weak, config)


def write_files(folder: Path, length: np.ndarray) -> None:
    """FILES videos of LLP and FILES of UnAV in the layout of the authors' download."""
    rng = np.random.default_rng(0)
    for place in ("LLP", "UnAV"):
        (folder / place).mkdir()
    header, ids = "filename\tevent_labels\n", [f"video{n:06d}" for n in range(FILES)]
    for split, videos in (("train", ids[2:]), ("val", ids[:1]), ("test", ids[1:2])):
        rows = "".join(f"{video}_0_10\tSpeech\n" for video in videos)
        (folder / "LLP" / annotations.LLP_WEAK_FILES[split]).write_text(header + rows)
    for file in annotations.LLP_DENSE_FILES.values():
        rows = "".join(f"{video}_0_10\t0\t5\tSpeech\n" for video in ids[:2])
        (folder / "LLP" / file).write_text("filename\tonset\toffset\tevent_labels\n" + rows)
    subset = ["validation", "test"] + ["train"] * (FILES - 2)
    event = dict(segment=[1, 3], label="a", label_id=0)
    database = {video: dict(duration=float(seconds), subset=which, annotations=[event])
                for video, seconds, which in zip(ids, length, subset)}
    (folder / "UnAV/unav100_annotations.json").write_text(json.dumps(dict(version="random", database=database)))
    for place, per_second, size in layout.LLP_FEATURES.values():
        (folder / place).mkdir(parents=True)
        for video in ids:
            np.save(folder / place / f"{video}.npy", rng.standard_normal((T * per_second, size), np.float32))
    for place, size in layout.UNAV_FEATURES.values():
        (folder / place).mkdir(parents=True)
        for video, seconds in zip(ids, length):
            np.save(folder / place / f"{video}.npy", rng.standard_normal((seconds, size), np.float32))
    for dataset, classes in (("LLP", C), ("UnAV", 1)):
        for file, size in layout.TEXT_FILES.values():
            (folder / dataset / file).parent.mkdir(parents=True)
            np.save(folder / dataset / file, rng.standard_normal((classes, size), np.float32))


# ---------------------------------------------------------------------------------------------
# The plain ways
# ---------------------------------------------------------------------------------------------


class TargetFiles(torch.utils.data.Dataset):
    """One file per feature and video."""

    def __init__(self, folder: Path, names: tuple[str | None, ...], videos: int):
        self.folders = [folder / layout.LLP_FEATURES[name][0] for name in names if name]
        self.videos = videos

    def __len__(self) -> int:
        return self.videos

    def __getitem__(self, n: int) -> tuple:
        return n, *(torch.from_numpy(np.load(f / f"video{n % FILES:06d}.npy")) for f in self.folders)


class SourceFiles(torch.utils.data.Dataset):
    """The same for UnAV, every video padded to the longest of all."""

    def __init__(self, folder: Path, length: np.ndarray):
        self.folders = [folder / place for place, _ in layout.UNAV_FEATURES.values()]
        self.length = length

    def __len__(self) -> int:
        return len(self.length)

    def __getitem__(self, n: int) -> tuple:
        arrays, longest = [np.load(f / f"video{n % FILES:06d}.npy") for f in self.folders], int(self.length.max())
        mask = torch.arange(longest) < len(arrays[0])
        return *(torch.from_numpy(np.pad(x, ((0, longest - len(x)), (0, 0)))) for x in arrays), mask


def plain_batches(dataset: torch.utils.data.Dataset, batch: int, device: torch.device) -> Iterator[list[Tensor]]:
    """Shuffled batches without end, read by as many processes as there are cores."""
    loader = torch.utils.data.DataLoader(dataset, batch, shuffle=True, num_workers=os.cpu_count() or 1,
                                         pin_memory=device.type == "cuda")
    while True:
        for tensors in loader:
            yield [x.to(device, non_blocking=True) for x in tensors]


class PlainAttention(nn.Module):
    def __init__(self, own: uwav.Attention):
        super().__init__()
        self.attention = nn.MultiheadAttention(own.hidden, own.heads, own.dropout, batch_first=True)
        with torch.no_grad():
            self.attention.in_proj_weight.copy_(own.in_proj.weight)
            self.attention.in_proj_bias.copy_(own.in_proj.bias)
            self.attention.out_proj.load_state_dict(own.out_proj.state_dict())

    def forward(self, x: Tensor, source: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.attention(x, source, source, key_padding_mask=None if mask is None else ~mask)[0]


def plain_model(model: nn.Module) -> nn.Module:
    """The same model, its attention by PyTorch's own module."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, uwav.Attention):
                setattr(module, name, PlainAttention(child).to(child.in_proj.weight.device))
    return model


def plain_optimizer(model: nn.Module, config: uwav.PretrainConfig | uwav.TrainConfig) -> torch.optim.Optimizer:
    betas = config.beta1, config.beta2
    return torch.optim.AdamW(model.parameters(), config.peak_lr, betas, 1e-8, config.weight_decay)


def plain_han_step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: list[Tensor], index: Tensor,
                   data: TargetSplit, labels: uwav.PseudoLabels, config: uwav.TrainConfig) -> float:
    """A step on features just read; index (B,) says whose they are."""
    beta = torch.distributions.Beta(config.alpha, config.alpha)
    mixup = [(beta.sample().to(index.device), torch.randperm(len(index) * T, device=index.device)) for _ in range(2)]
    losses = uwav.han_losses(model, model(*inputs), data.weak[index], labels.of(index), mixup)
    return plain_update(model, optimizer, losses.sum(), config)


def plain_update(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor,
                 config: uwav.PretrainConfig | uwav.TrainConfig) -> float:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    optimizer.step()
    return loss.item()


def plain_events(x: np.ndarray) -> list[tuple[int, int]]:
    """Runs of positive segments, x (T,) -> [(first, last + 1), ...]."""
    events, start = [], None
    for t, on in enumerate([*x, 0]):
        if on and start is None:
            start = t
        if not on and start is not None:
            events.append((start, t))
            start = None
    return events


def plain_event_counts(predicted: np.ndarray, truth: np.ndarray) -> tuple[int, int, int]:
    """TP, FP, FN of one class in one video, both (T,)."""
    predicted, truth = plain_events(predicted), plain_events(truth)

    def found(a: tuple[int, int], others: list[tuple[int, int]]) -> bool:
        return any(2 * (min(a[1], b[1]) - max(a[0], b[0])) >= max(a[1], b[1]) - min(a[0], b[0]) for b in others)

    tp = sum(found(a, truth) for a in predicted)
    return tp, len(predicted) - tp, sum(not found(b, predicted) for b in truth)


def plain_segment_counts(predicted: np.ndarray, truth: np.ndarray) -> tuple[int, int, int]:
    return (predicted & truth).sum(), (predicted & ~truth).sum(), (~predicted & truth).sum()


def plain_scores(audio_pred: np.ndarray, visual_pred: np.ndarray, audio_truth: np.ndarray,
                 visual_truth: np.ndarray) -> dict[str, float]:
    """`parsing_scores` from the definitions: video by video, class by class; (N, T, C) bool each."""

    def f_score(counts: list[tuple[int, int, int]]) -> float:
        values = [2 * tp / (2 * tp + fp + fn) for tp, fp, fn in counts if tp + fp + fn > 0]
        return sum(values) / len(values) if values else 1.0

    per_video = []
    for ap, vp, at, vt in zip(audio_pred, visual_pred, audio_truth, visual_truth):  # (T, C) each
        row = []
        for count in (plain_segment_counts, plain_event_counts):
            classes = range(ap.shape[1])
            a = [count(ap[:, c], at[:, c]) for c in classes]
            v = [count(vp[:, c], vt[:, c]) for c in classes]
            av = [count(ap[:, c] & vp[:, c], at[:, c] & vt[:, c]) for c in classes]
            pooled = [tuple(x + y for x, y in zip(*both)) for both in zip(a, v)]
            f = [f_score(x) for x in (a, v, av, pooled)]
            row += [*f[:3], sum(f[:3]) / 3, f[3]]
        per_video.append(row)
    names = [f"{level}_{kind}" for level in ("seg", "event") for kind in ("a", "v", "av", "type", "event")]
    return dict(zip(names, (100 * np.mean(per_video, 0)).tolist()))


@torch.no_grad()
def plain_evaluate(model: nn.Module, dataset: TargetFiles, data: TargetSplit, device: torch.device) -> dict[str, float]:
    """Read, predict and score, one video after the other."""
    predicted = []
    for n in range(len(dataset)):
        output = model(*(x[None].to(device) for x in dataset[n][1:]))
        gate = output.video_prob[:, None] > uwav.GATE
        probabilities = output.audio_logit.sigmoid(), output.visual_logit.sigmoid()  # (1, T, C) each
        predicted.append([((p > uwav.GATE) & gate)[0].cpu().numpy() for p in probabilities])
    audio, visual = map(np.stack, zip(*predicted))  # (N, T, C) each
    truth = [x[: len(dataset)].cpu().numpy() > 0 for x in (data.audio_truth, data.visual_truth)]
    return plain_scores(audio, visual, *truth)


@torch.no_grad()
def plain_labels(model: nn.Module, dataset: TargetFiles, weak: np.ndarray, text: tuple[Tensor, Tensor],
                 device: torch.device) -> list[tuple[np.ndarray, ...]]:
    """Hard and soft labels of both modalities, one video after the other, thresholds 0; weak (N, C)."""
    labels = []
    for n in range(len(dataset)):
        logits = [z[0].cpu().numpy() for z in model(*(x[None].to(device) for x in dataset[n][1:]), *text)]  # (T, C)
        hard, soft = [z > 0 for z in logits], [1 / (1 + np.exp(-z / 2)) for z in logits]
        labels.append(tuple(x * weak[n] for x in (*hard, *soft)))
    return labels


def plain_pack(source: Path, out: Path) -> None:
    """Every file read in turn, pooled, stacked, saved."""
    places = [(place, per_second) for place, per_second, _ in layout.LLP_FEATURES.values()]
    for place, per_second in [*places, *((place, 1) for place, _ in layout.UNAV_FEATURES.values())]:
        arrays = [np.load(file) for file in sorted((source / place).glob("*.npy"))]
        pooled = [x.reshape(-1, per_second, x.shape[1]).mean(1).astype(np.float16) for x in arrays]
        np.save(out / (place.replace("/", "_") + ".npy"), np.concatenate(pooled))


# ---------------------------------------------------------------------------------------------
# The rows
# ---------------------------------------------------------------------------------------------


class Bench:
    """What the rows share. Each row frees what it alone needed."""

    def __init__(self, preset: str, device: torch.device, half: bool, unav: Path | None, folder: Path):
        self.preset, self.device, self.folder = PRESETS[preset], device, folder
        self.names, self.han_config = FEATURE_SETS["base"], self.preset.han["base"]
        self.config, self.pretrain_config = (replace(c, fast=half) for c in (self.preset.train, self.preset.pretrain))
        if unav:
            self.length = np.array([len(x) for x in annotations.read_unav(unav).train.labels])
        else:
            shortest, mean, longest, deviation = demo_world.SOURCE_SECONDS
            drawn = np.random.default_rng(0).normal(mean, deviation, SOURCE)
            self.length = np.clip(drawn.round(), shortest, longest).astype(np.int64)

    @functools.cached_property
    def files(self) -> Path:
        write_files(self.folder, self.length)
        return self.folder

    @functools.cached_property
    def han(self) -> uwav.HAN:
        torch.manual_seed(0)
        return uwav.HAN(self.han_config).to(self.device)

    @functools.cached_property
    def train(self) -> TargetSplit:
        return random_target(TRAIN, self.names, self.device)

    @functools.cached_property
    def test(self) -> TargetSplit:
        return random_target(TEST, self.names, self.device)

    # ---- data and training ----

    def load(self) -> list[Row]:
        batch, steps = self.config.batch, math.ceil(TRAIN / self.config.batch)
        plain = plain_batches(TargetFiles(self.files, self.names, TRAIN), batch, self.device)
        ours = (self.train.inputs(index) for _ in itertools.count()
                for index in torch.randperm(TRAIN).to(self.device).split(batch))
        seconds = measure(self.device, lambda: next(ours), lambda: next(plain), warm=5)
        read = sum(x.nbytes for x in (self.train.audio, self.train.visual_2d, self.train.visual_3d))
        return [Row("features of an epoch, 10,000 videos", *(steps * s for s in seconds), bytes=3 * read,
                    note=f"batches of {batch}, scaled to {steps}")]

    def epoch(self) -> list[Row]:
        config, device = self.config, self.device
        steps = math.ceil(TRAIN / config.batch)
        labels, model = random_labels(self.train, config), plain_model(self.han).train()
        optimizer, own_optimizer = plain_optimizer(model, config), uwav.adamw(self.han, config)
        forward = devices.forward_of(self.han, config.fast, one_shape=True)
        losses_of = devices.accelerate(uwav.han_losses, config.fast, device, one_shape=True)
        ours = (losses for _ in itertools.count()
                for losses in uwav.han_epoch(self.han, forward, losses_of, own_optimizer, self.train, labels, config, 1))
        batches = plain_batches(TargetFiles(self.files, self.names, TRAIN), config.batch, device)
        kept = next(batches)

        def plain(index: Tensor, *inputs: Tensor) -> float:
            return plain_han_step(model, optimizer, inputs, index, self.train, labels, config)

        own_step, step = measure(device, lambda: next(ours), lambda: plain(*kept))
        own_epoch, epoch = measure(device, lambda: next(ours), lambda: plain(*next(batches)), warm=5)
        flops = operations(lambda: plain(*kept))
        note = f"batches of {config.batch}"
        return [Row("HAN, one step", own_step, step, flops, note=note + ", features in memory"),
                Row("HAN, one epoch with its data", steps * own_epoch, steps * epoch, steps * flops,
                    note=f"{note}, scaled to {steps}")]

    def teacher(self) -> list[Row]:
        config, device, length = self.pretrain_config, self.device, self.length
        steps, segments = math.ceil(SOURCE / config.batch), int(length.sum())
        torch.manual_seed(0)
        own = uwav.Teacher(self.preset.teacher).to(device)
        data, text = random_source(length, device), random_text(SOURCE_CLASSES, device)
        own_optimizer = uwav.adamw(own, config)
        forward = devices.forward_of(own, config.fast, one_shape=False, whole=(2, 3))
        ours = (loss for epoch in itertools.count()
                for loss in uwav.teacher_epoch(own, forward, own_optimizer, data, text, config, epoch))
        model = plain_model(own).train()
        optimizer = plain_optimizer(model, config)
        batches = plain_batches(SourceFiles(self.files, length), config.batch, device)
        label = (torch.rand(config.batch, int(length.max()), SOURCE_CLASSES, device=device) < 0.03).float()  # (B, T, C)

        def plain(audio: Tensor, visual: Tensor, mask: Tensor) -> float:
            loss = uwav.teacher_loss(*model(audio, visual, *text, mask), label[: len(mask)], mask, config.pos_weight)
            return plain_update(model, optimizer, loss, config)

        seconds = measure(device, lambda: next(ours), lambda: plain(*next(batches)), warm=5)
        audio, visual, mask = next(batches)
        flops = operations(lambda: plain(audio, visual, mask)) / mask.numel() * segments  # without padding
        batched = uwav.batches_by_length(length, config.batch, config.length_pool, np.random.default_rng(0))
        padded = sum(len(videos) * int(length[videos].max()) for videos in batched)
        note = (f"batches of {config.batch}, scaled to {steps}; padding {padded / segments - 1:.0%}, "
                f"plain {SOURCE * int(length.max()) / segments - 1:.0%}")
        return [Row("teacher, one epoch with its data", *(steps * s for s in seconds), flops, note=note)]

    # ---- evaluation and labels ----

    def score(self) -> list[Row]:
        drawn = (random_annotations(TEST, self.device, again)[1:] for again in (True, False))
        arrays = [x > 0 for pair in drawn for x in pair]  # predictions, truth: (N, T, C) each
        part = TEST // 4
        quarter = [x[:part].cpu().numpy() for x in arrays]
        ours, plain = measure(self.device, lambda: parsing_scores(*arrays), lambda: plain_scores(*quarter))
        return [Row("ten scores of 1,200 videos", ours, plain * TEST / part, bytes=sum(x.nbytes for x in arrays),
                    note=f"plain: {part} videos, scaled")]

    def evaluate(self) -> list[Row]:
        part, model = TEST // 12, plain_model(self.han).eval()
        dataset = TargetFiles(self.files, self.names, part)
        ours, plain = measure(self.device, lambda: uwav.han_scores(self.han, self.test),
                              lambda: plain_evaluate(model, dataset, self.test, self.device))
        flops = operations(lambda: uwav.han_probabilities(self.han, self.test))
        return [Row("evaluation of 1,200 videos, model and scores", ours, plain * TEST / part, flops,
                    note=f"plain: {part} videos, scaled")]

    def label(self) -> list[Row]:
        data, text = random_target(TRAIN, FEATURE_SETS["clip_clap"], self.device), random_text(C, self.device)
        torch.manual_seed(0)
        own = uwav.Teacher(self.preset.teacher).to(self.device).eval()
        part, model = TRAIN // 50, plain_model(own).eval()
        dataset, weak = TargetFiles(self.files, FEATURE_SETS["clip_clap"], part), data.weak.cpu().numpy()
        thresholds = tuple(torch.zeros(2, C, device=self.device))

        def ours() -> uwav.PseudoLabels:
            return uwav.pseudo_labels(uwav.teacher_logits(own, data, text), thresholds, data.weak, self.config)

        seconds, plain = measure(self.device, ours, lambda: plain_labels(model, dataset, weak, text, self.device))
        flops = operations(lambda: uwav.teacher_logits(own, data, text))
        return [Row("labels of 10,000 videos, teacher and Eq. 4", seconds, plain * TRAIN / part, flops,
                    note=f"plain: {part} videos, scaled")]

    # ---- before and after ----

    def pack(self) -> list[Row]:
        sizes, times = [file.stat().st_size for file in self.files.rglob("video*.npy")], ([], [])
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            for _, own in itertools.product(range(ROUNDS), (True, False)):
                with tempfile.TemporaryDirectory(dir=self.folder) as out:
                    started = time.perf_counter()
                    pack(self.files, out) if own else plain_pack(self.files, Path(out))
                    times[not own].append(time.perf_counter() - started)
        ours, plain = map(statistics.median, times)
        return [Row(f"pack, {len(sizes):,} files of {FILES} + {FILES} videos", ours, plain, bytes=2 * sum(sizes),
                    note=f"{sum(sizes) / ours / 1e6:.0f} MB/s, every value checked; plain: no checks")]

    def onnx(self) -> list[Row]:
        """The published HAN (random weights) in onnxruntime; here the plain way is PyTorch, on the CPU too."""
        import onnx

        import export_onnx

        torch.manual_seed(0)
        export = next(e for e in export_onnx.exports_of_han(uwav.HAN().eval()) if e.name == "han")
        path = self.folder / "han.onnx"
        onnx.save(export_onnx.trace(export), path)
        session, rows = export_onnx.session(path), []
        for B in (1, 64):
            inputs = export.inputs(B, T, 0)
            arrays = {k: x.numpy() for k, x in inputs.items()}

            def in_torch(inputs: dict = inputs) -> None:
                with torch.inference_mode():
                    export.module(**inputs)

            ours, plain = measure(torch.device("cpu"), lambda arrays=arrays: session.run(None, arrays), in_torch)
            rows.append(Row(f"HAN of preset paper, onnxruntime, batch {B}", ours, plain, operations(in_torch),
                            note="CPU; plain: PyTorch"))
        return rows


ROWS = ("pack", "load", "epoch", "teacher", "score", "evaluate", "label", "onnx")  # pack first: it forks


def decode(path: Path, clips: int) -> dict:
    """ms a clip on one core; clips a second and memory over `clips` decodings, by the number of processes."""
    from video import decode as video

    times = []
    for _ in range(21):
        started = time.perf_counter()
        clip = video.read_clip(path)
        times.append(1e3 * (time.perf_counter() - started))
    ms = statistics.median(times[1:])
    print(f"decode {path.name}: {clip.seconds:.1f} s of video in {ms:.0f} ms on one core (median of 20)")
    rows = {}
    for workers in sorted({1, min(2, os.cpu_count() or 1), os.cpu_count() or 1}):
        used, begun = [], 2 * workers  # by then all processes are up
        for n, _ in enumerate(video.read_clips([path] * clips, workers)):
            if n == begun:
                started = time.perf_counter()
            if n >= begun and n % 20 == 0:
                used.append(memory())
        tenth = max(1, len(used) // 10)
        rows[workers] = row = dict(clips_per_s=(clips - 1 - begun) / (time.perf_counter() - started), mb_peak=max(used),
                                   mb_first=statistics.mean(used[:tenth]), mb_last=statistics.mean(used[-tenth:]))
        ratio = row["clips_per_s"] / rows[1]["clips_per_s"]
        print(f"  {workers} processes: {row['clips_per_s']:6.1f} clips/s ({ratio:.2f} times one process); "
              f"memory {row['mb_first']:.0f} MB in the first tenth of {clips} clips, {row['mb_last']:.0f} in the last, "
              f"peak {row['mb_peak']:.0f} MB")
    return dict(seconds=clip.seconds, ms_per_clip=ms, processes=rows)


# ---------------------------------------------------------------------------------------------
# How cost grows
# ---------------------------------------------------------------------------------------------

SCALES = (1, 4, 16)
NARROW = 64  # numbers a feature on a CPU, so that 16 times LLP fits in its memory; real sizes on a GPU
PART = 40  # training steps timed


def scaled(factor: int, preset: str, device_name: str, half: bool) -> dict[str, float]:
    """Seconds of each job at `factor` times the size of LLP, and peak memory in MB. Wants a process of its own."""
    device = torch.device(device_name)
    width = NARROW if device.type == "cpu" else None
    settings = PRESETS[preset]
    sizes = dict(audio_dim=width, visual_2d_dim=width, visual_3d_dim=width) if width else {}
    torch.manual_seed(0)
    model = uwav.HAN(replace(settings.han["base"], **sizes)).to(device)
    config = replace(settings.train, fast=half)
    teacher_sizes = dict(audio_dim=width, visual_dim=width) if width else {}
    teacher = uwav.Teacher(replace(settings.teacher, **teacher_sizes)).to(device)
    text = tuple(torch.randn(C, width or SIZES[name][1], device=device) for name in ("clap", "clip"))
    seconds = {}

    def timed(name: str, function: Callable, *inputs) -> object:
        started = clock(device)
        result = function(*inputs)
        seconds[name] = clock(device) - started
        return result

    uwav.han_scores(model, random_target(300, FEATURE_SETS["base"], device, width))  # warms up
    data = random_target(factor * TEST, FEATURE_SETS["base"], device, width)
    timed("evaluation", uwav.han_scores, model, data)
    predicted = random_annotations(factor * TEST, device, again=True)[1:]
    timed("ten scores", parsing_scores, *predicted, data.audio_truth, data.visual_truth)
    data = random_target(factor * TRAIN, FEATURE_SETS["clip_clap"], device, width)
    logits = timed("labels: teacher", uwav.teacher_logits, teacher, data, text)
    val = slice(0, factor * VAL)
    timed("labels: thresholds", uwav.fit_thresholds, logits[0][val], data.audio_truth[val], data.weak[val])
    zero = tuple(torch.zeros(2, C, device=device))
    labels = timed("labels: Eq. 4, 7, 8", uwav.pseudo_labels, logits, zero, data.weak, config)
    data = random_target(factor * TRAIN, FEATURE_SETS["base"], device, width)
    optimizer, forward = uwav.adamw(model, config), devices.forward_of(model, config.fast, one_shape=True)
    losses_of = devices.accelerate(uwav.han_losses, config.fast, device, one_shape=True)
    steps = uwav.han_epoch(model, forward, losses_of, optimizer, data, labels, config, 1)
    list(itertools.islice(steps, 5))
    timed("HAN epoch", list, itertools.islice(steps, PART))
    seconds["HAN epoch"] *= math.ceil(factor * TRAIN / config.batch) / PART
    peak = torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else peak_memory()
    return seconds | {"peak memory, MB": peak}


def scale(preset: str, device: torch.device, half: bool) -> dict:
    """The table over SCALES; `exponent` e: cost grows as size ** e (slope of a line through the logarithms)."""
    columns = {}
    for factor in SCALES:
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # a process of its own, for the peak of its memory
            columns[factor] = pool.apply(scaled, (factor, preset, str(device), half))
    table = {}
    header = [f"{n}x" for n in SCALES] + ["exponent"]
    print(f"\n{'seconds at n times the size of LLP':38s}" + "".join(f"{h:>10s}" for h in header))
    for name in columns[1]:
        values = [columns[n][name] for n in SCALES]
        exponent = float(np.polyfit(np.log(SCALES), np.log(values), 1)[0])
        table[name] = dict(zip(map(str, SCALES), values), exponent=exponent)
        cells = [f"{v:.0f}" if "MB" in name else f"{v:.3g}" for v in values] + [f"{exponent:.2f}"]
        print(f"{name:38s}" + "".join(f"{c:>10s}" for c in cells))
    return table


# ---------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------


def in_units(seconds: float | None) -> str:
    if seconds is None:
        return ""
    factor, unit = next(((f, u) for f, u in ((1, "s"), (1e3, "ms")) if f * seconds >= 1), (1e6, "us"))
    return f"{factor * seconds:.3g} {unit}"


def print_row(row: Row) -> None:
    ratio = f"{row.plain / row.seconds:.2f}x" if row.plain else ""
    cells = in_units(row.seconds), in_units(row.plain), ratio, in_units(row.floor)
    print(f"{row.what:46s}" + "".join(f"{c:>11s}" for c in cells) + f"  {row.note}", flush=True)


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")  # Linux; elsewhere Python knows it
    found = re.search("model name\\s*: (.*)", info.read_text()) if info.exists() else None
    return f"{found[1] if found else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description="What things cost, beside the plain way of doing them and the floor.")
    parser.add_argument("rows", nargs="*", metavar="ROW",
                        help=f"{', '.join(ROWS)}, scale, decode (default: all but decode)")
    parser.add_argument("--preset", choices=PRESETS, help="sizes of the models (default: paper on a GPU, or demo)")
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: cuda where there is a GPU)")
    parser.add_argument("--fast", action="store_true", help="train in bf16 and, on a GPU, with compiled kernels")
    parser.add_argument("--unav", type=Path, metavar="FILE", help="unav100_annotations.json, for the real lengths")
    parser.add_argument("--video", type=Path, help="a video file, for decode")
    parser.add_argument("--clips", type=int, default=200, help="how often to decode it (default: 200)")
    parser.add_argument("--json", type=Path, default=Path("runs/bench.json"), metavar="FILE",
                        help="where to write the figures (default: runs/bench.json)")
    options = parser.parse_args()
    with one_sentence_errors():
        unknown = set(options.rows) - {*ROWS, "scale", "decode"}
        if unknown:
            raise ValueError(f"{min(unknown)}: no such row; there are {', '.join(ROWS)}, scale, decode")
        if "decode" in options.rows and options.video is None:
            raise ValueError("decode needs --video FILE")
        run(options)


def run(options: argparse.Namespace) -> None:
    device = torch.device(devices.choose_device(options.device))
    preset = options.preset or ("paper" if device.type == "cuda" else "demo")
    chosen = options.rows or (*ROWS, "scale")
    result = dict(machine=machine(device), torch=torch.__version__, date=time.strftime("%Y-%m-%d"), preset=preset,
                  fast=options.fast)
    print(f"{result['machine']}, PyTorch {torch.__version__}, {result['date']}, preset {preset}, "
          f"{'bf16' if options.fast else 'single precision'}")
    if set(chosen) & set(ROWS):
        result |= rates(device, options.fast)
        print(f"measured: {result['operations_per_s'] / 1e9:,.0f} GFLOP/s in matrix products "
              f"({result['torch_operations_per_s'] / 1e9:,.0f} by PyTorch), "
              f"{result['bytes_per_s'] / 1e9:.1f} GB/s in a copy\n")
        print(f"{'what':46s}" + "".join(f"{c:>11s}" for c in ("ours", "plain way", "ratio", "floor")))
        result["rows"] = []
        with tempfile.TemporaryDirectory(prefix="uwav-bench-") as folder:
            bench = Bench(preset, device, options.fast, options.unav, Path(folder))
            for name in (name for name in ROWS if name in chosen):
                for row in getattr(bench, name)():
                    row.floor = max(row.operations / result["operations_per_s"], row.bytes / result["bytes_per_s"])
                    print_row(row)
                    result["rows"].append(asdict(row))
        result["peak_mb"] = peak_memory()
        print(f"\npeak memory: {result['peak_mb']:,.0f} MB")
        if device.type == "cuda":
            result["peak_gpu_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
            print(f"on the GPU: {result['peak_gpu_mb']:,.0f} MB")
    if "scale" in chosen:
        result["scale"] = scale(preset, device, options.fast)
    if "decode" in chosen:
        result["decode"] = decode(options.video, options.clips)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.json, result)
    print(f"\n{options.json}: written")


if __name__ == "__main__":
    main()
