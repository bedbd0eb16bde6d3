"""The authors' download, or a folder of your own -> a packed folder (layout.py)."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common.command import follow_the_parent
from common.files import atomic, finite, naming, no_links, read_array, read_json, shaped, write_array, write_json
from data.annotations import LLP, LLP_WEAK_FILES, UNAV_SPLITS, UnAV, read_llp, read_own, read_unav, some
from data.layout import (LLP_FEATURES, RANDOM_SOURCE, SEGMENT_FILES, TEXT_FILES, UNAV_FEATURES, is_list_of_names,
                         make_index, read_index, start_or_continue, write_annotations)

CHUNK = 32  # videos a worker takes at a time
START = "fork" if sys.platform == "linux" else "spawn"  # how workers start: at once, or as new Python processes


def average_groups(x: np.ndarray, size: int) -> np.ndarray:
    """Mean of each `size` consecutive vectors: (T * size, D) -> (T, D)."""
    return x.reshape(-1, size, x.shape[1]).mean(1, dtype=np.float32)


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

    target: Path  # the .npy to write
    folder: Path  # holds <id>.npy
    ids: list[str]  # (N)
    lengths: np.ndarray  # (N,) segments of each video
    shape: tuple[int, ...]  # of the packed array
    vectors: int | None  # vectors per second in the file; None: any number, pooled
    size: int  # D

    @property
    def part(self) -> Path:
        return self.target.with_suffix(".npy.part")

    @property
    def done(self) -> Path:  # one byte a video: its rows are in `part`
        return self.target.with_suffix(".npy.done")


def pack(source: str | Path, out: str | Path, workers: int | None = None, missing: str = "stop") -> dict:
    """Pack the layout of the authors' download, or your own folder with labels.csv, into `out`; returns the index.

    Packs UnAV and every LLP feature whose folder exists. missing = "skip" leaves out videos that lack a feature file.
    Stopped at any moment, it continues where it was; `index.json` is written last. Raises FileNotFoundError (missing
    files) or ValueError (files of a wrong shape, with NaN, cut short, ...) with one sentence that lists them; what was
    packed stays and is not done again.
    """
    source, out = Path(source), Path(out)
    if (source / "labels.csv").exists():
        roots, found = {"llp": source}, list(SEGMENT_FILES)
        llp, unav = _read_own_folder(source, missing), None
        index = make_index(_kind_of_source(source, "own data"), llp, unav, found)
        index["llp"]["segments"] = llp.segments
        index["made_with"] = {x: (source / x).read_text(encoding="utf-8", errors="replace")
                              for x in MADE_WITH if (source / x).exists()}
    elif (source / "LLP").exists():
        roots = {"llp": source / "LLP", "unav": source / "UnAV"}
        llp, unav, found = _read_published(source, missing)
        index = make_index(_kind_of_source(source, "pack"), llp, unav, found)
    else:
        raise FileNotFoundError(f"{source}: has neither labels.csv (your own data) nor LLP/ (the authors' layout)")
    if (out / "index.json").exists() and read_index(out) == index:
        print(f"{out}: already complete")
        (out / "plan.json").unlink(missing_ok=True)
        return index
    start_or_continue(out, index)

    write_annotations(out, llp, unav)
    for dataset, root in roots.items():
        for name, (file, size) in TEXT_FILES.items():
            path, C = root / file, len(index[dataset]["classes"])
            text = finite(shaped(read_array(path), (C, size), path), path)
            write_array(out / dataset / f"text_{name}.npy", text.astype(np.float32))  # (C, D)

    jobs = _jobs(roots, out, found, llp, unav)
    missing = [path for job in jobs for path in _missing_files(job)]
    if missing:  # said before hours of work are spent on the rest
        raise FileNotFoundError(f"{len(missing)} feature files are missing: {some(missing)}")
    unusable, pool = [], ProcessPoolExecutor(workers, multiprocessing.get_context(START), follow_the_parent)
    pool.submit(os.getpid)  # starts the workers, before tqdm starts a thread
    try:
        with tqdm(total=sum(len(job.ids) for job in jobs), unit="file", desc="pack") as bar:
            for job in jobs:
                unusable += _fill(job, pool, bar)
    except BrokenProcessPool:
        raise ValueError(f"{out}: a worker process was killed (is memory short?); the same command goes on from here, "
                         "fewer --workers need less") from None
    finally:
        pool.shutdown(cancel_futures=True)
    if unusable:
        raise ValueError(f"{len(unusable)} feature files cannot be used: {some(unusable)}")
    write_json(out / "index.json", index)
    (out / "plan.json").unlink()
    return index


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
    path, way_out = source / "text.json", f"`python features.py text CLASSES {source}` makes it"
    try:
        classes = read_json(path)["classes"]
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; {way_out}") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: damaged; {way_out}") from None
    if not is_list_of_names(classes):
        raise ValueError(f"{path}: damaged; {way_out}")
    folders = [source / folder for folder in SEGMENT_FILES.values()]
    there = set.intersection(*({f.stem for f in folder.glob("[!.]*.npy")} for folder in folders))
    paths, size = {video: folders[0] / f"{video}.npy" for video in there}, TEXT_FILES["clap"][1]
    lengths = {video: len(shaped(read_array(p, mmap=True), (None, size), p)) for video, p in paths.items()}
    return read_own(source, tuple(classes), lengths, missing)


MADE_WITH = ("extract.json", "text.json")  # what `extract` and `text` remember of their weights


def _kind_of_source(source: Path, kind: str) -> str:
    """What the index remembers: features of random encoders (`extract`, `text`) must not pass for real ones."""
    for path in (source / dataset / name for dataset in ("", "LLP", "UnAV") for name in MADE_WITH):
        if path.exists() and '"random"' in path.read_text(encoding="utf-8", errors="replace"):
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


def _jobs(roots: dict[str, Path], out: Path, found: list[str], llp: LLP, unav: UnAV | None) -> list[_Job]:
    jobs = []
    for name in found:
        place, per_second, size = LLP_FEATURES[name]
        folder = roots["llp"] / Path(place).relative_to("LLP")
        for split, data in llp.splits.items():
            N, T = len(data.ids), llp.segments
            jobs.append(_Job(out / "llp" / split / f"{name}.npy", folder, data.ids, np.full(N, T), (N, T, size),
                             per_second, size))
    for name, (place, size) in UNAV_FEATURES.items() if unav else ():
        folder = roots["unav"] / Path(place).relative_to("UnAV")
        for split in UNAV_SPLITS:
            data = getattr(unav, split)
            lengths = np.array([len(x) for x in data.labels], np.int64)
            jobs.append(_Job(out / "unav" / split / f"{name}.npy", folder, data.ids, lengths,
                             (int(lengths.sum()), size), None, size))
    return jobs


def _missing_files(job: _Job) -> list[str]:
    present = {entry.name for entry in os.scandir(job.folder)} if job.folder.is_dir() else set()
    return [str(job.folder / f"{i}.npy") for i in job.ids if f"{i}.npy" not in present]


def _fill(job: _Job, pool: ProcessPoolExecutor, bar: tqdm) -> list[str]:
    """Fill one packed array in parallel, skipping what an earlier run finished; returns what is wrong with files."""
    if job.target.exists():
        job.done.unlink(missing_ok=True)
        bar.update(len(job.ids))
        return []
    if not _was_begun(job):
        job.done.unlink(missing_ok=True)
        with atomic(job.part) as temporary:
            np.lib.format.open_memmap(temporary, "w+", np.float16, job.shape).flush()
        with atomic(job.done) as temporary:
            temporary.write_bytes(bytes(len(job.ids)))
    todo = np.flatnonzero(np.frombuffer(job.done.read_bytes(), np.uint8) == 0)
    chunks = [(job, todo[i : i + CHUNK]) for i in range(0, len(todo), CHUNK)]
    bar.update(len(job.ids) - len(todo))
    bar.set_postfix_str("/".join(job.target.with_suffix("").parts[-3:]))
    unusable = []
    for count, errors in pool.map(_fill_chunk, chunks):
        bar.update(count)
        unusable += errors
    if not unusable:
        os.replace(job.part, job.target)
        job.done.unlink()
    return unusable


def _was_begun(job: _Job) -> bool:
    """Whether an interrupted run left both its files whole; links are not ours."""
    if not (job.part.is_file() and job.done.is_file()) or job.part.is_symlink() or job.done.is_symlink():
        return False
    try:
        part = read_array(job.part, mmap=True)
    except ValueError:
        return False
    return (part.shape == job.shape and part.dtype == np.float16 and part.flags.c_contiguous
            and job.done.stat().st_size == len(job.ids))


def _fill_chunk(task: tuple[_Job, np.ndarray]) -> tuple[int, list[str]]:
    """Worker: read, check, average and store some videos; returns how many it saw, what is wrong with their files."""
    job, rows = task
    errors, stored = [], []
    segment = 2 * job.size  # bytes
    header = job.part.stat().st_size - segment * int(job.lengths.sum())
    first = np.cumsum(job.lengths) - job.lengths  # (N,): where each video begins when segments lie end to end
    with (naming(job.part), open(job.part, "r+b", opener=no_links) as packed,
          np.errstate(over="ignore", invalid="ignore")):  # `finite` refuses these
        for n in rows:
            path, T = job.folder / f"{job.ids[n]}.npy", int(job.lengths[n])
            try:
                x = read_array(path)
                if job.vectors is None:
                    x = pool_to(shaped(x, (None, job.size), path), T)  # (T, D)
                else:
                    x = average_groups(shaped(x, (T * job.vectors, job.size), path), job.vectors)  # (T, D)
                packed.seek(header + segment * int(first[n]))
                packed.write(finite(x.astype(np.float16, order="C"), path))
                stored.append(n)
            except (ValueError, FileNotFoundError) as error:
                errors.append(str(error))
    with naming(job.done), open(job.done, "r+b", opener=no_links) as done:
        for n in stored:
            done.seek(n)
            done.write(b"\1")
    return len(rows), errors
