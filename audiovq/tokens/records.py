"""The JSON files of a token data set: what they say, with types and ranges checked when they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from audiovq.errors import TokenError
from audiovq.files import open_file
from audiovq.storage import AnyPath

PLAN = "plan.json"
SIDECARS = "_units"
"""Folder of the plan and the sidecars; readers of Parquet folders pass over names with an underscore."""
REJECTED = "rejected.jsonl"
SUMMARY = "summary.json"

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Rejected:
    """An utterance whose audio cannot be used."""

    utt_id: str
    source: str
    reason: str


@dataclass(frozen=True)
class Sidecar:
    """What is said of a shard beside it; the two together count as done."""

    unit_sha256: Sha256
    """What the shard was asked to hold; see `Unit.content_hash`."""
    shard_sha256: Sha256
    utterances: Count
    frames: Count
    seconds: Seconds
    rejected: list[Rejected]
    weights_sha256: Sha256
    """Of the model that made the codes."""
    device: str
    dtype: str
    versions: dict[str, str]
    """Of the packages that made the codes."""
    num_codebooks: Positive | None = None
    """How many of the model's codebooks were used, the first ones; None: all."""


@dataclass(frozen=True)
class SetSummary:
    """What a whole token data set holds."""

    utterances: Count
    seconds: Seconds
    frames: Count
    rejected: Count
    """Utterances whose audio cannot be used."""
    shards: Count
    digest: Sha256
    """SHA-256 that names all codes; see `set_digest`."""

    @classmethod
    def of(cls, sidecars: Sequence[Sidecar], digest: str) -> SetSummary:
        """What shards with these sidecars add up to."""
        return cls(
            utterances=sum(sidecar.utterances for sidecar in sidecars),
            seconds=float(sum(sidecar.seconds for sidecar in sidecars)),
            frames=sum(sidecar.frames for sidecar in sidecars),
            rejected=sum(len(sidecar.rejected) for sidecar in sidecars),
            shards=len(sidecars),
            digest=digest,
        )


@dataclass(frozen=True)
class PlanCounts:
    """How much a plan of any format version has to do."""

    units: Count
    utterances: Count


@dataclass(frozen=True)
class PlanRecord(PlanCounts):
    """What a token data set is made of, as the first process that came has laid down for all others."""

    weights_sha256: Sha256
    inputs_sha256: Sha256
    """What the inputs list; see `inputs_sha256`."""
    max_seconds: Seconds | None
    unit_seconds: Seconds | None
    sizes: list[Positive]
    """Utterances in each unit."""
    seconds: list[Seconds]
    """Length of each utterance whose list does not tell it, as it was found; 0 if its audio could not be used."""
    plan_sha256: Sha256
    """Of `sizes` and `seconds`."""
    num_codebooks: Positive | None = None
    """How many of the model's codebooks are used; None: all."""
    format_version: Literal[2] = 2


Record = TypeVar("Record")
LARGEST_RECORD = 2**28
"""Bytes of a record: a plan of tens of millions of utterances."""


def read_record(path: AnyPath, schema: type[Record]) -> Record:
    """The content of a JSON file as a dataclass; members that it does not know are passed over.

    Raises:
        TokenError: the file is missing or damaged.
    """
    return parse_record(_read(path), schema, str(path))


def _read(path: AnyPath) -> bytes:
    try:
        with open_file(path) as file:
            data = file.read(LARGEST_RECORD + 1)
    except OSError as error:
        raise TokenError(f"{path}: cannot be read ({error.strerror})") from error
    if len(data) > LARGEST_RECORD:
        raise TokenError(f"{path}: expected at most {LARGEST_RECORD} bytes, found more; is it damaged?")
    return data


def parse_record(text: str | bytes, schema: type[Record], source: str) -> Record:
    """JSON text as a dataclass; raises `TokenError` that names `source` if it is damaged."""
    try:
        return _reader(schema).validate_json(text, strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, problem["loc"]))
        raise TokenError(f"{source}: is damaged ({place + ': ' if place else ''}{problem['msg']})") from error


@cache
def _reader(schema: type[Record]) -> TypeAdapter[Record]:
    """To make one takes longer than to read a record."""
    return TypeAdapter(schema)


def read_rejected(folder: AnyPath) -> list[Rejected]:
    """The utterances of a set whose audio cannot be used; none if there is no such file.

    Raises:
        TokenError: the file is damaged.
    """
    path = folder / REJECTED
    if not path.exists():
        return []
    # Not splitlines: an id may hold what Unicode, but not JSON lines, takes for the end of a line.
    lines = _read(path).split(b"\n")
    return [parse_record(line, Rejected, f"{path}:{i}") for i, line in enumerate(lines, start=1) if line]
