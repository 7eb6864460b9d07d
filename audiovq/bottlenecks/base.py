"""What every bottleneck gives: one interface, so that a recipe changes the bottleneck by its config alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from audiovq.config import AutoencoderConfig, VariationalConfig
from audiovq.distributed import sum_over_processes

USAGE_DECAY = 0.99
"""Decay of the moving average of code usage, whose perplexity is logged: a batch has too few frames for that."""


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
    first: Float[Tensor, "batch dim frames"] | None = None
    """What the decoder would see of the first codebook alone, with its gradient; None where there are not several."""


class Bottleneck(nn.Module):
    """Base of all bottlenecks.

    `encode` and `decode` are deterministic. All state lives in buffers or parameters, so that a checkpoint holds it.
    A class says by `of(config)` how it is built for a model.
    """

    codebook_sizes: tuple[int, ...] = ()
    """Codes K in each of the Q codebooks; empty for a continuous bottleneck."""

    @property
    def num_codebooks(self) -> int:
        """Number of codebooks Q; 0 for a continuous bottleneck."""
        return len(self.codebook_sizes)

    @property
    def codebook_size(self) -> int:
        """Codes K in the largest codebook; 0 for a continuous bottleneck."""
        return max(self.codebook_sizes, default=0)

    def forward(self, z: Float[Tensor, "batch dim frames"]) -> BottleneckOutput:
        raise NotImplementedError

    def encode(
        self, z: Float[Tensor, "batch dim frames"], num_codebooks: int | None = None
    ) -> tuple[Int[Tensor, "batch books frames"], Float[Tensor, "batch frames"]]:
        """Codes of latents in the first `num_codebooks` codebooks (None: all), and their margins.

        The margin of a frame is how far its latent has to move, at least, before one of its codes is another. It is
        exact where it is small, and else a lower bound; see `audiovq.bottlenecks.choice`. It may be negative, if
        rounding alone could have made another choice.

        Raises:
            NotImplementedError: the bottleneck is continuous and has no codes.
        """
        raise NotImplementedError(f"{type(self).__name__} is continuous: has no codes")

    def decode(self, codes: Int[Tensor, "batch books frames"]) -> Float[Tensor, "batch dim frames"]:
        """Codes, of all codebooks or the first few, to the latents that the decoder sees.

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

    def settle(self, z: Float[Tensor, "batch dim frames"]) -> None:
        """Take codes that are means of latents from these latents. Statistics of training stay as they are."""

    def hold_statistics(self) -> None:
        """Go on in training as a frozen part: nothing in it changes, but the decoder sees what training shows it."""
        self.eval()

    def set_step(self, step: int) -> None:
        """Tell the training step, for schedules; called before each step's forward pass."""


class Quantizer(Bottleneck):
    """Base of bottlenecks that look codes up and may be a level of a residual one."""

    def choose(
        self, z: Float[Tensor, "batch dim frames"], scale: Float[Tensor, "batch frames"] | None = None
    ) -> tuple[Int[Tensor, "batch books frames"], Float[Tensor, "batch books frames"]]:
        """Codes of latents and the margin of each.

        Args:
            scale: length of the latents of which `z` is what other levels left, since rounding is in proportion to
                it; None: `z` is not a rest.
        """
        raise NotImplementedError

    def encode(
        self, z: Float[Tensor, "batch dim frames"], num_codebooks: int | None = None
    ) -> tuple[Int[Tensor, "batch books frames"], Float[Tensor, "batch frames"]]:
        codes, margins = self.choose(z)
        return codes[:, :num_codebooks], margins[:, :num_codebooks].amin(1)

    def rest(
        self, z: Float[Tensor, "batch dim frames"], codes: Int[Tensor, "batch books frames"]
    ) -> Float[Tensor, "batch dim frames"]:
        """What codes leave of latents, for the next level."""
        return z - self.decode(codes)


class NoBottleneck(Bottleneck):
    """Latents pass unchanged: a plain autoencoder, the upper bound of what a bottleneck can keep."""

    @classmethod
    def of(cls, _: AutoencoderConfig) -> NoBottleneck:
        return cls()

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


def perplexity(counts: Shaped[Tensor, "*books codes"]) -> Float[Tensor, "*books"]:
    """exp of the entropy (in nats) of the distributions that counts or frequencies describe; 0 where all are zero."""
    counts = counts.double()
    total = counts.sum(-1, keepdim=True)
    entropy = torch.special.entr(counts / total.clamp(min=torch.finfo(torch.float64).tiny)).sum(-1)
    return torch.where(total.squeeze(-1) > 0, entropy.exp(), 0.0)


def count_codes(codes: Int[Tensor, "batch books frames"], codebook_size: int) -> Int[Tensor, "books codes"]:
    """How often each code occurs in each codebook: [Q, K]."""
    return torch.stack([count_indices(book.flatten(), codebook_size) for book in codes.unbind(1)])


def count_indices(indices: Int[Tensor, " indices"], size: int) -> Int[Tensor, " size"]:
    """How often each number from 0 to `size` - 1 occurs; `torch.bincount` would wait for the device."""
    return indices.new_zeros(size).index_add_(0, indices, torch.ones_like(indices))


@torch.no_grad()
def update_usage(usage: Float[Tensor, "books codes"], codes: Int[Tensor, "batch books frames"]) -> None:
    """Let the moving averages `usage` follow the shares of the codes in a batch, over all processes."""
    counts = sum_over_processes(count_codes(codes, usage.shape[-1]).to(usage.dtype))
    usage.lerp_(counts / counts.sum(-1, keepdim=True), 1 - USAGE_DECAY)
