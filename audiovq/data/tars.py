"""Tars that are read in place: what lies in them, found in one pass over their headers."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from audiovq.audio.decoding import unusable
from audiovq.audio.files import AUDIO_SUFFIXES
from audiovq.data.items import Item, Member, named
from audiovq.data.manifest import safe_id
from audiovq.errors import AudioError
from audiovq.files import open_file
from audiovq.storage import AnyPath
from audiovq.text import escape, reason_of

_BLOCK = 512  # Bytes of a tar's header.
_MOST_HEADERS = 2**18  # Bytes of all headers of a member.


@dataclass(frozen=True, slots=True)
class Found:
    """A member of a tar, or the tar itself where it is damaged."""

    member: Member | None
    problem: str | None = None
    """Why it cannot be used."""


class _Headers(io.RawIOBase):
    """A tar of which headers alone are read, and no more of them than a sound member has."""

    left = _MOST_HEADERS

    def __init__(self, file: BinaryIO):
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int | None = -1) -> bytes:  # type: ignore[override]
        self.left -= max(size or 0, _BLOCK)
        if size is None or size < 0 or self.left < 0:
            raise tarfile.ReadError("the headers of a member have an impossible size")
        return self._file.read(size)


def members_of(path: AnyPath) -> Iterator[Found]:
    """The files of a tar. Of one that is damaged or no tar at all, what comes before the damage, and then the damage.

    Only the tar's own headers are read, of a remote one the whole, once. A link, or what else is no plain file, cannot
    be used.

    Raises:
        OSError: the machine, or the store, fails.
    """
    problem, hint = None, "; a compressed tar cannot be read in place, unpack it to a plain one"
    try:
        if isinstance(path, Path) and path.exists() and not path.is_file():
            raise tarfile.ReadError("it is a folder, pipe or device")
        # Unbuffered, since of a local file nothing between the headers is wanted.
        with path.open("rb", buffering=0) if isinstance(path, Path) else open_file(path) as file:
            end = file.seek(0, io.SEEK_END)
            file.seek(0)
            headers = _Headers(file)  # type: ignore[arg-type]
            with tarfile.open(fileobj=headers, mode="r:") as tar:
                while member := tar.next():
                    tar.members.clear()  # type: ignore[attr-defined]  # They would all be kept.
                    headers.left, hint = _MOST_HEADERS, ""
                    if member.size < 0:
                        raise tarfile.ReadError(f"a member has {member.size} bytes")
                    if not member.isdir():
                        place = Member(member.name, member.offset_data, member.size)
                        yield Found(place, _problem_of(member, end))
                _check_rest(file, tar.offset, end)  # type: ignore[arg-type]
    except OSError as error:
        if not isinstance(unusable(path, error), AudioError):
            raise
        problem = f"cannot be read ({error.strerror})"
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        problem = f"is no tar or is damaged ({reason_of(error)}){hint}"
    if problem is not None:
        yield Found(None, problem)


def _problem_of(member: tarfile.TarInfo, end: int) -> str | None:
    name = PurePosixPath(member.name)
    if ".." in name.parts or name.is_absolute():
        return "lies outside the tar by its name; rename it"
    if member.issym() or member.islnk():
        return f"is a link in the tar, to {escape(member.linkname)!r:.120}; store the file itself"
    if not member.isfile() or member.sparse is not None:
        return "is no plain file in the tar"
    if member.offset_data + member.size > end:
        return f"is truncated: the tar ends {member.offset_data + member.size - end} bytes before it does"
    return None


def _check_rest(file: BinaryIO, offset: int, end: int) -> None:
    """Raise `ReadError` unless the tar ends where its last member does: tarfile passes over what it cannot read."""
    if offset + _BLOCK > end:
        raise tarfile.ReadError("its end is missing")
    file.seek(offset)
    while block := file.read(2**20):
        if any(block):
            raise tarfile.ReadError(f"something that is no member begins in the MiB from byte {offset} on")
        offset += len(block)


def list_tar(path: AnyPath) -> Iterator[Item]:
    """Audio files of a WebDataset tar (`key.flac`, and whatever else shares the key); speakers are unknown.

    What looks like audio and cannot be used is listed with its problem, a damaged tar last.
    """
    for found in members_of(path):
        if found.member is None:
            yield Item(safe_id(str(path)), escape(str(path)), problem=found.problem)
            continue
        name = PurePosixPath(found.member.name)
        if name.suffix.lower() in AUDIO_SUFFIXES and not name.name.startswith("."):
            key = name.with_name(name.name.partition(".")[0])
            place = Member(escape(found.member.name), found.member.first, found.member.size)
            yield named(key.as_posix(), str(path), place, found.problem)
