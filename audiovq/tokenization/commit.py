"""A token data set that grows: shards written whole, described by a sidecar, recognised by the next run.

The folder may be one of an object store. There, a shard is sent as one object, then its sidecar: the unit is done from
the moment on at which the sidecar is there, and the next run counts only what sidecars name. What a run that was killed
in between has left, a shard without a sidecar, is made again under the same name. To see that a shard is whole, the
next run reads it, as on a disk.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from audiovq.errors import TokenError
from audiovq.files import sha256_of, write_json, write_text
from audiovq.storage import AnyPath
from audiovq.tokenization.plan import Unit
from audiovq.tokens import write_shard
from audiovq.tokens.info import TokenizerInfo, set_digest
from audiovq.tokens.records import REJECTED, SIDECARS, SUMMARY, SetSummary, Sidecar, read_record

if TYPE_CHECKING:
    from audiovq.tokenization.worker import Encoded


def commit_unit(folder: AnyPath, encoded: Encoded, made_by: dict[str, Any]) -> Sidecar:
    """Write a unit's shard, then its sidecar, which is returned; only both together count as done.

    Args:
        made_by: what the codes depend on besides the audio: the sidecar's `weights_sha256`, `device` and so on.
    """
    unit, rows = encoded.unit, encoded.rows
    shard = folder / f"{unit.name}.parquet"
    write_shard(shard, rows)
    sidecar = Sidecar(
        unit_sha256=unit.content_hash,
        shard_sha256=sha256_of(shard),
        utterances=len(rows),
        frames=sum(row.num_frames for row in rows),
        seconds=float(sum(row.num_samples / row.sample_rate for row in rows)),
        rejected=encoded.rejected,
        **made_by,
    )
    write_json(_sidecar_path(folder, unit), asdict(sidecar))
    return sidecar


def committed(folder: AnyPath, unit: Unit, info: TokenizerInfo) -> Sidecar | None:
    """The sidecar of a unit that is done: made of the same audio by the same model, and its shard undamaged."""
    try:
        sidecar = read_record(_sidecar_path(folder, unit), Sidecar)
        done = (
            sidecar.unit_sha256 == unit.content_hash
            and sidecar.weights_sha256 == info.weights_sha256
            and sidecar.num_codebooks == info.chosen_codebooks
            and sidecar.shard_sha256 == sha256_of(folder / f"{unit.name}.parquet")
        )
    except (TokenError, OSError):
        return None
    return sidecar if done else None


def _sidecar_path(folder: AnyPath, unit: Unit) -> AnyPath:
    return folder / SIDECARS / f"{unit.name}.json"


def consolidate(folder: AnyPath, units: Sequence[Unit], info: TokenizerInfo) -> tuple[SetSummary | None, int]:
    """Write `rejected.jsonl` and `summary.json` if all units are done.

    Returns:
        The summary, None if there are units to be done yet, and the number of these.
    """
    missing = sum(not _sidecar_path(folder, unit).exists() for unit in units)
    if missing:
        return None, missing
    records = [committed(folder, unit, info) for unit in units]
    done = [record for record in records if record is not None]
    if len(done) < len(units):
        return None, len(units) - len(done)
    rejected = [
        {**asdict(item), "shard": f"{unit.name}.parquet"}
        for unit, record in zip(units, done, strict=True)
        for item in record.rejected
    ]
    digest = set_digest((unit.name, record.shard_sha256) for unit, record in zip(units, done, strict=True))
    summary = SetSummary.of(done, digest)
    if rejected:
        write_text(folder / REJECTED, "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in rejected))
    else:
        (folder / REJECTED).unlink(missing_ok=True)
    write_json(folder / SUMMARY, asdict(summary))
    return summary, 0
