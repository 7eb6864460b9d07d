"""Signals that ask a run to stop, noted so that its state can be saved first."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from audiovq.distributed import sum_over_processes


class StopSignals:
    """Notes SIGTERM and SIGINT while its block runs.

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

    def caught(self) -> int:
        """The signal that was caught, or 0. All processes of a run get the same answer, whichever was signalled."""
        if not _distributed():
            return self._caught
        anywhere = sum_over_processes(torch.tensor([float(self._caught)], device=self.device))
        return (self._caught or signal.SIGTERM) if anywhere.item() else 0

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._caught = number
        if number == signal.SIGINT and not _distributed():
            signal.signal(number, self._before[number])


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
