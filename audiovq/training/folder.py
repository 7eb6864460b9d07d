"""The folder of a training run: begun, gone on with under the same settings and data, or emptied for another run."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from audiovq.config import TrainingConfig
from audiovq.devices import choose_device, use_device
from audiovq.distributed import is_distributed
from audiovq.errors import CheckpointError, ConfigError, OutputExistsError
from audiovq.files import open_file, read_json, remove_stale_partials, write_text
from audiovq.models import release
from audiovq.storage import require_local
from audiovq.text import reason_of
from audiovq.training.log import is_log_line
from audiovq.training.state import is_state, read_run_record

STATE, CONFIG, METRICS, RELEASE, BOARD, LOCK = (
    *("state.safetensors", "config.yaml", "metrics.jsonl", "release", "tensorboard", ".lock"),
)
HEADER = "# The settings of this run, written by audiovq. A resumed run writes them anew.\n"
"""First line of config.yaml, by which it is known to be audiovq's."""
MAY_CHANGE = {
    *("data.train", "data.valid", "tokens", "valid_tokens"),  # What they hold is compared instead.
    *("data.workers", "training.steps", "training.log_every", "training.valid_every"),
}
"""Settings that a resumed run may have changed."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, locked against other processes."""

    path: Path
    record: dict[str, Any]
    """What the state says about its run: `config`, the settings, and `data`, digests of what it is trained on."""
    resumes: bool
    """Whether the run in the folder is gone on with."""

    @property
    def state(self) -> Path:
        """The file that holds the state."""
        return self.path / STATE

    def begin(self) -> None:
        """Write the settings, after the run that the folder held is removed unless it is gone on with."""
        if not self.resumes:
            remove_run(self.path)
        write_text(self.path / CONFIG, HEADER + yaml.safe_dump(self.record["config"], sort_keys=False))


@contextlib.contextmanager
def open_run(output: str | Path, record: dict[str, Any], accelerator: Accelerator, force: bool) -> Iterator[RunFolder]:
    """The folder of a run, locked while the block lasts. Nothing of an earlier run changes before it begins.

    Args:
        force: the run that the folder holds is to be removed when the new one begins.

    Raises:
        ConfigError: it holds a run with other settings or data.
        OutputExistsError: another process trains there, or it holds files that audiovq did not write.
        CheckpointError: its state is damaged.
    """
    output = Path(output)
    resumes = (output / STATE).exists() and not force
    if resumes:
        check_same_run(output, record)
    else:
        check_own(output, force)
    with lock_folder(output) if accelerator.is_main_process else contextlib.nullcontext():
        if accelerator.is_main_process:
            for folder in (output, output / RELEASE):
                remove_stale_partials(folder)
        yield RunFolder(output, record, resumes)


def start_accelerator(device: str, settings: TrainingConfig) -> Accelerator:
    """The accelerator that trains on a device, in the precision of the settings.

    Accelerate keeps device and precision for the whole process, and has no public way to change them. Here the next
    training may have others, unless this is one of several processes, which stay what they are.

    Raises:
        ConfigError: there is no such device, or it does not know the precision, or several processes would share it.
    """
    chosen = choose_device(device)
    precision = "bf16" if settings.precision == "bf16" else "no"
    if not is_distributed():
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    try:
        accelerator = Accelerator(cpu=chosen.type == "cpu", mixed_precision=precision)
    except ValueError as error:
        raise ConfigError(f"device {device!r}: {reason_of(error)}; try training.precision=fp32") from error
    if chosen.type != "cpu" and chosen.index is not None:
        if accelerator.num_processes > 1:
            raise ConfigError(f"device {device!r}: each process takes a device of its own; say {chosen.type!r} alone")
        vars(accelerator.state)["device"] = chosen  # By itself it takes the first one.
        use_device(chosen)
    return accelerator


def check_same_run(output: Path, record: Mapping[str, Any]) -> None:
    """Refuse to go on with a run under other settings, except for those that change nothing but its length, or on
    other data.

    Raises:
        ConfigError: names the first setting that differs.
        CheckpointError: the state is damaged.
    """
    found = read_run_record(output / STATE)
    before, now = flatten(found["config"]), flatten(record["config"])
    remedy = "choose another --output, or add --force to start anew"
    for name in sorted((before.keys() | now.keys()) - MAY_CHANGE):
        old, new = before.get(name), now.get(name)
        if old != new:
            raise ConfigError(f"{output}: holds a run with {name} = {old!r}, now it is {new!r}; {remedy}")
    for name, digest in record["data"].items():
        if found["data"].get(name) != digest:
            raise ConfigError(
                f"{now.get(name, name)}: {name} no longer holds what the run in {output} was trained with; {remedy}"
            )


def check_own(output: Path, force: bool) -> None:
    """Refuse to overwrite what audiovq cannot be shown to have written.

    Raises:
        OutputExistsError: names the file.
    """
    for name, is_own in ((STATE, _is_state), (CONFIG, _is_config), (METRICS, _is_log)):
        path = output / name
        if path.exists() and not is_own(path):
            raise OutputExistsError(f"{path}: is no file of an audiovq run; move it away or choose another --output")
    released = output / RELEASE
    if released.exists() and any(released.iterdir()):
        if not _is_release(released):
            raise OutputExistsError(f"{released}: is no audiovq model; move it away or choose another --output")
        if not force and not (output / CONFIG).exists():
            raise OutputExistsError(
                f"{released}: holds a model, but no run is here to go on with; choose another --output, or add "
                "--force to replace it"
            )


def remove_run(output: str | Path) -> None:
    """Remove what a run has written to a folder (see `check_own`), and nothing else in it."""
    output = Path(output)
    for name in (STATE, CONFIG, METRICS):
        (output / name).unlink(missing_ok=True)
    for name in (release.CONFIG, release.WEIGHTS, release.CARD):
        (output / RELEASE / name).unlink(missing_ok=True)
    for path in (output / BOARD).glob("events.out.tfevents.*"):
        path.unlink()
    for name in (RELEASE, BOARD):
        with contextlib.suppress(OSError):  # There is none, or something else is in it.
            (output / name).rmdir()


@contextlib.contextmanager
def lock_folder(output: Path) -> Iterator[None]:
    """Hold the folder's lock, which ends with this process however it ends.

    Raises:
        OutputExistsError: another process holds it.
    """
    require_local(output)
    output.mkdir(parents=True, exist_ok=True)
    handle = os.open(output / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(handle, 1000).decode(errors="replace").strip() or "another process"
            raise OutputExistsError(
                f"{output}: {owner} trains there; wait for it, or choose another --output"
            ) from None
        except OSError:
            pass  # There are no locks on this file system.
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        os.close(handle)


def flatten(data: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    if not isinstance(data, dict):
        return {prefix: data}
    return {
        key: value
        for name, inner in data.items()
        for key, value in flatten(inner, f"{prefix}.{name}" if prefix else name).items()
    }


def _is_state(path: Path) -> bool:
    try:
        return is_state(path)
    except CheckpointError:
        return _begun_here(path.parent)  # The remains of one, since audiovq writes that file there.


def _is_config(path: Path) -> bool:
    # Earlier versions wrote no header; theirs is known by the state beside it.
    return _begun_here(path.parent) or path.with_name(STATE).exists()


def _begun_here(folder: Path) -> bool:
    """Whether the settings in a folder say that audiovq wrote them there."""
    try:
        with open_file(folder / CONFIG) as file:
            return file.read(len(HEADER)) == HEADER.encode()
    except OSError:
        return False


def _is_log(path: Path) -> bool:
    with open_file(path) as file:
        first = file.readline()
    return not first or is_log_line(first) or path.with_name(CONFIG).exists()


def _is_release(folder: Path) -> bool:
    try:
        release.kind_of(folder)
    except CheckpointError:
        # Written up to the config, which comes last, or with one that is JSON no more.
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".partial-")}
        if not _is_json(folder / release.CONFIG):
            names.discard(release.CONFIG)
        return names <= {release.WEIGHTS, release.CARD} and folder.with_name(CONFIG).exists()
    return True


def _is_json(path: Path) -> bool:
    try:
        read_json(path)
    except (OSError, ValueError):
        return False
    return True
