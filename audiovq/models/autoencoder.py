"""The autoencoder: encoder, bottleneck, decoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from audiovq.bottlenecks.base import Bottleneck, BottleneckOutput
from audiovq.config import AutoencoderConfig
from audiovq.nn.decoder import Decoder, DecoderOutput


@dataclass(kw_only=True)
class AutoencoderOutput(DecoderOutput):
    """Result of a forward pass."""

    bottleneck: BottleneckOutput


class Autoencoder(nn.Module):
    """Waveform -> latents -> bottleneck -> latents -> waveform.

    Encoder and decoder are causal. They *look ahead* by a delay and nothing else: with a look-ahead of a frames, what
    the network gives for frame t + a is taken for frame t.
    """

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.hop_length = config.hop_length
        self.delay = Delay(config.encoder.look_ahead, config.hop_length)
        self.look_ahead = config.decoder.look_ahead
        self.encoder = config.encoder.build(config)
        self.bottleneck: Bottleneck = config.bottleneck.build(config)
        self.decoder: Decoder = config.decoder.build(config)

    def forward(
        self,
        wave: Float[Tensor, "batch 1 time"],
        speaker: Int[Tensor, " batch"] | None = None,
        f0: Float[Tensor, "batch hops"] | None = None,
    ) -> AutoencoderOutput:
        """Reconstruct a batch; the output is as long as the input.

        Args:
            speaker: numbers of the speakers in `config.speakers`, for a decoder that is told who speaks.
            f0: true pitch in Hz, for a decoder that starts from a source.
        """
        latents = self.encode(wave)
        # Distances and usage statistics need float32 whatever the networks compute in.
        with torch.autocast(latents.device.type, enabled=False):
            bottleneck = self.bottleneck(latents.float())
        samples, length = bottleneck.samples, wave.shape[-1]
        wave = self.whole_frames(wave).repeat(samples, 1, 1)
        speaker = speaker.repeat(samples) if speaker is not None else None
        f0 = f0.repeat(samples, 1) if f0 is not None else None
        output = self.decoder.reconstruct(F.pad(bottleneck.latents, (0, self.look_ahead)), wave, speaker, f0)
        start = self.look_ahead * self.hop_length
        logits = None if output.logits is None else output.logits[..., :length]
        return AutoencoderOutput(
            wave=output.wave[..., start : start + length],
            logits=logits,
            terms=output.terms,
            bottleneck=bottleneck,
        )

    def encode(self, wave: Float[Tensor, "batch 1 time"]) -> Float[Tensor, "batch dim frames"]:
        """Latents of ceil(T / hop_length) frames; the last one sees zeros where the signal has ended."""
        missing = -wave.shape[-1] % self.hop_length
        padded = F.pad(wave, (self.delay.samples, missing + self.delay.look_ahead))
        return self.encoder(padded)[..., self.delay.frames :]

    def pitch_times(self, num_samples: int) -> Int[Tensor, " hops"]:
        """Samples of a signal of whole frames at which `forward` wants to know the pitch."""
        return self.decoder.pitch_times(num_samples // self.hop_length, self.look_ahead)

    def whole_frames(self, wave: Float[Tensor, "batch 1 time"]) -> Float[Tensor, "batch 1 time2"]:
        """The waveform with zeros behind it, up to the end of a frame."""
        missing = -wave.shape[-1] % self.hop_length
        return F.pad(wave, (0, missing)) if missing else wave

    def decode(self, latents: Float[Tensor, "batch dim frames"]) -> Float[Tensor, "batch 1 time"]:
        """F * hop_length samples of waveform, in float32, of a decoder that draws nothing."""
        padded = F.pad(latents, (0, self.look_ahead))
        return self.decoder(padded).float()[..., self.look_ahead * self.hop_length :]


@dataclass(frozen=True)
class Delay:
    """How an encoder looks ahead: `samples` zeros in front of the signal, and its first `frames` frames dropped."""

    look_ahead: int
    """Samples behind its own that a frame sees."""
    hop_length: int

    @property
    def frames(self) -> int:
        """Frames that are dropped."""
        return -(-self.look_ahead // self.hop_length)

    @property
    def samples(self) -> int:
        """Zeros in front of the signal: none if the look-ahead is whole frames."""
        return self.frames * self.hop_length - self.look_ahead
