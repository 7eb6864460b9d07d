"""What a training run writes down: metrics.jsonl, TensorBoard, and lines or a progress bar on the terminal."""

from __future__ import annotations

import io
import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard import summary

from audiovq.audio.signal import log_mel
from audiovq.files import write_text


class RunLog:
    """Metrics of a run, in `metrics.jsonl` (one JSON object a line) and for TensorBoard.

    Lines of steps from `first_step` on are dropped when the log is opened, so that a resumed run does not report
    steps twice.
    """

    def __init__(self, folder: Path, first_step: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        if self.path.exists():
            lines = self.path.read_bytes().splitlines()
            kept = [line.decode() for line in lines if is_log_line(line) and json.loads(line)["step"] <= first_step]
            write_text(self.path, "".join(f"{line}\n" for line in kept))
        self._board = Board(folder / "tensorboard", first_step)

    def scalars(self, step: int, part: str, values: Mapping[str, float]) -> None:
        """Log values of `part` (train or valid) at a step."""
        append(self.path, (json.dumps({"step": step, "part": part, **values}) + "\n").encode())
        for name, value in values.items():
            self._board.add(summary.scalar(f"{part}/{name}", value), step)

    def audio(self, step: int, name: str, wave: Float[Tensor, "1 time"], sample_rate: int) -> None:
        """Log a waveform and the picture of its log-mel spectrogram."""
        wave = wave.detach().cpu()
        self._board.add(summary.audio(f"audio/{name}", wave.clamp(-1, 1), sample_rate), step)
        mel = log_mel(wave, sample_rate)[0].flip(0)
        self._board.add(summary.image(f"mel/{name}", _colour(mel.numpy()), dataformats="HWC"), step)

    def code_histogram(self, step: int, counts: Shaped[Tensor, " codes"], book: int = 0) -> None:
        """Log how often each code of a codebook occurs, most frequent first."""
        ranked = np.sort(counts.cpu().numpy())[::-1]
        height, width = 100, len(ranked)
        bars = np.arange(height)[:, None] >= height * (1 - ranked[None] / max(1, ranked[0]))
        picture = np.where(bars, 40, 255).astype(np.uint8)
        picture = np.repeat(picture, max(1, 512 // width), axis=1)
        self._board.add(summary.image(f"codes/histogram{book or ''}", picture, dataformats="HW"), step)


class Board:
    """Summaries in a file for TensorBoard, which hides those of earlier files from the step after `first_step` on.

    They are written at once. TensorBoard's own writer does it on a thread, whose errors, as on a full disk, come late
    and with a traceback.
    """

    def __init__(self, folder: Path, first_step: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        # Named as TensorBoard reads them: in order of their names.
        stem = f"events.out.tfevents.{time.time_ns() // 10**9:010d}.{time.time_ns() % 10**9:09d}"
        self.path = folder / f"{stem}.{socket.gethostname()}.{os.getpid()}"
        self._add(Event(file_version="brain.Event:2", step=first_step + 1 if first_step else 0))
        if first_step:
            self._add(Event(session_log=SessionLog(status=SessionLog.START), step=first_step + 1))

    def add(self, made: Summary, step: int) -> None:
        """Write a summary, as the functions of `torch.utils.tensorboard.summary` make them."""
        self._add(Event(summary=made, step=step))

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        append(self.path, record.getvalue())


def append(path: Path, data: bytes) -> None:
    """Add to the end of a file: all or, if an error is raised, nothing."""
    with path.open("ab") as file:
        size = file.tell()
    try:
        with path.open("ab") as file:
            file.write(data)
    except OSError as error:
        os.truncate(path, size)
        error.filename = str(path)
        raise


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
            self._say(f"step {done}/{self.total}  {text}, {left} left")

    def valid(self, done: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of a validation."""
        self._say(f"step {done}/{self.total}  valid: " + ", ".join(f"{k} {v:.4g}" for k, v in metrics.items()))

    def _say(self, text: str) -> None:
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


def _colour(picture: np.ndarray) -> np.ndarray:
    """A matrix as an RGB picture [H, W, 3], from its smallest to its largest value."""
    from matplotlib import colormaps

    low, high = float(picture.min()), float(picture.max())
    scaled = (picture - low) / max(high - low, 1e-9)
    rgba: Any = colormaps["magma"](scaled)
    return (rgba[..., :3] * 255).astype(np.uint8)
