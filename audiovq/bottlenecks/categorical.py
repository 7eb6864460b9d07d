"""What the bottlenecks with a categorical posterior share; they differ in how a gradient passes the sample."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from audiovq.bottlenecks.base import VariationalBottleneck, perplexity, update_usage
from audiovq.bottlenecks.batch_norm import BatchNorm
from audiovq.bottlenecks.choice import Scores, choose
from audiovq.config import CategoricalConfig


class CategoricalBottleneck(VariationalBottleneck):
    """Categorical posterior of each frame over K codes, with a uniform prior.

        q(k|x) = softmax(W n(z) + b)_k,    KL(q(k|x) || 1/K) = log K - H(q) = sum_k q(k|x) * log(K * q(k|x))

    n is batch normalisation, as before the quantizer in Łańcucki et al., 2020, "Robust Training of Vector Quantized
    Bottleneck Models". The latents of a new encoder hardly differ between frames; without n all frames would come to
    share one code before they do. The decoder sees e_k, the chosen row of the codebook. `encode` and evaluation take
    the most likely code.

    The KL divergence is computed exactly. To minimise it is to raise the entropy of the posterior, which keeps it
    from deciding too early. With `free_nats` lambda it costs nothing up to there, on average over frames and batch:

        loss = w * max(lambda, mean KL)
    """

    usage: Tensor

    def __init__(self, latent_dim: int, config: CategoricalConfig):
        super().__init__(config)
        self.codebook_sizes = (config.codebook_size,)
        self._free_nats = config.free_nats
        self.normalize = BatchNorm(latent_dim)
        self.project_in = nn.Linear(latent_dim, config.codebook_size)
        self.codebook = nn.Parameter(torch.randn(config.codebook_size, latent_dim))
        self.register_buffer("usage", torch.full((config.codebook_size,), 1 / config.codebook_size))

    def log_posterior(self, z: Float[Tensor, "batch dim frames"]) -> Float[Tensor, "batch frames codes"]:
        """log q(k|x); in training, under the statistics of this batch."""
        return F.log_softmax(self.project_in(self.normalize(z).mT), dim=-1)

    def encode(
        self, z: Float[Tensor, "batch dim frames"], num_codebooks: int | None = None
    ) -> tuple[Int[Tensor, "batch 1 frames"], Float[Tensor, "batch frames"]]:
        weight, bias = self.project_in.weight.detach(), self.project_in.bias.detach()
        scores = Scores(weight, bias, weight * self.normalize.scale())
        codes, margin = choose(z, self.normalize.by_averages(z).mT, scores)
        return codes[:, None], margin

    def decode(self, codes: Int[Tensor, "batch 1 frames"]) -> Float[Tensor, "batch dim frames"]:
        return F.embedding(codes[:, 0], self.codebook).mT

    def _kl_and_metrics(
        self, log_q: Float[Tensor, "batch frames codes"], codes: Int[Tensor, "items frames"]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Weighted KL divergence, a mean over frames, and what is logged; in training, counts the codes."""
        if self.training:
            update_usage(self.usage[None], codes[:, None])
        kl, weight = uniform_kl(log_q).mean(), self.kl_weight()
        metrics = {"kl": kl.detach(), "kl_weight": weight, "perplexity": perplexity(self.usage)}
        return weight * kl.clamp(min=self._free_nats), metrics


def uniform_kl(log_q: Float[Tensor, "*shape codes"]) -> Float[Tensor, "*shape"]:
    """KL divergence in nats of categorical distributions, given as log-probabilities, to the uniform one."""
    return (log_q.exp() * log_q).sum(-1) + math.log(log_q.shape[-1])
