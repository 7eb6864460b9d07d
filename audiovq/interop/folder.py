"""The folder that a model is exported to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import audiovq
from audiovq import exports
from audiovq.errors import ExportError
from audiovq.models.tokenizer import AudioTokenizer


@contextlib.contextmanager
def exported_model(tokenizer: AudioTokenizer, format: str, output: str | Path, force: bool = False) -> Iterator[Path]:
    """An empty temporary folder, which becomes `output` when the block ends without an error.

    Args:
        force: replace an earlier export.

    Raises:
        ExportError: the model has no codes.
        OutputExistsError: `output` is not empty and `force` is not given, or it holds something else than an export.
    """
    if not tokenizer.num_codebooks:
        kind = tokenizer.config.bottleneck.type
        raise ExportError(f"a model with bottleneck {kind!r} has no codes; only models with codes can be exported")
    model = {"audiovq_version": audiovq.__version__, "format": format, "weights_sha256": tokenizer.weights_sha256}
    with exports.export_folder(output, model, force) as folder:
        yield folder
