"""The source-driven decoder: pulses against a sum of cosines, filters against filtering, streams against the whole."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from audiovq.config import SourceDecoderConfig
from audiovq.nn.source import Controls, NoiseMaker, SourceDecoder
from audiovq.nn.stream import Stream

RATE, HOP, SUB = 16000, 320, 80


@pytest.fixture
def decoder() -> SourceDecoder:
    return SourceDecoder(SourceDecoderConfig(dim=16, layers=2), 8, HOP, RATE).eval()


def controls_of(hops: int, bins: int, harmonics: float = 0.0, noise: float = -20.0) -> Controls:
    """Filters that pass harmonics and noise with these log magnitudes at all frequencies."""
    filters = [torch.full((1, hops, bins), value) for value in (harmonics, noise, 0.0)]
    return Controls(torch.zeros(1, hops), torch.zeros(1, hops), *filters)


def test_pulses_are_a_sum_of_cosines_at_the_pitch(decoder):
    f0 = torch.tensor([[200.0, 200.0, 230.0, 90.0, 90.0]])
    found = decoder.pulses(f0, torch.ones(1, 5).bool())[0].double().numpy()
    starts = [200.0, 200.0, 200.0, 230.0, 90.0]
    pitch = np.concatenate([np.linspace(a, b, SUB + 1)[1:] for a, b in zip(starts, f0[0].tolist(), strict=True)])
    phase = 2 * np.pi * np.cumsum(pitch / RATE)
    expected = np.zeros_like(phase)
    for t, x in enumerate(phase):
        count = math.floor(RATE / 2 / pitch[t])
        expected[t] = sum(math.cos(k * x) for k in range(1, count + 1)) * math.sqrt(2 / count)
    np.testing.assert_allclose(found, expected, atol=2e-2)


def test_pulses_have_unit_power_and_no_aliases(decoder):
    wave = decoder.pulses(torch.full((1, 200), 123.0), torch.ones(1, 200).bool())[0]
    assert float(wave.square().mean()) == pytest.approx(1.0, abs=0.03)
    spectrum = torch.fft.rfft(wave * torch.hann_window(len(wave))).abs()
    frequencies = torch.fft.rfftfreq(len(wave), 1 / RATE)
    between = ((frequencies / 123) % 1 - 0.5).abs() < 0.3
    assert spectrum[between].max() < 1e-3 * spectrum.max()


def test_unvoiced_hops_are_silent_and_each_voiced_stretch_begins_with_the_same_pulse(decoder):
    voiced = torch.tensor([[1, 1, 0, 0, 1, 1, 1, 0, 1, 1]]).bool()
    wave = decoder.pulses(torch.full((1, 10), 150.0), voiced)[0].view(10, SUB)
    assert not wave[~voiced[0]].any()
    torch.testing.assert_close(wave[0], wave[4], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(wave[1], wave[9], atol=1e-4, rtol=1e-4)


def test_flat_filters_give_the_source_back_as_late_as_stated(decoder):
    hops = 40
    f0, voiced = torch.full((1, hops), 170.0), torch.ones(1, hops).bool()
    wave = decoder.synthesize(controls_of(hops, decoder.bins), f0, voiced, torch.zeros(1, hops * SUB))[0, 0]
    late = (decoder.overlap - 1) * SUB
    pulses = decoder.pulses(f0, voiced)[0]
    # The first hops are not yet part of all windows.
    torch.testing.assert_close(wave[2 * late :], pulses[late:-late], atol=1e-4, rtol=1e-4)


def test_a_filter_changes_the_spectrum_as_it_says(decoder):
    hops = 200
    controls = controls_of(hops, decoder.bins, harmonics=-20.0, noise=0.0)
    controls.noise[..., decoder.bins // 2 :] = -4.0
    noise = torch.randn(1, hops * SUB)
    wave = decoder.synthesize(controls, torch.full((1, hops), 100.0), torch.zeros(1, hops).bool(), noise)[0, 0]
    power = torch.stft(wave, 512, window=torch.hann_window(512), return_complex=True).abs().square().mean(-1)
    low, high = power[20:110].mean(), power[150:240].mean()
    assert float((high / low).log() / 2) == pytest.approx(-4.0, abs=0.2)


def test_the_true_pitch_is_asked_for_where_the_source_sounds(decoder):
    """A pulse train at the asked times comes out, after the look-ahead is taken off, when it was asked for."""
    frames, ahead = 12, 1
    times = decoder.pitch_times(frames, ahead)
    assert len(times) == (frames + ahead) * 4
    assert times.diff().unique().tolist() == [SUB]
    voiced = (times > 1600)[None]  # Voiced from sample 1600 on.
    hops = voiced.shape[1]
    wave = decoder.synthesize(
        controls_of(hops, decoder.bins), torch.full((1, hops), 200.0), voiced, torch.zeros(1, hops * SUB)
    )[0, 0, ahead * HOP :]
    first = int((wave.abs() > 0.05).nonzero()[0])
    # The hop that ends behind the sample is the first; its window is filtered with the hops before it.
    assert 1600 - SUB <= first <= 1600 + SUB


def test_training_by_the_true_pitch_measures_what_the_network_says(decoder):
    latents = torch.randn(2, 8, 6)
    hops = 6 * decoder.subframes
    f0 = torch.full((2, hops), 150.0)
    f0[:, ::3] = 0
    output = decoder.reconstruct(latents, torch.zeros(2, 1, 6 * HOP), None, f0)
    assert output.wave.shape == (2, 1, 6 * HOP)
    said = decoder.controls(latents)
    voiced = f0[0] > 0
    for item in range(2):
        expected = (said.log_f0[item, voiced] - math.log2(1.5)).abs().mean()
        torch.testing.assert_close(output.terms["pitch"][item], expected)
        likelihood = torch.where(voiced, said.voicing[item].sigmoid(), 1 - said.voicing[item].sigmoid())
        torch.testing.assert_close(output.terms["voicing"][item], -likelihood.log().mean())


def test_gradients_reach_the_filters_and_the_pitch_by_its_own_term_alone(decoder):
    latents = torch.randn(1, 8, 6)
    f0 = torch.full((1, 6 * decoder.subframes), 150.0)
    output = decoder.reconstruct(latents, torch.zeros(1, 1, 6 * HOP), None, f0)
    output.wave.square().sum().backward(retain_graph=True)
    assert decoder.filters.weight.grad.any()
    assert decoder.pitch.weight.grad is None or not decoder.pitch.weight.grad.any()
    output.terms["pitch"].sum().backward()
    assert decoder.pitch.weight.grad.any()


def with_free_spectrum() -> SourceDecoder:
    decoder = SourceDecoder(SourceDecoderConfig(dim=16, layers=2, free_spectrum=True), 8, HOP, RATE).eval()
    assert decoder.free is not None
    torch.nn.init.normal_(decoder.free.weight)
    return decoder


def test_a_free_spectrum_starts_at_nothing_and_learns():
    torch.manual_seed(0)
    plain = SourceDecoder(SourceDecoderConfig(dim=16, layers=2), 8, HOP, RATE)
    free = SourceDecoder(SourceDecoderConfig(dim=16, layers=2, free_spectrum=True), 8, HOP, RATE)
    assert free.free is not None
    free.load_state_dict(plain.state_dict() | {f"free.{name}": value for name, value in free.free.state_dict().items()})
    latents, noise = torch.randn(1, 8, 6), torch.randn(1, 6 * HOP)
    assert torch.equal(free.decode(latents, noise), plain.decode(latents, noise))
    free.decode(latents, noise).square().sum().backward()
    assert free.free.weight.grad is not None
    assert free.free.weight.grad.any()


def test_a_free_spectrum_is_added_to_the_source_as_an_inverse_stft():
    decoder, hops = with_free_spectrum(), 30
    controls = controls_of(hops, decoder.bins, harmonics=-30.0, noise=-30.0)
    wave = torch.randn(hops * SUB)
    # Windows end with their hop, as those of the source do.
    windows = torch.nn.functional.pad(wave, (decoder.fft_size - SUB, 0)).unfold(0, decoder.fft_size, SUB)
    controls.free = torch.fft.rfft(windows * decoder.window)[None]
    voiced = torch.zeros(1, hops).bool()
    found = decoder.synthesize(controls, torch.full((1, hops), 100.0), voiced, torch.zeros(1, hops * SUB))[0, 0]
    late = (decoder.overlap - 1) * SUB
    torch.testing.assert_close(found[2 * late :], wave[late:-late], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sizes", [[1] * 20, [7, 1, 12], [19, 1]])
@pytest.mark.parametrize("free", [False, True])
def test_pieces_give_what_the_whole_gives(decoder, sizes, free):
    decoder = with_free_spectrum() if free else decoder
    latents = torch.randn(2, 8, 20)
    decode = decoder.start(None, [5, 6])
    pieces = torch.cat([decode(piece) for piece in latents.split(sizes, -1)], -1)
    torch.testing.assert_close(pieces, decoder.start(None, [5, 6])(latents), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("length", [16, 50, 320])
def test_noise_is_a_function_of_seed_and_position(length):
    whole = NoiseMaker([3, 4, 3])(10, length)
    maker = NoiseMaker([3, 4, 3])
    assert torch.equal(torch.cat([maker(n, length) for n in (1, 7, 2)], -1), whole)
    frame_by_frame = torch.Generator().manual_seed(4)
    assert torch.equal(torch.cat([torch.randn(length, generator=frame_by_frame) for _ in range(10)]), whole[1])
    assert torch.equal(whole[0], whole[2])
    assert not torch.equal(whole[0], whole[1])
    assert float(whole.std()) == pytest.approx(1.0, abs=0.1)


def test_the_phase_does_not_grow_with_the_length_of_a_stream(decoder):
    stream = Stream()
    for _ in range(3):
        decoder.pulses(torch.full((1, 400), 300.0), torch.ones(1, 400).bool(), stream)
    assert stream.recall((decoder, "phase"), torch.zeros(1)).abs().max() < 300 * 1200 * SUB / RATE + 1


def test_a_pitch_above_half_the_sample_rate_is_a_number():
    decoder = SourceDecoder(SourceDecoderConfig(dim=16, layers=1), 8, 40, 1500)
    assert decoder.pulses(torch.full((1, 8), 900.0), torch.ones(1, 8).bool()).isfinite().all()
