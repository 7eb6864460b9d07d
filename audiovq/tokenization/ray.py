"""Tokenizing on a Ray cluster: Ray Data hands units to actors, each of which holds the model and commits its shards."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from audiovq.allocator import keep_freed_memory
from audiovq.errors import ConfigError, WorkerError
from audiovq.tokenization.plan import Unit
from audiovq.tokenization.worker import Job, work


def run_ray(job: Job, units: Iterable[Unit], processes: int | None) -> Iterator[dict[str, Any]]:
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
            yield json.loads(row["record"])
    except RayError as error:
        raise WorkerError(
            f"a Ray actor failed ({_reason(error)}); what was done is kept, and the same command goes on from there"
        ) from error
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

    def __init__(self, job: Job):
        import torch

        keep_freed_memory()
        torch.set_num_threads(1)
        self._job, self._tokenizer = job, job.load()

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        (record,) = work(self._job, self._tokenizer, [Unit.from_json(row["name"], row["items"])])
        return {"record": json.dumps(record)}
