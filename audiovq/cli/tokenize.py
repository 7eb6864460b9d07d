"""`audiovq tokenize`: a whole data set into codes."""

from __future__ import annotations

import os
import re
from enum import Enum
from typing import Annotated

import typer

from audiovq.cli.options import Codebooks, Device, Model, say
from audiovq.text import shown

app = typer.Typer(rich_markup_mode=None)


class Engine(str, Enum):
    """Who starts the workers."""

    local = "local"
    ray = "ray"


def _parse_shard(text: str) -> tuple[int, int] | None:
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if not match or not int(match[1]) < int(match[2]):
        raise typer.BadParameter(f"expected I/N with I from 0 to N - 1, such as 0/16, found {shown(text)}")
    return (int(match[1]), int(match[2])) if int(match[2]) > 1 else None


@app.command("tokenize")
def tokenize_command(
    model: Model,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Manifests or CutSets of lhotse (.jsonl, .jsonl.gz), folders of audio files, Kaldi data folders, Shar "
            "folders or WebDataset tars (.tar); paths, or URLs (s3://, gs://, hf://).",
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="TOKENS", help="Folder of the token data set, or its URL; resumed if begun."
        ),
    ],
    processes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Worker processes on this machine, which share its cores and accelerators; with Ray, the most that it "
            "starts.  [default: one for each accelerator, or this one alone; with Ray, as many as there is room for]",
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Do part I of N, counted from 0: one task of a job array.  [default: everything; under torchrun the "
            "part of each process]",
        ),
    ] = None,
    engine: Annotated[Engine, typer.Option(help="local, or ray: on a Ray cluster.")] = Engine.local,
    batch_seconds: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=1e9,
            help="Seconds of audio in a batch.  [default: what the device encodes at a time, 20.48 on a CPU, else 60]",
        ),
    ] = None,
    max_seconds: Annotated[
        float | None, typer.Option(min=0, max=1e9, help="Reject longer utterances.  [default: no limit]")
    ] = None,
    unit_seconds: Annotated[
        float | None,
        typer.Option(
            min=0.1, max=1e9, help="Seconds of audio in a Parquet shard.  [default: a 64th of all, but 300 to 3600]"
        ),
    ] = None,
    codebooks: Codebooks = None,
    device: Device = "auto",
    retry_rejected: Annotated[
        bool, typer.Option("--retry-rejected", help="Try again what is listed in rejected.jsonl, with its shards.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Remove another token data set from the folder.")] = False,
) -> None:
    """Encode a data set to Parquet shards of codes.

    The same command goes on where an earlier run stopped, and repairs what was damaged; codes do not depend on how
    they are computed. Audio that cannot be used is listed in rejected.jsonl, and the exit code is 1.
    """
    # As torchrun sets them.
    launched = shard is None and engine is Engine.local and {"RANK", "WORLD_SIZE"} <= os.environ.keys()
    shard = "{RANK}/{WORLD_SIZE}".format_map(os.environ) if launched else shard
    part = _parse_shard(shard) if shard else None
    if part and force:
        raise typer.BadParameter("--force would remove what the other parts have done; use it once, without --shard")
    if part and engine is Engine.ray:
        raise typer.BadParameter("--shard divides the work between processes, --engine ray does it by itself")

    from audiovq.tokenization.engines import device_of
    from audiovq.tokenization.run import tokenize

    if launched:
        device = device_of(device, int(os.environ.get("LOCAL_RANK", 0)))
    run = tokenize(
        model,
        inputs,
        output,
        processes=processes,
        shard=part,
        engine=engine.value,
        batch_seconds=batch_seconds,
        max_seconds=max_seconds,
        unit_seconds=unit_seconds,
        num_codebooks=codebooks,
        device=device,
        retry_rejected=retry_rejected,
        force=force,
    )
    if run.summary:
        whole = run.summary
        size = f"{whole.utterances} utterances, {whole.seconds / 3600:.2f} hours, {whole.frames} frames"
        say(f"{size}: {output}", f"digest {whole.digest}")
    else:
        say(f"{run.missing} shards of the whole are still missing: {output}")
    if run.done:
        speed = f"{run.seconds / max(run.elapsed, 1e-9):.0f} x real time"
        say(f"{run.done} shards made, {run.resumed} found; {run.seconds:.0f} s of audio at {speed}")
    for item in run.rejected:
        known = item.reason.startswith(f"{item.utt_id}: ")  # A cut has no other name.
        say(f"audiovq: {item.reason}" if known else f"audiovq: {item.utt_id}: {item.reason}", err=True)
    if run.rejected:
        raise typer.Exit(1)
