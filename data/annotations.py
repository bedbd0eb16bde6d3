"""Annotations: which events a video holds and, where somebody has listened and looked, in which second.

* **LLP** (the target): 10-second clips, 25 classes. Training clips carry only a *weak label* (which
  classes occur somewhere); validation and test clips also say which second is audible / visible.
* **UnAV-100** (for pre-training): 10 to 60 s, 100 classes, every event is audible *and* visible.
* **Your own data**, in the place of LLP: labels.csv and, for a handful of videos, events.csv.
"""

from __future__ import annotations

import collections
import csv
import io
import math
import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.command import did_you_mean, working_in
from common.files import (from_cell, hash_of, is_id, is_plain_name, made_by, plain, printable, read_json, reading,
                          regular, write_table)

# ---- LLP annotations -----------------------------------------------------------------------------

LLP_SEGMENTS = 10  # T: an LLP clip lasts 10 s, one segment a second
# In index order. The csv files name classes but do not number them, so the list stands here, once.
LLP_CLASSES = (
    "Speech", "Car", "Cheering", "Dog", "Cat", "Frying_(food)", "Basketball_bounce", "Fire_alarm",
    "Chainsaw", "Cello", "Banjo", "Singing", "Chicken_rooster", "Violin_fiddle", "Vacuum_cleaner",
    "Baby_laughter", "Accordion", "Lawn_mower", "Motorcycle", "Helicopter", "Acoustic_guitar",
    "Telephone_bell_ringing", "Baby_cry_infant_cry", "Blender", "Clapping",
)
LLP_WEAK_FILES = {"train": "AVVP_train.csv", "val": "AVVP_val_pd.csv", "test": "AVVP_test_pd.csv"}
LLP_DENSE_FILES = {"audio": "AVVP_eval_audio.csv", "visual": "AVVP_eval_visual.csv"}

# Which versions these are: of LLP https://github.com/YapengTian/AVVP-ECCV20, of UnAV-100 a commit of pull request 4 of
# https://github.com/ttgeng233/UnAV, never merged; its authors link their own file elsewhere (docs/real_data.md).
LLP_COMMIT, UNAV_COMMIT = "fde5611", "60144ed39473b2b54dc38d7412bc073280a7cd00"
PUBLISHED = {  # SHA-256 of LLP's files there
    "AVVP_train.csv": "bbeb83e8af46a85075216b213d3464f92dd4ab71468c852ae454b82cc745c0a4",
    "AVVP_val_pd.csv": "1811813b54c5f43c3be0a97bd0971cfb8a93818ca7b3ab96cdc7f4ac37ef37a6",
    "AVVP_test_pd.csv": "3f7a2b040e3b67c15d08efef25002bf8c5b2320f11049eb99ae0eb2d62f8eb9b",
    "AVVP_eval_audio.csv": "d5435664668bec6e7eafb39059d2f424ed2682f6b55395262fc3cb691b7d0778",
    "AVVP_eval_visual.csv": "e2274af694f3f27e38b840e0cd91a9d8d9ac85280f193e90828d26b22db69abe",
}
# AVVP_eval_audio.csv until 2024-04-16: today's with other names in three rows (tests/test_features.py), thus ignored.
OLDER_AUDIO = "249122f65501d8d611c0027a48643798fe622bedee60f7e6224b5a8e3c02f886"
# Of what `read_unav` makes of unav100_annotations.json:
UNAV_CONTENT = "781c515efaf021f27e7d7f2d5c188dcae5c370dfeef7c38de75dda4230509593"


@dataclass(frozen=True)
class LLPSplit:
    """One split of LLP (or own data): N videos, T segments, C classes. `audio` and `visual` are None for train."""

    ids: list[str]  # (N) YouTube ids: the names of the feature files
    weak: np.ndarray  # (N, C) uint8: the class occurs somewhere in the video
    audio: np.ndarray | None = None  # (N, T, C) uint8: audible in that second
    visual: np.ndarray | None = None  # (N, T, C) uint8: visible in that second

    @property
    def labels(self) -> list[np.ndarray]:
        return [x for x in (self.weak, self.audio, self.visual) if x is not None]


class _Dataset:
    @property
    def splits(self) -> dict:
        """Those that are there, by name."""
        return {name: x for name, x in vars(self).items() if isinstance(x, (LLPSplit, UnAVSplit))}


@dataclass(frozen=True)
class LLP(_Dataset):
    """LLP, or your own data in its place, which may lack annotated videos: then `val` or `test` is None. A clip of your
    own may be several videos here, windows of T seconds, or none."""

    classes: tuple[str, ...]
    train: LLPSplit
    val: LLPSplit | None
    test: LLPSplit | None
    segments: int = LLP_SEGMENTS  # T
    windows: dict[str, tuple[str, int]] = field(default_factory=dict)  # of your own: id -> clip, first second
    clips: dict[str, str] = field(default_factory=dict)  # of your own: what became of every clip of labels.csv


def read_llp(folder: str | Path, report: Callable[[str], None] = print) -> LLP:
    """Read the five `AVVP_*.csv` files of LLP (columns: docs/real_data.md). `report` is told which version they are.
    The published files disagree with themselves in places; that is counted, told in one line each, and handled: rows of
    unknown videos and empty rows are ignored, dense truth is kept as it stands. Raises FileNotFoundError for a missing
    file, ValueError for one that cannot be meant."""
    folder, rows = Path(folder), {}
    for split, file in LLP_WEAK_FILES.items():
        rows |= _read_labels(folder / file, LLP_CLASSES, split, rows)
    dated = {name: video for video, (name, split, _) in rows.items() if split != "train"}
    truth = {video: np.zeros((2, LLP_SEGMENTS, len(LLP_CLASSES)), np.uint8) for video in dated.values()}
    counts = collections.Counter()
    for m, (modality, file) in enumerate(LLP_DENSE_FILES.items()):
        table, empty = read_table(folder / file, ("filename", "onset", "offset", "event_labels")), 0
        for place, row in table:
            onset, offset = (_time(row[key], place, LLP_SEGMENTS) for key in ("onset", "offset"))
            c, video = _class_number(row["event_labels"], LLP_CLASSES, place), dated.get(row["filename"])
            counts[f"{modality} rows name videos outside val and test (ignored)"] += video is None
            empty += onset >= offset
            if video is not None and onset < offset:
                truth[video][m, math.floor(onset) : math.ceil(offset), c] = 1
        if empty > len(table) / 2:
            raise ValueError(f"{folder / file}: {empty} of {len(table)} events end before they begin; are onset and "
                             "offset exchanged?")
        counts[f"{modality} rows are empty, onset >= offset (ignored)"] = empty
    without, added = _disagreements(rows, truth)
    counts["weak (video, class) labels have no dense row (kept as weak labels)"] = without
    counts["(video, class) pairs of the dense truth are not in the weak label (kept as truth)"] = added
    _tell(report, "LLP", counts)
    report(f"LLP: {_version_of_llp(folder)}")
    return _in_splits(LLP_CLASSES, rows, truth, LLP_SEGMENTS)


def _version_of_llp(folder: Path) -> str:
    """Which annotations these are, in a sentence; git may have changed line ends."""
    unlike = {file: found for file, known in PUBLISHED.items()
              if (found := hash_of((folder / file).read_bytes().replace(b"\r\n", b"\n"))) != known}
    if not unlike:
        return f"the five annotation files are those of AVVP-ECCV20 at commit {LLP_COMMIT} (2024-04-16)"
    if list(unlike.values()) == [OLDER_AUDIO]:
        return (f"{LLP_DENSE_FILES['audio']} is older than commit {LLP_COMMIT} (2024-04-16) of AVVP-ECCV20, which "
                "repaired three rows of two test videos: scores may differ from those of today's file by 0.17 points")
    return (f"{', '.join(unlike)} differ{'s' * (len(unlike) == 1)} from AVVP-ECCV20 at commit {LLP_COMMIT}: do not "
            "compare scores with published ones")


# ---- Tables of labels, LLP's and your own --------------------------------------------------------

VIDEO_NAMES = tuple(".mp4 .mkv .webm .avi .mov .m4v .flv .f4v .wmv .asf .mpg .mpeg .vob .ts .mts .m2ts .mxf .3gp .3g2 "
                    ".ogv .ogg .opus .wav .mp3 .m4a .aac .flac .wma .mka .aif .aiff".split())  # sounds, too
TIME = re.compile(r"\d+([.,]\d*)?")  # seconds; some spreadsheets write a decimal comma
TIMES = re.compile(r"_\d+_\d+$")  # of LLP's names; ids may hold underscores themselves
Rows = dict[str, tuple[str, str, np.ndarray]]  # id -> (name in the table, split, weak label (C,) uint8)
Truth = dict[str, np.ndarray]  # id -> when its events are audible and visible, (2, T, C) uint8


def read_table(path: Path, columns: tuple[str, ...]) -> list[tuple[str, dict[str, str]]]:
    """("FILE, line N", row) of a table whose header line has each of `columns` once; empty lines do not count. As
    spreadsheets save it: cells separated by comma, semicolon or tab, whichever the header line has most of; with or
    without byte order mark."""
    with reading(path, "not a csv file in UTF-8 ({cause})"):
        try:
            text = regular(path).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            raise ValueError("but in UTF-16 or an older encoding; in the spreadsheet choose Save as, CSV UTF-8")
        if re.match('"?sep=', text, re.IGNORECASE):
            raise ValueError("its first line, sep=, is for one spreadsheet only; delete that line")
        delimiter = max(",;\t", key=text.lstrip().split("\n", 1)[0].count)
        reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
        rows = [(f"{path}, line {reader.line_num}", [from_cell(cell.strip()) for cell in plain(cells)])
                for cells in reader if any(map(str.strip, cells))]
    header = [name.lower() for name in rows[0][1]] if rows else []
    if wrong := [name for name in columns if header.count(name) != 1]:
        raise ValueError(f"{path}: the header line must have the column {' and the column '.join(wrong)}, once, "
                         "separated by commas, semicolons or tabs")
    for place, cells in rows[1:]:
        if len(cells) != len(header):
            raise ValueError(f"{place}: {len(cells)} cells, but the header line has {len(header)} (what holds the "
                             "separator stands in quotation marks)")
    return [(place, dict(zip(header, cells))) for place, cells in rows[1:]]


def _read_labels(path: Path, classes: tuple[str, ...], llp_split: str = "", others: Collection[str] = ()) -> Rows:
    """The videos of a table, in its order; llp_split: which split of LLP it is, with LLP's columns and separator. Of
    your own, the split is "" where the table does not say. ValueError if a video is there twice, or in `others`."""
    columns, separator = (("filename", "event_labels"), ",") if llp_split else (("video", "labels"), ";")
    rows = {}
    for place, row in read_table(path, columns):
        name, labels, split = row[columns[0]], row[columns[1]], llp_split or row.get("split", "").lower()
        video, weak = id_of(name, place, bool(llp_split)), np.zeros(len(classes), np.uint8)
        if video in rows or video in others:
            raise ValueError(f"{place}: the video {video} is listed twice")
        if split not in ("", *LLP_WEAK_FILES):
            raise ValueError(f"{place}: split is {split!r}, not train, val, test or empty")
        for label in filter(None, map(str.strip, labels.split(separator))):
            weak[_class_number(label, classes, place)] = 1
        rows[video] = name, split, weak
    if not rows:
        raise ValueError(f"{path}: no video in it")
    return rows


def id_of(name: str, place: str, llp: bool = False) -> str:
    """A video's id, the name of its files: LLP writes `<id>_<start>_<end>`; others may write the ending of its file."""
    stem, ending = os.path.splitext(name)
    video = TIMES.sub("", name) if llp else stem if ending.lower() in VIDEO_NAMES else name
    if not (is_plain_name if llp else is_id)(video):
        raise ValueError(f"{place}: {video!r} cannot be a video's id, as it cannot be a file's name")
    return video


def _class_number(name: str, classes: tuple[str, ...], place: str, form: Callable[[str], str] = str) -> int:
    """The class of that name; else the only one whose name has the same `form`."""
    if name in classes:
        return classes.index(name)
    forms = [form(known) for known in classes]
    if forms.count(form(name)) != 1:
        raise ValueError(f"{place}: unknown class {name!r}; there are {some(classes)}"
                         + did_you_mean(form(name), forms))
    return forms.index(form(name))


def _time(text: str, place: str, longest: int = 999_999) -> float:
    if not TIME.fullmatch(text) or float(text.replace(",", ".")) > longest:
        raise ValueError(f"{place}: {text!r} is not a time from 0 to {longest} s"
                         + "; write seconds, 65.5 for 1:05.5" * (":" in text))
    return float(text.replace(",", "."))


def _disagreements(rows: Rows, truth: Truth) -> tuple[int, int]:
    """How many (video, class) pairs are in the weak label but in no second, and how many the other way round."""
    labelled = np.array([rows[video][2] for video in truth], bool)  # (N, C)
    occurs = np.array([x.any((0, 1)) for x in truth.values()], bool)  # (N, C)
    return int((labelled & ~occurs).sum()), int((occurs & ~labelled).sum())


def _tell(report: Callable[[str], None], dataset: str, counts: dict[str, int]) -> None:
    for what, count in counts.items():
        if count:
            report(f"{dataset}: {count} {what}")


def _in_splits(classes: tuple[str, ...], rows: Rows, truth: Truth, T: int, **more: dict) -> LLP:
    def split(name: str) -> LLPSplit | None:
        ids = [video for video, (_, place, _) in rows.items() if place == name]
        dense = np.stack([truth[video] for video in ids], 1) if ids and name != "train" else ()  # (2, N, T, C)
        return LLPSplit(ids, np.array([rows[video][2] for video in ids]), *dense) if ids else None

    return LLP(classes, *map(split, LLP_WEAK_FILES), segments=T, **more)


def readable(name: str) -> str:
    """A class name as one would say it, which is what is embedded: "Frying_(food)" -> "frying food"."""
    return " ".join(re.sub(r"[_()]", " ", name).lower().split())


def mistaken(names: Iterable[str], there: Iterable[str]) -> str:
    """For the end of a sentence: which of the names are those of something else but for what file systems and
    spreadsheets change; empty if none is."""
    known = {plainest(x): x for x in there}
    pairs = [(x, known[plainest(x)]) for x in names if plainest(x) in known]
    same = [len({unicodedata.normalize("NFC", x) for x in pair}) == 1 for pair in pairs]  # to the eye
    said = [f"{x} may be {y}" + ", in Unicode's other form" * alike for (x, y), alike in zip(pairs, same)]
    return f": {some(said)}" * bool(said)


def plainest(name: str) -> str:
    """The same for names that differ in what file systems and spreadsheets change: case, Unicode's form, zeros."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", unicodedata.normalize("NFC", name).casefold())


def some(items: Sequence[str], most: int = 10) -> str:
    return "; ".join(items[:most]) + (f"; and {len(items) - most} more" if len(items) > most else "")


# ---- UnAV-100 annotations ------------------------------------------------------------------------

UNAV_SPLITS = ("train", "validation", "test")
UNAV_LONGEST = 3600  # s: its videos last 10 to 60 s, so a longer one is a mistake


@dataclass(frozen=True)
class UnAVSplit:
    ids: list[str]  # (N)
    labels: list[np.ndarray]  # N arrays (T_n, C) uint8, T_n = ceil(duration in s): audible and visible


@dataclass(frozen=True)
class UnAV(_Dataset):
    classes: tuple[str, ...]
    train: UnAVSplit
    validation: UnAVSplit
    test: UnAVSplit


def read_unav(json_path: str | Path, report: Callable[[str], None] = print) -> UnAV:
    """Read `unav100_annotations.json`. An annotation [start, end] s covers floor(start) .. ceil(end). The class list is
    read from the file, in the order of `label_id`; `report` is told which version it is. Raises FileNotFoundError, or
    ValueError naming the cause: an annotation that reaches out of its video is one."""
    content = read_json(json_path)
    with reading(json_path, "not in the format of unav100_annotations.json ({cause})"):
        database = content["database"]
        names = {a["label_id"]: a["label"] for v in database.values() for a in v["annotations"]}
        classes = tuple(names[c] for c in range(len(names)))
        if len(set(classes)) < max(1, len(classes)) or "\n" in "".join(classes):
            raise ValueError("two classes of the same name, one without a name, or a line break in a name")
        splits, said = {name: UnAVSplit([], []) for name in UNAV_SPLITS}, []
        for video_id, video in database.items():
            if not is_plain_name(video_id) or not 0 < video["duration"] <= UNAV_LONGEST:
                raise ValueError(f"video {video_id!r} of {video['duration']} s")
            label = np.zeros((math.ceil(video["duration"]), len(classes)), np.uint8)  # (T, C)
            for annotation in video["annotations"]:
                (start, end), c = annotation["segment"], annotation["label_id"]
                if type(c) is not int or annotation["label"] != classes[c]:
                    raise ValueError(f"class {c!r} of video {video_id!r}")
                if not 0 <= start < end <= video["duration"]:
                    raise ValueError(f"an event from {start} to {end} s in video {video_id!r} of {video['duration']} s")
                label[math.floor(start) : math.ceil(end), c] = 1
            splits[video["subset"]].ids.append(video_id)
            splits[video["subset"]].labels.append(label)
            said.append(f"{video['subset']} {video_id} {label.shape} {hash_of(label.tobytes())}")
        if without := [name for name, split in splits.items() if not split.ids]:
            raise ValueError(f"no video of subset {' and '.join(without)}")
    same = hash_of("\n".join([*classes, *sorted(said)]).encode()) == UNAV_CONTENT
    report(f"UnAV-100: classes, videos and labels are those of commit {UNAV_COMMIT[:7]}" if same else
           f"UnAV-100: {json_path} differs from commit {UNAV_COMMIT[:7]}: do not compare scores with published ones")
    return UnAV(classes, **splits)


# ---- Your own annotations (their columns: docs/own_videos.md) ------------------------------------

MODALITIES = {"audible": [0], "visible": [1], "both": [0, 1], "audio": [0], "visual": [1]}  # rows of a (2, T, C) truth
EVENT_COLUMNS = ("video", "modality", "onset", "offset", "label")
CLIPS = ("clip", "seconds", "streams", "labels", "events", "becomes")  # what `check` tells of each


def find_videos(folder: Path, llp: bool = False, out: Path | None = None) -> tuple[dict[str, Path], dict[Path, str]]:
    """All files in and below `folder` by id, in the order of ids; files whose id another one has: name -> cause. An id
    keeps the folders below `folder`: day1/clip; those of LLP are names alone. Any file may be a video, whatever its
    name; hidden ones are left out. Raises ValueError if there is none, or if `out`, which is to be written, would lie
    among them."""
    if out is not None and out.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{out} lies inside {folder}: its files would be taken for videos; choose another folder")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    files, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # a link to where we are already
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(place) / name for name in names if not name.startswith(".")]
    if not files:
        raise ValueError(f"{folder}: no files in it")
    files.sort(key=lambda f: (not is_media(f), str(f)))  # x.mp4 goes before x.json
    videos, same = {}, {}
    for file in files:
        name = TIMES.sub("", file.stem) if llp else file.relative_to(folder).with_suffix("").as_posix()
        if not (is_plain_name if llp else is_id)(name):
            same[file] = "its name cannot be a video's id"
        elif videos.setdefault(name, file) != file:
            same[file] = f"same id: {videos[name].relative_to(folder)} was used"
    return dict(sorted(videos.items())), same


def is_media(file: Path) -> bool:
    return file.suffix.lower() in VIDEO_NAMES


def write_template(videos: Path, out: Path) -> None:
    """labels.csv and events.csv with the videos of a folder filled in; ValueError if either is there already."""
    found, same = find_videos(videos, out=out)
    others = [printable(file.relative_to(videos)) for file in (*found.values(), *same) if not is_media(file)]
    names = [file.relative_to(videos).as_posix() for file in found.values() if is_media(file)]
    tables = {"labels.csv": ("video", "labels"), "events.csv": EVENT_COLUMNS}
    if there := [out / name for name in tables if (out / name).exists()]:
        raise ValueError(f"{there[0]}: is there already, and would be lost")
    if not names:
        raise ValueError(f"{videos}: no file with a video's extension: {' '.join(VIDEO_NAMES)}")
    with working_in(out):
        for table, columns in tables.items():
            write_table(out / table, [columns, *((name, *[""] * (len(columns) - 1)) for name in names)])
    for file, cause in same.items():
        if is_media(file):
            print(f"{printable(file)}: left out, {cause}")
    if others:
        print(f"{videos}: {len(others)} files do not look like videos (left out): {some(others)}")
    print(f"{out}: labels.csv and events.csv list {len(names)} videos, to be filled in: docs/own_videos.md")


def listed(path: Path) -> dict[str, list[str]]:
    """The videos of a labels.csv, by id, with their labels."""
    return {id_of(row["video"], place): [x for x in map(str.strip, row["labels"].split(";")) if x]
            for place, row in read_table(path, ("video", "labels"))}


def read_failures(path: Path) -> dict[tuple[str, int], str]:
    """The failures.csv of `extract`: (file, its bytes) -> why it has no features."""
    with (made_by("python features.py extract --retry", path),
          open(regular(path), newline="", encoding="utf-8", errors="surrogateescape") as file):
        _, *rows = csv.reader(file)
        return {(from_cell(name), int(size)): from_cell(cause) for name, size, cause in rows}


def read_classes(source: str) -> list[str]:
    """`llp`; the annotation file of UnAV-100 (.json) or your labels.csv, from which its list is read; a text file, one
    name a line; or a folder with one of the latter two: classes.txt goes before labels.csv. Raises FileNotFoundError or
    ValueError."""
    if Path(source).is_dir():
        source = os.path.join(source, "classes.txt" if Path(source, "classes.txt").exists() else "labels.csv")
    if source == "llp":
        return list(LLP_CLASSES)
    if source.endswith(".json"):
        return list(read_unav(source).classes)
    if source.endswith(".csv"):
        lines = sorted({label for labels in listed(Path(source)).values() for label in labels})
        if broken := [line for line in lines if len(line.splitlines()) > 1]:
            raise ValueError(f"{source}: a line break in the label {broken[0]!r}")
    else:
        with reading(source, "not a text file ({cause})", "no such file, and not `llp`"):
            lines = plain(regular(source).read_text(encoding="utf-8-sig").splitlines())
    names = [line.strip() for line in lines if line.strip()]
    twice = [n for n, count in collections.Counter(map(readable, names)).items() if count > 1 or not n]
    if not names or twice:
        raise ValueError(f"{source}: " + (f"a class is there twice: {twice[0]!r}" if names else "no class in it yet"))
    return names


class Known(NamedTuple):
    """What is known of a clip besides its features."""

    segments: int = 0  # of the whole clip; 0: not known
    lacks: str = ""  # sound | picture: its features of that are zeros
    cause: str = ""  # why it has no features


def read_own(folder: str | Path, classes: tuple[str, ...], lengths: dict[str, int] | int, missing: str = "stop",
             report: Callable[[str], None] = print, window: int = 0, known: dict[str, Known] | None = None) -> LLP:
    """Read labels.csv and, if it is there, events.csv.

    classes: in the order of their text embeddings. lengths: the segments of every video that has features; the videos
    of labels.csv must agree in it, unless they are cut into windows of `window` segments, side by side from the
    beginning. One number: of all videos, none of which need be for training. missing = "skip" leaves out videos without
    features. A video with rows in events.csv goes to val, one without, or without sound or picture, to train, unless
    the column `split` says otherwise. A window has the labels of its clip, but those that events.csv places elsewhere.
    What is only odd is counted and told to `report` in one line each. Raises FileNotFoundError or ValueError naming
    file and cause."""
    path = Path(folder) / "labels.csv"
    rows = _read_labels(path, classes)
    trains, lengths = (False, dict.fromkeys(rows, lengths)) if isinstance(lengths, int) else (True, lengths)
    ids, absent = [v for v in rows if v in lengths], [v for v in rows if v not in lengths]
    others = [v for v in lengths if v not in rows]
    unlike = mistaken(absent, others)
    if absent and (missing == "stop" or not ids):
        raise FileNotFoundError(f"{path}: {len(absent)} of its videos have no features in {folder}: {some(absent)} "
                                f"(failures.csv there may say why; --missing skip leaves them out){unlike}")
    shortest, longest = min(ids, key=lengths.get), max(ids, key=lengths.get)
    if not window and lengths[longest] != lengths[shortest]:
        raise ValueError(f"{path}: its videos differ in length, {shortest} has {lengths[shortest]} segments and "
                         f"{longest} {lengths[longest]}; give all of them the same with `features.py extract "
                         "--segments N`, into another folder, or cut them with `features.py pack --windows N`")
    T, nothing = window or lengths[longest], np.zeros((2, lengths[longest], len(classes)), np.uint8)
    known = dict.fromkeys(rows, Known()) | (known or {})
    ends = {v: known[v].segments or lengths.get(v, UNAV_LONGEST) for v in rows}

    def known_video(name: str, place: str) -> str:
        if (video := id_of(name, place)) not in rows:
            raise ValueError(f"{place}: the video {video} is not in labels.csv{mistaken([video], rows)}")
        return video

    filled = filled_rows(Path(folder) / "events.csv")
    events, odd = read_events(filled, classes, lengths[longest], known_video, ends=ends)
    videos, truth, windows, clips = {}, {}, {}, {v: f"left out: {known[v].cause or 'no features'}" for v in rows}
    for video in ids:
        (name, split, weak), lacks, dense = rows[video], known[video].lacks, events.get(video, nothing)  # (2, L, C)
        split = split or ("val" if video in events and not lacks else "train")
        starts = range(0, lengths[video] - T + 1, T)
        if not starts:
            clips[video] = f"left out: shorter than {T} s"
            continue
        if split != "train" and video not in events and weak.any():
            raise ValueError(f"{path}: video {video!r} is of split {split}, but events.csv does not say when its "
                             "events happen")
        if split != "train" and lacks:
            clips[video] = f"left out: no {lacks}, so it cannot be of split {split}"
            continue
        cut = f", {len(starts)} examples" * (len(starts) > 1) + f", no {lacks}" * bool(lacks)
        clips[video] = f"{split}: {len(starts) * T} s of {ends[video]}{cut}"
        for start in starts:
            part = f"{video} {start}-{start + T} s" if starts[1:] else video
            x = dense[:, start : start + T]  # (2, T, C)
            if lengths[video] > T:
                windows[part] = video, start
            videos[part] = name, split, weak & ~(dense.any((0, 1)) & ~x.any((0, 1)))  # without what is elsewhere
            if split != "train":
                truth[part] = x
    without, added = _disagreements(videos, truth)
    for video, x in truth.items():
        name, split, weak = videos[video]
        videos[video] = name, split, weak | x.any((0, 1))
    own = _in_splits(classes, videos, truth, T, windows=windows, clips=clips)
    if own.train is None and trains:
        raise ValueError(f"{path}: no video to train on: all of them are annotated, left out, or of split val or test")

    train = own.train or LLPSplit([], np.ones((1, len(classes)), np.uint8))
    never = [name for name, n in zip(classes, train.weak.sum(0)) if n == 0]
    _tell(report, "own data", {
        f"videos have no features (left out): {some(absent)}{unlike}": len(absent),
        f"videos with features are not in labels.csv (left out): {some(others)}": len(others),
        f"videos are shorter than {T} s (left out)": sum(lengths[v] < T for v in ids),
        "training videos are annotated (not used)": len(events.keys() & {windows.get(x, (x, 0))[0] for x in train.ids}),
        "training videos have no label: none of the classes occurs in them": int((train.weak.sum(1) == 0).sum()),
        f"rows of events.csv {BEYOND}": len(odd[BEYOND]),
        "labels of annotated videos have no row in events.csv (kept as labels)": without,
        "times events.csv finds a class that is not among the labels of its video (added)": added,
        f"classes occur in no training video, so the parser will not learn them: {some(never)}": len(never)})
    sizes = ", ".join(f"{len(x.ids)} videos in {name}" for name, x in own.splits.items())
    report(f"own data: {sizes}; {T} segments each, {len(classes)} classes")
    return own


def filled_rows(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Those of your events.csv, which need not exist, but for lines of a template that were left empty."""
    rows = read_table(path, EVENT_COLUMNS) if path.exists() else []
    return [(place, row) for place, row in rows if any(row[column] for column in EVENT_COLUMNS[1:])]


BEYOND = "reach beyond the last segment of their video (cut there)"


def read_events(rows: list[tuple[str, dict[str, str]]], classes: tuple[str, ...], T: int,
                video_of: Callable[[str, str], str], form: Callable[[str], str] = str,
                ends: dict[str, int] | None = None) -> tuple[Truth, dict]:
    """What the rows of a table of events say of the videos that they name; and where they are odd: how -> places. As in
    UnAV, an event from onset to offset covers the seconds floor(onset) .. ceil(offset). video_of: (name, place) -> id.
    form: of the names of classes, what counts. ends: of videos, in segments; no event begins later."""
    truth, odd = {}, collections.defaultdict(list)
    for place, row in rows:
        video = video_of(row["video"], place)
        seconds = truth.setdefault(video, np.zeros((2, T, len(classes)), np.uint8))
        empty = [key for key in EVENT_COLUMNS if not row[key]]
        if len(empty) == len(EVENT_COLUMNS) - 1:  # the video is named, and nothing else
            continue
        if empty:
            raise ValueError(f"{place}: nothing in the column {' and the column '.join(empty)}")
        modality = row["modality"].lower()
        if modality not in MODALITIES:
            raise ValueError(f"{place}: modality is {row['modality']!r}, not audible, visible or both")
        onset, offset = (_time(row[key], place) for key in ("onset", "offset"))
        if onset >= offset:
            raise ValueError(f"{place}: the event ends at {row['offset']} s, not after {row['onset']} s")
        c, m = _class_number(row["label"], classes, place, form), MODALITIES[modality]
        first, end = math.floor(onset), math.ceil(offset)
        if ends and first >= ends[video]:
            raise ValueError(f"{place}: the event begins at {row['onset']} s, but {video} ends at {ends[video]} s")
        if seconds[m, max(0, first - 1) : end + 1, c].any():
            odd[f"of {modality} repeat, overlap or touch what rows before say of their class (joined)"].append(place)
        if (first, end) != (onset, offset):
            odd["have fractions of seconds (a second that is touched counts)"].append(place)
        if end > T:
            odd[BEYOND].append(place)
        seconds[m, first:end, c] = 1
    return truth, odd


def event_rows(path: Path) -> list[tuple[str, dict[str, str]]]:
    """(place, row) of a table of events, or of a file of `parse.py --json`, as the table of its video would be."""
    if path.suffix.lower() != ".json":
        return read_table(path, EVENT_COLUMNS)
    content = read_json(path)
    with reading(path, "not what `parse.py --json` writes ({cause})"):
        if content["format"] != 1:
            raise ValueError(f"format {content['format']}, this program reads 1")
        row = dict.fromkeys(EVENT_COLUMNS, "") | dict(video=content["source"], warnings="; ".join(content["warnings"]))
        events = [{k: str(e[k]) for k in (*EVENT_COLUMNS[1:], "probability")} for e in content["events"]]
        return [(str(path), row), *((f"{path}, event {n}", row | e) for n, e in enumerate(events, 1))]
