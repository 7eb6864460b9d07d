"""Near ties between codes, settled in double precision."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from audiovq.models.autoencoder import Autoencoder


class TieBreaker:
    """Chooses codes where float32 cannot be trusted to, from the samples that they depend on, on the CPU.

    A frame whose two best codes are nearly as good would get one or the other by how its numbers were rounded, which
    changes with the size of the batch, the length of the piece, the threads and the device. In double precision that
    is some hundred million times as rare.
    """

    def __init__(self, model: Autoencoder):
        self._encoder = copy.deepcopy(model.encoder).to("cpu", torch.float64)
        self._bottleneck = copy.deepcopy(model.bottleneck).to("cpu", torch.float64)
        self._hop = model.hop_length
        self.frames = -(-model.encoder.receptive_field // model.hop_length)
        """Frames of signal that the code of a frame depends on, its own among them."""

    def settle(
        self,
        codes: Int[Tensor, "batch books frames"],
        near_ties: Bool[Tensor, "batch frames"],
        signal: Float[Tensor, "batch 1 time"],
    ) -> None:
        """Replace the codes of near ties.

        Args:
            signal: whole frames, of which the last are those of the codes; before them, as many as there are in the
                whole signal, or `self.frames`.
        """
        before = signal.shape[-1] // self._hop - codes.shape[-1]
        for item in near_ties.any(-1).nonzero().flatten().tolist():
            tied = near_ties[item].nonzero().flatten()
            for first, last in _spans(tied.tolist(), self.frames):
                begin, end = max(0, first + before + 1 - self.frames), last + before + 1
                latents = self._encoder(signal[item : item + 1, :, begin * self._hop : end * self._hop].double())
                settled = self._bottleneck.choice(latents[..., first - last - 1 :]).first_codes()
                chosen = tied[(first <= tied) & (tied <= last)]
                codes[item, :, chosen] = settled[chosen - first]


def _spans(frames: list[int], reach: int) -> Iterator[tuple[int, int]]:
    """First and last of frames that are less than `reach` apart, which are computed together."""
    first = last = frames[0]
    for frame in frames[1:]:
        if frame - last >= reach:
            yield first, last
            first = frame
        last = frame
    yield first, last
