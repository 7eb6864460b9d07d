"""Where audio lies, and the decoders that read it: of libsndfile here, of FFmpeg in `streams`."""

from __future__ import annotations

import errno
import io
import os
import re
import stat
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from audiovq.audio.completeness import missing_in_file, missing_in_log, walk_ogg
from audiovq.errors import AudioError

Span = tuple[int, int]
"""First byte and number of bytes of an audio file that lies within another file, such as a tar."""

RATES = range(100, 1_000_001)
"""Sample rates in Hz that audio can have; others are a damaged header, and filters for them would fill the memory."""
MAX_CHANNELS = 256
BLOCK = 2**20
"""Samples, of all channels together, that are decoded at a time."""
MOST_IN_A_BYTE = 2**13
"""Samples that a byte can stand for; FLAC packs silence tightest."""

_UNUSABLE = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM),
    *(errno.ENXIO, errno.ENODEV, errno.EINVAL, errno.EILSEQ, errno.EOVERFLOW),
}
"""Failures that are the file's own, whichever machine opens it."""
_MPEG = re.compile(rb"ID3|\xff[\xe0-\xff]")
"""How MPEG audio begins."""
_UNKNOWN_LENGTH = 2**60
"""Samples from which on libsndfile means that a header does not tell how many there are."""
_LOST_IN_SEEKS = ("OGG", "PAF", "SDS")
"""Formats that libsndfile reads a little differently after a seek, if not wrongly."""
_SYSTEM_ERROR, _NO_MEMORY = 2, 17  # Of libsndfile.


@dataclass(frozen=True)
class Place:
    """The bytes of an audio file, and what tells the file from a later one of the same name."""

    path: Path
    first: int
    size: int
    stamp: tuple[int, ...]

    @classmethod
    def of(cls, path: Path, span: Span | None = None) -> Place:
        """Look at a file without opening it: to open a pipe is to wait for its writer.

        Raises:
            AudioError: there is no such file, it cannot be read, is empty or no file.
            OSError: the machine fails, not the file.
        """
        try:
            status = path.stat()
            if stat.S_ISDIR(status.st_mode):
                os.scandir(path).close()
        except (OSError, ValueError) as error:
            raise unusable(path, error) from error
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
            raise AudioError(f"{path}: is {kind}, expected an audio file")
        first, size = span or (0, status.st_size)
        if not size:
            raise AudioError(f"{path}: is empty (0 bytes)")
        return cls(path, first, size, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))


class FilePart(io.RawIOBase):
    """The bytes of a place, as a file of its own.

    Raises:
        AudioError, OSError: as `Place.of`.
    """

    def __init__(self, place: Place):
        try:
            self._handle = os.open(place.path, os.O_RDONLY)
        except OSError as error:
            raise unusable(place.path, error) from error
        self.place, self._position = place, 0

    def fileno(self) -> int:
        return self._handle

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), max(0, self.place.size - self._position))
        try:
            data = os.pread(self._handle, size, self.place.first + self._position)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.place.path)) from error
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.place.size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        if not self.closed:
            os.close(self._handle)
        super().close()


class Decoder(ABC):
    """Reads a file from its first sample to its last as one mono signal, channels averaged."""

    sample_rate: int
    """In Hz."""
    channels: int
    position: int = 0
    """The sample that is read next."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Samples of the file."""

    @abstractmethod
    def check_end(self) -> None:
        """Raise `AudioError` if the last sample cannot be decoded: a header says nothing about a truncated file."""

    @abstractmethod
    def read(self, count: int) -> np.ndarray:
        """The next `count` samples, float32; fewer where the file ends."""

    @abstractmethod
    def close(self) -> None:
        """Give the file back."""

    @abstractmethod
    def restart(self) -> None:
        """Go back to the first sample."""

    def seek(self, position: int) -> None:
        """Go to a sample; what is read there is what is read of the whole, to the bit."""
        if position < self.position:
            self.restart()
        while self.position < position and len(self.read(min(position - self.position, BLOCK))):
            pass


class NotReadError(Exception):
    """libsndfile does not read a file, or not to its end; the message says why."""


class SoundDecoder(Decoder):
    """What libsndfile reads exactly and to its end.

    Raises:
        NotReadError: FFmpeg has to read it.
        AudioError: it is truncated.
    """

    def __init__(self, place: Place):
        self._place = place
        self._open()
        try:
            self._check()
        except BaseException:
            self.close()
            raise
        self.sample_rate, self.channels = self._file.samplerate, self._file.channels

    @property
    def length(self) -> int:
        return _count(self._place) if self._file.format == "OGG" else self._file.frames

    def check_end(self) -> None:
        self.seek(self.length - 1)
        if not len(self.read(1)):
            raise AudioError(f"{self._place.path}: is truncated: its last sample is missing")

    def read(self, count: int) -> np.ndarray:
        parts = []
        while count:
            wanted = min(count, max(1, BLOCK // self.channels))
            try:
                samples = self._file.read(wanted, dtype="float32", always_2d=True)
            except (soundfile.LibsndfileError, RuntimeError) as error:
                raise self._failure(error) from error
            parts.append(samples[:, 0] if self.channels == 1 else samples.mean(axis=1))
            self.position += len(samples)
            count = count - wanted if len(samples) == wanted else 0
        self._raise_stashed()
        return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, np.float32), *parts])

    def seek(self, position: int) -> None:
        if not self._seeks:
            return super().seek(position)
        if position != self.position:
            try:
                self._file.seek(position)
            except (soundfile.LibsndfileError, RuntimeError) as error:
                raise self._failure(error) from error
            self.position = position
        return None

    def restart(self) -> None:
        self.close()
        self._open()
        self.position = 0

    def close(self) -> None:
        self._file.close()
        self._part.close()

    def _open(self) -> None:
        self._part = _StashingPart(self._place)
        whole = self._place.first == 0 and self._place.size == os.fstat(self._part.fileno()).st_size
        try:
            if _MPEG.match(self._part.read(4) or b""):
                raise NotReadError("MPEG audio is left to FFmpeg")
            self._part.seek(0)
            # By its descriptor a file is read without Python; its offset is still 0.
            self._file = _ReadOn(self._part.fileno() if whole else self._part, closefd=False)  # type: ignore[arg-type]
        except BaseException as error:
            self._part.close()
            self._raise_stashed()
            if isinstance(error, soundfile.LibsndfileError | TypeError):
                raise NotReadError(reason(error)) from error
            raise
        self._seeks = soundfile.SoundFile.seekable(self._file) and self._file.format not in _LOST_IN_SEEKS

    def _check(self) -> None:
        path, file = self._place.path, self._file
        if file.format == "MP3" or "MPEG" in file.subtype or not 0 <= file.frames < _UNKNOWN_LENGTH:
            raise NotReadError("its length is unknown")
        check_header(path, file.samplerate, file.channels)
        missing = missing_in_log(file.extra_info, file.frames)
        if file.format in ("NIST", "OGG"):
            position = self._part.tell()
            missing = missing_in_file(self._part, self._place.size)  # type: ignore[arg-type]
            several = file.format == "OGG" and walk_ogg(self._part, self._place.size)[0] > 1  # type: ignore[arg-type]
            self._part.seek(position)
            if several and not missing:
                raise NotReadError("holds several streams")
        if missing:
            raise AudioError(f"{path}: is truncated: {missing}")
        if file.frames > self._place.size * MOST_IN_A_BYTE:
            raise AudioError(f"{path}: its header promises {file.frames} samples, more than its bytes can hold")

    def _failure(self, error: Exception) -> Exception:
        self._raise_stashed()
        code = getattr(error, "code", 0)
        if code in (_SYSTEM_ERROR, _NO_MEMORY):
            number = errno.EIO if code == _SYSTEM_ERROR else errno.ENOMEM
            return OSError(number, os.strerror(number), str(self._place.path))
        return AudioError(f"{self._place.path}: cannot be decoded ({reason(error)}); is the file damaged?")

    def _raise_stashed(self) -> None:
        if self._part.error:
            raise self._part.error


@lru_cache(maxsize=2**16)
def _count(place: Place) -> int:
    """Samples of a file, counted once a process."""
    decoder = SoundDecoder(place)
    try:
        decoder.seek(_UNKNOWN_LENGTH)
        return decoder.position
    finally:
        decoder.close()


class _ReadOn(soundfile.SoundFile):
    """A sound file that is not sought to where it is after each read."""

    def seekable(self) -> bool:
        return False


class _StashingPart(FilePart):
    """Keeps an error for later, since none passes through libsndfile."""

    error: OSError | None = None

    def readinto(self, buffer: Any) -> int:
        try:
            return super().readinto(buffer)
        except OSError as error:
            self.error = error
            return 0


def check_header(path: Path, sample_rate: int, channels: int) -> None:
    """Raise `AudioError` for a rate or a number of channels that no audio has."""
    if sample_rate not in RATES:
        limits = f"{RATES[0]} to {RATES[-1]} Hz"
        raise AudioError(f"{path}: its sample rate is {sample_rate} Hz, expected {limits}; is the file damaged?")
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError(f"{path}: has {channels} channels, expected 1 to {MAX_CHANNELS}; is the file damaged?")


def unusable(path: Path, error: OSError | ValueError) -> Exception:
    """What to raise for a file that cannot be opened: `AudioError` if it is the file's fault.

    A failure of the machine, such as too many open files, stays an `OSError`: it says nothing about the file.
    """
    if isinstance(error, OSError) and error.errno not in _UNUSABLE:
        return OSError(error.errno, error.strerror, str(path))
    what = error.strerror if isinstance(error, OSError) else "its name holds what no file name can"
    shown = os.fsencode(path).decode("utf-8", "backslashreplace") if _encodes(path) else ascii(str(path))[1:-1]
    return AudioError(f"{shown.replace(chr(0), chr(92) + '0')}: cannot be read ({what})")


def _encodes(path: Path) -> bool:
    with suppress(UnicodeEncodeError):
        os.fsencode(path)
        return True
    return False


def reason(error: Exception) -> str:
    """What a library says, without its full stop."""
    return str(getattr(error, "error_string", None) or getattr(error, "strerror", None) or error).strip().rstrip(".")
