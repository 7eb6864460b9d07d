"""Files: written so that a crash never leaves a half-written one behind, read strictly, and fetched from the Hub."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from audiovq.errors import CheckpointError, OutputExistsError
from audiovq.storage import AnyPath, RemotePath, require_local
from audiovq.text import escape, shown

cleaned: set[Path] = set()
"""Folders in which this command has looked for what killed runs left; it does so once, before it writes there."""


@contextlib.contextmanager
def atomic_path(path: str | AnyPath) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place when the block ends without an error.

    The file is fsynced before the rename and the folder after it, so that `path` holds either the old
    content or the new one, whole, even after a power cut. An error of the operating system names `path`.
    A remote file is made in a temporary folder and sent as one object (see `audiovq.storage`).
    """
    if isinstance(path, RemotePath):
        with tempfile.TemporaryDirectory() as folder:
            yield (made := Path(folder, f"new{path.suffix}"))
            path.send(made)
        return
    path = Path(path)
    with _blaming(path):
        _prepare(path.parent)
        # The suffix is kept, since writers such as soundfile choose the format by it.
        handle, temporary = _locked(lambda: tempfile.mkstemp(dir=path.parent, prefix=".partial-", suffix=path.suffix))
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
            _fsync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
            os.close(handle)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder beside `path`, which takes its place, and that of all it holds, if the block ends well.

    A symbolic link is followed: the folder that it names is the one that is replaced.
    """
    path = Path(path)
    path = path.resolve() if path.is_symlink() else path
    with _blaming(path), partial_folder(path.parent) as new:
        old = new.parent / "old"
        old.mkdir()
        yield new
        for folder, _, names in os.walk(new):
            for name in names:
                with Path(folder, name).open("rb+") as file:
                    os.fsync(file.fileno())
                Path(folder, name).chmod(0o666 & ~_umask())  # Some writers make files that nobody else can read.
            _fsync_folder(Path(folder))
        if path.exists():
            path.rename(old / path.name)
        new.rename(path)
        _fsync_folder(path.parent)


@contextlib.contextmanager
def partial_folder(folder: str | Path) -> Iterator[Path]:
    """An empty folder within `folder`, for files that take their places there together; what is left in it goes."""
    folder = Path(folder)
    _prepare(folder)
    handle, temporary = _locked(lambda: _make_folder(folder))
    try:
        new = temporary / "new"
        new.mkdir()
        yield new
    finally:
        _discard(temporary)
        os.close(handle)


def remove_stale_partials(folder: AnyPath) -> None:
    """Remove what `atomic_path`, `atomic_folder` and `partial_folder` left in a folder when they were killed.

    A writer holds a lock, which ends with its process, however it ends; those of other hosts are seen, too, where the
    file system has such locks. Where it has none, nothing is removed; to an object store nothing is sent half.
    """
    if isinstance(folder, RemotePath):
        return
    for path in folder.glob(".partial-*"):
        with contextlib.suppress(OSError):
            is_folder = path.is_dir()
            handle = os.open(path, (os.O_RDONLY if is_folder else os.O_RDWR) | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not is_folder:
                    path.unlink()
                elif {inner.name for inner in path.iterdir()} <= {"new", "old"}:
                    _discard(path)
            finally:
                os.close(handle)


def _prepare(folder: Path) -> None:
    require_local(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if folder not in cleaned:
        cleaned.add(folder)
        remove_stale_partials(folder)


@contextlib.contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """An error of the operating system names the file that people know."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and (error.filename is None or ".partial-" in str(error.filename)):
            error.filename = str(path)
        raise


def _make_folder(parent: Path) -> tuple[int, str]:
    name = tempfile.mkdtemp(dir=parent, prefix=".partial-")
    return os.open(name, os.O_RDONLY), name


def _locked(make: Callable[[], tuple[int, str]]) -> tuple[int, Path]:
    """A new temporary file or folder, open and locked (see `remove_stale_partials`)."""
    while True:
        handle, name = make()
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            continue  # Taken for stale before it was locked.
        except OSError:
            return handle, Path(name)  # There are no locks on this file system.
        if Path(name).exists():
            return handle, Path(name)
        os.close(handle)


def _discard(temporary: Path) -> None:
    """Remove a temporary folder; what it had replaced goes back if nothing has come in its place."""
    with contextlib.suppress(OSError):
        for kept in (temporary / "old").iterdir():
            if not (temporary.parent / kept.name).exists():
                kept.rename(temporary.parent / kept.name)
    shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | AnyPath, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | AnyPath, data: Any) -> None:
    """Write indented JSON atomically; keys keep their order, and any text can be read back as it was."""
    # JSON writes half of a surrogate pair as `escape` does.
    write_text(path, escape(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)) + "\n")


def append(path: Path, data: bytes) -> None:
    """Add to the end of a file: all or, if an error is raised, nothing."""
    with path.open("ab") as file:
        size = file.tell()
    try:
        with path.open("ab") as file:
            file.write(data)
    except OSError as error:
        os.truncate(path, size)
        error.filename = str(path)
        raise


def open_file(path: str | AnyPath) -> BinaryIO:
    """Open a file for reading, and nothing else: a pipe may have no writer, and a device no end.

    A remote file is fetched in blocks.

    Raises:
        OSError: there is no such file, it cannot be read, or is a folder, pipe, socket or device.
    """
    if isinstance(path, RemotePath):
        return path.open()
    mode = Path(path).stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "Is a pipe, socket or device", str(path))
    return Path(path).open("rb")


def read_json(path: str | AnyPath, most: int = 1 << 24) -> Any:
    """Read a JSON file of at most `most` bytes strictly.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is too long, no UTF-8, no JSON, nested too deeply, holds NaN or Infinity, or names a key
            of an object twice; the message is one line.
    """
    with open_file(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"expected at most {most} bytes, found more")
    try:
        return json.loads(data.decode(), object_pairs_hook=_object, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"key {shown(name)} stands in an object twice")
        found[name] = value
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def sha256_of(path: str | AnyPath) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def model_folder(name: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    """The local folder of a model: a folder, or the files of a repository of the Hugging Face Hub, downloaded.

    Raises:
        CheckpointError: neither the folder nor the repository can be had.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{folder}: expected the folder of a model, found a file")
    parts = name.split("/")
    if len(parts) != 2 or not all(parts) or parts[0] in {".", "..", "~"}:
        raise CheckpointError(f"{folder}: no such model folder")

    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=[*patterns]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{name}: no such model folder, and the Hugging Face Hub does not give it: {reason}"
        ) from error


def refuse_to_overwrite(path: str | Path, force: bool) -> None:
    """Raise `OutputExistsError` if `path` exists (as a file, or as a folder with something in it) without `force`."""
    path = Path(path)
    require_local(path)
    # What a killed run left goes when something is written there.
    held = (inner.name for inner in path.iterdir()) if path.is_dir() else ()
    occupied = any(not name.startswith(".partial-") for name in held) if path.is_dir() else path.exists()
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
