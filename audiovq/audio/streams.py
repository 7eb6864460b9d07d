"""Audio that FFmpeg decodes (`pip install 'audiovq[media]'`): MP4, Matroska, and what libsndfile does not read whole.

Samples are those of the `ffmpeg` program: encoder delay and padding are cut as it cuts them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import av
import av.error
import numpy as np

from audiovq.audio.completeness import says_where_it_ends
from audiovq.audio.decoding import (
    AudioDecoder,
    FilePart,
    Place,
    check_channel,
    check_header,
    once_a_place,
    reason,
    undecodable,
    warn_of_open_end,
)
from audiovq.audio.mpeg import missing_in_mp3, xing_frames
from audiovq.audio.sound import check_pages
from audiovq.errors import AudioError

if TYPE_CHECKING:
    from av import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.packet import Packet

FORMATS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,caf,dts,eac3,flac,gsm,loas,matroska,mov,mp3,mpc,mpc8,nistsphere,ogg,"
    "shn,tta,voc,w64,wav,wv"
)
"""FFmpeg's names of the containers that are read. Playlists and the like are not: they would open other files."""

_OPTIONS = {"format_whitelist": FORMATS}
_COUNTED = frozenset({"tta", "ape", "wv", "mpc8", "flac"})
"""Containers whose header tells their samples exactly, if it tells them."""
_OPEN = frozenset({"aac", "ac3", "amr", "amrnb", "amrwb", "dts", "eac3", "gsm", "loas"})
"""Formats of nothing but frames, one after the other."""


class StreamDecoder(AudioDecoder):
    """Decodes from the start on: only then is a piece equal to that of the whole, since decoders remember much.

    Args:
        unread: why libsndfile does not read it.
        channel: the one that is read; None: the mean of all.

    Raises:
        AudioError: FFmpeg does not read it.
    """

    _container: InputContainer
    _stream: AudioStream

    def __init__(self, place: Place, unread: str = "not asked", channel: int | None = None):
        self._place, self._unread, self.channel = place, unread, channel
        self.restart()

    @property
    def length(self) -> int:
        return _count(self._place)

    def check_end(self) -> None:
        """Raise `AudioError` if the end cannot be decoded."""
        _count(self._place)

    def read(self, count: int) -> np.ndarray:
        parts: list[np.ndarray] = []
        while count:
            if not len(self._left) and (frame := next(self._frames, None)) is not None:
                self._left = self._mono(frame)
            if not len(self._left):
                break
            parts.append(self._left[:count])
            self._left = self._left[count:]
            count -= len(parts[-1])
            self.position += len(parts[-1])
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def close(self) -> None:
        self._container.close()
        self._file.close()

    def restart(self) -> None:
        self._open()
        first = next(self._frames, None)
        self._left = np.zeros(0, np.float32) if first is None else self._mono(first)
        self.position = 0

    def _open(self) -> None:
        if hasattr(self, "_file"):
            self.close()
        self._file = FilePart(self._place)
        try:
            # A file object, never a name: FFmpeg takes some names for addresses.
            self._container = av.open(self._file, "r", options=_OPTIONS, metadata_errors="replace")
        except (av.error.FFmpegError, EOFError) as error:
            self._file.close()
            raise AudioError(
                f"{self._place.path}: is no audio that libsndfile reads ({self._unread}), nor FFmpeg ({reason(error)})"
            ) from error
        stream = self._container.streams.best("audio")
        if stream is None or stream.codec_context is None:
            self.close()
            raise AudioError(f"{self._place.path}: holds no audio that FFmpeg decodes")
        self._stream = cast("AudioStream", stream)
        context = self._stream.codec_context
        self.sample_rate, self.channels = context.sample_rate, context.channels
        check_header(self._place.path, self.sample_rate, self.channels)
        context.thread_count = 1
        self._frames = self._decode()

    def _decode(self) -> Iterator[AudioFrame]:
        """The frames in their order; all of them have one rate.

        The decoder's is known from the first on: the header of AAC may name half of it.
        """
        path = self._place.path
        for packet in self._packets():
            for frame in self._decode_packet(packet):
                if self._first:
                    self.sample_rate, self.channels, self._first = frame.sample_rate, frame.layout.nb_channels, False
                    check_header(path, self.sample_rate, self.channels)
                if frame.sample_rate != self.sample_rate:
                    changes = f"changes its sample rate from {self.sample_rate} to {frame.sample_rate} Hz"
                    raise AudioError(f"{path}: {changes}; cut it there")
                if frame.samples:
                    yield frame

    def _packets(self) -> Iterator[Packet]:
        self._first, self._first_position, self._number, self._last = True, None, 0, b""
        try:
            yield from self._container.demux(self._stream)
        except (av.error.FFmpegError, EOFError) as error:
            raise undecodable(self._place.path, reason(error)) from error

    def _decode_packet(self, packet: Packet) -> list[AudioFrame]:
        if packet.is_corrupt:
            raise undecodable(self._place.path, "a packet is incomplete")
        mp3 = self._container.format.name == "mp3" and packet.size
        data = bytes(packet) if mp3 else b""
        if mp3 and (data[0] != 0xFF or data[1] < 0xE0):
            return []  # A tag, such as lies between files that were put together.
        if self._first_position is None:
            self._first_position = packet.pos
        if packet.size:
            self._number, self._last = self._number + 1, data
        try:
            return packet.decode()  # type: ignore[return-value]
        except EOFError:
            return []
        except av.error.FFmpegError as error:
            raise undecodable(self._place.path, reason(error)) from error

    def _mono(self, frame: AudioFrame) -> np.ndarray:
        """A frame's samples: float32 [samples]."""
        try:
            samples = frame.to_ndarray()
        except ValueError as error:
            raise AudioError(
                f"{self._place.path}: holds samples of format {frame.format.name}, convert it first"
            ) from error
        if not frame.format.is_planar:
            samples = samples.reshape(-1, frame.layout.nb_channels).T
        if samples.dtype == np.uint8:
            samples = (samples.astype(np.float32) - 128) / 128
        elif samples.dtype.kind == "i":
            samples = samples * np.float32(2.0 ** (1 - 8 * samples.dtype.itemsize))
        samples = samples.astype(np.float32, copy=False)
        check_channel(self._place.path, len(samples), self.channel)
        return self.mono(samples.T)

    def count(self) -> int:
        """Decode to the end; the number of samples.

        Raises:
            AudioError: the end is missing, or something cannot be decoded.
        """
        self._open()
        total = sum(frame.samples for frame in self._frames)
        name, stream = self._container.format.name, self._stream
        missing, open_end = None, name in _OPEN
        if name == "mp3":
            frames = xing_frames(self._file, self._first_position or 0)  # type: ignore[arg-type]
            missing, open_end = missing_in_mp3(frames, self._number, self._last), frames is None
        elif name in _COUNTED and stream.duration and stream.time_base:
            promised = math.floor(stream.duration * stream.time_base * self.sample_rate)
            missing = f"{promised - total} of its {promised} samples are missing" if total < promised else None
        elif name in _COUNTED:
            open_end = True
        elif name == "ogg":
            check_pages(self._place)
        elif "matroska" in name:
            open_end = not says_where_it_ends(self._file, self._place.size)  # type: ignore[arg-type]
        if missing:
            raise AudioError(f"{self._place.path}: is truncated: {missing}")
        if open_end:
            warn_of_open_end(self._place.path)
        return total


@once_a_place
def _count(place: Place) -> int:
    """Samples of a file, counted once a process: no header is believed."""
    decoder = StreamDecoder(place)
    try:
        return decoder.count()
    finally:
        decoder.close()
