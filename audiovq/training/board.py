"""What TensorBoard shows of a run (`pip install 'audiovq[tensorboard]'`)."""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Mapping
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
from audiovq.files import append


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

    def scalars(self, step: int, part: str, values: Mapping[str, float]) -> None:
        """Add values of `part` (train or valid)."""
        for name, value in values.items():
            self._summarize(summary.scalar(f"{part}/{name}", value), step)

    def audio(self, step: int, name: str, wave: Float[Tensor, "1 time"], sample_rate: int) -> None:
        """Add a waveform and the picture of its log-mel spectrogram."""
        wave = wave.detach().cpu()
        self._summarize(summary.audio(f"audio/{name}", wave.clamp(-1, 1), sample_rate), step)
        mel = log_mel(wave, sample_rate)[0].flip(0)
        self._summarize(summary.image(f"mel/{name}", _colour(mel.numpy()), dataformats="HWC"), step)

    def code_histogram(self, step: int, counts: Shaped[Tensor, " codes"], book: int = 0) -> None:
        """Add a picture of how often each code of a codebook occurs, most frequent first."""
        ranked = np.sort(counts.cpu().numpy())[::-1]
        height, width = 100, len(ranked)
        bars = np.arange(height)[:, None] >= height * (1 - ranked[None] / max(1, ranked[0]))
        picture = np.where(bars, 40, 255).astype(np.uint8)
        picture = np.repeat(picture, max(1, 512 // width), axis=1)
        self._summarize(summary.image(f"codes/histogram{book or ''}", picture, dataformats="HW"), step)

    def _summarize(self, made: Summary, step: int) -> None:
        self._add(Event(summary=made, step=step))

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        append(self.path, record.getvalue())


def _colour(picture: np.ndarray) -> np.ndarray:
    """A matrix as an RGB picture [H, W, 3], from its smallest to its largest value."""
    from matplotlib import colormaps

    low, high = float(picture.min()), float(picture.max())
    scaled = (picture - low) / max(high - low, 1e-9)
    rgba: Any = colormaps["magma"](scaled)
    return (rgba[..., :3] * 255).astype(np.uint8)
