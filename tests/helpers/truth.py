"""What a reader's result holds, in a form that can be compared; and slow readings of annotation files, from their
definitions, for files that were changed and are still valid."""

import csv
import hashlib
import io
import json
import math
import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import torch

from data import annotations
from train import checkpoints


def content_of(x: object) -> object:
    """Equal for two results exactly if they hold the same."""
    if isinstance(x, checkpoints.Run):
        return content_of([x.model, x.optimizer.state_dict(), x.history, x.best_score, x.best_weights])
    if isinstance(x, torch.nn.Module):
        return content_of([vars(x.config), x.state_dict()])
    if isinstance(x, torch.Tensor):
        if x.layout != torch.strided or x.numel() > 1e6:  # of hostile checkpoints: it repeats its numbers
            return str(x.dtype), tuple(x.shape), str(x.layout)
        x = x.detach().numpy()
    if isinstance(x, np.ndarray):
        return x.dtype.str, x.shape, hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()
    if is_dataclass(x):
        return tuple((f.name, content_of(getattr(x, f.name))) for f in fields(x))
    if isinstance(x, dict):
        return {key: content_of(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return tuple(map(content_of, x))
    return repr(x)


def rows_of(path: Path) -> list[dict[str, str]]:
    text = path.read_text(encoding="utf-8-sig").lstrip("\n")
    separator = max(",;\t", key=text.split("\n")[0].count)
    lines = [cells for cells in csv.reader(io.StringIO(text), delimiter=separator) if any(map(str.strip, cells))]
    return [dict(zip([name.strip().lower() for name in lines[0]], map(str.strip, cells))) for cells in lines[1:]]


def slow_llp(folder: Path) -> annotations.LLP:
    """Every video, class and second of the five files, one after the other."""
    number, found = {name: c for c, name in enumerate(annotations.LLP_CLASSES)}, {}
    for split, file in annotations.LLP_WEAK_FILES.items():
        rows = rows_of(folder / file)
        ids, weak = [re.sub(r"_[0-9]+_[0-9]+$", "", row["filename"]) for row in rows], np.zeros((len(rows), 25), np.uint8)
        for n, row in enumerate(rows):
            for name in filter(None, map(str.strip, row["event_labels"].split(","))):
                weak[n, number[name]] = 1
        dense = {}
        for modality, table in annotations.LLP_DENSE_FILES.items() if split != "train" else ():
            dense[modality] = np.zeros((len(rows), 10, 25), np.uint8)
            for row in rows_of(folder / table):
                start, end = (float(row[k].replace(",", ".")) for k in ("onset", "offset"))
                for n, video in enumerate(rows):
                    for t in range(10) if video["filename"] == row["filename"] and start < end else ():
                        dense[modality][n, t, number[row["event_labels"]]] |= t + 1 > start and t < end
        found[split] = annotations.LLPSplit(ids, weak, **dense)
    return annotations.LLP(annotations.LLP_CLASSES, *found.values())


def slow_unav(path: Path) -> annotations.UnAV:
    database = json.loads(path.read_text(encoding="utf-8-sig"))["database"]
    names = {a["label_id"]: a["label"] for video in database.values() for a in video["annotations"]}
    splits = {name: annotations.UnAVSplit([], []) for name in annotations.UNAV_SPLITS}
    for name, video in database.items():
        label = np.zeros((math.ceil(video["duration"]), len(names)), np.uint8)
        for a in video["annotations"]:
            for t in range(len(label)):
                if t + 1 > a["segment"][0] and t < a["segment"][1]:
                    label[t, a["label_id"]] = 1
        splits[video["subset"]].ids.append(name)
        splits[video["subset"]].labels.append(label)
    return annotations.UnAV(tuple(names[c] for c in sorted(names)), **splits)


def slow_own(folder: Path, classes: tuple[str, ...], lengths: dict[str, int]) -> annotations.LLP:
    def name_of(cell: str) -> str:
        return Path(cell).stem if Path(cell).suffix.lower() in annotations.VIDEO_NAMES else cell

    events = [row | dict(video=name_of(row["video"])) for row in rows_of(folder / "events.csv")]
    rows = {name_of(row["video"]): row for row in rows_of(folder / "labels.csv")}
    dated, T = {row["video"] for row in events}, next(iter(lengths.values()))
    splits = {}
    for split in annotations.LLP_WEAK_FILES:
        ids = [v for v in rows if (rows[v].get("split", "").lower() or ("val" if v in dated else "train")) == split]
        weak, truth = np.zeros((len(ids), len(classes)), np.uint8), np.zeros((2, len(ids), T, len(classes)), np.uint8)
        for n, video in enumerate(ids):
            for label in filter(None, map(str.strip, rows[video]["labels"].split(";"))):
                weak[n, classes.index(label)] = 1
            for row in events if split != "train" else ():
                if row["video"] == video:
                    start, end = (float(row[k].replace(",", ".")) for k in ("onset", "offset"))
                    for m in annotations.MODALITIES[row["modality"].lower()]:
                        for t in range(T):
                            truth[m, n, t, classes.index(row["label"])] |= t + 1 > start and t < end
        weak |= truth.any((0, 2)).astype(np.uint8)
        splits[split] = annotations.LLPSplit(ids, weak, *(truth if split != "train" else ())) if ids else None
    became = {v: f"{split}: {T} s of {T}" for split, found in splits.items() for v in (found.ids if found else ())}
    return annotations.LLP(classes, *splits.values(), segments=T, clips={v: became[v] for v in rows})


def slow_classes(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
