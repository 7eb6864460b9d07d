"""Tokenizing in several processes on one machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from audiovq.allocator import keep_freed_memory
from audiovq.errors import AudioVQError, WorkerError
from audiovq.tokenization.plan import Unit
from audiovq.tokenization.worker import Job, work

_NEXT = "next unit"


def usable_cores() -> int:
    """Cores that this process may use; a batch system often gives it a part of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class Worker:
    """A process, and the end of the pipe that leads to it."""

    process: BaseProcess
    pipe: Connection


def run_processes(job: Job, units: Iterable[Unit], processes: int) -> Iterator[dict[str, Any]]:
    """Do the units in `processes` new ones, each on its accelerator or its share of the cores; yields sidecars.

    A worker asks for a unit when it can read it ahead, so that fast and slow ones end together.

    Raises:
        WorkerError: a worker was killed. What it and the others had committed stays.
    """
    remaining = iter(units)
    workers = [_start(job, number, processes) for number in range(processes)]
    try:
        while workers:
            for pipe in wait([worker.pipe for worker in workers]):
                worker = next(worker for worker in workers if worker.pipe is pipe)
                try:
                    message = worker.pipe.recv()
                    if message == _NEXT:
                        worker.pipe.send(next(remaining, None))
                except (EOFError, OSError):
                    worker.process.join()
                    if worker.process.exitcode:
                        raise _died(worker.process) from None
                    workers.remove(worker)
                    continue
                if isinstance(message, BaseException):
                    raise message
                if message != _NEXT:
                    yield message
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join()
            worker.pipe.close()


def _start(job: Job, number: int, processes: int) -> Worker:
    # Not forked: neither CUDA nor OpenMP survives it.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(job, theirs, number, processes), daemon=True)
    process.start()
    theirs.close()
    return Worker(process, ours)


def _died(process: BaseProcess) -> WorkerError:
    code = process.exitcode or 0
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    hint = " (is there too little memory?)" if -code == signal.SIGKILL else ""
    return WorkerError(f"a worker {how}{hint}; what was done is kept, and the same command goes on from there")


def _serve(job: Job, pipe: Connection, number: int, processes: int) -> None:
    """A worker's life; it ends when there are no more units, or when the process that started it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Of Ctrl-C the process that started it makes what is right.
    keep_freed_memory()
    import torch

    def units() -> Iterator[Unit]:
        pipe.send(_NEXT)
        while (unit := pipe.recv()) is not None:
            yield unit
            pipe.send(_NEXT)

    torch.set_num_threads(max(1, usable_cores() // processes))
    try:
        for record in work(job, job.load(_device_of(job.device, number)), units()):
            pipe.send(record)
    except (EOFError, BrokenPipeError):
        pass  # Nobody listens any more.
    except (AudioVQError, OSError) as error:
        pipe.send(error)


def _device_of(device: str, number: int) -> str:
    """The device of worker `number`: if there are several accelerators, each has its own."""
    import torch

    found = accelerators(device)
    return f"{torch.accelerator.current_accelerator()}:{number % found}" if found > 1 else device


def accelerators(device: str) -> int:
    """How many accelerators a device name leaves to choose from: `auto` and `cuda` all, `cpu` and `cuda:1` none."""
    import torch

    if (device != "auto" and (":" in device or device == "cpu")) or not torch.accelerator.is_available():
        return 0
    return torch.accelerator.device_count()
