"""Categorical posterior with a true sample and the score-function gradient: REINFORCE."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from audiovq.bottlenecks.base import BottleneckOutput
from audiovq.bottlenecks.categorical import CategoricalBottleneck
from audiovq.config import AutoencoderConfig, ReinforceConfig
from audiovq.distributed import sum_over_processes


class ReinforceBottleneck(CategoricalBottleneck):
    """Sampled codes and the score-function gradient (Williams, 1992, "Simple Statistical Gradient-Following
    Algorithms for Connectionist Reinforcement Learning").

    No gradient passes a sampled code, but that of the expected cost f of the codes k = (k_1, ..., k_F) of an item,
    its reconstruction loss, is an expectation too, for any b that does not depend on k:

        grad E_q[f(k)] = E_q[(f(k) - b) * grad log q(k|x)],    log q(k|x) = sum over frames of log q(k_t|x)

    The surrogate loss is therefore the mean over items and samples of sg[f - b] * log q(k|x). The cost is that of a
    whole item, so that the variance grows with its length. Baselines b, none of which biases the gradient:

    - `none`: 0.
    - `moving_average`: mean cost of the steps before this one, exponentially weighted.
    - `leave_one_out`: mean cost of the S - 1 other samples of the item (Kool et al., 2019, "Buy 4 REINFORCE Samples,
      Get a Baseline for Free!").

    In training each item has S samples: latents, codes and log_prob hold S * B items, sample after sample.
    """

    cost_sum: Tensor
    cost_weight: Tensor

    @classmethod
    def of(cls, config: AutoencoderConfig) -> ReinforceBottleneck:
        assert isinstance(config.bottleneck, ReinforceConfig)
        return cls(config.latent_dim, config.bottleneck)

    def __init__(self, latent_dim: int, config: ReinforceConfig):
        super().__init__(latent_dim, config)
        self.config = config
        self.register_buffer("cost_sum", torch.tensor(0.0))
        self.register_buffer("cost_weight", torch.tensor(0.0))

    def forward(self, z: Float[Tensor, "batch dim frames"]) -> BottleneckOutput:
        log_q = self.log_posterior(z)
        if self.training:
            samples = self.config.samples
            log_q_repeated = log_q.repeat(samples, 1, 1)
            codes = draw_codes(log_q_repeated)
            log_prob = log_q_repeated.gather(-1, codes[..., None]).squeeze(-1)
        else:
            samples, codes, log_prob = 1, log_q.argmax(-1), None
        loss, metrics = self._kl_and_metrics(log_q, codes)
        return BottleneckOutput(self.decode(codes[:, None]), codes[:, None], loss, metrics, log_prob, samples)

    def surrogate_loss(
        self, output: BottleneckOutput, reconstruction_loss: Float[Tensor, " items"]
    ) -> Float[Tensor, ""]:
        if output.log_prob is None:
            return reconstruction_loss.new_zeros(())
        cost = reconstruction_loss.detach()
        advantage = cost - self._baseline(cost, output.samples)
        surrogate = (advantage * output.log_prob.sum(-1)).mean()
        return surrogate - surrogate.detach()

    def _baseline(self, cost: Float[Tensor, " items"], samples: int) -> Float[Tensor, " items"]:
        """The baseline b of each item; a moving average takes in the costs after they were judged by it."""
        if self.config.baseline == "leave_one_out":
            by_sample = rearrange(cost, "(s b) -> s b", s=samples)
            others = (by_sample.sum(0) - by_sample) / (samples - 1)
            return rearrange(others, "s b -> (s b)")
        if self.config.baseline == "moving_average":
            # Both sums start at 0; their ratio is the average of what has been seen.
            baseline = self.cost_sum / self.cost_weight.clamp(min=torch.finfo(torch.float32).tiny)
            total = sum_over_processes(torch.stack([cost.sum(), torch.full_like(cost, 1).sum()]))
            self.cost_sum.lerp_(total[0] / total[1], 1 - self.config.baseline_decay)
            self.cost_weight.lerp_(torch.ones_like(self.cost_weight), 1 - self.config.baseline_decay)
            return baseline.expand_as(cost)
        return torch.zeros_like(cost)


def draw_codes(log_q: Float[Tensor, "*shape codes"]) -> Int[Tensor, "*shape"]:
    """Samples of categorical distributions, given as log-probabilities: argmax_k (log q_k + g_k), g_k Gumbel noise.

    Unlike torch.multinomial this bears NaN, so that a run that diverges ends with its own message.
    """
    noise = -torch.empty_like(log_q).exponential_().log()
    return (log_q + noise).argmax(-1)
