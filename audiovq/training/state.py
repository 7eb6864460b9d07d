"""The state of a training run: one safetensors file, written whole or not at all, and never unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from audiovq.errors import CheckpointError
from audiovq.files import atomic_path, open_file
from audiovq.text import reason_of

FORMAT = "2"


@dataclass
class Progress:
    """How far a run has come."""

    step: Annotated[int, Field(ge=0, lt=2**31, strict=True)] = 0
    """Optimiser steps done."""
    best: dict[str, Annotated[float, Field(strict=True)]] | None = None
    """Metrics of the validation of the released model, with its `step`: that of the lowest `loss` so far, or the last
    one, for a task that does not keep the best."""

    @property
    def best_loss(self) -> float | None:
        """Validation loss of the released model."""
        return None if self.best is None else self.best["loss"]


_BEST = TypeAdapter(FiniteFloat)
_PROGRESS = TypeAdapter(Progress)


def save_state(path: str | Path, parts: Mapping[str, Any], progress: Progress, record: Mapping[str, Any]) -> None:
    """Write the states of named modules and optimisers, the progress and a record of the run to one file."""
    tensors = {
        f"{name}/{key}": tensor.detach().cpu().contiguous().clone()
        for name, part in parts.items()
        for key, tensor in _tensors(part).items()
    }
    metadata = {
        "format": FORMAT,
        "tensors": str(len(tensors)),
        "progress": json.dumps({"step": progress.step, "best": progress.best}),
        "record": json.dumps(record),
    }
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, metadata))


def read_run_record(path: str | Path) -> dict[str, dict[str, Any]]:
    """The record that a state was written with: `config` and `data`.

    Raises:
        CheckpointError: the file is damaged, or no training state.
    """
    with _open(Path(path)) as file:
        record = _metadata(file, Path(path), "record")
    if not isinstance(record, dict) or not all(isinstance(record.get(name), dict) for name in ("config", "data")):
        raise CheckpointError(f"{path}: is damaged: its record of the run is no record; {_REMEDY}")
    return record


def is_state(path: str | Path) -> bool:
    """Whether a file is a training state, of any version of audiovq and whatever it says of its run.

    Raises:
        CheckpointError: the file is too damaged to tell.
    """
    with _open(Path(path)) as file:
        return {"format", "progress"} <= (file.metadata() or {}).keys()


def load_state(path: str | Path, parts: Mapping[str, Any]) -> Progress:
    """Bring modules and optimisers to the state in a file; returns how far the run had come.

    Raises:
        CheckpointError: the file is damaged or not whole, holds values that are not finite, or is not a state of these
            modules and optimisers.
    """
    path = Path(path)
    with _open(path) as file:
        found: dict[str, dict[str, Tensor]] = {name: {} for name in parts}
        names = list(file.keys())
        for full_name in names:
            name, _, key = full_name.partition("/")
            if name not in found:
                raise CheckpointError(f"{path}: holds the state of {name!r}, which this run does not have")
            tensor = file.get_tensor(full_name)
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise CheckpointError(f"{path}: is damaged: {full_name} holds values that are not finite; {_REMEDY}")
            found[name][key] = tensor
        try:
            progress = _PROGRESS.validate_python(_metadata(file, path, "progress"))
            if progress.best is not None:
                _BEST.validate_python(progress.best.get("loss"))
        except ValidationError as error:
            raise CheckpointError(f"{path}: is damaged: its progress is no progress; {_REMEDY}") from error
        expected = _metadata(file, path, "tensors")
        if len(names) != expected:
            raise CheckpointError(f"{path}: is damaged: holds {len(names)} of {expected} tensors; {_REMEDY}")
    for name, part in parts.items():
        try:
            _restore(part, found[name])
        except (RuntimeError, KeyError, ValueError) as error:
            reason = reason_of(error)
            raise CheckpointError(f"{path}: state of {name!r} does not fit this run: {reason}") from error
    return progress


_REMEDY = "choose another --output, or add --force to start anew"


def _open(path: Path) -> Any:
    try:
        open_file(path).close()  # A pipe would be waited for.
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: is no training state or is damaged ({reason_of(error)}); {_REMEDY}") from error


def _metadata(file: Any, path: Path, name: str) -> Any:
    metadata = file.metadata() or {}
    if "progress" in metadata and metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path}: is a training state of another version of audiovq; go on with that version")
    try:
        return json.loads(metadata[name])
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: is no training state or is damaged: it does not say its {name}; {_REMEDY}"
        ) from error


def _tensors(part: Any) -> dict[str, Tensor]:
    """A module's or optimiser's state as named tensors; an optimiser's are named by parameter number and quantity."""
    if isinstance(part, torch.optim.Optimizer):
        state = part.state_dict()["state"]
        return {f"{index}/{key}": tensor for index, values in state.items() for key, tensor in values.items()}
    return part.state_dict()


def _restore(part: Any, tensors: dict[str, Tensor]) -> None:
    if not isinstance(part, torch.optim.Optimizer):
        part.load_state_dict(tensors)
        return
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = tensor
    parameters = [parameter for group in part.param_groups for parameter in group["params"]]
    if unknown := state.keys() - set(range(len(parameters))):
        raise ValueError(f"holds moments of parameter {min(unknown)}, there are {len(parameters)}")
    quantities = {frozenset(values) for values in state.values()}
    if len(quantities) > 1:
        raise ValueError("some parameters lack moments that others have")
    for index, values in state.items():
        for key, tensor in values.items():
            if tensor.ndim and tensor.shape != parameters[index].shape:
                raise ValueError(f"{index}/{key} is {list(tensor.shape)} instead of {list(parameters[index].shape)}")
    part.load_state_dict({**part.state_dict(), "state": state})
