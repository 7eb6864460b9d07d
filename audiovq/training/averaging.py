"""The moving average of a model's weights, which is validated and released in the model's place."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from audiovq.bottlenecks.batch_norm import BatchNorm
from audiovq.training.optimization import is_codebook

SETTLING_BATCHES = 32
"""Training batches from which an average takes its own batch statistics; 0.9^32 = 3 % of the model's remain."""

Network = TypeVar("Network", bound=nn.Module)


class Average(Generic[Network]):
    """An exponential moving average of the weights that gradients train; all else is copied.

    Copied are buffers, frozen weights and codebooks of every kind. An EMA codebook is an average already. A row of any
    codebook jumps when its code is revived; the average of the places before and after is a place where no latents
    are, for as many steps as the average looks back. As the learning rate falls to zero, a codebook and its average
    meet anyway.
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
            share = 1 - self.decay if step > 1 else 1.0
            torch._foreach_lerp_(mine, theirs, share)  # pyright: ignore[reportPrivateImportUsage]


@torch.no_grad()
def settle_statistics(bottleneck: nn.Module, latents: Iterable[Tensor]) -> None:
    """Let the batch normalisations in a bottleneck follow latents, while the rest of it stays as it is.

    Those of an averaged model are its own thus: the model's describe latents that the averaged encoder does not give.
    Latents are not asked for if there are no such layers.
    """
    layers = [module for module in bottleneck.modules() if isinstance(module, BatchNorm)]
    if not layers:
        return
    bottleneck.eval()
    for layer in layers:
        layer.train()
    for batch in latents:
        bottleneck(batch)
    bottleneck.eval()
