"""The folder that a model is exported to: whole or not there, and replaced only where it is known to be an export."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import audiovq
from audiovq.errors import ExportError, OutputExistsError
from audiovq.files import atomic_folder, read_json, refuse_to_overwrite, write_json
from audiovq.models.tokenizer import AudioTokenizer

FORMAT_VERSION = 1
EXPORT = "export.json"
"""Names the format, the model and the other files of an export."""


@contextlib.contextmanager
def export_folder(tokenizer: AudioTokenizer, format: str, output: str | Path, force: bool = False) -> Iterator[Path]:
    """An empty temporary folder, which becomes `output` when the block ends without an error.

    Args:
        force: replace an earlier export.

    Raises:
        ExportError: the model has no codes.
        OutputExistsError: `output` is not empty and `force` is not given, or it holds something else than an export.
    """
    output = Path(output)
    if not tokenizer.num_codebooks:
        kind = tokenizer.config.bottleneck.type
        raise ExportError(f"a model with bottleneck {kind!r} has no codes; only models with codes can be exported")
    _check_output(output, force)
    with atomic_folder(output) as folder:
        yield folder
        record = {
            "format_version": FORMAT_VERSION,
            "audiovq_version": audiovq.__version__,
            "format": format,
            "weights_sha256": tokenizer.weights_sha256,
            "files": sorted(path.name for path in folder.iterdir()),
        }
        write_json(folder / EXPORT, record)
        _check_output(output, force)  # Once more: another export may have come meanwhile.


def _check_output(output: Path, force: bool) -> None:
    refuse_to_overwrite(output, force)
    if output.exists() and not _is_export(output):
        raise OutputExistsError(f"{output}: holds something else than an export; choose another output")


def _is_export(folder: Path) -> bool:
    """Whether a folder is empty, or holds an export and nothing else."""
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    try:
        listed = read_json(folder / EXPORT)["files"]
        return names <= {EXPORT, *listed}
    except (OSError, ValueError, KeyError, TypeError):
        return not names
