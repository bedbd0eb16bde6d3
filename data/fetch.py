"""What comes from the network: annotations and feature files. Standard library only.

    python features.py fetch DIR [--llp] [--unav]

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
import zlib
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from common.files import atomic, is_plain_name, no_links, read_sealed, reason, regular, write_sealed
from data.annotations import (LLP_COMMIT, LLP_DENSE_FILES, LLP_WEAK_FILES, UNAV_COMMIT, UNAV_OFFICIAL, read_llp,
                              read_unav)
from data.layout import ENCODERS, FEATURE_SETS, TEXTED

ANNOTATIONS = {  # folder of the source layout -> where its annotation files are
    "LLP": (f"https://raw.githubusercontent.com/YapengTian/AVVP-ECCV20/{LLP_COMMIT}/data",
            (*LLP_WEAK_FILES.values(), *LLP_DENSE_FILES.values())),
    "UnAV": (f"https://raw.githubusercontent.com/ttgeng233/UnAV/{UNAV_COMMIT}/data", ("unav100_annotations.json",)),
}
FEATURES = "https://huggingface.co/datasets/NTUBarista/uwav_features/resolve/main"  # {LLP,UnAV}_{CLIP,CLAP}.zip
DRIVE = "one file on Google Drive, linked in the README of https://github.com/YapengTian/AVVP-ECCV20"
LICENCES = ("licences: the repository of LLP's annotations says GPLv3, that of UnAV-100's MIT; of the features none is "
            "stated")
MEANT = {"segment_feats", "event_feats", "features"}  # folders of feature files in an archive
ATTEMPTS = 6  # without progress
OUR_FAULT = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}  # trying again is vain
TIMEOUT = 30.0  # s without a byte
BLOCK = 1 << 20  # bytes

# ---- Downloads -----------------------------------------------------------------------------------

def download(url: str, path: Path, pause: float = 1.0) -> None:
    """Get `url` into `path`. Continues PATH.part; tries again after a dropped connection, waiting ever longer.

    The hub's own client would do, but it no longer continues a file that a network dropped in the middle.
    Raises ValueError: the server refuses, cannot be reached, or does not deliver what it announced."""
    part, tag_file = path.with_name(path.name + ".part"), path.with_name(path.name + ".part.tag")
    path.parent.mkdir(parents=True, exist_ok=True)
    for file in (part, tag_file):
        if file.is_symlink():  # not ours, and written through it would be another file
            file.unlink()
    failures, furthest = 0, _size(part)
    while True:
        try:
            expected = _continue(url, part, tag_file)
            if _size(part) == expected:
                os.replace(part, path)
                tag_file.unlink(missing_ok=True)
                return
            cause, useless = f"{_size(part)} bytes came, {expected} were announced", _size(part) > expected
        except urllib.error.HTTPError as error:
            cause = f"the server says {error.code} {error.reason}"
            useless = error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE  # the file there is another by now
            if error.code < 500 and not useless and error.code != http.client.TOO_MANY_REQUESTS:
                raise ValueError(f"{url}: {cause}") from None
        except (OSError, http.client.HTTPException) as error:
            cause, useless = str(getattr(error, "reason", "") or reason(error)), False
            if getattr(error, "errno", None) in OUR_FAULT:
                raise ValueError(f"{part}: cannot be written ({cause})") from None
        if useless:
            part.unlink(missing_ok=True)
        failures = 0 if _size(part) > furthest else failures + 1
        furthest = max(furthest, _size(part))
        if failures == ATTEMPTS:
            raise ValueError(f"{url}: cannot be downloaded ({cause}); what came is kept, run the command again to "
                             "continue")
        wait = pause * 2**failures
        print(f"{path.name}: {cause}; trying again in {wait:.0f} s", file=sys.stderr, flush=True)
        time.sleep(wait)


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _continue(url: str, part: Path, tag_file: Path) -> int:
    """Append to `part` what is missing; returns the size of the whole as the server announces it."""
    headers, have = {"User-Agent": "uwav", "Accept-Encoding": "identity"}, _size(part)
    if have:
        headers["Range"] = f"bytes={have}-"
        if tag := tag_file.exists() and tag_file.read_text():
            headers["If-Range"] = tag  # a changed file is sent from its beginning
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as answer:
        if answer.status != http.client.PARTIAL_CONTENT:
            have = 0
            part.unlink(missing_ok=True)  # first of all, so that no tag ever stands beside bytes of another file
        elif not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise OSError("the server continued at another place than was asked for")
        if "Content-Length" not in answer.headers:
            raise OSError("the server does not say how large the file is")
        expected = have + int(answer.headers["Content-Length"])
        tag_file.write_text(answer.headers.get("ETag", ""))  # half of it is another: the file is begun again
        with (open(part, "ab", opener=no_links) as file,
              tqdm.wrapattr(answer, "read", expected, initial=have, desc=part.stem, disable=expected < BLOCK) as body):
            shutil.copyfileobj(body, file, BLOCK)
    return expected


# ---- Zip files -----------------------------------------------------------------------------------

class BrokenArchive(ValueError):
    """The zip file is not whole: worth another download."""


def extract_features(archive: Path, folder: Path) -> int:
    """Feature files of a zip -> folder/segment_feats/ID.npy and folder/event_feats/all_event_feats.npy; how many.

    Of folders that share names of files, those called as in MEANT are taken: VALOR's `features/` lies beside
    `segment_pseudo_labels/`. An archive with a name that leads out or a link is refused as a whole. Raises ValueError
    naming the archive."""
    try:
        with zipfile.ZipFile(regular(archive)) as opened:
            folders: dict[PurePosixPath, dict[str, zipfile.ZipInfo]] = {}  # by the names of folder and file
            for member in opened.infolist():
                place = PurePosixPath(member.filename.replace("\\", "/"))
                if place.is_absolute() or ".." in place.parts or ":" in member.filename:
                    raise ValueError(f"{archive}: holds the name {member.filename!r}, which leads out of its folder")
                if stat.S_ISLNK(member.external_attr >> 16):
                    raise ValueError(f"{archive}: holds a link, {member.filename!r}")
                if member.is_dir() or not place.name.endswith(".npy") or place.name.startswith("._"):  # of macOS
                    continue
                files = folders.setdefault(place.parent, {})
                if not is_plain_name(place.name) or place.name in files:
                    raise ValueError(f"{archive}: holds the name {member.filename!r}, which cannot be a file's name or "
                                     "is there twice")
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise BrokenArchive(f"{archive}: {member.filename!r} is compressed in an unknown way; fetch again")
                files[place.name] = member
            members: dict[str, zipfile.ZipInfo] = {}
            for folder_in_it in sorted(folders, key=lambda place: place.name not in MEANT):
                if not members.keys() & folders[folder_in_it].keys():
                    members |= folders[folder_in_it]
                elif not any(place.name in MEANT for place in folders):
                    raise ValueError(f"{archive}: has files of the same names in several folders, and none is called "
                                     f"{' or '.join(sorted(MEANT))}")
            if not members:
                raise ValueError(f"{archive}: holds no .npy file")
            needed, free = sum(m.file_size for m in members.values()), shutil.disk_usage(archive.parent).free
            if needed > free:
                raise ValueError(f"{archive}: its files need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
            for name, member in tqdm(members.items(), desc=f"extract {archive.name}", unit="file"):
                target = folder / ("event_feats" if name == "all_event_feats.npy" else "segment_feats") / name
                if target.is_file() and zlib.crc32(target.read_bytes()) == member.CRC:
                    continue
                with atomic(target) as temporary, opened.open(member) as source, open(temporary, "wb") as out:
                    shutil.copyfileobj(source, out)  # the checksum is verified at its end
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, RuntimeError, zlib.error,
            OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that: a place before the archive's beginning
            raise
        raise BrokenArchive(f"{archive}: not a whole zip file ({reason(error)}); fetch again") from None
    return len(members)


# ---- fetch: the published files of both datasets -------------------------------------------------

def fetch(folder: str | Path, datasets: tuple[str, ...] = ("LLP", "UnAV"), mirror: str | None = None) -> None:
    """Annotations, CLIP and CLAP features of LLP and UnAV -> the source layout that `pack` reads.

    `mirror`: a server that has all files in one place. What was fetched before is kept. Raises ValueError."""
    folder = Path(folder)
    noted = read_notes(folder / "fetched.json")
    for dataset in datasets:
        base, files = ANNOTATIONS[dataset]
        for file in files:
            path = folder / dataset / file
            if not path.exists():
                download(f"{mirror or base}/{file}", path)
        try:
            read_llp(folder / "LLP") if dataset == "LLP" else read_unav(folder / "UnAV" / files[0])
            if dataset == "UnAV":
                print(f"UnAV-100: that commit is of a pull request that was never merged; the official places are "
                      f"{UNAV_OFFICIAL}, and a file of theirs that you put to {path} is kept")
        except ValueError as error:
            raise ValueError(f"{error}; delete the file and fetch again") from None
        for encoder in (name.upper() for name in TEXTED):
            name = f"{dataset}_{encoder}.zip"
            if name in noted:
                print(f"{name}: fetched before, {noted[name]['files']} files")
                continue
            archive = folder / name
            if not archive.exists():
                download(f"{mirror or FEATURES}/{name}", archive)
            try:
                count = extract_features(archive, folder / dataset / f"feats_{encoder}")
            except BrokenArchive:
                archive.unlink()  # a second try must not find it
                raise
            noted[name] = {"files": count}
            write_sealed(folder / "fetched.json", noted)
            archive.unlink()
            print(f"{name}: {count} files")
    if "LLP" in datasets:
        for name in FEATURE_SETS["base"]:
            place = folder / "LLP" / ENCODERS[name].folder
            if not place.is_dir():
                print(f"{name}: not fetched, it is in {DRIVE}; needed for feature set `base` only. "
                      f"Put its <id>.npy files into {place}/")
    print(LICENCES)


def read_notes(path: Path) -> dict[str, dict[str, int]]:
    """Archives that were extracted before: name -> number of files."""
    return read_sealed(path, f"rm {path}; python features.py fetch") if path.exists() else {}
