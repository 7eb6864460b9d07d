"""The inverse-STFT decoder: all layers at the frame rate, then one inverse Fourier transform (Vocos; Siuzdak, 2023)."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from audiovq.config import AutoencoderConfig, ISTFTDecoderConfig
from audiovq.nn.convnext import ConvNeXtStack
from audiovq.nn.decoder import Decoder
from audiovq.nn.stream import Stream, overlap_add

QUIET, LOUDEST = -3.0, 7.0
"""Natural logarithms of a spectral magnitude, in units of an orthonormal transform: before training, and the largest,
far above those of real speech, which keeps a bad first step from overflowing."""


class ISTFTHead(nn.Module):
    """Spectral frames and their overlap-add.

    A linear layer predicts log magnitude and phase of `subframes` spectra a frame. Each becomes a windowed piece of
    `overlap` hops that starts where the hop of its own begins and reaches into later hops only; so the sum at any
    sample is made of spectra that began before it, and the head is causal.

    Shape:
        input [B, D, F]; output [B, 1, F * hop_length].
    """

    window: Tensor

    def __init__(self, dim: int, hop_length: int, subframes: int, overlap: int):
        super().__init__()
        self.subframes, self.overlap = subframes, overlap
        self.hop = hop_length // subframes
        self.fft_size = overlap * self.hop
        self.bins = self.fft_size // 2 + 1
        self.spectrum = nn.Linear(dim, subframes * self.bins * 2)
        # Start at the loudness of quiet speech, with phases all over the circle.
        log_magnitude, phase = self.spectrum.bias.detach().view(2, -1)
        nn.init.constant_(log_magnitude, QUIET)
        nn.init.uniform_(phase, -math.pi, math.pi)
        window = torch.hann_window(self.fft_size)
        # Hann windows at a whole number of hops add up to overlap / 2 everywhere.
        self.register_buffer("window", window * (2 / overlap), persistent=False)

    def forward(
        self, x: Float[Tensor, "batch dim frames"], stream: Stream | None = None
    ) -> Float[Tensor, "batch 1 time"]:
        log_magnitude, phase = rearrange(
            self.spectrum(x.mT).float(), "b f (part s bin) -> part b (f s) bin", part=2, s=self.subframes
        )
        spectrum = torch.polar(log_magnitude.clamp(max=LOUDEST).exp(), phase)
        pieces = torch.fft.irfft(spectrum, n=self.fft_size, norm="ortho") * self.window
        return overlap_add(self, pieces, self.overlap, stream)


class ISTFTDecoder(ConvNeXtStack, Decoder):
    """ConvNeXt-like blocks at the frame rate, then the inverse STFT head.

    Shape:
        input [B, D, F]; output [B, 1, F * hop_length].
    """

    @classmethod
    def of(cls, config: AutoencoderConfig) -> ISTFTDecoder:
        assert isinstance(config.decoder, ISTFTDecoderConfig)
        return cls(config.decoder, config.latent_dim, config.hop_length)

    def __init__(self, config: ISTFTDecoderConfig, latent_dim: int, hop_length: int):
        super().__init__(config, latent_dim, config.kernel_size)
        self.head = ISTFTHead(config.dim, hop_length, config.subframes, config.overlap)

    def forward(
        self, x: Float[Tensor, "batch dim frames"], stream: Stream | None = None
    ) -> Float[Tensor, "batch 1 time"]:
        return self.head(self.features(x, stream).mT, stream)
