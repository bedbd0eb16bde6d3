"""What comes from the network: annotations and feature files. Standard library only.

Nothing is believed before it is checked: a download has the size that the server announced, a zip file is whole and no
name in it leads out of its folder. Partial downloads continue where they stopped.
"""

from __future__ import annotations

import errno
import http.client
import os
import shutil
import stat
import sys
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from common.files import atomic, inside, is_plain_name, reading, reason, regular
from data.annotations import LLP_COMMIT, LLP_DENSE_FILES, LLP_WEAK_FILES, UNAV_COMMIT, read_llp, read_unav
from data.layout import ENCODERS, FEATURE_SETS, TEXTED

ANNOTATIONS = {  # folder of the source layout -> where its annotation files are
    "LLP": (f"https://raw.githubusercontent.com/YapengTian/AVVP-ECCV20/{LLP_COMMIT}/data",
            (*LLP_WEAK_FILES.values(), *LLP_DENSE_FILES.values())),
    "UnAV": (f"https://raw.githubusercontent.com/ttgeng233/UnAV/{UNAV_COMMIT}/data", ("unav100_annotations.json",)),
}
FEATURES = "https://huggingface.co/datasets/NTUBarista/uwav_features/resolve/main"  # {LLP,UnAV}_{CLIP,CLAP}.zip
DRIVE = "one file on Google Drive, linked in the README of https://github.com/YapengTian/AVVP-ECCV20"
TEXTS = "all_event_feats.npy"  # embeddings of the classes, in an archive
MEANT = {"segment_feats", "features"}  # folders of feature files in it
ATTEMPTS = 6  # without progress
OUR_FAULT = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}  # trying again is vain
TIMEOUT = 30.0  # s without a byte
BLOCK = 1 << 20  # bytes

# ---- Downloads -----------------------------------------------------------------------------------

def download(url: str, path: Path, pause: float = 1.0) -> None:
    """Get `url` into `path`. Continues PATH.part; tries again after a dropped connection, waiting ever longer. The
    hub's own client would do, but it no longer continues a file that a network dropped in the middle. Raises
    ValueError: the server refuses, cannot be reached, or does not deliver what it announced."""
    part = inside(path.with_name(path.name + ".part"))
    path.parent.mkdir(parents=True, exist_ok=True)
    if part.is_symlink():  # not ours, and written through it would be another file
        part.unlink()
    failures, furthest = 0, _size(part)
    while cause := _continue(url, part):
        failures = 0 if _size(part) > furthest else failures + 1
        furthest = max(furthest, _size(part))
        if failures == ATTEMPTS:
            raise ValueError(f"{url}: cannot be downloaded ({cause}); what came is kept, run the command again to "
                             "continue")
        wait = pause * 2**failures
        print(f"{path.name}: {cause}; trying again in {wait:.0f} s", file=sys.stderr, flush=True)
        time.sleep(wait)
    os.replace(part, path)


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _continue(url: str, part: Path) -> str:
    """Append to `part` what is missing; returns why it is not whole, if it is not, and may be at another try. If the
    file has changed since, what comes out is no whole archive, which is noticed then."""
    headers, have = {"User-Agent": "uwav", "Accept-Encoding": "identity"}, _size(part)
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as answer:
            if answer.status != http.client.PARTIAL_CONTENT:
                have = 0
                part.unlink(missing_ok=True)
            elif not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                return "the server did not continue where it was asked to"
            if "Content-Length" not in answer.headers:
                return "the server does not say how large the file is"
            whole = have + int(answer.headers["Content-Length"])
            bar = tqdm.wrapattr(answer, "read", whole, initial=have, desc=part.stem, disable=whole < BLOCK)
            with open(part, "ab") as file, bar as body:
                shutil.copyfileobj(body, file, BLOCK)
        return f"{_size(part)} bytes arrived, {whole} were announced" * (_size(part) != whole)
    except urllib.error.HTTPError as error:
        cause = f"the server says {error.code} {error.reason}"
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:  # the file there is another by now
            part.unlink(missing_ok=True)
        elif error.code < 500 and error.code != http.client.TOO_MANY_REQUESTS:
            raise ValueError(f"{url}: {cause}") from None
    except (OSError, http.client.HTTPException) as error:
        cause = str(getattr(error, "reason", "") or reason(error))
        if getattr(error, "errno", None) in OUR_FAULT:
            raise ValueError(f"{part}: cannot be written ({cause})") from None
    return cause


# ---- Zip files -----------------------------------------------------------------------------------

def extract_features(archive: Path, folder: Path) -> int:
    """Feature files of a zip -> folder/segment_feats/ID.npy and folder/event_feats/all_event_feats.npy; how many.
    `folder` appears when it is whole. Raises ValueError naming the archive."""
    with reading(archive, "not a whole zip file of features ({cause}); delete it if it is there, and fetch again"):
        members = _features_in(regular(archive))
    part = folder.with_name(f".{folder.name}.part")
    if part.exists():  # of a run that was stopped
        shutil.rmtree(part)
    with zipfile.ZipFile(archive) as opened:
        for name, member in tqdm(members.items(), desc=f"extract {archive.name}", unit="file"):
            target = part / ("event_feats" if name == TEXTS else "segment_feats") / name
            with atomic(target) as temporary, opened.open(member) as content, open(temporary, "wb") as file:
                shutil.copyfileobj(content, file)
    os.replace(part, folder)
    return len(members)


def _features_in(archive: Path) -> dict[str, zipfile.ZipInfo]:
    """The feature files by name. Where folders are called as in MEANT, only theirs and the texts: VALOR's `features/`
    lies beside `segment_pseudo_labels/`. An archive with a name that leads out or a link is refused as a whole."""
    found: dict[PurePosixPath, zipfile.ZipInfo] = {}
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            place = PurePosixPath(member.filename.replace("\\", "/"))
            if place.is_absolute() or ".." in place.parts or ":" in member.filename:
                raise ValueError(f"it holds the name {member.filename!r}, which leads out of its folder")
            if stat.S_ISLNK(member.external_attr >> 16):
                raise ValueError(f"it holds a link, {member.filename!r}")
            if not member.is_dir() and place.name.endswith(".npy") and not place.name.startswith("._"):  # of macOS
                if not is_plain_name(place.name) or place in found:
                    raise ValueError(f"it holds the name {member.filename!r}, which no file can have, or has it twice")
                found[place] = member
        if (damaged := opened.testzip()) is not None:
            raise ValueError(f"the checksum of {damaged!r} differs")
    if any(place.parent.name in MEANT for place in found):
        found = {place: x for place, x in found.items() if place.parent.name in MEANT or place.name == TEXTS}
    members = {place.name: member for place, member in found.items()}
    if len(members) < len(found):
        raise ValueError("it has files of the same name in several folders")
    if not members:
        raise ValueError("it holds no .npy file")
    return members


# ---- fetch: the published files of both datasets -------------------------------------------------

def fetch(folder: str | Path, datasets: tuple[str, ...] = ("LLP", "UnAV"), mirror: str | None = None) -> None:
    """Annotations, CLIP and CLAP features of LLP and UnAV -> the source layout that `pack` reads. `mirror`: a server
    that has all files in one place. What was fetched before is kept. Raises ValueError."""
    folder = Path(folder)
    for dataset in datasets:
        base, files = ANNOTATIONS[dataset]
        for file in files:
            path = folder / dataset / file
            if not path.exists():
                download(f"{mirror or base}/{file}", path)
        try:
            read_llp(folder / "LLP") if dataset == "LLP" else read_unav(folder / "UnAV" / files[0])
        except ValueError as error:
            raise ValueError(f"{error}; delete the file and fetch again") from None
        for encoder in (name.upper() for name in TEXTED):
            archive, place = folder / f"{dataset}_{encoder}.zip", folder / dataset / f"feats_{encoder}"
            if place.exists():
                print(f"{place}: is there, and kept")
                continue
            brought = archive.exists()  # perhaps by you: one that is damaged is yours to delete
            if not brought:
                download(f"{mirror or FEATURES}/{archive.name}", archive)
            try:
                print(f"{archive.name}: {extract_features(archive, place)} files")
            except ValueError:
                if not brought:  # a second try must not find it
                    archive.unlink()
                raise
            archive.unlink()
    if "LLP" in datasets:
        for name in FEATURE_SETS["base"]:
            place = folder / "LLP" / ENCODERS[name].folder
            if not place.is_dir():
                print(f"{name}: not fetched, it is in {DRIVE}; needed for feature set `base` only. "
                      f"Put its <id>.npy files into {place}/")
    print("licences: the repository of LLP's annotations says GPLv3, that of UnAV-100's MIT; for the features none is "
          "stated")
