"""What is to be tokenized, measured or learned from: utterances of manifests, CutSets, folders, Kaldi data folders and
tars, on this machine or in an object store.

`list_items` only lists them; an audio file is opened by `with_seconds` and `read_utterances` alone, where nothing else
tells how long it is.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING, Union

from audiovq.audio.files import AUDIO_SUFFIXES, TAR_SUFFIXES, find_audio_files, find_remote_audio, is_tar
from audiovq.data.cuts import holds_cuts, list_cut_file, list_cut_set, list_shar, shards_of
from audiovq.data.items import Item, named
from audiovq.data.kaldi import list_kaldi
from audiovq.data.listing import LeftOut
from audiovq.data.manifest import Utterance, check_id, iterate_manifest, manifest_digest, read_manifest
from audiovq.data.tars import list_tar
from audiovq.errors import AudioError, ManifestError
from audiovq.storage import AnyPath, RemotePath, locate
from audiovq.text import watched

if TYPE_CHECKING:
    from lhotse import CutSet

_THREADS = 16  # Opening a file is waiting, most of all on network file systems.
_GROUP = 1024  # Headers that are read at a time; what follows is listed only then.

Input = Union[str, AnyPath, "CutSet"]
"""What `list_items` takes."""


def list_items(inputs: Sequence[Input]) -> Iterator[Item]:
    """The utterances of all inputs, in their order.

    An input is a manifest (`.jsonl`, `.jsonl.gz`), a CutSet of lhotse in such a file, in a Shar folder or in memory,
    Kaldi's `wav.scp` (with `segments` beside it) or the folder that holds it, a WebDataset tar, a folder of audio files
    and tars, or a pattern such as `shards/*.tar`. All but Kaldi's may be URLs of an object store.

    Raises:
        ManifestError: an input cannot be read, is malformed or holds nothing, an id occurs twice or cannot name a file.
        ConfigError: an input needs a package that is not installed.
        OSError: a store does not answer.
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


def _list_input(given: Input) -> Iterator[Item]:
    if not isinstance(given, str | Path | RemotePath):
        return list_cut_set(given)
    path = locate(given)
    if path.exists():
        return _list_path(path)
    found = _matching(path)
    if not found:
        raise ManifestError(f"{path}: no such file or folder")
    return (item for one in found for item in _list_path(one))


def _list_path(path: AnyPath) -> Iterator[Item]:
    if path.is_dir():
        return _list_folder(path.absolute())
    if path.name == "wav.scp" and isinstance(path, Path):
        return _list_kaldi(path.parent)
    if is_tar(path):
        return list_tar(path.absolute())
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return list_cut_file(path) if holds_cuts(path) else map(Item.of, iterate_manifest(path))
    wanted = "a manifest or CutSet (.jsonl, .jsonl.gz), a folder, Kaldi's wav.scp or a plain tar (.tar)"
    raise ManifestError(f"{path}: expected {wanted}")


def _matching(pattern: AnyPath) -> list[AnyPath]:
    """What a path, taken as a pattern, stands for; not itself, as which `glob` gives a link whose target is gone."""
    if isinstance(pattern, RemotePath):
        return [*pattern.matching()]
    found = map(Path, sorted(glob.glob(str(pattern), recursive=True)))  # noqa: PTH207 (absolute patterns)
    return [path for path in found if path != pattern]


def _list_kaldi(folder: Path) -> Iterator[Item]:
    for entry in list_kaldi(folder):
        seconds = None if entry.end is None else entry.end - entry.start
        yield Item(entry.id, str(entry.path), entry.speaker, seconds, entry.start, entry.end)


def _list_folder(folder: AnyPath) -> Iterator[Item]:
    """What a folder of Kaldi or of lhotse lists, or the audio files below it and those in the tars below it."""
    if isinstance(folder, Path) and (folder / "wav.scp").is_file():
        return _list_kaldi(folder)
    shards = shards_of(folder)
    return list_shar(shards) if shards else _list_files(folder)


def _list_files(folder: AnyPath) -> Iterator[Item]:
    find = find_remote_audio if isinstance(folder, RemotePath) else find_audio_files
    for path in find(folder, AUDIO_SUFFIXES | TAR_SUFFIXES):  # type: ignore[arg-type]
        if is_tar(path):
            yield from list_tar(path)
        else:
            yield named(path.relative_to(folder).as_posix().removesuffix(path.suffix), str(path))  # type: ignore[arg-type]


# --- with their lengths --------------------------------------------------------------------------------------


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


def read_utterances(given: AnyPath) -> tuple[list[Utterance], list[LeftOut]]:
    """The utterances of an input of any kind, for random access, and what cannot be used.

    A manifest or CutSet is believed. Of a folder or a tar each audio file is looked into, to its end, as
    `audiovq prepare` does; in memory are then names and places alone.

    Raises:
        ManifestError, ConfigError, OSError: as `list_items`; also if nothing can be used.
    """
    if _is_manifest(given):
        return read_manifest(given), []
    items = list(list_items([given]))
    utterances: list[Utterance] = []
    left_out: list[LeftOut] = []
    with ThreadPool(_THREADS) as pool:
        for found in watched(pool.imap(_look_into, items, chunksize=16), "Reading audio headers", len(items)):
            (left_out if isinstance(found, LeftOut) else utterances).append(found)  # type: ignore[arg-type]
    if not utterances:
        raise ManifestError(f"{given}: holds no utterance that can be used, such as {left_out[0].detail}")
    return utterances, left_out


def _look_into(item: Item) -> Utterance | LeftOut:
    try:
        return item.utterance()
    except AudioError as error:
        return LeftOut(item.id, "unusable audio", str(error))


def _is_manifest(path: AnyPath) -> bool:
    named_so = path.name.endswith((".jsonl", ".jsonl.gz"))
    return named_so and (path.is_file() or not _matching(path)) and not holds_cuts(path)


def utterances_digest(given: AnyPath, utterances: Iterable[Utterance]) -> str:
    """SHA-256 of what an input's utterances are, wherever it lies: of a manifest see `manifest_digest`."""
    if _is_manifest(given):
        return manifest_digest(given)
    digest = hashlib.sha256()
    for one in utterances:
        name = getattr(one.path, "name", str(one.path))
        known = [one.id, name, one.sample_rate, one.num_samples, one.speaker, one.offset, one.span, one.channel]
        digest.update((json.dumps(known) + "\n").encode())
    return digest.hexdigest()
