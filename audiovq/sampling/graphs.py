"""The step of a WaveNet as a CUDA graph: one launch in place of some hundred."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from audiovq.nn.wavenet import WaveNet, gate
from audiovq.sampling.base import Stepper

WARM_UP_STEPS = 3
"""Steps before the capture, in which cuBLAS and the allocator settle."""


class GraphWaveNet(Stepper):
    """`CachedWaveNet` without anything that a graph cannot hold: all that changes between steps is in fixed tensors.

    The position in the ring buffers, too, is a tensor on the device, so that a step waits for nothing. On a CUDA device
    the step is captured once and then replayed; elsewhere it runs as it stands, which is for tests.

    Raises:
        RuntimeError: the step cannot be captured.
    """

    def __init__(self, network: WaveNet, batch_size: int):
        self.network = network
        config, weight = network.config, network.embedding.weight
        channels, kernel = config.residual_channels, config.kernel_size
        self._past = [
            weight.new_zeros((kernel - 1) * dilation, batch_size, channels).detach() for dilation in config.dilations
        ]
        # For each layer the rows of its ring buffer that the next step reads; the first is then written.
        self._rows = [
            torch.arange(0, len(past), len(past) // (kernel - 1), device=weight.device) for past in self._past
        ]
        self._matrices = [dilated.weight.detach().mT.flatten(1) for dilated, _ in network.layers()]
        self._classes = torch.full((batch_size, network.streams), network.classes, device=weight.device)
        self._condition = weight.new_zeros(batch_size, config.layers, 2 * channels).detach()
        self._graph = self._capture() if weight.device.type == "cuda" else None

    def start(self) -> Int[Tensor, "batch streams"]:
        return torch.full_like(self._classes, self.network.classes)

    @torch.inference_mode()
    def step(
        self, classes: Int[Tensor, "batch streams"], condition: Float[Tensor, "#batch layers gates"] | None = None
    ) -> Float[Tensor, "batch streams classes"]:
        self._classes.copy_(classes)
        if condition is None:
            self._condition.zero_()
        else:
            self._condition.copy_(condition)
        if self._graph is None:
            return self._advance()
        with torch.cuda.device_of(self._classes):
            self._graph.replay()
        return self._logits.clone()

    def _advance(self) -> Float[Tensor, "batch streams classes"]:
        """The step: reads and writes fixed tensors alone."""
        network = self.network
        x = network.embed(self._classes)
        skips = x.new_zeros(())
        layers = zip(network.layers(), self._matrices, self._past, self._rows, strict=True)
        for number, ((dilated, output), matrix, past, rows) in enumerate(layers):
            taps = torch.cat([past.index_select(0, rows), x[None]])
            gates = F.linear(taps.transpose(0, 1).flatten(1), matrix, dilated.bias)
            past.index_copy_(0, rows[:1], x[None])
            rows.copy_((rows + 1) % len(past))
            z = gate(gates + self._condition[:, number], -1)
            residual, skip = network.split(F.linear(z, output.weight[..., 0], output.bias), -1)
            x, skips = x + residual, skips + skip
        return network.logits(skips[..., None])[..., 0]

    @torch.inference_mode()
    def _capture(self) -> torch.cuda.CUDAGraph:
        changed = [*self._past, *self._rows]
        before = [tensor.clone() for tensor in changed]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device_of(self._classes):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_STEPS):
                    self._advance()
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph):
                self._logits = self._advance()
        for tensor, value in zip(changed, before, strict=True):
            tensor.copy_(value)
        return graph
