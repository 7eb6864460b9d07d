"""What every encoder gives: one interface, so that a recipe changes the encoder by its config alone."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from audiovq.nn.stream import Stream


class Encoder(nn.Module):
    """Base of all encoders: waveform to latents, in two parts.

    In evaluation `front` is exact to double precision; it may do nothing. Latents whose last digits matter are
    computed again from what it gave.

    Shape:
        input [B, 1, F * hop_length]; output [B, D, F].
    """

    @property
    def receptive_field(self) -> int:
        """Samples that a frame depends on: its own and those before it."""
        raise NotImplementedError

    @property
    def reach(self) -> int:
        """Frames of what `front` gives that a latent depends on: its own and those before it."""
        raise NotImplementedError

    def front(
        self, wave: Float[Tensor, "batch 1 time"], stream: Stream | None = None
    ) -> Float[Tensor, "batch frames features"]:
        """Features of frames."""
        raise NotImplementedError

    def rest(
        self, features: Float[Tensor, "batch frames features"], stream: Stream | None = None
    ) -> Float[Tensor, "batch dim frames2"]:
        """Latents of frames."""
        raise NotImplementedError

    def forward(
        self, wave: Float[Tensor, "batch 1 time"], stream: Stream | None = None
    ) -> Float[Tensor, "batch dim frames"]:
        return self.rest(self.front(wave, stream), stream)
