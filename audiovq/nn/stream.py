"""The state that causal layers carry from one piece of a signal to the next."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


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

    @property
    def kept(self) -> list[Tensor]:
        """All that is kept, in the order in which layers first asked for it."""
        return [*self._contexts.values()]

    def extend(self, layer: Hashable, x: Shaped[Tensor, ...], length: int, dim: int = -1) -> Shaped[Tensor, ...]:
        """`x` behind the last `length` steps that `layer` saw (zeros at the start): T + `length` steps along `dim`."""
        context = self._contexts.get(layer)
        x = _behind_zeros(x, length, dim) if context is None else torch.cat([context, x], dim)
        # A copy, since a view would keep all of `x` in memory.
        self._contexts[layer] = x.narrow(dim, x.shape[dim] - length, length).clone()
        return x


class Excerpt(Stream):
    """For a piece from the middle of a signal whose left context is a part of it.

    Layers put nothing in front, so that each gives fewer steps than it is given: those that see enough.
    """

    def extend(self, layer: Hashable, x: Shaped[Tensor, ...], length: int, dim: int = -1) -> Shaped[Tensor, ...]:
        return x


def extend_left(
    layer: Hashable, x: Shaped[Tensor, ...], length: int, stream: Stream | None, dim: int = -1
) -> Shaped[Tensor, ...]:
    """`x` with `length` steps of left context: from the stream, or zeros when the signal comes in one piece.

    Args:
        layer: what the context belongs to; a module, or a module and a name if it has several.
        dim: along which time goes.
    """
    return _behind_zeros(x, length, dim) if stream is None else stream.extend(layer, x, length, dim)


def _behind_zeros(x: Shaped[Tensor, ...], length: int, dim: int) -> Shaped[Tensor, ...]:
    shape = list(x.shape)
    shape[dim] = length
    return torch.cat([x.new_zeros(shape), x], dim)


def overlap_add(
    layer: Hashable, pieces: Float[Tensor, "batch windows size"], overlap: int, stream: Stream | None
) -> Float[Tensor, "batch 1 time"]:
    """The sum of windows of `overlap` hops that begin with each hop, as long as the hops that have begun."""
    count, last = pieces.shape[1], overlap - 1
    known = extend_left((layer, "pieces"), pieces.unflatten(-1, (overlap, -1)), last, stream, dim=1)
    wave = sum(known[:, last - part : last - part + count, part] for part in range(overlap))
    return torch.as_tensor(wave).flatten(1)[:, None]
