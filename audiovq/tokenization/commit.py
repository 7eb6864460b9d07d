"""A token data set that grows on disk: shards written whole, described by a sidecar, recognised by the next run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiovq.errors import OutputExistsError, TokenError
from audiovq.files import remove_stale_partials, sha256_of, write_json, write_text
from audiovq.tokenization.plan import Plan, Unit
from audiovq.tokens import TOKENIZER, TokenizerInfo, read_tokenizer_info, write_shard, write_tokenizer_info
from audiovq.tokens.info import PLAN, REJECTED, SIDECARS, SUMMARY, set_digest

if TYPE_CHECKING:
    from audiovq.tokenization.worker import Encoded


@dataclass(frozen=True)
class Summary:
    """What a whole token data set holds."""

    utterances: int
    seconds: float
    frames: int
    rejected: int
    """Utterances whose audio cannot be used."""
    shards: int
    digest: str
    """SHA-256 that names all codes; see `set_digest`."""


# --- the folder ----------------------------------------------------------------------------------------------


def claim(folder: Path, plan: Plan, info: TokenizerInfo, force: bool = False) -> None:
    """Make sure that a folder holds nothing but what an earlier run with the same plan and model has written.

    Raises:
        OutputExistsError: it holds something else, and `force` is not given.
    """
    try:
        _require_ours(folder, plan, info)
    except (OutputExistsError, TokenError) as error:
        if not force:
            raise OutputExistsError(f"{error}; choose another --output, or add --force to start anew") from error
        for path in [*folder.glob("*.parquet"), folder / TOKENIZER, folder / REJECTED, folder / SUMMARY]:
            path.unlink(missing_ok=True)
        shutil.rmtree(folder / SIDECARS, ignore_errors=True)
    # Several processes may do this at the same time; all write the same.
    if not (folder / SIDECARS / PLAN).exists():
        write_json(folder / SIDECARS / PLAN, plan.record)
    if not (folder / TOKENIZER).exists():
        write_tokenizer_info(folder, info)
    for place in (folder, folder / SIDECARS):
        remove_stale_partials(place)


def _require_ours(folder: Path, plan: Plan, info: TokenizerInfo) -> None:
    found = {path.name for path in folder.iterdir() if not path.name.startswith(".partial-")} if folder.exists() else ()
    if (folder / TOKENIZER).exists():
        weights = read_tokenizer_info(folder).weights_sha256
        if weights != info.weights_sha256:
            raise TokenError(
                f"{folder}: holds codes of another model (weights {weights[:12]}, "
                f"this model's are {info.weights_sha256[:12]})"
            )
    try:
        noted = json.loads((folder / SIDECARS / PLAN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if set(found) - {SIDECARS}:
            raise OutputExistsError(f"{folder}: is not empty, and holds no token data set that was begun") from None
        return
    except (OSError, ValueError) as error:
        raise OutputExistsError(f"{folder / SIDECARS / PLAN}: is damaged ({error})") from error
    if noted != plan.record:
        raise OutputExistsError(f"{folder}: holds the codes of {_difference(noted, plan.record)}")


def _difference(noted: Any, wanted: dict[str, Any]) -> str:
    if isinstance(noted, dict) and {**noted, "max_seconds": None} == {**wanted, "max_seconds": None}:
        return f"another --max-seconds, {noted.get('max_seconds')}"
    return "another list of utterances"


# --- units ---------------------------------------------------------------------------------------------------


def commit_unit(folder: Path, encoded: Encoded, made_by: dict[str, Any]) -> dict[str, Any]:
    """Write a unit's shard, then its sidecar, which is returned; only both together count as done.

    Args:
        made_by: what the codes depend on besides the audio, such as the model's hash and the device.
    """
    unit, rows = encoded.unit, encoded.rows
    shard = folder / f"{unit.name}.parquet"
    write_shard(shard, rows)
    record = {
        "unit_sha256": unit.content_hash,
        "shard_sha256": sha256_of(shard),
        "utterances": len(rows),
        "frames": sum(row.num_frames for row in rows),
        "seconds": sum(row.num_samples / row.sample_rate for row in rows),
        "rejected": [asdict(item) for item in encoded.rejected],
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
            and record["shard_sha256"] == sha256_of(folder / f"{unit.name}.parquet")
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if done else None


def _sidecar(folder: Path, unit: Unit) -> Path:
    return folder / SIDECARS / f"{unit.name}.json"


# --- the whole set -------------------------------------------------------------------------------------------


def consolidate(folder: Path, units: Sequence[Unit], weights_sha256: str) -> tuple[Summary | None, int]:
    """Write `rejected.jsonl` and `summary.json` if all units are done.

    Returns:
        The summary, None if there are units to be done yet, and the number of these.
    """
    missing = sum(not _sidecar(folder, unit).exists() for unit in units)
    if missing:
        return None, missing
    records = [committed(folder, unit, weights_sha256) for unit in units]
    done = [record for record in records if record is not None]
    if len(done) < len(units):
        return None, len(units) - len(done)
    rejected = [
        {**item, "shard": f"{unit.name}.parquet"}
        for unit, record in zip(units, done, strict=True)
        for item in record["rejected"]
    ]
    summary = Summary(
        utterances=sum(record["utterances"] for record in done),
        seconds=sum(record["seconds"] for record in done),
        frames=sum(record["frames"] for record in done),
        rejected=len(rejected),
        shards=len(done),
        digest=set_digest((unit.name, record["shard_sha256"]) for unit, record in zip(units, done, strict=True)),
    )
    if rejected:
        write_text(folder / REJECTED, "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in rejected))
    else:
        (folder / REJECTED).unlink(missing_ok=True)
    write_json(folder / SUMMARY, asdict(summary))
    return summary, 0
