"""Batch normalisation before a bottleneck."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from audiovq.distributed import mean_over_processes, num_processes

DECAY = 0.9
"""Decay of the moving averages of mean and variance."""
EPSILON = 1e-5
"""Added to a variance before it divides."""


class BatchNorm(nn.Module):
    """Batch normalisation of each channel, without scale and shift (Ioffe & Szegedy, 2015).

    PyTorch's own keeps moving averages that differ between the processes of a distributed run; here they do not.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, z: Float[Tensor, "batch dim frames"]) -> Float[Tensor, "batch dim frames"]:
        if not self.training:
            return self.by_averages(z)
        self._update_averages(z.detach())
        return F.batch_norm(z, None, None, training=True, eps=EPSILON)

    @torch.no_grad()
    def _update_averages(self, z: Float[Tensor, "batch dim frames"]) -> None:
        """Follow the moments of this batch, over all processes; the variance is the unbiased one, as PyTorch's."""
        mean = mean_over_processes(z.mean((0, 2)))
        deviation = z - mean[:, None]
        variance = mean_over_processes(deviation.square().mean((0, 2)))
        values = num_processes() * z.shape[0] * z.shape[2]
        self.mean.lerp_(mean, 1 - DECAY)
        self.variance.lerp_(variance * values / max(1, values - 1), 1 - DECAY)

    def by_averages(self, z: Float[Tensor, "batch dim frames"]) -> Float[Tensor, "batch dim frames"]:
        """What evaluation does: by the moving averages instead of the batch's own mean and variance."""
        return F.batch_norm(z, self.mean.to(z.dtype), self.variance.to(z.dtype), eps=EPSILON)

    def scale(self) -> Float[Tensor, " dim"]:
        """What `by_averages` multiplies each channel by."""
        return (self.variance + EPSILON).rsqrt()
