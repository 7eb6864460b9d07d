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
    """Forms of a model."""

    transformers = "transformers"
    onnx = "onnx"
    web = "web"


EXPORTERS = {
    Format.transformers: ("audiovq.interop.transformers", "export_transformers", "transformers"),
    Format.onnx: ("audiovq.interop.onnx", "export_onnx", "onnx"),
    Format.web: ("audiovq.interop.web", "export_web", "onnx"),
}
"""Module and function that write each form, `function(tokenizer, output, force, ...)`, and the extra that they need."""


@app.command("export")
def export_command(
    model: Model,
    format: Annotated[
        Format,
        typer.Option(
            help="transformers: what AutoModel.from_pretrained loads; onnx: graphs of encoder and decoder, and a file "
            "that runs them without PyTorch; web: a page that encodes and decodes in a browser."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the export.")],
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="With --format onnx: graphs for signals that arrive in pieces, too.")
    ] = False,
    onnxruntime_web: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="With --format web: folder or .tgz of npm's package onnxruntime-web.  [default: downloaded]",
        ),
    ] = None,
) -> None:
    """Write a model in the form that another tool loads; its codes stay the same."""
    from audiovq.models.tokenizer import AudioTokenizer

    options = {}
    for option, value, owner in (("streaming", streaming, "onnx"), ("onnxruntime_web", onnxruntime_web, "web")):
        if value and format.value != owner:
            name = option.replace("_", "-")
            raise ExportError(f"--{name} belongs to --format {owner}, found --format {format.value}")
        if value:
            options[option] = value
    module, function, extra = EXPORTERS[format]
    try:
        write = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("audiovq"):
            raise
        raise ExportError(f"--format {format.value} needs {error.name}: pip install 'audiovq[{extra}]'") from error
    write(AudioTokenizer.from_pretrained(model, "cpu"), output, force, **options)
    say(f"{format.value} model written: {output}")
