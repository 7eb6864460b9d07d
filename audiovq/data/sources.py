"""What is to be tokenized: utterances of manifests, folders, Kaldi data folders and WebDataset tars.

They are only listed here; an audio file is opened by `with_seconds` alone, where nothing else tells how long it is.
"""

from __future__ import annotations

import glob
import io
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing.pool import ThreadPool
from pathlib import Path, PurePosixPath
from typing import Any

from audiovq.audio.decoding import unusable
from audiovq.audio.files import AUDIO_SUFFIXES, TAR_SUFFIXES, AudioSource, find_audio_files, is_tar
from audiovq.data.kaldi import list_kaldi
from audiovq.data.listing import cut
from audiovq.data.manifest import Utterance, check_id, iterate_manifest, safe_id
from audiovq.errors import AudioError, ManifestError
from audiovq.text import escape

_THREADS = 16  # Opening a file is waiting, most of all on network file systems.
_BLOCK = 512  # Bytes of a tar's header.
_MOST_HEADERS = 2**18  # Bytes of all headers of a member.
_GROUP = 1024  # Headers that are read at a time; what follows is listed only then.


@dataclass(frozen=True, slots=True)
class Member:
    """An audio file inside a tar."""

    name: str
    first: int
    """Where in the tar its bytes start."""
    size: int


@dataclass(frozen=True, slots=True)
class Item:
    """An utterance as its list names it, and where its audio is."""

    id: str
    path: str
    """The audio file, or the tar that holds it; absolute."""
    speaker: str | None = None
    seconds: float | None = None
    """How long it should be; None: not known without opening the file."""
    start: float = 0.0
    """Where in the file it starts, in seconds."""
    end: float | None = None
    """Where in the file it ends, in seconds; None: at its end, unless `num_samples` is given."""
    sample_rate: int | None = None
    """The file's rate in Hz, if the list tells it."""
    num_samples: int | None = None
    """Length at that rate, if the list tells it."""
    member: Member | None = None
    problem: str | None = None
    """Why it cannot be used, where its list shows that already."""

    @classmethod
    def of(cls, utterance: Utterance) -> Item:
        """An utterance of a manifest."""
        return cls(
            id=utterance.id,
            path=str(utterance.path),
            speaker=utterance.speaker,
            seconds=utterance.duration,
            start=utterance.offset,
            sample_rate=utterance.sample_rate,
            num_samples=utterance.num_samples,
        )

    @classmethod
    def of_record(cls, record: Sequence[Any]) -> Item:
        """The item of what `dataclasses.astuple` made of it, as it comes back from JSON."""
        *known, member, problem = record
        return cls(*known, member=Member(*member) if member else None, problem=problem)

    @property
    def name(self) -> str:
        """The audio file as it is named in a token data set; a file in a tar as fsspec names it."""
        return f"tar://{self.member.name}::{self.path}" if self.member else self.path

    def open(self) -> AudioSource:
        """Open the utterance for reading.

        Raises:
            AudioError: the file cannot be used, or is not what its list says.
        """
        if self.problem:
            raise AudioError(f"{self.name}: {self.problem}")
        path = Path(self.path)
        if self.sample_rate is not None and self.num_samples is not None:
            seconds = self.num_samples / self.sample_rate
            return Utterance(self.id, path, seconds, self.sample_rate, self.num_samples, self.start).source()
        span = (self.member.first, self.member.size) if self.member else None
        return cut(AudioSource.open(path, span=span), self.start, self.end)


def list_items(inputs: Sequence[Path]) -> Iterator[Item]:
    """The utterances of all inputs, in their order.

    An input is a manifest (`.jsonl`, `.jsonl.gz`), Kaldi's `wav.scp` (with `segments` beside it) or the folder that
    holds it, a WebDataset tar, a folder of audio files and tars, or a pattern such as `shards/*.tar`.

    Raises:
        ManifestError: an input cannot be read, is malformed or holds nothing, an id occurs twice or cannot name a file.
    """
    seen: dict[str, str] = {}
    for given in inputs:
        count = 0
        for item in _list_input(given):
            try:
                check_id(item.id)
            except ManifestError as error:
                raise ManifestError(f"{item.name}: {error}") from error
            if item.id in seen:
                raise ManifestError(_duplicate(item, seen[item.id]))
            seen[item.id] = item.path if item.member is None else item.name
            count += 1
            yield item
        if not count:
            raise ManifestError(f"{given}: holds no utterances")


def _duplicate(item: Item, first: str) -> str:
    if item.name == first:
        return f"{item.name}: the id {item.id!r} is listed twice"
    return f"{item.name} and {first} would share the id {item.id!r}; rename one of them"


def _list_input(given: Path) -> Iterator[Item]:
    if given.is_dir():
        return _list_kaldi(given) if (given / "wav.scp").is_file() else _list_folder(given.absolute())
    if not given.exists():
        found = sorted(glob.glob(str(given), recursive=True))  # noqa: PTH207 (absolute patterns)
        if not found:
            raise ManifestError(f"{given}: no such file or folder")
        return (item for path in found for item in _list_input(Path(path)))
    if given.name == "wav.scp":
        return _list_kaldi(given.parent)
    if is_tar(given):
        return _list_tar(given.absolute())
    if given.name.endswith((".jsonl", ".jsonl.gz")):
        return map(Item.of, iterate_manifest(given))
    wanted = "a manifest (.jsonl, .jsonl.gz), a folder, Kaldi's wav.scp or a plain tar (.tar)"
    raise ManifestError(f"{given}: expected {wanted}")


def _list_kaldi(folder: Path) -> Iterator[Item]:
    for entry in list_kaldi(folder):
        seconds = None if entry.end is None else entry.end - entry.start
        yield Item(entry.id, str(entry.path), entry.speaker, seconds, entry.start, entry.end)


def _list_folder(folder: Path) -> Iterator[Item]:
    """Audio files below a folder, and those in the tars below it."""
    for path in find_audio_files(folder, AUDIO_SUFFIXES | TAR_SUFFIXES):
        if is_tar(path):
            yield from _list_tar(path)
        else:
            yield _named(path.relative_to(folder).as_posix().removesuffix(path.suffix), str(path))


def _named(name: str, path: str, member: Member | None = None, problem: str | None = None) -> Item:
    """The item that is called after a file; one that cannot be used if no utterance can be called so."""
    utterance_id = re.sub(r"[/\s]+", "_", name)
    try:
        check_id(utterance_id)
    except ManifestError as error:
        problem, utterance_id = problem or f"{error}; rename it", safe_id(utterance_id)
    if escape(path) != path:
        problem = "its file name is no UTF-8; rename it"
    return Item(utterance_id, escape(path), problem=problem, member=member)


class _Headers(io.FileIO):
    """A tar of which headers alone are read, and no more of them than a sound member has."""

    left = _MOST_HEADERS

    def read(self, size: int | None = -1) -> bytes:  # type: ignore[override]
        self.left -= max(size or 0, _BLOCK)
        if size is None or size < 0 or self.left < 0:
            raise tarfile.ReadError("the headers of a member have an impossible size")
        return super().read(size)


def _list_tar(path: Path) -> Iterator[Item]:
    """Audio files of a WebDataset tar (`key.flac`, and whatever else shares the key); speakers are unknown.

    Only the tar's own headers are read. A link, or what else looks like audio and is no plain file, cannot be used. Of
    a tar that is damaged or no tar at all, what comes before the damage is listed, and then the tar itself.
    """
    problem, hint = None, "; a compressed tar cannot be read in place, unpack it to a plain one"
    try:
        if path.exists() and not path.is_file():
            raise tarfile.ReadError("it is a folder, pipe or device")
        with _Headers(path, "rb") as file:
            end = os.fstat(file.fileno()).st_size
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while member := tar.next():
                    tar.members.clear()  # type: ignore[attr-defined]  # They would all be kept.
                    file.left, hint = _MOST_HEADERS, ""
                    if member.size < 0:
                        raise tarfile.ReadError(f"a member has {member.size} bytes")
                    name = PurePosixPath(member.name)
                    if name.suffix.lower() in AUDIO_SUFFIXES and not name.name.startswith(".") and not member.isdir():
                        yield _tar_item(path, member, name, end)
                _check_rest(file, tar.offset, end)
    except OSError as error:
        if not isinstance(unusable(path, error), AudioError):
            raise
        problem = f"cannot be read ({error.strerror})"
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        problem = f"is no tar or is damaged ({' '.join(str(error).split())}){hint}"
    if problem is not None:
        yield Item(safe_id(str(path)), escape(str(path)), problem=problem)


def _check_rest(file: _Headers, offset: int, end: int) -> None:
    """Raise `ReadError` unless the tar ends where its last member does: tarfile passes over what it cannot read."""
    if offset + _BLOCK > end:
        raise tarfile.ReadError("its end is missing")
    while block := os.pread(file.fileno(), 2**20, offset):
        if any(block):
            raise tarfile.ReadError(f"something that is no member begins in the MiB from byte {offset} on")
        offset += len(block)


def _tar_item(path: Path, member: tarfile.TarInfo, name: PurePosixPath, end: int) -> Item:
    problem = None
    if ".." in name.parts or name.is_absolute():
        problem = "lies outside the tar by its name; rename it"
    elif member.issym() or member.islnk():
        problem = f"is a link in the tar, to {escape(member.linkname)!r:.120}; store the file itself"
    elif not member.isfile() or member.sparse is not None:
        problem = "is no plain file in the tar"
    elif member.offset_data + member.size > end:
        problem = f"is truncated: the tar ends {member.offset_data + member.size - end} bytes before it does"
    key = name.with_name(name.name.partition(".")[0])
    place = Member(escape(member.name), member.offset_data, member.size)
    return _named(key.as_posix(), str(path), place, problem)


def with_seconds(items: Iterable[Item]) -> Iterator[Item]:
    """The items, with the lengths of their files where the list does not tell them; 0 for audio that cannot be used."""
    remaining = iter(items)
    with ThreadPool(_THREADS) as pool:
        while group := list(islice(remaining, _GROUP)):
            yield from pool.map(_measure, group) if any(item.seconds is None for item in group) else group


def _measure(item: Item) -> Item:
    if item.seconds is not None:
        return item
    try:
        return replace(item, seconds=item.open().duration)
    except AudioError:  # Not a failure of the machine, which says nothing about the file.
        return replace(item, seconds=0.0)  # It is rejected, with a reason, when its turn comes.
