"""Files and commands that can be relied on.

A file is written whole or not at all, reading one executes nothing, one run at a time works in a folder, and whatever
a user can bring about ends a command with one sentence and an exit status other than 0.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

import numpy as np

try:
    import fcntl
except ModuleNotFoundError:  # Windows: runs are not kept apart there
    fcntl = None

# ---------------------------------------------------------------------------------------------
# Writing and reading
# ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """`with atomic(path) as temporary:` write to `temporary`; it becomes `path` only on success.

    The temporary name is always the same, so what a killed run leaves behind the next run overwrites. If the disk is
    full, or nothing may be written there, the OSError names `path`.
    """
    path = Path(path)
    temporary = temporary_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with naming(path, temporary):
            yield temporary
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def temporary_of(path: Path) -> Path:
    return path.with_name(f".{path.stem}.part{path.suffix}")


@contextlib.contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """An OSError while `path` is written names it, which a failed write, of NumPy and of PyTorch too, does not."""
    try:
        yield
    except OSError as error:
        if error.filename not in (None, str(temporary), str(path)):  # it is about another file
            raise
        cause = os.strerror(error.errno) if error.errno else "could not be written whole; is the disk full?"
        raise OSError(error.errno or errno.EIO, cause, str(path)) from None


def reason(error: Exception) -> str:
    """The first line of what an exception says; its name if it says nothing."""
    return (str(error) or repr(error)).splitlines()[0]


def json_text(content: object) -> str:
    return json.dumps(content, indent=1) + "\n"


def write_json(path: str | Path, content: object) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json_text(content), encoding="utf-8")


def write_array(path: str | Path, array: np.ndarray) -> None:
    with atomic(path) as temporary:
        np.save(temporary, array)


def write_arrays(path: str | Path, **arrays: np.ndarray) -> None:
    """An .npz file, put together in memory: np.savez leaves a failed write to a destructor, which prints a traceback."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    with atomic(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def read_array(path: str | Path, mmap: bool = False) -> np.ndarray:
    """An .npy file, never unpickled. Raises FileNotFoundError or ValueError naming the file."""
    try:
        return np.load(path, allow_pickle=False, mmap_mode="r" if mmap else None)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not a complete .npy file ({reason(error)})") from None


# ---------------------------------------------------------------------------------------------
# Running: one at a time, and one sentence at the end
# ---------------------------------------------------------------------------------------------

PATIENCE = 3.0  # s, for the workers of a run that was just killed
_ours: set[Path] = set()  # folders that this process works in


@contextlib.contextmanager
def working_in(folder: str | Path) -> Iterator[None]:
    """One run at a time in a folder: ValueError if another process is at work there. A killed run leaves no lock."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    place = folder.resolve()
    if place in _ours or fcntl is None:  # a stage of `ablate`
        yield
        return
    path, give_up = folder / ".lock", time.monotonic() + PATIENCE
    while not _lock(file := open(path, "a"), path):
        file.close()
        if time.monotonic() > give_up:
            raise ValueError(f"{folder}: another run is at work there; wait for it or choose another folder")
        time.sleep(0.05)
    _ours.add(place)
    try:
        yield
    finally:
        _ours.remove(place)
        path.unlink(missing_ok=True)
        file.close()


def _lock(file: TextIO, path: Path) -> bool:
    """Whether the lock is ours now: nobody else has it, and the run that had it did not remove the file meanwhile."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError:  # some network file systems have no locks
        return True


@contextlib.contextmanager
def one_sentence_errors() -> Iterator[None]:
    """For a whole command: what a user can bring about ends it with one sentence and exit status 1, and not with a
    traceback; Ctrl-C and SIGTERM with one sentence and 128 + the number of the signal."""
    with _interruptible() as signals:
        try:
            yield
        except ValueError as error:
            sys.exit(f"error: {error}")
        except OSError as error:
            sys.exit(f"error: {error.filename}: {error.strerror}" if error.filename else f"error: {error}")
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            sys.exit(f"error: out of memory ({reason(error)}); smaller batches need less: --set batch=N, and so do "
                     "smaller models: --preset demo")
        except KeyboardInterrupt:
            if not signals:
                raise
            _stop(signals[0])


@contextlib.contextmanager
def _interruptible() -> Iterator[list[signal.Signals]]:
    """SIGTERM, too, raises KeyboardInterrupt; the list says which signals came. The second one does not wait."""
    came: list[signal.Signals] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(signal.Signals(number))
        if len(came) > 1:
            _stop(came[0])
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: signal.Signals) -> NoReturn:
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        print(f"\nstopped by {number.name}; nothing is lost, the same command goes on from here",
              file=sys.stderr, flush=True)
    os._exit(128 + number)  # threads that still compute are not waited for


def follow_the_parent() -> None:
    """For worker processes: Ctrl-C reaches them as well, but the process that started them decides; they end when it
    does, even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _out_of_memory(error: Exception) -> bool:
    """Of the GPU, or of the CPU, of which PyTorch tells by a plain RuntimeError."""
    name = type(error).__name__
    return isinstance(error, MemoryError) or name == "OutOfMemoryError" or "allocate memory" in str(error)
