"""Drawing classes from logits, one step after the other."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor


def sample(
    logits: Float[Tensor, "batch streams classes"],
    uniforms: Float[Tensor, "#batch streams"],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
) -> Int[Tensor, "batch streams"]:
    """The class at which the cumulative distribution of softmax(logits / temperature) passes a number from [0, 1).

    An item depends on its own logits and numbers alone. The distribution is summed in double precision, so that logits
    which differ by rounding alone hardly ever give another class.

    Args:
        uniforms: random numbers from [0, 1).
        temperature: below 1 sharpens the distribution, above 1 flattens it; 0 takes the likeliest class.
        top_k: draw from this many likeliest classes, and those that tie with the last of them.
        top_p: draw from the fewest likeliest classes that together have at least this probability (nucleus sampling,
            Holtzman et al., 2020), and those that tie with the last of them.
    """
    if temperature == 0:
        return logits.argmax(-1)
    weights = (logits.double() / temperature).softmax(-1)
    if top_k is not None:
        lowest = weights.topk(min(top_k, weights.shape[-1])).values[..., -1:]
        weights = weights.where(weights >= lowest, 0)
    if top_p < 1:
        ordered = weights.sort(-1, descending=True).values
        before = ordered.cumsum(-1) - ordered
        kept = (before < top_p * ordered.sum(-1, keepdim=True)).sum(-1, keepdim=True)
        lowest = ordered.gather(-1, (kept - 1).clamp(min=0))
        weights = weights.where(weights >= lowest, 0)
    cumulative = weights.cumsum(-1)
    return (cumulative <= uniforms.double()[..., None] * cumulative[..., -1:]).sum(-1)


class Stepper(ABC):
    """A network of sequences of classes, one step at a time, for a batch of sequences that go in step."""

    @abstractmethod
    def start(self) -> Int[Tensor, "batch streams"]:
        """What comes before the first step."""

    @abstractmethod
    def step(
        self, classes: Int[Tensor, "batch streams"], condition: Float[Tensor, "#batch layers gates"] | None = None
    ) -> Float[Tensor, "batch streams classes"]:
        """Logits of the next step.

        Args:
            classes: the classes of the step before.
            condition: what this step is conditioned on.
        """

    def generate(
        self,
        previous: Int[Tensor, "batch streams"],
        uniforms: Float[Tensor, "#batch streams time"],
        condition: Float[Tensor, "#batch layers gates"] | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
    ) -> Int[Tensor, "batch streams time"]:
        """Draw T steps that share a condition, each from the logits that the step before leads to; see `sample`.

        Args:
            previous: the classes of the step before, or `start()`.
            uniforms: random numbers from [0, 1), on any device.
        """
        drawn = []
        for numbers in uniforms.to(previous.device).unbind(-1):
            previous = sample(self.step(previous, condition), numbers, temperature, top_k, top_p)
            drawn.append(previous)
        return torch.stack(drawn, -1)
