"""Before any encoder runs: your tables beside the folder of your clips. One line a clip: its length and streams, as its
header has them, its labels, and what will become of it; then all that is doubtful, which stops a run until it is mended
or accepted.
"""

from __future__ import annotations

import collections
import csv
import difflib
import math
import re
from collections.abc import Collection
from pathlib import Path

from common.command import progress, working_in
from common.files import atomic, printable, to_cell
from data.annotations import (CLIPS, EVENT_COLUMNS, MODALITIES, Known, apart, find_videos, id_of, is_media, listed,
                              plainest, read_classes, read_own, read_table, readable, some)
from data.pack import features_there
from video import decode

ACCEPT = {  # what may be doubtful, and what a run does if it is accepted
    "names": "rows without a file, and files without a row, are left out",
    "classes": "labels that look misspelt are classes of their own",
    "clips": "clips that cannot be used are left out",
    "long": "of longer clips only the beginning is used; --windows would cut all of them into examples",
}
NO_CLASS = {"none", "nothing", "no", "null", "nil", "n/a", "na", "nan", "no event", "no label", "empty", "unknown", "-",
            "?", "0"}
STREAMS = {"": "sound, picture", "sound": "picture", "picture": "sound"}  # by what is lacking
ALIKE = 0.75  # of two names, as difflib has it: spech and speech have 0.91, cat and car 0.67


def check(own: Path, videos: Path | None, segments: int = 10, windows: bool = False, missing: str = "skip",
          longest: float = decode.LONGEST, accept: Collection[str] = ()) -> None:
    """Prints the table, which OWN/clips.csv keeps, and what is doubtful.

    videos: the folder of clips; None: OWN has their features. segments, windows, missing, longest: what `extract` and
    `pack` will be told. accept: keys of ACCEPT. Raises FileNotFoundError or ValueError: what is wrong in a table, or
    doubtful and not accepted."""
    rows, doubts = listed(own / "labels.csv"), {kind: [] for kind in ACCEPT}
    if videos:
        files, ignored, doubts["names"] = files_of(videos, rows)
        known = {v: read_header(files[v], segments, missing, longest)
                 for v in progress([v for v in rows if v in files], desc="check", unit="clip")}
        lengths = {v: windows and x.segments or segments for v, x in known.items() if not x.cause}
        apart(own, videos)
    else:
        (lengths, known), ignored = features_there(own), []
        files = lengths
    absent, without = [v for v in rows if v not in files], [v for v in files if v not in rows]
    below = [v for v in files if "/" in v]
    doubts["names"] += [f"{v}: a row of labels.csv without a file{meant(v, without) or meant(v, below)}" for v in absent]
    doubts["names"] += [f"{v}: a file without a row in labels.csv{meant(v, absent)}" for v in without]
    known |= {v: Known(cause="there is no such file") for v in absent}

    count = collections.Counter(label for labels in rows.values() for label in set(labels))
    fixed = (own / "classes.txt").exists()
    classes = read_classes(str(own)) if fixed else sorted(count)
    strange = {} if fixed else {name: why for name in classes if (why := misspelt(name, count))}
    doubts["classes"] = [f"{name}: {why}" for name, why in strange.items()]

    events, said = events_of(own / "events.csv", known), []
    became = {v: f"left out: {known[v].cause}" for v in rows if v not in lengths}
    if len(became) < len(rows):
        became = read_own(own, tuple(classes), lengths, "skip", said.append, segments * windows, known).clips
    doubts["clips"] = [f"{v}: {became[v]}" for v in rows if v in files and became[v].startswith("left out")]
    doubts["long"] = [f"{v}: {became[v]}" for v in lengths if v in rows and known[v].segments >= 2 * segments
                      and videos and not windows]
    table = [(v, f"{known[v].seconds:.1f}" * bool(known[v].segments), str(known[v].segments), STREAMS[known[v].lacks] * bool(known[v].segments),
              "; ".join(labels), str(events[v]), printable(became[v])) for v, labels in rows.items()]
    with (working_in(own), atomic(own / "clips.csv") as temporary,
          open(temporary, "w", newline="", encoding="utf-8-sig") as file):
        csv.writer(file).writerows([CLIPS, *(map(to_cell, row) for row in table)])

    for row in (CLIPS, *table):
        width = [max(len(r[k]) for r in (CLIPS, *table)) for k in range(len(CLIPS))]
        print("  ".join(cell.ljust(min(n, 40)) for cell, n in zip(row, width)).rstrip())
    print(f"\n{len(classes)} classes, and the clips that have each:")
    for name in classes:
        print(f"{count[name]:7d}  {name}" + f"   <- {strange.get(name)}" * (name in strange))
    if ignored:
        print(f"\n{len(ignored)} files are no videos by their names, and have no row (ignored): {some(ignored)}")
    print("", *(line for line in said if "features" not in line), sep="\n")
    stop(own, doubts, accept)
    if len(set(map(readable, classes))) < len(classes):
        raise ValueError(f"{own / 'labels.csv'}: a class is written in two ways, see above; write it in one")
    if not set(rows) & lengths.keys():
        raise ValueError(f"{own / 'labels.csv'}: none of its clips can be used, see above")


def files_of(videos: Path, rows: Collection[str]) -> tuple[dict[str, Path], list[str], list[str]]:
    """The files of a folder that have a row, or are videos by their names, by id; the others; and whose id is taken."""
    found, same = find_videos(videos, llp=False)
    files = {v: file for v, file in found.items() if v in rows or is_media(file)}
    ignored = {*found.values(), *same} - {*files.values()} - {file for file in same if is_media(file)}
    return (files, sorted(str(file.relative_to(videos)) for file in ignored),
            [f"{file.relative_to(videos)}: {cause}" for file, cause in same.items() if is_media(file)])


def read_header(path: Path, segments: int, missing: str, longest: float) -> Known:
    """What a header tells of a clip, and why `extract` will refuse it, if that is certain already."""
    try:
        seconds, lacks = decode.header(path)
    except ValueError as error:
        return Known(cause=str(error))
    whole, cause = max(1, math.ceil(seconds - decode.TAIL)) if seconds else 0, ""
    if seconds > longest:
        cause = f"too long: {seconds:.0f} s, the limit is {longest:.0f} s (--longest)"
    elif lacks and missing == "skip":
        cause = f"no {lacks}: the file has no such stream (--missing zeros would accept it)"
    elif 0 < whole < segments:
        cause = f"too short: {seconds:.1f} s are less than {segments} segments"
    return Known(seconds, whole, lacks, cause)


def events_of(path: Path, known: dict[str, Known]) -> collections.Counter:
    """How many rows of events.csv each clip has. ValueError if one tells of a sound or picture that is not there."""
    count: collections.Counter = collections.Counter()
    for place, row in read_table(path, EVENT_COLUMNS) if path.exists() else []:
        if any(row[column] for column in EVENT_COLUMNS[1:]):
            video = id_of(row["video"], place)
            count[video] += 1
            lacks = known.get(video, Known()).lacks
            if lacks and ("sound", "picture").index(lacks) in MODALITIES.get(row["modality"].lower(), ()):
                raise ValueError(f"{place}: the event is {row['modality']}, but {video} has no {lacks}")
    return count


def meant(name: str, others: Collection[str]) -> str:
    """For the end of a sentence: which of the others may be meant, by what file systems change, in another folder, or
    by a letter or two."""
    close = ([x for x in others if plainest(x) == plainest(name)]
             or [x for x in others if plainest(Path(x).name) == plainest(Path(name).name)]
             or difflib.get_close_matches(name, others, 3, ALIKE))
    return f"; did you mean {' or '.join(close[:3])}?" if close else ""


def misspelt(name: str, count: collections.Counter) -> str:
    """Why a label may be no class of its own; count: in how many clips each is. Of two alike, the rarer is named."""
    if readable(name) in NO_CLASS:
        return "leave the cell empty where there is none of the classes"
    if sign := re.search(r"[,/|+&\n]", name):
        return f"one class, as {sign[0]!r} separates nothing; several labels are separated by semicolons"
    forms = {readable(x): x for x in sorted(count, key=count.get) if x != name and count[x] >= count[name]}
    close = difflib.get_close_matches(readable(name), forms, 1, ALIKE)
    return f"did you mean {forms[close[0]]}?" if close else ""


def stop(own: Path, doubts: dict[str, list[str]], accept: Collection[str]) -> None:
    """Prints what is doubtful; ValueError unless all of it is accepted."""
    found = [kind for kind, cases in doubts.items() if cases]
    for kind in found:
        print(f"{kind}, {len(doubts[kind])} {'accepted' if kind in accept else 'to look at'}: {ACCEPT[kind]}",
              *doubts[kind], sep="\n    ")
    if set(found) - set(accept):
        new = " and ".join(kind for kind in found if kind not in accept)
        raise ValueError(f"{own}: mend what is listed above under {new}, or accept it: --accept {','.join(found)}")
