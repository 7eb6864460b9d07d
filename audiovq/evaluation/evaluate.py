"""Evaluating a tokenizer on a set of utterances: metrics of its reconstructions, and use of its codes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from audiovq.batching import evenly_spread
from audiovq.errors import AudioError, SpeakerError
from audiovq.evaluation.judges import Judges
from audiovq.evaluation.metrics import METRICS, Metric, MetricError, MetricSummary, measure, summarize
from audiovq.text import name_sizes, watched
from audiovq.tokens.statistics import CodeStatistics, code_statistics

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Int64
    from torch import Tensor

    from audiovq.data.manifest import Utterance
    from audiovq.models.tokenizer import AudioTokenizer

    Results = dict[str, float | MetricError]


BLOCK_SECONDS = 30
"""Length of the blocks in which utterances are read for their mean spectrum."""


@dataclass(frozen=True)
class Scores:
    """The metrics of one utterance."""

    utterance: Utterance
    seconds: float
    model: Results
    """Of the tokenizer's reconstruction."""
    noise: Results
    """Of mean-spectrum noise in its place, which no judge hears."""


@dataclass(frozen=True)
class Example:
    """An utterance to look at and listen to."""

    scores: Scores
    original: Float[Tensor, "1 time"]
    decoded: Float[Tensor, "1 time"]
    codes: Int64[Tensor, "books frames"] | None


@dataclass(frozen=True)
class Evaluation:
    """All that an evaluation found."""

    model: dict[str, Any]
    """Its name and what `describe` says of it."""
    data: str
    """Where the utterances come from."""
    scores: list[Scores]
    rejected: dict[str, str]
    """Utterances whose audio cannot be used: reason by id."""
    code_counts: np.ndarray | None
    """How often each code occurs in all utterances, int64 [Q, K]; None for a model without codes."""
    codes: CodeStatistics | None
    examples: list[Example]
    judges: Judges

    @property
    def metrics(self) -> dict[str, Metric]:
        """All metrics, those of the judges included."""
        return {**METRICS, **self.judges.metrics}

    @property
    def seconds(self) -> float:
        """Length of all utterances that were evaluated."""
        return sum(scores.seconds for scores in self.scores)

    def summaries(self) -> dict[str, MetricSummary]:
        """Each metric of the tokenizer's reconstructions."""
        return {name: summarize(scores.model[name] for scores in self.scores) for name in self.metrics}

    def noise_summaries(self) -> dict[str, MetricSummary]:
        """Each metric of mean-spectrum noise, which knows nothing of the utterance."""
        return {name: summarize(scores.noise[name] for scores in self.scores) for name in METRICS}


def evaluate(
    tokenizer: AudioTokenizer,
    utterances: Sequence[Utterance],
    model_name: str,
    data_name: str,
    examples: int = 8,
    judges: Judges = Judges(),
    num_codebooks: int | None = None,
) -> Evaluation:
    """Reconstruct every utterance and compare it with its original, at the tokenizer's sample rate.

    As a lower reference, the same metrics are computed with each utterance replaced by noise that has the
    mean spectrum and level of the whole set.

    Args:
        model_name: how the report calls the tokenizer.
        data_name: how the report calls the utterances.
        examples: number of utterances to look at and listen to, evenly spread over the set.
        judges: who hears the reconstructions, too.
        num_codebooks: how many of the model's codebooks are used, the first ones; None: all.

    Raises:
        AudioError: none of the utterances can be read.
        SpeakerError: the model is told who speaks, and does not know the speaker of an utterance.
        TokenError: the model has not so many codebooks.
    """
    from audiovq.bottlenecks.base import count_codes

    if num_codebooks is not None:
        tokenizer.require_codes(num_codebooks)
    check_speakers(tokenizer, utterances)
    sizes = list(tokenizer.codebook_sizes[:num_codebooks])
    rate = tokenizer.sample_rate
    rejected: dict[str, str] = {}
    readable: list[Utterance] = []
    spectrum = mean_spectrum(_read_blocks(watched(utterances, "Reading"), rate, readable, rejected))
    if not readable:
        reason = next(iter(rejected.values()), "the manifest is empty")
        raise AudioError(f"none of the {len(utterances)} utterances can be evaluated: {reason}")

    kept = {utterance.id for utterance in evenly_spread(readable, examples)}
    scores, shown, counts = [], [], None
    for seed, utterance in enumerate(watched(readable, "Evaluating")):
        try:
            original = utterance.source().read(rate)
        except AudioError as error:  # It was there a moment ago.
            rejected[utterance.id] = str(error)
            continue
        noise = mean_spectrum_noise(spectrum, original.shape[-1], seed)
        example = _reconstructed(tokenizer, utterance, original, noise, judges, seed, num_codebooks)
        scores.append(example.scores)
        if example.codes is not None:
            found = count_codes(example.codes[None], max(sizes)).numpy()
            counts = found if counts is None else counts + found
        if utterance.id in kept:
            shown.append(example)
    statistics = None if counts is None else code_statistics(counts, sizes, tokenizer.frame_rate)
    model = {"name": model_name, **describe(tokenizer, num_codebooks)}
    return Evaluation(model, data_name, scores, rejected, counts, statistics, shown, judges)


def _reconstructed(
    tokenizer: AudioTokenizer,
    utterance: Utterance,
    original: Float[Tensor, "1 time"],
    noise: Float[Tensor, "1 time"],
    judges: Judges,
    seed: int,
    num_codebooks: int | None,
) -> Example:
    """An utterance, what the tokenizer and what noise make of it, and how near these are."""
    rate = tokenizer.sample_rate
    voice = utterance.speaker if tokenizer.speakers else None
    decoded, codes = tokenizer.reconstruct(original, rate, speaker=voice, seed=seed, num_codebooks=num_codebooks)
    decoded = decoded[0].cpu()
    of_model = measure(original, decoded, rate, {**METRICS, **judges.metrics})
    scores = Scores(utterance, original.shape[-1] / rate, of_model, measure(original, noise, rate))
    return Example(scores, original, decoded, None if codes is None else codes[0].cpu())


def check_speakers(tokenizer: AudioTokenizer, utterances: Iterable[Utterance]) -> None:
    """Raise `SpeakerError` if a model with speakers does not know that of an utterance."""
    for utterance in utterances if tokenizer.speakers else ():
        try:
            tokenizer.speaker_number(utterance.speaker)
        except SpeakerError as error:
            raise SpeakerError(f"utterance {utterance.id!r}: {error}") from error


def describe(tokenizer: AudioTokenizer, num_codebooks: int | None) -> dict[str, Any]:
    """What identifies a tokenizer in a report, with its first few codebooks; bitrate and numbers of codebooks are None
    for a model without codes."""
    sizes = tokenizer.codebook_sizes[:num_codebooks]
    return {
        "weights_sha256": tokenizer.weights_sha256,
        "num_parameters": tokenizer.num_parameters,
        "sample_rate": tokenizer.sample_rate,
        "hop_length": tokenizer.hop_length,
        "frame_rate": tokenizer.frame_rate,
        "codes": name_sizes(sizes),
        "num_codebooks": len(sizes) or None,
        "model_codebooks": tokenizer.num_codebooks or None,
        "bitrate": tokenizer.bitrate_of(len(sizes)) or None,
    }


def _read_blocks(
    utterances: Iterable[Utterance], rate: int, readable: list[Utterance], rejected: dict[str, str]
) -> Iterator[Float[Tensor, "1 time"]]:
    """Blocks of all utterances; sorts these into what can be read to its end and what cannot."""
    for utterance in utterances:
        try:
            yield from utterance.source().blocks(rate, BLOCK_SECONDS * rate)
        except AudioError as error:
            rejected[utterance.id] = str(error)
        else:
            readable.append(utterance)


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
