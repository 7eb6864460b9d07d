"""`audiovq export`: a model in the form that another tool loads."""

from __future__ import annotations

import importlib
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from audiovq.cli.options import Model, say
from audiovq.errors import ExportError

app = typer.Typer(rich_markup_mode=None)


class Format(str, Enum):
    """Forms of a model; the value is also the name of the extra that it needs."""

    transformers = "transformers"


EXPORTERS = {
    Format.transformers: ("audiovq.interop.transformers", "export_transformers"),
}
"""Module and function that write each form: `function(tokenizer, output, force)`."""


@app.command("export")
def export_command(
    model: Model,
    format: Annotated[Format, typer.Option(help="transformers: what AutoModel.from_pretrained loads.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the export.")],
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
) -> None:
    """Write a model in the form that another tool loads; its codes stay the same."""
    from audiovq.models.tokenizer import AudioTokenizer

    module, function = EXPORTERS[format]
    try:
        write = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("audiovq"):
            raise
        raise ExportError(
            f"--format {format.value} needs {error.name}: pip install 'audiovq[{format.value}]'"
        ) from error
    write(AudioTokenizer.from_pretrained(model, "cpu"), output, force)
    say(f"{format.value} model written: {output}")
