"""Dividing a data set into units of work, each of which becomes one shard."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from audiovq.data.corpora import folder
from audiovq.data.listing import open_entries
from audiovq.data.manifest import Utterance, read_manifest
from audiovq.errors import ManifestError

UNIT_SECONDS = 3600.0
"""Audio in a unit, about."""


@dataclass(frozen=True)
class Rejected:
    """An utterance whose audio cannot be used."""

    utt_id: str
    source: str
    reason: str


@dataclass(frozen=True)
class Unit:
    """Consecutive utterances of a manifest that are tokenized together."""

    name: str
    """Name of the shard, without suffix."""
    utterances: Sequence[Utterance]

    @property
    def content_hash(self) -> str:
        """SHA-256 of what the unit asks for; a shard that was made for something else does not count as done."""
        asked = [[u.id, str(u.path), u.offset, u.num_samples, u.sample_rate, u.speaker] for u in self.utterances]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def plan_units(utterances: Sequence[Utterance], unit_seconds: float = UNIT_SECONDS) -> list[Unit]:
    """Cut a list of utterances into units of about `unit_seconds` of audio, in its order.

    The plan depends on the utterances alone, so that a run that is started again finds the same units.
    """
    groups: list[list[Utterance]] = [[]]
    seconds = 0.0
    for utterance in utterances:
        if groups[-1] and seconds + utterance.duration > unit_seconds:
            groups.append([])
            seconds = 0.0
        groups[-1].append(utterance)
        seconds += utterance.duration
    return [Unit(f"part-{number:05d}-of-{len(groups):05d}", group) for number, group in enumerate(groups)]


def list_utterances(data: Path) -> tuple[list[Utterance], list[Rejected]]:
    """The utterances of a manifest, or of a folder of audio files, and files in the folder that cannot be used.

    Raises:
        ManifestError: the manifest is malformed, the folder holds no usable audio, or two files in it share an id.
    """
    if not data.is_dir():
        return read_manifest(data), []
    entries = folder(data.absolute()).entries
    paths = {}
    for entry in entries:
        first = paths.setdefault(entry.id, entry.path)
        if first != entry.path:
            raise ManifestError(f"{entry.path} and {first} would share the id {entry.id!r}; rename one of them")
    utterances, left_out = open_entries(entries)
    rejected = [Rejected(item.item, str(paths[item.item]), item.detail) for item in left_out]
    if not utterances:
        raise ManifestError(f"{data}: no usable audio. {rejected[0].reason}")
    return utterances, rejected
