"""What the commands share: options, and what they print."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from audiovq.text import one_line, printable

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Model folder, name of a model that comes with audiovq, or organisation/name on the Hugging Face Hub.",
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, ...; auto takes an accelerator if there is one.")]

Codebooks = Annotated[
    int | None,
    typer.Option(
        "--codebooks", metavar="Q", help="How many of the model's codebooks are used, the first ones.  [default: all]"
    ),
]


def say(*lines: object, err: bool = False) -> None:
    """Print lines, with names in them that cannot command the terminal; every command prints with this."""
    for line in lines:
        print((one_line if err else printable)(str(line)), file=sys.stderr if err else sys.stdout, flush=True)


def report_files(failures: list[str], total: int, output: Path) -> None:
    say(f"{total - len(failures)} of {total} files written: {output}")
    fail_if(failures)


def fail_if(failures: Iterable[str]) -> None:
    """Print what went wrong and leave with exit code 1, if anything did."""
    failures = list(failures)
    say(*(f"audiovq: {failure}" for failure in failures), err=True)
    if failures:
        raise typer.Exit(1)
