"""Tokenizing a data set on one machine: plan, encode, commit, and go on where an earlier run stopped."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from audiovq.data.manifest import Utterance
from audiovq.data.tokens import (
    TOKENIZER,
    TokenizerInfo,
    read_tokenizer_info,
    require_same_model,
    write_tokenizer_info,
)
from audiovq.errors import OutputExistsError, TokenError
from audiovq.files import write_text
from audiovq.models.tokenizer import AudioTokenizer
from audiovq.tokenization.commit import SIDECARS, check_plan, commit_unit, committed, write_plan
from audiovq.tokenization.plan import Rejected, Unit, plan_units
from audiovq.tokenization.worker import encode_utterances

REJECTED = "rejected.jsonl"


@dataclass(frozen=True)
class Summary:
    """What a token data set holds after a run."""

    utterances: int
    seconds: float
    frames: int
    rejected: list[dict[str, str]]
    """Utterances whose audio cannot be used: utt_id, source, reason."""
    resumed: int
    """Units that an earlier run had done already."""


def tokenize(
    tokenizer: AudioTokenizer,
    utterances: Sequence[Utterance],
    output: str | Path,
    batch_seconds: float = 60.0,
    unusable: Sequence[Rejected] = (),
    force: bool = False,
) -> Summary:
    """Encode utterances into the token data set `output`; shards that are there already are kept.

    Utterances whose audio cannot be used are listed in `rejected.jsonl` and stop nothing.

    Args:
        batch_seconds: audio in a batch, padding included.
        unusable: what was found to be unusable before; listed with the rest.
        force: remove what another model, or another list of utterances, has left in `output`.

    Raises:
        OutputExistsError: `output` holds something else and `force` is not given.
        TokenError: the model has no codes.
    """
    tokenizer.require_codes()
    output = Path(output)
    units = plan_units(utterances)
    info = TokenizerInfo.of(tokenizer)
    _claim(output, units, tokenizer, force)
    write_tokenizer_info(output, info)

    made_by = {
        "weights_sha256": info.weights_sha256,
        "device": str(tokenizer.device),
        "dtype": "float32",
        "torch_version": torch.__version__,
    }
    records, resumed = [], 0
    for unit in _with_progress(units):
        record = committed(output, unit, info.weights_sha256)
        if record is None:
            rows, rejected = encode_utterances(tokenizer, unit.utterances, batch_seconds)
            record = commit_unit(output, unit, rows, rejected, made_by)
        else:
            resumed += 1
        records.append(record)
    rejected = [asdict(item) for item in unusable] + [item for record in records for item in record["rejected"]]
    return _summarize(output, records, rejected, resumed)


def _claim(output: Path, units: Sequence[Unit], tokenizer: AudioTokenizer, force: bool) -> None:
    """Make sure that `output` holds nothing but what an earlier run with the same model and utterances has written."""
    try:
        if not output.exists() or not any(output.iterdir()):
            write_plan(output, units)
        elif (output / TOKENIZER).exists():
            require_same_model(read_tokenizer_info(output).weights_sha256, tokenizer, output)
        check_plan(output, units)
    except (OutputExistsError, TokenError) as error:
        if not force:
            raise OutputExistsError(f"{error}; choose another --output, or add --force to start anew") from error
        for path in [*output.glob("*.parquet"), output / TOKENIZER, output / REJECTED]:
            path.unlink(missing_ok=True)
        shutil.rmtree(output / SIDECARS, ignore_errors=True)
        write_plan(output, units)


def _summarize(
    output: Path, records: Sequence[dict[str, Any]], rejected: list[dict[str, str]], resumed: int
) -> Summary:
    if rejected:
        write_text(output / REJECTED, "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in rejected))
    else:
        (output / REJECTED).unlink(missing_ok=True)
    return Summary(
        utterances=sum(record["utterances"] for record in records),
        seconds=sum(record["seconds"] for record in records),
        frames=sum(record["frames"] for record in records),
        rejected=rejected,
        resumed=resumed,
    )


def _with_progress(units: Sequence[Any]) -> Any:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(units, "Tokenizing", console=console, transient=True, disable=not sys.stderr.isatty())
