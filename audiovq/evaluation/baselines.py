"""What the metrics give for a reconstruction that knows next to nothing: the scale's lower end."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

FFT_SIZE = 1024
"""Samples of the Hann window and the FFT; the hop is a quarter."""


def mean_spectrum(waves: Iterable[Float[Tensor, "1 time"]]) -> Float[Tensor, " bins"]:
    """Magnitude spectrum of speech, averaged over all frames of all waveforms: [FFT_SIZE // 2 + 1]."""
    import torch

    total, frames = torch.zeros(FFT_SIZE // 2 + 1, dtype=torch.float64), 0
    for wave in waves:
        magnitudes = _stft(wave).abs()
        total += magnitudes.double().sum(dim=(0, 2))
        frames += magnitudes.shape[-1]
    return (total / frames).float()


def mean_spectrum_noise(spectrum: Float[Tensor, " bins"], num_samples: int, seed: int) -> Float[Tensor, "1 time"]:
    """Speech-shaped noise: stationary Gaussian noise with this mean magnitude spectrum, level included."""
    import torch

    white = torch.randn(1, num_samples, generator=torch.Generator().manual_seed(seed))
    window = torch.hann_window(FFT_SIZE)
    # Magnitudes of white noise are Rayleigh distributed, E|X|^2 = sum w^2 and E|X| = sqrt(pi / 4 * E|X|^2).
    white_spectrum = math.sqrt(math.pi / 4 * float(window.square().sum()))
    shaped = _stft(white) * (spectrum / white_spectrum)[None, :, None]
    return torch.istft(shaped, FFT_SIZE, FFT_SIZE // 4, window=window, length=num_samples)


def _stft(wave: Tensor) -> Tensor:
    import torch

    window = torch.hann_window(FFT_SIZE)
    return torch.stft(wave, FFT_SIZE, FFT_SIZE // 4, window=window, pad_mode="constant", return_complex=True)
