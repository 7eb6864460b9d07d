"""Streams as ONNX can hold them: what causal layers keep from one piece of a signal to the next is one tensor, which is
an input and an output of a graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from audiovq.nn.stream import Stream


class GraphStream(Stream):
    """A stream whose contexts come out of one tensor and go into another, in the order in which layers ask for them.

    Args:
        state: float32 [batch, size].
        shapes: of each context, without the batch; see `context_shapes`.
    """

    def __init__(self, state: Float[Tensor, "batch size"], shapes: Sequence[Sequence[int]]):
        parts = state.split([math.prod(shape) for shape in shapes], 1)
        self._before = iter([part.unflatten(1, list(shape)) for part, shape in zip(parts, shapes, strict=True)])
        self._after: list[Tensor] = []

    def recall(self, key: Hashable, default: Tensor) -> Tensor:
        return next(self._before).to(default.dtype)

    def keep(self, key: Hashable, value: Tensor) -> None:
        self._after.append(value.flatten(1).float())

    def extend(self, layer: Hashable, x: Tensor, length: int, dim: int = -1) -> Tensor:
        if length == 0:
            return x
        x = torch.cat([next(self._before).to(x.dtype), x], dim)
        self.keep(layer, x.narrow(dim, x.shape[dim] - length, length))
        return x

    @property
    def state(self) -> Float[Tensor, "batch size"]:
        """What the next piece is to be given."""
        return torch.cat(self._after, 1)


def context_shapes(run: Callable[[Stream], object]) -> list[list[int]]:
    """The shapes of what layers keep of a signal, without the batch; `run` passes a frame of it through them."""
    stream = Stream()
    with torch.no_grad():
        run(stream)
    return [list(context.shape[1:]) for context in stream.kept if context.numel()]
