"""What training has to know of a manifest's utterances: found once, which takes long, and kept beside the manifest."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from audiovq.data.manifest import Utterance
from audiovq.files import atomic_path
from audiovq.storage import AnyPath
from audiovq.text import printable

Found = TypeVar("Found")


def kept_beside(
    manifest: AnyPath,
    ending: str,
    utterances: Sequence[Utterance],
    title: str,
    read: Callable[[Path], Found | None],
    make: Callable[[Path], None],
) -> Found:
    """What is read from the file beside a manifest, which is made first if there is none that can be read.

    Of several processes one makes it, and the others wait. How long it took is told on standard error.

    Args:
        manifest: or another input. What belongs to one in an object store is kept in the user's cache folder.
        ending: the file's name is that of the manifest with this ending in place of `.jsonl.gz`.
        title: what is found in how much speech is told after this.
        read: gives None for a file that is missing, damaged or of other utterances.
        make: writes the file under the name that it is given.
    """
    cache = beside(manifest, ending)
    with _alone(manifest if isinstance(manifest, Path) and manifest.is_file() else cache.parent):
        found = read(cache)
        if found is None:
            began = time.monotonic()
            with atomic_path(cache) as temporary:
                make(temporary)
            seconds, elapsed = sum(utterance.duration for utterance in utterances), time.monotonic() - began
            speed = f"{elapsed:.0f} s, {seconds / elapsed:.0f} x real time"
            print(f"{title} of {seconds / 3600:.2f} hours in {speed}: {printable(str(cache))}", file=sys.stderr)
            found = read(cache)
            assert found is not None, f"{cache} does not hold what was written"
    return found


def beside(manifest: AnyPath, ending: str) -> Path:
    """The file with this ending beside a manifest."""
    # A pattern, such as shards/*.tar, names no file.
    name = re.sub(r"[*?\[\]]", "_", manifest.name.removesuffix(".gz").removesuffix(".jsonl"))
    if isinstance(manifest, Path):
        folder = next(place for place in manifest.absolute().parents if place.is_dir())
        return folder / f"{name}.{ending}"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "audiovq")
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}-{hashlib.sha256(str(manifest).encode()).hexdigest()[:16]}.{ending}"


def identity_of(utterances: Sequence[Utterance]) -> str:
    """What the findings about these utterances belong to; folders may move."""
    digest = hashlib.sha256()
    for utterance in utterances:
        digest.update(
            f"{utterance.id}\n{utterance.num_samples}\n{utterance.sample_rate}\n{utterance.offset}\n".encode()
        )
    return digest.hexdigest()


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes out that ask for the same file; where a file system has no locks all come in."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
