#!/usr/bin/env python
"""Speed of drawing from a WaveNet on the CPU: the whole window at each step, cached, and compiled.

    python recipes/benchmark/wavenet.py --threads 1 --output exp/wavenet.json

Prints Markdown tables. All weights are random: speed does not depend on them. See README.md for what the columns mean.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codec import Row, commit, cpu_name, seconds_of, table

from audiovq.config import WaveNetConfig
from audiovq.files import write_json

if TYPE_CHECKING:
    from torch import Tensor

    from audiovq.nn.wavenet import WaveNet
    from audiovq.sampling.base import Stepper

Timed = Sequence[tuple["Callable[[], Any]", float]]
"""Calls that do the same, and how many units of it each of them does."""

BATCH_SIZES = (1, 16)
HOP = 64
"""Steps for which the local condition holds, and that are drawn in one call: a frame of the paper's decoder."""
PASSES = 8
"""Passes over the weights in one call when the floor is measured."""


@dataclass
class Network:
    """What is sampled: a WaveNet of one stream, told of a speaker."""

    config: WaveNetConfig
    classes: int
    local_dim: int
    """Channels of the local condition; 0: none."""
    speaker_dim: int = 64


NETWORKS = {
    "prior": Network(WaveNetConfig(layers=20, residual_channels=256, skip_channels=256), 512, local_dim=0),
    "decoder": Network(WaveNetConfig(layers=30, residual_channels=64, skip_channels=128), 256, local_dim=128),
}


@dataclass
class Case:
    """Seconds that a network took at one batch size, one number a round."""

    name: str
    batch: int
    receptive_field: int
    multiply_adds: int
    """Of a step of the whole batch; of matrices, not of embeddings, biases and gates."""
    weight_bytes: int
    naive: list[float] = field(default_factory=list)
    cached: list[float] = field(default_factory=list)
    compiled: list[float] = field(default_factory=list)
    product: list[float] = field(default_factory=list)
    """A multiply-add, in the fastest product of matrices that lie in memory as the network's do."""
    reading: list[float] = field(default_factory=list)
    """A byte, in the fastest sum over as many bytes as the network has."""

    @property
    def floor(self) -> list[float]:
        """A step that does nothing but multiply, or nothing but read the weights, whichever takes longer."""
        return [
            max(self.multiply_adds * product, self.weight_bytes * reading)
            for product, reading in zip(self.product, self.reading, strict=True)
        ]


# --- drawing -------------------------------------------------------------------------------------------------


def draw_naively(
    network: WaveNet, past: Tensor, local: Tensor | None, speaker: Tensor | None, uniforms: Tensor
) -> Tensor:
    """Draw T steps, each by the whole network over a window that covers its receptive field.

    Args:
        past: classes [B, Q, W - 1] before the first step, W being the length of the window.
        local: condition [B, C, frames] of the window.
        uniforms: random numbers [B or 1, Q, T].
    """
    import torch
    from torch.nn import functional as F

    from audiovq.sampling.base import sample

    drawn = []
    for numbers in uniforms.unbind(-1):
        logits = network(F.pad(past, (0, 1)), local, speaker)[..., -1]
        drawn.append(sample(logits, numbers))
        past = torch.cat([past[..., 1:], drawn[-1][..., None]], -1)
    return torch.stack(drawn, -1)


def window(network: WaveNet) -> int:
    """Steps of whole frames that hold the receptive field and the step that depends on it."""
    return HOP * math.ceil((network.receptive_field + 1) / HOP)


def ways(network: WaveNet, batch: int) -> dict[str, tuple[Callable[[], Any], int]]:
    """The ways to draw: calls, and the steps that each of them takes."""
    import torch

    from audiovq.sampling.cached import CachedWaveNet
    from audiovq.sampling.compiled import CompiledWaveNet

    length = window(network)
    past = torch.randint(network.classes, (batch, 1, length - 1))
    local = torch.randn(batch, network.local.in_channels, length // HOP) if network.local is not None else None
    speaker = torch.randn(batch, network.globals.in_features) if network.globals is not None else None
    conditions = network.conditions(local, speaker)
    condition = None if conditions is None else conditions[..., 0].contiguous()

    def generate(stepper: Stepper) -> Callable[[], Any]:
        start = stepper.start()
        return lambda: stepper.generate(start, torch.rand(1, 1, HOP), condition)

    return {
        "naive": (lambda: draw_naively(network, past, local, speaker, torch.rand(1, 1, 1)), 1),
        "cached": (generate(CachedWaveNet(network, batch)), HOP),
        "compiled": (generate(CompiledWaveNet(network, batch)), HOP),
    }


# --- floor ---------------------------------------------------------------------------------------------------


def matrices(network: WaveNet) -> list[Tensor]:
    """The matrices [O, I] that a step multiplies with, in turn."""
    from torch import nn

    layers = [*(layer for pair in network.layers() for layer in pair), *network.head]
    return [layer.weight.detach().flatten(1).clone() for layer in layers if isinstance(layer, nn.Conv1d)]


def products(network: WaveNet, batch: int, threads: int) -> Timed:
    """Products of the network's matrices with B vectors: calls, and the multiply-adds of each.

    By PyTorch's BLAS, and by the compiled step's own kernel with the matrices spread over threads that never wait
    for each other, as a real step would have to.
    """
    import numpy as np
    import torch
    from numba import njit

    from audiovq.sampling import kernels
    from audiovq.sampling.compiled import pack

    weights = matrices(network)
    vectors = [torch.randn(weight.shape[1], batch) for weight in weights]
    count = batch * sum(weight.numel() for weight in weights)

    def blas() -> None:
        for weight, vector in zip(weights, vectors, strict=True):
            torch.mv(weight, vector[:, 0]) if batch == 1 else torch.mm(weight, vector)

    @njit(nogil=True)
    def multiply_all(gates, outputs, inputs, units, gate_sums, output_sums):
        for _ in range(PASSES):
            for layer in range(len(gates)):
                kernels.multiply_add(gates[layer], inputs, gate_sums)
                kernels.multiply_add(outputs[layer], units, output_sums)

    packed = pack(network)
    parts = split(len(packed.gates), threads)

    def kernel(part: slice) -> None:
        gates, outputs = packed.gates[part], packed.outputs[part]
        inputs, units = (np.zeros((batch, layers.shape[2]), np.float32) for layers in (gates, outputs))
        sums = (np.zeros((batch, layers.shape[1] * layers.shape[3]), np.float32) for layers in (gates, outputs))
        multiply_all(gates, outputs, inputs, units, *sums)

    layers = batch * (packed.gates.size + packed.outputs.size)
    return [(blas, count), (in_threads(kernel, parts), PASSES * layers)]


def readings(size: int, threads: int) -> Timed:
    """Sums over as many bytes: calls, and the bytes that each reads."""
    import numpy as np
    import torch
    from numba import njit

    values = torch.ones(size // 4)
    array = values.numpy()

    @njit(nogil=True, fastmath={"reassoc"})
    def total(values):
        sums = np.float32(0)
        for number in range(len(values)):
            sums += values[number]
        return sums

    def read(part: slice) -> None:
        for _ in range(PASSES):
            total(array[part])

    return [(values.sum, size), (in_threads(read, split(len(array), threads)), PASSES * size)]


def split(count: int, parts: int) -> list[slice]:
    return [slice(count * part // parts, count * (part + 1) // parts) for part in range(parts)]


def in_threads(function: Callable[[slice], None], parts: Sequence[slice]) -> Callable[[], Any]:
    """A call of the function for all parts, each in a thread."""
    if len(parts) == 1:
        return lambda: function(parts[0])
    pool = ThreadPoolExecutor(len(parts))
    return lambda: list(pool.map(function, parts))


# --- measuring -----------------------------------------------------------------------------------------------


def time_cases(threads: int, rounds: int) -> list[Case]:
    """Time every way of every network in every round, in turn, and the floor between them.

    Whatever else the machine does then hits all of them alike.
    """
    from audiovq.nn.wavenet import WaveNet

    cases: list[Case] = []
    runs: list[tuple[list[float], Timed]] = []
    for name, shape in NETWORKS.items():
        network = WaveNet(shape.config, 1, shape.classes, shape.local_dim, shape.speaker_dim).eval()
        count = sum(weight.numel() for weight in matrices(network))
        for batch in BATCH_SIZES:
            case = Case(name, batch, network.receptive_field, batch * count, 4 * count)
            runs += [(getattr(case, way), [call]) for way, call in ways(network, batch).items()]
            runs.append((case.product, products(network, batch, threads)))
            runs.append((case.reading, readings(case.weight_bytes, threads)))
            cases.append(case)
    for _, calls in runs:
        for call, _ in calls:
            call()  # Warm-up.
    for _ in range(rounds):
        for measured, calls in runs:
            measured.append(min(seconds_of(call) / units for call, units in calls))
    return cases


def seconds_to_compile() -> float:
    """Seconds until the first compiled step is ready in this process."""
    from audiovq.nn.wavenet import WaveNet
    from audiovq.sampling.compiled import CompiledWaveNet

    start = time.perf_counter()
    CompiledWaveNet(WaveNet(WaveNetConfig(layers=1), 1, 2), 1)
    return time.perf_counter() - start


# --- results -------------------------------------------------------------------------------------------------


def floor_row(case: Case) -> Row:
    """What a step cannot do without, as a row of the first table."""
    return {
        **{"name": case.name, "batch": case.batch, "receptive_field": case.receptive_field},
        **{"multiply_adds": case.multiply_adds, "weight_bytes": case.weight_bytes},
        "product_rate": 1 / statistics.median(case.product),
        "bandwidth": 1 / statistics.median(case.reading),
        "floor": statistics.median(case.floor),
    }


def speed_rows(case: Case) -> Iterable[Row]:
    """Speed of each way, as rows of the second table; ratios are taken within a round."""
    for way in ("naive", "cached", "compiled"):
        own: list[float] = getattr(case, way)
        yield {
            **{"name": case.name, "batch": case.batch, "way": way},
            **{"speed": 1 / statistics.median(own), "best_speed": 1 / min(own)},
            "naive_ratio": ratio(case.naive, own),
            "cached_ratio": ratio(case.cached, own),
            "floor_ratio": ratio(case.floor, own),
        }


def ratio(reference: Sequence[float], own: Sequence[float]) -> float:
    """How many times as fast as the reference."""
    return statistics.median(a / b for a, b in zip(reference, own, strict=True))


FLOOR_COLUMNS = {
    "network": "{name}",
    "batch": "{batch}",
    "receptive field": "{receptive_field}",
    "multiply-adds": "{multiply_adds:,}",
    "weights, bytes": "{weight_bytes:,}",
    "product, G multiply-adds/s": "{product_rate:.3g}",
    "reading, GB/s": "{bandwidth:.3g}",
    "floor, µs": "{floor:.1f}",
}
SPEED_COLUMNS = {
    "network": "{name}",
    "batch": "{batch}",
    "way": "{way}",
    "steps/s (best)": "{speed:.4g} ({best_speed:.4g})",
    "/ naive": "{naive_ratio:.3g}",
    "/ cached": "{cached_ratio:.3g}",
    "of the floor's speed": "{floor_ratio:.1%}",
}


def in_units(row: Row) -> Row:
    """A row of the first table in the units of its headings."""
    scales = {"product_rate": 1e-9, "bandwidth": 1e-9, "floor": 1e6}
    return {key: value * scales[key] if isinstance(value, float) else value for key, value in row.items()}


def facts(args: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on."""
    import torch

    return {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit(),
        "seed": args.seed,
        "rounds": args.rounds,
        "compile_seconds": round(seconds_to_compile(), 2),
    }


# --- command line --------------------------------------------------------------------------------------------


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed of drawing from a WaveNet on the CPU.")
    add = parser.add_argument
    add("--threads", type=int, default=os.cpu_count(), help="threads to compute with (default: all cores, %(default)s)")
    add("--rounds", type=int, default=5, help="rounds, in each of which every way is timed (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of weights and draws (default: %(default)s)")
    add("--output", type=Path, help="JSON file for all figures (default: none is written)")
    args = parser.parse_args(arguments)
    for name in ("threads", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"argument --{name}: expected a number above 0, found {getattr(args, name)}")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables and write the figures."""
    args = parse_arguments(arguments)
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    conditions = facts(args)
    with torch.inference_mode():
        cases = time_cases(args.threads, args.rounds)
    floors = [floor_row(case) for case in cases]
    speeds = [row for case in cases for row in speed_rows(case)]
    print(f"{', '.join(f'{key} {value}' for key, value in conditions.items())}\n")
    print(f"{table(FLOOR_COLUMNS, [in_units(row) for row in floors])}\n\n{table(SPEED_COLUMNS, speeds)}")
    if args.output:
        write_json(
            args.output, {**conditions, "floors": floors, "speeds": speeds, "seconds": [asdict(case) for case in cases]}
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
