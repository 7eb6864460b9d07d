"""Adversarial losses of discriminators and of the network that they judge.

Each takes one tensor a discriminator (scores), or a list of them (features), and gives a scalar: a mean over the
discriminators, so that a weight means the same with any number of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from audiovq.config import AdversarialKind
from audiovq.distributed import mean_over_processes

LEAST = 1e-3
"""Features of a smaller mean magnitude than this count as this large, when distances are taken relative to it."""
TINY = 1e-12
"""A gradient of a smaller norm than this counts as this large, when it is divided by it."""


def discriminator_loss(
    true: Sequence[Tensor], decoded: Sequence[Tensor], kind: AdversarialKind = "hinge"
) -> Float[Tensor, ""]:
    """The loss of discriminators D, given their scores of true waves x and of decoded waves y.

    - `hinge`: E[max(0, 1 - D(x))] + E[max(0, 1 + D(y))] (Lim and Ye, 2017, "Geometric GAN"; as in EnCodec).
    - `least_squares`: E[(D(x) - 1)^2] + E[D(y)^2] (Mao et al., 2017, "Least Squares GAN"; HiFi-GAN, eq. 1).

    The decoded waves are to be detached before they are scored.
    """
    if kind == "hinge":
        return _mean([(1 - x).relu().mean() + (1 + y).relu().mean() for x, y in zip(true, decoded, strict=True)])
    return _mean([(x - 1).square().mean() + y.square().mean() for x, y in zip(true, decoded, strict=True)])


def generator_loss(decoded: Sequence[Tensor], kind: AdversarialKind = "hinge") -> Float[Tensor, ""]:
    """The loss of the network that decoded waves y, given the discriminators' scores of them.

    - `hinge`: E[max(0, 1 - D(y))] (Défossez et al., 2022, "High Fidelity Neural Audio Compression", section 3.4).
    - `least_squares`: E[(D(y) - 1)^2] (HiFi-GAN, eq. 2).
    """
    if kind == "hinge":
        return _mean([(1 - y).relu().mean() for y in decoded])
    return _mean([(y - 1).square().mean() for y in decoded])


def feature_matching_loss(true: Sequence[Sequence[Tensor]], decoded: Sequence[Sequence[Tensor]]) -> Float[Tensor, ""]:
    """Distance of the features of decoded waves from those of the true ones, relative to the latter's size.

    mean |f(x) - f(y)| / mean |f(x)|, averaged over layers and discriminators (Défossez et al., 2022, eq. 2). Features
    of the true waves are detached.
    """
    distances = [
        (x.detach().float() - y.float()).abs().mean() / x.detach().float().abs().mean().clamp(min=LEAST)
        for xs, ys in zip(true, decoded, strict=True)
        for x, y in zip(xs, ys, strict=True)
    ]
    return _mean(distances)


class GradientBalancer(nn.Module):
    """Gives losses' gradients at a network's output sizes in the ratio of their weights, whatever their own scales.

    The gradient is sum_i (w_i / sum_j w_j) g_i / <|g_i|>, where g_i is that of loss i and <> an exponential moving
    average over steps (Défossez et al., 2022, section 3.4, with R = 1).
    """

    norms: Tensor
    seen: Tensor

    def __init__(self, weights: Mapping[str, float], decay: float = 0.999):
        super().__init__()
        self.shares = {name: weight / sum(weights.values()) for name, weight in weights.items()}
        self.decay = decay
        self.register_buffer("norms", torch.zeros(len(weights)))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, losses: Mapping[str, Tensor], output: Tensor) -> Tensor:
        """The balanced gradient at `output`, of which each loss is a function; their graphs are kept."""
        gradients = [torch.autograd.grad(losses[name], output, retain_graph=True)[0] for name in self.shares]
        found = mean_over_processes(torch.stack([gradient.norm() for gradient in gradients]))
        self.norms.lerp_(found, 1 - self.decay)
        self.seen.lerp_(torch.ones_like(self.seen), 1 - self.decay)
        # `seen` makes up for the zeros from which the average started.
        means = (self.norms / self.seen).clamp(min=TINY).unbind()
        triples = zip(self.shares.values(), gradients, means, strict=True)
        return torch.stack([share * gradient / mean for share, gradient, mean in triples]).sum(0)


def _mean(losses: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(losses)).mean()
