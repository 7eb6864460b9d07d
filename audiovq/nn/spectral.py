"""The spectral encoder: a fixed mel filter bank, then all layers at the frame rate."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

from audiovq.config import AutoencoderConfig, SpectralEncoderConfig
from audiovq.nn.conv import CausalConv1d
from audiovq.nn.convnext import ConvNeXtStack
from audiovq.nn.stream import Stream, extend_left

FLOOR = 1e-5
"""Magnitudes below this count as this, before the logarithm is taken."""
CENTRE, SPREAD = -5.0, 2.5
"""About the mean and the standard deviation of log magnitudes of speech."""


class LogSpectrum(nn.Module):
    """Log magnitudes of Hann windows that end where their hop ends; causal, and a strided convolution that is fixed.

    In evaluation it computes in double precision, since a logarithm of what is quiet beside something loud would keep
    little of float32.

    Args:
        bank: what is summed of the FFT's bins, [fft_size // 2 + 1, bands].

    Shape:
        input [B, 1, N * hop]; output [B, bands, N].
    """

    window: Tensor
    bank: Tensor

    def __init__(self, window: int, hop: int, bank: Float[Tensor, "bins bands"]):
        super().__init__()
        self.hop, self.fft_size = hop, 2 * (len(bank) - 1)
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        self.register_buffer("bank", bank, persistent=False)

    def forward(
        self, wave: Float[Tensor, "batch 1 time"], stream: Stream | None = None
    ) -> Float[Tensor, "batch bands spectra"]:
        wave = wave if self.training else wave.double()
        padded = extend_left(self, wave[:, 0], len(self.window) - self.hop, stream)
        pieces = padded.unfold(-1, len(self.window), self.hop) * self.window
        magnitude = torch.fft.rfft(pieces, self.fft_size).abs()
        return (magnitude @ self.bank.to(magnitude)).clamp(min=FLOOR).log().mT


def log_mel_spectrum(sample_rate: int, window: int, hop: int, bands: int) -> LogSpectrum:
    """A spectrum in Slaney's mel bands, with his area normalisation."""
    bins = fft_size(window) // 2 + 1
    with torch.device("cpu"):  # The bank is known before a network that is sketched without memory.
        bank = melscale_fbanks(bins, 0.0, sample_rate / 2, bands, sample_rate, "slaney", "slaney")
    return LogSpectrum(window, hop, bank)


def low_spectrum(window: int, hop: int, bins: int) -> LogSpectrum:
    """The first bins of a spectrum, in units in which those of speech are about as large as mel bands."""
    return LogSpectrum(window, hop, torch.eye(fft_size(window) // 2 + 1, bins) / 16)


def fft_size(window: int) -> int:
    """The next power of two."""
    return 2 ** (window - 1).bit_length()


class SpectralEncoder(ConvNeXtStack):
    """Waveform to latents by way of a log-mel spectrogram; frame t depends on no sample from (t + 1) * hop_length on.

    Shape:
        input [B, 1, F * hop_length]; output [B, D, F].
    """

    @classmethod
    def of(cls, config: AutoencoderConfig) -> SpectralEncoder:
        assert isinstance(config.encoder, SpectralEncoderConfig)
        return cls(config.encoder, config.latent_dim, config.sample_rate)

    def __init__(self, config: SpectralEncoderConfig, latent_dim: int, sample_rate: int):
        super().__init__(config, config.spectra * (config.bands + config.low_bins), 1)
        self.config = config
        hop = config.hop_length // config.spectra
        self.spectra = nn.ModuleList([log_mel_spectrum(sample_rate, config.window, hop, config.bands)])
        if config.low_bins:
            self.spectra.append(low_spectrum(2 * config.window, hop, config.low_bins))
        self.output = CausalConv1d(config.dim, latent_dim, 1)

    @property
    def receptive_field(self) -> int:
        """Samples that a frame depends on: its own and those before it."""
        frames = 1 + self.config.layers * (self.config.kernel_size - 1)
        hop = self.config.hop_length // self.config.spectra
        window = self.config.window * (2 if self.config.low_bins else 1)
        return frames * self.config.hop_length + max(0, window - hop)

    def forward(
        self, wave: Float[Tensor, "batch 1 time"], stream: Stream | None = None
    ) -> Float[Tensor, "batch dim frames"]:
        with torch.autocast(wave.device.type, enabled=False):
            levels = torch.cat([spectrum(wave, stream) for spectrum in self.spectra], 1)
            levels = ((levels - CENTRE) / SPREAD).to(self.input.weight.dtype)
        x = rearrange(levels, "b band (f s) -> b (s band) f", s=self.config.spectra)
        return self.output(self.features(x, stream).mT)
