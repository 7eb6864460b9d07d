"""How good is a gradient estimator? Its bias, variance and cost at fixed parameters and a fixed batch.

Gradients are those of the reconstruction loss; the bottleneck's own terms (KL divergence, commitment) are exact and
would only hide what is compared. Buffers and codebooks are put back after each draw, so that all draws come from one
distribution: batch statistics are those of the fixed batch, and neither a moving average nor a revived code moves on.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from audiovq.bottlenecks.base import Bottleneck
from audiovq.bottlenecks.categorical import CategoricalBottleneck
from audiovq.models.autoencoder import Autoencoder

Costs = Callable[[Tensor], Tensor]
"""Loss of each item of latents [N * B, D, F], the batch N times: [N * B]."""


@dataclass(frozen=True)
class GradientStatistics:
    """What n draws g_1 ... g_n of a gradient estimate tell."""

    draws: int
    variance: float
    """Trace of the covariance: the variance of each component, summed."""
    squared_norm: float
    """|| E[g] ||^2, estimated without bias as || mean g ||^2 - variance / n, which noise can make negative."""
    seconds: float
    """CPU time of a draw, forward and backward pass; median over draws."""
    bias: float | None = None
    """|| mean g - exact || / || exact ||, if the exact gradient is known."""
    bias_noise: float | None = None
    """What `bias` is about (root mean square) for an unbiased estimator after n draws."""
    cosine: float | None = None
    """Cosine of the angle between mean g and the exact gradient."""

    @property
    def snr(self) -> float | None:
        """Signal-to-noise ratio || E[g] ||^2 / variance; None for an estimator without noise."""
        return max(0.0, self.squared_norm) / self.variance if self.variance else None

    @property
    def variance_seconds(self) -> float:
        """Variance of what a second of compute gives, the mean of 1 / seconds draws."""
        return self.variance * self.seconds


def gradient_statistics(
    draw: Callable[[], Float[Tensor, " size"]], draws: int, exact: Float[Tensor, " size"] | None = None
) -> GradientStatistics:
    """Statistics of `draws` (at least 2) results of `draw`, and their distance from the exact gradient if given."""
    mean = torch.zeros_like(draw(), dtype=torch.float64)  # The first call of all, not timed, pays for preparations.
    squares, seconds = 0.0, []
    for n in range(1, draws + 1):
        started = time.process_time()
        gradient = draw()
        seconds.append(time.process_time() - started)
        before = gradient.double() - mean
        mean += before / n
        squares += float(before @ (gradient.double() - mean))  # Welford, 1962
    variance = squares / (draws - 1)
    found = GradientStatistics(
        draws, variance, float(mean @ mean) - variance / draws, seconds=statistics.median(seconds)
    )
    if exact is None:
        return found
    exact = exact.double()
    return replace(
        found,
        bias=float((mean - exact).norm() / exact.norm()),
        bias_noise=(variance / draws) ** 0.5 / float(exact.norm()),
        cosine=float(torch.cosine_similarity(mean, exact, dim=0)),
    )


def encoder_gradient(model: Autoencoder, costs: Costs, wave: Float[Tensor, "batch 1 time"]) -> Float[Tensor, " size"]:
    """One draw of the reconstruction loss's gradient with respect to all weights of the encoder, in a row."""
    weights = list(model.encoder.parameters())
    with restored(model.bottleneck):
        output = model.bottleneck(model.encode(wave))
        found = costs(output.latents)
        loss = found.mean() + model.bottleneck.surrogate_loss(output, found)
        gradients = torch.autograd.grad(loss, weights)
    return torch.cat([gradient.flatten() for gradient in gradients])


class OneLatent:
    """A batch in which one frame of each item is sampled and all others are as in evaluation.

    Few enough random outcomes to try them all, in a real model with its real loss. Gradients are those of the mean
    reconstruction loss with respect to the encoder's output at that frame, [B * D]. Batch normalisation is by the
    moving averages, so that items do not depend on each other.

    Args:
        frame: number of the frame that is sampled, the same in all items.
    """

    def __init__(self, model: Autoencoder, costs: Costs, wave: Float[Tensor, "batch 1 time"], frame: int):
        self.bottleneck, self.costs, self.items, self.frame = model.bottleneck, costs, len(wave), frame
        with torch.no_grad(), evaluating(model.bottleneck):
            z = model.encode(wave)
            self.latents = model.bottleneck(z).latents
        self.z = z[..., frame : frame + 1].requires_grad_()

    def draw(self) -> Float[Tensor, " size"]:
        """An estimate of the gradient, as training would make it."""
        bottleneck = self.bottleneck
        with restored(bottleneck):
            bottleneck.train()
            if isinstance(bottleneck, CategoricalBottleneck):
                bottleneck.normalize.eval()
            output = bottleneck(self.z)
            costs = self.costs_of(output.latents)
            loss = costs.mean() + bottleneck.surrogate_loss(output, costs)
            (gradient,) = torch.autograd.grad(loss, self.z)
        return gradient.flatten()

    def exact(self) -> Float[Tensor, " size"]:
        """The true gradient of the expected cost, mean over items b of sum over codes k of q(k|z_b) * f(b, k)."""
        bottleneck = self.bottleneck
        assert isinstance(bottleneck, Enumerable), "only a categorical latent can be enumerated"
        codes = torch.arange(bottleneck.codebook_size).view(-1, 1, 1, 1).expand(-1, self.items, 1, 1)
        with torch.no_grad():
            costs = torch.stack([self.costs_of(bottleneck.decode(code)) for code in codes], dim=-1)
        with evaluating(bottleneck):
            q = bottleneck.log_posterior(self.z)[:, 0].exp()
        (gradient,) = torch.autograd.grad((q * costs).sum(-1).mean(), self.z)
        return gradient.flatten()

    def costs_of(self, latent: Float[Tensor, "items dim 1"]) -> Float[Tensor, " items"]:
        """Loss of each item with this latent in place of its own."""
        fixed = self.latents.repeat(len(latent) // self.items, 1, 1)
        return self.costs(torch.cat([fixed[..., : self.frame], latent, fixed[..., self.frame + 1 :]], dim=-1))


@runtime_checkable
class Enumerable(Protocol):
    """A bottleneck with a categorical posterior, whose codes can all be tried."""

    codebook_size: int

    def log_posterior(self, z: Tensor) -> Tensor: ...

    def decode(self, codes: Tensor) -> Tensor: ...


@contextlib.contextmanager
def restored(bottleneck: Bottleneck) -> Iterator[None]:
    """Put a bottleneck's mode, buffers and codebook back when the block ends; backward passes belong into the block."""
    before = {name: tensor.clone() for name, tensor in bottleneck.state_dict().items()}
    with _same_modes(bottleneck):
        yield
    bottleneck.load_state_dict(before)


@contextlib.contextmanager
def evaluating(bottleneck: Bottleneck) -> Iterator[None]:
    """A bottleneck as in evaluation, within the block."""
    with _same_modes(bottleneck):
        bottleneck.eval()
        yield


@contextlib.contextmanager
def _same_modes(bottleneck: Bottleneck) -> Iterator[None]:
    modes = [(module, module.training) for module in bottleneck.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
