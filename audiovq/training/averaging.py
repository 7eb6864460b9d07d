"""The moving average of a model's weights, which is validated and released in the model's place."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from audiovq.bottlenecks.base import Bottleneck
from audiovq.bottlenecks.batch_norm import BatchNorm
from audiovq.bottlenecks.vq import VectorQuantizer
from audiovq.training.optimization import is_codebook

SETTLING_BATCHES = 32
"""Training batches from which an average takes its own statistics; of those of the model 0.9^32 = 3 % remain."""

YOUNG = 20
"""An average of t steps looks back over about t / YOUNG of them at most."""

Network = TypeVar("Network", bound=nn.Module)


class Average(Generic[Network]):
    """An exponential moving average of the weights that gradients train; all else is copied.

    The decay after t steps is that of the config or t / (t + YOUNG), the smaller: a decay for a long training would
    leave the average of a short one far behind.

    Copied are buffers, frozen weights and codebooks of every kind. A row of a codebook jumps when its code is revived;
    the average of the places before and after is a place where no latents are, for as many steps as the average looks
    back.
    """

    def __init__(self, model: Network, decay: float):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: Network, step: int) -> None:
        """Follow a model after a step, counted from 1; the first one is copied."""
        averaged: list[tuple[Tensor, Tensor]] = []
        copied = [*zip(self.model.buffers(), model.buffers(), strict=True)]
        for mine, (name, theirs) in zip(self.model.parameters(), model.named_parameters(), strict=True):
            (averaged if theirs.requires_grad and not is_codebook(name) else copied).append((mine, theirs))
        for mine, theirs in copied:
            mine.copy_(theirs)
        if averaged:
            mine, theirs = map(list, zip(*averaged, strict=True))
            share = 1 - min(self.decay, step / (step + YOUNG)) if step > 1 else 1.0
            torch._foreach_lerp_(mine, theirs, share)  # pyright: ignore[reportPrivateImportUsage]


@torch.no_grad()
def settle_bottleneck(bottleneck: Bottleneck, latents: Iterable[Tensor]) -> None:
    """Let what a bottleneck has measured of latents follow these, while the weights in it stay as they are.

    That is, batch statistics and EMA codebooks: the model's describe latents that the averaged encoder does not give.
    Latents are not asked for if there is nothing of the kind.
    """
    layers = [module for module in bottleneck.modules() if isinstance(module, BatchNorm)]
    means = [module for module in bottleneck.modules() if isinstance(module, VectorQuantizer) and module.follows_means]
    if not layers and not means:
        return
    bottleneck.eval()
    for layer in layers:
        layer.train()
    batches = []
    for batch in latents:
        if layers:
            bottleneck(batch)
        batches.append(batch)
    bottleneck.eval()
    if means:
        bottleneck.settle(torch.cat(batches))
