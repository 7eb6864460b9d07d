"""The state that causal layers carry from one piece of a signal to the next."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from jaxtyping import Shaped
from torch import Tensor, nn


class Stream:
    """Left context of every causal layer for one signal (or one batch of signals in step).

    A causal layer puts the end of what it last saw in front of its input instead of zeros. A signal that passes
    piece by piece through the same stream gives the same output as in one piece.
    """

    def __init__(self) -> None:
        self._contexts: dict[Hashable, Tensor] = {}

    def recall(self, key: Hashable, default: Tensor) -> Tensor:
        """What was kept last under a key, or the default."""
        return self._contexts.get(key, default)

    def keep(self, key: Hashable, value: Tensor) -> None:
        """Keep a value for the next piece."""
        self._contexts[key] = value

    def extend(self, layer: Hashable, x: Shaped[Tensor, "*batch time"], length: int) -> Shaped[Tensor, "*batch time2"]:
        """`x` behind the last `length` steps that `layer` saw (zeros at the start): [..., length + T]."""
        context = self._contexts.get(layer)
        if context is None:
            context = x.new_zeros((*x.shape[:-1], length))
        x = torch.cat([context, x], dim=-1)
        # A copy, since a view would keep all of `x` in memory.
        self._contexts[layer] = x[..., x.shape[-1] - length :].clone()
        return x


def extend_left(
    layer: Hashable, x: Shaped[Tensor, "*batch time"], length: int, stream: Stream | None
) -> Shaped[Tensor, "*batch time2"]:
    """`x` with `length` steps of left context: from the stream, or zeros when the signal comes in one piece.

    Args:
        layer: what the context belongs to; a module, or a module and a name if it has several.
    """
    if stream is None:
        return nn.functional.pad(x, (length, 0))
    return stream.extend(layer, x, length)
