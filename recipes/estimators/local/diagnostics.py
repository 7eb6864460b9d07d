"""Does the decoder use its latents? Figures of posterior collapse, for every bottleneck, over a whole set.

All take a bottleneck in evaluation. What enters them are the latents of all frames of a set, joined to one
[1, D, N]: a bottleneck treats every frame alike, and a small batch would bound perplexity and information.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from audiovq.bottlenecks.base import Bottleneck, count_codes, perplexity
from audiovq.bottlenecks.categorical import CategoricalBottleneck, uniform_kl
from audiovq.bottlenecks.gaussian import GaussianBottleneck, gaussian_kl
from audiovq.bottlenecks.reinforce import draw_codes

ACTIVE = 0.01
"""Variance over the data of a dimension's posterior mean from which on the dimension is active."""
MOST_FRAMES = 4096
"""Frames from which a Gaussian aggregate posterior is estimated; it takes time with their square."""
BLOCK = 256
"""Frames that are compared with all others at a time, which bounds memory."""


@dataclass(frozen=True)
class Usage:
    """What the posteriors of a set of frames hold; None where a bottleneck has no such thing."""

    frames: int
    kl: float | None
    """KL divergence to the prior in nats per frame. Of `vq` this is log K by construction, whatever the encoder
    does: its posterior is a single code, its prior uniform. It says nothing about collapse there."""
    kl_per_dimension: list[float] | None
    """The same for each dimension of a Gaussian z, largest first."""
    active_units: int | None
    """Dimensions of a Gaussian z that are active."""
    information: float | None
    """Mutual information of frame and latent in nats, under the aggregate posterior of these frames. None for `none`,
    whose latents are exact copies."""
    information_ceiling: float | None
    """The largest value that `information` can take: log K, or log N for an estimate from N Gaussian posteriors."""
    perplexity: float | None
    """exp of the entropy of the codes that evaluation takes."""
    codes_used: int | None
    """Codes that occur."""


@dataclass(frozen=True)
class Gap:
    """Loss of reconstructions from true and from wrong latents: the difference is what the decoder takes from them."""

    true: float
    shuffled: float
    """With the latents of another stretch of the set: those of all utterances in a row, shifted by half of them."""
    constant: float
    """With one latent for all frames: that of the most frequent code, or without codes the mean."""

    @property
    def gap(self) -> float:
        """How much worse the shuffled latents are; 0 if the decoder ignores them."""
        return self.shuffled - self.true


@torch.no_grad()
def usage(bottleneck: Bottleneck, z: Float[Tensor, "1 dim frames"]) -> Usage:
    """Figures of the posteriors of all frames of a set."""
    frames = z.shape[-1]
    if isinstance(bottleneck, GaussianBottleneck):
        mean, log_variance = (x[0] for x in bottleneck.posterior(z))
        kl = gaussian_kl(mean, log_variance).mean(0)
        chosen = torch.arange(min(frames, MOST_FRAMES)) * frames // min(frames, MOST_FRAMES)
        return Usage(
            frames=frames,
            kl=float(kl.sum()),
            kl_per_dimension=kl.sort(descending=True).values.tolist(),
            active_units=active_units(mean),
            information=gaussian_information(mean[chosen], log_variance[chosen]),
            information_ceiling=math.log(len(chosen)),
            perplexity=None,
            codes_used=None,
        )
    if not bottleneck.num_codebooks:
        return Usage(frames, None, None, None, None, None, None, None)
    counts = count_codes(bottleneck.encode(z)[0], bottleneck.codebook_size)[0]
    size = float(perplexity(counts))
    if isinstance(bottleneck, CategoricalBottleneck):
        log_q = bottleneck.log_posterior(z)[0]
        kl, information = float(uniform_kl(log_q).mean()), categorical_information(log_q)
    else:
        kl, information = math.log(bottleneck.codebook_size), math.log(size)
    ceiling = math.log(bottleneck.codebook_size)
    return Usage(frames, kl, None, None, information, ceiling, size, int((counts > 0).sum()))


@torch.no_grad()
def drawn(bottleneck: Bottleneck, z: Float[Tensor, "1 dim frames"]) -> Float[Tensor, "1 dim frames"]:
    """What the decoder sees of a sample of the posterior."""
    if isinstance(bottleneck, GaussianBottleneck):
        mean, log_variance = bottleneck.posterior(z)
        return bottleneck.project_out(mean + (0.5 * log_variance).exp() * torch.randn_like(mean)).mT
    assert isinstance(bottleneck, CategoricalBottleneck)
    return bottleneck.decode(draw_codes(bottleneck.log_posterior(z))[:, None])


def active_units(mean: Float[Tensor, "frames dim"]) -> int:
    """Dimensions j with Var_x(E_q[z_j|x]) > 0.01 (Burda et al., 2016, "Importance Weighted Autoencoders", sec. 5.2)."""
    return int((mean.var(0, correction=0) > ACTIVE).sum())


def categorical_information(log_q: Float[Tensor, "frames codes"]) -> float:
    """Mutual information I(x; k) in nats: H(mean over x of q(k|x)) - mean over x of H(q(k|x)); exact for these x."""
    q = log_q.double().exp()
    return float(torch.special.entr(q.mean(0)).sum() - torch.special.entr(q).sum(-1).mean())


def gaussian_information(
    mean: Float[Tensor, "frames dim"], log_variance: Float[Tensor, "frames dim"], seed: int = 0
) -> float:
    """Mutual information I(x; z) in nats, by one sample z_n of each posterior and the mixture of them all:

        mean over n of (log q(z_n|x_n) - log (1/N sum_m q(z_n|x_m)))

    the index-code information of Hoffman & Johnson, 2016, "ELBO surgery". It cannot exceed log N.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(mean.shape, generator=generator, dtype=torch.float64).to(mean.device)
    mean, log_variance = mean.double(), log_variance.double()
    z = mean + (0.5 * log_variance).exp() * noise
    own = log_normal(z, mean, log_variance)
    mixture = torch.cat([log_normal(part[:, None], mean, log_variance).logsumexp(1) for part in z.split(BLOCK)])
    return float((own - mixture).mean() + math.log(len(mean)))


def log_normal(
    z: Float[Tensor, "*shape dim"], mean: Float[Tensor, "*#shape2 dim"], log_variance: Float[Tensor, "*#shape2 dim"]
) -> Float[Tensor, "*shape3"]:
    """log N(z; mean, diag variance), summed over the last axis."""
    squared = (z - mean).square() * (-log_variance).exp()
    return -0.5 * (squared + log_variance + math.log(2 * math.pi)).sum(-1)


@torch.no_grad()
def latent_gap(
    bottleneck: Bottleneck,
    latents: Sequence[Float[Tensor, "1 dim _"]],
    loss: Callable[[int, Float[Tensor, "1 dim _"]], float],
) -> Gap:
    """Mean loss over utterances with true, shuffled and constant latents.

    Args:
        latents: what the encoder makes of each utterance.
        loss: loss of an utterance, by its number, when the decoder sees these latents of its length.
    """
    lengths = [z.shape[-1] for z in latents]
    z = torch.cat(list(latents), dim=-1)
    true = bottleneck(z).latents

    def mean_loss(changed: Tensor) -> float:
        losses = [loss(number, part) for number, part in enumerate(changed.split(lengths, dim=-1))]
        return sum(losses) / len(losses)

    return Gap(
        true=mean_loss(true),
        shuffled=mean_loss(true.roll(true.shape[-1] // 2, dims=-1)),
        constant=mean_loss(typical(bottleneck, z).expand_as(true)),
    )


def typical(bottleneck: Bottleneck, z: Float[Tensor, "1 dim frames"]) -> Float[Tensor, "1 dim 1"]:
    """The latent of the most frequent code or, of a bottleneck without codes, the mean of what the decoder sees."""
    if not bottleneck.num_codebooks:
        return bottleneck(z).latents.mean(-1, keepdim=True)
    counts: Int[Tensor, " codes"] = count_codes(bottleneck.encode(z)[0], bottleneck.codebook_size)[0]
    return bottleneck.decode(counts.argmax().view(1, 1, 1))
