"""Dividing a data set into units of work, each of which becomes one shard."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from typing import Any

from audiovq.data.sources import Item

UNITS = 64
"""Units that a data set is cut into, as long as none of them is shorter or longer than the limits below."""
SHORTEST, LONGEST = 300.0, 3600.0
"""Audio in a unit, in seconds: enough to fill batches of like lengths, and little enough to be done again."""


@dataclass(frozen=True)
class Unit:
    """Consecutive utterances of the inputs that are tokenized together."""

    name: str
    """Name of the shard, without suffix."""
    items: Sequence[Item]

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of what the unit asks for; a shard that was made for something else does not count as done."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """The items as text."""
        return json.dumps([astuple(item) for item in self.items])

    @classmethod
    def from_json(cls, name: str, text: str) -> Unit:
        """The unit of that name and of items that `to_json` wrote."""
        return cls(name, [Item.of_record(record) for record in json.loads(text)])

    @property
    def seconds(self) -> float:
        """Length of all its audio."""
        return sum(item.seconds or 0.0 for item in self.items)


@dataclass(frozen=True)
class Plan:
    """What a token data set is made of. It depends on the inputs alone, so that all processes find the same one."""

    units: Sequence[Unit]
    max_seconds: float | None = None
    """Longer utterances are rejected; None: there is no limit."""

    @property
    def record(self) -> dict[str, Any]:
        """What tells this plan from others, for a file."""
        hashes = "".join(unit.content_hash for unit in self.units)
        return {
            "units": len(self.units),
            "utterances": sum(len(unit.items) for unit in self.units),
            "max_seconds": self.max_seconds,
            "plan_sha256": hashlib.sha256(hashes.encode()).hexdigest(),
        }


def plan_units(items: Iterable[Item], unit_seconds: float | None = None) -> list[Unit]:
    """Cut a list of utterances, in its order, into units that hold about equally much audio.

    Args:
        unit_seconds: audio in a unit, about; None: a 64th of the whole, but from 5 minutes to an hour.
    """
    items = list(items)
    total = sum(item.seconds or 0.0 for item in items)
    wanted = unit_seconds or min(max(total / UNITS, SHORTEST), LONGEST)
    count = max(1, round(total / wanted))
    groups: list[list[Item]] = [[] for _ in range(count)]
    before = 0.0
    for item in items:
        seconds = item.seconds or 0.0
        # By the middle of each utterance; one that is longer than a unit leaves the next one empty.
        middle = (before + seconds / 2) * count / total if total else 0
        groups[min(int(middle), count - 1)].append(item)
        before += seconds
    filled = [group for group in groups if group]
    return [Unit(f"part-{number:05d}-of-{len(filled):05d}", group) for number, group in enumerate(filled)]


def own_units(units: Sequence[Unit], shard: tuple[int, int] | None) -> Sequence[Unit]:
    """Every n-th unit from number i on, the part (i, n) of one process among several; all of them for None."""
    return units if shard is None else units[shard[0] :: shard[1]]
