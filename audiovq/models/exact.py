"""Codes that do not depend on rounding: where float32 cannot be trusted, double precision decides."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from audiovq.devices import full_float32
from audiovq.models.autoencoder import Autoencoder
from audiovq.nn.stream import Excerpt

PROBE_SECONDS = 1.28
"""Length of the signal that shows how far latents are off."""
SAFETY = 2
"""How many times larger the errors of latents may be than the largest that a probe shows."""


class ExactCodes:
    """Finds the frames whose codes rounding could have changed, and encodes them again, on the CPU.

    A frame whose two best codes are nearly as good would get one or the other by how its numbers were rounded, which
    changes with the size of the batch, the length of the piece, the threads and the device. In double precision that
    is some hundred million times as rare.

    How far float32 may be off depends on the network and its weights: a probe signal, encoded in both, tells it.
    """

    def __init__(self, model: Autoencoder, sample_rate: int, device: torch.device):
        self._encoder = copy.deepcopy(model.encoder).to("cpu", torch.float64)
        self._bottleneck = copy.deepcopy(model.bottleneck).to("cpu", torch.float64)
        self.reach = model.encoder.reach
        """Frames of features that the code of a frame depends on, its own among them."""
        wave = model.whole_frames(probe(sample_rate))
        with torch.inference_mode(), full_float32():
            exact, computed = self._encoder(wave.double()), model.encoder(wave.to(device)).cpu()
        error = (computed - exact).norm(dim=1) / exact.norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
        self.latent_error = SAFETY * float(error.max())
        """How far a computed latent may be from the exact one, as a share of its length."""

    def near_ties(
        self, latents: Float[Tensor, "batch dim frames"], margin: Float[Tensor, "batch frames"]
    ) -> Bool[Tensor, "batch frames"]:
        """The frames whose margin is within what their latents may be off by."""
        return margin < self.latent_error * latents.mT.norm(dim=-1)

    def settle(
        self,
        codes: Int[Tensor, "batch books frames"],
        near_ties: Bool[Tensor, "batch frames"],
        features: Float[Tensor, "batch frames2 features"],
    ) -> None:
        """Replace the codes of near ties.

        Args:
            features: what the encoder's front gave of frames, of which the last are those of the codes; before them, as
                many as there are in the whole signal, or `self.reach`.
        """
        before = features.shape[1] - codes.shape[-1]
        latents = [
            self._latents(features[item : item + 1], before + int(span[0]), before + int(span[-1]))[..., span - span[0]]
            for item, tied in enumerate(near_ties)
            for span in _spans(tied.nonzero().flatten(), self.reach)
        ]
        settled, _ = self._bottleneck.encode(torch.cat(latents, -1), codes.shape[1])
        items, frames = near_ties.nonzero(as_tuple=True)
        codes[items, :, frames] = settled[0].mT

    def _latents(
        self, features: Float[Tensor, "1 frames features"], first: int, last: int
    ) -> Float[Tensor, "1 dim frames2"]:
        """Exact latents of frames, the last one included."""
        begin = max(0, first + 1 - self.reach)
        piece = features[:, begin : last + 1].to("cpu", torch.float64)
        return self._encoder.rest(piece, Excerpt() if begin else None)[..., first - last - 1 :]


def probe(sample_rate: int) -> Float[Tensor, "1 1 time"]:
    """Pulses and noise whose levels sweep over all that speech has, with silence at both ends."""
    samples = round(PROBE_SECONDS * sample_rate)
    noise = torch.randn(samples, generator=torch.Generator().manual_seed(0))
    level = torch.logspace(-5, 0, samples) * (torch.arange(samples) % (samples // 4) > samples // 16)
    pulses = torch.sin(2 * torch.pi * torch.linspace(80, 300, samples).cumsum(0) / sample_rate).pow(15)
    return (level * (0.1 * noise + 0.5 * pulses))[None, None]


def _spans(frames: Int[Tensor, " frames"], reach: int) -> Sequence[Int[Tensor, " frames2"]]:
    """Frames in groups that are computed together, those of each less than `reach` apart."""
    return frames.tensor_split((frames.diff() >= reach).nonzero().flatten() + 1) if len(frames) else ()
