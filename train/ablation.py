"""The ablation: every stage for every row and seed, two tables, and what separates the rows.

Seeds S, scores K, videos N of the test split.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import multiprocessing
import os
import signal
import statistics
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import uwav
from common.command import follow_the_parent, progress
from common.files import atomic, file_hash, inside, write_sealed
from data.layout import RANDOM_SOURCE, packed_feature_sets, read_index
from data.splits import load_truth, load_weak
from train.stages import (SHORT, Context, alone, evaluate, label, label_scores, pretrain, read_predictions, table_row,
                          train, trivial_scores)
from uwav import SCORES

# What the paper reports for LLP, for orientation beside our numbers.
PAPER_LABELS = {  # Table 2
    "segment": dict(seg_a=80.5, seg_v=61.7, seg_av=55.7, seg_type=66.0, seg_event=74.6),
    "teacher": dict(seg_a=78.4, seg_v=74.5, seg_av=65.5, seg_type=72.8, seg_event=78.4),
}
PAPER_FULL = {  # the ten scores of UWAV: Table 1, and the supplement's table with CLIP and CLAP features
    "base": (64.2, 70.0, 63.4, 65.9, 63.9, 58.6, 66.7, 57.5, 60.9, 57.4),
    "clip_clap": (68.9, 72.3, 65.6, 68.9, 68.3, 63.5, 68.7, 59.6, 63.9, 62.4),
}


class Row(NamedTuple):
    title: str
    short: str  # in pictures
    setting: str  # key of presets.ABLATION
    labels: str | None  # whose: segment | teacher
    paper_type: float | None  # the paper's ablation: segment-level Type, features `base`
    changed: tuple[str, ...] = ()  # FIELD=VALUE


ROWS = {
    "video_only": Row("L_video only (HAN)", "video loss only", "video_only", None, 54.0),
    "valor": Row("hard labels, per segment (VALOR)", "VALOR", "binary", "segment", 62.0),
    "binary": Row("hard labels of the teacher", "hard", "binary", "teacher", 64.2),
    "soft": Row("soft labels", "soft", "soft", "teacher", 64.4),
    "soft_reweight": Row("soft + class balance", "soft + balance", "soft_reweight", "teacher", 65.4),
    "soft_mixup": Row("soft + mixup", "soft + mixup", "soft_mixup", "teacher", 65.2),
    "full": Row("all (UWAV)", "UWAV", "full", "teacher", 65.9),
}
# Which rows are compared: the paper's claims, one step at a time, then all of it.
COMPARISONS = (("valor", "binary"), ("binary", "soft"), ("soft", "soft_reweight"), ("soft", "soft_mixup"),
               ("soft", "full"), ("valor", "full"), ("video_only", "full"))
# `--sweep`: "full" with one field varied at a time. The grid is ours; the published values are 1.7 and 0.5.
SWEEP = {f"full_{field}_{value:g}": Row(f"all, {field} = {value:g}", f"{field} {value:g}", "full", "teacher", None,
                                        (f"{field}={value}",))
         for field, values in (("alpha", (0.5, 1.0, 3.0)), ("W", (0.25, 1.0, 2.0))) for value in values}


@alone
def ablate(context: Context, run: Path, seeds: int, features: list[str] | None, sweep: bool = False) -> None:
    """All stages for every seed, feature set and row -> run/seed*/..., run/ablation.json, run/tables.txt.

    Layout: labels_segment.npz, seedK/{teacher.pt, labels_teacher.npz}, seedK/FEATURES/ROW/{han.pt, scores_test.json}.
    """
    index = read_index(context.data)
    features, rows = features or packed_feature_sets(index), ROWS | (SWEEP if sweep else {})
    seeded = seeds_of(context, run, seeds)
    jobs = [row_job(*each, f, row) for each in seeded for f, row in itertools.product(features, rows)]
    result = train_rows(jobs, run)
    scores = {f: {row: [result[x / f / row] for _, x in seeded] for row in rows} for f in features}
    trivial = trivial_scores(load_weak(context.data, "test"), *load_truth(context.data, "test"))
    differences = {f: differences_of(context.data, {row: [x / f / row for _, x in seeded] for row in ROWS}, COMPARISONS)
                   for f in features}
    made = noted(context, run, seeded, jobs) | dict(source=index["source"], scores=scores, trivial=trivial,
                                                    differences=differences)
    text = f"{as_text(tables(made))}\n{note(index['source'])}\n" + "".join(
        difference_table(f, x, seeds) for f, x in differences.items())
    publish(run / "ablation.json", run / "tables.txt", made, text)


def seeds_of(context: Context, run: Path, seeds: int) -> list[tuple[Context, Path]]:
    """Every seed's context and folder, in which its teacher and that one's labels are made, if they are not there."""
    if seeds < 1:
        raise ValueError(f"--seeds {seeds}: at least one seed is needed")
    made = [(replace(context, seed=k), run / f"seed{k}") for k in range(context.seed, context.seed + seeds)]
    for seeded, folder in made:
        pretrain(seeded, folder)
        label(seeded, folder, folder / "teacher.pt")
    label(context, run, None)
    return made


def row_job(context: Context, folder: Path, features: str, name: str, backbone: str = "han") -> partial:
    """What trains and scores a row in the folder of a seed, or another network in the place of its HAN."""
    row, out = (ROWS | SWEEP)[name], folder / features / (name if backbone == "han" else f"field/{backbone}_{name}")
    labels = row.labels and (folder.parent if row.labels == "segment" else folder) / f"labels_{row.labels}.npz"
    changed = replace(context, overrides=(*context.overrides, *row.changed))
    return partial(train_row, changed, out, labels, row.setting, features, backbone=backbone)


def noted(context: Context, run: Path, seeded: list[tuple[Context, Path]], jobs: list[partial]) -> dict:
    """What tables tell of: the options, the scores of the labels, and the parsers that the jobs trained and the labels
    that these learned from, with hashes."""
    paths = {path for job in jobs for path in (job.args[1] / "han.pt", job.args[2]) if isinstance(path, Path)}
    made_from = {str(path.relative_to(run)): file_hash(path) for path in sorted(paths)}
    labels = {who: [label_scores(x / f"labels_{who}.npz", context.data, "test") for x in folders] for who, folders in (
        ("segment", [run] * len(seeded)), ("teacher", [x for _, x in seeded]))}
    return dict(data=context.identity, made_from=made_from, seeds=[x.seed for x, _ in seeded], preset=context.preset,
                overrides=context.overrides, labels=labels)


def publish(path: Path, text_path: Path, made: dict, text: str) -> None:
    write_sealed(path, made)
    with atomic(text_path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"\n{text}")


def train_rows(jobs: list[partial], run: Path) -> dict[Path, dict[str, float]]:
    """What the jobs return, functions of a context and a folder that train a parser, by folder. A model of preset demo
    is too small for more than one core of a CPU, so there they run side by side, one core each."""
    for job in jobs:
        inside(job.args[1] / "x")
    unfinished = sum(not (job.args[1] / "han.pt").exists() for job in jobs)
    if not unfinished or jobs[0].args[0].device != "cpu" or jobs[0].args[0].preset != "demo":
        return {job.args[1]: job() for job in jobs}
    sys.warnoptions.append("ignore:resource_tracker")  # would complain of semaphores when we are stopped
    number, results = min(os.cpu_count() or 1, unfinished), {}
    with ProcessPoolExecutor(number, multiprocessing.get_context("spawn"), on_one_core) as pool:
        try:
            # Workers are born deaf to signals, which this process decides about.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
            rows = pool.map(quietly, jobs)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            with progress(rows, total=len(jobs), desc="rows of the ablation", unit="row") as bar:
                for folder, result, said in bar:
                    bar.write(said, end="")
                    results[folder] = result
        except BrokenProcessPool:
            raise ValueError(f"{run}: a worker process was killed (out of memory?); the same command continues from "
                             "here") from None
        except BaseException:  # what they are at is not waited for
            for process in multiprocessing.active_children():
                process.kill()
            raise
    return results


def train_row(context: Context, out: Path, labels: Path | None, setting: str, features: str,
              backbone: str = "han") -> dict[str, float]:
    """The ten scores on the test split of a HAN, or of another network in its place, that is trained for it, or was."""
    train(context, out, labels, setting, features, backbone)
    return evaluate(context, out / "han.pt", "test", out)


def on_one_core() -> None:
    """What a worker does first."""
    follow_the_parent()
    torch.set_num_threads(1)


def quietly(job: partial) -> tuple[Path, dict[str, float], str]:
    """In a worker: folder and result, and what was said meanwhile, for the parent to say at once."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        return job.args[1], job(), said.getvalue()


def differences_of(data: Path, folders: dict[str, list[Path]], comparisons: Iterable[tuple[str, str]]) -> list[dict]:
    """paired_differences between parsers, from their saved predictions; folders: row -> one a seed."""
    truth = load_truth(data, "test")
    scores = {row: [uwav.video_scores(*read_predictions(x / "predictions_test.npz", data, model=x / "han.pt"), *truth)
                    for x in each] for row, each in folders.items()}
    return paired_differences(scores, comparisons)


Table = tuple[str, list[str], list[list[str]]]  # what it is, the heads of its columns, and rows of a title and cells


def tables(made: dict, paper: bool = True) -> list[Table]:
    """Those of ablation.json: label quality, and scores by feature set; what needs no learning beneath. paper: with the
    published numbers."""
    (nothing, by_nothing), (everything, by_everything) = made["trivial"].items()
    result = [label_table("Label quality", made, dict(segment="per segment, no teacher", teacher="teacher"), paper)]
    result[0][2].append(our_row(everything, [by_everything], SCORES[:5]))  # it knows weak labels, which no parser may
    for features, scores in made["scores"].items():
        # The paper's ablation is on features `base`; beside real `clip_clap` features it would mislead.
        column, rows = paper and (features == "base" or made["source"] != "pack"), []
        for name, values in scores.items():
            published = (ROWS | SWEEP)[name].paper_type
            rows.append(our_row((ROWS | SWEEP)[name].title, values) + [str(published)] * bool(column and published))
        rows += [paper_row(PAPER_FULL[features], f", all (UWAV), {features}")] * paper
        rows.append(our_row(nothing, [by_nothing]))
        result.append((f"Parsing scores on the test split, features {features} ({over_seeds(made)})",
                       SHORT + ["  | paper: seg_type"] * column, rows))
    return result


def note(source: object) -> str:
    if source == "pack":
        return "Paper's rows: LLP, the published numbers."
    if source == RANDOM_SOURCE:
        return "OUR FEATURES COME FROM ENCODERS WITH RANDOM WEIGHTS: a dry run. Do not compare the numbers."
    return ("Rows and columns named `paper`: the published numbers, on LLP with real features, for orientation.\n"
            "OURS IS ANOTHER DATASET: its features are invented. Do not compare the numbers.")


def label_table(title: str, made: dict, titles: dict[str, str], paper: bool = True) -> Table:
    """The quality of labels; titles: of whoever made them, in order."""
    rows = []
    for who in (x for x in titles if x in made["labels"]):
        rows.append(our_row(titles[who], made["labels"][who], SCORES[:5]))
        rows += [paper_row(PAPER_LABELS[who].values())] if paper and who in PAPER_LABELS else []
    return (f"{title}: segment-level F-scores of the hard labels on the test split ({over_seeds(made)})",
            [s[4:] for s in SCORES[:5]], rows)


def over_seeds(made: dict) -> str:
    seeds = len(made["seeds"])
    return f"mean±standard deviation over {seeds} seeds" if seeds > 1 else "one seed"


def our_row(title: str, values: list[dict], columns: tuple[str, ...] = SCORES) -> list[str]:
    """values: one a seed."""
    return [title, *(cell([v[c] for v in values]) for c in columns)]


def paper_row(values: Iterable[float], of: str = "") -> list[str]:
    return [f"  paper{of}", *(f"{x:.1f}" for x in values)]


def as_text(tables: list[Table], *widths: int) -> str:
    """One beneath the other, an empty line after each; widths: as of table_row."""
    lines = []
    for heading, header, rows in tables:
        rows = [["", *header]] * bool(header) + rows
        lines += [heading, *(table_row(title, cells, *widths) for title, *cells in rows), ""]
    return "\n".join(lines)


def difference_table(features: str, differences: list[dict], seeds: int, systems: dict[str, NamedTuple] = ROWS) -> str:
    """Paired differences as text, segment- and event-level Type; systems: what has been compared, with titles."""
    shown, rows = ("seg_type", "event_type"), []
    for d in differences:
        rows.append([f"{systems[d['first']].title} -> {systems[d['second']].title}"])
        for x in (d["scores"][score] for score in shown):
            low, high = x["interval"]
            spread = f" ±{statistics.stdev(x['by_seed']):.1f}" if seeds > 1 else ""
            rows[-1].append(f"{x['mean']:+.1f} [{low:+.1f}, {high:+.1f}]{spread}")
    kind = "points [95% interval over videos]" + ", ± over seeds" * (seeds > 1)
    table = f"Paired differences on the test split, features {features}: {kind}", [*shown], rows
    return "\n" + as_text([table], 68, 30) + (
        "\nThe interval says how much the choice of test videos matters (bootstrap), the trained models being what\n"
        "they are; it does not cover the training seed.\n")


def cell(values: list[float], spread: str = "±{}") -> str:
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else mean + spread.format(f"{statistics.stdev(values):.1f}")


# ---- Differences between two trained parsers, and how much of them the choice of test videos explains

RESAMPLES = 10_000  # of the bootstrap
COVERAGE = 0.95  # of its interval


def bootstrap_intervals(values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Percentile bootstrap: between which bounds the mean over videos stays if the videos are drawn again.

    values (N, K), one row a video -> (K, 2), the middle 95% of the means of N rows drawn with replacement.
    Every column sees the same draws."""
    rng, N = np.random.default_rng(seed), len(values)
    drawn = [np.bincount(rng.integers(N, size=N), minlength=N) for _ in range(resamples)]  # how often each video: (N,)
    means = np.stack(drawn) @ values / N  # (resamples, K)
    tail = (1 - COVERAGE) / 2
    return np.quantile(means, [tail, 1 - tail], axis=0).T  # (K, 2)


def paired_differences(scores: dict[str, list[dict[str, Tensor]]],
                       comparisons: Iterable[tuple[str, str]]) -> list[dict]:
    """Second row minus first, in points of each score, on the same test videos and with the same seeds.

    scores: row -> one entry a seed, as uwav.video_scores gives it. For each comparison: the mean; `interval`,
    over the choice of test videos (of the differences averaged over seeds); `by_seed`, the spread over training seeds,
    which the interval does not cover."""
    result = []
    for first, second in comparisons:
        names = list(scores[first][0])
        arrays = [np.array([[100 * x.numpy() for x in seed.values()] for seed in scores[row]])
                  for row in (second, first)]  # (S, K, N) each
        difference = arrays[0] - arrays[1]
        intervals = bootstrap_intervals(difference.mean(0).T)  # (K, 2)
        by_seed = difference.mean(2)  # (S, K)
        result.append(dict(first=first, second=second, scores={
            name: dict(mean=float(by_seed[:, k].mean()), interval=intervals[k].tolist(), by_seed=by_seed[:, k].tolist())
            for k, name in enumerate(names)}))
    return result
