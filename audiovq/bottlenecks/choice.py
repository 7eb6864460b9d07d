"""How codes are chosen, and which choices rounding could have made otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SCORES_PER_BLOCK = 2**23
"""Scores computed at a time, which bounds memory to 32 MiB for them: 8192 frames against 1024 codes."""
LATENT_ERROR = 64
"""How far a computed latent may be from the exact one, in units of its length and the precision of its numbers."""
SCORE_ERROR = 8
"""How far a computed score may be from the exact one of the same features, in units of the largest numbers that are
added to it and of their precision."""


@dataclass(frozen=True)
class Choice:
    """The code of features u is argmax_k (w_k . u + b_k), for each frame.

    Two computations of the same frame round differently when the frame stands in another batch or in a piece of
    another length. `near_ties` are the frames where that could give another code.
    """

    features: Float[Tensor, "frames dim"]
    """An affine function of the latents."""
    weight: Float[Tensor, "codes dim"]
    bias: Float[Tensor, " codes"]
    in_latents: Callable[[Tensor], Tensor]
    """Takes weights for features to weights for latents, the gradients of the scores with respect to a latent."""
    error: Float[Tensor, " frames"]
    """How far the latents may be from the exact ones."""

    @classmethod
    def of(
        cls,
        z: Float[Tensor, "batch latent_dim frames"],
        features: Float[Tensor, "batch dim frames"],
        weight: Float[Tensor, "codes dim"],
        bias: Float[Tensor, " codes"],
        in_latents: Callable[[Tensor], Tensor],
    ) -> Choice:
        """A choice by features of latents z, frame after frame of one item after the other."""
        error = LATENT_ERROR * torch.finfo(z.dtype).eps * z.norm(dim=1)
        return cls(features.mT.flatten(0, 1), weight, bias, in_latents, error.flatten())

    def codes(self) -> Int[Tensor, " frames"]:
        """The code with the highest score."""
        return torch.cat([scores.argmax(-1) for _, scores in self._scores()])

    def first_codes(self) -> Int[Tensor, " frames"]:
        """The first code whose score is the highest to within rounding, so that equal codes make no difference."""
        firsts = []
        for rows, scores in self._scores():
            tied = scores >= scores.max(-1, keepdim=True).values - self._rounding()[rows, None]
            firsts.append(tied.to(torch.uint8).argmax(-1))
        return torch.cat(firsts)

    def codes_and_near_ties(self) -> tuple[Int[Tensor, " frames"], Bool[Tensor, " frames"]]:
        """The code with the highest score, and whether rounding could have preferred another.

        Code j can be ahead in truth only if it is behind here by less than `error` times the difference of the two
        codes' weights for latents, and what the scores themselves may be off by.
        """
        found, ties = [], []
        latent_weight, rounding = self.in_latents(self.weight), self._rounding()
        longest = latent_weight.norm(dim=-1).max()
        for rows, scores in self._scores():
            best, codes = scores.max(-1)
            gaps = best[:, None] - scores
            gaps.scatter_(-1, codes[:, None], torch.inf)
            # No difference is longer than 2 * longest, which rules nearly all frames out.
            tied = gaps.min(-1).values < 2 * longest * self.error[rows] + rounding[rows]
            if tied.any():
                # By differences, since those of near codes are lost to rounding otherwise.
                chosen = latent_weight[codes[tied]]
                lengths = torch.cdist(chosen, latent_weight, compute_mode="donot_use_mm_for_euclid_dist")
                margins = gaps[tied] - lengths * self.error[rows][tied, None]
                tied[tied.clone()] = margins.min(-1).values < rounding[rows][tied]
            found.append(codes)
            ties.append(tied)
        return torch.cat(found), torch.cat(ties)

    def _rounding(self) -> Float[Tensor, " frames"]:
        """How far scores may be from the exact ones of the same features."""
        largest = self.features.norm(dim=-1) * self.weight.norm(dim=-1).max() + self.bias.abs().max()
        return SCORE_ERROR * torch.finfo(self.features.dtype).eps * largest

    def _scores(self) -> Iterator[tuple[slice, Float[Tensor, "rows codes"]]]:
        """Scores of some frames, and which those are, in blocks to bound memory."""
        size = max(1, SCORES_PER_BLOCK // len(self.weight))
        for first in range(0, len(self.features), size):
            rows = slice(first, first + size)
            yield rows, torch.addmm(self.bias, self.features[rows], self.weight.mT)
