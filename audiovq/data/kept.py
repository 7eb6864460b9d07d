"""What training has to know of a manifest's utterances: found once, which takes long, and kept beside the manifest."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from audiovq.data.manifest import Utterance
from audiovq.files import atomic_path
from audiovq.text import printable

Found = TypeVar("Found")


def kept_beside(
    manifest: Path,
    ending: str,
    utterances: Sequence[Utterance],
    title: str,
    read: Callable[[Path], Found | None],
    make: Callable[[Path], None],
) -> Found:
    """What is read from the file beside a manifest, which is made first if there is none that can be read.

    Of several processes one makes it, and the others wait. How long it took is told on standard error.

    Args:
        ending: the file's name is that of the manifest with this ending in place of `.jsonl.gz`.
        title: what is found in how much speech is told after this.
        read: gives None for a file that is missing, damaged or of other utterances.
        make: writes the file under the name that it is given.
    """
    cache = manifest.with_name(f"{manifest.name.removesuffix('.gz').removesuffix('.jsonl')}.{ending}")
    with _alone(manifest):
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
    with path.open("rb") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
