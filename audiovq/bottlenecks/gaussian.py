"""Gaussian posterior: the bottleneck of a variational autoencoder."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from audiovq.bottlenecks.base import BottleneckOutput, VariationalBottleneck
from audiovq.config import AutoencoderConfig, GaussianConfig


class GaussianBottleneck(VariationalBottleneck):
    """Gaussian posterior of each frame, with a standard normal prior (Kingma & Welling, 2014, section 3).

        q(z|x) = N(mu, diag sigma^2),    z = mu + sigma * eps,  eps ~ N(0, I)
        KL(q(z|x) || N(0, I)) = 1/2 * sum_j (mu_j^2 + sigma_j^2 - 1 - log sigma_j^2)

    mu and log sigma^2 are linear projections of the latents. Gradients pass through the sample to both (the
    reparameterisation trick). Evaluation uses the posterior mean, z = mu.

    With `free_nats` lambda, a dimension pays only for what it uses above lambda, on average over frames and batch
    (free bits; Kingma et al., 2016, "Improved Variational Inference with Inverse Autoregressive Flow"):

        loss = w * sum_j max(lambda, mean KL_j)
    """

    @classmethod
    def of(cls, config: AutoencoderConfig) -> GaussianBottleneck:
        assert isinstance(config.bottleneck, GaussianConfig)
        return cls(config.latent_dim, config.bottleneck)

    def __init__(self, latent_dim: int, config: GaussianConfig):
        super().__init__(config)
        self.config = config
        code_dim = config.code_dim or latent_dim
        self.project_in = nn.Linear(latent_dim, 2 * code_dim)
        self.project_out = nn.Linear(code_dim, latent_dim) if config.code_dim is not None else nn.Identity()

    def forward(self, z: Float[Tensor, "batch dim frames"]) -> BottleneckOutput:
        mean, log_variance = self.posterior(z)
        sample = mean + (0.5 * log_variance).exp() * torch.randn_like(mean) if self.training else mean
        kl = gaussian_kl(mean, log_variance).mean((0, 1))
        weight = self.kl_weight()
        return BottleneckOutput(
            latents=self.project_out(sample).mT,
            codes=None,
            loss=weight * kl.clamp(min=self.config.free_nats).sum(),
            metrics={"kl": kl.detach().sum(), "kl_weight": weight},
        )

    def posterior(
        self, z: Float[Tensor, "batch dim frames"]
    ) -> tuple[Float[Tensor, "batch frames code_dim"], Float[Tensor, "batch frames code_dim"]]:
        """Mean mu and log variance log sigma^2 of q(z|x)."""
        mean, log_variance = self.project_in(z.mT).chunk(2, dim=-1)
        return mean, log_variance


def gaussian_kl(mean: Float[Tensor, "*shape"], log_variance: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """KL divergence of N(mean, variance) to N(0, 1) in nats, element by element."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
