"""Who does the units of a tokenizing job: several processes on one machine, or actors on a Ray cluster.

The processes are handed units as they ask for them, so that all end at about the same time.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import signal
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from audiovq.allocator import keep_freed_memory
from audiovq.devices import usable_cores
from audiovq.errors import AudioVQError, ConfigError, WorkerError
from audiovq.tokenization.plan import Unit
from audiovq.tokenization.worker import TokenizingJob, work
from audiovq.tokens.records import Sidecar, parse_record

_NEXT = "next unit"
_KEPT = "what was done is kept, and the same command goes on from there"


# --- processes ---------------------------------------------------------------------------------------------


@dataclass
class Worker:
    """A process, and the end of the pipe that leads to it."""

    process: BaseProcess
    pipe: Connection


def run_processes(job: TokenizingJob, units: Iterable[Unit], processes: int) -> Iterator[Sidecar]:
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


def _start(job: TokenizingJob, number: int, processes: int) -> Worker:
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
    return WorkerError(f"a worker {how}{hint}; {_KEPT}")


def _serve(job: TokenizingJob, pipe: Connection, number: int, processes: int) -> None:
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
        for record in work(job, job.load(device_of(job.device, number)), units()):
            pipe.send(record)
    except (EOFError, BrokenPipeError):
        pass  # Nobody listens any more.
    except (AudioVQError, OSError) as error:
        pipe.send(error)


def device_of(device: str, number: int) -> str:
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


# --- Ray ---------------------------------------------------------------------------------------------------


def run_ray(job: TokenizingJob, units: Iterable[Unit], processes: int | None) -> Iterator[Sidecar]:
    """Do the units on the cluster that `RAY_ADDRESS` names, or on one of this machine; yields sidecars.

    Inputs, model and output are to be found at the same paths on all of its nodes. Ray starts and stops actors as
    there are units and free cores or, with a device other than `cpu`, GPUs, and repeats the unit of one that is lost.

    Args:
        processes: the most actors at a time; None: as many as there are units.

    Raises:
        ConfigError: Ray is not installed.
        WorkerError: a unit failed. What had been committed stays.
    """
    try:
        import ray
        import ray.data
        from ray.exceptions import RayError
    except ImportError as error:
        raise ConfigError("--engine ray needs Ray Data: pip install 'audiovq[ray]'") from error

    own = not ray.is_initialized()
    if own:
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        waiting = [{"name": unit.name, "items": unit.to_json()} for unit in units]
        # A block for each unit, so that it is handed out, and its sidecar comes back, for itself.
        results = ray.data.from_items(waiting, override_num_blocks=len(waiting)).map(
            _Actor,  # type: ignore[arg-type]  # Ray's annotation knows functions alone.
            fn_constructor_args=(job,),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(processes or len(waiting), len(waiting))),
            num_cpus=1,
            num_gpus=1 if _uses_gpus(job.device, ray.cluster_resources()) else 0,
        )
        for row in results.iter_rows():
            yield parse_record(row["sidecar"], Sidecar, "a Ray actor's answer")
    except RayError as error:
        raise WorkerError(f"a Ray actor failed ({_reason(error)}); {_KEPT}") from error
    finally:
        if own:
            ray.shutdown()


def _uses_gpus(device: str, resources: Mapping[str, float]) -> bool:
    return device != "cpu" and resources.get("GPU", 0) > 0


def _reason(error: Exception) -> str:
    """The last line of a remote traceback that says something."""
    lines = [line.strip() for line in f"{error}\n{error.__cause__ or ''}".splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


class _Actor:
    """Holds the model, on the GPU that Ray gives it or on one core."""

    def __init__(self, job: TokenizingJob):
        import torch

        keep_freed_memory()
        torch.set_num_threads(1)
        self._job, self._tokenizer = job, job.load()

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        (sidecar,) = work(self._job, self._tokenizer, [Unit.from_json(row["name"], row["items"])])
        return {"sidecar": json.dumps(asdict(sidecar))}
