"""What is to be tokenized: utterances of manifests, folders, Kaldi data folders and WebDataset tars.

They are only listed here; an audio file is opened by `with_seconds` alone, where nothing else tells how long it is.
"""

from __future__ import annotations

import glob
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing.pool import ThreadPool
from pathlib import Path, PurePosixPath
from typing import Any

from audiovq.audio.files import AUDIO_SUFFIXES, AudioSource, find_audio_files
from audiovq.data.kaldi import list_kaldi
from audiovq.data.listing import cut
from audiovq.data.manifest import Utterance, check_id, iterate_manifest
from audiovq.errors import AudioError, ManifestError

_THREADS = 16  # Opening a file is waiting, most of all on network file systems.
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
        member = record[-1]
        return replace(cls(*record[:-1]), member=Member(*member) if member else None)

    @property
    def name(self) -> str:
        """The audio file as it is named in a token data set; a file in a tar as fsspec names it."""
        return f"tar://{self.member.name}::{self.path}" if self.member else self.path

    def open(self) -> AudioSource:
        """Open the utterance for reading.

        Raises:
            AudioError: the file cannot be used, or is not what its list says.
        """
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
    if given.suffix == ".tar":
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
    for path in find_audio_files(folder, AUDIO_SUFFIXES | {".tar"}):
        if path.suffix == ".tar":
            yield from _list_tar(path)
        else:
            yield Item(_id_of(path.relative_to(folder).as_posix().removesuffix(path.suffix)), str(path))


def _list_tar(path: Path) -> Iterator[Item]:
    """Audio files of a WebDataset tar (`key.flac`, and whatever else shares the key); speakers are unknown.

    Only the tar's own headers are read.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            while member := tar.next():
                tar.members.clear()  # type: ignore[attr-defined]  # They would all be kept.
                name = PurePosixPath(member.name)
                if not member.isfile() or name.suffix.lower() not in AUDIO_SUFFIXES or name.name.startswith("."):
                    continue
                if ".." in name.parts or name.is_absolute() or member.sparse is not None:
                    raise ManifestError(f"{path}: {member.name!r}: expected a plain file below the tar's root")
                key = name.with_name(name.name.partition(".")[0])
                place = Member(member.name, member.offset_data, member.size)
                yield Item(_id_of(key.as_posix()), str(path), member=place)
    except (tarfile.TarError, EOFError) as error:
        hint = "a compressed tar cannot be read in place, unpack it to a plain one"
        raise ManifestError(f"{path}: is no tar or is damaged ({error}); {hint}") from error
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror})") from error


def _id_of(relative: str) -> str:
    return re.sub(r"[/\s]+", "_", relative)


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
    except AudioError:
        return replace(item, seconds=0.0)  # It is rejected, with a reason, when its turn comes.
