"""Categorical posterior with a relaxed sample: Gumbel-Softmax."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from audiovq.bottlenecks.base import BottleneckOutput
from audiovq.bottlenecks.categorical import CategoricalBottleneck
from audiovq.config import AutoencoderConfig, GumbelConfig


class GumbelBottleneck(CategoricalBottleneck):
    """Gumbel-Softmax, or Concrete, sample of the codes (Jang et al., 2017, "Categorical Reparameterization with
    Gumbel-Softmax", eq. 2; Maddison et al., 2017, "The Concrete Distribution").

        y_k = softmax((log q(k|x) + g_k) / tau)_k,    g_k = -log(-log u_k),  u_k ~ Uniform(0, 1)

    In training the decoder sees sum_k y_k e_k, which is differentiable in q. With `hard` it sees the row of the
    largest y_k, and the gradient is that of y: y_hard + y - sg[y] (straight-through; section 2.2 of Jang et al.).
    Either gradient is biased. A lower temperature tau makes that of the relaxed sample less biased and more variable.
    The largest y_k is an exact sample of q at any temperature. The temperature at a training step is

        tau = start * (end / start) ** min(1, step / anneal_steps)

    The KL divergence in the loss is that of the categorical posterior, not of its relaxation.
    """

    @classmethod
    def of(cls, config: AutoencoderConfig) -> GumbelBottleneck:
        assert isinstance(config.bottleneck, GumbelConfig)
        return cls(config.latent_dim, config.bottleneck)

    def __init__(self, latent_dim: int, config: GumbelConfig):
        super().__init__(latent_dim, config)
        self.config = config

    def forward(self, z: Float[Tensor, "batch dim frames"]) -> BottleneckOutput:
        log_q = self.log_posterior(z)
        if self.training:
            y = F.gumbel_softmax(log_q, self.temperature(), hard=self.config.hard)  # type: ignore[arg-type]
            codes, latents = y.argmax(-1), (y @ self.codebook).mT
        else:
            codes = log_q.argmax(-1)
            latents = self.decode(codes[:, None])
        loss, metrics = self._kl_and_metrics(log_q, codes)
        return BottleneckOutput(latents, codes[:, None], loss, {**metrics, "temperature": self.temperature()})

    def temperature(self) -> Float[Tensor, ""]:
        """The temperature tau at the current step."""
        start, end = self.config.start_temperature, self.config.end_temperature
        return start * (end / start) ** (self.step / self.config.anneal_steps).clamp(max=1)
