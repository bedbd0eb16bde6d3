"""How the learning rates of `uwav.py field --preset demo` were found: five for each system, validation alone.

    python tests/helpers/field_rates.py RATES.json    # some 15 minutes on 2 cores; goes on from what the file holds

World of seed 1,000,000, which no table reports; seed 0 of every system; the score by which the system itself keeps an
epoch. The rule, and what came out: docs/field.md. A maintainer's tool: no run needs it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.files import read_json, write_json
from data import demo_world
from train import field, presets
from train.ablation import on_one_core, train_row
from train.checkpoints import load_file
from train.stages import Context, label, pretrain

RATES = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
SYSTEMS = ("leap", "mgn", "mm_pyramid", "noise", "jomold", "coleaf")  # prototypes: the HAN's own rate
FEATURES = "clip_clap"


def trained(name: str, rate: float, world: Path, out: Path) -> list:
    """Validation score of every epoch, and which epoch was kept."""
    context, here = Context(world, "demo"), out / f"{name}_{rate:g}"
    entry = presets.PRESETS["demo"].field[name]
    presets.PRESETS["demo"].field[name] = (entry[0], replace(entry[1], peak_lr=rate, **(
        dict(min_lr=rate / 20) if hasattr(entry[1], "min_lr") else {})))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        if name == "leap":
            field.train_leap(context, here, out / "labels_segment.npz", FEATURES)
        elif name in ("mgn", "mm_pyramid"):
            train_row(context, here, out / "labels_teacher.npz", "full", FEATURES, name)
        elif name == "noise":
            field.estimate_noise(context, here, FEATURES)
        else:
            field.train_denoised(context, here, out / "noise/ratios.npz", FEATURES, name)
    content = load_file(here / "han.pt")
    return [round(content["score"], 2), len(content["history"])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rates", type=Path, metavar="RATES.json")
    path = parser.parse_args().rates
    out = path.with_suffix("")
    world, found = out / "world", read_json(path) if path.exists() else {}
    demo_world.make(world, demo_world.WorldConfig(seed=1_000_000))
    context = Context(world, "demo")
    label(context, out, None)
    pretrain(context, out)
    label(context, out, out / "teacher.pt")
    field.estimate_noise(context, out / "noise", FEATURES)
    jobs = [(name, rate) for name, rate in itertools.product(SYSTEMS, RATES) if f"{name} {rate:g}" not in found]
    with ProcessPoolExecutor(2, get_context("spawn"), on_one_core) as pool:
        for (name, rate), score in zip(jobs, pool.map(trained, *zip(*jobs), *([x] * len(jobs) for x in (world, out)))):
            found[f"{name} {rate:g}"] = score
            write_json(path, found)
            print(f"{name:12s} {rate:6g}  {score}", flush=True)


if __name__ == "__main__":
    main()
