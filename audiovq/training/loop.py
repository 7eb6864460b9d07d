"""The training loop that all models share: plain, resumable, the same on one process or many."""

from __future__ import annotations

import contextlib
import copy
import math
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from audiovq.config import TrainingConfig
from audiovq.devices import seed_everything
from audiovq.errors import Stopped, TrainingError
from audiovq.training.log import RunLog, Terminal
from audiovq.training.signals import StopSignals
from audiovq.training.state import Progress, load_state, save_state

if TYPE_CHECKING:
    from accelerate import Accelerator

STATE = "state.safetensors"
Batch = TypeVar("Batch")
"""A tensor, or a tuple of tensors."""


@dataclass
class Task(Generic[Batch]):
    """What is trained: a model, and the functions in which one kind of training differs from another."""

    model: nn.Module
    compute_loss: Callable[[nn.Module, Batch, int], tuple[Tensor, dict[str, Tensor]]]
    """(model, batch, step) -> the loss to minimise and metrics to log."""
    batches: Callable[[int], Iterator[Batch]]
    """first step -> the batches of this process from that step on, without end."""
    validate: Callable[[nn.Module, RunLog | None, int, bool], dict[str, float]]
    """(model, log, step, brief) -> metrics, of which `loss` decides which model is best; `brief` is a short check."""
    release: Callable[[nn.Module], None]
    """Writes a model as people will use it."""
    audio_seconds: float
    """Audio in one step, over all processes."""


def fit(
    accelerator: Accelerator, task: Task, settings: TrainingConfig, config: dict[str, Any], output: Path
) -> Progress:
    """Train up to `settings.steps`, from the state in `output` if there is one.

    Randomness is reseeded from (seed, step, process) at each step and the learning rate is a function of the step, so
    a run that was stopped anywhere and resumed computes what an uninterrupted one would have computed.

    Args:
        config: kept with the state, for the record.

    Raises:
        Stopped: SIGTERM or SIGINT arrived; the state was saved first.
        TrainingError: the loss is no longer finite.
    """
    if not (output / STATE).exists():
        task.model.to(accelerator.device)
        rehearse(accelerator, task, settings)
    run = Run(accelerator, task, settings, config, output)
    try:
        with StopSignals(accelerator.device) as signals:
            run.train(signals)
    finally:
        run.close()
    return run.progress


class Run:
    """A training run under way: its state, and where it is written down."""

    def __init__(
        self, accelerator: Accelerator, task: Task, settings: TrainingConfig, config: dict[str, Any], output: Path
    ):
        self.accelerator, self.task, self.settings, self.config = accelerator, task, settings, config
        self.state_path = output / STATE
        self.model = task.model.to(accelerator.device)
        self.optimizer = build_optimizer(self.model, settings)
        self.average = average_of(self.model, settings.averaging_decay)
        self.parts: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer}
        if self.average is not None:
            self.parts["average"] = self.average
        self.progress = load_state(self.state_path, self.parts) if self.state_path.exists() else Progress()
        self.trained = accelerator.prepare(self.model)
        self.log = RunLog(output, self.progress.step) if accelerator.is_main_process else None
        self.terminal = Terminal(settings.steps, self.progress.step, enabled=accelerator.is_main_process)

    def train(self, signals: StopSignals) -> None:
        """Go on up to the last step, or until a signal arrives."""
        settings, progress = self.settings, self.progress
        batches = self.task.batches(progress.step)
        while progress.step < settings.steps:
            metrics = self.step(next(batches))
            last = progress.step == settings.steps
            logs = last or progress.step % settings.log_every == 0
            validates = last or progress.step % settings.valid_every == 0
            number = signals.caught()
            if logs or validates or number:
                values = {name: float(value) for name, value in metrics.items()}
                check_finite(values, progress.step)  # Before the state is overwritten.
                if logs:
                    self.report(values)
            self.terminal.advance(progress.step)
            if validates:
                self.validate_and_save()
            if number and not last:
                self.save()
                name = signal.Signals(number).name
                raise Stopped(number, f"stopped by {name} after step {progress.step}; the same command goes on")
        if progress.best_loss is None:  # Stopped before its first validation, and resumed with fewer steps.
            self.validate_and_save()

    def step(self, batch: Any) -> dict[str, Tensor]:
        """One step with the randomness that belongs to it."""
        number = self.progress.step
        seed_everything(self.settings.seed, "step", number, self.accelerator.process_index)
        metrics = train_step(
            self.accelerator, self.trained, self.optimizer, self.task.compute_loss, batch, self.settings, number
        )
        self.progress.step += 1
        if self.average is not None:
            self.average.update_parameters(self.model)
        return metrics

    def report(self, values: dict[str, float]) -> None:
        """Write down a step's metrics."""
        if self.log is not None:
            self.log.scalars(self.progress.step, "train", values)
        self.terminal.train(self.progress.step, values["loss"], self.task.audio_seconds)

    def validate_and_save(self) -> None:
        """Validate, release the model if it is the best so far, and save the state."""
        candidate = self.average.module if self.average is not None else self.model
        metrics = self.task.validate(candidate, self.log, self.progress.step, False)
        check_finite(metrics, self.progress.step)
        if self.log is not None:
            self.log.scalars(self.progress.step, "valid", metrics)
        self.terminal.valid(self.progress.step, metrics)
        if self.progress.best_loss is None or metrics["loss"] < self.progress.best_loss:
            self.progress.best_loss = metrics["loss"]
            if self.accelerator.is_main_process:
                self.task.release(candidate)
        self.save()

    def save(self) -> None:
        """Write the state; all processes wait for it, since launchers end them all when the first one leaves."""
        if self.accelerator.is_main_process:
            save_state(self.state_path, self.parts, self.progress, self.config)
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        self.terminal.close()
        if self.log is not None:
            self.log.close()


def train_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    compute_loss: Callable[[nn.Module, Batch, int], tuple[Tensor, dict[str, Tensor]]],
    batch: Batch,
    settings: TrainingConfig,
    step: int,
) -> dict[str, Tensor]:
    """One optimiser step; the metrics hold the loss, the gradient's norm and the learning rate too."""
    model.train()
    rate = learning_rate(step, settings)
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss, metrics = compute_loss(model, send_to_device(batch, accelerator.device, non_blocking=True), step)
    accelerator.backward(loss)
    norm = accelerator.clip_grad_norm_(model.parameters(), settings.clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {
        "loss": loss.detach(),
        **metrics,
        "gradient_norm": torch.as_tensor(norm),
        "learning_rate": torch.tensor(rate, dtype=torch.float64),
    }


def rehearse(accelerator: Accelerator, task: Task, settings: TrainingConfig) -> None:
    """Two steps, a short validation and a checkpoint with a copy of the model, so that mistakes show at once."""
    seed_everything(settings.seed, "rehearsal")
    model = copy.deepcopy(task.model)
    optimizer = build_optimizer(model, settings)
    batches = task.batches(0)
    for step in range(2):
        metrics = train_step(accelerator, model, optimizer, task.compute_loss, next(batches), settings, step)
        check_finite({name: float(value) for name, value in metrics.items()}, step)
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.closing(RunLog(Path(folder))) as log:
            task.validate(model, log, 0, True)
        save_state(Path(folder) / STATE, {"model": model, "optimizer": optimizer}, Progress(), {})


def learning_rate(step: int, settings: TrainingConfig) -> float:
    """Linear warm-up to the peak, then a cosine to zero at the last step (Loshchilov & Hutter, 2017)."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def build_optimizer(model: nn.Module, settings: TrainingConfig) -> torch.optim.AdamW:
    """AdamW, with weight decay on weight matrices only: not on biases, norms and scales, nor on codebooks."""
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim < 2 or name.endswith("codebook") else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas)


def average_of(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """An exponential moving average of a model's weights; buffers are copied."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay is not None else None


def check_finite(metrics: Mapping[str, float], step: int) -> None:
    """Raise `TrainingError` if the loss or the gradient is NaN or infinite; the weights are lost then."""
    for name in ("loss", "gradient_norm"):
        if not math.isfinite(metrics.get(name, 0.0)):
            raise TrainingError(f"{name} is {metrics[name]} at step {step}; try a lower training.learning_rate")
