"""Audio files: finding them in folders, reading them piece by piece as one mono signal, and writing them.

torch is imported when a function first needs it, so that commands which only read headers start at once.
"""

from __future__ import annotations

import io
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile

from audiovq.audio.decoding import AudioDecoder, Place, Span, check_channel, unusable
from audiovq.audio.resampling import Resampler
from audiovq.audio.sound import NotReadError, SoundDecoder, missing_at_end
from audiovq.errors import AudioError
from audiovq.files import atomic_path
from audiovq.storage import AnyPath, HeldFile, Location, RemotePath, locate

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

_SUFFIXES = """
    wav wave bwf rf64 w64 flac aif aiff aifc aifr au snd caf sph nist wv1 wv2 voc sf ircam paf pvf svx 8svx iff avr wve
    xi ogg oga opus spx mp3 mp2 mp1 mpga m4a m4b mp4 m4v mov 3gp 3g2 aac adts webm mka mkv amr awb gsm wma asf ac3 eac3
    dts ape wv tta mpc shn ra rm
"""
AUDIO_SUFFIXES = frozenset(f".{name}" for name in _SUFFIXES.split())
"""Suffixes by which audio files are found in a folder, also those of audio that nothing here reads: it is listed."""
TAR_SUFFIXES = frozenset({".tar", ".tgz", *(f".tar.{name}" for name in ("gz", "bz2", "xz", "zst"))})
"""Suffixes of tars, which may hold audio; those that are compressed are listed alone."""


@dataclass(frozen=True)
class AudioSource:
    """A file, or a segment of it, that is read piece by piece as one mono signal.

    Channels are averaged, unless one is chosen. A piece at another sample rate is equal, to the bit, to the same piece
    of the whole segment resampled at once: the reader takes as much context on both sides as the interpolation filter
    sees. MP3, Ogg, MP4 and the like are decoded from their start for any piece, so many pieces of one long file are
    slow.
    """

    path: Location
    sample_rate: int
    """Rate of the file in Hz."""
    first: int
    """First sample of the segment, at the file's rate."""
    num_samples: int
    """Length of the segment in samples, at the file's rate."""
    span: Span | None = None
    """Where the audio lies within `path`; None: it is the whole file."""
    channel: int | None = None
    """The channel that is read, counted from 0; None: the mean of all."""

    @classmethod
    def open(
        cls,
        path: str | Location,
        offset: float = 0.0,
        duration: float | None = None,
        span: Span | None = None,
        channel: int | None = None,
    ) -> AudioSource:
        """Read a file's header.

        Args:
            offset: start of the segment in seconds.
            duration: length of the segment in seconds; None means up to the end.
            span: where in the file the audio lies, if it is not the whole file.
            channel: the channel that is read, counted from 0; None: the mean of all.

        Raises:
            AudioError: the file is missing, empty, truncated or no audio, the segment lies outside it, or it has no
                such channel.
        """
        path = path if isinstance(path, HeldFile) else locate(path)
        with _open(path, span, channel) as file:
            rate, total = file.sample_rate, file.length
        if total <= 0:
            raise AudioError(f"{path}: holds no samples")
        first = round(offset * rate)
        count = total - first if duration is None else round(duration * rate)
        if first < 0 or count <= 0 or first + count > total:
            raise AudioError(
                f"{path}: segment of {count} samples from sample {first} lies outside the file's {total} samples"
            )
        return cls(path, rate, first, count, span, channel)

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return self.num_samples / self.sample_rate

    def length_at(self, sample_rate: int) -> int:
        """Length of the segment in samples when resampled to `sample_rate`."""
        return -(-self.num_samples * sample_rate // self.sample_rate)

    def read(self, sample_rate: int | None = None, start: int = 0, count: int | None = None) -> Float[Tensor, "1 time"]:
        """Samples `start` to `start + count` of the segment, both counted at `sample_rate` (default: the file's).

        Raises:
            AudioError: the file ends early, or holds NaN or infinite samples.
        """
        rate = self.sample_rate if sample_rate is None else sample_rate
        if rate < 1:
            raise AudioError(f"{self.path}: expected a positive sample rate to read it at, found {rate} Hz")
        length = self.length_at(rate)
        stop = length if count is None else start + count
        if not 0 <= start < stop <= length:
            raise AudioError(f"{self.path}: samples {start} to {stop} asked for, the signal has {length}")
        with self._reader() as reader:
            return self._piece(reader, rate, start, stop)

    def blocks(self, sample_rate: int, size: int) -> Iterator[Float[Tensor, "1 time"]]:
        """The whole segment as consecutive blocks of `size` samples at `sample_rate`; the last may be shorter."""
        import torch

        length = self.length_at(sample_rate)
        # Read in what is resampled at a time: of a part of it, the rest would be resampled again for the next one.
        unit = 1 if sample_rate == self.sample_rate else Resampler.of(self.sample_rate, sample_rate).target
        step = -(-size // unit) * unit
        with self._reader() as reader:
            waiting = torch.zeros(1, 0)
            for start in range(0, length, step):
                piece = self._piece(reader, sample_rate, start, min(start + step, length))
                *blocks, waiting = torch.cat([waiting, piece], dim=-1).split(size, dim=-1)
                yield from blocks
                if waiting.shape[-1] == size or start + step >= length:
                    yield waiting
                    waiting = waiting[:, :0]

    def check_end(self) -> None:
        """Raise `AudioError` if the file's last sample cannot be decoded: a header says nothing of a truncated file."""
        with _open(self.path, self.span, self.channel) as file:
            file.check_end()

    @contextmanager
    def _reader(self) -> Iterator[_Reader]:
        """Open the file, if it still is the one that this was made for."""
        with _open(self.path, self.span, self.channel) as file:
            if file.sample_rate != self.sample_rate:
                raise AudioError(
                    f"{self.path}: its sample rate is {file.sample_rate} Hz, expected {self.sample_rate}; {_REPLACED}"
                )
            if (end := self.first + self.num_samples) > file.length:
                raise AudioError(f"{self.path}: holds {file.length} samples, expected at least {end}; {_REPLACED}")
            yield _Reader(self, file)

    def _piece(self, reader: _Reader, rate: int, start: int, stop: int) -> Float[Tensor, "1 time"]:
        import torch

        if rate == self.sample_rate:
            return torch.from_numpy(reader.samples(start, stop).copy())[None]

        resampler = Resampler.of(self.sample_rate, rate)
        first, last = start // resampler.target, -(-stop // resampler.target)
        begin, end = first * resampler.source - resampler.context, last * resampler.source + resampler.context
        samples = torch.from_numpy(reader.samples(max(0, begin), min(end, self.num_samples)))
        missing = max(0, -begin), max(0, end - self.num_samples)
        padded = torch.nn.functional.pad(samples, missing) if any(missing) else samples
        return resampler.blocks(padded)[None, start - first * resampler.target : stop - first * resampler.target]


_REPLACED = "has the file been replaced? Prepare the data again"


class _Reader:
    """Samples of a segment at the file's own rate.

    A piece that begins in the one before it is decoded on from where that ended.
    """

    def __init__(self, source: AudioSource, file: AudioDecoder):
        self._source, self._file = source, file
        self._start, self._last = -1, np.zeros(0, np.float32)

    def samples(self, start: int, stop: int) -> np.ndarray:
        """Samples `start` to `stop` of the segment: float32 [stop - start]."""
        end = self._start + len(self._last)
        if self._start <= start <= end <= stop:
            piece = np.concatenate([self._last[start - self._start :], self._decode(end, stop)])
        else:
            piece = self._decode(start, stop)
        self._start, self._last = start, piece
        return piece

    def _decode(self, start: int, stop: int) -> np.ndarray:
        path = self._source.path
        self._file.seek(self._source.first + start)
        samples = self._file.read(stop - start)
        if len(samples) < stop - start:
            raise AudioError(
                f"{path}: is truncated: its header promises more than the {self._file.position} samples it holds"
            )
        if not np.isfinite(samples).all():
            raise AudioError(f"{path}: holds NaN or infinite samples")
        return samples


@contextmanager
def _open(path: Location, span: Span | None, channel: int | None) -> Iterator[AudioDecoder]:
    """Open a file for reading, or say in one line why that cannot be done."""
    decoder = _decoder(Place.of(path, span), channel)
    try:
        check_channel(path, decoder.channels, channel)
        yield decoder
    finally:
        decoder.close()


def _decoder(place: Place, channel: int | None) -> AudioDecoder:
    """libsndfile's decoder if it reads the file exactly and to its end, otherwise FFmpeg's."""
    try:
        return SoundDecoder(place, channel)
    except NotReadError as error:
        if missing := missing_at_end(place):
            raise AudioError(f"{place.path}: is truncated: {missing}") from error
        if not find_spec("av"):
            unread = f"is no audio that libsndfile reads ({error}), and FFmpeg, which reads more, is not installed"
            raise AudioError(f"{place.path}: {unread}: pip install 'audiovq[media]'") from error
        from audiovq.audio.streams import StreamDecoder

        return StreamDecoder(place, str(error), channel)


def load_audio(
    path: str | Location, sample_rate: int | None = None, offset: float = 0.0, duration: float | None = None
) -> tuple[Float[Tensor, "1 time"], int]:
    """Load a file, or `duration` seconds of it from `offset` on, as mono float32 in [-1, 1].

    Args:
        sample_rate: rate in Hz to resample to; None keeps the file's.

    Returns:
        The waveform [1, T] and its sample rate in Hz.

    Raises:
        AudioError: the file is missing, empty, truncated, no audio, or holds NaN.
    """
    source = AudioSource.open(path, offset, duration)
    return source.read(sample_rate), source.sample_rate if sample_rate is None else sample_rate


def save_audio(path: str | Path, wave: Float[Tensor, "1 time"], sample_rate: int) -> None:
    """Write a mono waveform [1, T] as 16-bit PCM, in the format that the suffix names; samples beyond 1 are clipped."""
    with AudioWriter(path, sample_rate) as file:
        file.write(wave)


class AudioWriter:
    """Writes a mono file piece by piece, as `save_audio` does at once; the file appears when the block ends well."""

    def __init__(self, path: str | Path, sample_rate: int):
        self._context = self._open(Path(path), sample_rate)

    def __enter__(self) -> AudioWriter:
        self._file, self._sink = self._context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    def write(self, wave: Float[Tensor, "1 time"]) -> None:
        """Append a piece [1, T].

        Raises:
            AudioError: the piece has another shape.
            OSError: the disk is full, say.
        """
        if wave.ndim != 2 or len(wave) != 1:
            raise AudioError(f"expected a mono waveform of shape [1, T] to write, found {list(wave.shape)}")
        self._file.write(wave.detach().cpu()[0].clamp(-1, 1).numpy())
        self._sink.check()

    @staticmethod
    @contextmanager
    def _open(path: Path, sample_rate: int) -> Iterator[tuple[soundfile.SoundFile, _Sink]]:
        with atomic_path(path) as temporary, _Sink(str(temporary), "w+") as sink:
            try:
                file = soundfile.SoundFile(sink, "w", sample_rate, channels=1)
            except (soundfile.LibsndfileError, TypeError) as error:
                raise AudioError(
                    f"{path}: cannot be written at {sample_rate} Hz; choose a suffix such as .wav or .flac"
                ) from error
            with file:
                yield file, sink
            sink.check()


class _Sink(io.FileIO):
    """A file that keeps the first error of a write for later, since none passes through libsndfile."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data)
        try:
            while view and self.error is None:
                view = view[super().write(view) :]
        except OSError as error:
            self.error = error
        return len(data)

    def check(self) -> None:
        """Raise the error, if there was one."""
        if self.error is not None:
            raise self.error


def find_remote_audio(folder: RemotePath, suffixes: Collection[str] = AUDIO_SUFFIXES) -> list[RemotePath]:
    """As `find_audio_files`, below a folder of an object store.

    Raises:
        OSError: the store does not answer.
    """
    found = (path for path in folder.walk() if path.name.lower().endswith(tuple(suffixes)))
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def find_audio_files(folder: str | Path, suffixes: Collection[str] = AUDIO_SUFFIXES) -> list[Path]:
    """All audio files below a folder, by suffix, sorted; links to folders are followed, hidden names passed over.

    A folder below it that cannot be searched stands among them, so that whoever opens it hears why.

    Raises:
        AudioError: the folder is missing or cannot be read.
        OSError: the machine fails.
    """
    if not Path(folder).is_dir():
        raise AudioError(f"{folder}: is not a folder")

    closed: list[Path] = []

    def note(error: OSError) -> None:
        failure = unusable(Path(error.filename), error)
        if Path(error.filename) == Path(folder) or not isinstance(failure, AudioError):
            raise failure from error
        closed.append(Path(error.filename))

    found: list[Path] = []
    seen: set[Path] = set()  # A link may lead back to a folder above it.
    for root, folders, files in os.walk(folder, onerror=note, followlinks=True):
        place = Path(root).resolve()
        folders[:] = [] if place in seen else sorted(name for name in folders if not name.startswith("."))
        if place not in seen:
            found += [Path(root, name) for name in files if not name.startswith(".")]
        seen.add(place)
    return sorted([*closed, *(path for path in found if path.name.lower().endswith(tuple(suffixes)))])


def is_tar(path: AnyPath) -> bool:
    return path.name.lower().endswith(tuple(TAR_SUFFIXES))
