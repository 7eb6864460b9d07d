"""The frames of MPEG audio, layers I to III (ISO 11172-3 and 13818-3), by their headers.

Decoders pass over what they do not understand, and what is missing they do not miss.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO

_XING = re.compile(rb"\xff[\xe0-\xff]..(?:.{9}|.{17}|.{32})(?:Xing|Info)\0\0\0[\1\3\5\7\x09\x0b\x0d\x0f](....)", re.S)
_VBRI = re.compile(rb"\xff[\xe0-\xff].{34}VBRI", re.S)
_HEAD, _BLOCK = 48, 2**18
"""First bytes of a frame, in which a Xing frame says that it is one; and bytes that are read at a time."""
_KBPS = {  # By whether it is MPEG 1, and by layer.
    (True, 1): range(0, 449, 32),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


@dataclass(frozen=True)
class MpegFrames:
    """What the headers of a file say of its frames."""

    odd: str | None = None
    """Why it is something else than frames of one kind, with nothing but tags before and after them."""
    missing: str | None = None
    """What is missing of it."""
    damaged: int | None = None
    """Where a frame begins that no decoder understands; libsndfile goes on after it."""
    counted: bool = False
    """Whether a Xing frame says how many there are."""
    samples: int = 0
    """Samples that the frames stand for, with what an encoder put before and after the sound."""

    def allows(self, samples: int) -> bool:
        """Whether a decoder that counts so many samples reads all frames.

        By a Xing frame it leaves out what the encoder added, a few frames at most; without one it estimates.
        """
        return self.samples - 4 * 1152 < samples <= self.samples if self.counted else self.samples <= samples


def walk_mpeg(file: BinaryIO, size: int) -> MpegFrames:
    """Look at the header of each frame of a file of `size` bytes."""
    head = _reader(file)
    position = _after_tags(head, 0)
    first, found = head(position), 0
    while (length := frame_size((now := head(position))[:4])) and _continues(now, first, found):
        if not _is_sound(now):
            return MpegFrames(damaged=position)
        found, position = found + 1, position + length
    if position > size:
        return MpegFrames(missing=f"{position - size} bytes of its last frame are missing")
    if not found or _VBRI.match(first) or _after_tags(head, position) < size:
        return MpegFrames(odd=f"is not MPEG audio of one kind from its first frame to its last: see byte {position}")
    match, width = _XING.match(first), _samples(first)
    if not match:
        return MpegFrames(samples=width * found)
    promised, found = struct.unpack(">I", match[1])[0], found - 1
    if found > promised:
        return MpegFrames(odd=f"holds {found} frames of MPEG audio and promises {promised}")
    return MpegFrames(missing=_missing_frames(promised, found), counted=True, samples=width * found)


def xing_frames(file: BinaryIO, first: int) -> int | None:
    """How many frames an MP3 has, by the Xing frame that precedes the first frame of sound; None: there is none."""
    file.seek(max(0, first - 2048))
    match = _XING.search(file.read(min(first, 2048)))
    return struct.unpack(">I", match[1])[0] if match else None


def missing_in_mp3(promised: int | None, packets: int, last: bytes) -> str | None:
    """What is missing of an MP3: frames that its Xing frame counts, or the end of its last frame.

    Args:
        promised: see `xing_frames`.
        packets: frames that were found.
        last: the last of them.
    """
    if promised is not None and packets < promised:
        return _missing_frames(promised, packets)
    missing = frame_size(last[:4]) - len(last)
    return f"{missing} bytes of its last frame are missing" if missing > 0 else None


@lru_cache(maxsize=1024)
def frame_size(head: bytes) -> int:
    """Bytes of a frame by its first four; 0: it is none, or does not say."""
    if len(head) < 4 or head[0] != 0xFF or head[1] < 0xE0:
        return 0
    version, layer, rate_index, coarse = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3), head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 4 or rate_index in (0, 15) or coarse == 3:
        return 0
    rate = (44100, 48000, 32000)[coarse] >> {3: 0, 2: 1, 0: 2}[version]
    bits, padding = _KBPS[version == 3, layer][rate_index] * 1000, head[2] >> 1 & 1
    if layer == 1:
        return (12 * bits // rate + padding) * 4
    return _samples(head) * bits // 8 // rate + padding


def _samples(head: bytes) -> int:
    """Samples that a frame stands for."""
    first, layer = head[1] >> 3 & 3 == 3, 4 - (head[1] >> 1 & 3)
    return 384 if layer == 1 else 576 if layer == 3 and not first else 1152


def _continues(now: bytes, first: bytes, found: int) -> bool:
    """Whether a frame goes on with what the first one began: the same version, layer, rate and number of channels."""
    same = (now[1] ^ first[1]) & 0x1E == 0 and (now[2] ^ first[2]) & 0x0C == 0
    return not found or (same and (now[3] >> 6 == 3) == (first[3] >> 6 == 3) and not _XING.match(now))


def _is_sound(head: bytes) -> bool:
    """Whether the side information of a frame of layer III is such as there can be."""
    if head[1] >> 1 & 3 != 1:
        return True
    first, channels = head[1] >> 3 & 3 == 3, 1 if head[3] >> 6 == 3 else 2
    granules, wide, start = (2, 59, (18, 20)[channels - 1]) if first else (1, 63, (9, 10)[channels - 1])
    bits = int.from_bytes(head[4 if head[1] & 1 else 6 :][:32].ljust(32, b"\0"), "big")
    for number in range(granules * channels):
        part = bits >> (256 - start - wide * (number + 1))
        big_values, switching = part >> wide - 21 & 511, part >> wide - (34 if first else 39) & 1
        block_type = part >> wide - (36 if first else 41) & 3
        if big_values > 288 or (switching and not block_type):
            return False
    return True


def _missing_frames(promised: int, found: int) -> str | None:
    return f"{promised - found} of its {promised} frames are missing" if found < promised else None


def _after_tags(head: Callable[[int], bytes], position: int) -> int:
    """The first position that belongs to no tag: ID3 (of either version) or APE."""
    while size := _tag_size(head(position)):
        position += size
    return position


def _tag_size(head: bytes) -> int:
    """Bytes of a tag by its first ones; 0: it is none."""
    if head[:3] == b"TAG":
        return 128
    if len(head) < 32:
        return 0
    if head[:3] == b"ID3" and max(head[6:10]) < 128:
        size = sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        return 10 + size + (10 if head[5] & 0x10 else 0)
    return 32 + int.from_bytes(head[12:16], "little") if head[:8] == b"APETAGEX" else 0


def _reader(file: BinaryIO) -> Callable[[int], bytes]:
    """A function that gives the bytes with which a frame at a position begins; positions only grow."""
    start, data = 0, b""

    def head(position: int) -> bytes:
        nonlocal start, data
        if position + _HEAD > start + len(data):
            file.seek(position)
            start, data = position, file.read(_BLOCK)
        return data[position - start : position - start + _HEAD]

    return head
