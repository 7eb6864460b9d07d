"""What a training run writes down: metrics.jsonl, TensorBoard, and lines or a progress bar on the terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor

from audiovq.audio.signal import log_mel
from audiovq.files import write_text


class RunLog:
    """Metrics of a run, in `metrics.jsonl` (one JSON object a line) and for TensorBoard.

    Lines of steps from `first_step` on are dropped when the log is opened, so that a resumed run does not report
    steps twice.
    """

    def __init__(self, folder: Path, first_step: int = 0):
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        if self.path.exists():
            kept = [line for line in self.path.read_text(encoding="utf-8").splitlines() if _step(line) <= first_step]
            write_text(self.path, "".join(f"{line}\n" for line in kept))
        self._file = self.path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1 if first_step else None)

    def scalars(self, step: int, part: str, values: Mapping[str, float]) -> None:
        """Log values of `part` (train or valid) at a step."""
        self._file.write(json.dumps({"step": step, "part": part, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{part}/{name}", value, step)

    def audio(self, step: int, name: str, wave: Float[Tensor, "1 time"], sample_rate: int) -> None:
        """Log a waveform and the picture of its log-mel spectrogram."""
        wave = wave.detach().cpu()
        self._board.add_audio(f"audio/{name}", wave.clamp(-1, 1), step, sample_rate)
        mel = log_mel(wave, sample_rate)[0].flip(0)
        self._board.add_image(f"mel/{name}", _colour(mel.numpy()), step, dataformats="HWC")

    def code_histogram(self, step: int, counts: Shaped[Tensor, "books codes"]) -> None:
        """Log how often each code occurs, most frequent first, a picture a codebook."""
        for book, ranked in enumerate(np.sort(counts.cpu().numpy())[:, ::-1]):
            height, width = 100, len(ranked)
            bars = np.arange(height)[:, None] >= height * (1 - ranked[None] / max(1, ranked[0]))
            picture = np.where(bars, 40, 255).astype(np.uint8)
            picture = np.repeat(picture, max(1, 512 // width), axis=1)
            number = f"_{book}" if len(counts) > 1 else ""
            self._board.add_image(f"codes/histogram{number}", picture, step, dataformats="HW")

    def close(self) -> None:
        self._file.close()
        self._board.close()


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


def _step(line: str) -> float:
    """The step of a line of metrics.jsonl; a line that was cut off by a crash counts as after all others."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")


def _colour(picture: np.ndarray) -> np.ndarray:
    """A matrix as an RGB picture [H, W, 3], from its smallest to its largest value."""
    from matplotlib import colormaps

    low, high = float(picture.min()), float(picture.max())
    scaled = (picture - low) / max(high - low, 1e-9)
    rgba: Any = colormaps["magma"](scaled)
    return (rgba[..., :3] * 255).astype(np.uint8)
