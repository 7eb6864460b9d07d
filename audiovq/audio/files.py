"""Reading and writing audio files, spectrograms and mu-law; the only module that touches audio files.

torch is imported when a function first needs it, so that commands which only read headers start at once.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile

from audiovq.audio.resampling import Resampler
from audiovq.errors import AudioError
from audiovq.files import atomic_path

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".w64", ".caf"})
"""Suffixes by which audio files are found in a folder; any other file that libsndfile reads can be named."""


Span = tuple[int, int]
"""First byte and number of bytes of an audio file that lies within another file, such as a tar."""


@dataclass(frozen=True)
class AudioSource:
    """A file, or a segment of it, that is read piece by piece as one mono signal.

    Channels are averaged. A piece at another sample rate is equal, to the bit, to the same piece of the whole
    segment resampled at once: the reader takes as much context on both sides as the interpolation filter sees. (In Opus
    files a piece that `read` seeks differs a little, since the decoder has a long memory; `blocks` does not.)
    """

    path: Path
    sample_rate: int
    """Rate of the file in Hz."""
    first: int
    """First sample of the segment, at the file's rate."""
    num_samples: int
    """Length of the segment in samples, at the file's rate."""
    channels: int = 1
    span: Span | None = None
    """Where the audio lies within `path`; None: it is the whole file."""

    @classmethod
    def open(
        cls, path: str | Path, offset: float = 0.0, duration: float | None = None, span: Span | None = None
    ) -> AudioSource:
        """Read a file's header.

        Args:
            offset: start of the segment in seconds.
            duration: length of the segment in seconds; None means up to the end.
            span: where in the file the audio lies, if it is not the whole file.

        Raises:
            AudioError: the file is missing, empty, truncated or no audio, or the segment lies outside it.
        """
        path = Path(path)
        with _open(path, span) as file:
            rate, total, channels = file.samplerate, file.frames, file.channels
        if total <= 0:
            raise AudioError(f"{path}: holds no samples")
        first = round(offset * rate)
        count = total - first if duration is None else round(duration * rate)
        if first < 0 or count <= 0 or first + count > total:
            raise AudioError(
                f"{path}: segment of {count} samples from sample {first} lies outside the file's {total} samples"
            )
        return cls(path, rate, first, count, channels, span)

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
        length = self.length_at(rate)
        stop = length if count is None else start + count
        if not 0 <= start < stop <= length:
            raise AudioError(f"{self.path}: samples {start} to {stop} asked for, the signal has {length}")
        with _open(self.path, self.span) as file:
            return self._piece(_Reader(self, file), rate, start, stop)

    def blocks(self, sample_rate: int, size: int) -> Iterator[Float[Tensor, "1 time"]]:
        """The whole segment as consecutive blocks of `size` samples at `sample_rate`; the last may be shorter."""
        import torch

        length = self.length_at(sample_rate)
        # Read in what is resampled at a time: of a part of it, the rest would be resampled again for the next one.
        unit = 1 if sample_rate == self.sample_rate else Resampler.of(self.sample_rate, sample_rate).target
        step = -(-size // unit) * unit
        with _open(self.path, self.span) as file:
            reader, waiting = _Reader(self, file), torch.zeros(1, 0)
            for start in range(0, length, step):
                piece = self._piece(reader, sample_rate, start, min(start + step, length))
                *blocks, waiting = torch.cat([waiting, piece], dim=-1).split(size, dim=-1)
                yield from blocks
                if waiting.shape[-1] == size or start + step >= length:
                    yield waiting
                    waiting = waiting[:, :0]

    def check_end(self) -> None:
        """Raise `AudioError` if the last sample cannot be decoded: a header says nothing about a truncated file."""
        with _open(self.path, self.span) as file:
            _Reader(self, file).samples(self.num_samples - 1, self.num_samples)

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


class _Reader:
    """Samples of a segment at the file's own rate, channels averaged.

    A piece that begins in the one before it is decoded on from where that ended. It is faster, and Opus needs it:
    its decoder gives slightly other samples (differences of about 0.002) after a seek.
    """

    def __init__(self, source: AudioSource, file: soundfile.SoundFile):
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
        path, position = self._source.path, self._source.first + start
        try:
            if self._file.tell() != position:
                self._file.seek(position)
            samples = self._file.read(stop - start, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise AudioError(f"{path}: cannot be decoded ({_reason(error)}); is the file damaged?") from error
        if len(samples) < stop - start:
            found = position + len(samples)
            raise AudioError(f"{path}: is truncated: its header promises more than the {found} samples it holds")
        if not np.isfinite(samples).all():
            raise AudioError(f"{path}: holds NaN or infinite samples")
        return samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)


def load_audio(
    path: str | Path, sample_rate: int | None = None, offset: float = 0.0, duration: float | None = None
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
    return source.read(sample_rate), sample_rate or source.sample_rate


def save_audio(path: str | Path, wave: Float[Tensor, "1 time"], sample_rate: int) -> None:
    """Write a mono waveform [1, T] as 16-bit PCM, in the format that the suffix names; samples beyond 1 are clipped."""
    with AudioWriter(path, sample_rate) as file:
        file.write(wave)


class AudioWriter:
    """Writes a mono file piece by piece, as `save_audio` does at once; the file appears when the block ends well."""

    def __init__(self, path: str | Path, sample_rate: int):
        self._context = self._open(Path(path), sample_rate)

    def __enter__(self) -> AudioWriter:
        self._file = self._context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    def write(self, wave: Float[Tensor, "1 time"]) -> None:
        """Append a piece [1, T].

        Raises:
            AudioError: the piece has another shape.
        """
        if wave.ndim != 2 or len(wave) != 1:
            raise AudioError(f"expected a mono waveform of shape [1, T] to write, found {list(wave.shape)}")
        self._file.write(wave.detach().cpu()[0].clamp(-1, 1).numpy())

    @staticmethod
    @contextmanager
    def _open(path: Path, sample_rate: int) -> Iterator[soundfile.SoundFile]:
        with atomic_path(path) as temporary:
            try:
                file = soundfile.SoundFile(temporary, "w", sample_rate, channels=1)
            except (soundfile.LibsndfileError, TypeError) as error:
                raise AudioError(
                    f"{path}: cannot be written at {sample_rate} Hz; choose a suffix such as .wav or .flac"
                ) from error
            with file:
                yield file


def find_audio_files(folder: str | Path, suffixes: Collection[str] = AUDIO_SUFFIXES) -> list[Path]:
    """All audio files below a folder, by suffix, sorted; links to folders are followed, hidden names passed over.

    Raises:
        AudioError: the folder is missing or cannot be read.
    """
    if not Path(folder).is_dir():
        raise AudioError(f"{folder}: is not a folder")

    def stop(error: OSError) -> None:
        raise AudioError(f"{error.filename}: folder cannot be read ({error.strerror})") from error

    found: list[Path] = []
    seen: set[Path] = set()  # A link may lead back to a folder above it.
    for root, folders, files in os.walk(folder, onerror=stop, followlinks=True):
        place = Path(root).resolve()
        folders[:] = [] if place in seen else [name for name in folders if not name.startswith(".")]
        if place not in seen:
            found += [Path(root, name) for name in files if not name.startswith(".")]
        seen.add(place)
    return sorted(path for path in found if path.suffix.lower() in suffixes)


@contextmanager
def _open(path: Path, span: Span | None = None) -> Iterator[soundfile.SoundFile]:
    """Open a file for reading, or say in one line why that cannot be done."""
    if path.is_dir():
        raise AudioError(f"{path}: is a folder, expected an audio file")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise AudioError(f"{path}: cannot be read ({error.strerror})") from error
    if empty or (span and not span[1]):
        raise AudioError(f"{path}: is empty (0 bytes)")
    with nullcontext(path) if span is None else _FilePart(path, span) as given:
        try:
            file = _ReadOn(given)  # type: ignore[arg-type]  # Any object that can be read and sought.
        except (soundfile.LibsndfileError, TypeError, UnicodeEncodeError) as error:
            raise AudioError(f"{path}: is no audio that libsndfile reads ({_reason(error)})") from error
        with file:
            if missing := _missing_bytes(file):
                raise AudioError(f"{path}: is truncated: {missing} bytes of its audio data are missing")
            yield file


class _ReadOn(soundfile.SoundFile):
    """A sound file that is not sought to where it is after each read, which makes the decoder of MP3 go astray."""

    def seekable(self) -> bool:
        return False


class _FilePart(io.RawIOBase):
    """Some bytes of a file, as a file of its own."""

    def __init__(self, path: Path, span: Span):
        self._file = path.open("rb", buffering=0)
        self._first, self._size = span
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), max(0, self._size - self._position))
        data = os.pread(self._file.fileno(), size, self._first + self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        self._file.close()
        super().close()


def _missing_bytes(file: soundfile.SoundFile) -> int:
    """How many bytes fewer a WAV, AIFF or AU file holds than its header says; libsndfile only notes it in its log."""
    match = re.search(r"^ *(?:data|SSND|Data Size) +: (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
    if not match:
        return 0
    promised, present = int(match[1]), int(match[2])
    # Programs that write to a pipe cannot know the length and promise about 2 or 4 GiB.
    return promised - present if present < promised < 0x7FFF0000 else 0


def _reason(error: Exception) -> str:
    return str(getattr(error, "error_string", error)).strip().rstrip(".")
