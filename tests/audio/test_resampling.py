"""Resampling: against torchaudio and SciPy, and pieces against the whole."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.signal
import torch
import torchaudio

from audiovq.audio.resampling import resample
from audiovq.errors import AudioError


def tone(rate: int, frequency: float) -> np.ndarray:
    """A second of a sine that fades in and out, so that filters have no edges to smear."""
    time = np.arange(rate) / rate
    return (0.5 * np.sin(2 * np.pi * frequency * time) * np.sin(np.pi * time) ** 2).astype(np.float32)


@pytest.mark.parametrize("target", [8000, 16000, 24000, 44100])
@pytest.mark.parametrize("rate", [8000, 11025, 22050, 32000, 44100, 48000, 192000])
def test_resampling_is_torchaudios(rate, target):
    wave = torch.rand(2, 3, rate + 7) - 0.5
    expected = torchaudio.transforms.Resample(rate, target)(wave)
    torch.testing.assert_close(resample(wave, rate, target), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("rate", "target"), [(8000, 16000), (44100, 16000), (48000, 24000), (16000, 48000)])
def test_resampling_agrees_with_scipy_on_band_limited_signals(rate, target):
    samples = tone(rate, 500.0) + 0.5 * tone(rate, 1700.0)
    divisor = math.gcd(rate, target)
    expected = scipy.signal.resample_poly(samples.astype(np.float64), target // divisor, rate // divisor)
    found = resample(torch.from_numpy(samples), rate, target)
    np.testing.assert_allclose(found, expected[: found.shape[-1]], atol=3e-3)


def test_frequencies_above_half_the_new_rate_are_removed():
    assert resample(torch.from_numpy(tone(48000, 14000.0)), 48000, 16000).abs().max() < 0.01


@pytest.mark.parametrize("target", [16000, 24000])
@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_a_sample_is_the_same_to_the_bit_in_a_batch_of_any_length_and_with_any_number_of_threads(rate, target):
    waves = torch.rand(3, 2 * rate) - 0.5
    together = resample(waves, rate, target)
    before = torch.get_num_threads()
    for threads, item, found in zip((1, 2, 3), waves, together, strict=True):
        torch.set_num_threads(threads)
        alone = resample(item[: rate + 1], rate, target)
        torch.set_num_threads(before)
        whole = target - 200  # What the end of the shorter signal cannot have changed.
        assert torch.equal(alone[:whole], found[:whole])


@pytest.mark.parametrize(("source", "target"), [(0, 16000), (16000, 0), (-8000, 16000)])
def test_rates_are_positive(source, target):
    with pytest.raises(AudioError, match="sample rates are positive"):
        resample(torch.zeros(1, 10), source, target)


def test_a_ratio_whose_filters_would_fill_the_memory_is_refused():
    with pytest.raises(
        AudioError, match=r"15999 Hz cannot be resampled to 44101 Hz.*convert the audio to a usual rate"
    ):
        resample(torch.zeros(1, 10), 15999, 44101)
