"""The autoencoder: encoder, bottleneck, decoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from audiovq.bottlenecks import build_bottleneck
from audiovq.bottlenecks.base import BottleneckOutput
from audiovq.config import AutoencoderConfig, TransposedDecoderConfig
from audiovq.nn.conv import Encoder, TransposedDecoder
from audiovq.nn.istft import ISTFTDecoder
from audiovq.nn.stream import Stream


@dataclass
class AutoencoderOutput:
    """Result of a forward pass."""

    wave: Float[Tensor, "batch 1 time"]
    bottleneck: BottleneckOutput


class Autoencoder(nn.Module):
    """Waveform -> latents -> bottleneck -> latents -> waveform."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.hop_length = config.hop_length
        self.encoder = Encoder(config.encoder, config.latent_dim)
        self.bottleneck = build_bottleneck(config)
        self.decoder = build_decoder(config)

    def forward(self, wave: Float[Tensor, "batch 1 time"]) -> AutoencoderOutput:
        """Reconstruct a batch; the output is as long as the input."""
        latents = self.encode(wave)
        # Distances and usage statistics need float32 whatever the networks compute in.
        with torch.autocast(latents.device.type, enabled=False):
            bottleneck = self.bottleneck(latents.float())
        return AutoencoderOutput(self.decode(bottleneck.latents)[..., : wave.shape[-1]], bottleneck)

    def encode(
        self, wave: Float[Tensor, "batch 1 time"], stream: Stream | None = None
    ) -> Float[Tensor, "batch dim frames"]:
        """Latents of ceil(T / hop_length) frames; the last one sees zeros where the signal has ended."""
        missing = -wave.shape[-1] % self.hop_length
        return self.encoder(nn.functional.pad(wave, (0, missing)) if missing else wave, stream)

    def decode(
        self, latents: Float[Tensor, "batch dim frames"], stream: Stream | None = None
    ) -> Float[Tensor, "batch 1 time"]:
        """F * hop_length samples of waveform, in float32."""
        return self.decoder(latents, stream).float()


def build_decoder(config: AutoencoderConfig) -> nn.Module:
    """The decoder that a model's config asks for."""
    if isinstance(config.decoder, TransposedDecoderConfig):
        return TransposedDecoder(config.decoder, config.latent_dim, config.encoder.strides)
    return ISTFTDecoder(config.decoder, config.latent_dim, config.hop_length)
