"""Log-mel spectrograms and mu-law companding; torch is imported when a function first needs it."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int
    from torch import Tensor

MU_LAW_CLASSES = 256
"""Classes of a sample in mu-law companding, 8 bits."""


def log_mel(
    wave: Float[Tensor, "*batch time"], sample_rate: int, fft_size: int = 1024, bins: int = 80
) -> Float[Tensor, "*batch bins frames"]:
    """Natural logarithm of the mel magnitude spectrogram, floored at 1e-5; Hann window, hop a quarter of the FFT."""
    return _mel_transform(sample_rate, fft_size, bins, wave.device)(wave).clamp(min=1e-5).log()


@lru_cache(maxsize=32)
def _mel_transform(sample_rate: int, fft_size: int, bins: int, device: torch.device) -> torch.nn.Module:
    """Magnitudes with Slaney's mel scale and area normalisation, librosa's default."""
    from torchaudio.transforms import MelSpectrogram

    return MelSpectrogram(
        sample_rate,
        n_fft=fft_size,
        hop_length=fft_size // 4,
        n_mels=bins,
        power=1.0,
        norm="slaney",
        mel_scale="slaney",
        pad_mode="constant",
    ).to(device)


def mu_law_encode(wave: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Mu-law classes 0 to 255 of samples (after ITU-T G.711), 128 for zero; samples beyond 1 are clipped."""
    from torchaudio.functional import mu_law_encoding

    return mu_law_encoding(wave.clamp(-1, 1), MU_LAW_CLASSES)


def mu_law_decode(classes: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The amplitude that a mu-law class stands for."""
    from torchaudio.functional import mu_law_decoding

    return mu_law_decoding(classes, MU_LAW_CLASSES)
