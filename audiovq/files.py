"""Writing files so that a crash never leaves a half-written one behind."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from audiovq.errors import OutputExistsError


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place when the block ends without an error.

    The file is fsynced before the rename and the folder after it, so that `path` holds either the old
    content or the new one, whole, even after a power cut.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = _locked_partial(path)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        _fsync_folder(path.parent)
    except OSError as error:
        # A write that fails, as on a full disk, does not name its file, and nobody knows the temporary one.
        if error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def remove_stale_partials(folder: Path) -> None:
    """Remove the temporary files of `atomic_path` in a folder whose writers are gone.

    A writer holds a lock on its file, which ends with the process, however it ends; those of other hosts are seen, too,
    where the file system has such locks. Where it has none, nothing is removed.
    """
    for path in folder.glob(".partial-*"):
        with contextlib.suppress(OSError), path.open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _locked_partial(path: Path) -> tuple[int, Path]:
    """A new temporary file beside `path`, open and locked (see `remove_stale_partials`)."""
    while True:
        # The suffix is kept, since writers such as soundfile choose the format by it.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".partial-", suffix=path.suffix)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            continue  # Taken for stale before it was locked.
        except OSError:
            return handle, Path(name)  # There are no locks on this file system.
        if os.fstat(handle).st_nlink:
            return handle, Path(name)
        os.close(handle)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder beside `path`, which takes its place, and that of all it holds, if the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=".partial-"))
    try:
        new, old = temporary / "new", temporary / "old"
        new.mkdir()
        yield new
        for folder, _, names in os.walk(new):
            for name in names:
                with Path(folder, name).open("rb+") as file:
                    os.fsync(file.fileno())
            _fsync_folder(Path(folder))
        if path.exists():
            path.rename(old)
        new.rename(path)
        _fsync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, data: Any) -> None:
    """Write indented JSON atomically; keys keep their order."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def refuse_to_overwrite(path: str | Path, force: bool) -> None:
    """Raise `OutputExistsError` if `path` exists (as a file, or as a folder with something in it) without `force`."""
    path = Path(path)
    occupied = any(path.iterdir()) if path.is_dir() else path.exists()
    if occupied and not force:
        raise OutputExistsError(f"{path} exists already; choose another output or add --force to overwrite it")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
