"""Commands that can be relied on: one run at a time works in a folder, and what a user can bring about ends one with
a sentence and an exit status other than 0."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from common.files import held, inside, lack, printable, reason

try:
    import fcntl
except ModuleNotFoundError:  # Windows: runs are not kept apart there
    fcntl = None

LESS = "; smaller batches need less: --set batch=N, smaller models: --preset demo, features left on disk: --stream"
HELD = "UWAV_HELD"  # the folder that run_all.sh holds for its stages


@contextlib.contextmanager
def working_in(folder: str | Path) -> Iterator[None]:
    """One run at a time in a folder, and nothing is written outside of it: ValueError if another process is at work
    there. A killed run leaves no lock."""
    folder = Path(folder)
    named = Path(os.path.abspath(folder))
    if any(named.is_relative_to(other) for other in held.values()):
        inside(folder / "x")
    folder.mkdir(parents=True, exist_ok=True)
    place = folder.resolve()
    if place in held or fcntl is None:  # a stage of `ablate`
        yield
        return
    directory = os.open(folder, os.O_RDONLY)
    try:
        if str(place) != os.environ.get(HELD):
            lock(directory, folder)
        held[place] = named
        yield
    finally:
        held.pop(place, None)
        os.close(directory)


def lock(directory: int, folder: str | Path) -> None:
    """Hold a folder for as long as its file descriptor is open, in this process or one that shares it."""
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{folder}: another run is at work there; wait for it or choose another folder") from None
    except OSError:  # some network file systems have no locks
        return


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one line, with what was probably meant."""

    def parse_args(self, arguments: list[str] | None = None, namespace: argparse.Namespace | None = None):
        for x in sys.argv[1:] if arguments is None else arguments:
            if re.fullmatch("(--[a-z0-9-]+=)?", x):  # which would mean the current folder
                self.error(f"{x or 'an argument'} is empty: a variable without a value?")
        options = super().parse_args(arguments, namespace)
        if not 0 <= getattr(options, "seed", 0) < 1 << 31:
            self.error(f"--seed: {options.seed}: must be from 0 to 2^31")
        return options

    def error(self, message: str) -> NoReturn:
        parsers = [self, *(p for a in self._actions if isinstance(a.choices, dict) for p in a.choices.values())]
        actions = [a for p in parsers if isinstance(p, Parser) for a in p._actions]
        known = [str(x) for a in actions for x in (*a.option_strings, *(a.choices or ()))]
        wrong = re.search("invalid choice: '([^']*)'", message) or re.search(r"(?<!\S)(-[\w-]+)", message)
        self.exit(2, f"error: {message}{did_you_mean(wrong[1], known) if wrong else ''}\n")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, known, 1) or [k for k in known if len(word) > 3 and word in k]
    close = [k for k in close if k != word]
    return f"; did you mean {close[0]}?" if close else ""


def progress(*items: Iterable, **options):
    """A progress bar, slow where nobody watches; nothing in a worker process, its parent has one."""
    from tqdm import tqdm

    watched, has_parent = sys.stderr.isatty(), multiprocessing.parent_process() is not None
    return tqdm(*items, dynamic_ncols=watched, mininterval=0.2 if watched else 30, disable=has_parent, **options)


@contextlib.contextmanager
def one_sentence_errors(again: str = "goes on from here", less: str = LESS) -> Iterator[None]:
    """For a whole command: what a user can bring about ends it with one sentence and exit status 1; Ctrl-C and SIGTERM
    with one sentence, what the same command does then, and 128 + the signal's number. less: which options need less
    memory, if the command has any."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # one that knows ASCII alone ends no command

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        """At once, as nothing is lost if a run is killed: no thread is waited for, and no destructor can swallow it."""
        with contextlib.suppress(OSError, RuntimeError):  # the latter: it was being written to when the signal came
            sys.stdout.flush()
        with contextlib.suppress(OSError):
            name = signal.Signals(number).name
            os.write(2, f"\nstopped by {name}; nothing is lost, the same command {again}\n".encode())
        os._exit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except Exception as error:
        if what := lack(error):
            sys.exit(f"error: out of {what} ({reason(error)})" + less * (what == "memory"))
        if isinstance(error, OSError) and error.filename:
            sys.exit(f"error: {printable(error.filename)}: {error.strerror}")
        if not isinstance(error, (OSError, ValueError)):
            raise
        sys.exit(f"error: {printable(error)}")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def follow_the_parent() -> None:
    """For worker processes: Ctrl-C reaches them as well, but the process that started them decides; they end when it
    does, even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
