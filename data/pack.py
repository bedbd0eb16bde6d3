"""The authors' download, or a folder of your own -> a packed folder (layout.py)."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common.command import progress
from common.files import finite, made_by, read_array, read_json, regular, shaped, write_array, write_rows
from data.annotations import LLP, LLP_WEAK_FILES, UNAV_SPLITS, UnAV, read_llp, read_own, read_unav, some
from data.layout import (LLP_FEATURES, RANDOM_SOURCE, SEGMENT_FILES, TEXT_FILES, UNAV_FEATURES, begin_pack,
                         finish_pack, is_list_of_names, make_plan, read_index, write_annotations)

AHEAD = 512  # videos that are read before they are written


def pool_to(x: np.ndarray, segments: int) -> np.ndarray:
    """Adaptive average pooling over time, (L, D) -> (segments, D): segment t averages the vectors
    floor(t L / segments) .. ceil((t + 1) L / segments), as torch's adaptive_avg_pool1d does."""
    length, t = len(x), np.arange(segments)
    if length == segments:
        return x.astype(np.float32)
    first, last = t * length // segments, -(-(t + 1) * length // segments)  # (segments,)
    total = np.concatenate([np.zeros((1, x.shape[1])), np.cumsum(x, 0, dtype=np.float64)])  # (L + 1, D)
    return ((total[last] - total[first]) / (last - first)[:, None]).astype(np.float32)  # (segments, D)


@dataclass(frozen=True)
class _Job:
    """One packed array to fill: where its rows come from and where they go."""

    target: str  # the .npy to write, in the packed folder
    folder: Path  # holds <id>.npy
    ids: list[str]  # (N)
    lengths: list[int]  # (N) segments of each video
    shape: tuple[int, ...]  # of the packed array
    vectors: int | None  # vectors per second in the file; None: any number, pooled


def pack(source: str | Path, out: str | Path, workers: int | None = None, missing: str = "stop",
         replace: bool = False) -> dict:
    """Pack the layout of the authors' download, or your own folder with labels.csv, into `out`; returns the index.

    Packs UnAV and every LLP feature whose folder exists. missing = "skip" leaves out videos that lack a feature file.
    Stopped at any moment, it continues with the array that it was at. Another finished pack is replaced only with
    `replace`, and only when the new one is complete; a folder with files that no pack wrote is refused. Raises
    FileNotFoundError (missing files) or ValueError (files of a wrong shape, with NaN, cut short, ...) with one sentence
    that lists them; arrays that were packed stay and are not done again."""
    source, out = Path(source), Path(out)
    if (source / "labels.csv").exists():
        roots, found = {"llp": source}, list(SEGMENT_FILES)
        llp, unav = _read_own_folder(source, missing), None
        plan = make_plan(_kind_of_source(source, "own data"), llp, unav, found)
        plan["llp"]["segments"] = llp.segments
    elif (source / "LLP").exists():
        roots = {"llp": source / "LLP", "unav": source / "UnAV"}
        llp, unav, found = _read_published(source, missing)
        plan = make_plan(_kind_of_source(source, "pack"), llp, unav, found)
    else:
        raise FileNotFoundError(f"{source}: has neither labels.csv (your own data) nor LLP/ (the authors' layout)")
    notes = [root / name for root in roots.values() for name in MADE_WITH if (root / name).exists()]
    if notes:
        plan["made_with"] = {str(x.relative_to(source)): regular(x).read_text(encoding="utf-8", errors="replace")
                             for x in notes}
    jobs = _jobs(roots, found, llp, unav)
    plan["read"] = _fingerprint([*(job.folder / f"{i}.npy" for job in jobs for i in job.ids),
                                 *(root / file for root in roots.values() for file, _ in TEXT_FILES.values())])
    part = begin_pack(out, plan, replace)
    if part is None:
        return read_index(out)
    write_annotations(part, llp, unav)
    for dataset, root in roots.items():
        for name, (file, size) in TEXT_FILES.items():
            path, C = root / file, len(plan[dataset]["classes"])
            text = finite(shaped(read_array(path), (C, size), path), path)
            write_array(part / dataset / f"text_{name}.npy", text.astype(np.float32))  # (C, D)
    unusable = []
    with ThreadPoolExecutor(workers) as pool, progress(
            total=sum(len(job.ids) for job in jobs), unit="file", desc="pack") as bar:
        for job in jobs:
            bar.set_postfix_str(job.target.removesuffix(".npy"))
            if (part / job.target).exists():
                bar.update(len(job.ids))
                continue
            try:
                write_rows(part / job.target, job.shape, _rows(job, pool, bar))
            except _Unusable as error:
                unusable += error.args
    if unusable:
        raise ValueError(f"{len(unusable)} feature files cannot be used: {some(unusable)}")
    return finish_pack(out, plan)


def _read_published(source: Path, missing: str) -> tuple[LLP, UnAV, list[str]]:
    """Both datasets of the authors' download, and which of LLP's features are there."""
    llp, unav = read_llp(source / "LLP"), read_unav(source / "UnAV/unav100_annotations.json")
    found = [name for name, (folder, _, _) in LLP_FEATURES.items() if (source / folder).is_dir()]
    for name in ("clap", "clip"):
        if name not in found:
            raise FileNotFoundError(f"{source / LLP_FEATURES[name][0]}: no such folder (the teacher needs it)")
    return (*(_without_missing(source, found, llp, unav) if missing == "skip" else (llp, unav)), found)


def _read_own_folder(source: Path, missing: str) -> LLP:
    """Your labels, of the classes that `text` embedded and the videos that `extract` embedded."""
    path = source / "text.json"
    with made_by(f"python features.py text CLASSES {source}", path):
        classes = read_json(path)["classes"]
        if not is_list_of_names(classes):
            raise ValueError("its classes are no names")
    folders = [source / folder for folder in SEGMENT_FILES.values()]
    there = set.intersection(*({f.stem for f in folder.glob("[!.]*.npy")} for folder in folders))
    paths, size = {video: folders[0] / f"{video}.npy" for video in there}, TEXT_FILES["clap"][1]
    lengths = {video: len(shaped(read_array(p, mmap=True), (None, size), p)) for video, p in paths.items()}
    return read_own(source, tuple(classes), lengths, missing)


MADE_WITH = ("extract.json", "text.json")  # what `extract` and `text` remember of their weights


def _kind_of_source(source: Path, kind: str) -> str:
    """What the index remembers: features of random encoders (`extract`, `text`) must not pass for real ones."""
    for path in (source / dataset / name for dataset in ("", "LLP", "UnAV") for name in MADE_WITH):
        if path.exists() and '"random"' in regular(path).read_text(encoding="utf-8", errors="replace"):
            print(f"WARNING: {path}: an encoder had RANDOM WEIGHTS. This is a dry run.", file=sys.stderr, flush=True)
            return RANDOM_SOURCE.replace("pack", kind)
    return kind


def _without_missing(source: Path, found: list[str], llp: LLP, unav: UnAV) -> tuple[LLP, UnAV]:
    """Both datasets without the videos that lack a feature file; says how many those are."""
    kept = []
    for dataset, places, splits in (("LLP", [LLP_FEATURES[n][0] for n in found], LLP_WEAK_FILES),
                                    ("UnAV", [place for place, _ in UNAV_FEATURES.values()], UNAV_SPLITS)):
        folders = [source / place for place in places]
        there = set.intersection(*({f.stem for f in folder.glob("*.npy")} for folder in folders))
        for name in splits:
            split = getattr(llp if dataset == "LLP" else unav, name)
            rows = [n for n, video in enumerate(split.ids) if video in there]
            if len(rows) < len(split.ids):
                print(f"{dataset} {name}: {len(split.ids) - len(rows)} of {len(split.ids)} videos have no features "
                      "(left out)", flush=True)
            if not rows:
                raise FileNotFoundError(f"{folders[0]}: no features of any {name} video")
            arrays = {f.name: getattr(split, f.name) for f in dataclasses.fields(split)}
            kept.append(type(split)(**{k: None if x is None else x[rows] if isinstance(x, np.ndarray)
                                       else [x[n] for n in rows] for k, x in arrays.items()}))
    return LLP(llp.classes, *kept[:3]), UnAV(unav.classes, *kept[3:])


def _jobs(roots: dict[str, Path], found: list[str], llp: LLP, unav: UnAV | None) -> list[_Job]:
    jobs = []
    for name in found:
        place, per_second, size = LLP_FEATURES[name]
        folder = roots["llp"] / Path(place).relative_to("LLP")
        for split, data in llp.splits.items():
            N, T = len(data.ids), llp.segments
            jobs.append(_Job(f"llp/{split}/{name}.npy", folder, data.ids, [T] * N, (N, T, size), per_second))
    for name, (place, size) in UNAV_FEATURES.items() if unav else ():
        folder = roots["unav"] / Path(place).relative_to("UnAV")
        for split in UNAV_SPLITS:
            data = getattr(unav, split)
            lengths = [len(x) for x in data.labels]
            shape = sum(lengths), size
            jobs.append(_Job(f"unav/{split}/{name}.npy", folder, data.ids, lengths, shape, None))
    return jobs


def _fingerprint(paths: list[Path]) -> str:
    """Changes when any file that is read is replaced: of each, name, size and time of its last change.

    Raises FileNotFoundError that lists those that are missing, before any work is spent on the rest."""
    digest, missing = hashlib.sha256(), []
    for path in paths:
        try:
            status = os.stat(path)
            digest.update(f"{path.name} {status.st_size, status.st_mtime_ns}\n".encode())
        except OSError:
            missing.append(str(path))
    if missing:
        raise FileNotFoundError(f"{len(missing)} feature files are missing: {some(missing)}")
    return digest.hexdigest()


class _Unusable(Exception):
    """Its arguments say what is wrong with which files."""


def _rows(job: _Job, pool: ThreadPoolExecutor, bar: tqdm) -> Iterator[np.ndarray]:
    """The rows of an array in order, (T, D) a video; raises _Unusable at the end if any file cannot be used."""
    unusable = []
    for start in range(0, len(job.ids), AHEAD):
        videos = range(len(job.ids))[start : start + AHEAD]
        for x in pool.map(_read, [job] * len(videos), videos):
            if isinstance(x, str):
                unusable.append(x)
            else:
                yield x
            bar.update()
    if unusable:
        raise _Unusable(*unusable)


def _read(job: _Job, n: int) -> np.ndarray | str:
    """Video n, read, checked and averaged, (T, D); or what is wrong with its file."""
    path, T, size = job.folder / f"{job.ids[n]}.npy", job.lengths[n], job.shape[-1]
    try:
        x = read_array(path)
        with np.errstate(over="ignore", invalid="ignore"):  # `finite` refuses these
            if job.vectors is None:
                x = pool_to(shaped(x, (None, size), path), T)  # (T, D)
            else:
                x = shaped(x, (T * job.vectors, size), path).reshape(T, job.vectors, size).mean(1, dtype=np.float32)
            return finite(x.astype(np.float16), path)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
