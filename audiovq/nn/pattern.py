"""Patterns: the order in which a prior models the codes of several codebooks."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Int, Shaped
from torch import Tensor


class Pattern:
    """Codes [Q, F] as a sequence of steps, in which each codebook is a stream.

    Code f of codebook q is at step `f * stride + q` of stream q; at all other steps the stream is silent. The codes of
    one step are independent of each other given the steps before it.

    - `delay`, stride 1: F + Q - 1 steps. Code q of frame f knows code r of frame g if g + r < f + q (Copet et al.,
      2023, "Simple and Controllable Music Generation").
    - `flatten`, stride Q: F * Q steps of one code each, which knows all codes before it: the exact chain rule.

    With one codebook both are the codes as they are.
    """

    def __init__(self, kind: Literal["delay", "flatten"], num_codebooks: int):
        self.num_codebooks = num_codebooks
        self.stride = num_codebooks if kind == "flatten" else 1

    def num_steps(self, num_frames: int) -> int:
        """Steps that codes of F frames take."""
        return (num_frames - 1) * self.stride + self.num_codebooks

    def arrange(self, codes: Int[Tensor, "*batch books frames"], silence: int) -> Int[Tensor, "*batch books steps"]:
        """Codes as steps; `silence` stands where a stream is silent."""
        frames = codes.shape[-1]
        steps = codes.new_full((*codes.shape[:-1], self.num_steps(frames)), silence)
        for book in range(self.num_codebooks):
            steps[..., book, self._places(book, frames)] = codes[..., book, :]
        return steps

    def restore(self, steps: Shaped[Tensor, "*batch books steps"]) -> Shaped[Tensor, "*batch books frames"]:
        """The codes, or whatever else belongs to them, of steps: the inverse of `arrange`."""
        frames = (steps.shape[-1] - self.num_codebooks) // self.stride + 1
        books = range(self.num_codebooks)
        return torch.stack([steps[..., book, self._places(book, frames)] for book in books], -2)

    def _places(self, book: int, frames: int) -> slice:
        return slice(book, book + (frames - 1) * self.stride + 1, self.stride)
