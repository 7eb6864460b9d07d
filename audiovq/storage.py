"""Where files are: on this machine, in an object store that fsspec reaches, or in memory.

A name is a local path or a URL (`s3://`, `gs://`, `hf://`, `memory://`). Local files stay `pathlib.Path` and are read
without fsspec. `RemotePath` has the few methods of `Path` that are needed for the others.

**How a remote file becomes visible.** An object store has no rename and no lock. A file is made whole on this machine
and sent as one object, which a reader sees whole or not at all (of a long one, when its last part has arrived). What
belongs together is sent in the order in which it is believed: a shard first, then the record that counts it.
"""

from __future__ import annotations

import base64
import binascii
import errno
import io
import os
import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any

from audiovq.errors import ConfigError
from audiovq.text import reason_of, shown

SCHEMES = ("s3", "gs", "hf", "memory")
BLOCK = 2**22
"""Bytes that are asked for at a time, about."""

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.S)
_HELD = re.compile(r"data:[\w/+.-]*;base64,")


@dataclass(frozen=True, order=True)
class RemotePath:
    """A file or folder in an object store.

    Every method that asks the store raises `OSError` with the URL as its `filename` if the store does not answer, and
    `ConfigError` if the package for it is not installed.
    """

    scheme: str
    key: str
    """Bucket and key, without a slash at either end."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    def __truediv__(self, name: str) -> RemotePath:
        """A path below this one.

        Raises:
            ValueError: the name leads out of the bucket, or is absolute.
        """
        joined = posixpath.normpath(posixpath.join(self.key, name))
        if name.startswith("/") or joined.partition("/")[0] != self.key.partition("/")[0]:
            raise ValueError(f"expected a name below {self}, found {shown(name)}")
        return RemotePath(self.scheme, joined)

    @property
    def name(self) -> str:
        return PurePosixPath(self.key).name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.key).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.key).suffix

    @property
    def parent(self) -> RemotePath:
        return RemotePath(self.scheme, posixpath.dirname(self.key))

    def is_absolute(self) -> bool:
        return True

    def absolute(self) -> RemotePath:
        return self

    resolve = absolute

    def relative_to(self, folder: RemotePath) -> PurePosixPath:
        return PurePosixPath(self.key).relative_to(folder.key)

    def exists(self) -> bool:
        return self._info() is not None

    def is_dir(self) -> bool:
        return (self._info() or {}).get("type") == "directory"

    def is_file(self) -> bool:
        return (self._info() or {}).get("type") == "file"

    def iterdir(self) -> Iterator[RemotePath]:
        """What lies in a folder; nothing if there is none."""
        try:
            with self._asking(anew=True) as store:
                found = store.ls(self.key, detail=False)
        except FileNotFoundError:
            return iter(())
        return (path for path in self._paths(found) if path != self)

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """Names in this folder that fit a pattern, which may begin with `[!.]`; in no order."""
        return (path for path in self.iterdir() if PurePosixPath(path.name).match(pattern))

    def matching(self) -> list[RemotePath]:
        """The files that this path, taken as a pattern, stands for, sorted."""
        with self._asking(anew=True) as store:
            return sorted(self._paths(store.glob(self.key)))

    def walk(self) -> list[RemotePath]:
        """All files below a folder, sorted."""
        with self._asking(anew=True) as store:
            return sorted(self._paths(store.find(self.key)))

    def look(self) -> tuple[int, tuple[int, ...]]:
        """Size in bytes of a file, and what tells it from a later one of the same name."""
        info = self._info()
        if info is None or info.get("type") != "file":
            number = errno.ENOENT if info is None else errno.EISDIR
            raise OSError(number, os.strerror(number), str(self))
        known = repr(sorted((name, str(value)) for name, value in info.items()))
        return int(info["size"]), (int.from_bytes(blake2b(known.encode(), digest_size=8).digest(), "big"),)

    def fetch(self, size: int, offset: int) -> bytes:
        """`size` bytes of a file from `offset` on; fewer where it ends."""
        known = {"size": offset + size} if self.scheme == "hf" else {}  # Or it would list the whole folder to know it.
        with self._asking() as store:
            return store.cat_file(self.key, start=offset, end=offset + size, **known) if size > 0 else b""

    def open(self) -> io.BufferedReader:
        """Open a file for reading, block by block."""
        return io.BufferedReader(_RemoteFile(self), BLOCK)

    def send(self, file: Path) -> None:
        """Make a local file the object of this name, in one piece."""
        file.stat()  # If it is not there, that is not the store's fault.
        try:
            with self._asking() as store:
                store.put_file(str(file), self.key)
        except FileNotFoundError as error:
            reason = "cannot be written, there is no such bucket or repository"
            raise OSError(errno.ENOENT, reason, str(self)) from error

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove a file. Stores differ in what they say when there is none, so that they are asked before."""
        if not self.exists():
            if missing_ok:
                return
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        with self._asking() as store:
            store.rm_file(self.key)

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: folders are parts of names."""

    def _paths(self, names: list[str]) -> list[RemotePath]:
        return [RemotePath(self.scheme, name.strip("/")) for name in names]

    def _info(self) -> dict[str, Any] | None:
        asked = {"expand_info": True} if self.scheme == "hf" else {}  # Or it would list the whole folder.
        try:
            with self._asking() as store:
                store.invalidate_cache(self.key)
                return store.info(self.key, **asked)
        except FileNotFoundError:
            return None

    @contextmanager
    def _asking(self, anew: bool = False) -> Iterator[Any]:
        """The store; whatever goes wrong is an error of the operating system that names the URL.

        What was listed once would be believed to be all, although other processes write. Not every store minds
        `use_listings_cache`, so that `anew` makes it forget what it has seen.
        """
        import fsspec

        try:
            store = fsspec.filesystem(self.scheme, use_listings_cache=False)
            if anew:
                store.invalidate_cache()
            yield store
        except ImportError as error:
            raise ConfigError(f"{self}: {reason_of(error)}: pip install 'audiovq[cloud]'") from error
        except (FileNotFoundError, PermissionError) as error:
            number = errno.ENOENT if isinstance(error, FileNotFoundError) else errno.EACCES
            raise OSError(number, os.strerror(number), str(self)) from error
        except Exception as error:  # Each store has its own; s3fs passes on those of botocore and aiohttp.
            raise OSError(errno.EIO, f"cannot be reached ({reason_of(error)})", str(self)) from error


class _RemoteFile(io.RawIOBase):
    """A remote file, from its start on or from where it is sought to."""

    def __init__(self, path: RemotePath):
        self._path, self._position = path, 0
        self._size, _ = path.look()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._path.fetch(min(len(buffer), self._size - self._position), self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position


@dataclass(frozen=True)
class HeldFile:
    """An audio file that is held in memory."""

    data: bytes

    def __str__(self) -> str:
        return f"a recording of {len(self.data)} bytes in memory"

    def is_absolute(self) -> bool:
        return True

    def look(self) -> tuple[int, tuple[int, ...]]:
        """Its size in bytes; nothing else tells it from another one."""
        return len(self.data), ()

    def fetch(self, size: int, offset: int) -> bytes:
        return self.data[offset : offset + size]

    def url(self) -> str:
        """The file as a `data:` URL (RFC 2397), which `locate` takes."""
        return f"data:;base64,{base64.b64encode(self.data).decode()}"


AnyPath = Path | RemotePath
"""A file or folder that has a name."""
Location = Path | RemotePath | HeldFile
"""Where the bytes of an audio file are."""


def is_url(name: str) -> bool:
    """Whether a name is a URL, and no local path."""
    return _URL.match(name) is not None


def locate(name: str | os.PathLike[str] | RemotePath) -> AnyPath:
    """The path that a name stands for.

    Raises:
        ConfigError: it is a URL of a kind that is not read.
    """
    if isinstance(name, RemotePath):
        return name
    match = _URL.match(os.fspath(name))
    if match is None:
        return Path(name)
    scheme, rest = match.groups()
    if scheme == "file":
        return Path(rest)
    key = posixpath.normpath(rest.strip("/"))
    if scheme not in SCHEMES or key.startswith(".") or "\0" in key:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise ConfigError(f"{shown(os.fspath(name))}: expected a local path, or a bucket and a key after {known}")
    return RemotePath(scheme, key)


def require_local(path: Path) -> None:
    """Raise `ConfigError` for what `Path` makes of a URL: files would be written to a folder that is called `s3:`."""
    if path.parts and path.parts[0].removesuffix(":") in SCHEMES and path.parts[0].endswith(":"):
        raise ConfigError(f"{path}: expected a local path; only `audiovq tokenize` writes to object stores")


def locate_audio(name: str) -> Location:
    """As `locate`; a `data:` URL is a recording in memory.

    Raises:
        ConfigError: it is a URL of a kind that is not read.
    """
    match = _HELD.match(name)
    if match is None:
        return locate(name)
    try:
        return HeldFile(base64.b64decode(name[match.end() :], validate=True))
    except binascii.Error as error:
        raise ConfigError(f"{shown(name)}: is no base64 ({error})") from error


def below(folder: AnyPath, name: str) -> AnyPath:
    """The file that a list in `folder` calls `name`: a URL, or a path that starts at the folder.

    Raises:
        ConfigError: it is a URL of a kind that is not read.
        ValueError: the list is remote, and the name leads out of its bucket.
    """
    return locate(name) if is_url(name) else folder / name
