"""What things cost: one run, one table. Beside each figure the plain way of doing it, and the floor.

    python bench.py                          # every row; under 5 minutes and 4 GB on 2 CPU cores
    python bench.py epoch evaluate           # some rows
    python bench.py --preset paper --fast    # on a GPU: the published models, in bf16, compiled

The plain way is how the field's repositories do it: one file per feature and video, a DataLoader, every video padded
to the longest, one video at a time where nothing is learned. The floor is what this machine could do at best:
operations over its measured rate of matrix products.

Sizes are real, data and weights random. Of a long job a part is timed and scaled up; the last column says which.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

import uwav
from common import devices
from common.command import one_sentence_errors
from data.annotations import LLP_CLASSES, LLP_SEGMENTS
from data.demo_world import SOURCE_CLASSES, SOURCE_SECONDS
from data.layout import ENCODERS, FEATURE_SETS
from train.presets import PRESETS
from uwav import SourceSplit, TargetSplit

TRAIN, TEST, T, C = 10_000, 1_200, LLP_SEGMENTS, len(LLP_CLASSES)  # LLP
SOURCE = 6_489  # UnAV-100, training split
COPIES = 400  # videos that exist as files; the plain ways read them again and again, from the page cache
LAUNCH, CARDS = 5e-6, {"RTX 3090": 35e12, "H100 in bf16": 400e12}  # seconds; operations a second, in practice
ROUNDS, ROUND_SECONDS = 3, 1.2  # how often ours and the plain way take turns, and for how long at a time


# ---- Measuring -----------------------------------------------------------------------------------

def measure(*functions: Callable, warm: int = 0) -> list[float]:
    """Seconds of one call of each: the medians of a few rounds in which they take turns, each after `warm` calls."""
    timers = [Timer("f()", f"for _ in range({warm}): f()", globals=dict(f=f), num_threads=torch.get_num_threads())
              for f in functions]
    calls = [max(1, min(50, int(ROUND_SECONDS / timer.timeit(1).mean))) for timer in timers]
    rounds = [[timer.timeit(n).mean for timer, n in zip(timers, calls)] for _ in range(ROUNDS)]
    return [statistics.median(times) for times in zip(*rounds)]


def rate(device: torch.device, half: bool) -> float:
    """What the machine can do: operations a second in matrix products."""
    n = 2048 if device.type == "cpu" else 8192
    x = torch.randn(n, n, device=device, dtype=torch.bfloat16 if half else torch.float32)
    ways = [x]
    if device.type == "cpu" and not half and torch.backends.mkldnn.is_available():
        ways.append(x.to_mkldnn())  # oneDNN, which PyTorch does not use here by itself; on some CPUs the faster one
    return 2 * n**3 / min(measure(*(functools.partial(F.linear, z, z) for z in ways)))


def operations(function: Callable) -> float:
    """Floating-point operations of one call, in matrix products and attention."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


class Launches(TorchDispatchMode):
    """Counts the operations that compute or copy something. A fused kernel of a GPU does several at once."""

    views = set("_record_function_enter_new _record_function_exit _reshape_alias _unsafe_view alias as_strided detach "
                "empty empty_like expand permute select slice split split_with_sizes squeeze t transpose unbind "
                "unsqueeze view".split())
    count = 0

    def __torch_dispatch__(self, function: Callable, types: object, args: tuple = (), kwargs: object = None) -> object:
        self.count += function._schema.name.split("::")[1] not in self.views
        return function(*args, **(kwargs or {}))


# ---- Random data of real sizes -------------------------------------------------------------------

def random_target(videos: int, device: torch.device) -> TargetSplit:
    """A split of LLP with the features `base`."""
    torch.manual_seed(videos)
    weak = (torch.rand(videos, C, device=device) < 1.8 / C).float()  # 1.8 classes a video, as in LLP
    sizes = (ENCODERS[name].size for name in FEATURE_SETS["base"])
    arrays = (torch.randn(videos, T, size, dtype=torch.half, device=device) for size in sizes)
    t = torch.arange(T, device=device)[:, None]  # (T, 1)
    before, after = torch.randint(0, 4, (2, 2, videos, 1, C), device=device)  # seconds around the one run of a class
    return TargetSplit(*arrays, weak, *((before <= t) & (t < T - after) & (weak > 0)[:, None]).byte())


class Files(torch.utils.data.Dataset):
    """The plain way's data: one file per feature and video, COPIES videos again and again, padded to the longest."""

    def __init__(self, folder: Path, features: tuple[str, ...], length: np.ndarray):
        self.length, self.longest, rng = length, int(length.max()), np.random.default_rng(0)
        self.folders = [folder / name for name in features]
        for place, encoder in zip(self.folders, map(ENCODERS.get, features)):
            place.mkdir(parents=True)
            for n, seconds in enumerate(length[:COPIES]):
                shape = seconds * encoder.per_second, encoder.size
                np.save(place / f"{n}.npy", rng.standard_normal(shape, np.float32))

    def __len__(self) -> int:
        return len(self.length)

    def __getitem__(self, n: int) -> tuple[int, Tensor, ...]:
        """Number, mask (longest,), and the features, (longest, D) each."""
        file, seconds = f"{n % COPIES}.npy", int(self.length[n % COPIES])
        arrays = (torch.from_numpy(np.load(place / file)) for place in self.folders)
        return n, torch.arange(self.longest) < seconds, *(F.pad(x, (0, 0, 0, self.longest - seconds)) for x in arrays)


def plain_batches(files: Files, batch: int, device: torch.device) -> Iterator[list[Tensor]]:
    """The plain way: shuffled batches without end, read by as many processes as there are cores."""
    loader = torch.utils.data.DataLoader(files, batch, shuffle=True, num_workers=os.cpu_count() or 1,
                                         pin_memory=device.type == "cuda")
    while True:
        for tensors in loader:
            yield [x.to(device, non_blocking=True) for x in tensors]


# ---- The rows ------------------------------------------------------------------------------------

Line = tuple[str, float, float, float, str]  # what, seconds of ours and of the plain way, operations, a note


class Bench:
    """What the rows share. Each is a method."""

    def __init__(self, options: argparse.Namespace, device: torch.device, preset: str, folder: Path):
        self.preset, self.device, self.folder, self.fast = PRESETS[preset], device, folder, options.fast
        torch.manual_seed(0)
        self.han = uwav.HAN(self.preset.han["base"]).to(device)

    @functools.cached_property
    def files(self) -> Files:
        return Files(self.folder / "LLP", FEATURE_SETS["base"], np.full(TRAIN, T))

    def training(self, what: str, steps: int, work: float, note: str, ours: Callable, plain: Callable) -> Line:
        """Of an epoch, two generators of the losses of epoch 1, 2, ...; the plain one waits for every loss. work: share
        of a plain step's operations that are not padding."""
        ours, plain = (itertools.chain.from_iterable(map(x, itertools.count(1))) for x in (ours, plain))
        seconds = measure(lambda: next(ours), lambda: next(plain).sum().item(), warm=5)
        return what, *(steps * s for s in seconds), steps * work * operations(lambda: next(plain)), note

    def epoch(self) -> Iterator[Line]:
        config, device = replace(self.preset.train, fast=self.fast), self.device
        steps, data, model = math.ceil(TRAIN / config.batch), random_target(TRAIN, device), copy.deepcopy(self.han)
        labels = uwav.pseudo_labels(torch.randn(2, TRAIN, T, C, device=device), torch.zeros(2, C, device=device),
                                    data.weak, config)
        forward, losses_of = (devices.accelerate(x, config.fast, device, one_shape=True)
                              for x in (self.han, uwav.han_losses))
        batches = plain_batches(self.files, config.batch, device)
        read = SimpleNamespace(audio=data.audio, weak=data.weak, inputs=lambda index: next(batches)[2:])
        ways = (self.han, forward, losses_of, data), (model, model, uwav.han_losses, read)
        ours, plain = (functools.partial(uwav.han_epoch, *way[:3], uwav.adamw(way[0], config), way[3], labels, config)
                       for way in ways)
        yield self.training("HAN, one epoch with its data", steps, 1, f"batches of {config.batch}, scaled to {steps}",
                            ours, plain)

    def teacher(self) -> Iterator[Line]:
        config, device = replace(self.preset.pretrain, fast=self.fast), self.device
        shortest, mean, longest, deviation = SOURCE_SECONDS
        drawn = np.random.default_rng(0).normal(mean, deviation, SOURCE)
        length = np.clip(drawn.round(), shortest, longest).astype(np.int64)
        steps, segments = math.ceil(SOURCE / config.batch), int(length.sum())
        torch.manual_seed(0)
        own = uwav.Teacher(self.preset.teacher).to(device)
        model = copy.deepcopy(own)
        audio, visual = (torch.randn(segments, ENCODERS[x].size, dtype=torch.half, device=device)
                         for x in ("clap", "clip"))
        text = [F.normalize(x[:SOURCE_CLASSES].float(), dim=-1) for x in (audio, visual)]  # (C, D) each
        label = (torch.rand(segments, SOURCE_CLASSES, device=device) < 0.03).byte()
        batches = plain_batches(Files(self.folder / "UnAV", ("clap", "clip"), length), config.batch, device)

        def read(videos: np.ndarray) -> tuple[Tensor, ...]:
            _, mask, *inputs = next(batches)  # (B, T), (B, T, D) each
            return *inputs, label[: mask.numel()].reshape(*mask.shape, -1).float(), mask

        ways = ((own, devices.accelerate(own, config.fast, device, one_shape=False),
                 SourceSplit(audio, visual, label, length)), (model, model, SimpleNamespace(length=length, batch=read)))
        ours, plain = (functools.partial(uwav.teacher_epoch, *way[:2], uwav.adamw(way[0], config), way[2], text, config)
                       for way in ways)
        batched = uwav.batches_by_length(length, config.batch, config.length_pool, np.random.default_rng(0))
        padded = sum(len(videos) * int(length[videos].max()) for videos in batched)
        note = (f"batches of {config.batch}, scaled to {steps}; padding {padded / segments - 1:.0%}, "
                f"plain {SOURCE * int(length.max()) / segments - 1:.0%}")
        yield self.training("teacher, one epoch with its data", steps, length.mean() / length.max(), note, ours, plain)

    def evaluate(self) -> Iterator[Line]:
        model, data, part = self.han, random_target(TEST, self.device), TEST // 8

        def plain() -> dict[str, float]:
            videos = (TargetSplit(*(x[None].to(self.device) for x in self.files[n][2:]), data.weak[n : n + 1],
                                  None, None) for n in range(part))
            each = (uwav.gated_predictions(*uwav.han_probabilities(model, video)) for video in videos)
            return uwav.parsing_scores(*map(torch.cat, zip(*each)), data.audio_truth[:part], data.visual_truth[:part])

        seconds, some = measure(lambda: uwav.han_scores(model, data), plain)
        yield ("HAN, 1,200 videos parsed and scored", seconds, some * TEST / part,
               operations(lambda: uwav.han_probabilities(model, data)), f"plain: {part} videos, scaled")

    def onnx(self) -> Iterator[Line]:
        """The published HAN (random weights), one thread of a CPU: torch.compile and onnxruntime beside PyTorch."""
        import onnx

        import export_onnx

        torch.manual_seed(0)
        torch.set_num_threads(1)
        export = export_onnx.exports_of(uwav.HAN().eval(), None)["parser"]
        files = {kind: self.folder / f"han_{kind}.onnx" for kind in ("fp32", "fp16", "int8")}
        onnx.save(export_onnx.trace(export), files["fp32"])
        for kind in ("fp16", "int8"):
            export_onnx.make_variant(kind, files["fp32"], files[kind])
        sessions = {f"onnxruntime {kind}, {path.stat().st_size / 1e6:.1f} MB": export_onnx.session(path, threads=1)
                    for kind, path in files.items()}
        compiled = {"torch.compile": torch.compile(export)} if shutil.which("c++") else {}
        for B in (1, 64):
            inputs = export.inputs(B, T, 0)
            feeds = {k: v.numpy() for k, v in inputs.items()}
            plain, *others = (torch.inference_mode()(functools.partial(f, *inputs.values()))
                              for f in (export, *compiled.values()))
            runs = (functools.partial(x.run, None, feeds) for x in sessions.values())
            eager, *times = measure(plain, *others, *runs)
            for name, seconds in zip((*compiled, *sessions), times):
                yield f"HAN published, batch {B}, {name}", seconds, eager, operations(plain), "plain: PyTorch"


def on_cards(model_config: uwav.HANConfig) -> str:
    """What a training step of the published HAN asks of any device, and what follows for cards that are not here."""
    config, steps, device = uwav.TrainConfig(), math.ceil(TRAIN / uwav.TrainConfig().batch), torch.device("cpu")
    model, data = uwav.HAN(model_config), random_target(2 * config.batch, device)
    labels = uwav.pseudo_labels(torch.randn(2, len(data.weak), T, C), torch.zeros(2, C), data.weak, config)
    epoch = uwav.han_epoch(model, model, uwav.han_losses, uwav.adamw(model, config), data, labels, config, 1)
    next(epoch)  # which also makes the optimiser's state
    with Launches() as launches:
        work = operations(lambda: next(epoch))
    lines = (f"{card}: {steps * launches.count * LAUNCH:.2f} s at {LAUNCH * 1e6:.0f} us a launch, "
             f"{steps * work / speed:.2f} s at {speed / 1e12:.0f} TFLOP/s" for card, speed in CARDS.items())
    return "\n".join((f"computed, not measured: an epoch of the published HAN is {steps} steps of {launches.count:,} "
                      f"launches and {work / 1e9:.3g} GFLOP", *lines, "published: 24 s on an RTX 3090"))


MEASURED = ("epoch", "teacher", "evaluate", "onnx")  # the last one leaves a single thread


# ---- Command line --------------------------------------------------------------------------------

def line(what: str, ours: str, plain: str, ratio: str, floor: str, note: str = "") -> str:
    return f"{what:52s}{ours:>11s}{plain:>11s}{ratio:>11s}{floor:>11s}  {note}"


def in_units(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description="What things cost, beside the plain way of doing them and the floor.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"{', '.join(MEASURED)} (default: all)")
    parser.add_argument("--preset", choices=PRESETS, help="sizes of the models (default: paper on a GPU, or demo)")
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: cuda where there is a GPU)")
    parser.add_argument("--fast", action="store_true", help="train in bf16 and, on a GPU, with compiled kernels")
    options = parser.parse_args()
    with (one_sentence_errors("begins again", ""), devices.ranks(options),
          tempfile.TemporaryDirectory(prefix="uwav-bench-") as folder):
        if unknown := set(options.rows) - set(MEASURED):
            raise ValueError(f"{min(unknown)}: no such row; there are {', '.join(MEASURED)}")
        device = torch.device(devices.choose_device(options.device))
        preset = options.preset or ("paper" if device.type == "cuda" else "demo")
        operations_per_s = rate(device, options.fast)
        machine = torch.cuda.get_device_name(device) if device.type == "cuda" else devices.processor()
        print(f"{machine}, PyTorch {torch.__version__}, {time.strftime('%Y-%m-%d')}, preset {preset}, "
              f"{'bf16' if options.fast else 'single precision'}\n"
              f"measured: {operations_per_s / 1e9:,.0f} GFLOP/s in matrix products\n\n"
              + line("what", "ours", "plain way", "ratio", "floor"))
        bench, rows = Bench(options, device, preset, Path(folder)), options.rows or MEASURED
        for name in sorted(set(rows), key=MEASURED.index):
            for what, ours, plain, work, note in getattr(bench, name)():
                print(line(what, in_units(ours), in_units(plain), f"{plain / ours:.2f}x",
                           in_units(work / operations_per_s), note), flush=True)
        if "epoch" in rows:
            print(f"\n{on_cards(uwav.HANConfig())}")


if __name__ == "__main__":
    main()
