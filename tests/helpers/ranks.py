"""Commands by several processes, as torchrun starts them, but PyTorch is imported once for all: they are forks of this.

    python tests/helpers/ranks.py JOBS      # JSON, a list of what `run` takes

Of each process, what it prints goes to FOLDER/JOB.RANK.out and .err; the exit statuses of all jobs are printed as JSON.
"""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

import features
import uwav
from common import devices
from train import cli
from video import encoders, extract


class Cheap:
    """In the place of both encoders: different for every input, and for every batch it comes in."""

    dies_at = None  # this process, at its n-th batch

    def __init__(self, weights=None, device="cpu", **_):
        self.batches = 0

    def images(self, x: np.ndarray) -> np.ndarray:
        return self.vectors(x, 768)

    def sounds(self, x: np.ndarray) -> np.ndarray:
        return self.vectors(x, 512)

    def vectors(self, x: np.ndarray, size: int) -> np.ndarray:
        self.batches += 1
        if self.batches == Cheap.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        flat = x.reshape(len(x), -1)[:, :: x[0].size // 700].astype(np.float32)
        y = flat @ np.random.default_rng(len(x)).standard_normal((flat.shape[1], size)).astype(np.float32) + 1
        return y / np.linalg.norm(y, axis=1, keepdims=True)


def run(folder: str, name: str, ranks: int, command: list[str], late: int = -1, dies: int = -1, at: int = 2) -> list[int]:
    """A command by so many processes; one of them may be `late` by some seconds, one may die at its second batch or epoch.

    As torchrun does it, the first that fails ends the others. Without `ranks`, a process that knows of no others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    sys.stdout.flush()
    running = {}
    for rank in range(ranks or 1):
        if (process := os.fork()) == 0:
            for stream, end in ((1, "out"), (2, "err")):
                os.dup2(os.open(f"{folder}/{name}.{rank}.{end}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
            if ranks:
                os.environ |= dict(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
                devices.RANK, devices.RANKS = rank, ranks
            if rank == late:
                time.sleep(3)
            if rank == dies:
                Cheap.dies_at, end_epoch = at, uwav.Run.end_epoch
                uwav.Run.end_epoch = lambda self, *x: len(self.history) + 1 == at and os.kill(os.getpid(), signal.SIGKILL) or end_epoch(self, *x)
            status = 1
            try:
                (features if command[0] == "extract" else cli).main(command)
                status = 0
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else print(end.code, file=sys.stderr) or 1
            finally:
                sys.stdout.flush(), sys.stderr.flush()
                os._exit(status)
        running[process] = rank
    ended = [0] * len(running)
    while running:
        process, status = os.wait()
        ended[running.pop(process)] = os.waitstatus_to_exitcode(status)
        if status:
            for other in running:
                os.kill(other, signal.SIGTERM)
    return ended


def read_here(paths: list, workers: int, segments: int | None, longest: float, read):
    """`decode.read_clips` without its processes."""
    for path in paths:
        try:
            yield read(path, segments, longest)
        except ValueError as error:
            yield str(error)


if __name__ == "__main__":
    torch.set_num_threads(1)
    extract.decode.read_clips = read_here
    encoders.ClipEncoder = encoders.ClapEncoder = Cheap
    print(json.dumps([run(**job) for job in json.loads(sys.argv[1])]))
