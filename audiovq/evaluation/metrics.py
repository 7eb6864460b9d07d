"""How close a reconstruction is to its original.

Every metric compares two waveforms [1, T] of equal length and returns a number, or raises `MetricError` with
the reason why there is none. Such failures are counted and named; they never enter a mean.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from audiovq.errors import AudioVQError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

PESQ_RATE = 16000
"""Rate in Hz at which wide-band PESQ is defined."""
PESQ_SECONDS = 20
"""Longest signal that PESQ gets in one piece. Its reference code has room for 50 stretches of speech, each
at least 0.2 s long and as far apart, and writes past its arrays beyond that: longer signals can crash it."""
SILENCE = 2**-15
"""A signal that stays within this of its mean, the smallest step of 16-bit audio, is silent."""
MAX_SI_SDR = 144.0
"""In dB; beyond it, float32 waveforms cannot tell a distortion from none, or a trace of the original from none."""


class MetricError(AudioVQError):
    """A metric that has no value for this pair of signals; the message is the reason."""


class Weighted(float):
    """A value that counts `weight` times in a mean, as an error rate does that is taken over so many words."""

    weight: float

    def __new__(cls, value: float, weight: float) -> Weighted:
        weighted = super().__new__(cls, value)
        weighted.weight = weight
        return weighted


def pesq_wb(reference: Float[Tensor, "1 time"], degraded: Float[Tensor, "1 time"], sample_rate: int) -> float:
    """Wide-band PESQ: predicted mean opinion score, about 1 (worst) to 4.64 (ITU-T P.862.2; package `pesq`).

    Signals at another rate are resampled to 16 kHz. Signals longer than 20 s are cut into the fewest equal
    pieces of at most 20 s, and the scores averaged.

    Raises:
        MetricError: no utterance is found, or the signals are shorter than 0.25 s, silent or not finite.
    """
    from pesq import PesqError, pesq

    from audiovq.audio.resampling import resample

    check_signals(reference, degraded)
    pair = (wave.detach().cpu().float() for wave in (reference, degraded))
    clean, noisy = (resample(wave, sample_rate, PESQ_RATE)[0].numpy() for wave in pair)
    pieces = math.ceil(len(clean) / (PESQ_SECONDS * PESQ_RATE))
    scores = []
    for original, decoded in zip(np.array_split(clean, pieces), np.array_split(noisy, pieces), strict=True):
        _refuse_silence(original, decoded)
        try:
            scores.append(float(pesq(PESQ_RATE, original, decoded, "wb")))
        except PesqError as error:
            reason = error.args[0]
            raise MetricError(reason.decode() if isinstance(reason, bytes) else str(reason)) from error
    return float(np.mean(scores))


def stoi(reference: Float[Tensor, "1 time"], degraded: Float[Tensor, "1 time"], sample_rate: int) -> float:
    """Short-time objective intelligibility, up to 1 (Taal et al., 2011; package `pystoi`).

    Raises:
        MetricError: less than about 0.4 s of speech, or the signals are silent or not finite.
    """
    return _stoi(reference, degraded, sample_rate, extended=False)


def estoi(reference: Float[Tensor, "1 time"], degraded: Float[Tensor, "1 time"], sample_rate: int) -> float:
    """Extended short-time objective intelligibility, up to 1 (Jensen and Taal, 2016; package `pystoi`).

    Raises:
        MetricError: less than about 0.4 s of speech, or the signals are silent or not finite.
    """
    return _stoi(reference, degraded, sample_rate, extended=True)


def mel_distance(reference: Float[Tensor, "1 time"], degraded: Float[Tensor, "1 time"], sample_rate: int) -> float:
    """Mean absolute difference of the two natural-log mel spectrograms, over all bins and frames.

    The spectrograms are those of `audiovq.audio.signal.log_mel`: 80 bins up to half the sample rate, magnitudes with
    a 1024-sample Hann window and a hop of 256 samples, floored at 1e-5. One unit is a factor of e (8.7 dB).
    Silence has a value, too. Since the window is counted in samples, compare only at equal sample rates.

    Raises:
        MetricError: the signals are not finite.
    """
    from audiovq.audio.signal import log_mel

    check_signals(reference, degraded, silence=True)
    original, decoded = (log_mel(wave.detach().cpu().float(), sample_rate) for wave in (reference, degraded))
    return (original - decoded).abs().mean().item()


def si_sdr(reference: Float[Tensor, "1 time"], degraded: Float[Tensor, "1 time"], sample_rate: int) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al., 2019).

    With s the reference and x the reconstruction less their means: 10 log10(||a s||^2 / ||a s - x||^2), where
    a = <x, s> / ||s||^2.

    Raises:
        MetricError: the ratio is infinite (a scaled copy of the reference, or nothing of it), or the signals
            are silent or not finite.
    """
    original, decoded = (wave - wave.mean() for wave in check_signals(reference, degraded))
    target = (decoded @ original) / (original @ original) * original
    distortion = decoded - target
    with np.errstate(divide="ignore"):
        ratio = float(10 * np.log10((target @ target) / (distortion @ distortion)))
    if ratio > MAX_SI_SDR:
        raise MetricError("infinite: the reconstruction is a scaled copy of the original")
    if ratio < -MAX_SI_SDR:
        raise MetricError("infinite: the reconstruction is orthogonal to the original")
    return ratio


@dataclass(frozen=True)
class Metric:
    """A metric and how a table presents it."""

    title: str
    unit: str
    higher_is_better: bool
    decimals: int
    function: Callable[[Tensor, Tensor, int], float]


METRICS = {
    "pesq_wb": Metric("PESQ-WB", "MOS", True, 2, pesq_wb),
    "stoi": Metric("STOI", "", True, 3, stoi),
    "estoi": Metric("ESTOI", "", True, 3, estoi),
    "mel_distance": Metric("Mel distance", "", False, 3, mel_distance),
    "si_sdr": Metric("SI-SDR", "dB", True, 2, si_sdr),
}
"""All metrics, by the name that they have in metrics.json."""


def measure(
    reference: Float[Tensor, "1 time"],
    degraded: Float[Tensor, "1 time"],
    sample_rate: int,
    metrics: Mapping[str, Metric] = METRICS,
) -> dict[str, float | MetricError]:
    """All metrics of one pair of waveforms; one that cannot be computed is represented by its error."""
    results: dict[str, float | MetricError] = {}
    for name, metric in metrics.items():
        try:
            results[name] = metric.function(reference, degraded, sample_rate)
        except MetricError as error:
            results[name] = error
    return results


@dataclass(frozen=True)
class MetricSummary:
    """Mean of a metric over utterances."""

    mean: float | None
    """Mean over the utterances that have a value, by their weights; None if none has."""
    ci95: tuple[float, float] | None
    """95% confidence interval of the mean, from Student's t with n - 1 degrees of freedom; None if n < 2.
    With weights w and values x, the variance is that of a ratio, n / (n - 1) * sum w^2 (x - mean)^2 / (sum w)^2.
    It takes utterances as independent, and so is too narrow where few speakers say many of them."""
    n: int
    """Utterances that have a value."""
    failed: int
    """Utterances that have none."""
    reasons: dict[str, int]
    """Why, and how often."""


def summarize(results: Iterable[float | MetricError]) -> MetricSummary:
    """Mean, 95% confidence interval and failures of one metric's results."""
    from scipy.special import stdtrit

    results = list(results)
    reasons = Counter(str(result) for result in results if isinstance(result, MetricError))
    found = [result for result in results if not isinstance(result, MetricError)]
    values, weights = np.array(found, dtype=float), np.array([weight_of(result) for result in found], dtype=float)
    n, failed = len(values), reasons.total()
    mean = float(np.average(values, weights=weights)) if n else None
    interval = None
    if mean is not None and n > 1:
        deviations = weights / weights.sum() * (values - mean)
        margin = float(stdtrit(n - 1, 0.975) * math.sqrt(n / (n - 1) * np.square(deviations).sum()))
        interval = (mean - margin, mean + margin)
    return MetricSummary(mean, interval, n, failed, dict(reasons.most_common()))


def weight_of(value: float) -> float:
    """How much a value counts in a mean."""
    return value.weight if isinstance(value, Weighted) else 1.0


def _stoi(reference: Tensor, degraded: Tensor, sample_rate: int, extended: bool) -> float:
    from pystoi import stoi as pystoi

    original, decoded = check_signals(reference, degraded)
    with warnings.catch_warnings():
        # Given too little speech, pystoi warns and returns 1e-5, which is no score; below a frame it breaks.
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(pystoi(original, decoded, sample_rate, extended=extended))
        except (RuntimeWarning, np.exceptions.AxisError) as error:
            raise MetricError("less than the 0.4 s of speech that STOI needs") from error


def check_signals(reference: Tensor, degraded: Tensor, silence: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Both waveforms as float64 arrays [T], after the checks that all metrics share.

    Raises:
        MetricError: the signals differ in shape, are not finite or, unless `silence` is allowed, silent.
    """
    if reference.shape != degraded.shape:
        raise MetricError(f"the signals differ in shape: {list(reference.shape)} and {list(degraded.shape)}")
    original, decoded = (wave.detach().cpu().reshape(-1).double().numpy() for wave in (reference, degraded))
    for name, signal in (("original", original), ("reconstruction", decoded)):
        if not np.isfinite(signal).all():
            raise MetricError(f"the {name} holds NaN or infinite samples")
    if not silence:
        _refuse_silence(original, decoded)
    return original, decoded


def _refuse_silence(original: np.ndarray, decoded: np.ndarray) -> None:
    for name, signal in (("original", original), ("reconstruction", decoded)):
        if is_silent(signal):
            raise MetricError(f"the {name} is silent")


def is_silent(signal: np.ndarray) -> bool:
    """Whether a signal [T] is silent."""
    return bool(np.abs(signal - signal.mean()).max() < SILENCE)
