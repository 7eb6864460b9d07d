"""`audiovq tokens ...`: what can be done with a token data set besides decoding it."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from audiovq.cli.options import say

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Check, measure and export token data sets.")

Tokens = Annotated[str, typer.Argument(metavar="TOKENS", help="Folder of a token data set, or its URL.")]


class Format(str, Enum):
    """The formats of `audiovq.tokens.export`, named here so that help is printed without importing it."""

    memmap = "memmap"
    webdataset = "webdataset"
    kaldi = "kaldi"
    jsonl = "jsonl"
    lhotse = "lhotse"
    datasets = "datasets"


@app.command()
def verify(
    tokens: Tokens,
    input: Annotated[
        list[str] | None,
        typer.Option(metavar="INPUT", help="What was tokenized, to compare ids and lengths with; may be repeated."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The model, to encode some utterances again and compare.")
    ] = None,
    sample: Annotated[int, typer.Option(min=1, help="With --model: utterances to encode again.")] = 10,
    device: Annotated[str, typer.Option(help="With --model: cpu, cuda, ...; auto takes an accelerator.")] = "auto",
) -> None:
    """Check that a token data set is whole and fits together.

    Checks every row, and shards against the SHA-256 and counts in their sidecars. Prints what was checked; the exit
    code is 1 if anything is wrong, with a line for each problem.
    """
    from audiovq.data.sources import list_items
    from audiovq.models.tokenizer import AudioTokenizer
    from audiovq.tokens import TokenSet
    from audiovq.tokens.verify import verify_tokens

    result = verify_tokens(
        TokenSet(tokens),
        list_items(input) if input else None,
        None if model is None else AudioTokenizer.from_pretrained(model, device),
        sample,
    )
    for line in result.checked:
        say(f"checked {line}")
    for line in result.problems:
        say(f"audiovq: {line}", err=True)
    say(f"{len(result.problems) or 'no'} problem{'s' if len(result.problems) != 1 else ''}: {tokens}")
    if result.problems:
        raise typer.Exit(1)


@app.command()
def stats(
    tokens: Tokens,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="PNG", help="Picture to draw (.png, .svg, .pdf).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the picture.")] = False,
) -> None:
    """Measure hours, use of the codes and speakers.

    Entropy and perplexity are those of the codes' frequencies in the whole set, and for each speaker.
    """
    from audiovq.files import refuse_to_overwrite
    from audiovq.tokens import TokenSet
    from audiovq.tokens.statistics import (
        draw_statistics,
        format_statistics,
        measure_tokens,
        require_picture,
        statistics_record,
    )

    if output is not None:
        require_picture(output)
        refuse_to_overwrite(output, force)
    statistics = measure_tokens(TokenSet(tokens))
    if as_json:
        say(*json.dumps(statistics_record(statistics), indent=2).split("\n"))
    else:
        say(*format_statistics(statistics).split("\n"))
    if output is not None:
        draw_statistics(statistics, output)
        say(f"picture: {output}", err=as_json)


@app.command()
def export(
    tokens: Tokens,
    format: Annotated[
        Format,
        typer.Option(
            help="memmap: one NumPy array and its offsets; webdataset: tars with .npy and .json; kaldi: binary "
            "archives of integer vectors, one a codebook; jsonl: JSON lines; lhotse: cuts with codes in Shar tars; "
            "datasets: Parquet and a card for the Hugging Face Hub."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the export.")],
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
) -> None:
    """Write a token data set in the format of another tool."""
    from audiovq.tokens import TokenSet
    from audiovq.tokens.export import export_tokens

    found = TokenSet(tokens)
    export_tokens(found, format.value, output, force)
    say(f"{len(found)} utterances written: {output}")
