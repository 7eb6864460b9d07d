"""Doing cells: each writes its own result, once; what is done is passed over."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import platform
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from cell_list import Cell, Cells, cells_of
from plan import Plan

from audiovq.config import ExperimentConfig, load_config
from audiovq.data.manifest import read_manifest
from audiovq.errors import Stopped
from audiovq.files import write_json

WORK = {
    "data": "data:prepare_data",
    "train": "training:train_cell",
    "gaussian_gradients": "gradients:gaussian_gradients",
    "reinforce_gradients": "gradients:reinforce_gradients",
    "gumbel_gradients": "gradients:gumbel_gradients",
    "vq_gradients": "gradients:vq_gradients",
    "context": "collapse:context_cell",
    "kmeans": "codebooks:kmeans_cell",
    "stages": "stages:stages_cell",
    "probe": "probes:probe_cell",
    "textbook": "textbook:textbook_cell",
}
"""Module and function that do a cell of each kind: (bench, cell) -> plain data."""
DIGITS = 4
"""Significant digits of all figures."""


@dataclass(frozen=True)
class Bench:
    """A plan, the model and the speech that it is for, and the folder of all that is made."""

    plan: Plan
    config: Path
    speech: Path
    exp: Path
    cells: Cells
    digest: str
    """Of the model's config, and of what speech there is."""

    @classmethod
    def read(cls, plan: Path, config: Path, speech: Path, exp: Path) -> Bench:
        """A bench by its files.

        Raises:
            ConfigError: plan or config cannot be used.
        """
        found = load_config(plan, schema=Plan)
        load_config(config)
        files = sorted((path.relative_to(speech).as_posix(), path.stat().st_size) for path in speech.rglob("*.*"))
        digest = hashlib.sha256(config.read_bytes() + json.dumps(files).encode()).hexdigest()[:16]
        return cls(found, config, speech.resolve(), exp, cells_of(found), digest)

    def manifest(self, split: str) -> Path:
        """The manifest of train, dev or test."""
        return self.exp / "data" / f"{split}.jsonl.gz"

    def load(self, overrides: Sequence[str]) -> ExperimentConfig:
        """The model's config with overrides."""
        data = [f"data.train={self.manifest('train')}", f"data.valid={self.manifest('dev')}"]
        return load_config(self.config, [*overrides, *data])

    def run_folder(self, name: str) -> Path:
        """Where a cell trains."""
        return self.exp / "runs" / name

    def file(self, name: str) -> Path:
        """Where the result of a cell is kept."""
        return self.exp / "cells" / f"{name}.json"

    def record(self, name: str) -> dict[str, Any] | None:
        """What a cell has written; None if it is still to be done, with these settings."""
        with contextlib.suppress(FileNotFoundError):
            found = json.loads(self.file(name).read_text(encoding="utf-8"))
            if found["digest"] == self.cells.digest(name, self.digest) and (name != "data" or self.lists_speech()):
                return found
        return None

    def lists_speech(self) -> bool:
        """Whether the manifests are of this folder of speech, which may have moved."""
        return Path(str(read_manifest(self.manifest("train"))[0].path)).is_relative_to(self.speech)

    def result(self, name: str) -> dict[str, Any]:
        """The result of a cell that is done."""
        found = self.record(name)
        assert found is not None, f"{name} is needed and not done"
        return found["result"]

    def keeps_run(self, name: str) -> bool:
        """Whether cells of another kind need the model that a cell trains."""
        return any(name in cell.needs and cell.kind not in ("train", "data") for cell in self.cells.cells.values())


def run_cells(bench: Bench, cells: Sequence[Cell], workers: int, seconds: float) -> list[str]:
    """Do cells, as many at a time as there are workers; none begins after so many seconds. Returns what is left.

    Args:
        cells: each behind what it needs.
        workers: processes, each with one thread; networks as small as these gain more from a core each than from all
            together. 0: this process.
    """
    began = time.monotonic()
    waiting = [cell for cell in cells if bench.record(cell.name) is None]
    total, count = len(waiting), 0

    def report(name: str, said: str) -> None:
        nonlocal count
        count += 1
        print(f"{(time.monotonic() - began) / 60:6.1f} min  {count}/{total}  {name}: {said}", flush=True)

    if not workers:
        while waiting and time.monotonic() - began < seconds:
            cell = waiting.pop(0)
            report(cell.name, do_cell(bench, cell))
        return [cell.name for cell in waiting]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_begin_worker) as pool:
        running: dict[Future[str], str] = {}
        while waiting or running:
            open_names = {cell.name for cell in waiting} | {*running.values()}
            ready = [cell for cell in waiting if not open_names & {*cell.needs}]
            if time.monotonic() - began >= seconds:
                ready = []
            for cell in ready[: workers - len(running)]:
                running[pool.submit(_do_in_worker, bench, cell)] = cell.name
                waiting.remove(cell)
            if not running:
                break
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                report(running.pop(done), done.result())
    return [cell.name for cell in waiting]


def do_cell(bench: Bench, cell: Cell) -> str:
    """Do one cell and write its result; returns what is to be said of it.

    A run that was stopped goes on; one with other settings is removed first.
    """
    digest, folder = bench.cells.digest(cell.name, bench.digest), bench.run_folder(cell.name)
    mark = folder / "cell.txt"
    if folder.exists() and (not mark.exists() or mark.read_text(encoding="utf-8") != digest):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(digest, encoding="utf-8")
    module, _, function = WORK[cell.kind].partition(":")
    began = cpu_seconds()
    with (folder / "log.txt").open("a", encoding="utf-8") as log, contextlib.redirect_stderr(log):
        result = getattr(importlib.import_module(module), function)(bench, cell)
    seconds = cpu_seconds() - began
    made = {"seconds": rounded(seconds), **conditions()}
    record = {"cell": cell.name, "kind": cell.kind, "settings": cell.settings, "digest": digest}
    write_json(bench.file(cell.name), record | {"made": made, "result": rounded(result)})
    if not bench.keeps_run(cell.name):
        shutil.rmtree(folder)
    return f"{seconds:.0f} s of {cell.seconds:.0f} planned{', failed' if result.get('failed') else ''}"


def cpu_seconds() -> float:
    """CPU time of this process and of those that it started and has seen end."""
    return sum(os.times()[:4])


def conditions() -> dict[str, Any]:
    """What figures depend on besides settings."""
    import torch

    import audiovq

    return {
        "audiovq": audiovq.__version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "processor": _processor(),
        "cores": os.cpu_count(),
    }


def rounded(data: Any) -> Any:
    """Plain data with every float at a few significant digits."""
    if isinstance(data, float):
        return float(f"{data:.{DIGITS}g}")
    if isinstance(data, dict):
        return {key: rounded(value) for key, value in data.items()}
    return [rounded(value) for value in data] if isinstance(data, list | tuple) else data


def _commit() -> str | None:
    """The commit that is checked out, with a + if files differ from it; None outside a repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        found = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(
            [*git, "diff", "--quiet", "HEAD", "--", "../../../audiovq", ".", "../conf"], check=False
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip() + ("+" if changed.returncode else "")


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return f"{platform.system()} {platform.machine()}"


def _do_in_worker(bench: Bench, cell: Cell) -> str:
    try:
        return do_cell(bench, cell)
    except Stopped:  # Its state is saved. Only the end of a worker keeps the pool from handing out more.
        os._exit(1)


def _begin_worker() -> None:
    """One thread; and when the bench is killed, the training is told to save its state and end."""
    import torch

    torch.set_num_threads(1)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
