"""Choosing the best of many codes, and how sure a choice is.

Two computations of the same frame round differently when the frame stands in another batch or in a piece of another
length. The *margin* of a choice tells whether that could matter: how far the latent has to move, at least, before
another code is the best.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from audiovq.nn.linear import Derived, linear

SCORES_PER_BLOCK = 2**18
"""Scores computed at a time, which a processor's cache holds: 256 frames against 1024 codes."""
DIFFERENCES_PER_BLOCK = 2**22
"""Differences of weights computed at a time."""
SCORE_ERROR = 8
"""How far a computed score may be from the exact one of the same features, in units of the largest numbers that are
added to it and of their precision."""
SMALL = 64
"""Margins are exact up to this many units, a unit being the latent's length times the precision of float32."""


class Scores:
    """Scores w_k . u + b_k of codes k.

    Args:
        weight: w.
        bias: b.
        latent_weight: gradients v_k of the scores with respect to a latent, of which u is an affine function.
    """

    def __init__(
        self,
        weight: Float[Tensor, "codes dim"],
        bias: Float[Tensor, " codes"],
        latent_weight: Float[Tensor, "codes latent_dim"],
    ):
        self.weight, self.bias, self.latent_weight = weight, bias, latent_weight
        self._rough_weight, self._rough_bias, self._packed = weight.float(), bias.float(), Derived()
        self._largest_weight, self._largest_bias = weight.norm(dim=-1).max(), bias.abs().max()
        # No difference of weights is longer than this.
        self.longest = (2 * latent_weight.norm(dim=-1).max()).clamp(min=torch.finfo(weight.dtype).tiny)

    def __call__(self, u: Float[Tensor, "frames dim"]) -> Float[Tensor, "frames codes"]:
        """The scores in the precision of u and the weights."""
        return torch.addmm(self.bias, u, self.weight.mT)

    def roughly(self, u: Float[Tensor, "frames dim"]) -> Float[Tensor, "frames codes"]:
        """The scores in float32."""
        return linear(u.float(), self._rough_weight, self._rough_bias, self._packed)

    def rounding(self, u: Float[Tensor, "frames dim"], dtype: torch.dtype) -> Float[Tensor, " frames"]:
        """How far scores may be off that are computed in numbers of a type."""
        unit = SCORE_ERROR * torch.finfo(dtype).eps
        return unit * (u.norm(dim=-1) * self._largest_weight + self._largest_bias)


def choose(
    z: Float[Tensor, "batch latent_dim frames"],
    features: Float[Tensor, "batch frames dim"],
    scores: Scores,
    scale: Float[Tensor, "batch frames"] | None = None,
) -> tuple[Int[Tensor, "batch frames"], Float[Tensor, "batch frames"]]:
    """Codes argmax_k (w_k . u + b_k) of features u, and their margins.

    If code k is ahead of j by a gap g, a latent has to move by g / || v_k - v_j || before j is ahead, where v are the
    weights of the scores in terms of latents. The margin is the least of these over j, less what the scores may be off
    by. Of codes that are equally good to within rounding the first is taken, so that equal codes make no difference.

    Args:
        z: latents.
        features: an affine function of the latents.
        scale: length in units of which margins count as small; None: that of `z`.
    """
    u = features.flatten(0, 1)
    scale = z.mT.norm(dim=-1) if scale is None else scale
    small = (SMALL * torch.finfo(torch.float32).eps * scale).flatten()
    if torch.compiler.is_exporting():  # A graph takes the same steps whatever the values; this bound has to do.
        (best, second), (codes, _) = (pair.unbind(-1) for pair in scores.roughly(u).topk(2))
        margin = (best - second - scores.rounding(u, torch.float32)) / scores.longest
        return codes.view(z.shape[0], -1), margin.view(z.shape[0], -1)
    size = max(1, SCORES_PER_BLOCK // len(scores.weight))
    found = [_best_two(scores.roughly(block)) for block in u.split(size)]
    best, codes, second = (torch.cat(parts) for parts in zip(*found, strict=True))
    margin = (best - second - scores.rounding(u, torch.float32)) / scores.longest
    # The bound above rules nearly all frames out.
    near = (margin < small).nonzero().squeeze(-1)
    for rows in near.split(max(1, DIFFERENCES_PER_BLOCK // scores.latent_weight.numel())) if len(near) else ():
        codes[rows], margin[rows] = _choose_closely(scores, u[rows], small[rows].to(u.dtype))
    return codes.view(z.shape[0], -1), margin.view(z.shape[0], -1)


def _best_two(
    scores: Float[Tensor, "frames codes"],
) -> tuple[Float[Tensor, " frames"], Int[Tensor, " frames"], Float[Tensor, " frames"]]:
    """The highest score, its number, and the second highest score; of what is given the highest are lost."""
    if scores.device.type == "cpu" and scores.dtype == torch.float32:
        # Where a maximum stands takes PyTorch much longer to find than its value, and NumPy does not.
        number = torch.from_numpy(scores.detach().numpy().argmax(-1))
    else:
        number = scores.argmax(-1)
    best = scores.gather(-1, number[:, None]).squeeze(-1)
    return best, number, scores.scatter_(-1, number[:, None], -torch.inf).amax(-1)


def _choose_closely(
    scores: Scores, u: Float[Tensor, "frames dim"], small: Float[Tensor, " frames"]
) -> tuple[Int[Tensor, " frames"], Float[Tensor, " frames"]]:
    """The first of the codes that are equally good, and margins that are exact up to `small`."""
    values, rounding = scores(u), scores.rounding(u, u.dtype)[:, None]
    codes = (values >= values.amax(-1, keepdim=True) - rounding).to(torch.uint8).argmax(-1)
    gap = values.gather(-1, codes[:, None]) - values - rounding
    gap.scatter_(-1, codes[:, None], torch.inf)
    frame, other = (gap < small[:, None] * scores.longest).nonzero(as_tuple=True)
    # By differences, since those of near codes are lost to rounding otherwise.
    lengths = (scores.latent_weight[codes[frame]] - scores.latent_weight[other]).norm(dim=-1)
    needed = gap[frame, other] / lengths.clamp(min=torch.finfo(u.dtype).tiny)
    return codes, small.scatter_reduce(0, frame, needed, "amin")
