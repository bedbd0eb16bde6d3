"""Which devices compute, and how: the GPU, the processes ("ranks") that `torchrun` started, and what `--fast` changes.

Without torchrun there is one rank, number 0, and nothing here does anything. Training is data-parallel: each rank
computes its share of every batch and DistributedDataParallel averages the gradients. Losses are computed from the
outputs of *all* ranks, so they, and with dropout off the weights, are those of a single process.

With --fast, matrix products are in bf16 and, on a GPU, kernels are compiled and launched as CUDA graphs. Weights,
gradients, optimiser, losses, thresholds and labels stay in single precision.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.utils._pytree import tree_map

from common.command import working_in

RANK = int(os.environ.get("RANK", 0))
WORLD = int(os.environ.get("WORLD_SIZE", 1))
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", 0))
LOCAL_WORLD = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
PATIENCE = timedelta(days=1)  # ranks may finish hours apart; one that dies ends the others at once, through torchrun


def choose_device(name: str | None) -> str:
    """`name` (cpu, cuda, cuda:1), or the GPU where there is one. Raises ValueError if it is not there."""
    name, gpus = name or ("cuda" if torch.cuda.is_available() else "cpu"), torch.cuda.device_count()
    if name not in ("cpu", "cuda", *(f"cuda:{k}" for k in range(gpus))) or (name == "cuda" and not gpus):
        raise ValueError(f"--device {name}: this PyTorch sees {f'{gpus} GPUs' if gpus else 'no GPU'}; "
                         "cpu, cuda or cuda:NUMBER")
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
    """`working_in` for all ranks of this run together."""
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


def parallel(function: Callable) -> Callable:
    """The same; of a model, gradients are averaged over all ranks."""
    if WORLD == 1 or not isinstance(function, nn.Module):
        return function
    return nn.parallel.DistributedDataParallel(function)


def shared_out(forward: Callable, whole: tuple[int, ...] = ()) -> Callable:
    """What `forward` computes of a batch, each rank computing its share; whole: positions of inputs that all ranks use
    as they are."""
    if WORLD == 1:
        return forward

    def compute(*inputs: Tensor | None) -> object:
        n = len(inputs[0])
        own = _rows(n)
        share = slice(0, 1) if own.start == own.stop else own  # computed in vain, to be left out
        outputs = forward(*(x if x is None or k in whole else x[share] for k, x in enumerate(inputs)))
        return tree_map(lambda x: _of_all(x[: own.stop - own.start], n), outputs)

    return compute


def _rows(n: int) -> slice:
    """The part of a batch of n that this rank computes: whole videos, as even as can be."""
    return slice(n * RANK // WORLD, n * (RANK + 1) // WORLD)


def _of_all(x: Tensor, n: int) -> Tensor:
    """Outputs of this rank's share of a batch of n -> those of the whole batch, (n, ...), on every rank.

    Every rank computes the same loss; its gradient is the sum of all of them, which DistributedDataParallel divides by
    their number."""
    whole = x.new_zeros(n, *x.shape[1:])
    whole[_rows(n)] = x
    return all_reduce(whole)  # a sum in which all but one term are 0


GRAPHS = 64  # compiled versions of one function (shapes, rows of the ablation, feature sets) before PyTorch gives up


def accelerate(function: Callable, on: bool, device: torch.device, one_shape: bool) -> Callable:
    """The same function (or module), in bf16 and, on a GPU, compiled.

    one_shape: all batches but the last have the same shape, so that a CUDA graph, which launches all kernels of a call
    at once, is recorded for each; otherwise one compiled version serves all shapes."""
    if not on:
        return function
    if device.type == "cuda" and WORLD == 1:  # under torchrun: bf16 alone
        function = functools.partial(_compiled(one_shape), function)

    def accelerated(*inputs):
        with torch.autocast(device.type, torch.bfloat16):
            return function(*inputs)

    return accelerated


@functools.cache
def _compiled(one_shape: bool) -> Callable:
    """One compiled function whatever it is to call: the models of all seeds and rows share what was compiled."""
    torch._dynamo.config.recompile_limit = GRAPHS

    def call(function: Callable, *inputs):
        return function(*inputs)

    return torch.compile(call, dynamic=not one_shape, mode="reduce-overhead" if one_shape else None)
