"""Dividing a data set into units of work, each of which becomes one shard."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields, replace
from functools import cached_property
from itertools import accumulate, pairwise

from audiovq.data.items import Item
from audiovq.data.sources import with_seconds
from audiovq.errors import TokenError
from audiovq.tokens.records import PlanRecord

UNITS = 64
"""Units that a data set is cut into, as long as none of them is shorter or longer than the limits below."""
SHORTEST, LONGEST = 300.0, 3600.0
"""Audio in a unit, in seconds: enough to fill batches of like lengths, and little enough to be done again."""
_STATED = [field.name for field in fields(Item) if field.name not in ("seconds", "channel")]
"""What an input says of an utterance, and its channel if it names one. Its length is no part of that: it follows from
the rest, or was measured."""


@dataclass(frozen=True)
class Unit:
    """Consecutive utterances of the inputs that are tokenized together."""

    name: str
    """Name of the shard, without suffix."""
    items: Sequence[Item]

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of what the unit asks for; a shard that was made for something else does not count as done."""
        return inputs_sha256(self.items)

    def to_json(self) -> str:
        """The items as text."""
        return json.dumps([astuple(item) for item in self.items])

    @classmethod
    def from_json(cls, name: str, text: str) -> Unit:
        """The unit of that name and of items that `to_json` wrote."""
        return cls(name, [Item.of_record(record) for record in json.loads(text)])

    @property
    def seconds(self) -> float:
        """Length of all its audio, as far as it is known."""
        return sum(item.seconds or 0.0 for item in self.items)


def inputs_sha256(items: Iterable[Item]) -> str:
    """SHA-256 of what a list says of its utterances; nothing that was found by opening files goes into it."""
    digest = hashlib.sha256()
    for item in items:
        channel = [] if item.channel is None else [item.channel]
        digest.update(json.dumps([getattr(item, name) for name in _STATED] + channel, default=astuple).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class TokenizingRequest:
    """What a token data set is to be made of, and how it is divided."""

    items: Sequence[Item]
    """As they are listed; lengths that the list does not tell are None."""
    weights_sha256: str
    """Of the model."""
    max_seconds: float | None = None
    """Longer utterances are rejected; None: there is no limit."""
    unit_seconds: float | None = None
    """Audio in a unit, about; None: see `plan_units`."""
    num_codebooks: int | None = None
    """How many of the model's codebooks are used, the first ones; None: all."""

    @cached_property
    def inputs_sha256(self) -> str:
        return inputs_sha256(self.items)

    def plan(self) -> PlanRecord:
        """Cut the list into units; files are opened where it does not tell how long they are."""
        measured = list(with_seconds(self.items))
        sizes = [len(unit.items) for unit in plan_units(measured, self.unit_seconds)]
        unknown = (given.seconds is None for given in self.items)
        # Milliseconds are enough to make batches of like lengths.
        seconds = [round(item.seconds or 0.0, 3) for item, found in zip(measured, unknown, strict=True) if found]
        return PlanRecord(
            units=len(sizes),
            utterances=len(measured),
            weights_sha256=self.weights_sha256,
            inputs_sha256=self.inputs_sha256,
            max_seconds=self.max_seconds,
            unit_seconds=self.unit_seconds,
            sizes=sizes,
            seconds=seconds,
            plan_sha256=division_sha256(sizes, seconds),
            num_codebooks=self.num_codebooks,
        )

    def units(self, plan: PlanRecord) -> list[Unit]:
        """The units of a plan for these items.

        Raises:
            TokenError: the plan is damaged.
        """
        unknown = sum(item.seconds is None for item in self.items)
        found = (sum(plan.sizes), len(plan.sizes), len(plan.seconds), division_sha256(plan.sizes, plan.seconds))
        if found != (len(self.items), plan.units, unknown, plan.plan_sha256):
            raise TokenError("the plan does not fit its own hash")
        seconds = iter(plan.seconds)
        items = [replace(item, seconds=next(seconds)) if item.seconds is None else item for item in self.items]
        return _divide(items, plan.sizes)


def division_sha256(sizes: Sequence[int], seconds: Sequence[float]) -> str:
    """SHA-256 of how a plan divides its items."""
    return hashlib.sha256(json.dumps([list(sizes), list(seconds)]).encode()).hexdigest()


def plan_units(items: Iterable[Item], unit_seconds: float | None = None) -> list[Unit]:
    """Cut a list of utterances, in its order, into units that hold about equally much audio.

    Args:
        unit_seconds: audio in a unit, about; None: a 64th of the whole, but from 5 minutes to an hour.
    """
    items = list(items)
    total = sum(item.seconds or 0.0 for item in items)
    wanted = unit_seconds or min(max(total / UNITS, SHORTEST), LONGEST)
    count = max(1, round(total / wanted))
    sizes = [0] * count
    before = 0.0
    for item in items:
        seconds = item.seconds or 0.0
        # By the middle of each utterance; one that is longer than a unit leaves the next one empty.
        middle = (before + seconds / 2) * count / total if total else 0
        sizes[min(int(middle), count - 1)] += 1
        before += seconds
    return _divide(items, [size for size in sizes if size])


def _divide(items: Sequence[Item], sizes: Sequence[int]) -> list[Unit]:
    ends = pairwise(accumulate(sizes, initial=0))
    return [Unit(f"part-{i:05d}-of-{len(sizes):05d}", items[first:last]) for i, (first, last) in enumerate(ends)]


def own_units(units: Sequence[Unit], shard: tuple[int, int] | None) -> Sequence[Unit]:
    """Every n-th unit from number i on, the part (i, n) of one process among several; all of them for None."""
    return units if shard is None else units[shard[0] :: shard[1]]
