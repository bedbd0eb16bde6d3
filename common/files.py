"""Files that can be relied on: written whole or not at all; reading one executes nothing, and what is wrong with it is
said in one sentence that names it. What a name or a text may be that comes out of a file, says this one place."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """`with atomic(path) as temporary:` write to `temporary`; it becomes `path` only on success. The temporary name is
    always the same, so what a killed run leaves, or a link there, the next run removes. If the disk is full, or nothing
    may be written there, the OSError names `path`."""
    path = inside(regular(path))
    temporary = temporary_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:  # of a failed write it names no file, in NumPy and in PyTorch
        if error.filename not in (None, str(temporary), str(path)):  # it is about another one
            raise
        cause = os.strerror(error.errno) if error.errno else "could not be written whole; is the disk full?"
        raise OSError(error.errno or errno.EIO, cause, str(path)) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


writer = ""  # what tells processes that may write the same file from each other


def temporary_of(path: Path) -> Path:
    return path.with_name(f".{path.stem}.part{writer}{path.suffix}")


# ---- What a name or a text may be that comes out of a file ----------------------------------------

# Characters that no name has: control characters, line ends, halves of characters, what is invisible or turns the
# direction of what follows.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
FORMULA = re.compile("'*[=+@\uff0b\uff0d\uff1d\uff20-]")  # how a cell begins that a spreadsheet would compute


def plain(content: object) -> object:
    """What was read from a file, unless a text in it, at any depth, holds characters that a terminal might obey."""
    if isinstance(content, str) and CONTROL.search(content.replace("\n", " ")):
        raise ValueError(f"control characters in it: {content[:50]!r}")
    inner = [*content, *content.values()] if isinstance(content, dict) else content
    for x in inner if isinstance(inner, list) else ():
        plain(x)
    return content


def printable(text: object) -> str:
    """A text with the numbers of its control characters in their place."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], str(text))


def to_cell(text: str) -> str:
    """A text as a cell of a table that a spreadsheet opens, which would run what looks like a formula."""
    return f"'{text}" if FORMULA.match(text) else text


def from_cell(text: str) -> str:
    """The text that `to_cell` wrote."""
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text


def write_table(path: str | Path, rows: Iterable[Iterable[object]], encoding: str = "utf-8-sig") -> None:
    """A csv file that a spreadsheet may open; what is no text in the name of a file keeps its bytes."""
    with (atomic(path) as temporary,
          open(temporary, "w", newline="", encoding=encoding, errors="surrogateescape") as file):
        csv.writer(file).writerows([to_cell(str(x)) for x in row] for row in rows)


held: dict[Path, Path] = {}  # folders that this process works in (command.py): where they are -> how they are named


def inside(path: str | Path) -> Path:
    """The path, unless this process works in some folders and it lies in none of them, where a name with `..` or a link
    would lead it."""
    place = Path(path).parent.resolve()
    if held and not any(place.is_relative_to(folder) for folder in held):
        raise ValueError(f"{path}: leads out of {', '.join(map(str, held.values()))}; nothing is written there")
    return Path(path)


def regular(path: str | Path) -> Path:
    """The path, unless it is something else than a file: a folder; a device or a pipe, which might have no end, and
    which a file would replace."""
    if os.path.exists(path) and (not os.path.isfile(path) or os.path.abspath(path).startswith("/dev/")):
        raise ValueError(f"{path}: not a file")
    return Path(path)


def is_plain_name(name: object) -> bool:
    """Whether an id may become a file name: it stays in its folder, on any system, and fits on one line."""
    return (isinstance(name, str) and name not in ("", ".", "..") and not CONTROL.search(name)
            and not set(name) & {"/", "\\"} and Path(name).name == name and len(name.encode()) <= 200)


def is_id(name: object) -> bool:
    """Whether a name may be the id of a video, which keeps the folders that its file was in: day1/clip."""
    return isinstance(name, str) and all(map(is_plain_name, name.split("/")))


def reason(error: Exception, path: str | Path = "") -> str:
    """The first line of what an exception says, if that is not endless; its name if it says nothing; without `path`."""
    return printable((str(error).strip() or repr(error)).splitlines()[0].removeprefix(f"{path}: ")[:200])


def lack(error: BaseException) -> str:
    """What the machine has too little of, if an exception says that: no fault of the file that was being read."""
    said = f"{type(error).__name__}: {error}"  # of the CPU, PyTorch tells by a plain RuntimeError
    if isinstance(error, MemoryError) or re.search("OutOfMemory|allocate memory|bad.alloc", said):
        return "memory"
    return "threads" if re.search("start new thread|Resource temporarily unavailable", said) else ""


def json_text(content: object) -> str:
    return json.dumps(content, indent=1) + "\n"


def write_json(path: str | Path, content: object) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json_text(content), encoding="utf-8")


def hash_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's content, in whatever memory."""
    digest = hashlib.sha256()
    with open(regular(path), "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_sealed(path: str | Path, content: dict) -> None:
    """A JSON file with a checksum of itself, for `read_sealed`."""
    content = {k: v for k, v in content.items() if k != "sha256"}
    write_json(path, content | dict(sha256=hash_of(json_text(content).encode())))


def read_sealed(path: str | Path, command: str) -> dict:
    """What `command` wrote with `write_sealed`. Raises FileNotFoundError or ValueError naming file and way out."""
    with made_by(command, path):
        content = dict(read_json(path))
        written = {k: v for k, v in content.items() if k != "sha256"}
        if content["sha256"] != hash_of(json_text(written).encode()):
            raise ValueError("its checksum differs")
    return content


def write_array(path: str | Path, array: np.ndarray) -> None:
    with atomic(path) as temporary:
        np.save(temporary, array)


def hash_of_arrays(arrays: dict[str, np.ndarray]) -> str:
    return hash_of(b"".join(f"{name} {x.dtype.str} {x.shape} ".encode() + x.tobytes() for name, x in arrays.items()))


def write_arrays(path: str | Path, **arrays: np.ndarray) -> None:
    """An .npz file with a checksum of itself, for `read_arrays`. It is put together in memory: after a failed write
    np.savez prints a traceback from a destructor."""
    content = io.BytesIO()
    np.savez(content, **arrays, sha256=np.array(hash_of_arrays(arrays)))
    with atomic(path) as temporary:
        temporary.write_bytes(content.getbuffer())


@contextlib.contextmanager
def reading(path: str | Path, wrong: str, missing: str = "no such file") -> Iterator[None]:
    """Around the reading of a file: whatever is wrong with it is one sentence that names it. wrong: what to say, with
    {cause}."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: {missing}") from None
    except Exception as error:  # NumPy, PyTorch, zip and json raise a dozen kinds
        if what := lack(error):
            raise ValueError(f"out of {what}: {path} could not be read ({reason(error, path)})") from None
        raise ValueError(f"{path}: {wrong.replace('{cause}', reason(error, path))}") from None


def made_by(command: str, path: str | Path) -> contextlib.AbstractContextManager:
    """`reading` of a file that `command` wrote, which is the way out."""
    delete = "delete it and " * str(path).endswith(".pt")  # of training, which overwrites nothing
    return reading(path, f"damaged, or made by another version ({{cause}}); {delete}make it again with `{command}`",
                   f"no such file; make it with `{command}`")


def read_array(path: str | Path, mmap: bool = False) -> np.ndarray:
    """An .npy file, never unpickled. Raises FileNotFoundError or ValueError naming the file."""
    with reading(path, "not a complete .npy file ({cause})"):
        array = np.load(regular(path), allow_pickle=False, mmap_mode="r" if mmap else None)
        if not isinstance(array, np.ndarray):
            array.close()
            raise ValueError("it is an .npz file")
        return array


def shaped(x: np.ndarray, shape: tuple[int | None, ...], path: str | Path) -> np.ndarray:
    """`x` if it is numeric and of `shape` (None: any length above 0); ValueError otherwise."""
    if x.dtype.kind not in "fiu":
        raise ValueError(f"{path}: holds {x.dtype}, expected numbers")
    if x.ndim != len(shape) or any(not have or want not in (None, have) for have, want in zip(x.shape, shape)):
        expected = ", ".join("L" if s is None else str(s) for s in shape)
        raise ValueError(f"{path}: has shape {x.shape}, expected ({expected})")
    return x


def finite(x: np.ndarray, path: str | Path) -> np.ndarray:
    if not np.isfinite(x).all():
        raise ValueError(f"{path}: holds NaN or infinite values (or values beyond half precision)")
    return x


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """What `write_arrays` wrote, never unpickled. Raises FileNotFoundError or ValueError naming the file."""
    with reading(path, "not an .npz file of arrays ({cause})"):
        with np.load(regular(path), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if str(arrays.pop("sha256")) != hash_of_arrays(arrays):
            raise ValueError("its checksum differs")
        return arrays


def read_json(path: str | Path) -> object:
    """The content of a JSON file. Raises FileNotFoundError or ValueError naming it."""
    with reading(path, "not a JSON file ({cause})"):
        return plain(json.loads(regular(path).read_text(encoding="utf-8-sig")))
