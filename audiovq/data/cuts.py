"""CutSets of lhotse: in a JSONL file, in the tars of a Shar folder, or in memory.

A cut is one utterance: its id, its speaker, and the samples `start` to `start + duration` of a channel of its
recording, counted as lhotse counts them. lhotse reads the manifests (`pip install 'audiovq[lhotse]'`); the audio is
read in place, a cut at a time. No command is run, and nothing is unpickled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from audiovq.data.items import Item, Member, held
from audiovq.data.manifest import check_id, numbered_lines
from audiovq.data.tars import members_of
from audiovq.errors import ConfigError, ManifestError
from audiovq.files import open_file
from audiovq.storage import AnyPath, is_url, locate
from audiovq.text import escape, reason_of, shown

if TYPE_CHECKING:
    from lhotse import Recording
    from lhotse.cut import Cut, MonoCut, MultiCut

_MAX_LINE = 2**26  # Bytes of a cut: one of a day may have a word in each second.
_KINDS = ("MonoCut", "MultiCut", "MixedCut", "PaddingCut", "Cut")
_SHARD = re.compile(r"cuts\.(.+)\.jsonl(\.gz)?")
_SAVE = "save it as audio first (CutSet.save_audios)"


def holds_cuts(path: AnyPath) -> bool:
    """Whether a JSON lines file holds cuts, by its first line."""
    try:
        record = json.loads(next(numbered_lines(path, _MAX_LINE))[1])
    except (ManifestError, StopIteration, ValueError, RecursionError):
        return False  # Whoever reads it as a manifest says why.
    return isinstance(record, dict) and record.get("type") in _KINDS


def shards_of(folder: AnyPath) -> list[AnyPath]:
    """The files of cuts of a Shar folder; none if it is no such folder."""
    return sorted(path for path in folder.iterdir() if _SHARD.fullmatch(path.name))  # type: ignore[type-var]


def list_cut_file(path: AnyPath) -> Iterator[Item]:
    """The cuts of a JSONL or JSONL.gz file.

    Raises:
        ManifestError: a line is no cut, or the id of one cannot name a file.
        ConfigError: lhotse is not installed.
    """
    for place, cut in _cuts(path):
        yield _item(cut, place)


def list_shar(shards: Iterable[AnyPath]) -> Iterator[Item]:
    """The cuts of a Shar folder (https://lhotse.readthedocs.io, "Lhotse Shar"), the audio in `recording.*.tar`.

    Args:
        shards: see `shards_of`.

    Raises:
        ManifestError, ConfigError: as `list_cut_file`.
        OSError: a tar cannot be read.
    """
    for path in shards:
        number = _SHARD.fullmatch(path.name)[1]  # type: ignore[index]
        tar = path.parent / f"recording.{number}.tar"
        with closing(_SharTar(tar)) if tar.is_file() else nullcontext() as recordings:
            for place, cut in _cuts(path):
                yield _item(cut, place, recordings.fill if recordings else _in_no_tar)


def list_cut_set(cuts: Iterable[Cut]) -> Iterator[Item]:
    """Cuts in memory; those of a recording in memory take their audio along."""
    for number, cut in enumerate(cuts, start=1):
        yield _item(cut, f"cut {number}")


def _cuts(path: AnyPath) -> Iterator[tuple[str, Cut]]:
    """Each cut of a file, after its place in it."""
    try:
        from lhotse.serialization import deserialize_item
    except ImportError as error:
        raise ConfigError(
            f"{path}: holds cuts of lhotse, which is not installed: pip install 'audiovq[lhotse]'"
        ) from error
    for number, line in numbered_lines(path, _MAX_LINE):
        place = f"{path}:{number}"
        try:
            cut = deserialize_item(json.loads(line))
            _ = cut.id, cut.duration
        except Exception as error:  # Whatever a malformed line makes lhotse raise.
            raise ManifestError(f"{place}: is no cut of lhotse ({reason_of(error):.200})") from error
        yield place, cut


# --- one cut -------------------------------------------------------------------------------------------------

Fill = Callable[["Cut", "Recording", "Item"], "Item"]
"""Puts the audio of a Shar tar in the place of its placeholder."""


def _in_no_tar(cut: Cut, _: Recording, item: Item) -> Item:
    return replace(item, problem="its audio is in a tar of a Shar folder; name that folder as the input")


def _item(cut: Cut, place: str, fill: Fill = _in_no_tar) -> Item:
    from lhotse.cut import MonoCut, MultiCut

    try:
        check_id(cut.id)
        recording = getattr(cut, "recording", None)
        speakers = {segment.speaker for segment in cut.supervisions} - {None}
        if not all(isinstance(speaker, str) for speaker in speakers):
            raise TypeError(f"speaker: expected a string, found {speakers}")
        item = Item(cut.id, cut.id, speakers.pop() if len(speakers) == 1 else None, seconds=0.0)
        if not isinstance(cut, MonoCut | MultiCut) or recording is None:
            return replace(item, problem=f"is a {type(cut).__name__} without a recording of its own; {_SAVE}")
        try:
            item = _located(cut, recording, item, fill)
        except _UnusableError as error:
            return replace(item, problem=str(error))
        if not item.problem:
            item.utterance()  # Its numbers are those of audio.
        return item
    except ManifestError as error:
        raise ManifestError(f"{place}: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise ManifestError(f"{place}: is no cut of lhotse ({shown(str(error))})") from error


class _UnusableError(Exception):
    """Why the audio of a cut cannot be used."""


def _located(cut: MonoCut | MultiCut, recording: Recording, item: Item, fill: Fill) -> Item:
    """The item with its audio file, channel and samples."""
    rate, total = recording.sampling_rate, recording.num_samples
    transforms = [change if isinstance(change, dict) else change.to_dict() for change in recording.transforms or ()]
    if any(change["name"] != "Resample" for change in transforms):
        raise _UnusableError(f"its recording is changed when lhotse reads it ({transforms[0]['name']}); {_SAVE}")
    if transforms:  # audiovq resamples by itself, from the file.
        rate = transforms[0]["kwargs"]["source_sampling_rate"]
        total = _samples(recording.duration, rate)
    wanted = cut.channel if isinstance(cut.channel, list) else [cut.channel]
    source = next((source for source in recording.sources if {*wanted} <= {*source.channels}), None)
    if source is None or (len(wanted) > 1 and {*wanted} != {*source.channels}):
        raise _UnusableError(f"its channels {wanted} are neither one nor all of those of a file; choose one")
    item = replace(
        item,
        sample_rate=rate,
        num_samples=total,
        channel=source.channels.index(wanted[0]) if len(wanted) == 1 and len(source.channels) > 1 else None,
    )
    item = fill(cut, recording, item) if source.type == "shar" else replace(item, path=_path(source))
    if item.problem or item.sample_rate is None or item.num_samples is None:
        return item
    return _segment(cut, item, item.sample_rate, item.num_samples)


def _segment(cut: Cut, item: Item, rate: int, total: int) -> Item:
    """The item with the samples of its cut, of a recording of `total` samples."""
    first, count = _samples(cut.start, rate), _samples(cut.duration, rate)
    if first < 0 or count < 1 or first + count > total:
        raise _UnusableError(
            f"its samples {first} to {first + count} at {rate} Hz lie outside its recording, which has {total}"
        )
    return replace(item, seconds=count / rate, start=first / rate, num_samples=count)


def _samples(seconds: float, rate: int) -> int:
    from lhotse.utils import compute_num_samples

    return compute_num_samples(seconds, rate)


def _path(source: Any) -> str:
    """Where a source of a recording lies; as in lhotse, a relative file starts at the current folder."""
    if source.type == "memory" and isinstance(source.source, bytes):
        return held(source.source)
    if source.type in ("file", "url") and isinstance(source.source, str):
        try:
            return str(locate(source.source) if is_url(source.source) else Path(source.source).absolute())
        except ConfigError as error:
            raise _UnusableError(f"its recording cannot be read: {error}") from error
    if source.type == "command":
        raise _UnusableError("its recording is a command, and commands are not run; write its output to a file")
    raise _UnusableError(f"its recording is of type {source.type!r:.40}; expected file, url, memory or shar")


class _SharTar:
    """The recordings in a tar of a Shar folder: `ID.flac`, say, with lhotse's description in `ID.json`."""

    def __init__(self, path: AnyPath):
        self.path = path.absolute()
        self._file = open_file(self.path)
        self._audio: dict[str, Member] = {}
        self._about: dict[str, Member] = {}
        self._problems: dict[str, str | None] = {}
        self._damage = None
        for found in members_of(self.path):
            if found.member is None:
                self._damage = found.problem
                continue
            name = PurePosixPath(found.member.name)
            key = str(name.parent / name.stem)
            if name.suffix == ".json":
                self._about[key] = found.member
            elif name.suffix not in (".nodata", ".nometa"):
                self._audio[key], self._problems[key] = found.member, found.problem

    def close(self) -> None:
        self._file.close()

    def fill(self, cut: Cut, recording: Recording, item: Item) -> Item:
        member, about = self._audio.get(cut.id), self._about.get(cut.id)
        item = replace(item, path=escape(str(self.path)))
        if member is None or about is None:
            damage = f", which {self._damage}" if self._damage else ""
            return replace(item, problem=f"has no audio in {self.path.name}{damage}")
        self._file.seek(about.first)  # On from the last one, if the cuts are in the order of the tar, as they are.
        known = json.loads(self._file.read(min(about.size, _MAX_LINE)))
        return replace(
            item,
            member=Member(escape(member.name), member.first, member.size),
            problem=self._problems[cut.id],
            sample_rate=known["sampling_rate"],
            num_samples=known["num_samples"],
        )
