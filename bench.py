"""What things cost, measured on this machine in one run.

    python bench.py decode VIDEO [--clips 200] [--json FILE]
    python bench.py onnx [--json FILE]

decode: one video file, again and again: time for a clip on one core, clips a second by 1, 2, ... processes, and whether
memory grows with the number of clips. onnx: the HAN of preset `paper` in onnxruntime against PyTorch, on the CPU.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

from features import one_sentence_errors, write_json


def memory() -> float:
    """Resident memory of this process and its children in MB (Linux)."""
    total = 0
    for pid in (os.getpid(), *(p.pid for p in multiprocessing.active_children())):
        status = Path(f"/proc/{pid}/status").read_text()
        total += int(status.split("VmRSS:")[1].split()[0])  # kB
    return total / 1e3


def bench_decode(path: Path, clips: int) -> dict:
    """ms a clip on one core; clips a second and memory over `clips` decodings, by the number of processes."""
    import video

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
        times = row["clips_per_s"] / rows[1]["clips_per_s"]
        print(f"  {workers} processes: {row['clips_per_s']:6.1f} clips/s ({times:.2f} times one process); "
              f"memory {row['mb_first']:.0f} MB in the first tenth of {clips} clips, {row['mb_last']:.0f} in the last, "
              f"peak {row['mb_peak']:.0f} MB")
    return dict(seconds=clip.seconds, ms_per_clip=ms, processes=rows)


def bench_onnx(batches: tuple[int, ...] = (1, 64), runs: int = 40) -> dict:
    """Medians in ms of alternating runs of the published HAN (features `base`, random weights, T = 10), by batch."""
    import onnx
    import torch

    import export_onnx
    import uwav

    torch.manual_seed(0)
    export = next(e for e in export_onnx.exports_of_han(uwav.HAN().eval()) if e.name == "han")
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(export_onnx.trace(export), Path(folder) / "han.onnx")
        session = export_onnx.session(Path(folder) / "han.onnx")
    rows = {}
    for B in batches:
        inputs, times = export.inputs(B, 10, 0), {"torch": [], "onnxruntime": []}
        arrays = {k: x.numpy() for k, x in inputs.items()}
        for _ in range(runs if B == 1 else max(3, runs // 4)):
            with torch.inference_mode():
                started = time.perf_counter()
                export.module(**inputs)
                times["torch"].append(1e3 * (time.perf_counter() - started))
            started = time.perf_counter()
            session.run(None, arrays)
            times["onnxruntime"].append(1e3 * (time.perf_counter() - started))
        rows[B] = {name: statistics.median(t[1:]) for name, t in times.items()}
        rows[B]["ratio"] = rows[B]["torch"] / rows[B]["onnxruntime"]
        eager, ort, ratio = rows[B].values()
        print(f"HAN, batch {B:2d}: PyTorch eager {eager:7.1f} ms, onnxruntime {ort:7.1f} ms, {ratio:.2f} times as fast")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="What things cost, measured on this machine in one run.")
    parser.add_argument("what", choices=("decode", "onnx"))
    parser.add_argument("video", type=Path, nargs="?", help="video file, for decode")
    parser.add_argument("--clips", type=int, default=200, help="how often to decode it (default: 200)")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args()
    with one_sentence_errors():
        if options.what == "decode" and options.video is None:
            raise ValueError("decode needs a video file")
        figures = bench_decode(options.video, options.clips) if options.what == "decode" else bench_onnx()
        result = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), options.what: figures}
        if options.json:
            write_json(options.json, result)


if __name__ == "__main__":
    main()
