"""What `--fast` changes, all of it: bf16 arithmetic and, on a GPU, compiled kernels and CUDA graphs.

Weights, gradients, optimiser, losses, thresholds and labels stay in single precision; autocast takes bf16 for matrix
products alone. Without --fast nothing here changes anything.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

import ranks

GRAPHS = 64  # compiled versions of one function (shapes, rows of the ablation, feature sets) before PyTorch gives up


def bf16(on: bool, device: torch.device) -> AbstractContextManager:
    return torch.autocast(device.type, torch.bfloat16, enabled=on)


def accelerate(function: Callable, on: bool, device: torch.device, one_shape: bool) -> Callable:
    """The same function (or module), in bf16 and, on a GPU, compiled.

    one_shape: all batches but the last have the same shape, so that a CUDA graph, which launches all kernels of a call
    at once, is recorded for each; otherwise one compiled version serves all shapes.
    """
    if not on:
        return function
    if device.type == "cuda" and ranks.WORLD == 1:  # under torchrun: bf16 alone
        function = functools.partial(_compiled(one_shape), function)

    def accelerated(*inputs):
        with bf16(on, device):
            return function(*inputs)

    return accelerated


@functools.cache
def _compiled(one_shape: bool) -> Callable:
    """One compiled function whatever it is to call: the models of all seeds and rows share what was compiled."""
    torch._dynamo.config.recompile_limit = GRAPHS

    def call(function: Callable, *inputs):
        return function(*inputs)

    return torch.compile(call, dynamic=not one_shape, mode="reduce-overhead" if one_shape else None)
