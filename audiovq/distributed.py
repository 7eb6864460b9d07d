"""Statistics that all processes of a training run share; without torch.distributed these return their input."""

from __future__ import annotations

import os

import torch.distributed as dist
from torch import Tensor


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum of `x` over all processes."""
    if is_distributed():
        dist.all_reduce(x)
    return x


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of `x` over all processes."""
    return sum_over_processes(x.clone()) / num_processes() if is_distributed() else x


def from_first_process(x: Tensor) -> Tensor:
    """The first process's `x`."""
    if is_distributed():
        x = x.contiguous()
        dist.broadcast(x, src=0)
    return x


def num_processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if is_distributed() else 1


def is_first_process() -> bool:
    """Whether this is the first of the processes that a launcher started, which need not know of each other yet."""
    return os.environ.get("RANK", "0") == "0"


def is_distributed() -> bool:
    """Whether this process is one of several that train together."""
    return dist.is_available() and dist.is_initialized()
