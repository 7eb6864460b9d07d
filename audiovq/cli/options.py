"""What the commands share: options, and how failures are reported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Model folder, or organisation/name on the Hugging Face Hub.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, ...; auto takes an accelerator if there is one.")]


def report_files(failures: list[str], total: int, output: Path) -> None:
    typer.echo(f"{total - len(failures)} of {total} files written: {output}")
    fail_if(failures)


def fail_if(failures: list[str]) -> None:
    """Print what went wrong and leave with exit code 1, if anything did."""
    for failure in failures:
        typer.echo(f"audiovq: {failure}", err=True)
    if failures:
        raise typer.Exit(1)
