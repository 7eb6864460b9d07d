"""Bottlenecks that exist to be differentiated exactly: a VQ that chooses its code by chance, and a Gaussian of which
one dimension is drawn, with either gradient estimator."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from audiovq.bottlenecks.base import BottleneckOutput
from audiovq.bottlenecks.gaussian import GaussianBottleneck
from audiovq.bottlenecks.reinforce import draw_codes
from audiovq.bottlenecks.vq import VectorQuantizer
from audiovq.config import GaussianConfig, VQConfig

EDGE, NODES = 6.0, 241
"""Standard deviations up to which a normal distribution is integrated, and points at which it is."""


class StochasticVQ(VectorQuantizer):
    """VQ whose code is drawn, by a softmax over squared distances, so that its expected cost has a gradient:

        q(k|x) = softmax(-|| z_e - e_k ||^2 / t)_k

    As the temperature t falls to 0 it becomes VQ. The gradient past the sample is VQ's, straight-through:
    z_q = z_e + sg[e_k - z_e]. The exact gradient of the expected cost is known by trying all codes (Sønderby et al.,
    2017, "Continuous Relaxation Training of Discrete Latent Variable Image Models"; Roy et al., 2018).
    """

    def __init__(self, latent_dim: int, config: VQConfig, temperature: float):
        super().__init__(latent_dim, config)
        self.temperature = temperature

    def squared_distances(self, z: Float[Tensor, "batch dim frames"]) -> Float[Tensor, "batch frames codes"]:
        """|| z_e - e_k ||^2 to all codes."""
        return (self._project(z)[:, :, None] - self.codes()).square().sum(-1)

    def log_posterior(self, z: Float[Tensor, "batch dim frames"]) -> Float[Tensor, "batch frames codes"]:
        """log q(k|x)."""
        return F.log_softmax(-self.squared_distances(z) / self.temperature, dim=-1)

    def forward(self, z: Float[Tensor, "batch dim frames"]) -> BottleneckOutput:
        z_e, log_q = self._project(z), self.log_posterior(z).detach()
        codes = draw_codes(log_q) if self.training else log_q.argmax(-1)
        z_q = z_e + (F.embedding(codes, self.codes()) - z_e).detach()
        return BottleneckOutput(self.project_out(z_q).mT, codes[:, None], z.new_zeros(()))


class OneDimension(GaussianBottleneck):
    """A Gaussian posterior of which one dimension is drawn and all others are their means, constants without a
    gradient; or of which all are drawn.

    `reparameterised`: the gradient passes the sample. `score`: it does not; what is used is

        grad E_q[f(z)] = E_q[(f(z) - b) * grad log q(z|x)],    z without gradient

    with b the mean cost of the item's other samples if there are any, else 0.

    Args:
        dimension: what is drawn; None: all.
    """

    def __init__(
        self,
        latent_dim: int,
        config: GaussianConfig,
        dimension: int | None,
        estimator: Literal["reparameterised", "score"],
        samples: int = 1,
    ):
        super().__init__(latent_dim, config)
        self.dimension, self.estimator, self.samples = dimension, estimator, samples

    def forward(self, z: Float[Tensor, "batch dim frames"]) -> BottleneckOutput:
        samples = self.samples if self.training else 1
        mean, log_variance = (x.repeat(samples, 1, 1) for x in self.posterior(z))
        drawn = self.drawn(mean)
        mean, log_variance = (x * drawn + (x * (1 - drawn)).detach() for x in (mean, log_variance))
        sample = mean + (0.5 * log_variance).exp() * torch.randn_like(mean) * drawn if self.training else mean
        loss = z.new_zeros(())
        if self.estimator == "reparameterised":
            return BottleneckOutput(self.project_out(sample).mT, None, loss, samples=samples)
        sample = sample.detach()
        log_prob = -0.5 * ((sample - mean).square() * (-log_variance).exp() + log_variance + math.log(2 * math.pi))
        log_prob = (log_prob * drawn).sum(-1)
        return BottleneckOutput(self.project_out(sample).mT, None, loss, log_prob=log_prob, samples=samples)

    def surrogate_loss(
        self, output: BottleneckOutput, reconstruction_loss: Float[Tensor, " items"]
    ) -> Float[Tensor, ""]:
        if output.log_prob is None:
            return reconstruction_loss.new_zeros(())
        cost = reconstruction_loss.detach().view(output.samples, -1)
        baseline = (cost.sum(0) - cost) / (output.samples - 1) if output.samples > 1 else 0.0
        surrogate = ((cost - baseline).flatten() * output.log_prob.sum(-1)).mean()
        return surrogate - surrogate.detach()

    def drawn(self, mean: Float[Tensor, "*shape dim"]) -> Float[Tensor, " dim"]:
        """1 for the dimensions that are drawn."""
        if self.dimension is None:
            return torch.ones_like(mean[0, 0])
        return F.one_hot(torch.tensor(self.dimension), mean.shape[-1]).to(mean)

    def nodes(
        self, z: Float[Tensor, "batch dim 1"]
    ) -> tuple[Float[Tensor, "nodes batch dim 1"], Float[Tensor, "nodes batch"]]:
        """What the decoder sees at points across the one dimension that is drawn, and the probability of each.

        The probabilities have gradients; the points, as a sample, have none. The sum over points of probability times
        cost is the expected cost, and its gradient the exact one, by the costs alone.
        """
        assert self.dimension is not None, "only one dimension can be integrated"
        mean, log_variance = self.posterior(z)
        x = torch.linspace(-EDGE, EDGE, NODES, dtype=mean.dtype).view(-1, 1, 1, 1)
        points = (mean + x * (0.5 * log_variance).exp() * self.drawn(mean)).detach()
        m, v = mean[..., self.dimension], log_variance[..., self.dimension]
        log_density = -0.5 * ((points[..., self.dimension] - m).square() * (-v).exp() + v + math.log(2 * math.pi))
        width = (2 * EDGE / (NODES - 1)) * (0.5 * v).exp().detach()
        return self.project_out(points).mT, (log_density.exp() * width).squeeze(-1)
