"""Commands with faults injected. A server imports everything once; each command is the main() of a fork of it.

    with Faults() as faults:
        result = faults.run("train.cli.main", ["pretrain", ...], root=folder, kill_at=7)

What can be injected: SIGKILL just before the n-th change to a file below `root` (opening for writing, renaming, removing,
making a folder, torch.save), by the process itself to its whole group; death in the middle of a write, at byte `torn` of
any file; errors of a full disk, at byte `limit` of any file; no permission, for root too (`powerless`).
"""

import ctypes
import fcntl
import importlib
import json
import mmap
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from tqdm import tqdm

TIMEOUT = 120.0  # s, of one command
GLANCE = 0.005  # s, between looks at it
LINGER = 3.0  # s, for processes that outlive the command


@dataclass(frozen=True)
class Ended:
    """How a command ended. status: exit status, or minus the number of the signal; changes: to files below root."""

    status: int
    out: str
    err: str
    changes: int
    seconds: float
    orphans: bool


class Faults:
    """The client: starts the server, and commands on it."""

    def __enter__(self) -> "Faults":
        environment = os.environ | {"OMP_NUM_THREADS": "1"}  # a fork has no OpenMP threads
        self.server = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                       env=environment)
        assert self.server.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *error: object) -> None:
        self.server.stdin.close()
        self.server.wait()

    def ask(self, **request: object) -> dict:
        self.server.stdin.write(json.dumps(request, default=str) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def start(self, main: str, arguments: list, **faults: object) -> int:
        """Begin a command; the number of its process and of its process group."""
        return self.ask(start=main, arguments=[str(a) for a in arguments], **faults)["pid"]

    def wait(self, pid: int) -> Ended:
        return Ended(**self.ask(wait=pid))

    def run(self, main: str, arguments: list, **faults: object) -> Ended:
        return self.wait(self.start(main, arguments, **faults))


# ---- the fork ----

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def inject(count: mmap.mmap, root: str | None = None, kill_at: int | None = None, torn: int | None = None,
           limit: int | None = None, powerless: bool = False) -> None:
    def change() -> None:
        n = int.from_bytes(count[:8], "little") + 1
        count[:8] = n.to_bytes(8, "little")  # shared with the workers of this command
        if n == kill_at:
            os.killpg(0, signal.SIGKILL)

    def watch(event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            if flags & WRITING and isinstance(path, (str, os.PathLike)) and str(path).startswith(root):
                change()
        elif event in CHANGES:  # a relative name: rmtree, in one of our folders
            path = os.fspath(arguments[0])
            if not isinstance(path, str) or path.startswith(root) or not path.startswith("/"):
                change()

    if root:
        import torch

        original = torch.save

        def save(*arguments, **options):  # opens its file in C++
            change()
            return original(*arguments, **options)

        torch.save = save
        sys.addaudithook(watch)
    for bytes in (limit, torn):
        if bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (bytes, resource.RLIM_INFINITY))
    if torn is not None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the kernel ends us once `torn` bytes are written
    if powerless:  # capset: root without privileges
        header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None).capset(header, none) == 0


# ---- quick stand-ins, where the real thing costs seconds and is tested elsewhere ----


def toy_encoders() -> None:
    """In the place of CLIP and CLAP; and videos are decoded by the process itself."""
    from video import decode

    def read_clips(paths: list, workers: int, segments: int | None, longest: float, read: Callable):
        for path in paths:
            try:
                yield read(path, segments, longest)
            except ValueError as error:
                yield str(error)

    decode.read_clips = read_clips
    toy_encoders_alone()


def toy_encoders_alone() -> None:
    from video import encoders
    import numpy as np

    class Toy:
        def __init__(self, weights: object, device: str, **options: object):
            pass

        def images(self, x: np.ndarray, size: int = 768) -> np.ndarray:
            flat = x.reshape(len(x), -1)[:, :: x[0].size // 700].astype(np.float32)
            y = flat @ np.random.default_rng(0).standard_normal((flat.shape[1], size)).astype(np.float32) + 1
            return y / np.linalg.norm(y, axis=1, keepdims=True)  # the last bits depend on the batch

        def sounds(self, x: np.ndarray) -> np.ndarray:
            return self.images(x, 512)

    encoders.ClipEncoder = encoders.ClapEncoder = Toy


def traced_before() -> None:
    """The graphs of `export` are traced by the server."""
    import export_onnx

    original, known = export_onnx.trace, TRACED

    def trace(export, opset=export_onnx.TRACED):
        key = (export.name, opset, *(str(p.sum().item()) for p in export.parameters()))
        if key not in known:
            known[key] = original(export, opset)
        model = type(known[key])()
        model.CopyFrom(known[key])
        return model

    export_onnx.trace = trace
    export_onnx.TRIED = ((1, 1), (2, 10))  # that are compared with PyTorch


def tiny_world() -> None:
    from data.demo_world import WorldConfig

    sizes = dict(train=60, val=30, test=40, source_train=40, source_validation=20, source_test=20)
    WorldConfig.__init__.__defaults__ = tuple(sizes.get(field.name, field.default) for field in fields(WorldConfig))


def save_every_epoch() -> None:
    """However long it takes: the same changes to files in every run."""
    from train import checkpoints

    checkpoints.SAVING_SHARE = 1e9


def save_again(arguments: list[str]) -> None:
    """A command: a checkpoint, written to another place."""
    from common.command import one_sentence_errors
    from train import checkpoints

    with one_sentence_errors():
        checkpoints.save_file(Path(arguments[1]), checkpoints.load_file(arguments[0]))


TRACED: dict = {}  # (name, weights) -> graph
STAND_INS = {f.__name__: f for f in (toy_encoders, toy_encoders_alone, traced_before, tiny_world, save_every_epoch)}


# ---- the server ----


def start(main: str, arguments: list[str], stand_ins: tuple[str, ...] = (), **faults) -> tuple:
    count = mmap.mmap(-1, 8)
    ours, theirs = os.pipe()
    fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, 1 << 20)
    errors_ours, errors_theirs = os.pipe()
    pid = os.fork()
    if pid:
        os.setpgid(pid, pid)
        os.close(theirs)
        os.close(errors_theirs)
        return pid, ours, errors_ours, count, time.monotonic()
    status = 70
    try:
        os.setpgid(0, 0)
        for here, there in ((os.open(os.devnull, os.O_RDONLY), 0), (theirs, 1), (errors_theirs, 2)):
            os.dup2(here, there)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        tqdm.set_lock(threading.RLock())  # its own is shared by all forks, and one that is killed may hold it
        module, function = main.rsplit(".", 1)
        sys.argv = [f"{module}.py", *arguments]
        for name in stand_ins:
            STAND_INS[name]()
        inject(count, **faults)
        getattr(importlib.import_module(module), function)(arguments)
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # what Python does at the end of a script
        sys.excepthook(*sys.exc_info())
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        threading._shutdown()  # ends the workers of a pool, as the end of a script does
        os._exit(status)


def wait(pid: int, out: int, errors: int, count: mmap.mmap, started: float) -> dict:
    text, code, glances = {out: b"", errors: b""}, None, 0
    while code is None:
        for pipe in select.select(list(text), [], [], 0)[0]:
            text[pipe] += os.read(pipe, 1 << 16)
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
        else:
            time.sleep(GLANCE)
            glances += 1
            if glances * GLANCE > TIMEOUT:
                os.killpg(pid, signal.SIGKILL)
    seconds = time.monotonic() - started
    give_up = time.monotonic() + LINGER
    while (orphans := alive(pid)) and time.monotonic() < give_up:
        time.sleep(0.01)
    if orphans:
        os.killpg(pid, signal.SIGKILL)
    for pipe in text:
        while select.select([pipe], [], [], 0)[0] and (block := os.read(pipe, 1 << 16)):
            text[pipe] += block
        os.close(pipe)
    return dict(status=code, out=text[out].decode(errors="replace"), err=text[errors].decode(errors="replace"),
                changes=int.from_bytes(count[:8], "little"), seconds=seconds, orphans=orphans)


def alive(group: int) -> bool:
    """Whether any process of a group runs (one that ended, but nobody asked how, does not)."""
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                state, _, of = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(of) == group and state not in "ZX":
                return True
    return False


def serve() -> None:
    here = Path(__file__).resolve().parent
    sys.path[:0] = [str(here.parents[1]), str(here)]
    for module in ("train.cli", "features", "data.demo_world", "report", "parse", "data.fetch"):
        importlib.import_module(module)
    for module in ("export_onnx", "video.encoders", "video.extract", "video.decode"):
        try:
            importlib.import_module(module)
        except (ModuleNotFoundError, SystemExit):  # the tests that need it are skipped
            pass
    running = {}
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            pid, *rest = start(request.pop("start"), **request)
            running[pid] = rest
            answer = dict(pid=pid)
        elif "trace" in request:  # a folder of a run
            traced_before()
            import export_onnx

            source = export_onnx.source_of_run(Path(request["trace"]), 0, None, "full", None)
            for export in export_onnx.exports_of(source.han, source.teacher).values():
                export_onnx.trace(export, export_onnx.OPSET)  # as the command asks
            answer = {}
        else:
            answer = wait(request["wait"], *running.pop(request["wait"]))
        print(json.dumps(answer), flush=True)
    for pid in running:  # of tests that failed
        os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    serve()
