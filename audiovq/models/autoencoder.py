"""The autoencoder: encoder, bottleneck, decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from audiovq.audio.signal import MU_LAW_CLASSES, mu_law_decode, mu_law_encode
from audiovq.bottlenecks import build_bottleneck
from audiovq.bottlenecks.base import BottleneckOutput
from audiovq.config import AutoencoderConfig, TransposedDecoderConfig, WaveNetDecoderConfig
from audiovq.nn.conv import Encoder, Stream, TransposedDecoder
from audiovq.nn.istft import ISTFTDecoder
from audiovq.nn.wavenet_decoder import WaveNetDecoder
from audiovq.sampling.waveform import WaveNetSampler


@dataclass
class AutoencoderOutput:
    """Result of a forward pass."""

    wave: Float[Tensor, "batch 1 time"]
    """The reconstruction. With a WaveNet decoder: the likeliest value of each sample given the true samples before it,
    which tells what the network has learnt but is no reconstruction from the latents."""
    bottleneck: BottleneckOutput
    logits: Float[Tensor, "batch classes time"] | None = None
    """With a WaveNet decoder: of each sample's mu-law class, given the true samples before it."""

    @property
    def prediction(self) -> Tensor:
        """What the reconstruction loss compares with the true waveform."""
        return self.wave if self.logits is None else self.logits


class Autoencoder(nn.Module):
    """Waveform -> latents -> bottleneck -> latents -> waveform."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.hop_length = config.hop_length
        self.encoder = Encoder(config.encoder, config.latent_dim)
        self.bottleneck = build_bottleneck(config)
        self.decoder = build_decoder(config)

    def forward(
        self, wave: Float[Tensor, "batch 1 time"], speaker: Int[Tensor, " batch"] | None = None
    ) -> AutoencoderOutput:
        """Reconstruct a batch; the output is as long as the input.

        Args:
            speaker: numbers of the speakers in `decoder.speakers`, for a decoder that is told who speaks.
        """
        latents = self.encode(wave)
        # Distances and usage statistics need float32 whatever the networks compute in.
        with torch.autocast(latents.device.type, enabled=False):
            bottleneck = self.bottleneck(latents.float())
        if isinstance(self.decoder, WaveNetDecoder):
            logits = self._predict(self.decoder, bottleneck, wave, speaker)
            return AutoencoderOutput(mu_law_decode(logits.argmax(1))[:, None], bottleneck, logits)
        return AutoencoderOutput(self.decode(bottleneck.latents)[..., : wave.shape[-1]], bottleneck)

    def _predict(
        self,
        decoder: WaveNetDecoder,
        bottleneck: BottleneckOutput,
        wave: Float[Tensor, "batch 1 time"],
        speaker: Int[Tensor, " batch"] | None,
    ) -> Float[Tensor, "items classes time"]:
        """Logits of the samples of each item, or of each of its samples of codes."""
        classes = mu_law_encode(self.whole_frames(wave)).squeeze(1).repeat(bottleneck.samples, 1)
        speaker = speaker.repeat(bottleneck.samples) if speaker is not None else None
        return decoder(bottleneck.latents, classes, speaker)[..., : wave.shape[-1]]

    def encode(
        self, wave: Float[Tensor, "batch 1 time"], stream: Stream | None = None
    ) -> Float[Tensor, "batch dim frames"]:
        """Latents of ceil(T / hop_length) frames; the last one sees zeros where the signal has ended."""
        return self.encoder(self.whole_frames(wave), stream)

    def whole_frames(self, wave: Float[Tensor, "batch 1 time"]) -> Float[Tensor, "batch 1 time2"]:
        """The waveform with zeros behind it, up to the end of a frame."""
        missing = -wave.shape[-1] % self.hop_length
        return nn.functional.pad(wave, (0, missing)) if missing else wave

    def decode(
        self, latents: Float[Tensor, "batch dim frames"], stream: Stream | None = None
    ) -> Float[Tensor, "batch 1 time"]:
        """F * hop_length samples of waveform, in float32; a WaveNet decoder has `start_decoding` instead."""
        return self.decoder(latents, stream).float()

    def start_decoding(
        self, speaker: Int[Tensor, " #batch"] | None = None, seed: int = 0
    ) -> Callable[[Float[Tensor, "batch dim frames"]], Float[Tensor, "batch 1 time"]]:
        """A function that decodes latents piece by piece.

        Args:
            speaker: number of the speaker of each item, or of one for all, for a decoder that is told who speaks.
            seed: of what a WaveNet decoder draws; other decoders draw nothing.
        """
        if isinstance(self.decoder, WaveNetDecoder):
            sampler = WaveNetSampler(self.decoder, speaker, seed)
            return lambda latents: mu_law_decode(sampler(latents))[:, None]
        return partial(self.decode, stream=Stream())


def build_decoder(config: AutoencoderConfig) -> nn.Module:
    """The decoder that a model's config asks for."""
    if isinstance(config.decoder, TransposedDecoderConfig):
        return TransposedDecoder(config.decoder, config.latent_dim, config.encoder.strides)
    if isinstance(config.decoder, WaveNetDecoderConfig):
        return WaveNetDecoder(config.decoder, config.latent_dim, config.hop_length, MU_LAW_CLASSES)
    return ISTFTDecoder(config.decoder, config.latent_dim, config.hop_length)
