"""Statistics that all processes of a training run share; without torch.distributed these return their input."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum of `x` over all processes."""
    if _active():
        dist.all_reduce(x)
    return x


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of `x` over all processes."""
    return sum_over_processes(x.clone()) / dist.get_world_size() if _active() else x


def from_first_process(x: Tensor) -> Tensor:
    """The first process's `x`."""
    if _active():
        x = x.contiguous()
        dist.broadcast(x, src=0)
    return x


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()
