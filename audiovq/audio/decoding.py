"""Where audio lies, and what the decoders of it have in common; they are in `sound` and `streams`."""

from __future__ import annotations

import errno
import io
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial, wraps
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from audiovq.errors import AudioError
from audiovq.storage import BLOCK as REMOTE_BLOCK
from audiovq.storage import HeldFile, Location
from audiovq.text import printable, warn_once

Span = tuple[int, int]
"""First byte and number of bytes of an audio file that lies within another file, such as a tar."""

RATES = range(100, 1_000_001)
"""Sample rates in Hz that audio can have; others are a damaged header, and filters for them would fill the memory."""
MAX_CHANNELS = 256
BLOCK = 2**20
"""Samples, of all channels together, that are decoded at a time."""

_UNUSABLE = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM),
    *(errno.ENXIO, errno.ENODEV, errno.EINVAL, errno.EILSEQ, errno.EOVERFLOW),
}
"""Failures that are the file's own, whichever machine opens it."""


@dataclass(frozen=True)
class Place:
    """The bytes of an audio file, and what tells the file from a later one of the same name."""

    path: Location
    first: int
    size: int
    stamp: tuple[int, ...]

    @classmethod
    def of(cls, path: Location, span: Span | None = None) -> Place:
        """Look at a file without opening it: to open a pipe is to wait for its writer.

        Raises:
            AudioError: there is no such file, it cannot be read, is empty or no file.
            OSError: the machine fails, not the file.
        """
        try:
            whole, stamp = _look(path) if isinstance(path, Path) else path.look()
        except (OSError, ValueError) as error:
            raise unusable(path, error) from error
        first, size = span or (0, whole)
        if not size:
            raise AudioError(f"{path}: is empty (0 bytes)")
        return cls(path, first, size, stamp)


def _look(path: Path) -> tuple[int, tuple[int, ...]]:
    """Size of a local file, and what tells it from another one."""
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        os.scandir(path).close()
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
        raise AudioError(f"{path}: is {kind}, expected an audio file")
    return status.st_size, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


Found = TypeVar("Found")


def once_a_place(look: Callable[[Place], Found]) -> Callable[[Place], Found]:
    """Remember, for this process, what was found in files; not of those in memory, which would stay there with it."""
    remembered = lru_cache(maxsize=2**16)(look)

    @wraps(look)
    def found(place: Place) -> Found:
        return look(place) if isinstance(place.path, HeldFile) else remembered(place)

    return found


class FilePart(io.RawIOBase):
    """The bytes of a place, as a file of its own.

    Raises:
        AudioError, OSError: as `Place.of`.
    """

    def __init__(self, place: Place):
        self.place, self._position, self._handle = place, 0, None
        self._pread = partial(_fetch, place)
        if isinstance(place.path, Path):
            try:
                self._handle = os.open(place.path, os.O_RDONLY)
            except OSError as error:
                raise unusable(place.path, error) from error
            self._pread = partial(os.pread, self._handle)

    @property
    def descriptor(self) -> int | None:
        """The file's descriptor if it is a local file, and all of it; None otherwise."""
        place = self.place
        if self._handle is None or place.first or place.size != os.fstat(self._handle).st_size:
            return None
        return self._handle

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), max(0, self.place.size - self._position))
        try:
            data = self._pread(size, self.place.first + self._position)
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
        if not self.closed and self._handle is not None:
            os.close(self._handle)
        super().close()


def _fetch(place: Place, size: int, offset: int) -> bytes:
    """What `os.pread` gives for a local file."""
    if isinstance(place.path, HeldFile):
        return place.path.fetch(size, offset)
    found = b""
    while len(found) < size:
        number, start = divmod(offset - place.first + len(found), REMOTE_BLOCK)
        piece = _block(place, number)[start : start + size - len(found)]
        if not piece:
            break
        found += piece
    return found


@lru_cache(maxsize=16)
def _block(place: Place, number: int) -> bytes:
    """A block of a remote file, counted from where the place starts: a file is opened more than once to be read."""
    start = number * REMOTE_BLOCK
    return place.path.fetch(min(REMOTE_BLOCK, place.size - start), place.first + start)  # type: ignore[union-attr]


class AudioDecoder(ABC):
    """Reads a file from its first sample to its last as one mono signal, of one channel or the mean of all."""

    sample_rate: int
    """In Hz."""
    channels: int
    channel: int | None = None
    """The channel that is read, counted from 0; None: the mean of all."""
    position: int = 0
    """The sample that is read next."""

    def mono(self, samples: np.ndarray) -> np.ndarray:
        """Of samples [T, C] the channel that is read, or the mean of all: [T]."""
        if self.channel is not None:
            return samples[:, self.channel]
        return samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)

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


def check_header(path: Location, sample_rate: int, channels: int) -> None:
    """Raise `AudioError` for a rate or a number of channels that no audio has."""
    if sample_rate not in RATES:
        limits = f"{RATES[0]} to {RATES[-1]} Hz"
        raise AudioError(f"{path}: its sample rate is {sample_rate} Hz, expected {limits}; is the file damaged?")
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError(f"{path}: has {channels} channels, expected 1 to {MAX_CHANNELS}; is the file damaged?")


def check_channel(path: Location, channels: int, channel: int | None) -> None:
    """Raise `AudioError` for a channel that a file does not have."""
    if channel is not None and not 0 <= channel < channels:
        raise AudioError(f"{path}: has {channels} channels, number {channel} (from 0 on) is asked for")


def warn_of_open_end(path: Location) -> None:
    """Warn, once a process, that a file does not say where it ends, so that nobody can see whether its end is there."""
    hint = "whether its end is missing cannot be told, nor of other such files"
    warn_once("open end", f"{path}: does not say how long it is; {hint}")


def unusable(path: Location, error: OSError | ValueError) -> Exception:
    """What to raise for a file that cannot be opened: `AudioError` if it is the file's fault.

    A failure of the machine, such as too many open files, stays an `OSError`: it says nothing about the file.
    """
    if isinstance(error, OSError) and error.errno not in _UNUSABLE:
        return OSError(error.errno, error.strerror, str(path))
    what = error.strerror if isinstance(error, OSError) else "its name holds what no file name can"
    return AudioError(f"{printable(str(path))}: cannot be read ({what})")


def undecodable(path: Location, why: str) -> AudioError:
    """What to raise where a decoder gives up."""
    return AudioError(f"{path}: cannot be decoded ({why}); is the file damaged?")


def reason(error: Exception) -> str:
    """What a library says, without its full stop."""
    return str(getattr(error, "error_string", None) or getattr(error, "strerror", None) or error).strip().rstrip(".")
