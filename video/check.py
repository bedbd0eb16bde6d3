"""Before any encoder runs: your tables beside the folder of your clips. One line a clip: its length and streams by its
header, its labels, what will become of it; then all that is doubtful, which stops a run until it is mended or accepted.
"""

from __future__ import annotations

import collections
import difflib
import math
import re
from collections.abc import Collection
from pathlib import Path

import av

from common.command import progress, working_in
from common.files import printable, reason, regular, write_table
from data.annotations import (CLIPS, Known, filled_rows, find_videos, id_of, is_media, listed, plainest, read_classes,
                              read_own, readable, some)
from video import decode

ACCEPT = {  # what may be doubtful, and what a run does if it is accepted
    "names": "rows without a file, and files without a row, are left out",
    "classes": "labels that look misspelt are classes of their own",
    "clips": "clips that cannot be used are left out",
    "long": "of longer clips only the beginning is used; --windows would cut all of them into examples",
}
NO_CLASS = "none nothing no null nil n/a na nan empty unknown - ? 0".split()
STREAMS = {"": "sound, picture", "sound": "picture", "picture": "sound"}  # by what is lacking
ALIKE = 0.75  # of two names, as difflib has it: spech and speech have 0.91, cat and car 0.67


def check(own: Path, videos: Path, segments: int = 10, windows: bool = False, missing: str = "skip",
          longest: float = decode.LONGEST, accept: Collection[str] = ()) -> None:
    """Prints the table, which OWN/clips.csv keeps, and what is doubtful. videos: the folder of clips. segments,
    windows, missing, longest: what `extract` and `pack` will be told. accept: keys of ACCEPT. Raises FileNotFoundError
    or ValueError: what is wrong in a table, or doubtful and not accepted."""
    if unknown := set(accept) - ACCEPT.keys():
        raise ValueError(f"--accept {min(unknown)}: one of {', '.join(ACCEPT)}")
    rows, (found, same) = listed(own / "labels.csv"), find_videos(videos, out=own)
    files = {v: file for v, file in found.items() if v in rows or is_media(file)}
    absent, without = [v for v in rows if v not in files], [v for v in files if v not in rows]
    few, below = len(absent) + len(without) <= 500, collections.defaultdict(list)  # more are not misspelt, but others
    for v in files:
        below[plainest(Path(v).name)].append(v)
    doubts = {"names": [
        *(f"{printable(file.relative_to(videos))}: {cause}" for file, cause in same.items() if is_media(file)),
        *(f"{v}: in labels.csv, but no file of {videos}"
          + (meant(v, without) or meant(v, below[plainest(Path(v).name)]) if few else "") for v in absent),
        *(f"{v}: a file of {videos}, but not in labels.csv{meant(v, absent) if few else ''}" for v in without)]}

    clips = progress([v for v in rows if v in files], desc="check", unit="clip")
    known = {v: read_header(files[v], segments, missing, longest) for v in clips}
    lengths = {v: windows and x.segments or segments for v, x in known.items() if not x.cause}
    known |= {v: Known(cause="no such file") for v in absent}
    count = collections.Counter(label for labels in rows.values() for label in set(labels))
    fixed = (own / "classes.txt").exists()
    classes = read_classes(str(own)) if fixed or not count else sorted(count)
    strange = {name: why for name in classes if not fixed and (why := misspelt(name, count))}
    doubts["classes"] = [f"{name}: {why}" for name, why in strange.items()]

    became, said = {v: f"left out: {known[v].cause}" for v in rows}, []
    if lengths:
        became = read_own(own, tuple(classes), lengths, "skip", said.append, segments * windows, known).clips
    doubts["clips"] = [f"{v}: {became[v]}" for v in rows if v in files and became[v].startswith("left out")]
    doubts["long"] = [f"{v}: {became[v]}" for v in lengths if known[v].segments >= 2 * segments and not windows]
    events = collections.Counter(id_of(row["video"], place) for place, row in filled_rows(own / "events.csv"))
    table = [(v, str(x.segments), STREAMS[x.lacks] * (x.segments > 0), "; ".join(labels), str(events[v]),
              printable(became[v])) for v, labels in rows.items() for x in [known[v]]]
    with working_in(own):
        write_table(own / "clips.csv", [CLIPS, *table])

    width = [min(40, max(map(len, column))) for column in zip(CLIPS, *table)]
    for row in (CLIPS, *table):
        print("  ".join(map(str.ljust, row, width)).rstrip())
    print(f"\n{len(classes)} classes, and how many clips have each:")
    for name in classes:
        print(f"{count[name]:7d}  {name}" + f"   <- {strange.get(name)}" * (name in strange))
    others = sorted(printable(file.relative_to(videos)) for file in {*found.values(), *same} - {*files.values()}
                    if not is_media(file))
    print("", *[f"{len(others)} files do not look like videos (ignored): {some(others)}"] * bool(others),
          *(line for line in said if "features" not in line), sep="\n")
    stop(own, doubts, accept)
    if len(set(map(readable, classes))) < len(classes):
        raise ValueError(f"{own / 'labels.csv'}: a class is written in two ways, see above; write it in one")
    if not lengths:
        raise ValueError(f"{own / 'labels.csv'}: none of its clips can be used, see above")


def read_header(path: Path, segments: int, missing: str, longest: float) -> Known:
    """What a header tells of a clip, in milliseconds, and why `extract` will refuse it, if that is certain already."""
    try:
        with open(regular(path), "rb") as file, av.open(file, options=decode.NO_OTHER_FILE, **decode.TAGS) as container:
            kinds = {stream.type for stream in container.streams if decode.is_read(stream)}
            seconds = (container.duration or 0) / av.time_base  # 0: it does not say
    except (OSError, ValueError) as error:  # of FFmpeg's, all are one of them
        return Known(cause=f"cannot be read: {getattr(error, 'strerror', '') or reason(error, path)}")
    lacks = [stream for kind, stream in (("audio", "sound"), ("video", "picture")) if kind not in kinds]
    whole, cause = max(1, math.ceil(seconds - decode.TAIL)) if seconds else 0, ""
    if len(lacks) == 2:
        return Known(cause="no stream: neither pictures nor sound in it")
    if lacks and missing == "skip":
        cause = f"no {lacks[0]}: the file has no such stream (--missing zeros would accept it)"
    elif seconds > longest:
        cause = f"too long: {seconds:.0f} s, the limit is {longest:.0f} s (--longest)"
    elif 0 < seconds <= segments - 1:
        cause = f"too short: {seconds:.1f} s are less than {segments} segments"
    return Known(whole, " ".join(lacks), cause)


def meant(name: str, others: Collection[str]) -> str:
    """For the end of a sentence: which of the others may be meant: but for what file systems and spreadsheets change,
    in another folder, or but for a letter or two."""
    close = ([x for x in others if plainest(x) == plainest(name)]
             or [x for x in others if plainest(Path(x).name) == plainest(Path(name).name)]
             or difflib.get_close_matches(name, others, 3, ALIKE))
    return f"; did you mean {' or '.join(close[:3])}?" if close else ""


def misspelt(name: str, count: collections.Counter) -> str:
    """Why a label may be no class of its own; count: in how many clips each is. Of two alike, the rarer is named."""
    if readable(name) in NO_CLASS:
        return "leave the cell empty where there is none of the classes"
    if sign := re.search(r"[,/|+&]", name):
        return f"one class, as {sign[0]!r} separates nothing; several labels are separated by semicolons"
    forms = {readable(x): x for x in sorted(count, key=count.get) if x != name and count[x] >= count[name]}
    close = difflib.get_close_matches(readable(name), forms, 1, ALIKE)
    return f"did you mean {forms[close[0]]}?" if close else ""


def stop(own: Path, doubts: dict[str, list[str]], accept: Collection[str]) -> None:
    """Prints what is doubtful; ValueError unless all of it is accepted."""
    found = [kind for kind in ACCEPT if doubts[kind]]
    for kind in found:
        print(f"{kind}{' (accepted)' * (kind in accept)}: {ACCEPT[kind]}", *doubts[kind], sep="\n    ")
    if new := [kind for kind in found if kind not in accept]:
        raise ValueError(f"{own}: mend what is listed above under {' and '.join(new)}, or go on as it is with --accept "
                         + ",".join(found))
