"""What every decoder gives: one interface, so that a recipe changes the decoder by its config alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from jaxtyping import Float, Int
from torch import Tensor, nn

from audiovq.nn.stream import Stream


@dataclass
class DecoderOutput:
    """What a decoder makes of latents in training."""

    wave: Float[Tensor, "batch 1 time"]
    """The reconstruction. Of a decoder that predicts the classes of samples: the likeliest value of each sample given
    the true samples before it, which tells what the network has learnt but is no reconstruction from the latents."""
    logits: Float[Tensor, "batch classes time"] | None = None
    """Of each sample's mu-law class given the true samples before it, if the decoder predicts classes."""
    terms: dict[str, Float[Tensor, " batch"]] = field(default_factory=dict)
    """Losses of each item that do not compare waves, such as that of the pitch."""

    @property
    def prediction(self) -> Tensor:
        """What the reconstruction loss compares with the true waveform."""
        return self.wave if self.logits is None else self.logits


class Decoder(nn.Module):
    """Base of all decoders.

    Shape:
        input [B, D, F]; output [B, 1, F * hop_length].
    """

    wants_pitch = False
    """Whether it is trained with the true pitch."""

    def pitch_times(self, num_frames: int, look_ahead: int) -> Int[Tensor, " hops"]:
        """Samples of the signal at which `reconstruct` wants to know the pitch, for so many frames of latents."""
        raise NotImplementedError(f"{type(self).__name__} is trained without the pitch")

    def reconstruct(
        self,
        latents: Float[Tensor, "batch dim frames"],
        wave: Float[Tensor, "batch 1 time"],
        speaker: Int[Tensor, " batch"] | None = None,
        f0: Float[Tensor, "batch hops"] | None = None,
    ) -> DecoderOutput:
        """What training compares with the true waveform of whole frames.

        Args:
            speaker: numbers of the speakers, for a decoder that is told who speaks.
            f0: true pitch in Hz, for a decoder that starts from a source.
        """
        return DecoderOutput(self(latents).float())

    def start(
        self, speaker: Int[Tensor, " #batch"] | None, seeds: Sequence[int]
    ) -> Callable[[Float[Tensor, "batch dim frames"]], Float[Tensor, "batch 1 time"]]:
        """A function that decodes latents piece by piece, in float32.

        Args:
            speaker: number of the speaker of each item, or of one for all, for a decoder that is told who speaks.
            seeds: of what is drawn, one for each item; a decoder that draws nothing passes over them.
        """
        stream = Stream()
        return lambda latents: self(latents, stream).float()
