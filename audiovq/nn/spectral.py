"""The spectral encoder: a fixed mel filter bank, then all layers at the frame rate."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.functional import melscale_fbanks

from audiovq.config import AutoencoderConfig, SpectralEncoderConfig
from audiovq.nn.conv import CausalConv1d
from audiovq.nn.convnext import ConvNeXtStack
from audiovq.nn.encoder import Encoder
from audiovq.nn.stream import Stream, extend_left

FLOOR = 1e-5
"""Magnitudes below this count as this, before the logarithm is taken."""
CENTRE, SPREAD = -5.0, 2.5
"""About the mean and the standard deviation of log magnitudes of speech."""
LOW_UNIT = 1 / 16
"""What magnitudes of bins are multiplied by."""
GROUP = 20
"""Bands that are summed at a time, of the bins that they have in common."""


class LogSpectrum(nn.Module):
    """Log magnitudes of Hann windows that end where their hop ends; causal, and a strided convolution that is fixed.

    In evaluation it computes in double precision, since a logarithm of what is quiet beside something loud would keep
    little of float32.

    Args:
        bank: what is summed of the FFT's bins, [fft_size // 2 + 1, bands].

    Shape:
        input [B, 1, N * hop]; output [B, N, bands].
    """

    window: Tensor
    bank: Tensor

    def __init__(self, window: int, hop: int, bank: Float[Tensor, "bins bands"]):
        super().__init__()
        self.length, self.hop, self.fft_size = window, hop, 2 * (len(bank) - 1)
        # With zeros behind it: to fill the FFT up with them each time takes longer.
        self.register_buffer("window", F.pad(torch.hann_window(window), (0, self.fft_size - window)), persistent=False)
        self.register_buffer("bank", bank, persistent=False)
        self.groups = [(*used_bins(bank[:, first : first + GROUP]), first) for first in range(0, bank.shape[1], GROUP)]

    def forward(
        self, wave: Float[Tensor, "batch 1 time"], stream: Stream | None = None
    ) -> Float[Tensor, "batch spectra bands"]:
        wave = wave if self.training else wave.double()
        padded = extend_left(self, wave[:, 0], self.length - self.hop, stream)
        pieces = F.pad(padded, (0, self.fft_size - self.length)).unfold(-1, self.fft_size, self.hop)
        spectrum = torch.fft.rfft(pieces * self.window)[..., : self.groups[-1][1]]
        return self.bands(magnitudes(spectrum)).clamp(min=FLOOR).log()

    def bands(self, magnitude: Float[Tensor, "batch spectra bins"]) -> Float[Tensor, "batch spectra bands"]:
        """What the bank makes of the bins up to the last that it uses."""
        bank = self.bank.to(magnitude)
        bands = [magnitude[..., a:b] @ bank[a:b, first : first + GROUP] for a, b, first in self.groups]
        return torch.cat(bands, -1)


class LowSpectrum(LogSpectrum):
    """The first bins themselves, in units in which those of speech are about as large as mel bands."""

    def __init__(self, window: int, hop: int, bins: int):
        with torch.device("cpu"):
            super().__init__(window, hop, LOW_UNIT * torch.eye(fft_size(window) // 2 + 1, bins))

    def bands(self, magnitude: Float[Tensor, "batch spectra bins"]) -> Float[Tensor, "batch spectra bands"]:
        return LOW_UNIT * magnitude


def magnitudes(spectrum: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Of complex numbers."""
    if torch.is_grad_enabled() or spectrum.device.type != "cpu" or torch.compiler.is_compiling():
        # `abs` would guard against overflow, which takes longer.
        return torch.linalg.vector_norm(torch.view_as_real(spectrum), dim=-1)
    return torch.from_numpy(np.abs(spectrum.numpy()))  # Several at a time, as PyTorch's own are not.


def log_mel_spectrum(sample_rate: int, window: int, hop: int, bands: int) -> LogSpectrum:
    """A spectrum in Slaney's mel bands, with his area normalisation."""
    bins = fft_size(window) // 2 + 1
    with torch.device("cpu"):  # The bank is known before a network that is sketched without memory.
        bank = melscale_fbanks(bins, 0.0, sample_rate / 2, bands, sample_rate, "slaney", "slaney")
    return LogSpectrum(window, hop, bank)


def used_bins(bank: Float[Tensor, "bins bands"]) -> tuple[int, int]:
    """The first of the bins that any of the bands has a share of, and the one after the last."""
    used = bank.any(1).nonzero().flatten().tolist() or [0]
    return used[0], used[-1] + 1


def fft_size(window: int) -> int:
    """The next power of two."""
    return 2 ** (window - 1).bit_length()


class SpectralEncoder(ConvNeXtStack, Encoder):
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
            self.spectra.append(LowSpectrum(2 * config.window, hop, config.low_bins))
        self.output = CausalConv1d(config.dim, latent_dim, 1)

    @property
    def receptive_field(self) -> int:
        hop = self.config.hop_length // self.config.spectra
        window = self.config.window * (2 if self.config.low_bins else 1)
        return self.reach * self.config.hop_length + window - hop

    @property
    def reach(self) -> int:
        return 1 + self.config.layers * (self.config.kernel_size - 1)

    def front(
        self, wave: Float[Tensor, "batch 1 time"], stream: Stream | None = None
    ) -> Float[Tensor, "batch frames features"]:
        with torch.autocast(wave.device.type, enabled=False):
            levels = torch.cat([spectrum(wave, stream) for spectrum in self.spectra], -1)
            levels = rearrange(levels.sub_(CENTRE).div_(SPREAD), "b (f s) band -> b f (s band)", s=self.config.spectra)
        # The first layers and the last one are in double precision in evaluation, since they have the largest part in
        # what rounding does to latents.
        return normalized(self.input_norm, pointwise(self.input, levels))

    def rest(
        self, features: Float[Tensor, "batch frames features"], stream: Stream | None = None
    ) -> Float[Tensor, "batch dim frames2"]:
        x = self.trunk(features.to(self.input_norm.weight.dtype), stream)
        return pointwise(self.output, x if self.training else x.double()).to(x.dtype).mT


def pointwise(
    layer: CausalConv1d, x: Float[Tensor, "batch frames channels"]
) -> Float[Tensor, "batch frames channels2"]:
    """What a convolution of one tap makes of channels that stand last, in their precision."""
    assert layer.bias is not None
    return F.linear(x, layer.weight[..., 0].to(x.dtype), layer.bias.to(x.dtype))


def normalized(norm: nn.LayerNorm, x: Float[Tensor, "batch frames channels"]) -> Float[Tensor, "batch frames channels"]:
    """A norm's output in the precision of its input, or of its weights if that is higher."""
    dtype = torch.promote_types(x.dtype, norm.weight.dtype)
    return F.layer_norm(x.to(dtype), norm.normalized_shape, norm.weight.to(dtype), norm.bias.to(dtype), norm.eps)
