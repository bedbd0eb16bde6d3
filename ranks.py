"""What `torchrun` needs of us: the processes ("ranks") of one run, on one machine or several.

Without torchrun there is one rank, number 0, and every function here does nothing. Training is data-parallel: each
rank computes its share of every batch and DistributedDataParallel averages the gradients. Losses are computed from
the outputs of *all* ranks (`gather`), so they, and with dropout off the weights, are those of a single process.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from files import working_in

RANK = int(os.environ.get("RANK", 0))
WORLD = int(os.environ.get("WORLD_SIZE", 1))
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", 0))
LOCAL_WORLD = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
PATIENCE = timedelta(days=1)  # ranks may finish hours apart; one that dies ends the others at once, through torchrun


def choose_device(name: str | None) -> str:
    """`name`, or the GPU where there is one. Raises ValueError if it is not there."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: this PyTorch sees no GPU")
    return name


def connect(device: str) -> str:
    """Join the other ranks; returns this rank's device: `cuda` becomes the GPU of this rank's number on its machine."""
    if device == "cuda" and WORLD > 1:
        device = f"cuda:{LOCAL_RANK % torch.cuda.device_count()}"
        torch.cuda.set_device(device)
    if WORLD > 1 and not dist.is_initialized():
        backend = "nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE, **_meeting_point())
    return device


def _meeting_point() -> dict:
    """Where the ranks find each other. On one machine torchrun keeps a single store over restarts, with the addresses
    of dead processes in it, so every start gets its own part of it. Several machines: `--rdzv-backend=c10d` does that.
    """
    if int(os.environ.get("GROUP_WORLD_SIZE", 1)) > 1:
        return {}
    hosts_store = RANK == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), WORLD, hosts_store, PATIENCE)
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dict(store=dist.PrefixStore(f"start {start}", store), rank=RANK, world_size=WORLD)


def disconnect() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def alone_in(folder: Path) -> AbstractContextManager:
    """`files.working_in` for all ranks of this run together."""
    return working_in(folder) if RANK == 0 else nullcontext()


def barrier() -> None:
    if WORLD > 1:
        dist.barrier()


def all_of(value: object) -> list:
    """The `value` of every rank, in rank order."""
    values = [value] * WORLD
    if WORLD > 1:
        dist.all_gather_object(values, value)
    return values


def parallel(model: nn.Module) -> nn.Module:
    """The same model, its gradients averaged over all ranks."""
    return model if WORLD == 1 else nn.parallel.DistributedDataParallel(model)


def share(n: int) -> slice:
    """The part of a batch of n that this rank computes: whole videos, as even as can be, never empty."""
    own = _rows(n)
    return own if own.stop > own.start else slice(0, 1)  # computed in vain: `gather` leaves it out


def _rows(n: int) -> slice:
    return slice(n * RANK // WORLD, n * (RANK + 1) // WORLD)


def agree(x: Tensor) -> Tensor:
    """Rank 0's random draw, for all."""
    if WORLD > 1:
        dist.broadcast(x, 0)
    return x


def gather(x: Tensor, n: int) -> Tensor:
    """Outputs of this rank's share of a batch of n -> those of the whole batch, (n, ...), on every rank."""
    return x if WORLD == 1 else _Gather.apply(x, n)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, n: int) -> Tensor:
        ctx.rows, ctx.shape = _rows(n), x.shape
        whole = x.new_zeros(n, *x.shape[1:])
        whole[ctx.rows] = x[: ctx.rows.stop - ctx.rows.start]
        dist.all_reduce(whole)  # a sum in which all but one term are 0
        return whole

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        """Every rank computes the same loss; DistributedDataParallel will divide by their number, so we multiply."""
        own = gradient.new_zeros(ctx.shape)
        own[: ctx.rows.stop - ctx.rows.start] = gradient[ctx.rows] * WORLD
        return own, None
