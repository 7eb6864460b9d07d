"""The state of a training run: one safetensors file, written whole or not at all, and never unpickled."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from audiovq.errors import CheckpointError
from audiovq.files import atomic_path


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0
    """Optimiser steps done."""
    best_loss: float | None = None
    """Lowest validation loss so far."""


def save_state(path: str | Path, modules: dict[str, Any], progress: Progress, config: dict[str, Any]) -> None:
    """Write the states of named modules and optimisers, the progress and the config to one file."""
    tensors = {
        f"{name}/{key}": tensor.detach().cpu().contiguous().clone()
        for name, module in modules.items()
        for key, tensor in _tensors(module).items()
    }
    metadata = {"progress": json.dumps(vars(progress)), "config": json.dumps(config)}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata)


def read_config_of_state(path: str | Path) -> dict[str, Any]:
    """The config that a state was written with.

    Raises:
        CheckpointError: the file is damaged, or no training state.
    """
    with _open(Path(path)) as file:
        return _metadata(file, Path(path), "config")


def load_state(path: str | Path, modules: dict[str, Any]) -> Progress:
    """Bring modules and optimisers to the state in a file; returns how far the run had come.

    Raises:
        CheckpointError: the file is damaged, or not a state of these modules.
    """
    path = Path(path)
    with _open(path) as file:
        found: dict[str, dict[str, Tensor]] = {name: {} for name in modules}
        for full_name in file.keys():  # noqa: SIM118 (no mapping)
            name, _, key = full_name.partition("/")
            if name not in found:
                raise CheckpointError(f"{path}: holds the state of {name!r}, which this run does not have")
            found[name][key] = file.get_tensor(full_name)
        progress = Progress(**_metadata(file, path, "progress"))
    for name, module in modules.items():
        try:
            _restore(module, found[name])
        except (RuntimeError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{path}: state of {name!r} does not fit this run: {reason}") from error
    return progress


def _open(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: is no training state or is damaged ({error})") from error


def _metadata(file: Any, path: Path, name: str) -> dict[str, Any]:
    try:
        return json.loads((file.metadata() or {})[name])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: is no training state: it does not say its {name}") from error


def _tensors(module: Any) -> dict[str, Tensor]:
    """A module's or optimiser's state as named tensors; an optimiser's are named by parameter number and quantity."""
    if isinstance(module, torch.optim.Optimizer):
        state = module.state_dict()["state"]
        return {f"{index}/{key}": tensor for index, values in state.items() for key, tensor in values.items()}
    return module.state_dict()


def _restore(module: Any, tensors: dict[str, Tensor]) -> None:
    if not isinstance(module, torch.optim.Optimizer):
        module.load_state_dict(tensors)
        return
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = tensor
    module.load_state_dict({**module.state_dict(), "state": state})
