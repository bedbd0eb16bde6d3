"""A folder of videos -> CLIP and CLAP embeddings, one file a video, in the layout that `features.py pack` reads.

    OUT/feats_CLIP/segment_feats/<id>.npy    (T, 768) float32, unit length
    OUT/feats_CLAP/segment_feats/<id>.npy    (T, 512) float32, unit length
    OUT/extract.json                         what made all this: recipe, weights, segments, precision, software
    OUT/failures.csv                         videos without features, with the cause
    OUT/clips.json                           size and time of the clips that features are of
    OUT/.shares/K-of-N/                      the last two of one of several processes, until they are put together

Processes decode (decode.py), this one encodes (encoders.py). Videos are encoded in groups, always the same ones
together whatever was finished before, because the last bits of an embedding depend on its batch: an interrupted run
ends with the very bytes of one that was not. On a CPU several groups are encoded at a time, each by one thread, for
the same reason. Several processes (`torchrun`, `--shard`) share these very groups, each takes every n-th.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import importlib.metadata
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common import devices
from common.command import progress
from common.files import hash_of_arrays, read_array, read_json, write_array, write_json, write_table
from data.annotations import find_videos, is_media, listed, read_failures, readable, some
from data.layout import ENCODERS, TEXTED, code_of, content, made_alike, read_note
from video import RECIPES, Recipe, decode

Encode = Callable[[np.ndarray], np.ndarray]  # N inputs -> (N, D) of unit length
SEGMENTS_AT_ONCE = 64  # through an encoder
LONGER = "of the new ones last longer than their segments: only their beginning was used"


# ---- Which videos, and what became of them -------------------------------------------------------

SHARES = ".shares"


def part_of(out: Path, shard: str | None) -> Path:
    """Where this process notes what it does: OUT, unless it has a share of the work."""
    share, shares = devices.share(shard)
    return out if shares == 1 else out / SHARES / f"{share + 1}-of-{shares}"


def noted(out: Path, name: str, read: Callable[[Path], dict]) -> dict:
    """What was noted in OUT and by the processes that shared its work; of two notes the later one counts."""
    paths = sorted((*out.glob(name), *out.glob(f"{SHARES}/*/{name}")), key=os.path.getmtime)
    return {key: x for path in paths for key, x in read(path).items()}


class Failures:
    """failures.csv: file, its size, cause. part: of OUT, if it is one. retry: begin with none."""

    def __init__(self, out: Path, folder: Path, part: Path | None = None, retry: bool = False):
        self.path, self.folder = (part or out) / "failures.csv", folder
        self.causes: dict[tuple[str, int], str] = {} if retry else noted(out, "failures.csv", read_failures)

    def key(self, path: Path) -> tuple[str, int]:
        return str(path.relative_to(self.folder)), path.stat().st_size if path.exists() else 0

    def add(self, path: Path, cause: str) -> None:
        self.causes[self.key(path)] = cause
        self.write()

    def write(self) -> None:
        rows = [(*key, cause) for key, cause in sorted(self.causes.items())]
        write_table(self.path, [("file", "bytes", "cause"), *rows], "utf-8")


def feature_files(out: Path, id: str) -> dict[str, Path]:
    return {name: out / e.folder / f"{id}.npy" for name, e in TEXTED.items()}


def is_finished(out: Path, id: str) -> bool:
    return all(path.exists() for path in feature_files(out, id).values())


# ---- extract -------------------------------------------------------------------------------------

def check(folder: Path, out: Path, made_with: dict) -> None:
    """Before hours of work: are there videos, and does OUT hold features of the same kind or none? Raises
    FileNotFoundError or ValueError."""
    find_videos(folder, out=out)
    path = out / "extract.json"
    before = read_note(path)
    changed = sorted(k for k in made_with if content(before.get(k)) != content(made_with[k]))
    if path.exists() and (changed or before.keys() - made_with.keys() - {"software"}):
        raise ValueError(f"{path}: the features there were made with other "
                         f"{' and '.join(changed or ['settings'])}; choose another folder")
    made_alike({str(out / "text.json"): read_note(out / "text.json"), "what is asked for": made_with})


PACKAGES = ("torch", "numpy", "av", "pillow", "open_clip_torch", "laion-clap")


def software_since(path: Path) -> tuple[str, list[str]]:
    """What decides about embeddings besides what is asked for, code and packages; and all that had a part in what
    `path` tells of. If that was another one before, it is said."""
    versions = [f"{package} {importlib.metadata.version(package)}" for package in PACKAGES]
    now = ", ".join([f"code {code_of('features.py', 'video/*.py')[:12]}", *versions])
    known = read_note(path).get("software", ["software that was not noted"] if path.exists() else [])
    if known and now != known[-1]:
        other = ", ".join(x for x in known[-1].split(", ") if x not in now)
        print(f"WARNING: {path}: the features there were made by {other}; new ones, by {now}, may differ. In "
              "another folder all is made alike", file=sys.stderr, flush=True)
    return now, known


def forget_replaced(videos: dict[str, Path], out: Path, part: Path) -> list[str]:
    """The videos that another file has replaced, by size or time of its last change: their features are deleted. Then
    clips.json notes both, so that features are always those of the clips noted, or made again."""
    before = noted(out, "clips.json", read_note)
    stats = ((v, file.stat()) for v, file in videos.items() if file.exists())
    now = {v: [x.st_size, x.st_mtime_ns] for v, x in stats}
    replaced = [v for v in now if before.get(v, now[v]) != now[v]]
    for v in replaced:
        for file in feature_files(out, v).values():
            file.unlink(missing_ok=True)
    if replaced:
        print(f"{out}: made again, as the clip is another one than before (by size and time): {some(replaced)}",
              flush=True)
    write_json(part / "clips.json", before | now if part == out else now)
    return replaced


def extract(folder: str | Path, out: str | Path, encode_images: Encode, encode_sounds: Encode, made_with: dict,
            llp: bool = False, segments: int | None = None, missing: str = "skip", longest: float = decode.LONGEST,
            recipe: str = "uwav", workers: int | None = None, group: int = 4, threads: int = 1, retry: bool = False,
            shard: str | None = None) -> dict[str, int]:
    """Features of all videos in `folder`; returns how many are finished, failed, ....

    encode_images: (N, 224, 224, 3) uint8 -> (N, 768); encode_sounds: (N, 48000) float32 -> (N, 512).
    made_with: what OUT remembers and later runs must share. llp: a file may be called <id>_<start>_<end>. segments: of
    every video; None: ceil(its length in s). missing: a video without sound or picture: skip | zeros. longest: in s.
    workers: decoding processes. group: videos that are encoded together. threads: groups that are encoded at a time.
    retry: try the videos of failures.csv again. shard: K/N, only the K-th of N shares of the groups."""
    folder, out, (share, shares) = Path(folder), Path(out), devices.share(shard)
    part, (videos, same) = part_of(out, shard), find_videos(folder, llp)
    if (out / "labels.csv").exists():  # of your own data, what nobody labelled is of no use
        rows, found = listed(out / "labels.csv"), list(videos)
        videos, same = {v: videos[v] for v in found if v in rows}, {f: x for f, x in same.items() if is_media(f)}
        if len(videos) < len(found):
            print(f"{len(found) - len(videos)} files are not in labels.csv, and not embedded: "
                  f"{some([v for v in found if v not in rows])}", flush=True)
    ids = list(videos)
    groups = [ids[i : i + group] for i in range(0, len(ids), group)][share::shares]
    videos, same = {v: videos[v] for g in groups for v in g}, {} if share else same
    failures = Failures(out, folder, part, retry)
    if retry:
        failures.write()
    for v in forget_replaced(videos, out, part):
        failures.causes.pop(failures.key(videos[v]), None)
    before = {v for v in videos if is_finished(out, v)}
    usable = [[v for v in g if v in before or failures.key(videos[v]) not in failures.causes] for g in groups]
    # A group is encoded as a whole or not at all: what is encoded together decides about the last bits.
    unfinished = [{v: videos[v] for v in g} for g in usable if not before.issuperset(g)]
    path = out / "extract.json"
    now, known = software_since(path)
    if not known or (unfinished and now not in known):  # what is as it was stays, to the byte
        write_json(path, (read_note(path) or made_with) | dict(software=[*known, now]))
    paths = [path for g in unfinished for path in g.values()]
    clips = decode.read_clips(paths, workers or os.cpu_count() or 1, segments, longest,
                              read=functools.partial(decode.read_clip, recipe=RECIPES[recipe]))
    title, total = "extract" if shares == 1 else f"extract, share {share + 1} of {shares}", len(videos)
    with (contextlib.closing(clips), ThreadPoolExecutor(threads) as pool,
          progress(total=total, initial=total - len(paths), unit="video", desc=title, smoothing=0.05) as bar):
        encode = functools.partial(pool.submit, embed, encode_images, encode_sounds, out)
        notes = _work(unfinished, clips, encode, threads, failures, missing, bar)
    if shares > 1:
        check(folder, out, made_with)  # again, as two may have begun at the same moment
    after, total = {v for v in videos if is_finished(out, v)}, len(videos) + len(same)
    failures.causes |= {failures.key(file): cause for file, cause in same.items()}
    without = {failures.key(path) for path in (*same, *(videos[v] for v in videos if v not in after))}
    failures.causes = {key: cause for key, cause in failures.causes.items() if key in without}
    failures.write()
    own = dict(videos=total, finished=len(after), new=len(after - before), failed=total - len(after), **notes)
    result: collections.Counter = collections.Counter()  # of all ranks
    for counts, causes in devices.gathered((own, failures.causes)):
        result.update(counts)
        failures.causes |= causes
    if result and not shard and (out / SHARES).exists():  # what shares have noted becomes one
        failures.path = out / "failures.csv"
        failures.write()
        write_json(out / "clips.json", dict(sorted(noted(out, "clips.json", read_note).items())))
        shutil.rmtree(out / SHARES)
    causes = collections.Counter(cause.split(":")[0] for cause in failures.causes.values())
    hint = f"; {failures.path.relative_to(out)} says why, --retry tries them again" if causes else ""
    print(f"{result['videos']} videos: {result['finished']} have features in {out} ({result['new']} new), "
          f"{result['failed']} have none{hint}")
    for what, n in (*causes.most_common(), *list(result.items())[4:]):
        print(f"  {n:6d}  {what}", flush=True)
    return dict(result)


def _work(groups: list[dict[str, Path]], clips: Iterator[decode.Clip | str], encode: Callable[[dict], Future],
          threads: int, failures: Failures, missing: str, bar: tqdm) -> collections.Counter:
    """Decode ahead in processes, encode groups in threads, in order; returns what `embed` found notable."""
    notes: collections.Counter = collections.Counter()
    running: collections.deque[tuple[int, Future]] = collections.deque()
    for number, g in enumerate(groups, 1):
        good = {}
        for v, path in g.items():
            clip = next(clips)
            if isinstance(clip, decode.Clip) and clip.lacks and missing == "skip":
                clip = f"no {clip.lacks}: the file has no such stream (--missing zeros would accept it)"
            if isinstance(clip, decode.Clip):
                good[v] = clip
            else:
                failures.add(path, clip)
                bar.set_postfix(failed=len(failures.causes), refresh=False)
        running.append((len(g), encode(good)))
        while len(running) > (threads if number < len(groups) else 0):
            videos, encoded = running.popleft()
            notes.update(encoded.result())
            bar.update(videos)
    return notes


def embed(encode_images: Encode, encode_sounds: Encode, out: Path,
          clips: dict[str, decode.Clip]) -> collections.Counter:
    """Encode some clips together and write their files; returns how many of them have something notable."""
    for name, encode, streams in (("clip", encode_images, [c.images for c in clips.values()]),
                                  ("clap", encode_sounds, [c.sounds for c in clips.values()])):
        size = ENCODERS[name].size
        vectors = iter(in_batches(encode, [x for x in streams if x is not None], size))
        for (v, c), x in zip(clips.items(), streams):
            rows = np.zeros((c.segments, size), np.float32) if x is None else next(vectors)  # (T, 768) or (T, 512)
            path = feature_files(out, v)[name]
            if not path.exists():
                write_array(path, rows)
    notes = collections.Counter(f"have zeros for lack of a {c.lacks} stream" for c in clips.values() if c.lacks)
    notes.update(LONGER for c in clips.values() if c.seconds > c.segments + 1)
    return notes


def in_batches(encode: Encode, clips: list[np.ndarray], size: int) -> list[np.ndarray]:
    """(T, ...) of each clip -> (T, size) of each, in even batches that go across clips of one shape."""
    if len({x.shape[1:] for x in clips}) > 1:  # slices of sounds that last differently
        return [in_batches(encode, [x], size)[0] for x in clips]
    if not clips:
        return []
    inputs = np.concatenate(clips)
    outputs = [encode(x) for x in np.array_split(inputs, math.ceil(len(inputs) / SEGMENTS_AT_ONCE))]
    vectors = np.concatenate(outputs).astype(np.float32).reshape(-1, size)
    return np.split(vectors, np.cumsum([len(x) for x in clips])[:-1])


# ---- text ----------------------------------------------------------------------------------------

def write_texts(classes: list[str], out: str | Path, clip_texts: Callable[[list[str]], np.ndarray],
                clap_texts: Callable[[list[str]], np.ndarray], made_with: dict,
                recipe: Recipe = RECIPES["uwav"]) -> None:
    """Text embeddings of C classes -> OUT/feats_{CLIP,CLAP}/event_feats/all_event_feats.npy, (C, 768) and (C, 512).
    text.json is written first, with what the two files will hold: killed in between, they do not pass for a pair."""
    path, made_with = Path(out) / "text.json", made_with | dict(classes=classes)
    paths = {name: Path(out) / ENCODERS[name].texts for name in ("clip", "clap")}
    made_alike({str(Path(out) / "extract.json"): read_note(Path(out) / "extract.json"), "what is asked for": made_with})
    now, _ = software_since(path)
    with contextlib.suppress(ValueError, OSError):
        before = read_json(path)
        files = {f"{name}_texts": hash_of_arrays({name: read_array(file)}) for name, file in paths.items()}
        if before == made_with | files | dict(software=before.get("software")):
            print(f"{out}: these classes were embedded before, kept")
            return
    texts: dict[str, np.ndarray] = {}
    for name, embed_texts in (("clip", clip_texts), ("clap", clap_texts)):
        prompts = [recipe.prompts[name].format(readable(c)) for c in classes]
        texts[name] = embed_texts(prompts).astype(np.float32).reshape(len(classes), ENCODERS[name].size)
        print(f"{paths[name]}: {len(classes)} classes, {prompts[0]!r}, ...")
    files = {f"{name}_texts": hash_of_arrays({name: x}) for name, x in texts.items()}
    write_json(path, made_with | files | dict(software=[now]))
    for name, x in texts.items():
        write_array(paths[name], x)
