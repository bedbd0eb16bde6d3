"""Which device computes, and what `--fast` changes there.

With --fast, matrix products are in bf16 and, on a GPU, kernels are compiled and launched as CUDA graphs. Weights,
gradients, optimiser, losses, thresholds and labels stay in single precision.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

GRAPHS = 64  # compiled versions of one function (shapes, rows of the ablation, feature sets) before PyTorch gives up


def choose_device(name: str | None) -> str:
    """`name` (cpu, cuda, cuda:1), or the GPU where there is one. Raises ValueError if it is not there."""
    name, gpus = name or ("cuda" if torch.cuda.is_available() else "cpu"), torch.cuda.device_count()
    if name not in ("cpu", "cuda", *(f"cuda:{k}" for k in range(gpus))) or (name == "cuda" and not gpus):
        raise ValueError(f"--device {name}: this PyTorch sees {f'{gpus} GPUs' if gpus else 'no GPU'}; "
                         "cpu, cuda or cuda:NUMBER")
    return name


def accelerate(function: Callable, on: bool, device: torch.device, one_shape: bool) -> Callable:
    """The same function (or module), in bf16 and, on a GPU, compiled.

    one_shape: all batches but the last have the same shape, so that a CUDA graph, which launches all kernels of a call
    at once, is recorded for each; otherwise one compiled version serves all shapes."""
    if not on:
        return function
    if device.type == "cuda":
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
