"""The folder that an export is written to: whole or not there, and replaced only where it is seen to be an export."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from audiovq.errors import OutputExistsError
from audiovq.files import atomic_folder, read_json, refuse_to_overwrite, write_json

EXPORT = "export.json"
"""Says what an export is, and names its other files."""
FORMAT_VERSION = 1


@contextlib.contextmanager
def export_folder(output: str | Path, about: Mapping[str, Any], force: bool = False) -> Iterator[Path]:
    """An empty temporary folder, which becomes `output` when the block ends without an error.

    Args:
        about: what `export.json` says, beside `format_version` and the `files`.
        force: replace an earlier export.

    Raises:
        OutputExistsError: `output` is not empty and `force` is not given, or it holds something else than an export.
    """
    output = Path(output)
    _check(output, force)
    with atomic_folder(output.resolve()) as folder:  # What a link names is replaced, not the link.
        yield folder
        write_json(folder / EXPORT, {"format_version": FORMAT_VERSION, **about, "files": sorted(_files(folder))})
        _check(output, force)  # Once more: another export may have come meanwhile.


def _check(output: Path, force: bool) -> None:
    refuse_to_overwrite(output, force)
    if output.exists() and not _is_export(output):
        raise OutputExistsError(f"{output}: holds something else than an export; choose another output")


def _is_export(folder: Path) -> bool:
    """Whether a folder is empty, or holds an export and nothing else."""
    if not folder.is_dir():
        return False
    found = _files(folder)
    try:
        return found <= {EXPORT, *read_json(folder / EXPORT)["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return not any(folder.iterdir())


def _files(folder: Path) -> set[str]:
    """The files of a folder, and of those in it, but for what Python compiles of them."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix() for path in found if path.parent.name != "__pycache__"}
