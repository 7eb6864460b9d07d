"""The folder of a training run: begun, gone on with under the same config only, or emptied for another run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator

from audiovq.config import TrainingConfig
from audiovq.devices import choose_device
from audiovq.errors import ConfigError
from audiovq.files import write_text
from audiovq.training.loop import STATE
from audiovq.training.state import read_config_of_state

MAY_CHANGE = {"data.workers", "training.steps", "training.log_every", "training.valid_every"}
"""Settings that a resumed run may have changed."""


def open_run(output: Path, config: dict[str, Any], settings: TrainingConfig, device: str) -> Accelerator:
    """The accelerator of a run that is begun in `output`, or gone on with; `config.yaml` is written there.

    Raises:
        ConfigError: `output` holds a run with another config, or there is no such device.
    """
    check_same_run(output, config)
    accelerator = Accelerator(
        cpu=choose_device(device).type == "cpu",
        mixed_precision="bf16" if settings.precision == "bf16" else "no",
    )
    if accelerator.is_main_process:
        write_text(output / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    return accelerator


def check_same_run(output: Path, config: dict[str, Any]) -> None:
    """Refuse to go on with a run under another config, except for settings that change nothing but its length.

    Raises:
        ConfigError: names the first setting that differs.
    """
    state = output / STATE
    if not state.exists():
        return
    before, now = _flatten(read_config_of_state(state)), _flatten(config)
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old != new and name not in MAY_CHANGE:
            raise ConfigError(
                f"{output}: holds a run with {name} = {old!r}, now it is {new!r}; choose another --output, "
                "or add --force to start anew"
            )


def start_anew(output: str | Path) -> None:
    """Remove the run that a folder holds, and nothing else in it."""
    output = Path(output)
    for name in (STATE, "config.yaml", "metrics.jsonl"):
        (output / name).unlink(missing_ok=True)
    for name in ("release", "tensorboard"):
        shutil.rmtree(output / name, ignore_errors=True)


def _flatten(data: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(data, dict):
        return {prefix: data}
    return {
        key: value
        for name, inner in data.items()
        for key, value in _flatten(inner, f"{prefix}.{name}" if prefix else name).items()
    }
