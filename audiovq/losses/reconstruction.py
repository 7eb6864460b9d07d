"""Reconstruction losses: waveform, multi-scale mel and multi-scale STFT magnitude, and mu-law cross-entropy."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torchaudio.functional import melscale_fbanks

from audiovq.audio.signal import mu_law_encode
from audiovq.config import LossConfig

FLOOR = 1e-5
"""Magnitudes below this count as this, before a logarithm is taken."""
QUIET = 1e-2
"""Root mean square magnitude of a spectrogram below which a signal counts as silent."""
COMPRESSION = 0.3
"""Exponent to which magnitudes are compressed (Ephrat et al., 2018, "Looking to Listen at the Cocktail Party")."""


class ReconstructionLoss(nn.Module):
    """Weighted sum of the terms that a config asks for, one value an item.

    - `l1`, `l2`: mean absolute and mean squared error of the waveform.
    - `mel`: mean absolute difference of log-mel magnitudes, averaged over the FFT sizes; an FFT of N samples has
      N / 16 mel bands.
    - `compressed`: mean absolute difference of mel magnitudes to the power of 0.3, relative to their mean in the
      reference, averaged over the FFT sizes. What is loud counts for more than it does in logarithms.
    - `stft`: spectral convergence || S - S' || / || S || plus mean absolute difference of log magnitudes, averaged
      over the FFT sizes (Yamamoto et al., 2020, "Parallel WaveGAN", eq. 3 to 5).

    Shape:
        reconstruction and reference [B, 1, T]; result [B].
    """

    def __init__(self, config: LossConfig, sample_rate: int):
        super().__init__()
        self.config = config
        self.spectral = bool(config.mel or config.stft or config.compressed)
        self.scales = nn.ModuleList(SpectralDistance(size, sample_rate, config) for size in config.fft_sizes)

    def forward(
        self, reconstruction: Float[Tensor, "batch 1 time"], reference: Float[Tensor, "batch 1 time"]
    ) -> tuple[Float[Tensor, " batch"], dict[str, Float[Tensor, ""]]]:
        """The weighted loss of each item, and the unweighted mean of each term for the log."""
        y, x = reconstruction.squeeze(1).float(), reference.squeeze(1).float()
        terms: dict[str, Tensor] = {}
        if self.config.l1:
            terms["l1"] = (y - x).abs().mean(-1)
        if self.config.l2:
            terms["l2"] = (y - x).square().mean(-1)
        if self.spectral:
            distances = [scale(y, x) for scale in self.scales]
            for name in distances[0]:
                terms[name] = torch.stack([distance[name] for distance in distances]).mean(0)
        total = sum((getattr(self.config, name) * term for name, term in terms.items()), start=x.new_zeros(len(x)))
        return total, {name: term.detach().mean() for name, term in terms.items()}


class MuLawLoss(nn.Module):
    """Cross-entropy of the samples' mu-law classes, for a decoder that predicts them: -log p(x_t | ...) in nats, a mean
    over samples (van den Oord et al., 2016, "WaveNet", section 2.2).

    Shape:
        logits [B, 256, T] and reference [B, 1, T]; result [B].
    """

    def __init__(self, config: LossConfig):
        super().__init__()
        self.weight = config.mu_law

    def forward(
        self, logits: Float[Tensor, "batch classes time"], reference: Float[Tensor, "batch 1 time"]
    ) -> tuple[Float[Tensor, " batch"], dict[str, Float[Tensor, ""]]]:
        """The weighted loss of each item, and its unweighted mean for the log."""
        classes = mu_law_encode(reference.squeeze(1))
        nats = nn.functional.cross_entropy(logits.float(), classes, reduction="none").mean(-1)
        return self.weight * nats, {"mu_law": nats.detach().mean()}


def build_loss(config: LossConfig, sample_rate: int) -> nn.Module:
    """The loss that a config asks for, of `AutoencoderOutput.prediction` and the true waveform."""
    return MuLawLoss(config) if config.mu_law else ReconstructionLoss(config, sample_rate)


class SpectralDistance(nn.Module):
    """Mel and STFT distances at one FFT size; both use the same spectrogram."""

    window: Tensor
    bands: Tensor

    def __init__(self, fft_size: int, sample_rate: int, config: LossConfig):
        super().__init__()
        self.fft_size = fft_size
        self.config = config
        bank = melscale_fbanks(
            fft_size // 2 + 1, 0.0, sample_rate / 2, max(1, fft_size // 16), sample_rate, "slaney", "slaney"
        )
        self.register_buffer("window", torch.hann_window(fft_size), persistent=False)
        self.register_buffer("bands", bank, persistent=False)

    def forward(self, y: Float[Tensor, "batch time"], x: Float[Tensor, "batch time"]) -> dict[str, Tensor]:
        ys, xs = self.magnitude(y), self.magnitude(x)
        distances = {}
        if self.config.mel or self.config.compressed:
            y_mel, x_mel = ((magnitude @ self.bands).clamp(min=FLOOR) for magnitude in (ys, xs))
            if self.config.mel:
                distances["mel"] = log_distance(y_mel, x_mel)
            if self.config.compressed:
                distances["compressed"] = compressed_distance(y_mel, x_mel)
        if self.config.stft:
            # Without a floor one crop of silence would outweigh a whole batch of speech.
            least = QUIET * math.sqrt(xs.shape[1] * xs.shape[2])
            norm = torch.linalg.vector_norm(xs, dim=(1, 2)).clamp(min=least)
            convergence = torch.linalg.vector_norm(ys - xs, dim=(1, 2)) / norm
            distances["stft"] = convergence + log_distance(ys, xs)
        return distances

    def magnitude(self, x: Float[Tensor, "batch time"]) -> Float[Tensor, "batch frames bins"]:
        """Magnitude spectrogram with a hop of a quarter of the FFT size."""
        half = self.fft_size // 2
        frames = nn.functional.pad(x, (half, half)).unfold(-1, self.fft_size, self.fft_size // 4)
        magnitude = Magnitude.apply(frames * self.window)
        assert isinstance(magnitude, Tensor)
        return magnitude


class Magnitude(torch.autograd.Function):
    """Magnitudes of the Fourier transform of real pieces [..., N], at least `FLOOR`: [..., N // 2 + 1].

    The slope of a magnitude |S| is S / |S|, and 0 below the floor. Autograd would come to the same in many more passes,
    and by a complex transform twice as long.
    """

    @staticmethod
    def forward(ctx: Any, pieces: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(pieces)
        # abs() would guard against overflow, which takes five times as long.
        magnitude = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag).sqrt_().clamp_(min=FLOOR)
        ctx.save_for_backward(spectrum, magnitude)
        ctx.size = pieces.shape[-1]
        return magnitude

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        spectrum, magnitude = ctx.saved_tensors
        scale = (gradient / magnitude).masked_fill_(magnitude <= FLOOR, 0)
        # The inverse transform counts a bin twice, for its negative frequency, but not the first and the last.
        scale[..., 0] *= 2
        if ctx.size % 2 == 0:
            scale[..., -1] *= 2
        return torch.fft.irfft(spectrum * scale, ctx.size, norm="forward") / 2


def log_distance(
    y: Float[Tensor, "batch frames bins"], x: Float[Tensor, "batch frames bins"]
) -> Float[Tensor, " batch"]:
    """Mean absolute difference of the natural logarithms of positive numbers."""
    return (y / x).log().abs().mean((1, 2))


def compressed_distance(
    y: Float[Tensor, "batch frames bands"], x: Float[Tensor, "batch frames bands"]
) -> Float[Tensor, " batch"]:
    """Mean absolute difference of compressed magnitudes, relative to their mean in x."""
    loud = x.pow(COMPRESSION)
    return (y.pow(COMPRESSION) - loud).abs().mean((1, 2)) / loud.mean((1, 2)).clamp(min=(10 * FLOOR) ** COMPRESSION)
