import math

import librosa
import numpy as np
import pytest
import scipy.stats
import torch
from pesq import pesq

from audiovq.audio.resampling import resample
from audiovq.bottlenecks.base import count_codes
from audiovq.evaluation.metrics import (
    METRICS,
    MetricError,
    estoi,
    measure,
    mel_distance,
    pesq_wb,
    si_sdr,
    stoi,
    summarize,
)
from audiovq.tokens.statistics import code_statistics

RATE = 16000


def noise_like(wave: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return torch.randn(wave.shape, generator=torch.Generator().manual_seed(seed))


def at_snr(wave: torch.Tensor, snr: float) -> torch.Tensor:
    noise = noise_like(wave)
    return wave + noise * wave.norm() / noise.norm() * 10 ** (-snr / 20)


# --- known answers ---------------------------------------------------------------------------------------


def test_identical_signals_have_the_best_score_of_each_scale(speech):
    assert pesq_wb(speech, speech, RATE) == pytest.approx(4.644, abs=1e-3)  # The largest value of P.862.2.
    assert stoi(speech, speech, RATE) == pytest.approx(1, abs=1e-9)
    assert estoi(speech, speech, RATE) == pytest.approx(1, abs=1e-9)
    assert mel_distance(speech, speech, RATE) == 0


@pytest.mark.parametrize("scale", [1.0, -0.3])
def test_si_sdr_of_a_scaled_copy_is_infinite_and_therefore_no_number(speech, scale):
    with pytest.raises(MetricError, match="infinite"):
        si_sdr(speech, speech * scale, RATE)


@pytest.mark.parametrize("name", ["pesq_wb", "stoi", "estoi", "si_sdr", "mel_distance"])
def test_less_noise_is_better(speech, name):
    metric = METRICS[name]
    scores = [metric.function(speech, at_snr(speech, snr), RATE) for snr in (0, 10, 20, 30)]
    assert scores == sorted(scores, reverse=not metric.higher_is_better)


@pytest.mark.parametrize("snr", [-10.0, 0.0, 25.0])
def test_si_sdr_is_the_snr_when_the_noise_is_orthogonal(speech, snr):
    clean = speech.double() - speech.double().mean()
    noise = noise_like(speech).double()
    noise -= noise.mean()
    noise -= clean * (noise * clean).sum() / clean.square().sum()
    noise *= clean.norm() / noise.norm() * 10 ** (-snr / 20)
    assert si_sdr(clean, clean + noise, RATE) == pytest.approx(snr, abs=1e-6)
    assert si_sdr(clean + 0.5, 3 * (clean + noise) - 0.1, RATE) == pytest.approx(snr, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_si_sdr_follows_from_the_correlation_coefficient(speech, seed):
    degraded = 0.7 * speech + 0.02 * noise_like(speech, seed) + 0.1
    rho = np.corrcoef(speech[0].double().numpy(), degraded[0].double().numpy())[0, 1]
    expected = 10 * math.log10(rho**2 / (1 - rho**2))
    assert si_sdr(speech, degraded, RATE) == pytest.approx(expected, abs=1e-6)


def test_mel_distance_of_a_change_of_level_is_the_logarithm_of_the_factor():
    wave = 0.1 * noise_like(torch.empty(1, RATE))
    assert mel_distance(wave, wave / 2, RATE) == pytest.approx(math.log(2), abs=1e-5)


def test_mel_distance_agrees_with_librosa(speech):
    degraded = at_snr(speech, 10)

    def log_mel(wave):
        mel = librosa.feature.melspectrogram(
            y=wave[0].numpy(), sr=RATE, n_fft=1024, hop_length=256, n_mels=80, power=1.0, pad_mode="constant"
        )
        return np.log(np.maximum(mel, 1e-5))

    expected = np.abs(log_mel(speech) - log_mel(degraded)).mean()
    assert mel_distance(speech, degraded, RATE) == pytest.approx(expected, rel=1e-3)


def test_pesq_and_stoi_hardly_depend_on_the_sample_rate(speech):
    degraded = at_snr(speech, 15)
    for function, tolerance in ((pesq_wb, 0.1), (stoi, 0.02), (estoi, 0.02)):
        other = function(resample(speech, RATE, 24000), resample(degraded, RATE, 24000), 24000)
        assert other == pytest.approx(function(speech, degraded, RATE), abs=tolerance)


def test_pesq_of_a_long_signal_is_the_mean_over_equal_pieces(speech):
    wave = speech.repeat(1, 20)[:, : 30 * RATE]
    degraded = at_snr(wave, 15)
    halves = [
        pesq(RATE, wave[0, part].numpy(), degraded[0, part].numpy(), "wb")
        for part in (slice(0, 15 * RATE), slice(15 * RATE, None))
    ]
    assert pesq_wb(wave, degraded, RATE) == pytest.approx(np.mean(halves))


def test_pesq_survives_more_bursts_than_its_reference_code_has_room_for():
    # 40 s of bursts that are as dense as its detector can tell them apart: 95 where 50 are held.
    time = torch.arange(40 * RATE) / RATE
    wave = 0.1 * noise_like(time)[None] * (time % 0.42 < 0.21)
    assert 1 < pesq_wb(wave, wave + 0.001 * noise_like(wave, 1), RATE) < 4.65


# --- failures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [pesq_wb, stoi, estoi, si_sdr])
def test_silence_has_no_score(speech, function):
    silence = torch.full_like(speech, 0.2)  # A constant is silent, too.
    with pytest.raises(MetricError, match="the original is silent"):
        function(silence, speech, RATE)
    with pytest.raises(MetricError, match="the reconstruction is silent"):
        function(speech, silence, RATE)


def test_silence_has_a_mel_distance(speech):
    silence = torch.zeros_like(speech)
    assert mel_distance(silence, silence, RATE) == 0
    assert mel_distance(speech, silence, RATE) > 1


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_samples_that_are_not_finite_have_no_score(speech, name, bad):
    broken = speech.clone()
    broken[0, 100] = bad
    with pytest.raises(MetricError, match="the reconstruction holds NaN or infinite samples"):
        METRICS[name].function(speech, broken, RATE)


@pytest.mark.parametrize("name", METRICS)
def test_signals_of_different_length_have_no_score(speech, name):
    with pytest.raises(MetricError, match="differ in shape"):
        METRICS[name].function(speech, speech[:, :-1], RATE)


@pytest.mark.parametrize("samples", [2, 200, 3000])
def test_short_signals_have_no_pesq_and_no_stoi(samples):
    wave = 0.1 * noise_like(torch.empty(1, samples))
    degraded = wave + 0.01 * noise_like(wave, 1)
    with pytest.raises(MetricError, match="1/4 of a second"):
        pesq_wb(wave, degraded, RATE)
    for function in (stoi, estoi):
        with pytest.raises(MetricError, match=r"0\.4 s of speech"):
            function(wave, degraded, RATE)


def test_too_little_speech_in_a_long_signal_has_no_stoi():
    wave = torch.zeros(1, 3 * RATE)
    wave[:, RATE : RATE + 3000] = 0.1 * noise_like(torch.empty(3000))
    with pytest.raises(MetricError, match=r"0\.4 s of speech"):
        stoi(wave, wave + 1e-3 * noise_like(wave), RATE)


def test_a_burst_that_is_no_utterance_has_no_pesq():
    wave = torch.zeros(1, RATE)
    wave[:, 2000:2800] = 0.1 * noise_like(torch.empty(800))
    with pytest.raises(MetricError, match="No utterances detected"):
        pesq_wb(wave, wave + 1e-3 * noise_like(wave), RATE)


def test_measure_keeps_the_metrics_that_work_when_one_fails(speech):
    short = speech[:, 8000:11000]
    results = measure(short, at_snr(short, 20), RATE)
    assert list(results) == list(METRICS)
    assert {name for name, result in results.items() if isinstance(result, MetricError)} == {
        "pesq_wb",
        "stoi",
        "estoi",
    }


# --- means -----------------------------------------------------------------------------------------------


def test_the_interval_is_students():
    values = [1.0, 2.5, 2.0, 4.0, 3.2]
    summary = summarize(values)
    expected = scipy.stats.t.interval(0.95, 4, np.mean(values), scipy.stats.sem(values))
    assert (summary.mean, summary.n, summary.failed) == (pytest.approx(2.54), 5, 0)
    assert summary.ci95 == pytest.approx(expected)


def test_failures_are_counted_by_reason_and_never_averaged():
    summary = summarize([1.0, MetricError("silent"), 3.0, MetricError("short"), MetricError("silent")])
    assert (summary.mean, summary.n, summary.failed) == (2.0, 2, 3)
    assert summary.reasons == {"silent": 2, "short": 1}


def test_a_mean_needs_a_value_and_an_interval_two():
    assert summarize([MetricError("silent")]).mean is None
    assert summarize([MetricError("silent")]).ci95 is None
    assert summarize([1.0]).mean == 1
    assert summarize([1.0]).ci95 is None


# --- codes -----------------------------------------------------------------------------------------------


def test_codes_used_equally_have_the_perplexity_of_the_codebook():
    statistics = code_statistics(np.full((2, 8), 5), [8, 8], frame_rate=50.0)
    assert statistics.perplexity == pytest.approx([8, 8])
    assert statistics.entropy == pytest.approx([3, 3])
    assert statistics.used == [8, 8]
    assert statistics.frames == 40
    assert statistics.nominal_bitrate == statistics.empirical_bitrate == pytest.approx(50 * 2 * 3)


def test_a_single_code_has_perplexity_one_and_costs_nothing():
    statistics = code_statistics(np.array([[0, 7, 0, 0]]), [4], frame_rate=50.0)
    assert (statistics.perplexity, statistics.used, statistics.empirical_bitrate) == ([1], [1], 0)
    assert statistics.nominal_bitrate == 100


def test_each_codebook_counts_with_its_own_size():
    """Those of the smaller one end with columns that stand for no code."""
    counts = np.array([[5] * 8, [9, 9, 9, 0, 0, 0, 0, 0]])
    statistics = code_statistics(counts, [8, 4], frame_rate=50.0)
    assert (statistics.sizes, statistics.used, statistics.dead) == ([8, 4], [8, 3], [0, 1])
    assert statistics.nominal_bitrate == 50 * (3 + 2)


def test_entropy_agrees_with_scipy_and_few_frames_bound_the_perplexity():
    codes = torch.randint(0, 512, (1, 3, 40), generator=torch.Generator().manual_seed(0))
    counts = count_codes(codes, 512).numpy()
    statistics = code_statistics(counts, [512] * 3, frame_rate=75.0)
    assert statistics.entropy == pytest.approx([scipy.stats.entropy(row, base=2) for row in counts])
    assert all(perplexity <= 40 for perplexity in statistics.perplexity)
    assert statistics.used == [len(book.unique()) for book in codes[0]]
    assert statistics.empirical_bitrate == pytest.approx(75 * sum(statistics.entropy))
