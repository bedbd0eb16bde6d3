"""A folder of videos -> CLIP and CLAP embeddings, one file a video, in the layout that `features.py pack` reads.

    OUT/feats_CLIP/segment_feats/<id>.npy    (T, 768) float32, unit length
    OUT/feats_CLAP/segment_feats/<id>.npy    (T, 512) float32, unit length
    OUT/failures.csv                         videos without features, with the cause
    OUT/extract.json                         what made all this: weights, segments, precision

Processes decode (decode.py), this one encodes (encoders.py). A crash in a decoder costs one video. Videos are encoded
in groups, always the same ones together whatever was finished before, because the last bits of an embedding depend on
its batch: an interrupted run ends with the very bytes of one that was not. Under torchrun every rank takes every
WORLD-th group. On a CPU several groups are encoded at a time, each by one thread, for the same reason.
"""

from __future__ import annotations

import collections
import csv
import math
import os
import queue
import re
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common import devices
from common.files import CONTROL, atomic, read_json, reason, write_array, write_json
from data.annotations import LLP_CLASSES, LLP_SEGMENTS, VIDEO_NAMES, read_unav
from data.layout import SEGMENT_FILES, TEXT_FILES
from video import decode

PROMPTS = {"clip": "A photo of {}", "clap": "This is the sound of {}"}  # paper, 4.1
Encode = Callable[[np.ndarray], np.ndarray]  # N inputs -> (N, D) of unit length
SEGMENTS_AT_ONCE = 64  # through an encoder


@dataclass(frozen=True)
class Options:
    """What decides about the features, besides videos and weights."""

    llp: bool = False  # clips of LLP: 10 segments, a file may be called <id>_<start>_<end>
    segments: int | None = None  # of every video; None: ceil(its length in s)
    missing: str = "skip"  # a video without sound or without picture: skip | zeros
    longest: float = decode.LONGEST  # s


@dataclass(frozen=True)
class Video:
    id: str
    path: Path


# ---------------------------------------------------------------------------------------------
# Which videos, and what became of them
# ---------------------------------------------------------------------------------------------


def find_videos(folder: Path, llp: bool) -> tuple[list[Video], dict[str, str]]:
    """All files in and below `folder`, in the order of their ids; files whose id another one has: name -> cause.

    Any file may be a video, whatever its name; hidden ones are left out. Raises ValueError if there is none.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    files, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # a link to where we are already
            folders.clear()
            continue
        seen.add(real)
        files += [Path(place) / name for name in names if not name.startswith(".")]
    if not files:
        raise ValueError(f"{folder}: no files in it")
    files.sort(key=lambda f: (f.suffix.lower() not in VIDEO_NAMES, str(f)))  # x.mp4 goes before x.json
    videos, same = {}, {}
    for file in files:
        name = re.sub(r"_\d+_\d+$", "", file.stem) if llp else file.stem
        if name in videos:
            same[str(file.relative_to(folder))] = f"same id: {videos[name].path.relative_to(folder)} was used"
        else:
            videos[name] = Video(name, file)
    return sorted(videos.values(), key=lambda v: v.id), same


class Failures:
    """failures.csv: file, its size, cause. Each rank writes a file of its own; rank 0 puts them together."""

    columns = ("file", "bytes", "cause")

    def __init__(self, out: Path, folder: Path):
        self.out, self.folder = out, folder
        self.own = out / f"failures.rank{devices.RANK}.csv"
        self.causes: dict[tuple[str, int], str] = {}
        for path in (out / "failures.csv", *out.glob("failures.rank*.csv")):
            if path.exists():
                with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
                    rows = csv.reader(line.replace("\0", "") for line in file)  # a power cut may leave zeros
                    try:
                        self.causes |= {(row[0], int(row[1])): row[2] for row in rows  # one that was cut off is no row
                                        if len(row) == 3 and row[1].isdecimal() and len(row[1]) < 20}
                    except csv.Error as error:
                        raise ValueError(f"{path}: damaged ({error}); delete it, and its videos are tried "
                                         "again") from None

    def key(self, path: Path) -> tuple[str, int]:
        return str(path.relative_to(self.folder)), path.stat().st_size if path.exists() else 0

    def add(self, path: Path, cause: str) -> None:
        self.causes[self.key(path)] = cause
        self._write(self.own, [(*key, cause) for key, cause in self.causes.items()])

    def _write(self, path: Path, rows: list[tuple]) -> None:
        with atomic(path) as temporary:
            with open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
                csv.writer(file).writerows(rows)

    def merge(self, unfinished: list[Path], same: dict[str, str]) -> dict[str, str]:
        """Write failures.csv: what is known of the videos that have no features now. Only on rank 0."""
        keys = [self.key(path) for path in unfinished]
        rows = [(*key, self.causes[key]) for key in keys if key in self.causes]
        rows += [(*self.key(self.folder / name), cause) for name, cause in same.items()]
        self._write(self.out / "failures.csv", [self.columns, *sorted(rows)])
        for path in self.out.glob("failures.rank*.csv"):
            path.unlink()
        return {name: cause for name, _, cause in rows}


def feature_files(out: Path, id: str) -> dict[str, Path]:
    return {name: out / folder / f"{id}.npy" for name, folder in SEGMENT_FILES.items()}


def is_finished(out: Path, id: str) -> bool:
    return all(path.exists() for path in feature_files(out, id).values())


# ---------------------------------------------------------------------------------------------
# extract
# ---------------------------------------------------------------------------------------------


def ahead(items: Iterator, most: int) -> Iterator:
    """The same items; a thread fetches up to `most` of them before they are asked for."""
    buffer: queue.Queue = queue.Queue(most)
    end, stop = object(), threading.Event()

    def put(item: object) -> bool:
        while not stop.is_set():
            try:
                buffer.put(item, timeout=0.1)
                return True
            except queue.Full:
                pass
        return False

    def fetch() -> None:
        try:
            for item in items:
                if not put(item):
                    break
            put(end)
        except BaseException as error:
            put(error)
        finally:
            items.close()

    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    try:
        while (item := buffer.get()) is not end:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


def check(folder: Path, out: Path, made_with: dict) -> None:
    """Before hours of work: are there videos, and does OUT hold features of the same kind or none?

    Raises FileNotFoundError or ValueError.
    """
    find_videos(folder, llp=False)
    if out.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{out} lies inside {folder}: its files would be taken for videos")
    path = out / "extract.json"
    if path.exists():
        try:
            before = dict(read_json(path))
        except (ValueError, TypeError):
            raise ValueError(f"{path}: damaged, so nobody knows what made the features beside it; "
                             "choose another folder") from None
        if before != made_with:
            changed = sorted(k for k in made_with if before.get(k) != made_with[k]) or ["settings"]
            raise ValueError(f"{path}: the features there were made with other {' and '.join(changed)}; "
                             "choose another folder")


def extract(folder: str | Path, out: str | Path, encode_images: Encode, encode_sounds: Encode, made_with: dict,
            options: Options = Options(), workers: int | None = None, group: int = 4, threads: int = 1,
            retry: bool = False) -> dict[str, int]:
    """Features of all videos in `folder`; returns how many are finished, failed, ....

    encode_images: (N, 224, 224, 3) uint8 -> (N, 768); encode_sounds: (N, 48000) float32 -> (N, 512).
    made_with: what OUT remembers and later runs must share. workers: decoding processes. group: videos that are
    encoded together. threads: groups that are encoded at a time. retry: try the videos of failures.csv again.
    """
    folder, out = Path(folder), Path(out)
    videos, same = find_videos(folder, options.llp)
    failures = Failures(out, folder)
    if retry:
        failures.causes.clear()
    groups = [videos[i : i + group] for i in range(0, len(videos), group)][devices.RANK :: devices.WORLD]
    usable = [[v for v in g if is_finished(out, v.id) or failures.key(v.path) not in failures.causes] for g in groups]
    # A group is encoded as a whole or not at all: what is encoded together decides about the last bits.
    unfinished = [g for g in usable if not all(is_finished(out, v.id) for v in g)]
    devices.barrier()  # everybody has read what earlier runs left
    if devices.RANK == 0:
        write_json(out / "extract.json", made_with)
    workers = workers or max(1, (os.cpu_count() or 1) // devices.LOCAL_WORLD)
    total, todo = sum(map(len, groups)), sum(map(len, unfinished))
    name = "extract" if devices.WORLD == 1 else f"extract, rank {devices.RANK}"
    with tqdm(total=total, initial=total - todo, unit="video", desc=name, smoothing=0.05, dynamic_ncols=True,
              mininterval=0.2 if sys.stderr.isatty() else 30, disable=devices.RANK > 0) as bar:
        counts = _work(unfinished, out, encode_images, encode_sounds, failures, options, workers, threads, bar)
    devices.barrier()
    counts = sum(map(collections.Counter, devices.all_of(dict(counts))), collections.Counter())
    result = dict(videos=len(videos) + len(same), finished=sum(is_finished(out, v.id) for v in videos),
                  new=counts["new"], no_sound=counts["no sound"], no_picture=counts["no picture"])
    result["failed"] = result["videos"] - result["finished"]
    if counts["longer"]:
        result["longer"] = counts["longer"]
    if devices.RANK == 0:
        failures = Failures(out, folder)  # of all ranks
        causes = failures.merge([v.path for v in videos if not is_finished(out, v.id)], same)
        print(summary(result, causes, out), flush=True)
    devices.barrier()
    return result


def _work(groups: list[list[Video]], out: Path, encode_images: Encode, encode_sounds: Encode, failures: Failures,
          options: Options, workers: int, threads: int, bar: tqdm) -> collections.Counter:
    """Decode ahead in processes, encode groups in threads, in order; returns what to count."""
    counts: collections.Counter = collections.Counter()
    running: collections.deque[Future] = collections.deque()

    def note(done: collections.Counter) -> None:
        counts.update(done)
        bar.set_postfix(failed=counts["failed"], refresh=False)
        bar.update(done["videos"])

    segments = LLP_SEGMENTS if options.llp else options.segments
    paths = [v.path for g in groups for v in g]
    clips = ahead(decode.read_clips(paths, workers, segments, options.longest), workers)
    pool = ThreadPoolExecutor(threads)
    try:
        for g in groups:
            good = []
            for v in g:
                clip_or_cause = _with_both_streams(next(clips), options.missing)
                if isinstance(clip_or_cause, str):
                    failures.add(v.path, clip_or_cause)
                    note(collections.Counter(videos=1, failed=1))
                else:
                    good.append((v, clip_or_cause))
            running.append(pool.submit(embed, good, encode_images, encode_sounds, out))
            if len(running) > threads:
                note(running.popleft().result())
        while running:
            note(running.popleft().result())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C does not wait for what is being encoded
    clips.close()
    return counts


def _with_both_streams(clip: decode.Clip | str, missing: str) -> decode.Clip | str:
    """A clip that lacks a stream becomes a cause, unless the user wants zeros."""
    if isinstance(clip, str) or missing == "zeros":
        return clip
    lacking = "sound" if clip.sounds is None else "picture" if clip.images is None else None
    return clip if lacking is None else f"no {lacking}: the file has no such stream (--missing zeros would accept it)"


def embed(clips: list[tuple[Video, decode.Clip]], encode_images: Encode, encode_sounds: Encode,
          out: Path) -> collections.Counter:
    """Encode some clips together and write their files; returns what to count."""
    counts = collections.Counter(videos=len(clips), longer=sum(c.seconds > c.segments + 1 for _, c in clips))
    for name, encode, size, kind in (("clip", encode_images, 768, "images"), ("clap", encode_sounds, 512, "sounds")):
        there = [getattr(c, kind) for _, c in clips if getattr(c, kind) is not None]
        vectors = in_batches(encode, np.concatenate(there), size) if there else np.zeros((0, size), np.float32)
        first = 0
        for v, c in clips:
            if getattr(c, kind) is None:
                rows = np.zeros((c.segments, size), np.float32)
                counts["no picture" if kind == "images" else "no sound"] += 1
            else:
                rows = vectors[first : first + c.segments]  # (T, 768) or (T, 512)
                first += c.segments
            path = feature_files(out, v.id)[name]
            if not path.exists():
                counts["new"] += name == "clap"  # the second file finishes the video
                write_array(path, rows)
    return counts


def in_batches(encode: Encode, inputs: np.ndarray, size: int) -> np.ndarray:
    """(N, ...) -> (N, size), in even batches."""
    outputs = [encode(x) for x in np.array_split(inputs, math.ceil(len(inputs) / SEGMENTS_AT_ONCE))]
    return np.concatenate(outputs).astype(np.float32).reshape(-1, size)


def summary(result: dict[str, int], causes: dict[str, str], out: Path) -> str:
    """Every video is counted once."""
    lines = [f"{result['videos']} videos: {result['finished']} have features in {out} "
             f"({result['new']} new, {result['finished'] - result['new']} from before), {result['failed']} have none"]
    for cause, n in collections.Counter(c.split(":")[0] for c in causes.values()).most_common():
        lines.append(f"  {n:6d}  {cause}")
    if causes:
        lines.append(f"  each with its cause in {out / 'failures.csv'}; --retry tries them again")
    for key, what in (("no_sound", "sound"), ("no_picture", "picture")):
        if result[key]:
            lines.append(f"  {result[key]:6d}  have zeros for lack of a {what} stream")
    if "longer" in result:
        lines.append(f"  {result['longer']:6d}  of the new ones last longer than their segments: only their beginning "
                     "was used")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------
# text
# ---------------------------------------------------------------------------------------------


def write_texts(classes: list[str], out: str | Path, clip_texts: Callable[[list[str]], np.ndarray],
                clap_texts: Callable[[list[str]], np.ndarray], made_with: dict) -> None:
    """Text embeddings of C classes -> OUT/feats_{CLIP,CLAP}/event_feats/all_event_feats.npy, (C, 768) and (C, 512)."""
    out = Path(out)
    for name, embed_texts in (("clip", clip_texts), ("clap", clap_texts)):
        prompts = [PROMPTS[name].format(readable(c)) for c in classes]
        path, size = out / TEXT_FILES[name][0], TEXT_FILES[name][1]
        write_array(path, embed_texts(prompts).astype(np.float32).reshape(len(classes), size))
        print(f"{path}: {len(classes)} classes, {prompts[0]!r}, ...")
    write_json(out / "text.json", made_with | dict(classes=classes))


def readable(name: str) -> str:
    """A class name as one would say it: "Frying_(food)" -> "frying food"."""
    return " ".join(re.sub(r"[_()]", " ", name).lower().split())


def read_classes(source: str) -> list[str]:
    """`llp`; the annotation file of UnAV-100 (.json), from which its list is read; or a text file, one name a line.

    Raises FileNotFoundError or ValueError.
    """
    if source == "llp":
        return list(LLP_CLASSES)
    if source.endswith(".json"):
        return list(read_unav(source).classes)
    try:
        names = [line.strip() for line in Path(source).read_text(encoding="utf-8-sig").splitlines()]
    except FileNotFoundError:
        raise FileNotFoundError(f"{source}: no such file, and not `llp`") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise ValueError(f"{source}: not a text file ({reason(error)})") from None
    names = [n for n in names if n]
    if any(map(CONTROL.search, names)):
        raise ValueError(f"{source}: not a text file: control characters in it")
    twice = [n for n, count in collections.Counter(map(readable, names)).items() if count > 1 or not n]
    if not names or twice:
        raise ValueError(f"{source}: " + (f"a class is there twice: {twice[0]!r}" if names else "no class in it"))
    return names
