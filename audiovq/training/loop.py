"""The training loop that all models share: plain, resumable, the same on one process or many."""

from __future__ import annotations

import contextlib
import copy
import math
import signal
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping
from itertools import count
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Generic, cast

import torch
from torch import Tensor, nn

from audiovq.batching import read_ahead
from audiovq.config import TrainingConfig
from audiovq.devices import seed_everything, send
from audiovq.distributed import is_distributed, sum_over_processes
from audiovq.errors import Stopped, TrainingError
from audiovq.training.averaging import Average, Network
from audiovq.training.folder import RunFolder
from audiovq.training.log import NO_BOARD, RunLog, Terminal
from audiovq.training.optimization import schedule
from audiovq.training.state import Progress, load_state, save_state

if TYPE_CHECKING:
    from accelerate import Accelerator

Batch = tuple[Tensor, ...]
SIGNALS_EVERY = 10
"""Steps after which the processes of a distributed run tell each other of signals; lines of the log do it, too."""


class Task(ABC, Generic[Network]):
    """What is trained, and all in which one kind of training differs from another.

    A task owns its networks and optimisers, and decides what an update does with them. The loop owns the schedule,
    seeds, averaging, logging, validation, state and signals.
    """

    model: Network
    """What is averaged, validated and released."""
    modules: dict[str, nn.Module]
    """All that an update changes, `model` among them, by the names under which the state holds them."""
    optimizers: dict[str, torch.optim.Optimizer]
    """By name. The loop sets their learning rates: each one's own, which is the peak, times the schedule."""
    networks: dict[str, nn.Module]
    """The modules as `update` calls them: on the device, and wrapped where several processes train. Set by the loop."""
    audio_seconds: float
    """Audio in one step, over all processes."""
    workers: int = 1
    """Threads that call `batch` ahead of the loop."""
    rehearsed: tuple[int, ...] = (0, 1)
    """Steps that are tried before training begins; between them all that training ever does."""
    keeps_best: bool = True
    """Whether the model of the least loss in validation is released, rather than the last one."""

    @abstractmethod
    def batch(self, index: int) -> Batch:
        """Batch number `index`; a function of the number alone."""

    @abstractmethod
    def update(self, step: int, batch: Batch) -> dict[str, Tensor]:
        """Make one step with each optimiser; returns metrics to log, `loss` and `gradient_norm` among them."""

    @abstractmethod
    def validate(self, model: Network, log: RunLog | None, step: int, brief: bool) -> dict[str, float]:
        """Metrics, of which `loss` decides which model is best; `brief` is a short check."""

    @abstractmethod
    def release(self, model: Network) -> None:
        """Write a model as people will use it."""

    def settle(self, average: Network, batches: Iterator[Batch]) -> None:
        """Measure anew, on training batches, what of an average can be neither averaged nor copied, such as batch
        statistics."""


def fit(accelerator: Accelerator, task: Task, settings: TrainingConfig, folder: RunFolder) -> Progress:
    """Train up to `settings.steps`, from the state in the folder if there is one.

    Randomness is reseeded from (seed, step, process) at each step and the learning rate is a function of the step, so
    a run that was stopped anywhere and resumed computes what an uninterrupted one would have computed.

    Raises:
        Stopped: SIGTERM or SIGINT arrived; the state was saved first.
        TrainingError: the loss is no longer finite.
    """
    run = TrainingRun(accelerator, task, settings, folder)
    if not folder.resumes:
        run.rehearse()
    accelerator.wait_for_everyone()  # None looks for a state any more.
    with contextlib.closing(run), StopSignals(accelerator.device) as signals:
        run.open()
        run.train(signals)
    return run.progress


class TrainingRun:
    """A run under way: its state, and where it is written down."""

    def __init__(self, accelerator: Accelerator, task: Task, settings: TrainingConfig, folder: RunFolder):
        self.accelerator, self.task, self.settings, self.folder = accelerator, task, settings, folder
        for module in task.modules.values():
            module.to(accelerator.device)
        if accelerator.device.type == "cuda":  # One kernel for all weights, rather than some for each.
            for group in (group for optimizer in task.optimizers.values() for group in optimizer.param_groups):
                group["fused"] = True
        decay = settings.averaging_decay
        self.average = Average(task.model, decay) if decay is not None else None
        self.parts: dict[str, Any] = {
            **task.modules,
            **{f"optimizer.{name}": optimizer for name, optimizer in task.optimizers.items()},
            **({"average": self.average.model} if self.average is not None else {}),
        }
        self.progress = load_state(folder.state, self.parts) if folder.resumes else Progress()
        task.networks = {name: self.prepare(module) for name, module in task.modules.items()}
        self.log: RunLog | None = None
        self.terminal: Terminal | None = None

    def prepare(self, module: nn.Module) -> nn.Module:
        """A module as updates call it: gradients are averaged over processes if it has weights that learn."""
        if not any(parameter.requires_grad for parameter in module.parameters()):
            return module
        prepared = self.accelerator.prepare_model(module)
        return cast(nn.Module, torch.compile(prepared)) if self.settings.compile else prepared

    def rehearse(self) -> None:
        """Some steps, a short validation and a checkpoint, so that mistakes show at once; then all is as before."""
        before = {name: copy.deepcopy(part.state_dict()) for name, part in self.parts.items()}
        with tempfile.TemporaryDirectory() as folder:
            with contextlib.closing(self.batches(0)) as batches:
                for step in self.task.rehearsed:
                    metrics = self.update(step, next(batches), "rehearsal")
                    check_finite({name: float(value) for name, value in metrics.items()}, step)
            self.task.validate(self.task.model, RunLog(Path(folder)), 0, True)
            save_state(Path(folder) / "state", self.parts, self.progress, {})
        for name, part in self.parts.items():
            part.load_state_dict(before[name])

    def open(self) -> None:
        """Begin to write to the folder."""
        main, step = self.accelerator.is_main_process, self.progress.step
        if main:
            self.folder.begin()
            self.log = RunLog(self.folder.path, step)
        self.terminal = Terminal(self.settings.steps, step, enabled=main)
        if self.log and not self.log.board:
            self.terminal.say(NO_BOARD)

    def train(self, signals: StopSignals) -> None:
        """Go on up to the last step, or until a signal arrives."""
        settings, progress, terminal = self.settings, self.progress, self.terminal
        assert terminal is not None
        with contextlib.closing(self.batches(progress.step)) as batches:
            while progress.step < settings.steps:
                metrics = self.update(progress.step, next(batches))
                progress.step += 1
                if self.average is not None:
                    self.average.update(self.task.model, progress.step)
                last = progress.step == settings.steps
                logs = last or progress.step % settings.log_every == 0
                validates = last or progress.step % settings.valid_every == 0
                number = signals.caught(logs or validates or progress.step % SIGNALS_EVERY == 0)
                if logs or validates or number:  # Reading a metric waits for the device.
                    values = {name: float(value) for name, value in metrics.items()}
                    check_finite(values, progress.step)  # Before the state is overwritten.
                    if logs:
                        self.report(values, terminal)
                terminal.advance(progress.step)
                if validates:
                    self.validate_and_save(terminal)
                if number and not last:
                    self.save()
                    name = signal.Signals(number).name
                    raise Stopped(number, f"stopped by {name} after step {progress.step}; the same command goes on")
        if progress.best is None:  # Stopped before its first validation, and resumed with fewer steps.
            self.validate_and_save(terminal)

    def batches(self, first_step: int) -> Generator[Batch, None, None]:
        """The batches of this process from a step on, on its device: numbers step * processes + rank."""
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        numbers = count(first_step * processes + rank, processes)
        device = self.accelerator.device
        return read_ahead(
            lambda number: tuple(send(tensor, device) for tensor in self.task.batch(number)), numbers, self.task.workers
        )

    def update(self, step: int, batch: Batch, purpose: str = "step") -> dict[str, Tensor]:
        """One update with the randomness and the learning rate that belong to a step."""
        seed_everything(self.settings.seed, purpose, step, self.accelerator.process_index)
        share = schedule(step, self.settings)
        for optimizer in self.task.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = optimizer.defaults["lr"] * share
        metrics = self.task.update(step, batch)
        return {**metrics, "learning_rate": torch.tensor(self.settings.learning_rate * share, dtype=torch.float64)}

    def report(self, values: dict[str, float], terminal: Terminal) -> None:
        """Write down a step's metrics."""
        if self.log is not None:
            self.log.scalars(self.progress.step, "train", values)
        terminal.train(self.progress.step, values["loss"], self.task.audio_seconds)

    def validate_and_save(self, terminal: Terminal) -> None:
        """Validate, release the model if it is the best so far or the last one is wanted, and save the state."""
        step, candidate = self.progress.step, self.task.model
        if self.average is not None:
            candidate = self.average.model
            with contextlib.closing(self.batches(step)) as batches:
                self.task.settle(candidate, batches)
        metrics = self.task.validate(candidate, self.log, step, False)
        check_finite(metrics, step)
        if self.log is not None:
            self.log.scalars(step, "valid", metrics)
        terminal.valid(step, metrics)
        if self.progress.best is None or not self.task.keeps_best or metrics["loss"] < self.progress.best["loss"]:
            self.progress.best = {"step": float(step), **metrics}
            if self.accelerator.is_main_process:
                self.task.release(candidate)
        self.save()

    def save(self) -> None:
        """Write the state; all processes wait for it, since launchers end them all when the first one leaves."""
        if self.accelerator.is_main_process:
            save_state(self.folder.state, self.parts, self.progress, self.folder.record)
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        if self.terminal is not None:
            self.terminal.close()


class StopSignals:
    """Notes SIGTERM and SIGINT while its block runs, so that the state can be saved first.

    A second Ctrl-C takes its usual course, except in a distributed run: there the launcher passes on to its processes
    what a terminal or a cluster has sent them already.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._caught = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # Only the main thread may handle signals; elsewhere there are none to note.
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def caught(self, ask: bool) -> int:
        """The signal that was caught, or 0.

        All processes of a distributed run get the same answer, whichever was signalled. To `ask` the others waits for
        the device, so there the answer is 0 unless it is asked for, at the same steps by all.
        """
        if not is_distributed():
            return self._caught
        if not ask:
            return 0
        anywhere = sum_over_processes(torch.tensor([float(self._caught)], device=self.device))
        return (self._caught or signal.SIGTERM) if anywhere.item() else 0

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._caught = number
        if number == signal.SIGINT and not is_distributed():
            signal.signal(number, self._before[number])


def check_finite(metrics: Mapping[str, float], step: int) -> None:
    """Raise `TrainingError` if the loss or the gradient is NaN or infinite; the weights are lost then."""
    for name in ("loss", "gradient_norm"):
        if not math.isfinite(metrics.get(name, 0.0)):
            raise TrainingError(f"{name} is {metrics[name]} at step {step}; try a lower training.learning_rate")
