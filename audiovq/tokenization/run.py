"""Tokenizing a data set: plan, encode and commit what is missing, and sum up."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from audiovq.data.sources import Input, list_items
from audiovq.errors import TokenError, WorkerError
from audiovq.storage import AnyPath, locate
from audiovq.tokenization.claim import claim
from audiovq.tokenization.commit import committed, consolidate
from audiovq.tokenization.plan import TokenizingRequest, Unit, own_units
from audiovq.tokens.records import Rejected, SetSummary, Sidecar


@dataclass(frozen=True)
class TokenizingRun:
    """What one call of `tokenize` did."""

    done: int
    """Units that it encoded."""
    resumed: int
    """Of its units those that were there already."""
    seconds: float
    """Audio that it encoded."""
    elapsed: float
    """Time that it took, in seconds, from handing out the first unit on."""
    rejected: list[Rejected]
    """Of its utterances those whose audio cannot be used."""
    missing: int
    """Units of the whole set that are not there yet; other processes have to do them."""
    summary: SetSummary | None
    """The whole set, if nothing is missing."""


def tokenize(
    model: str | Path,
    inputs: Sequence[Input],
    output: str | AnyPath,
    *,
    processes: int | None = None,
    shard: tuple[int, int] | None = None,
    engine: str = "local",
    batch_seconds: float | None = None,
    max_seconds: float | None = None,
    unit_seconds: float | None = None,
    num_codebooks: int | None = None,
    device: str = "auto",
    retry_rejected: bool = False,
    force: bool = False,
) -> TokenizingRun:
    """Encode inputs into the token data set `output`; what is there already is kept.

    Utterances whose audio cannot be used are listed in `rejected.jsonl` and stop nothing. Codes are the same whichever
    way they are computed: by one process or many, at once or resumed, with any batch size.

    Args:
        inputs: manifests, CutSets, folders of audio, Kaldi data folders, WebDataset tars; see `list_items`.
        output: a folder, also of an object store; see `audiovq.tokenization.commit`.
        processes: workers on this machine; None: one for each accelerator, or this process alone. For Ray the most
            that it may start; None: as many as there is room for.
        shard: (i, n): do only the i-th of n parts, i from 0; another n processes do the rest, at any time.
        engine: `local`, or `ray`: on a Ray cluster.
        batch_seconds: audio in a batch, padding included; None: as much as the device encodes at a time.
        max_seconds: reject longer utterances.
        unit_seconds: audio in a shard, about; None: see `plan_units`.
        num_codebooks: how many of the model's codebooks are used, the first ones; None: all.
        retry_rejected: do the units again that hold utterances whose audio could not be used.
        force: remove the token data set of another model, number of codebooks or list of utterances from `output`.

    Raises:
        ManifestError: an input is malformed, or two utterances share an id.
        OutputExistsError: `output` holds something else, and `force` is not given or does not help.
        TokenError: the model has no codes, or not so many codebooks.
        WorkerError: a worker was killed.
    """
    items = list(list_items(inputs))

    from audiovq.models.tokenizer import AudioTokenizer
    from audiovq.tokenization import engines
    from audiovq.tokenization.worker import EncodingSettings, TokenizingJob, work
    from audiovq.tokens.info import TokenizerInfo, read_tokenizer_info

    if engine == "local":
        processes = processes or max(1, engines.accelerators(device))
    alone = engine == "local" and processes == 1
    tokenizer = AudioTokenizer.from_pretrained(model, device if alone else "cpu")
    output, info = locate(output), TokenizerInfo.of(tokenizer, num_codebooks)
    with suppress(TokenError):  # A set that was begun names its model as it has, or there is none.
        if tokenizer.made(named := read_tokenizer_info(output).weights_sha256):
            info = replace(info, weights_sha256=named)
    settings = EncodingSettings(batch_seconds, max_seconds, info.chosen_codebooks)
    job = TokenizingJob(str(model), info.weights_sha256, output.absolute(), settings, device)
    request = TokenizingRequest(items, info.weights_sha256, max_seconds, unit_seconds, info.chosen_codebooks)
    with claim(output, request, info, force) as units:
        found: list[Sidecar] = []
        missing: list[Unit] = []
        for unit in own_units(units, shard):
            sidecar = committed(output, unit, info)
            if sidecar is None or (retry_rejected and sidecar.rejected):
                missing.append(unit)
            else:
                found.append(sidecar)
        began = time.monotonic()
        with _Progress(missing) as waiting:
            if not missing:
                sidecars = iter(())
            elif alone:
                sidecars = work(job, tokenizer, waiting)
            elif engine == "local":
                sidecars = engines.run_processes(job, waiting, min(processes or 1, len(missing)))
            else:
                sidecars = engines.run_ray(job, waiting, processes)
            done = list(waiting.watch(sidecars))
            elapsed = time.monotonic() - (waiting.began or began)
        summary, left = consolidate(output, units, info)
    if left and shard is None:
        raise WorkerError(f"{output}: {left} shards were changed while they were written; run the same command again")
    return TokenizingRun(
        done=len(done),
        resumed=len(found),
        seconds=sum(sidecar.seconds for sidecar in done),
        elapsed=elapsed,
        rejected=[item for sidecar in [*found, *done] for item in sidecar.rejected],
        missing=left,
        summary=summary,
    )


class _Progress(AbstractContextManager["_Progress"]):
    """Hands out units, notes when the first was taken, and shows how much audio is done."""

    def __init__(self, units: Sequence[Unit]):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        hidden = not sys.stderr.isatty()
        columns = (TextColumn("Tokenizing"), BarColumn(), TextColumn("{task.fields[hours]}"), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden)
        self._units, self._seconds = units, {unit.content_hash: unit.seconds for unit in units}
        self._total = sum(self._seconds.values())
        self.began: float | None = None

    def __enter__(self) -> _Progress:
        self._bar.start()
        self._task = self._bar.add_task("", total=self._total, hours=self._hours(0))
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def __iter__(self) -> Iterator[Unit]:
        for unit in self._units:
            self.began = self.began or time.monotonic()
            yield unit

    def watch(self, records: Iterable[Sidecar]) -> Iterator[Sidecar]:
        """The same sidecars, while the bar moves on."""
        done = 0.0
        for record in records:
            done += self._seconds[record.unit_sha256]
            self._bar.update(self._task, completed=done, hours=self._hours(done))
            yield record

    def _hours(self, done: float) -> str:
        return f"{done / 3600:.2f} of {self._total / 3600:.2f} hours"
