"""Shards on disk: written whole, described by a sidecar, and recognised again by the next run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import audiovq
from audiovq.data.tokens import TokenRow, write_shard
from audiovq.errors import OutputExistsError
from audiovq.files import write_json
from audiovq.tokenization.plan import Rejected, Unit

PLAN = "plan.json"
SIDECARS = "_units"
"""Folder of the sidecars; readers of Parquet folders pass over names with an underscore."""


def write_plan(folder: Path, units: Sequence[Unit]) -> None:
    """Note which utterances a token data set is made of, before anything else is written."""
    write_json(folder / SIDECARS / PLAN, _plan(units))


def check_plan(folder: Path, units: Sequence[Unit]) -> None:
    """Raise `OutputExistsError` unless a folder's token data set is made of just these utterances."""
    try:
        found = json.loads((folder / SIDECARS / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputExistsError(f"{folder}: is not empty, and holds no token data set that was begun") from error
    if found != _plan(units):
        raise OutputExistsError(f"{folder}: holds the codes of another list of utterances")


def _plan(units: Sequence[Unit]) -> dict[str, Any]:
    hashes = "".join(unit.content_hash for unit in units)
    return {
        "units": len(units),
        "utterances": sum(len(unit.utterances) for unit in units),
        "plan_sha256": hashlib.sha256(hashes.encode()).hexdigest(),
    }


def commit_unit(
    folder: Path, unit: Unit, rows: Sequence[TokenRow], rejected: Sequence[Rejected], made_by: dict[str, Any]
) -> dict[str, Any]:
    """Write a unit's shard, then its sidecar, which is returned; only both together count as done.

    Args:
        made_by: what the codes depend on besides the audio, such as the model's hash and the device.
    """
    shard = folder / f"{unit.name}.parquet"
    write_shard(shard, rows)
    record = {
        "unit_sha256": unit.content_hash,
        "shard_sha256": _sha256(shard),
        "utterances": len(rows),
        "frames": sum(row.num_frames for row in rows),
        "seconds": sum(row.num_samples / row.sample_rate for row in rows),
        "rejected": [asdict(item) for item in rejected],
        "audiovq_version": audiovq.__version__,
        **made_by,
    }
    write_json(_sidecar(folder, unit), record)
    return record


def committed(folder: Path, unit: Unit, weights_sha256: str) -> dict[str, Any] | None:
    """The sidecar of a unit that is done: made of the same audio by the same model, and its shard undamaged."""
    try:
        record = json.loads(_sidecar(folder, unit).read_text(encoding="utf-8"))
        done = (
            record["unit_sha256"] == unit.content_hash
            and record["weights_sha256"] == weights_sha256
            and record["shard_sha256"] == _sha256(folder / f"{unit.name}.parquet")
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if done else None


def _sidecar(folder: Path, unit: Unit) -> Path:
    return folder / SIDECARS / f"{unit.name}.json"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
