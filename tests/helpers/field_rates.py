"""How rates and lengths of training of `uwav.py field --preset demo` were found: by validation alone.

    python tests/helpers/field_rates.py RATES.json    # half an hour on 2 cores; goes on from what the file holds

Of each system six rates (seven if the sixth is best), then, at the best of them, twice and four
times the epochs, but for networks in the place of the HAN, which train as it does. World of seed 1,000,000, which no
table reports; seed 0; the score by which the system itself keeps an epoch. The rule, and what came out: docs/field.md. A
maintainer's tool: no run needs it.
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
from train.stages import BACKBONES, Context, label, pretrain

RATES = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
SYSTEMS = ("leap", "mgn", "mm_pyramid", "noise", "jomold", "coleaf")  # prototypes: the HAN's own rate
FEATURES = "clip_clap"


COUNTS = ("epochs", "warmup", "drop_every", "lr_epochs", "references_from", "anchor_from")  # in epochs


def trained(name: str, rate: float, times: int, world: Path, out: Path) -> list:
    """Best validation score, and of how many epochs; times: 8 epochs, or 32 of batches of 128."""
    context, here = Context(world, "demo"), out / f"{name}_{rate:g}_{times}"
    model_config, config = presets.PRESETS["demo"].field[name]
    once = 8 if config.batch < 128 else 32
    now = config.epochs // once  # the preset holds what this tool found
    changed = {f: getattr(config, f) * times // now for f in COUNTS if hasattr(config, f)} | dict(peak_lr=rate)
    if hasattr(config, "min_lr"):
        changed["min_lr"] = rate / 20
    presets.PRESETS["demo"].field[name] = model_config, replace(config, **changed)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        if name in BACKBONES:
            train_row(context, here, out / "labels_teacher.npz", "full", FEATURES, name)
        else:
            given = dict(leap=out / "labels_segment.npz", noise=None).get(name, out / "noise/ratios.npz")
            field.train_system(context, here, given, name, FEATURES)
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
    with ProcessPoolExecutor(2, get_context("spawn"), on_one_core) as pool:
        def look(jobs: list[tuple[str, float, int]]) -> None:
            jobs = [job for job in jobs if "{} {:g} {}".format(*job) not in found]
            futures = [pool.submit(trained, *job, world, out) for job in jobs]
            for job, future in zip(jobs, futures):
                found["{} {:g} {}".format(*job)] = future.result()
                write_json(path, found)
                print("{:12s} {:6g} x{}".format(*job), *future.result(), flush=True)

        look([(name, rate, 1) for name, rate in itertools.product(SYSTEMS, RATES)])
        best = {name: max(RATES, key=lambda rate: found[f"{name} {rate:g} 1"][0]) for name in SYSTEMS}
        look([(name, 2 * rate, 1) for name, rate in best.items() if rate == RATES[-1]])
        best = {name: max((*RATES, 2 * RATES[-1]), key=lambda rate: found.get(f"{name} {rate:g} 1", [0])[0])
                for name in SYSTEMS}
        look([(name, best[name], times) for times in (2, 4) for name in SYSTEMS if name not in BACKBONES])


if __name__ == "__main__":
    main()
