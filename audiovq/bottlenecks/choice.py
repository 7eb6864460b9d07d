"""Choosing the best of many codes, and how sure a choice is.

Two computations of the same frame round differently when the frame stands in another batch or in a piece of another
length. The *margin* of a choice tells whether that could matter: how far the latent has to move, at least, before
another code is the best.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

SCORES_PER_BLOCK = 2**18
"""Scores computed at a time, which a processor's cache holds: 256 frames against 1024 codes."""
SCORE_ERROR = 8
"""How far a computed score may be from the exact one of the same features, in units of the largest numbers that are
added to it and of their precision."""
SMALL = 64
"""Margins are exact up to this many units, a unit being the latent's length times the precision of its numbers."""


def choose(
    z: Float[Tensor, "batch latent_dim frames"],
    features: Float[Tensor, "batch dim frames"],
    weight: Float[Tensor, "codes dim"],
    bias: Float[Tensor, " codes"],
    latent_weight: Float[Tensor, "codes latent_dim"],
    scale: Float[Tensor, "batch frames"] | None = None,
) -> tuple[Int[Tensor, "batch frames"], Float[Tensor, "batch frames"]]:
    """Codes argmax_k (w_k . u + b_k) of features u, and their margins.

    If code k is ahead of j by a gap g, a latent has to move by g / || v_k - v_j || before j is ahead, where v are the
    weights of the scores in terms of latents. The margin is the least of these over j, less what the scores may be off
    by. Of codes that are equally good to within rounding the first is taken, so that equal codes make no difference.

    Args:
        z: latents.
        features: an affine function of the latents.
        latent_weight: gradients v_k of the scores with respect to a latent.
        scale: length in units of which margins count as small; None: that of `z`.
    """
    u = features.mT.flatten(0, 1)
    finfo = torch.finfo(z.dtype)
    small = SMALL * finfo.eps * (z.norm(dim=1) if scale is None else scale).flatten()
    rounding = SCORE_ERROR * finfo.eps * (u.norm(dim=-1) * weight.norm(dim=-1).max() + bias.abs().max())
    # No difference of weights is longer than this.
    longest = (2 * latent_weight.norm(dim=-1).max()).clamp(min=finfo.tiny)
    codes, margin = torch.empty(len(u), dtype=torch.long, device=z.device), torch.empty_like(small)
    size = max(1, SCORES_PER_BLOCK // len(weight))
    if torch.compiler.is_exporting():  # A graph takes the same steps whatever the values; this bound has to do.
        (best, second), (indices, _) = (pair.unbind(-1) for pair in torch.addmm(bias, u, weight.mT).topk(2))
        codes, margin = indices, (best - second - rounding) / longest
        return codes.view(z.shape[0], -1), margin.view(z.shape[0], -1)
    for first in range(0, len(u), size):
        rows = slice(first, first + size)
        scores = torch.addmm(bias, u[rows], weight.mT)
        best, codes[rows] = scores.max(-1)
        scores.scatter_(-1, codes[rows, None], -torch.inf)
        margin[rows] = (best - scores.max(-1).values - rounding[rows]) / longest
    # The bound above rules nearly all frames out.
    near = (margin < small).nonzero().squeeze(-1)
    for rows in near.split(size):
        scores = torch.addmm(bias, u[rows], weight.mT)
        lead = scores - (scores.max(-1, keepdim=True).values - rounding[rows, None])
        codes[rows] = (lead >= 0).to(torch.uint8).argmax(-1)
        # By differences, since those of near codes are lost to rounding otherwise.
        chosen = latent_weight[codes[rows]]
        lengths = torch.cdist(chosen, latent_weight, compute_mode="donot_use_mm_for_euclid_dist")
        needed = (scores.gather(-1, codes[rows, None]) - scores - rounding[rows, None]) / lengths.clamp(min=finfo.tiny)
        margin[rows] = needed.scatter(-1, codes[rows, None], torch.inf).min(-1).values
    return codes.view(z.shape[0], -1), margin.view(z.shape[0], -1)
