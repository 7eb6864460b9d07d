"""Audio that libsndfile decodes: WAV in all its codings, FLAC, AIFF, NIST, CAF and the like, whole Ogg files, MP3."""

from __future__ import annotations

import errno
import os
import re
from typing import Any

import numpy as np
import soundfile

from audiovq.audio.completeness import has_open_end, missing_in_file, missing_in_log, walk_ogg, wrong_ogg_page
from audiovq.audio.decoding import (
    BLOCK,
    AudioDecoder,
    FilePart,
    Place,
    check_header,
    once_a_place,
    reason,
    undecodable,
    warn_of_open_end,
)
from audiovq.audio.mpeg import MpegFrames, walk_mpeg
from audiovq.errors import AudioError

MOST_IN_A_BYTE = 2**13
"""Samples that a byte can stand for; FLAC packs silence tightest."""

_MPEG = re.compile(rb"ID3|\xff[\xe0-\xff]")
"""How MPEG audio begins."""
_UNKNOWN_LENGTH = 2**60
"""Samples from which on libsndfile means that a header does not tell how many there are."""
_LOST_IN_SEEKS = ("OGG", "MP3", "PAF", "SDS")
"""Formats that libsndfile reads a little differently after a seek, if not wrongly."""
_SYSTEM_ERROR, _NO_MEMORY = 2, 17  # Of libsndfile.


class NotReadError(Exception):
    """libsndfile does not read a file, or not to its end; the message says why."""


class SoundDecoder(AudioDecoder):
    """What libsndfile reads exactly and to its end.

    Raises:
        NotReadError: FFmpeg has to read it.
        AudioError: it is truncated.
    """

    def __init__(self, place: Place, channel: int | None = None):
        self._place, self.channel, self._mpeg = place, channel, None
        self._open()
        try:
            self._check()
        except BaseException:
            self.close()
            raise
        self.sample_rate, self.channels = self._file.samplerate, self._file.channels

    @property
    def length(self) -> int:
        if self._mpeg and not self._mpeg.counted:
            return self._mpeg.samples  # libsndfile estimates it.
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
            parts.append(self.mono(samples))
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
        try:
            if _MPEG.match(self._part.read(4) or b""):
                self._check_mpeg()
            self._part.seek(0)
            # By its descriptor a file is read without Python; its offset is still 0.
            whole = self._part.descriptor
            self._file = _ReadOn(self._part if whole is None else whole, closefd=False)  # type: ignore[arg-type]
        except BaseException as error:
            self._part.close()
            self._raise_stashed()
            if isinstance(error, soundfile.LibsndfileError | TypeError):
                raise NotReadError(reason(error)) from error
            raise
        self._seeks = soundfile.SoundFile.seekable(self._file) and self._file.format not in _LOST_IN_SEEKS

    def _check_mpeg(self) -> None:
        """Check what begins as MPEG audio before libsndfile sees it, which would leave out what it does not expect."""
        frames = self._mpeg = _mpeg_frames(self._place)
        if frames.odd:
            raise NotReadError(frames.odd)
        if frames.missing:
            raise AudioError(f"{self._place.path}: is truncated: {frames.missing}")
        if frames.damaged is not None:
            where = f"the frame at byte {frames.damaged} has no meaning"
            raise undecodable(self._place.path, where)
        if not frames.counted:
            warn_of_open_end(self._place.path)

    def _check(self) -> None:
        path, file = self._place.path, self._file
        mpeg = self._mpeg if file.format == "MP3" else None
        if ("MPEG" in file.subtype and not mpeg) or not 0 <= file.frames < _UNKNOWN_LENGTH:
            raise NotReadError("its length is unknown")
        if mpeg and not mpeg.allows(file.frames):
            raise NotReadError(f"counts {file.frames} samples, its frames stand for {mpeg.samples}")
        if file.format == "VOC":
            raise NotReadError("libsndfile takes the headers of its blocks for sound")
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
        if has_open_end(file.format, file.extra_info):
            warn_of_open_end(path)

    def _failure(self, error: Exception) -> Exception:
        self._raise_stashed()
        code = getattr(error, "code", 0)
        if code in (_SYSTEM_ERROR, _NO_MEMORY):
            number = errno.EIO if code == _SYSTEM_ERROR else errno.ENOMEM
            return OSError(number, os.strerror(number), str(self._place.path))
        return undecodable(self._place.path, reason(error))

    def _raise_stashed(self) -> None:
        if self._part.error:
            raise self._part.error


@once_a_place
def _mpeg_frames(place: Place) -> MpegFrames:
    """What a file's headers say, looked at once a process."""
    with FilePart(place) as file:
        return walk_mpeg(file, place.size)  # type: ignore[arg-type]


@once_a_place
def _count(place: Place) -> int:
    """Samples of an Ogg file, counted once a process."""
    check_pages(place)
    decoder = SoundDecoder(place)
    try:
        decoder.seek(_UNKNOWN_LENGTH)
        return decoder.position
    finally:
        decoder.close()


def check_pages(place: Place) -> None:
    """Raise `AudioError` if a page of an Ogg file is damaged."""
    with FilePart(place) as file:
        wrong = wrong_ogg_page(file, place.size)  # type: ignore[arg-type]
    if wrong is not None:
        raise AudioError(f"{place.path}: is damaged: the page at byte {wrong} has another checksum than it says")


def missing_at_end(place: Place) -> str | None:
    """What is missing of a file, as the headers of its container tell."""
    with FilePart(place) as file:
        return missing_in_file(file, place.size)  # type: ignore[arg-type]


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
