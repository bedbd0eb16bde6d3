"""Which device computes, what `--fast` changes there, and the processes ("ranks") that torchrun started.

Without torchrun there is one rank, number 0. With it, each rank extracts its share of the groups of videos, or computes
its share of every batch; rank 0 alone speaks, and writes what all have in common (docs/scale.md). With --fast, matrix
products are in bf16; weights, gradients, optimiser, losses, thresholds and labels stay in single precision.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from common import files
from common.command import HELD

if TYPE_CHECKING:  # imported where it is used: commands that compute nothing do without
    import torch

COMPILED = 64  # compiled versions of one function (shapes, rows of the ablation, feature sets) before PyTorch gives up
RANK, RANKS = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
SHARED = ("extract", "pretrain", "train")  # the commands that ranks share
TOGETHER = timedelta(days=1)  # ranks may finish hours apart; one that dies ends the others at once, through torchrun


def processor() -> str:
    """This machine's, and whether it adds products of 8 bits without overflow, if the system tells (Linux does)."""
    file = Path("/proc/cpuinfo")
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    name = re.search("model name\\s*: (.*)", text)
    return f"{name[1] if name else platform.machine()}, {os.cpu_count()} cores{', with VNNI' * ('vnni' in text)}"


def choose_device(name: str | None) -> str:
    """`name` (cpu, cuda, cuda:1), or the GPU where there is one; under torchrun, of a machine's GPUs the one that is
    this rank's. Raises ValueError if it is not there."""
    import torch
    name, gpus = name or ("cuda" if torch.cuda.is_available() else "cpu"), torch.cuda.device_count()
    if name == "cuda" and RANKS > 1:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    known = ["cpu", *["cuda"] * bool(gpus), *(f"cuda:{k}" for k in range(gpus))]
    if name not in known:
        raise ValueError(f"--device {name}: this PyTorch sees {gpus or 'no'} GPU; it takes {', '.join(known)}")
    return name


# ---- Ranks ---------------------------------------------------------------------------------------

@contextlib.contextmanager
def ranks(options: argparse.Namespace) -> Iterator[None]:
    """Around a command: the ranks wait for each other, and all but the first are silent. ValueError if it is not one
    of SHARED, or one of them is lost."""
    command = getattr(options, "command", Path(sys.argv[0]).name)
    if RANKS > 1 and command not in SHARED:
        if RANK:
            sys.exit(1)
        raise ValueError(f"torchrun started {RANKS} processes, which {', '.join(SHARED)} can share; start {command} "
                         "without it")
    shard = getattr(options, "shard", None)
    with contextlib.ExitStack() as end:
        if RANK or shard:  # the folder is held by rank 0, or open to other shards
            os.environ[HELD], files.writer = str(options.out.resolve()), f"{shard or ''}-{RANK}".replace("/", "-")
            end.callback(setattr, files, "writer", "")
            end.callback(os.environ.pop, HELD)
        if RANK:
            nowhere = end.enter_context(open(os.devnull, "w", encoding="utf-8"))
            end.enter_context(contextlib.redirect_stdout(nowhere))
            end.enter_context(contextlib.redirect_stderr(nowhere))
        if RANKS > 1:
            import torch
            torch.distributed.init_process_group(timeout=TOGETHER)
            end.callback(torch.distributed.destroy_process_group)
        try:
            yield
        except RuntimeError as error:  # of gloo a plain one
            if "by peer" not in str(error):
                raise
            raise ValueError("another process that torchrun started has ended, so this one cannot go on") from None


def share(shard: str | None) -> tuple[int, int]:
    """(k, n): of --shard and of ranks, this process has every n-th piece of work, from the k-th on, counted from 0."""
    number, _, total = (shard or "1/1").partition("/")
    if not (number.isdecimal() and total.isdecimal() and 1 <= int(number) <= int(total)):
        raise ValueError(f"--shard {shard}: expected K/N, K from 1 to N")
    return int(number) - 1 + int(total) * RANK, int(total) * RANKS


def gathered(value: object) -> list:
    """At rank 0, the `value` of every rank, once all have come; elsewhere nothing."""
    if RANKS == 1:
        return [value]
    import torch
    values = None if RANK else [None] * RANKS
    torch.distributed.gather_object(value, values)
    return values or []


def together(model: Callable) -> Callable:
    """What a model computes of a batch, each rank its share of the videos; gradients are averaged over the ranks.
    Other functions stay as they are: every rank computes all of them."""
    import torch
    if RANKS == 1 or not isinstance(model, torch.nn.Module):
        return model
    averaging = torch.nn.parallel.DistributedDataParallel(model)

    def forward(*inputs: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        n = len(inputs[0])
        first, last = n * RANK // RANKS, n * (RANK + 1) // RANKS
        some = slice(first, last) if first < last else slice(0, 1)  # without a share: computed in vain, left out below

        def of_all(x: torch.Tensor) -> torch.Tensor:
            """Outputs of this rank's share -> of the batch, (n, ...). Every rank computes the whole loss and keeps the
            gradient of its share, RANKS times, as the average divides by that; what is added for it is 0."""
            x = x[: last - first].float()
            whole = x.new_zeros(n, *x.shape[1:])
            whole[first:last] = x.detach()
            torch.distributed.all_reduce(whole)  # a sum of which all terms but one are 0
            return torch.cat([whole[:first], x + (RANKS - 1) * (x - x.detach()), whole[last:]])

        # Of a video are (B, T, D) and the mask (B, T); texts (C, D) belong to all.
        outputs = averaging(*(x[some] if x is not None and (x.ndim > 2 or x.dtype == torch.bool) else x
                              for x in inputs))
        return torch.utils._pytree.tree_map(of_all, outputs)

    return forward


# ---- --fast --------------------------------------------------------------------------------------

def accelerate(function: Callable, on: bool, device: torch.device, one_shape: bool) -> Callable:
    """The same function (or module), in bf16 and, on a GPU, compiled; by several ranks, in bf16 only.

    one_shape: all batches but the last have the same shape, so that a CUDA graph, which launches all kernels of a call
    at once, is recorded for each; otherwise one compiled version serves all shapes."""
    import torch
    if not on:
        return function
    if device.type == "cuda" and RANKS == 1:
        function = functools.partial(_compiled(one_shape), function)

    def accelerated(*inputs):
        with torch.autocast(device.type, torch.bfloat16):
            return function(*inputs)

    return accelerated


@functools.cache
def _compiled(one_shape: bool) -> Callable:
    """One compiled function whatever it is to call: the models of all seeds and rows share what was compiled."""
    import torch
    torch._dynamo.config.recompile_limit = COMPILED

    def call(function: Callable, *inputs):
        return function(*inputs)

    return torch.compile(call, dynamic=not one_shape, mode="reduce-overhead" if one_shape else None)
