"""From annotations and feature files to the arrays that `uwav.py` trains on.

    python features.py fetch DIR           # the published annotations and features          (fetch.py)
    python features.py extract VIDEOS OUT  # videos -> CLIP and CLAP embeddings               (extract.py, video.py)
    python features.py text CLASSES OUT    # class names -> text embeddings                   (encoders.py)
    python features.py pack SOURCE OUT     # thousands of small .npy files -> a few memory-mapped arrays

Two datasets (annotations.py) appear everywhere below: **LLP** (the target), and **UnAV-100** (for pre-training).
A *packed folder*, written by `pack` here or by `demo_world.py`, is what every stage reads. Made from your own data,
it has these in the place of LLP, no `unav`, and of `val` and `test` only what you annotated:

    index.json                                        written last: its presence means "complete"
    llp/text_{clap,clip}.npy                          (C, 512) (C, 768) float32, unit length
    llp/{train,val,test}/weak.npy                     (N, C) uint8
    llp/{val,test}/{audio,visual}.npy                 (N, T, C) uint8, the dense truth
    llp/{train,val,test}/{clap,clip,...}.npy          (N, T, D) float16
    unav/text_{clap,clip}.npy                         (C, D) float32
    unav/{train,validation,test}/{clap,clip}.npy      (all segments of the split, D) float16
    unav/{train,validation,test}/{label,length}.npy   (all segments, C) uint8; (N,) int64
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib.util
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from annotations import LLP, LLP_SEGMENTS, LLP_WEAK_FILES, UNAV_SPLITS, UnAV, read_llp, read_own, read_unav, some
from annotations import LLP_CLASSES, LLP_DENSE_FILES, LLPSplit, UnAVSplit  # noqa: F401  (to be had from here, too)
from files import (CONTROL, atomic, finite, follow_the_parent, is_plain_name, json_text, naming, no_links,
                   one_sentence_errors, read_array, read_json, shaped, working_in, write_array, write_json)

# ---------------------------------------------------------------------------------------------
# pack: the authors' download, or a folder of your own -> a packed folder
# ---------------------------------------------------------------------------------------------

# feature name -> (folder inside the source, vectors per second, vector size)
LLP_FEATURES = {
    "clap": ("LLP/feats_CLAP/segment_feats", 1, 512),
    "clip": ("LLP/feats_CLIP/segment_feats", 1, 768),
    "vggish": ("LLP/feats/vggish", 1, 128),
    "res152": ("LLP/feats/res152", 8, 2048),
    "r2plus1d_18": ("LLP/feats/r2plus1d_18", 1, 512),
}
UNAV_FEATURES = {
    "clap": ("UnAV/feats_CLAP/segment_feats", 512),
    "clip": ("UnAV/feats_CLIP/segment_feats", 768),
}
# In a folder of your own, as `extract` writes it, and in LLP/ and UnAV/ of the authors:
SEGMENT_FILES = {name: Path(LLP_FEATURES[name][0]).relative_to("LLP") for name in ("clap", "clip")}
TEXT_FILES = {"clap": ("feats_CLAP/event_feats/all_event_feats.npy", 512),
              "clip": ("feats_CLIP/event_feats/all_event_feats.npy", 768)}
FORMAT = 1  # of the packed folder; raised when its layout changes
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
    if not _is_list_of_names(classes):
        raise ValueError(f"{path}: damaged; {way_out}")
    folders = [source / folder for folder in SEGMENT_FILES.values()]
    there = set.intersection(*({f.stem for f in folder.glob("[!.]*.npy")} for folder in folders))
    paths, size = {video: folders[0] / f"{video}.npy" for video in there}, TEXT_FILES["clap"][1]
    lengths = {video: len(shaped(read_array(p, mmap=True), (None, size), p)) for video, p in paths.items()}
    return read_own(source, tuple(classes), lengths, missing)


MADE_WITH = ("extract.json", "text.json")  # what `extract` and `text` remember of their weights
RANDOM_SOURCE = "pack, encoders with random weights"


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


def make_index(source: str | dict, llp: LLP, unav: UnAV | None, llp_features: list[str]) -> dict:
    """The content of index.json: where the data come from, what they hold, and a fingerprint of all labels."""
    labels = [x for split in llp.splits.values() for x in (split.weak, split.audio, split.visual)]
    labels += [x for s in UNAV_SPLITS for x in getattr(unav, s).labels] if unav else []
    fingerprint = hashlib.sha256(b"".join(x.tobytes() for x in labels if x is not None)).hexdigest()
    index = {
        "format": FORMAT,
        "source": source,
        "labels": fingerprint,
        "llp": {"classes": list(llp.classes), "features": llp_features,
                "videos": {s: split.ids for s, split in llp.splits.items()}},
    }
    if unav:
        index["unav"] = {"classes": list(unav.classes), "features": list(UNAV_FEATURES),
                         "videos": {s: getattr(unav, s).ids for s in UNAV_SPLITS}}
    return index


def write_annotations(out: Path, llp: LLP, unav: UnAV | None) -> None:
    """The label arrays of a packed folder (shapes: top of this file)."""
    for split, data in llp.splits.items():
        write_array(out / "llp" / split / "weak.npy", data.weak)
        if data.audio is not None:
            write_array(out / "llp" / split / "audio.npy", data.audio)
            write_array(out / "llp" / split / "visual.npy", data.visual)
    for split in UNAV_SPLITS if unav else ():
        labels = getattr(unav, split).labels
        write_array(out / "unav" / split / "length.npy", np.array([len(x) for x in labels], np.int64))
        empty = np.zeros((0, len(unav.classes)), np.uint8)
        write_array(out / "unav" / split / "label.npy", np.concatenate([empty, *labels]))


def read_index(folder: str | Path) -> dict:
    """`index.json` of a packed folder. Raises FileNotFoundError or ValueError."""
    path = Path(folder) / "index.json"
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file, so {folder} is not a (complete) packed folder; "
                                "make one with `python features.py pack` or `python demo_world.py make`")
    try:
        index = read_json(path)
        version = index["format"]
        complete = version != FORMAT or _is_index(index)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not an index of a packed folder ({error!r:.200})") from None
    if version != FORMAT:
        raise ValueError(f"{path}: packed in format {version!r:.20}, this code reads {FORMAT}; pack again")
    if not complete:
        raise ValueError(f"{path}: damaged: it does not list classes, features and videos as it should; pack again")
    return index


def _is_index(index: dict) -> bool:
    """Whether it lists classes, features, and the videos of every split, whose ids are plain names."""
    splits = {"llp": set(index["llp"]["videos"]) | {"train"}}
    if "unav" in index:
        splits["unav"] = set(UNAV_SPLITS)
    lists = [x for d in splits for x in (index[d]["classes"], index[d]["features"], *index[d]["videos"].values())]
    segments = index["llp"].get("segments", LLP_SEGMENTS)
    return (all(map(_is_list_of_names, lists)) and isinstance(index["source"], str | dict)
            and splits["llp"] <= set(LLP_WEAK_FILES) and type(segments) is int and segments > 0
            and all(set(index[d]["videos"]) == names for d, names in splits.items())
            and all(is_plain_name(i) for d in splits for ids in index[d]["videos"].values() for i in ids))


def _is_list_of_names(names: object) -> bool:
    """At least one, and none twice."""
    return (isinstance(names, list) and len(names) > 0 and len(set(map(str, names))) == len(names)
            and all(isinstance(x, str) and x and not CONTROL.search(x) for x in names))


def start_or_continue(out: Path, index: dict) -> None:
    """Keep what an interrupted run of the *same* plan left in `out`; throw away anything else it packed."""
    plan = out / "plan.json"
    if not plan.exists() or plan.read_bytes() != json_text(index).encode():
        (out / "index.json").unlink(missing_ok=True)
        for dataset in ("llp", "unav"):
            shutil.rmtree(out / dataset, ignore_errors=True)
        write_json(plan, index)


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


# ---------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------


FEATURE_PACKAGES = {"open_clip": "open_clip_torch", "laion_clap": "laion-clap", "av": "av"}  # module -> package


def need_feature_packages() -> None:
    missing = [package for module, package in FEATURE_PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ValueError(f"this command needs packages that are not installed: pip install {' '.join(missing)}")


def _weights(options: argparse.Namespace) -> tuple[dict[str, Path | None], dict[str, dict]]:
    """The files of weights that were asked for, by encoder, and what a folder of features remembers of them."""
    import fetch

    files = dict(clip=fetch.clip_weights(options.clip_weights), clap=fetch.clap_weights(options.clap_weights))
    return files, dict(clip_weights=fetch.identity_of_weights(options.clip_weights, files["clip"]),
                       clap_weights=fetch.identity_of_weights(options.clap_weights, files["clap"]))


def run_pack(options: argparse.Namespace) -> None:
    with working_in(options.out):
        pack(options.source, options.out, options.workers, options.missing)


def run_extract(options: argparse.Namespace) -> None:
    """`extract`: everything that can be refused is refused before the encoders are built."""
    need_feature_packages()
    for name in ("segments", "longest", "workers", "group"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name} {value}: must be above 0")
    files, made_with = _weights(options)  # before PyTorch is imported: a missing file is said at once
    import encoders
    import extract
    import fetch
    import ranks

    choices = extract.Options(options.llp, options.segments, options.missing, options.longest)
    device = ranks.choose_device(options.device)
    made_with |= dict(segments=LLP_SEGMENTS if options.llp else options.segments,
                      precision="half" if device.startswith("cuda") else "single")
    if ranks.RANK == 0:
        fetch.warn_of_random(files)
    device = ranks.connect(device)
    try:
        extract.check(options.videos, options.out, made_with)
        on_gpu = device.startswith("cuda")
        clip, clap = encoders.Clip(files["clip"], device), encoders.ClapAudio(files["clap"], device)
        with ranks.alone_in(options.out):
            extract.extract(options.videos, options.out, clip.images, clap.sounds, made_with, choices, options.workers,
                            group=options.group or (16 if on_gpu else 4),
                            threads=1 if on_gpu else encoders.cpu_threads(), retry=options.retry)
    finally:
        ranks.disconnect()


def run_text(options: argparse.Namespace) -> None:
    """`text`: class embeddings. CLAP's tokenizer comes from the hub even where the weights come from a file."""
    need_feature_packages()
    import fetch

    if options.clap_weights != fetch.RANDOM:
        fetch.online()
    files, made_with = _weights(options)
    import encoders
    import extract
    import ranks

    classes = extract.read_classes(options.classes)
    fetch.warn_of_random(files)
    device = ranks.choose_device(options.device)
    extract.write_texts(classes, options.out, lambda texts: encoders.Clip(files["clip"], device).texts(texts),
                        lambda texts: encoders.clap_texts(texts, files["clap"], device), made_with)


def run_fetch(options: argparse.Namespace) -> None:
    import fetch

    datasets = [name for name, wanted in (("LLP", options.llp), ("UnAV", options.unav)) if wanted]
    with working_in(options.folder):
        fetch.fetch(options.folder, tuple(datasets or ("LLP", "UnAV")), options.mirror)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Videos, feature files and annotations -> arrays that uwav.py trains on.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, run: Callable) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        sub.set_defaults(run=run)
        return sub

    def weights(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--clip-weights", default="openai", metavar="openai|random|FILE",
                         help="CLIP ViT-L/14 (default: OpenAI's); random: a dry run")
        sub.add_argument("--clap-weights", default="630k-audioset-best", metavar="NAME|random|FILE",
                         help="CLAP: a checkpoint of laion_clap by name (default: 630k-audioset-best) or as a file, "
                              "fusion or not, HTSAT-tiny or -base; random: a dry run")
        sub.add_argument("--device", help="cpu, cuda or cuda:1 (default: cuda where there is a GPU)")

    sub = command("pack", "thousands of small .npy files -> a few memory-mapped arrays",
                  run_pack)
    sub.add_argument("source", type=Path, help="folder with LLP/ and UnAV/ as the authors distribute them, or "
                                                    "your own with labels.csv (README, \"Your own data\")")
    sub.add_argument("out", type=Path, help="packed folder to write (continued if a run was interrupted)")
    sub.add_argument("--workers", type=int, help="parallel reading processes (default: one per core)")
    sub.add_argument("--missing", choices=("stop", "skip"), default="stop",
                     help="a video without feature files: stop (default), or leave it out, counted")

    sub = command("extract", "videos -> CLIP and CLAP embeddings, one file a video; also under torchrun", run_extract)
    sub.add_argument("videos", type=Path, help="folder of videos; a file's name without its ending is the video's id")
    sub.add_argument("out", type=Path, help="gets feats_CLIP/, feats_CLAP/, failures.csv (continued if interrupted)")
    weights(sub)
    sub.add_argument("--missing", choices=("skip", "zeros"), default="skip",
                     help="a video without sound or without picture: skip it (default), or zeros for that stream")
    length = sub.add_mutually_exclusive_group()
    length.add_argument("--llp", action="store_true",
                        help="clips of LLP: 10 segments each, and a file may be called <id>_<start>_<end>.*")
    length.add_argument("--segments", type=int,
                        help="of every video, one a second: shorter ones are refused, of longer ones the beginning is "
                             "used (default: the length in seconds, rounded up)")
    sub.add_argument("--longest", type=float, default=600.0, metavar="S", help="refuse longer videos (default: 600 s)")
    sub.add_argument("--workers", type=int, help="decoding processes (default: one per core)")
    sub.add_argument("--group", type=int, help="videos encoded together (default: 16 on a GPU, 4 on a CPU)")
    sub.add_argument("--retry", action="store_true", help="try the videos of failures.csv again")

    sub = command("text", "class names -> CLIP and CLAP text embeddings", run_text)
    sub.add_argument("classes", help="llp, the annotation file of UnAV-100, or a text file with one class a line")
    sub.add_argument("out", type=Path, help="gets feats_CLIP/event_feats/ and feats_CLAP/event_feats/")
    weights(sub)

    sub = command("fetch", "download the published annotations and CLIP/CLAP features", run_fetch)
    sub.add_argument("folder", type=Path, help="gets LLP/ and UnAV/, as `pack` reads them")
    sub.add_argument("--llp", action="store_true", help="only LLP (default: both)")
    sub.add_argument("--unav", action="store_true", help="only UnAV-100 (default: both)")
    sub.add_argument("--mirror", metavar="URL", default=os.environ.get("UWAV_MIRROR"),
                     help="a server that has all these files in one place (default: $UWAV_MIRROR, if set)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    with one_sentence_errors():
        options.run(options)


if __name__ == "__main__":
    main()
