"""Encoding one unit of work: audio files in, rows of codes out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from audiovq.data.dataset import read_ahead
from audiovq.data.manifest import Utterance
from audiovq.data.tokens import TokenRow
from audiovq.errors import AudioError
from audiovq.models.tokenizer import CHUNK_SECONDS, AudioTokenizer
from audiovq.tokenization.plan import Rejected

READERS = 4
"""Threads that read and resample audio ahead of the encoder."""


def encode_utterances(
    tokenizer: AudioTokenizer, utterances: Sequence[Utterance], batch_seconds: float
) -> tuple[list[TokenRow], list[Rejected]]:
    """Codes of utterances, in their order; those whose audio cannot be used are listed apart.

    Utterances of similar length share a batch of at most `batch_seconds` of audio, padding included. One that is too
    long to be held in memory is encoded piece by piece.
    """
    done: dict[str, TokenRow | Rejected] = {}
    batches = batch_by_length(utterances, batch_seconds)
    signals_of = read_ahead(lambda batch: _read(batch, tokenizer.sample_rate), batches, READERS)
    for batch, signals in zip(batches, signals_of, strict=True):
        for utterance, result in zip(batch, _encode(tokenizer, batch, signals), strict=True):
            done[utterance.id] = result
    ordered = [done[utterance.id] for utterance in utterances]
    return (
        [item for item in ordered if isinstance(item, TokenRow)],
        [item for item in ordered if isinstance(item, Rejected)],
    )


def batch_by_length(utterances: Sequence[Utterance], batch_seconds: float) -> list[list[Utterance]]:
    """Batches of utterances, longest first, whose padded audio stays within `batch_seconds`; at least one in each."""
    batches: list[list[Utterance]] = []
    for utterance in sorted(utterances, key=lambda item: item.duration, reverse=True):
        if batches and batches[-1][0].duration * (len(batches[-1]) + 1) <= batch_seconds:
            batches[-1].append(utterance)
        else:
            batches.append([utterance])
    return batches


Signal = Float[Tensor, "1 time"]


def _read(batch: list[Utterance], sample_rate: int) -> list[Signal | AudioError | None]:
    """The batch's waveforms; None for one that is too long to be read at once."""
    return [_read_one(utterance, sample_rate) for utterance in batch]


def _read_one(utterance: Utterance, sample_rate: int) -> Signal | AudioError | None:
    try:
        source = utterance.source()
        return source.read(sample_rate) if source.duration <= CHUNK_SECONDS else None
    except AudioError as error:
        return error


def _encode(
    tokenizer: AudioTokenizer, batch: list[Utterance], signals: list[Signal | AudioError | None]
) -> list[TokenRow | Rejected]:
    together = iter(_encode_together(tokenizer, [signal for signal in signals if isinstance(signal, Tensor)]))
    results: list[TokenRow | Rejected] = []
    for utterance, signal in zip(batch, signals, strict=True):
        try:
            if isinstance(signal, AudioError):
                raise signal
            codes, samples = next(together) if signal is not None else _encode_long(tokenizer, utterance)
        except AudioError as error:
            results.append(Rejected(utterance.id, str(utterance.path), str(error)))
        else:
            results.append(
                TokenRow(
                    utt_id=utterance.id,
                    speaker=utterance.speaker,
                    sample_rate=tokenizer.sample_rate,
                    num_samples=samples,
                    codes=codes.astype(np.uint16),
                    source=str(utterance.path),
                )
            )
    return results


def _encode_together(tokenizer: AudioTokenizer, signals: list[Signal]) -> list[tuple[np.ndarray, int]]:
    """Codes [Q, F] and length in samples of each signal, encoded as one batch."""
    if not signals:
        return []
    padded = torch.nn.utils.rnn.pad_sequence([signal[0] for signal in signals], batch_first=True)[:, None]
    codes = tokenizer.encode(padded, tokenizer.sample_rate).numpy()
    lengths = [signal.shape[-1] for signal in signals]
    return [(found[:, : tokenizer.num_frames(length)], length) for found, length in zip(codes, lengths, strict=True)]


def _encode_long(tokenizer: AudioTokenizer, utterance: Utterance) -> tuple[np.ndarray, int]:
    """Codes [Q, F] and length in samples of an utterance that is read piece by piece."""
    source = utterance.source()
    return tokenizer.encode_source(source)[0].numpy(), source.length_at(tokenizer.sample_rate)
