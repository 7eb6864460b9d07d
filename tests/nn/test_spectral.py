"""The mel filter bank of the spectral encoder against librosa, and its encoder's causality."""

from __future__ import annotations

import librosa
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from audiovq.config import SpectralEncoderConfig
from audiovq.nn.spectral import FLOOR, LowSpectrum, SpectralEncoder, log_mel_spectrum, magnitudes
from audiovq.nn.stream import Excerpt, Stream


def test_log_mel_is_that_of_librosa(mini_speech):
    layer = log_mel_spectrum(16000, window=640, hop=160, bands=80).eval()
    found = layer(mini_speech[None, :, :16000])[0].mT.numpy()
    padded = np.pad(mini_speech[0, :16000].double().numpy(), (480, 0))
    # librosa centres a window in its FFT, which changes no magnitude.
    padded = np.pad(padded, (192, 192))
    spectrum = librosa.stft(padded, n_fft=1024, hop_length=160, win_length=640, window="hann", center=False)
    bands = librosa.filters.mel(sr=16000, n_fft=1024, n_mels=80)
    expected = np.log(np.maximum(bands @ np.abs(spectrum), FLOOR))
    assert found.shape == expected.shape == (80, 100)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_low_bins_are_those_of_a_fourier_transform(mini_speech):
    found = LowSpectrum(window=1280, hop=160, bins=64).eval()(mini_speech[None, :, :16000])[0].mT.numpy()
    padded = np.pad(mini_speech[0, :16000].double().numpy(), (1120, 0))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1280) / 1280)
    for frame in (0, 13, 99):
        spectrum = np.abs(np.fft.rfft(padded[frame * 160 : frame * 160 + 1280] * window, 2048))[:64]
        np.testing.assert_allclose(found[:, frame], np.log(np.maximum(spectrum / 16, FLOOR)), atol=1e-5)


def test_evaluation_is_in_double_precision(mini_speech):
    """Quiet bands beside loud ones would lose their last digits."""
    layer = log_mel_spectrum(16000, window=640, hop=160, bands=80)
    loud = torch.sin(torch.arange(16000) * 0.3)[None, None] + 1e-5 * mini_speech[None, :, :16000]
    assert layer.eval()(loud).dtype == torch.float64
    assert layer.train()(loud).dtype == torch.float32


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"window": 160}, None),
        ({"window": 159}, "window: expected at least the 160 samples between two spectra, found 159"),
        ({"window": 300, "low_bins": 513}, None),
        ({"window": 300, "low_bins": 514}, "low_bins: expected at most 513, as many as there are, found 514"),
    ],
)
def test_a_config_that_is_accepted_can_be_computed(mini_speech, changed, message):
    settings = {"dim": 8, "layers": 1, "bands": 20, **changed}
    if message:
        with pytest.raises(ValidationError, match=message):
            SpectralEncoderConfig(**settings)
        return
    encoder, wave = SpectralEncoder(SpectralEncoderConfig(**settings), 4, 16000).eval(), mini_speech[None, :, :3200]
    assert encoder(wave).shape == (1, 4, 10)
    stream = Stream()
    pieces = [encoder(piece, stream) for piece in wave.split(960, -1)]
    torch.testing.assert_close(torch.cat(pieces, -1), encoder(wave), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("low_bins", [0, 4])
def test_the_receptive_field_is_what_a_frame_depends_on(low_bins):
    settings = {"hop_length": 20, "spectra": 2, "window": 32, "bands": 6, "low_bins": low_bins}
    encoder = SpectralEncoder(SpectralEncoderConfig(dim=8, layers=2, kernel_size=3, **settings), 4, 16000).double()
    wave = torch.randn(1, 1, 40 * 20, dtype=torch.float64, requires_grad=True)
    encoder.eval()(wave)[0, :, -1].square().sum().backward()
    seen = wave.grad[0, 0].nonzero().flatten()
    assert seen.max() == 40 * 20 - 1
    # The first sample of a Hann window counts for nothing.
    assert 40 * 20 - seen.min() == pytest.approx(encoder.receptive_field, abs=1)


def test_pieces_give_what_the_whole_gives(mini_speech):
    encoder = SpectralEncoder(SpectralEncoderConfig(dim=8, layers=2, low_bins=64), 4, 16000).eval()
    wave, stream = mini_speech[None, :, : 320 * 30], Stream()
    pieces = [encoder(piece, stream) for piece in wave.split([320 * n for n in (1, 9, 2, 18)], -1)]
    torch.testing.assert_close(torch.cat(pieces, -1), encoder(wave), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"low_bins": 64}, {"hop_length": 100, "window": 330, "low_bins": 7}])
def test_an_excerpt_of_the_features_gives_its_last_frames_as_the_whole_does(mini_speech, settings):
    encoder = SpectralEncoder(SpectralEncoderConfig(dim=8, layers=2, **settings), 4, 16000).double().eval()
    wave = mini_speech[None, :, : encoder.config.hop_length * 60].double()
    features = encoder.front(wave)
    for more in (0, 7):
        excerpt = encoder.rest(features[:, -encoder.reach - more :], Excerpt())
        assert excerpt.shape[-1] == 1 + more
        torch.testing.assert_close(excerpt, encoder(wave)[..., -excerpt.shape[-1] :])


def test_magnitudes_are_the_same_with_and_without_gradients():
    spectrum = torch.randn(3, 50, dtype=torch.complex128)
    with torch.inference_mode():
        found = magnitudes(spectrum)
    torch.testing.assert_close(found, magnitudes(spectrum), rtol=1e-15, atol=0)
    torch.testing.assert_close(found, (spectrum.real**2 + spectrum.imag**2).sqrt(), rtol=1e-15, atol=0)
