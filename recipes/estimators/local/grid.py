"""The runs of the bench: what there is to train, where it is kept, and doing many runs at a time."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from audiovq.config import ExperimentConfig, load_config
from audiovq.config.schema import Schema
from audiovq.errors import Stopped, TrainingError
from audiovq.files import write_json

FAILED, TIMES = "failed.txt", "seconds.json"


class ContextGrid(Schema):
    """Part 2: bottlenecks and decoders."""

    bottlenecks: dict[str, list[str]]
    """Overrides beside `bottleneck.type`, by type."""
    units: list[int]
    """Residual units of the decoder that see the waveform's past."""
    overrides: list[str]
    """Overrides of all runs."""
    utterances: int
    """Test utterances that are measured."""


class GradientGrid(Schema):
    """What gradients are drawn."""

    draws: int
    """Draws of the whole encoder's gradient."""
    one_latent_draws: int
    """Draws of the gradient with respect to one frame's latent."""
    temperatures: list[float]
    """Temperatures of Gumbel-Softmax."""


class Grid(Schema):
    """All that the bench does beside its base config."""

    seeds: list[int]
    bottlenecks: dict[str, list[str]]
    """Overrides beside `bottleneck.type`, by type."""
    overrides: list[str]
    """Overrides of all runs of part 1."""
    context: ContextGrid
    gradients: GradientGrid


@dataclass(frozen=True)
class Bench:
    """A grid, the config it changes and the folder of its results."""

    grid: Grid
    config: Path
    exp: Path

    @classmethod
    def read(cls, grid: Path, config: Path, exp: Path) -> Bench:
        return cls(load_config(grid, schema=Grid), config, exp)

    def manifest(self, split: str) -> Path:
        return self.exp / "data" / f"{split}.jsonl.gz"

    def runs(self) -> list[Run]:
        """Part 1, seed by seed, so that an unfinished bench has whole rows."""
        return [
            Run(
                folder=self.exp / "runs" / f"{kind}-{seed}",
                config=self._load(kind, overrides, [*self.grid.overrides, f"training.seed={seed}"]),
            )
            for seed in self.grid.seeds
            for kind, overrides in self.grid.bottlenecks.items()
        ]

    def context_runs(self) -> list[Run]:
        """Part 2, with growing context."""
        context = self.grid.context
        return [
            Run(
                folder=self.exp / "context" / f"{kind}-{units}",
                config=self._load(kind, overrides, context.overrides),
                context_units=units,
            )
            for units in context.units
            for kind, overrides in context.bottlenecks.items()
        ]

    def _load(self, kind: str, special: Sequence[str], common: Sequence[str]) -> ExperimentConfig:
        data = [f"data.train={self.manifest('train')}", f"data.valid={self.manifest('dev')}"]
        return load_config(self.config, [f"bottleneck.type={kind}", *special, *common, *data])


@dataclass(frozen=True)
class Run:
    """One training run."""

    folder: Path
    config: ExperimentConfig
    context_units: int = 0

    @property
    def kind(self) -> str:
        return self.config.bottleneck.type

    @property
    def name(self) -> str:
        return self.folder.name


def train(runs: Sequence[Run], function: Callable[[Run], float]) -> None:
    """Train all runs; `function` trains one and returns its best validation loss. What is finished is passed over."""
    in_parallel(runs, partial(_train_one, function))


def in_parallel(runs: Sequence[Run], function: Callable[[Run], str]) -> None:
    """Call a function with every run, as many at a time as there are cores; it returns what is to be said of the run.

    Networks as small as these gain more from a core each than from all cores together.
    """
    started = time.monotonic()
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        waiting = {pool.submit(function, run): run for run in runs}
        for number, done in enumerate(as_completed(waiting), start=1):
            minutes = (time.monotonic() - started) / 60
            print(f"{minutes:5.1f} min  {number}/{len(runs)}  {waiting[done].name}: {done.result()}", flush=True)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _train_one(function: Callable[[Run], float], run: Run) -> str:
    if (run.folder / TIMES).exists() or (run.folder / FAILED).exists():
        return "done already"
    run.folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with (run.folder / "log.txt").open("a", encoding="utf-8") as log, contextlib.redirect_stderr(log):
        try:
            loss = function(run)
        except TrainingError as error:  # A result, too.
            (run.folder / FAILED).write_text(f"{error}\n", encoding="utf-8")
            return f"failed: {error}"
        except Stopped:  # Its state is saved. Only the end of a worker keeps the pool from handing out more runs.
            os._exit(1)
    seconds = time.monotonic() - started
    write_json(run.folder / TIMES, seconds)
    return f"valid loss {loss:.4g}, {seconds:.0f} s"
