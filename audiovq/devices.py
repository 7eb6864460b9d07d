"""Devices, number formats and seeds: the one place that knows about them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator

import torch

from audiovq.errors import ConfigError

UNUSABLE = {
    "meta": "its tensors hold no numbers",
    "mps": "Apple's GPUs have no double precision, which codes are chosen in",
}
"""Kinds of devices that nothing here can be computed on, and why."""


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; `auto` is the first accelerator that PyTorch finds and that can be used, or the CPU.

    Raises:
        ConfigError: there is no such device on this machine, or it has no double precision.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if found is None or found.type in UNUSABLE else found
    kind = name.split(":")[0]
    if kind in UNUSABLE:
        raise ConfigError(f"device {name!r} cannot be used ({UNUSABLE[kind]}); try --device cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"device {name!r} cannot be used ({reason}); try --device cpu") from error
    return device


def usable_cores() -> int:
    """Cores that this process may use; a batch system often gives it a part of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_device(device: torch.device) -> None:
    """Make an accelerator with a number the current one of its kind, for code that does not name one."""
    torch.accelerator.set_device_index(device)


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Compute in true float32: no autocast, no TF32. Codes depend on small differences of distances."""
    with contextlib.ExitStack() as stack:
        for device_type in {"cpu", choose_device().type}:
            stack.enter_context(torch.autocast(device_type, enabled=False))
        stack.enter_context(_without_tf32)
        yield


class _WithoutTF32:
    """Turns TF32 off while any thread is inside: autocast is each thread's own, but this the whole process's.

    The first thread in turns it off, the last one out puts back what was before.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: contextlib.ExitStack

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = contextlib.ExitStack()
                self._before.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
                self._before.enter_context(_cudnn_without_tf32())
                torch.set_float32_matmul_precision("highest")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._before.close()


_without_tf32 = _WithoutTF32()


@contextlib.contextmanager
def single_threaded() -> Iterator[int]:
    """Compute each operation on the CPU in one thread; yields how many it may use otherwise.

    For several Python threads, each of which computes something of its own.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on a device, without waiting for what the device is doing."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # Other memory is copied only once the device has come to it.
    return tensor.to(device, non_blocking=True)


def _cudnn_without_tf32() -> contextlib.AbstractContextManager[None]:
    cudnn = torch.backends.cudnn
    return cudnn.flags(cudnn.enabled, cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False)


def seed_everything(*parts: int | str) -> None:
    """Seed PyTorch's generators on all devices from any number of parts, such as (seed, "step", step, rank).

    Randomness in training is reseeded at each step, so that it is a function of (seed, step) alone and a resumed
    run draws what an uninterrupted one would have drawn.
    """
    torch.manual_seed(derive_seed(*parts))


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any number of parts: equal parts give equal seeds, others unrelated ones."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
