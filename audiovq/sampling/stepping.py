"""The fastest step of a WaveNet that its device offers."""

from __future__ import annotations

import torch

from audiovq.nn.wavenet import WaveNet
from audiovq.sampling.base import Stepper
from audiovq.sampling.cached import CachedWaveNet
from audiovq.text import warn_once


def fastest_stepper(network: WaveNet, batch_size: int) -> Stepper:
    """Compiled for the CPU, a CUDA graph on a GPU of that kind; all give the logits of `CachedWaveNet`.

    Where neither can be used it is `CachedWaveNet` itself, and a warning says so, once in a process.

    Args:
        batch_size: sequences that go in step.
    """
    weight = network.embedding.weight
    try:
        if weight.device.type == "cuda":
            from audiovq.sampling.graphs import GraphWaveNet

            return GraphWaveNet(network, batch_size)
        if weight.device.type == "cpu" and weight.dtype == torch.float32:
            from audiovq.sampling.compiled import CompiledWaveNet

            return CompiledWaveNet(network, batch_size)
        reason = f"there is none for {weight.dtype} on {weight.device.type}"
    except Exception as error:
        # Whatever went wrong, a compiler, a driver or a package that is missing: the plain step gives the same.
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    warn_once(reason, f"WaveNet sampling is slow, for its fast step cannot be used ({reason})")
    return CachedWaveNet(network, batch_size)
