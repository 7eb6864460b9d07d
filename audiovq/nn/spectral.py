"""The spectral encoder: a fixed mel filter bank, then all layers at the frame rate."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

from audiovq.config import AutoencoderConfig, SpectralEncoderConfig
from audiovq.nn.conv import CausalConv1d
from audiovq.nn.convnext import ConvNeXtBlock
from audiovq.nn.stream import Stream, extend_left

FLOOR = 1e-5
"""Mel magnitudes below this count as this, before the logarithm is taken."""
CENTRE, SPREAD = -5.0, 2.5
"""About the mean and the standard deviation of log-mel magnitudes of speech."""


class LogMel(nn.Module):
    """Log-mel magnitudes of windows that end where their hop ends; causal, and a strided convolution that is fixed.

    The window is a Hann window; mel bands are Slaney's, with his area normalisation. In evaluation it computes in
    double precision, since a logarithm of what is quiet beside something loud would keep little of float32.

    Shape:
        input [B, 1, N * hop]; output [B, bands, N].
    """

    window: Tensor
    bands: Tensor

    def __init__(self, sample_rate: int, window: int, hop: int, bands: int):
        super().__init__()
        self.hop = hop
        self.fft_size = 2 ** (window - 1).bit_length()
        bank = melscale_fbanks(self.fft_size // 2 + 1, 0.0, sample_rate / 2, bands, sample_rate, "slaney", "slaney")
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        self.register_buffer("bands", bank, persistent=False)

    def forward(
        self, wave: Float[Tensor, "batch 1 time"], stream: Stream | None = None
    ) -> Float[Tensor, "batch bands spectra"]:
        padded = extend_left(self, wave[:, 0], len(self.window) - self.hop, stream)
        pieces = padded.unfold(-1, len(self.window), self.hop) * self.window
        magnitude = torch.fft.rfft(pieces, self.fft_size).abs()
        return (magnitude @ self.bands.to(magnitude)).clamp(min=FLOOR).log().mT


class SpectralEncoder(nn.Module):
    """Waveform to latents by way of a log-mel spectrogram; frame t depends on no sample from (t + 1) * hop_length on.

    Shape:
        input [B, 1, F * hop_length]; output [B, D, F].
    """

    @classmethod
    def of(cls, config: AutoencoderConfig) -> SpectralEncoder:
        assert isinstance(config.encoder, SpectralEncoderConfig)
        return cls(config.encoder, config.latent_dim, config.sample_rate)

    def __init__(self, config: SpectralEncoderConfig, latent_dim: int, sample_rate: int):
        super().__init__()
        self.config = config
        self.mel = LogMel(sample_rate, config.window, config.hop_length // config.spectra, config.bands)
        self.input = CausalConv1d(config.spectra * config.bands, config.dim, 1)
        self.input_norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(config.dim, config.kernel_size, config.expansion, scale=1 / config.layers)
            for _ in range(config.layers)
        )
        self.output_norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.output = CausalConv1d(config.dim, latent_dim, 1)

    @property
    def receptive_field(self) -> int:
        """Samples that a frame depends on: its own and those before it."""
        frames = 1 + self.config.layers * (self.config.kernel_size - 1)
        hop = self.config.hop_length // self.config.spectra
        return frames * self.config.hop_length + max(0, self.config.window - hop)

    def forward(
        self, wave: Float[Tensor, "batch 1 time"], stream: Stream | None = None
    ) -> Float[Tensor, "batch dim frames"]:
        with torch.autocast(wave.device.type, enabled=False):
            mel = self.mel(wave if self.training else wave.double(), stream)
            mel = ((mel - CENTRE) / SPREAD).to(self.input.weight.dtype)
        x = rearrange(mel, "b band (f s) -> b (s band) f", s=self.config.spectra)
        x = self.input_norm(self.input(x).mT).mT
        for block in self.blocks:
            x = block(x, stream)
        return self.output(self.output_norm(x.mT).mT)
