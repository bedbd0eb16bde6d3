"""What things cost: one run, one table, one JSON. Beside each figure the plain way of doing it, and the floor.

    python bench.py                          # every row that needs no video; under 5 minutes and 4 GB on 2 CPU cores
    python bench.py epoch score              # some rows
    python bench.py decode --video CLIP      # decoding of a video file
    python bench.py --preset paper --fast    # on a GPU: the published models, in bf16, compiled

The plain way is how the field's repositories do it: one file per feature and video, a DataLoader,
nn.MultiheadAttention, scores in NumPy, video by video. The floor is what this machine could do at best:
operations over its measured rate of matrix products, or bytes over its bandwidth, whichever is longer.

Sizes are real, data and weights random. Of a long job a part is timed and scaled up; the last column says which.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import os
import platform
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import uwav
from common import devices
from common.command import one_sentence_errors
from common.files import write_json
from data import annotations, layout
from data.annotations import LLP_CLASSES, LLP_SEGMENTS
from data.layout import FEATURE_SETS
from train.presets import PRESETS
from uwav import SourceSplit, TargetSplit, parsing_scores

TRAIN, TEST, T, C = 10_000, 1_200, LLP_SEGMENTS, len(LLP_CLASSES)  # LLP
SOURCE, SOURCE_CLASSES = 6_489, 100  # UnAV-100, training split
SOURCE_SECONDS = 10, 60, 42, 10  # of its videos: shortest, longest, mean, standard deviation
FILES = 400  # videos that exist as files; the plain ways read them again and again, from the page cache
SIZES = {name: size for name, (_, _, size) in layout.LLP_FEATURES.items()}
ROUNDS, ROUND_SECONDS = 3, 1.2  # how often ours and the plain way take turns, and for how long at a time


# ---- Measuring -----------------------------------------------------------------------------------

@dataclass
class Row:
    """One figure. Times in seconds; the floor follows from `operations` and `bytes`."""

    what: str
    seconds: float
    plain: float
    operations: float = 0
    bytes: float = 0
    note: str = ""


def seconds_of(function: Callable, device: torch.device, calls: int = 1) -> float:
    """Seconds a call."""
    wait = functools.partial(torch.cuda.synchronize, device) if device.type == "cuda" else int
    wait()
    started = time.perf_counter()
    for _ in range(calls):
        function()
    wait()
    return (time.perf_counter() - started) / calls


def measure(device: torch.device, *functions: Callable, warm: int = 1) -> list[float]:
    """Seconds of one call of each: the medians of a few rounds in which they take turns."""
    first = [[seconds_of(f, device) for _ in range(2)] for f in functions]
    calls = [max(1, min(50, int(ROUND_SECONDS / second))) for _, second in first]
    times = [[] for _ in functions]
    for _ in range(ROUNDS):
        for function, n, own in zip(functions, calls, times):
            for _ in range(warm):
                function()
            own.append(seconds_of(function, device, n))
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


def peak_memory() -> float:
    """The most resident memory so far, in MB; 0 where there is no /proc (Linux has it)."""
    status = Path("/proc/self/status")
    return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1e3 if status.exists() else 0.0


# ---- Random data of real sizes -------------------------------------------------------------------

def random_target(videos: int, features: str, device: torch.device) -> TargetSplit:
    """A split of LLP."""
    torch.manual_seed(videos)
    weak = (torch.rand(videos, C, device=device) < 1.8 / C).float()  # 1.8 classes a video, as in LLP
    arrays = (name and torch.randn(videos, T, SIZES[name], dtype=torch.half, device=device)
              for name in FEATURE_SETS[features])
    return TargetSplit(*arrays, weak, *random_truth(weak))


def random_truth(weak: Tensor) -> list[Tensor]:
    """Audible and visible, (N, T, C) uint8 each: per class of weak (N, C) one run of seconds, 7 of 10 on average."""
    t = torch.arange(T, device=weak.device)[:, None]  # (T, 1)
    drawn = torch.randint(0, 4, (2, 2, len(weak), 1, C), device=weak.device)  # seconds before and after the run
    return [((before <= t) & (t < T - after)).byte() * weak[:, None].byte() for before, after in drawn]


def random_pair(rows: int, device: torch.device) -> list[Tensor]:
    """Unit vectors of CLAP and of CLIP, (rows, D) each."""
    return [F.normalize(torch.randn(rows, SIZES[x], device=device), dim=-1) for x in ("clap", "clip")]


def write_files(folder: Path, length: np.ndarray) -> None:
    """FILES videos of LLP and FILES of UnAV in the layout of the authors' download."""
    ids, rng = [f"video{n:06d}" for n in range(FILES)], np.random.default_rng(0)
    shapes = {f"{place}/{video}.npy": (T * per_second, size)
              for place, per_second, size in layout.LLP_FEATURES.values() for video in ids}
    shapes |= {f"{place}/{video}.npy": (seconds, size)
               for place, size in layout.UNAV_FEATURES.values() for video, seconds in zip(ids, length)}
    shapes |= {f"{dataset}/{file}": (classes, size)
               for dataset, classes in (("LLP", C), ("UnAV", 1)) for file, size in layout.TEXT_FILES.values()}
    for file, shape in shapes.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / file, rng.standard_normal(shape, np.float32))
    for split, videos in (("train", ids[2:]), ("val", ids[:1]), ("test", ids[1:2])):
        rows = ["filename\tevent_labels", *(f"{video}_0_10\tSpeech" for video in videos)]
        (folder / "LLP" / annotations.LLP_WEAK_FILES[split]).write_text("\n".join(rows))
    for file in annotations.LLP_DENSE_FILES.values():
        (folder / "LLP" / file).write_text(f"filename\tonset\toffset\tevent_labels\n{ids[0]}_0_10\t0\t5\tSpeech")
    events = [dict(segment=[1, 3], label="a", label_id=0)]
    database = {video: dict(duration=float(seconds), subset=subset, annotations=events) for video, seconds, subset
                in zip(ids, length, ["validation", "test"] + ["train"] * (FILES - 2))}
    write_json(folder / "UnAV/unav100_annotations.json", dict(version="random", database=database))


# ---- The plain ways ------------------------------------------------------------------------------

def read_target(folder: Path, names: tuple[str | None, ...], videos: list[int]) -> tuple[Tensor, ...]:
    """Their numbers (B,) and features: one file per feature and video, FILES of them again and again."""
    folders = [folder / layout.LLP_FEATURES[name][0] for name in names if name]
    return torch.tensor(videos), *(torch.stack([read_video(f, n) for n in videos]) for f in folders)


def read_source(folder: Path, longest: int, videos: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """The same for UnAV: audio, visual (B, T, D), every video padded to the longest of all, and mask (B, T)."""
    pairs = [[read_video(folder / place, n) for place, _ in layout.UNAV_FEATURES.values()] for n in videos]
    mask = torch.arange(longest) < torch.tensor([[len(audio)] for audio, _ in pairs])
    audio, visual = (torch.stack([F.pad(x, (0, 0, 0, longest - len(x))) for x in arrays]) for arrays in zip(*pairs))
    return audio, visual, mask


def read_video(folder: Path, n: int) -> Tensor:
    return torch.from_numpy(np.load(folder / f"video{n % FILES:06d}.npy"))


def plain_batches(read: Callable, videos: int, batch: int, device: torch.device) -> Iterator[list[Tensor]]:
    """Shuffled batches without end, read by as many processes as there are cores."""
    loader = torch.utils.data.DataLoader(range(videos), batch, shuffle=True, num_workers=os.cpu_count() or 1,
                                         collate_fn=read, pin_memory=device.type == "cuda")
    while True:
        for tensors in loader:
            yield [x.to(device, non_blocking=True) for x in tensors]


class PlainAttention(nn.MultiheadAttention):
    def __init__(self, hidden: int, heads: int, dropout: float):
        super().__init__(hidden, heads, dropout, batch_first=True)

    def forward(self, x: Tensor, source: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, source, source, key_padding_mask=None if mask is None else ~mask)[0]


def plain_model(model: nn.Module) -> nn.Module:
    """The same model, its attention by PyTorch's own module."""
    with mock.patch.object(uwav, "Attention", PlainAttention):
        plain = type(model)(model.config)
    plain.load_state_dict({name.replace("in_proj.", "in_proj_"): x for name, x in model.state_dict().items()})
    return plain.to(next(model.parameters()).device)


def plain_updates(model: nn.Module, config: uwav.PretrainConfig | uwav.TrainConfig) -> Callable[[Tensor], float]:
    """What changes the weights, given a loss."""
    betas = config.beta1, config.beta2
    optimizer = torch.optim.AdamW(model.parameters(), config.peak_lr, betas, 1e-8, config.weight_decay)

    def update(loss: Tensor) -> float:
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        return loss.item()

    return update


def plain_events(x: np.ndarray) -> list[tuple[int, int]]:
    """Runs of positive segments, x (T,) -> [(first, last + 1), ...]."""
    padded = [0, *x, 0]
    changes = [t for t in range(len(x) + 1) if padded[t] != padded[t + 1]]
    return list(zip(changes[::2], changes[1::2]))


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
        row, pairs = [], ((ap, at), (vp, vt), (ap & vp, at & vt))  # audible, visible, both at once
        for count in (plain_segment_counts, plain_event_counts):
            a, v, av = ([count(p[:, c], t[:, c]) for c in range(ap.shape[1])] for p, t in pairs)
            pooled = [tuple(x + y for x, y in zip(*both)) for both in zip(a, v)]
            f = [f_score(x) for x in (a, v, av, pooled)]
            row += [*f[:3], sum(f[:3]) / 3, f[3]]
        per_video.append(row)
    return dict(zip(uwav.SCORES, (100 * np.mean(per_video, 0)).tolist()))


# ---- Ours: the rows, and decoding ----------------------------------------------------------------

def training_steps(model: uwav.HAN, data: TargetSplit, labels: uwav.PseudoLabels,
                   config: uwav.TrainConfig) -> Iterator[Tensor]:
    """Ours, epoch after epoch without end."""
    optimizer = uwav.adamw(model, config)
    forward, losses_of = (devices.accelerate(x, config.fast, data.weak.device, one_shape=True)
                          for x in (model, uwav.han_losses))
    for epoch in itertools.count(1):
        yield from uwav.han_epoch(model, forward, losses_of, optimizer, data, labels, config, epoch)


class Bench:
    """What the rows share."""

    def __init__(self, preset: str, device: torch.device, half: bool, unav: Path | None, folder: Path):
        self.preset, self.device, self.folder = PRESETS[preset], device, folder
        self.config, self.pretrain_config = (replace(c, fast=half) for c in (self.preset.train, self.preset.pretrain))
        self.zeros = torch.zeros(2, C, device=device)  # thresholds
        shortest, longest, mean, deviation = SOURCE_SECONDS
        drawn = np.random.default_rng(0).normal(mean, deviation, SOURCE)
        self.length = np.clip(drawn.round(), shortest, longest).astype(np.int64)
        if unav:
            self.length = np.array([len(x) for x in annotations.read_unav(unav).train.labels])

    @functools.cached_property
    def files(self) -> Path:
        write_files(self.folder, self.length)
        return self.folder

    @functools.cached_property
    def han(self) -> uwav.HAN:
        torch.manual_seed(0)
        return uwav.HAN(self.preset.han["base"]).to(self.device)

    @functools.cache
    def data(self, videos: int) -> TargetSplit:
        return random_target(videos, "base", self.device)

    def epoch(self) -> list[Row]:
        config, device, data = self.config, self.device, self.data(TRAIN)
        steps = math.ceil(TRAIN / config.batch)
        read = functools.partial(read_target, self.files, FEATURE_SETS["base"])
        batches = plain_batches(read, TRAIN, config.batch, device)
        labels = uwav.pseudo_labels(torch.randn(2, TRAIN, T, C, device=device), self.zeros, data.weak, config)
        model, rng = plain_model(self.han).train(), np.random.default_rng(0)
        update = plain_updates(model, config)

        def plain(index: Tensor, *inputs: Tensor) -> float:
            mixup = uwav.draw_mixup(len(index) * T, config.alpha, rng, device)
            losses = uwav.han_losses(model, model(*inputs), data.weak[index], labels.of(index), mixup)
            return update(losses.sum())

        ours, kept = training_steps(self.han, data, labels, config), next(batches)
        step = measure(device, lambda: next(ours), lambda: plain(*kept))
        epoch = measure(device, lambda: next(ours), lambda: plain(*next(batches)), warm=5)
        flops, note = operations(lambda: plain(*kept)), f"batches of {config.batch}"
        return [Row("HAN, one step", *step, flops, note=note + ", features in memory"),
                Row("HAN, one epoch with its data", *(steps * s for s in epoch), steps * flops,
                    note=f"{note}, scaled to {steps}")]

    def teacher(self) -> list[Row]:
        config, device, length = self.pretrain_config, self.device, self.length
        steps, segments = math.ceil(SOURCE / config.batch), int(length.sum())
        torch.manual_seed(0)
        own = uwav.Teacher(self.preset.teacher).to(device)
        text, label = random_pair(SOURCE_CLASSES, device), torch.rand(segments, SOURCE_CLASSES, device=device) < 0.03
        features = (torch.randn(segments, SIZES[x], dtype=torch.half, device=device) for x in ("clap", "clip"))
        data = SourceSplit(*features, label.byte(), length)
        own_optimizer = uwav.adamw(own, config)
        forward = devices.accelerate(own, config.fast, device, one_shape=False)
        ours = (loss for epoch in itertools.count()
                for loss in uwav.teacher_epoch(own, forward, own_optimizer, data, text, config, epoch))
        model = plain_model(own).train()
        update, read = plain_updates(model, config), functools.partial(read_source, self.files, int(length.max()))
        batches = plain_batches(read, SOURCE, config.batch, device)

        def plain(audio: Tensor, visual: Tensor, mask: Tensor) -> float:
            some = label[: mask.numel()].reshape(*mask.shape, -1).float()  # (B, T, C)
            return update(uwav.teacher_loss(*model(audio, visual, *text, mask), some, mask, config.pos_weight))

        seconds = measure(device, lambda: next(ours), lambda: plain(*next(batches)), warm=5)
        audio, visual, mask = next(batches)
        flops = operations(lambda: plain(audio, visual, mask)) / mask.numel() * segments  # without padding
        batched = uwav.batches_by_length(length, config.batch, config.length_pool, np.random.default_rng(0))
        padded = sum(len(videos) * int(length[videos].max()) for videos in batched)
        note = (f"batches of {config.batch}, scaled to {steps}; padding {padded / segments - 1:.0%}, "
                f"plain {SOURCE * int(length.max()) / segments - 1:.0%}")
        return [Row("teacher, one epoch with its data", *(steps * s for s in seconds), flops, note=note)]

    def score(self) -> list[Row]:
        data = self.data(TEST)
        arrays = [x > 0 for x in (*random_truth(data.weak), data.audio_truth, data.visual_truth)]  # (N, T, C) each
        part = TEST // 4
        quarter = [x[:part].cpu().numpy() for x in arrays]
        ours, plain = measure(self.device, lambda: parsing_scores(*arrays), lambda: plain_scores(*quarter))
        return [Row("ten scores of 1,200 videos", ours, plain * TEST / part, bytes=sum(x.nbytes for x in arrays),
                    note=f"plain: {part} videos, scaled")]

    def onnx(self) -> list[Row]:
        """The published HAN (random weights), one thread of a CPU: torch.compile and onnxruntime beside PyTorch."""
        import onnx

        import export_onnx

        torch.manual_seed(0)
        torch.set_num_threads(1)
        export, files, rows = export_onnx.exports_of(uwav.HAN().eval(), None)["parser"], {}, []
        for kind in ("fp32", "fp16", "int8"):
            files[kind] = self.folder / f"han_{kind}.onnx"
            if kind == "fp32":
                onnx.save(export_onnx.trace(export), files[kind])
            else:
                export_onnx.make_variant(kind, files["fp32"], files[kind])
        sessions = {kind: export_onnx.session(path, threads=1) for kind, path in files.items()}
        compiled = torch.compile(export)
        for B in (1, 64):
            inputs = export.inputs(B, T, 0)
            eager, other = (torch.inference_mode()(functools.partial(f, *inputs.values())) for f in (export, compiled))
            feeds = {k: v.numpy() for k, v in inputs.items()}
            ways = {"torch.compile": other} if shutil.which("c++") else {}
            ways |= {f"onnxruntime {k}": functools.partial(x.run, None, feeds) for k, x in sessions.items()}
            flops, times = operations(eager), measure(torch.device("cpu"), eager, *ways.values())
            for way, seconds in zip(ways, times[1:]):
                file = files.get(way.split()[-1])
                note = f"{file.stat().st_size / 1e6:.1f} MB; plain: PyTorch" if file else "plain: PyTorch"
                rows.append(Row(f"HAN of preset paper, batch {B}, {way}", seconds, times[0], flops, note=note))
        return rows


ROWS = ("epoch", "teacher", "score", "onnx")


def decode(path: Path) -> dict:
    """ms a clip on one core."""
    from video import decode as video

    seconds, cpu = video.read_clip(path).seconds, torch.device("cpu")
    ms = 1e3 * statistics.median(seconds_of(lambda: video.read_clip(path), cpu) for _ in range(20))
    print(f"\ndecode {path.name}: {seconds:.1f} s of video in {ms:.0f} ms on one core (median of 20)")
    return dict(seconds=seconds, ms_per_clip=ms)


# ---- Command line --------------------------------------------------------------------------------

def line(title: str, cells: list[str], note: str = "") -> str:
    return f"{title:52s}" + "".join(f"{cell:>11s}" for cell in cells) + f"  {note}"


def in_units(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")  # Linux; elsewhere Python knows it
    found = re.search("model name\\s*: (.*)", info.read_text()) if info.exists() else None
    return f"{found[1] if found else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description="What things cost, beside the plain way of doing them and the floor.")
    parser.add_argument("rows", nargs="*", metavar="ROW",
                        help=f"{', '.join(ROWS)}, decode (default: all but decode)")
    parser.add_argument("--preset", choices=PRESETS, help="sizes of the models (default: paper on a GPU, or demo)")
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: cuda where there is a GPU)")
    parser.add_argument("--fast", action="store_true", help="train in bf16 and, on a GPU, with compiled kernels")
    parser.add_argument("--unav", type=Path, metavar="FILE", help="unav100_annotations.json, for the real lengths")
    parser.add_argument("--video", type=Path, help="a video file, for decode")
    parser.add_argument("--json", type=Path, default=Path("runs/bench.json"), metavar="FILE",
                        help="where to write the figures (default: runs/bench.json)")
    options = parser.parse_args()
    with one_sentence_errors("begins again"):
        unknown = set(options.rows) - {*ROWS, "decode"}
        if unknown:
            raise ValueError(f"{min(unknown)}: no such row; there are {', '.join(ROWS)}, decode")
        if "decode" in options.rows and options.video is None:
            raise ValueError("decode needs --video FILE")
        run(options)


def run(options: argparse.Namespace) -> None:
    device = torch.device(devices.choose_device(options.device))
    preset = options.preset or ("paper" if device.type == "cuda" else "demo")
    chosen = options.rows or ROWS
    result = dict(machine=machine(device), torch=torch.__version__, date=time.strftime("%Y-%m-%d"), preset=preset,
                  fast=options.fast)
    print(f"{result['machine']}, PyTorch {torch.__version__}, {result['date']}, preset {preset}, "
          f"{'bf16' if options.fast else 'single precision'}")
    if set(chosen) & set(ROWS):
        result |= rates(device, options.fast)
        print(f"measured: {result['operations_per_s'] / 1e9:,.0f} GFLOP/s in matrix products "
              f"({result['torch_operations_per_s'] / 1e9:,.0f} by PyTorch), "
              f"{result['bytes_per_s'] / 1e9:.1f} GB/s in a copy\n")
        print(line("what", ["ours", "plain way", "ratio", "floor"]))
        result["rows"] = []
        with tempfile.TemporaryDirectory(prefix="uwav-bench-") as folder:
            bench = Bench(preset, device, options.fast, options.unav, Path(folder))
            for row in itertools.chain.from_iterable(getattr(bench, name)() for name in ROWS if name in chosen):
                floor = max(row.operations / result["operations_per_s"], row.bytes / result["bytes_per_s"])
                ours, plain, best = map(in_units, (row.seconds, row.plain, floor))
                print(line(row.what, [ours, plain, f"{row.plain / row.seconds:.2f}x", best], row.note), flush=True)
                result["rows"].append(asdict(row) | dict(floor=floor))
        result["peak_mb"] = peak_memory()
        print(f"\npeak memory: {result['peak_mb']:,.0f} MB")
        if device.type == "cuda":
            result["peak_gpu_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
            print(f"on the GPU: {result['peak_gpu_mb']:,.0f} MB")
    if "decode" in chosen:
        result["decode"] = decode(options.video)
    write_json(options.json, result)
    print(f"\n{options.json}: written")


if __name__ == "__main__":
    main()
