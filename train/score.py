"""Anybody's predictions, scored by the rules of the field: tables of events against the annotations of LLP, or yours.

N videos of a split, T segments, C classes. How such a table is read: docs/scoring.md.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import uwav
from common.command import did_you_mean
from common.files import write_json
from data.annotations import (LLP, LLP_SEGMENTS, LLP_WEAK_FILES, TIME, TIMES, UNAV_LONGEST, VIDEO_NAMES, event_rows,
                              read_classes, read_events, read_llp, read_own, read_table)
from field.coleaf import only_scores
from train.ablation import paired_differences
from train.stages import SHORT, table_row, trivial_scores

PROBABILITY = re.compile(r"(?i)1([.,]0*)?|0?([.,]\d*)?|\d([.,]\d*)?e-0*[1-9]\d*")  # 0 to 1, or empty
Rows = list[tuple[str, dict[str, str]]]  # place (file and line) -> cell of each column


def score(table: Path, folder: Path, split: str, only: bool, out: Path | None, other: Path | None) -> None:
    """Print the ten scores of the events in `table`, of two predictions that need no learning and, in points, what it
    brings over `other`; `only`: also CoLeaF's. `out`, a JSON file, gets everything, also by class and by video."""
    tables = [path for path in (table, other) if path]
    if out and any(path.resolve() in (out.resolve(), *out.resolve().parents) for path in tables):
        raise ValueError(f"--json {out}: is among the predictions; choose another place")
    rows = [predicted_rows(path) for path in tables]
    annotated, names = read_annotated(folder, sum(rows, []))
    if (truth := annotated.splits.get(split)) is None:
        raise ValueError(f"{folder}: has no annotated video of split {split} to score")
    read = [read_predictions(path, x, annotated, names, split) for path, x in zip(tables, rows)]
    true, mine, *theirs = ([torch.from_numpy(x > 0) for x in pair]  # audible and visible, (N, T, C) bool each
                           for pair in ((truth.audio, truth.visual), *(x for x, _ in read)))
    content = dict(predictions=str(table), annotations=str(folder), split=split, read=read[0][1])
    both = uwav.parsing_scores, uwav.video_scores
    kinds = {"usual": both, "audible only, visible only": [functools.partial(only_scores, scores_of=f) for f in both]}
    for kind, (scores_of, of_videos) in list(kinds.items())[: 1 + only]:
        scores, by_video = scores_of(*mine, *true), of_videos(*mine, *true)
        trivial = trivial_scores(torch.from_numpy(truth.weak), *true, scores_of)
        content[kind] = found = dict(scores=scores, trivial=trivial)
        shown, points = [(table, scores), *trivial.items()], []
        if other:
            rows = dict(first=[of_videos(*theirs[0], *true)], second=[by_video])
            differences = paired_differences(rows, (("first", "second"),))[0]["scores"]
            found["against"] = dict(predictions=str(other), read=read[1][1], differences=differences,
                                    scores=scores_of(*theirs[0], *true))
            shown.append((other, found["against"]["scores"]))
            values = zip(*((x["mean"], *x["interval"]) for x in differences.values()))
            points = zip(("  PREDICTIONS over these", "  95% interval, from", "  95% interval, to"), values)
        lines = [(kind, SHORT), *((str(title)[-33:], [f"{x:.1f}" for x in x.values()]) for title, x in shown),
                 *((title, [f"{x:+.1f}" for x in values]) for title, values in points)]
        print("\n".join(table_row(*line) for line in lines))
        if out:
            found["classes"] = {x: of_class(c, scores_of, *mine, *true) for c, x in enumerate(annotated.classes)}
            videos = zip(truth.ids, zip(*((100 * x).tolist() for x in by_video.values())))
            found["videos"] = {video: dict(zip(by_video, values)) for video, values in videos}
    if out:
        write_json(out, content)


def of_class(c: int, scores_of: Callable, *arrays: Tensor) -> dict:
    """The scores of a class alone, over the videos in which it is true or predicted."""
    arrays = [x[:, :, c : c + 1] for x in arrays]
    there = torch.stack(arrays).any(0).flatten(1).any(1)  # (N,)
    return dict(videos=int(there.sum())) | (scores_of(*(x[there] for x in arrays)) if there.any() else {})


def read_annotated(folder: Path, predicted: Rows) -> tuple[LLP, dict[str, str]]:
    """LLP and its names of the videos, by id; or your own, of two tables that do not tell how long the videos are: as
    long as any event lasts."""
    if not (folder / "labels.csv").exists():
        rows = [row for file in LLP_WEAK_FILES.values() for _, row in read_table(folder / file, ("filename",))]
        return read_llp(folder), {TIMES.sub("", row["filename"]): row["filename"] for row in rows}
    classes = read_classes(str(folder))
    events = event_rows(folder / "events.csv") if (folder / "events.csv").exists() else []
    ends = [row["offset"].replace(",", ".") for _, row in events + predicted if TIME.fullmatch(row["offset"])]
    T = max([LLP_SEGMENTS, *(math.ceil(float(end)) for end in ends)])
    return read_own(folder, tuple(classes), min(T, UNAV_LONGEST)), {}


def predicted_rows(path: Path) -> Rows:
    """Of a table of events, or of a folder of tables and json files. ValueError if a probability is none: it plays no
    part, but such a table is not what it seems to be."""
    files = sorted(x for x in path.iterdir() if x.suffix.lower() in (".csv", ".json")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path}: no .csv and no .json file in it")
    rows = [row for file in files for row in event_rows(file)]
    for place, row in rows:
        if not PROBABILITY.fullmatch(row.get("probability", "")):
            raise ValueError(f"{place}: probability is {row['probability']!r}, not a number from 0 to 1")
    return rows


def read_predictions(path: Path, rows: Rows, annotated: LLP, names: dict[str, str], split: str) -> tuple:
    """Rows -> (2, N, T, C) uint8, audible and visible; and what was counted, which is printed. names: LLP's, by id.

    Raises ValueError naming file, line and cause."""
    split_of = {video: name for name, x in annotated.splits.items() for video in x.ids}
    ids = annotated.splits[split].ids

    def video_of(text: str, place: str) -> str:
        stem, ending = os.path.splitext(text)
        name = stem if ending.lower() in (*VIDEO_NAMES, ".npz") else text
        below = [x for x in split_of if x.endswith(f"/{name}")]  # parse.py does not tell the folder of a clip
        video = name if name in split_of else below[0] if len(below) == 1 else TIMES.sub("", name)
        if split_of.get(video) == split and (name in (video, names.get(video)) or below):
            return video
        meant = f"; did you mean {names.get(video, ' or '.join(below) or video)}?"
        if video not in split_of and not below:
            meant = did_you_mean(name, ids)
        if split_of.get(video, split) != split:
            meant = f", but of {split_of[video]}"
        raise ValueError(f"{place}: {text!r} is no video of split {split}{meant}")

    truth, odd = read_events(rows, annotated.classes, annotated.segments, video_of, spelling)
    nothing = np.zeros((2, annotated.segments, len(annotated.classes)), np.uint8)
    said = np.stack([truth.get(video, nothing) for video in ids], 1)  # (2, N, T, C)
    silent = int((said.any((0, 2, 3)) == 0).sum())
    print(f"{path}: of {len(ids)} videos of {split}, {len(truth)} are named and {silent} silent, without any event")
    for how, places in odd.items():
        print(f"{path}: {len(places)} rows {how}, the first at {places[0]}")
    for warning in dict.fromkeys(filter(None, (row.get("warnings") for _, row in rows))):
        print(f"{path}: WARNING: {warning}")
    return said, dict(named=len(truth), silent=silent, odd={how: len(places) for how, places in odd.items()})


def spelling(name: str) -> str:
    """The same for `Frying_(food)`, `Frying (food)` and `frying food`."""
    return re.sub(r"[\s_(),./-]+", " ", name).strip().casefold()
