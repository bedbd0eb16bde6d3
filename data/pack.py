"""The authors' download, or a folder of your own -> a packed folder (layout.py)."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from common.files import (finite, hash_of, hash_of_arrays, json_text, made_by, printable, read_array, read_json,
                          shaped)
from data.annotations import (CLIPS, LLP, Known, UnAV, mistaken, read_failures, read_llp, read_own, read_table,
                              read_unav, readable, some)
from data.layout import (ENCODERS, MADE_ALIKE, RANDOM_SOURCE, RANDOM_WEIGHTS, TEXTED, ids_in, made_alike, make_plan,
                         read_note, write_pack)

FAINT = 0.002  # of a vector's length
MADE_WITH = ("extract.json", "text.json")  # what `extract` and `text` remember of their weights


def pool_to(x: np.ndarray, segments: int) -> np.ndarray:
    """Adaptive average pooling over time, (L, D) -> (segments, D): segment t averages the vectors
    floor(t L / segments) .. ceil((t + 1) L / segments)."""
    import torch

    return torch.nn.functional.adaptive_avg_pool1d(torch.tensor(x.T, dtype=torch.float32), segments).T.numpy()


def pack(source: str | Path, out: str | Path, workers: int | None = None, missing: str = "stop",
         replace: bool = False, window: int = 0) -> dict:
    """Pack the layout of the authors' download, or your own folder with labels.csv, into `out`; returns the index.

    Packs UnAV and every LLP feature whose folder exists. missing = "skip" leaves out videos that lack a feature file.
    window: of your own, cut the videos into pieces of so many segments.
    Stopped at any moment, it continues with the array that it was at. Another finished pack is replaced only with
    `replace`, and only when the new one is complete; a folder with files that no pack wrote is refused. Raises
    FileNotFoundError (missing files) or ValueError (files of a wrong shape, with NaN, cut short, ...) with one sentence
    that lists them; arrays that were packed stay and are not done again."""
    source, out = Path(source), Path(out)
    if (source / "labels.csv").exists():
        roots, kind, found = {"llp": source}, "own data", list(TEXTED)
        llp, unav = _read_own_folder(source, missing, window), None
    elif (source / "LLP").exists():
        roots, kind = {"llp": source / "LLP", "unav": source / "UnAV"}, "pack"
        llp, unav, found = _read_published(source, missing)
    else:
        raise FileNotFoundError(f"{source}: has neither labels.csv (your own data) nor LLP/ (the authors' layout)")
    if window and unav:
        raise ValueError("--windows works on your own data only; LLP's clips have a fixed length")
    notes = {path: read_note(path) for root in roots.values() for path in (root / name for name in MADE_WITH)}
    made_alike(notes)
    if random := [path for path, note in notes.items() if RANDOM_WEIGHTS in note.values()]:  # no pack of real ones
        print(f"WARNING: {random[0]}: an encoder had RANDOM WEIGHTS. This is a dry run.", file=sys.stderr)
        kind = RANDOM_SOURCE.replace("pack", kind)
    if unknown := [str(path) for path, note in notes.items() if not note.keys() & set(MADE_ALIKE)]:
        print(f"{source}: its weights and recipe are not recorded ({some(unknown)}), as with the authors' files; "
              "so it is not compared", flush=True)
    plan = make_plan(kind, llp, unav, found)
    if unav is None:
        plan["llp"] |= dict(segments=llp.segments, clips=llp.clips)
    if any(notes.values()):
        plan["made_with"] = {str(path.relative_to(source)): json_text(note) for path, note in notes.items() if note}
    jobs = _jobs(roots, found, llp, unav)
    whence = dict(llp="llp" if unav else "CLASSES", unav=source / "UnAV/unav100_annotations.json")
    plan["read"] = _fingerprint([*(path for videos in jobs.values() for path, *_ in videos),
                                 *(root / e.texts for root in roots.values() for e in TEXTED.values())])
    texts = {f"{dataset}/text_{name}.npy": text for dataset, root in roots.items()  # (C, D)
             for name, text in read_texts(root, plan[dataset]["classes"], whence[dataset]).items()}
    faint, unusable = [], []

    def features(target: str) -> np.ndarray | None:
        rows = list(pool.map(functools.partial(_read, faint), *zip(*jobs[target])))
        if wrong := [x for x in rows if isinstance(x, str)]:
            return unusable.extend(wrong)
        return np.stack(rows) if target.startswith("llp") else np.concatenate(rows)

    with ThreadPoolExecutor(workers) as pool:
        arrays = texts | {target: functools.partial(features, target) for target in jobs}
        index = write_pack(out, plan, llp, unav, replace, arrays)
    if faint:
        print(f"WARNING: {len(faint)} feature files hold vectors so small that half precision loses bits of them: "
              f"{some(sorted(faint))}", file=sys.stderr, flush=True)
    if unusable:
        raise ValueError(f"{len(unusable)} feature files cannot be used: {some(unusable)}")
    return index


def read_texts(root: Path, classes: list[str], source: object = "CLASSES") -> dict[str, np.ndarray]:
    """The text embeddings beside features, (C, D) each. ValueError if text.json says that they are of other classes or
    in another order, or that these are not the files that `text` wrote. source: where `text` gets the classes."""
    path, found = root / "text.json", {}
    note, again = read_note(path), f"make them again with `python features.py text {source} {root}`"
    for c, (theirs, ours) in enumerate(itertools.zip_longest(note.get("classes", classes), classes)):
        if ours is None or theirs is None or readable(str(theirs)) != readable(ours):
            raise ValueError(f"{path}: the texts are in another order, or of other classes, than the labels: class {c} "
                             f"is {theirs!r:.60}, for {ours!r}; {again}")
    for name, e in TEXTED.items():
        file = root / e.texts
        text = finite(shaped(read_array(file), (len(classes), e.size), file), file)
        if note.get(f"{name}_texts") not in (None, hash_of_arrays({name: text})):
            raise ValueError(f"{file}: not the texts that {path} tells of; {again}")
        if not np.allclose(np.linalg.norm(text, axis=1), 1, atol=0.01):
            print(f"WARNING: {file}: not of unit length, which the teacher expects", file=sys.stderr, flush=True)
        found[name] = text.astype(np.float32)  # (C, D)
    return found


def _read_published(source: Path, missing: str) -> tuple[LLP, UnAV, list[str]]:
    """Both datasets of the authors' download, and which of LLP's features are there."""
    llp, unav = read_llp(source / "LLP"), read_unav(source / "UnAV/unav100_annotations.json")
    found = [name for name, encoder in ENCODERS.items() if (source / "LLP" / encoder.folder).is_dir()]
    for name, encoder in TEXTED.items():
        if name not in found:
            raise FileNotFoundError(f"{source / 'LLP' / encoder.folder}: no such folder (the teacher needs it)")
    if missing == "skip":
        llp = LLP(llp.classes, *_with_features(source / "LLP", found, llp))
        unav = UnAV(unav.classes, *_with_features(source / "UnAV", list(TEXTED), unav))
    return llp, unav, found


def _with_features(root: Path, features: list[str], dataset: LLP | UnAV) -> Iterator:
    """The splits without the videos that lack a feature file; says how many those are."""
    there = ids_in([root / ENCODERS[name].folder for name in features])
    for name, split in dataset.splits.items():
        rows = [n for n, video in enumerate(split.ids) if video in there]
        if absent := [video for video in split.ids if video not in there]:
            print(f"{root.name} {name}: {len(absent)} of {len(split.ids)} videos have no features (left out): "
                  f"{some(absent)}{mistaken(absent, there)}", flush=True)
        if not rows:
            raise FileNotFoundError(f"{root}: no features of any {name} video")
        yield type(split)(*(x if x is None else x[rows] if isinstance(x, np.ndarray) else [x[n] for n in rows]
                            for x in vars(split).values()))


def _read_own_folder(source: Path, missing: str, window: int = 0) -> LLP:
    """Your labels, of the classes that `text` embedded and the videos that `extract` embedded."""
    path = source / "text.json"
    with made_by(f"python features.py text CLASSES {source}", path):
        classes = tuple(map(str, read_json(path)["classes"]))
        if "\n" in "".join(classes):
            raise ValueError("a line break in a class")
    lengths, lacks, whole, causes = {}, {}, {}, {}
    for video in sorted(ids_in(source / e.folder for e in TEXTED.values())):
        for e, stream in zip(TEXTED.values(), ("sound", "picture")):
            path = source / e.folder / f"{video}.npy"
            if video not in lengths:
                lengths[video] = len(shaped(read_array(path, mmap=True), (None, e.size), path))
            with contextlib.suppress(ValueError, TypeError):  # of all files that are damaged, `_read` tells together
                x = shaped(read_array(path, mmap=True), (lengths[video], e.size), path)
                if not x.any():  # no embeddings, which have length 1: `extract --missing zeros` wrote them
                    lacks[video] = stream
    if (path := source / "clips.csv").exists():
        with made_by(f"python features.py check {source}", path):
            whole = {row["clip"]: int(row["seconds"]) for _, row in read_table(path, CLIPS)}
    if (path := source / "failures.csv").exists():
        causes = {os.path.splitext(file)[0]: printable(cause) for (file, _), cause in read_failures(path).items()}
    known = {v: Known(whole.get(v, 0), lacks.get(v, ""), causes.get(v, "")) for v in (*lengths, *whole, *causes)}
    return read_own(source, classes, lengths, missing, window=window, known=known)


def _jobs(roots: dict[str, Path], found: list[str], llp: LLP, unav: UnAV | None) -> dict[str, list[tuple]]:
    """Where the rows of every packed array come from: arguments of `_read`."""
    jobs = {}
    for name in found:
        e = ENCODERS[name]
        for split, data in llp.splits.items():
            parts = [llp.windows.get(i, (i, None)) for i in data.ids]
            jobs[f"llp/{split}/{name}.npy"] = [
                (roots["llp"] / e.folder / f"{i}.npy", llp.segments, e.size, e.per_second, first) for i, first in parts]
    for name, e in TEXTED.items() if unav else ():
        for split, data in unav.splits.items():
            jobs[f"unav/{split}/{name}.npy"] = [
                (roots["unav"] / e.folder / f"{i}.npy", len(x), e.size, 0, None) for i, x in zip(data.ids, data.labels)]
    return jobs


def _fingerprint(paths: list[Path]) -> str:
    """Changes when any file that is read is replaced: of each, name, size and time of its last change. Raises
    FileNotFoundError that lists those that are missing, before any work is spent on the rest."""
    if missing := [path for path in paths if not path.exists()]:
        unlike = mistaken([path.stem for path in missing], ids_in([*{path.parent for path in missing}]))
        raise FileNotFoundError(f"{len(missing)} feature files are missing: {some(list(map(str, missing)))}{unlike}")
    stats = zip(paths, map(os.stat, paths))
    return hash_of("".join(f"{path.name} {x.st_size, x.st_mtime_ns}\n" for path, x in stats).encode())


def _read(faint: list[str], path: Path, T: int, D: int, vectors: int, first: int | None) -> np.ndarray | str:
    """A video read, checked and averaged, (T, D); or what is wrong with its file. It is added to `faint` if half
    precision, which keeps 11 bits of numbers of usual size, changes one of its vectors by more than FAINT of it.
    vectors: a second, in the file; 0: any number, pooled. first: of its segments, if it has more than T."""
    try:
        x = read_array(path)
        if first is not None:
            x = shaped(x, (None, D), path)[first : first + T]
        with np.errstate(over="ignore", invalid="ignore"):  # `finite` refuses these
            if vectors:
                x = shaped(x, (T * vectors, D), path).reshape(T, vectors, D).mean(1, dtype=np.float32)  # (T, D)
            else:
                x = pool_to(shaped(x, (None, D), path), T)  # (T, D)
            half = finite(x.astype(np.float16), path)  # (T, D)
        lost, length = (np.linalg.norm(np.asarray(y, np.float64), axis=1) for y in (x - half, x))  # (T,) each
        if (lost > FAINT * length).any():
            faint.append(str(path))
        return half
    except (ValueError, FileNotFoundError) as error:
        return str(error)
