"""The compiled step of a WaveNet on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from audiovq.nn.wavenet import WaveNet
from audiovq.sampling import kernels
from audiovq.sampling.base import Stepper


class CompiledWaveNet(Stepper):
    """`CachedWaveNet` compiled by numba, with all of `generate` in compiled code: for float32 on the CPU.

    The items of a batch are spread over PyTorch's threads. The weights are copied: a network that is trained further
    needs another.

    The first one in a process compiles, or loads what an earlier process has compiled.
    """

    def __init__(self, network: WaveNet, batch_size: int):
        self._weights = pack(network)
        self._streams, self._classes = network.streams, network.classes
        config = network.config
        rows = (config.kernel_size - 1) * sum(config.dilations)
        self._past = np.zeros((batch_size, rows, config.residual_channels), np.float32)
        self._steps = 0
        threads = min(torch.get_num_threads(), batch_size)
        bounds = [batch_size * number // threads for number in range(threads + 1)]
        self._parts = [slice(*pair) for pair in pairwise(bounds)]
        self._pool = ThreadPoolExecutor(threads)  # Threads start when they are needed.
        self.generate(self.start(), torch.empty(1, self._streams, 0))  # Compiles.

    def start(self) -> Int[Tensor, "batch streams"]:
        return torch.full((len(self._past), self._streams), self._classes)

    def step(
        self, classes: Int[Tensor, "batch streams"], condition: Float[Tensor, "#batch layers gates"] | None = None
    ) -> Float[Tensor, "batch streams classes"]:
        logits = torch.empty(len(self._past), len(self._weights.last_bias))
        previous, conditions, out = self._previous(classes), self._conditions(condition), logits.numpy()

        def advance(part: slice) -> None:
            kernels.step(self._weights, self._past[part], self._steps, previous[part], conditions[part], out[part])

        self._run(advance, 1)
        return logits[:, : self._streams * self._classes].unflatten(1, (self._streams, self._classes))

    def generate(
        self,
        previous: Int[Tensor, "batch streams"],
        uniforms: Float[Tensor, "#batch streams time"],
        condition: Float[Tensor, "#batch layers gates"] | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
    ) -> Int[Tensor, "batch streams time"]:
        drawn = torch.empty(len(self._past), self._streams, uniforms.shape[-1], dtype=torch.long)
        classes, conditions, out = self._previous(previous), self._conditions(condition), drawn.numpy()
        numbers = array(uniforms.double().expand(drawn.shape))
        filters = float(temperature), top_k or 0, float(top_p)

        def advance(part: slice) -> None:
            given = classes[part], numbers[part], conditions[part]
            kernels.generate(self._weights, self._past[part], self._steps, *given, *filters, out[part])

        self._run(advance, uniforms.shape[-1])
        return drawn

    def _previous(self, classes: Int[Tensor, "batch streams"]) -> np.ndarray:
        """The classes of the step before; the kernels would read memory that is not theirs for others."""
        shape = (len(self._past), self._streams)
        if classes.shape != shape or not 0 <= classes.min() <= classes.max() <= self._classes:
            raise ValueError(
                f"expected classes {shape} from 0 to {self._classes}, "
                f"found {tuple(classes.shape)} from {classes.min()} to {classes.max()}"
            )
        return array(classes)

    def _conditions(self, condition: Float[Tensor, "#batch layers gates"] | None) -> np.ndarray:
        """What is added to the gates of each item: [B, L, (2R)']."""
        biases = self._weights.gate_biases
        added = biases if condition is None else biases + array(pad(condition))
        return np.ascontiguousarray(np.broadcast_to(added, (len(self._past), *biases.shape)))

    def _run(self, advance: Callable[[slice], None], steps: int) -> None:
        """Let all parts of the batch advance, each in a thread; numba lets go of Python's lock."""
        if len(self._parts) == 1:
            advance(self._parts[0])
        else:
            list(self._pool.map(advance, self._parts))
        self._steps += steps


def pack(network: WaveNet) -> kernels.Weights:
    """The weights of a network as the kernels read them."""
    layers = [(*pack_convolution(dilated), *pack_convolution(output)) for dilated, output in network.layers()]
    head = [array(tensor) for layer in network.head for tensor in pack_convolution(layer)]
    if network.missing is not None:
        head[-1] = np.where(pad(network.missing.flatten()), np.float32(-np.inf), head[-1])
    stacked = [array(torch.stack(tensors)) for tensors in zip(*layers, strict=True)]
    dilations = np.array(network.config.dilations)
    return kernels.Weights._make([array(network.embedding.weight), *stacked, *head, dilations])


def pack_convolution(
    convolution: nn.Module,
) -> tuple[Float[Tensor, "blocks inputs width"], Float[Tensor, " padded"]]:
    """Weight and bias of a convolution as a matrix product over its taps side by side, the oldest first.

    Outputs come in blocks of `WIDTH`, one after the other; in a block the outputs of an input lie side by side.
    """
    assert isinstance(convolution, nn.Conv1d)
    assert convolution.bias is not None
    matrix = pad(convolution.weight.mT.flatten(1).mT)
    return matrix.unflatten(1, (-1, kernels.WIDTH)).transpose(0, 1), pad(convolution.bias)


def pad(tensor: Float[Tensor, "*batch outputs"]) -> Float[Tensor, "*batch padded"]:
    """Zeros at the end of the last dimension, up to a multiple of `WIDTH`."""
    return F.pad(tensor, (0, -tensor.shape[-1] % kernels.WIDTH))


def array(tensor: Tensor) -> np.ndarray:
    """The same values, contiguous, for the kernels."""
    return tensor.detach().contiguous().numpy()
