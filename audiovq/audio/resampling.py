"""Band-limited resampling, block by block, so that a piece of a signal is exactly that of the whole.

torch is imported when a function first needs it, so that commands which only read headers start at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from audiovq.errors import AudioError

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor

WIDTH = 6
"""Zero crossings on each side of the interpolation filter, torchaudio's default."""
BLOCK = 8192
"""Samples that are computed at a time, about."""
PHASES = 64
"""Filters of neighbouring samples that are applied at a time, about."""
MAX_FILTER = 2**24
"""Coefficients of an interpolation filter: 64 MiB."""


def resample(wave: Float[Tensor, "*batch time"], source_rate: int, target_rate: int) -> Float[Tensor, "*batch time2"]:
    """Band-limited resampling to ceil(T * target_rate / source_rate) samples (torchaudio's windowed sinc).

    A sample comes out the same, to the bit, whatever else is in the batch and however much follows it.

    Raises:
        AudioError: a rate is not positive, or their ratio is of numbers so large that the filter would fill the memory.
    """
    import torch

    if min(source_rate, target_rate) < 1:
        raise AudioError(f"sample rates are positive, found {source_rate} and {target_rate} Hz")
    if source_rate == target_rate:
        return wave
    resampler = Resampler.of(source_rate, target_rate, wave.device)
    length = -(-wave.shape[-1] * target_rate // source_rate)
    missing = -(-length // resampler.target) * resampler.source - wave.shape[-1]
    padded = torch.nn.functional.pad(wave, (resampler.context, missing + resampler.context))
    rows = [resampler.blocks(row) for row in padded.reshape(-1, padded.shape[-1])]
    return torch.stack(rows).view(*wave.shape[:-1], -1)[..., :length]


@dataclass(frozen=True)
class Resampler:
    """A signal is cut into blocks of `source` samples, each of which becomes `target` samples.

    Products of matrices round a sample differently when the signal around it has another length. Blocks of one
    length, cut at multiples of it, are all rounded in the same way.
    """

    source: int
    """Samples of a block, before resampling."""
    target: int
    """Samples of a block, after it."""
    context: int
    """Samples on each side of a block that the filters see."""
    step: int
    """Samples after which the same filters follow again."""
    filters: list[tuple[int, Float[Tensor, "taps phases"]]]
    """Filters for the samples that `step` samples become, some neighbours at a time, and where what they see begins;
    from 0, `context` samples before the step."""

    @classmethod
    @lru_cache(maxsize=32)
    def of(cls, source_rate: int, target_rate: int, device: str | torch.device = "cpu") -> Resampler:
        """What turns one rate, in Hz, into another.

        Raises:
            AudioError: the filters would fill the memory.
        """
        from torchaudio.transforms import Resample

        divisor = math.gcd(source_rate, target_rate)
        source_step, target_step = source_rate // divisor, target_rate // divisor
        if source_step * target_step > MAX_FILTER:
            raise AudioError(
                f"{source_rate} Hz cannot be resampled to {target_rate} Hz: their ratio is that of {source_step} to "
                f"{target_step}; convert the audio to a usual rate first"
            )
        designed = Resample(source_rate, target_rate, lowpass_filter_width=WIDTH)
        repeats = -(-PHASES // target_step)
        step = repeats * source_step
        filters = _groups(designed.get_buffer("kernel")[:, 0].to(device), source_step, repeats)
        steps = max(1, BLOCK // (repeats * target_step))
        return cls(steps * step, steps * repeats * target_step, designed.width, step, filters)

    def blocks(self, padded: Float[Tensor, " time"]) -> Float[Tensor, " time2"]:
        """Resample whole blocks of a signal, which comes with `context` samples on both sides."""
        import torch

        def resampled(window: Tensor) -> Tensor:
            """As products of matrices, since a convolution with one channel uses little of a processor."""
            seen = (
                (filters, window[first : first + self.source - self.step + len(filters)])
                for first, filters in self.filters
            )
            return torch.cat([part.unfold(-1, len(filters), self.step) @ filters for filters, part in seen], dim=-1)

        windows = padded.unfold(-1, self.source + 2 * self.context, self.source)
        return torch.cat([resampled(window).view(-1) for window in windows])


def _groups(
    kernels: Float[Tensor, "phases taps"], step: int, repeats: int
) -> list[tuple[int, Float[Tensor, "taps2 phases2"]]]:
    """Filters for `repeats` steps, about `PHASES` at a time, each group without the taps at which all of it is zero."""
    import torch

    pad = torch.nn.functional.pad
    every = torch.cat([pad(kernels, (i * step, (repeats - 1 - i) * step)) for i in range(repeats)])
    groups = []
    for group in every.split(PHASES):
        # The window that ends a filter is zero there but for rounding.
        seen = (group.abs() > 1e-12).any(0).nonzero()
        first, last = int(seen[0]), int(seen[-1])
        groups.append((first, group[:, first : last + 1].T.contiguous()))
    return groups
