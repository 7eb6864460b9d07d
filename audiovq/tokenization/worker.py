"""Encoding units of work: audio files in, rows of codes out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import repeat

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

import audiovq
from audiovq.audio.files import AudioSource
from audiovq.batching import batch_by_length, read_ahead
from audiovq.data.items import Item
from audiovq.devices import full_float32, single_threaded
from audiovq.errors import AudioError, TokenError
from audiovq.models.tokenizer import AudioTokenizer
from audiovq.storage import AnyPath
from audiovq.text import escape
from audiovq.tokenization.claim import writing
from audiovq.tokenization.commit import commit_unit
from audiovq.tokenization.plan import Unit
from audiovq.tokens import TokenRow
from audiovq.tokens.records import Rejected, Sidecar

READERS = 4
"""Threads that read and resample audio for an accelerator."""


@dataclass(frozen=True)
class EncodingSettings:
    """How units are encoded. No code depends on the first two."""

    batch_seconds: float | None = None
    """Audio in a batch, padding included; a longer utterance is read and encoded piece by piece. None: as much as the
    device encodes at a time."""
    max_seconds: float | None = None
    """Longer utterances are rejected; None: there is no limit."""
    num_codebooks: int | None = None
    """How many of the model's codebooks are used, the first ones; None: all."""


@dataclass(frozen=True)
class Encoded:
    """What became of a unit's utterances, in their order."""

    unit: Unit
    rows: list[TokenRow]
    rejected: list[Rejected]


def encode_units(tokenizer: AudioTokenizer, units: Iterable[Unit], settings: EncodingSettings) -> Iterator[Encoded]:
    """Encode units one after another; those whose audio cannot be used are listed apart.

    What comes out for a unit depends on it, the model, `settings.max_seconds` and `settings.num_codebooks` alone.
    Batches are read ahead, those of the next unit too: `units` is asked for it as soon as that can begin.
    """
    done: dict[str, TokenRow | Rejected] = {}
    with full_float32():
        for unit, batch, results in _encode_batches(tokenizer, units, settings):
            done |= {item.id: result for item, result in zip(batch, results, strict=True)}
            if len(done) == len(unit.items):
                ordered = [done[item.id] for item in unit.items]
                rows = [result for result in ordered if isinstance(result, TokenRow)]
                yield Encoded(unit, rows, [result for result in ordered if isinstance(result, Rejected)])
                done = {}


def _encode_batches(
    tokenizer: AudioTokenizer, units: Iterable[Unit], settings: EncodingSettings
) -> Iterator[tuple[Unit, list[Item], list[TokenRow | Rejected]]]:
    """The units' batches with what became of each utterance.

    On a CPU each core reads and encodes batches of its own: there is always enough for all of them to do, and none
    waits for the others as the threads of one convolution do. An accelerator has its batches read by other threads.
    """
    batch_seconds = settings.batch_seconds or tokenizer.chunk_seconds

    def seconds(item: Item) -> float:
        # What could not be used when the plan was made may have been repaired since: it gets a batch of its own.
        return item.seconds or batch_seconds

    batches = ((unit, batch) for unit in units for batch in batch_by_length(unit.items, seconds, batch_seconds))

    def read(given: tuple[Unit, list[Item]]) -> tuple[Unit, list[Item], list[Read]]:
        return *given, [
            _read_one(item, tokenizer.sample_rate, batch_seconds, settings.max_seconds) for item in given[1]
        ]

    def encode(given: tuple[Unit, list[Item], list[Read]]) -> tuple[Unit, list[Item], list[TokenRow | Rejected]]:
        unit, batch, signals = given
        return unit, batch, _encode(tokenizer, batch, signals, settings.num_codebooks)

    if tokenizer.device.type == "cpu":
        with single_threaded() as cores:
            yield from read_ahead(lambda given: encode(read(given)), batches, cores)
    else:
        yield from map(encode, read_ahead(read, batches, READERS))


Signal = Float[Tensor, "1 time"]
Read = Signal | AudioSource | AudioError
"""A waveform, or the open file of one that is too long to be read at once, or why it cannot be used."""


def _read_one(item: Item, sample_rate: int, batch_seconds: float, limit: float | None) -> Read:
    try:
        _check_text(item)
        source = item.open()
        if limit is not None and source.duration > limit:
            raise AudioError(f"{item.name}: is {source.duration:.3f} s long, more than the limit of {limit:g} s")
        return source.read(sample_rate) if source.duration <= batch_seconds else source
    except AudioError as error:
        return error


def _check_text(item: Item) -> None:
    for name, value in (("file name", item.name), ("speaker", item.speaker)):
        if escape(value or "") != (value or ""):
            raise AudioError(f"{escape(item.name)}: its {name} is no UTF-8, as a token data set needs it")


def _encode(
    tokenizer: AudioTokenizer, batch: list[Item], signals: list[Read], books: int | None
) -> list[TokenRow | Rejected]:
    waves = [signal for signal in signals if isinstance(signal, Tensor)]
    together = iter(_encode_together(tokenizer, waves, books))
    results: list[TokenRow | Rejected] = []
    for item, signal in zip(batch, signals, strict=True):
        try:
            if isinstance(signal, AudioError):
                raise signal
            codes, samples = next(together) if isinstance(signal, Tensor) else _encode_long(tokenizer, signal, books)
        except AudioError as error:
            results.append(Rejected(item.id, escape(item.name), escape(str(error))))
        else:
            results.append(
                TokenRow(
                    utt_id=item.id,
                    speaker=item.speaker,
                    sample_rate=tokenizer.sample_rate,
                    num_samples=samples,
                    codes=codes.astype(np.uint16),
                    source=item.name,
                )
            )
    return results


def _encode_together(
    tokenizer: AudioTokenizer, signals: list[Signal], books: int | None
) -> list[tuple[np.ndarray, int]]:
    """Codes [Q, F] and length in samples of each signal, encoded as one batch."""
    if not signals:
        return []
    padded = torch.nn.utils.rnn.pad_sequence([signal[0] for signal in signals], batch_first=True)[:, None]
    codes = tokenizer.encode(padded, tokenizer.sample_rate, books).numpy()
    lengths = [signal.shape[-1] for signal in signals]
    return [(found[:, : tokenizer.num_frames(length)], length) for found, length in zip(codes, lengths, strict=True)]


def _encode_long(tokenizer: AudioTokenizer, source: AudioSource, books: int | None) -> tuple[np.ndarray, int]:
    """Codes [Q, F] and length in samples of an utterance that is read piece by piece."""
    if tokenizer.device.type == "cpu":
        codes = tokenizer.encode_source(source, books)
    else:
        codes = tokenizer.encode_pieces(_pieces_ahead(tokenizer, source), books)
    return codes[0].numpy(), source.length_at(tokenizer.sample_rate)


def _pieces_ahead(tokenizer: AudioTokenizer, source: AudioSource) -> Iterator[Float[Tensor, "1 1 time"]]:
    """The pieces of an utterance, the next one read while one is encoded."""
    blocks = source.blocks(tokenizer.sample_rate, tokenizer.piece_samples())
    for piece in read_ahead(lambda _: next(blocks, None), repeat(None), threads=1):
        if piece is None:
            return
        yield piece[None]


_PACKAGES = ("torch", "torchaudio", "numpy", "soundfile", "av", "pyarrow")
"""What codes may depend on; PyAV is an extra."""


@dataclass(frozen=True)
class TokenizingJob:
    """A model, and where its codes go; small, so that it can be sent to other processes."""

    model: str
    """Folder of the model, or its name on the Hugging Face Hub."""
    weights_sha256: str
    """What the model is expected to be."""
    output: AnyPath
    settings: EncodingSettings
    device: str = "auto"

    def load(self, device: str | None = None) -> AudioTokenizer:
        """The model, on `device` or the job's.

        Raises:
            TokenError: it is no longer the one that the job began with.
        """
        tokenizer = AudioTokenizer.from_pretrained(self.model, device or self.device)
        if not tokenizer.made(self.weights_sha256):
            raise TokenError(f"{self.model}: has changed since the job began; start the job again")
        return tokenizer


def _versions() -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def work(job: TokenizingJob, tokenizer: AudioTokenizer, units: Iterable[Unit]) -> Iterator[Sidecar]:
    """Encode and commit units one after another; yields the sidecar of each when it is safely on disk."""
    made_by = {
        "weights_sha256": job.weights_sha256,
        "num_codebooks": job.settings.num_codebooks,
        "device": tokenizer.device.type,
        "dtype": "float32",
        "versions": {"audiovq": audiovq.__version__, **_versions()},
    }
    _ = tokenizer.exact  # Made now, so that no unit waits for it.
    with writing(job.output):
        for encoded in encode_units(tokenizer, units, job.settings):
            yield commit_unit(job.output, encoded, made_by)
