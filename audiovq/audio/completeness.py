"""Whether a file holds all that its own headers promise: no decoder says so of every format.

Only headers are read, but for Ogg. A format that promises nothing, or a writer that could not know the length (it wrote
to a pipe), cannot be seen to be cut; see `audiovq.audio.decoding.warn_of_open_end`.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from typing import BinaryIO

UNKNOWN = 0x7FFF0000
"""Programs that write a WAV to a pipe cannot know its length and promise about 2 or 4 GiB."""

_ASF = bytes.fromhex("3026b2758e66cf11")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_MATROSKA_SEGMENT, _MATROSKA_CLUSTER = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
_MATROSKA_PARTS = {
    *(_MATROSKA_SEGMENT, _MATROSKA_CLUSTER, b"\x1aE\xdf\xa3", b"\x11M\x9bt", b"\x15I\xa9f", b"\x16T\xaek"),
    *(b"\x1cS\xbbk", b"\x12T\xc3g", b"\x10C\xa7p", b"\xec", b"\xbf", b"\xe7", b"\xa3", b"\xa0", b"\xab", b"\xa7"),
}
"""Elements of a segment and of its clusters (RFC 9559)."""
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_NO_SIZES = ("IRCAM", "PAF", "PVF", "RAW", "XI")
"""Formats, as libsndfile calls them, in which sound goes on to the end of the file."""
_LOG = re.compile(r"^ *(?:data|SSND|BODY|Data Size|Data length|riff|Riff size)[ :]+(\d+) \(?should be (\d+)\)?", re.M)


def missing_in_log(log: str, frames: int) -> str | None:
    """What libsndfile's log tells to be missing; it opens such a file without a word.

    Args:
        log: `SoundFile.extra_info`.
        frames: samples that libsndfile counts on.
    """
    wide = _has_wide_sizes(log)
    for match in _LOG.finditer(log):
        promised, present = int(match[1]), int(match[2])
        if present < promised < (2**62 if wide else UNKNOWN):
            return f"{promised - present} bytes of its audio data are missing"
    match = re.search(r"^ *Frames +: (\d+)", log, re.M)
    if match and "Sample Dump" not in log and frames < int(match[1]) < 2**62:
        return f"{int(match[1]) - frames} of its samples are missing"
    return "its last block is cut" if "Seems to be a truncated file." in log else None


def _has_wide_sizes(log: str) -> bool:
    """Whether sizes of a file have 64 bits."""
    return "ds64" in log or re.search(r"^riff :", log, re.M) is not None


def has_open_end(format: str, log: str) -> bool:
    """Whether a file that libsndfile reads does not say where it ends.

    Args:
        format: libsndfile's name of it.
        log: `SoundFile.extra_info`.
    """
    wide = _has_wide_sizes(log)
    return format in _NO_SIZES or any(int(match[1]) >= UNKNOWN and not wide for match in _LOG.finditer(log))


def missing_in_file(file: BinaryIO, size: int) -> str | None:
    """What is missing of a file of `size` bytes, as the headers of its container tell."""
    file.seek(0)
    head = file.read(26)
    if head[:4] == b"OggS":
        return walk_ogg(file, size)[1]
    if head[:7] == b"NIST_1A":
        missing = _nist_end(file) - size
    elif head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
        missing = _walk(file, size, 0, _box_size)
    elif head[:4] == b"caff":
        missing = _walk(file, size, 8, _caf_size)
    elif head[:4] in (b"RIFF", b"FORM"):
        missing = _walk(file, size, 12, _riff_size if head[:4] == b"RIFF" else _form_size)
    elif head[:4] == b"\x1aE\xdf\xa3":
        missing = _matroska_end(file, size)[0] - size
    elif head[:19] == b"Creative Voice File":
        missing = _walk(file, size, int.from_bytes(head[20:22], "little"), _voc_size)
    elif head[:8] == _ASF:
        missing = _asf_end(file) - size
    else:
        return None
    return f"{missing} bytes of it are missing" if missing > 0 else None


def walk_ogg(file: BinaryIO, size: int) -> tuple[int, str | None]:
    """Streams of an Ogg file (RFC 3533), side by side or chained, and what is missing: a last page says that it is one.

    Only the headers of its pages are read.
    """
    position, streams = 0, 0
    numbers: dict[int, int] = {}  # The last page of each stream that has begun and not ended.
    while position + 27 <= size:
        file.seek(position)
        head = file.read(282)
        if head[:4] != b"OggS":
            break
        flags, serial, number = struct.unpack("<5xB8xII", head[:22])
        if flags & 2:
            streams += 1
        elif number > (expected := numbers.get(serial, number) + 1):
            return streams, f"its pages {expected} to {number - 1} are missing"
        numbers[serial] = number
        position += 27 + head[26] + sum(head[27 : 27 + head[26]])
        if flags & 4 and position <= size:
            del numbers[serial]
    if position > size:
        return streams, f"{position - size} bytes of its last page are missing"
    return streams, "the page that ends it is missing" if numbers else None


def wrong_ogg_page(file: BinaryIO, size: int) -> int | None:
    """Where the first page of an Ogg file with a wrong checksum (RFC 3533) begins; decoders leave such pages out."""
    position = 0
    while position + 27 <= size:
        file.seek(position)
        head = file.read(27)
        if head[:4] != b"OggS":
            return None
        table = file.read(head[26])
        page = head[:22] + bytes(4) + head[26:] + table + file.read(sum(table))
        # zlib's checksum is the same with all bits in the other order, but begins and ends inverted.
        found = zlib.crc32(page.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
        if found != int.from_bytes(head[22:26].translate(_MIRRORED), "big"):
            return position
        position += len(page)
    return None


def says_where_it_ends(file: BinaryIO, size: int) -> bool:
    """Whether a Matroska or WebM file gives its size; one that was sent while it was made does not."""
    return _matroska_end(file, size)[1]


def _walk(file: BinaryIO, size: int, position: int, measure: Callable[[bytes], int | None]) -> int:
    """By how much chunks, one after another from `position` on, go beyond a file of `size` bytes."""
    while position + 8 <= size:
        file.seek(position)
        length = measure(file.read(16).ljust(16, b"\0"))
        if length is None:
            return 0
        position += length
    return position - size


def _box_size(head: bytes) -> int | None:
    """Bytes of a box of ISO 14496-12; None: up to the file's end, or no box at all."""
    size, kind, large = struct.unpack(">I4sQ", head)
    size = large if size == 1 else size
    return size if size >= 8 and re.fullmatch(rb"[ -~\xa9]{4}", kind) else None


def _caf_size(head: bytes) -> int | None:
    size = struct.unpack(">q", head[4:12])[0]
    return 12 + size if size >= 0 else None


def _riff_size(head: bytes) -> int | None:
    size = struct.unpack("<I", head[4:8])[0]
    # The byte that fills up an odd chunk is often left out at the end.
    return 8 + size + (size % 2 and head[:4] != b"data") if size < UNKNOWN else None


def _form_size(head: bytes) -> int:
    size = struct.unpack(">I", head[4:8])[0]
    return 8 + size + (size % 2 and head[:4] != b"SSND")


def _voc_size(head: bytes) -> int | None:
    return 4 + int.from_bytes(head[1:4], "little") if head[0] else None


def _nist_end(file: BinaryIO) -> int:
    file.seek(0)
    text = file.read(1024).decode("ascii", "replace")
    header = re.match(r"NIST_1A\s+(\d+)", text)
    fields = dict(re.findall(r"^(sample_count|sample_n_bytes|channel_count|sample_coding) -\w+ (\S+)", text, re.M))
    numbers = [fields.get(name, "") for name in ("sample_count", "sample_n_bytes", "channel_count")]
    if not header or "shorten" in fields.get("sample_coding", "") or not all(number.isdecimal() for number in numbers):
        return 0
    count, width, channels = map(int, numbers)
    return int(header[1]) + count * width * channels


def _matroska_end(file: BinaryIO, size: int) -> tuple[int, bool]:
    """Where the last element of a Matroska or WebM file ends (0: nothing says it), and whether its segment has a size.

    A segment or cluster that was sent while it was made has none; so what is in it is looked at.
    """
    position = 0
    while position < size:
        file.seek(position)
        head = file.read(12).ljust(12, b"\0")
        name = head[: 9 - head[0].bit_length()]
        width = 9 - head[len(name)].bit_length()
        if name not in _MATROSKA_PARTS or width > 8:
            return 0, False
        bits = int.from_bytes(head[len(name) :][:width], "big") & ((1 << 7 * width) - 1)
        position += len(name) + width
        if bits != (1 << 7 * width) - 1:
            position += bits
            if name == _MATROSKA_SEGMENT:
                return position, True
        elif name not in (_MATROSKA_SEGMENT, _MATROSKA_CLUSTER):
            return 0, False
    return position, False


def _asf_end(file: BinaryIO) -> int:
    file.seek(0)
    head = file.read(1 << 16)
    place = head.find(_ASF_PROPERTIES)
    if place < 0 or len(head) < place + 92:
        return 0
    (size,), (flags,) = struct.unpack_from("<Q", head, place + 40), struct.unpack_from("<I", head, place + 88)
    return 0 if flags & 1 else size  # A broadcast does not know its length.
