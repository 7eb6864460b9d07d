"""What a training run writes down: metrics.jsonl, TensorBoard, and lines or a progress bar on the terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from jaxtyping import Float, Shaped
from torch import Tensor

from audiovq.files import append, write_text

if TYPE_CHECKING:
    from audiovq.training.board import Board

NO_BOARD = "TensorBoard is not installed (pip install 'audiovq[tensorboard]'): losses go to metrics.jsonl alone"


class RunLog:
    """Metrics of a run, in `metrics.jsonl` (one JSON object a line) and, if it is installed, for TensorBoard.

    Lines of steps after `first_step`, the steps that are done, are dropped when the log is opened, so that a resumed
    run does not report steps twice.
    """

    def __init__(self, folder: Path, first_step: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        if self.path.exists():
            lines = self.path.read_bytes().splitlines()
            kept = [line.decode() for line in lines if is_log_line(line) and json.loads(line)["step"] <= first_step]
            write_text(self.path, "".join(f"{line}\n" for line in kept))
        self.board = _open_board(folder / "tensorboard", first_step)
        """None: TensorBoard is not installed."""

    def scalars(self, step: int, part: str, values: Mapping[str, float]) -> None:
        """Log values of `part` (train or valid) at a step."""
        append(self.path, (json.dumps({"step": step, "part": part, **values}) + "\n").encode())
        if self.board:
            self.board.scalars(step, part, values)

    def audio(self, step: int, name: str, wave: Float[Tensor, "1 time"], sample_rate: int) -> None:
        """Log a waveform and the picture of its log-mel spectrogram."""
        if self.board:
            self.board.audio(step, name, wave, sample_rate)

    def code_histogram(self, step: int, counts: Shaped[Tensor, " codes"], book: int = 0) -> None:
        """Log how often each code of a codebook occurs, most frequent first."""
        if self.board:
            self.board.code_histogram(step, counts, book)


def _open_board(folder: Path, first_step: int) -> Board | None:
    if not find_spec("tensorboard"):
        return None
    from audiovq.training.board import Board

    return Board(folder, first_step)


class Terminal:
    """A progress bar on a terminal, plain lines elsewhere; silent on all processes but the first."""

    def __init__(self, total: int, done: int, enabled: bool):
        self.total, self.enabled = total, enabled
        self.started, self.first = time.monotonic(), done
        self._bar = self._task = None
        if enabled and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("", total=total, completed=done)
            self._bar.start()

    def advance(self, done: int) -> None:
        """Move the bar to `done` steps."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done)

    def train(self, done: int, loss: float, audio_seconds: float) -> None:
        """Show the loss after `done` steps, and the speed; `audio_seconds` is the audio in one step."""
        elapsed = max(time.monotonic() - self.started, 1e-9)
        steps = done - self.first
        text = f"loss {loss:.3f}, {steps * audio_seconds / elapsed:.0f} audio s/s"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=text)
        else:
            left = timedelta(seconds=round(elapsed / max(1, steps) * (self.total - done)))
            self.say(f"step {done}/{self.total}  {text}, {left} left")

    def valid(self, done: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of a validation."""
        self.say(f"step {done}/{self.total}  valid: " + ", ".join(f"{k} {v:.4g}" for k, v in metrics.items()))

    def say(self, text: str) -> None:
        """Show a line."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        elif self.enabled:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def is_log_line(line: bytes) -> bool:
    """Whether a line of metrics.jsonl is whole; a crash may have cut it off, or a disk damaged it."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and type(record.get("step")) is int and isinstance(record.get("part"), str)
