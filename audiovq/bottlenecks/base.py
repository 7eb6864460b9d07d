"""What every bottleneck gives: one interface, so that a recipe changes the bottleneck by its config alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from audiovq.bottlenecks.choice import Choice
from audiovq.config import VariationalConfig


@dataclass
class BottleneckOutput:
    """Result of a bottleneck's forward pass."""

    latents: Float[Tensor, "batch dim frames"]
    """What the decoder sees."""
    codes: Int[Tensor, "batch books frames"] | None
    """Codes, or None for a continuous bottleneck."""
    loss: Float[Tensor, ""]
    """The bottleneck's own loss, a mean over frames."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Scalars to log, without gradient."""
    log_prob: Float[Tensor, "batch frames"] | None = None
    """Log probability of what was sampled, for score-function estimators."""
    samples: int = 1
    """Samples S of each item. With more than one, the batch above is S times the batch of the input, sample after
    sample ("(s b)" in einops' terms), and whoever compares reconstructions repeats the reference S times."""


class Bottleneck(nn.Module):
    """Base of all bottlenecks.

    `encode` and `decode` are deterministic. All state lives in buffers or parameters, so that a checkpoint holds it.
    """

    num_codebooks: int = 0
    """Number of codebooks Q; 0 for a continuous bottleneck."""
    codebook_size: int = 0
    """Codes K in each codebook; 0 for a continuous bottleneck."""

    def forward(self, z: Float[Tensor, "batch dim frames"]) -> BottleneckOutput:
        raise NotImplementedError

    def encode(self, z: Float[Tensor, "batch dim frames"]) -> Int[Tensor, "batch books frames"]:
        """Latents to codes.

        Raises:
            NotImplementedError: the bottleneck is continuous and has no codes.
        """
        raise NotImplementedError(f"{type(self).__name__} is continuous: has no codes")

    def choice(self, z: Float[Tensor, "batch dim frames"]) -> Choice:
        """How `encode` chooses the codes of latents, frame after frame of one item after the other.

        Raises:
            NotImplementedError: the bottleneck is continuous and has no codes.
        """
        raise NotImplementedError(f"{type(self).__name__} is continuous: has no codes")

    def decode(self, codes: Int[Tensor, "batch books frames"]) -> Float[Tensor, "batch dim frames"]:
        """Codes to the latents that the decoder sees.

        Raises:
            NotImplementedError: the bottleneck is continuous and has no codes.
        """
        raise NotImplementedError(f"{type(self).__name__} is continuous: has no codes")

    def surrogate_loss(
        self, output: BottleneckOutput, reconstruction_loss: Float[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """A term to add to the training loss that brings the encoder the gradient of `reconstruction_loss.mean()`.

        Only for a bottleneck whose sampling cuts that gradient off. The term's value is zero, so that losses of all
        bottlenecks compare; its gradient reaches the encoder alone, never the decoder.

        Args:
            output: what `forward` returned.
            reconstruction_loss: loss of each item of `output.latents`, of each sample thus.
        """
        return reconstruction_loss.new_zeros(())

    def set_step(self, step: int) -> None:
        """Tell the training step, for schedules; called before each step's forward pass."""


class NoBottleneck(Bottleneck):
    """Latents pass unchanged: a plain autoencoder, the upper bound of what a bottleneck can keep."""

    def forward(self, z: Float[Tensor, "batch dim frames"]) -> BottleneckOutput:
        return BottleneckOutput(latents=z, codes=None, loss=z.new_zeros(()))


class VariationalBottleneck(Bottleneck):
    """Base of bottlenecks with a posterior q(z|x) and a prior p(z), whose KL divergence has a closed form.

    Training minimises R + w * KL(q(z|x) || p(z)): `loss` is the second term, in nats per frame, and R the
    reconstruction loss. With w = 1 and R the negative log-likelihood of a frame in nats this is the negative ELBO
    (Kingma & Welling, 2014, "Auto-Encoding Variational Bayes", eq. 3); otherwise w is the price of a nat, which
    chooses a point on the rate-distortion curve (Alemi et al., 2018, "Fixing a Broken ELBO").

    w rises linearly from 0 to `kl_weight` over `kl_warmup_steps` (Bowman et al., 2016, "Generating Sentences from
    a Continuous Space"). The weight `loss.bottleneck` of an experiment multiplies it.
    """

    step: Tensor

    def __init__(self, config: VariationalConfig):
        super().__init__()
        self._weight, self._warmup_steps = config.kl_weight, config.kl_warmup_steps
        self.register_buffer("step", torch.tensor(0))

    def set_step(self, step: int) -> None:
        self.step.fill_(step)

    def kl_weight(self) -> Float[Tensor, ""]:
        """The weight w of the KL divergence at the current step."""
        return self._weight * ((self.step + 1) / max(1, self._warmup_steps)).clamp(max=1)


def bits_per_second(nats_per_frame: float, frame_rate: float) -> float:
    """A rate or bound in nats per frame, in bits per second, for `frame_rate` frames a second."""
    return nats_per_frame / math.log(2) * frame_rate


def perplexity(counts: Shaped[Tensor, " codes"]) -> Float[Tensor, ""]:
    """exp of the entropy (in nats) of the distribution that counts or frequencies describe; 0 if all are zero."""
    counts = counts.double()
    p = counts / counts.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return torch.where(counts.sum() > 0, torch.special.entr(p).sum().exp(), 0.0)


def count_codes(codes: Int[Tensor, "*shape"], codebook_size: int) -> Int[Tensor, " codes"]:
    """How often each code occurs: [K]."""
    return torch.bincount(codes.flatten(), minlength=codebook_size)
