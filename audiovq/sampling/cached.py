"""A WaveNet one step at a time, in plain PyTorch."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from audiovq.nn.wavenet import WaveNet, gate
from audiovq.sampling.base import Stepper


class CachedWaveNet(Stepper):
    """The network one step at a time: each layer keeps what it will need again in a ring buffer.

    A step costs the same however long the sequence is, and gives the logits of `WaveNet.forward` at that step.
    This is the readable form, and the reference for those that `audiovq.sampling.stepping` chooses from.

        cached = CachedWaveNet(network, batch_size)
        logits = cached.step(classes, condition)  # [B, Q, K] from [B, Q], the classes of the step before

    Args:
        batch_size: sequences B that go in step.
    """

    def __init__(self, network: WaveNet, batch_size: int):
        self.network = network
        weight = network.embedding.weight
        channels, kernel = network.config.residual_channels, network.config.kernel_size
        self.buffers = [
            weight.new_zeros(((kernel - 1) * dilation, batch_size, channels)) for dilation in network.config.dilations
        ]
        # Each dilated convolution as a matrix over its taps side by side, the oldest first.
        self.matrices = [dilated.weight.detach().mT.flatten(1) for dilated, _ in network.layers()]
        self.steps = 0

    def start(self) -> Int[Tensor, "batch streams"]:
        """What comes before the first step."""
        batch, device = self.buffers[0].shape[1], self.buffers[0].device
        return torch.full((batch, self.network.streams), self.network.classes, device=device)

    @torch.inference_mode()
    def step(
        self, classes: Int[Tensor, "batch streams"], condition: Float[Tensor, "#batch layers gates"] | None = None
    ) -> Float[Tensor, "batch streams classes"]:
        """Logits of the next step.

        Args:
            classes: the classes of the step before.
            condition: `WaveNet.conditions` of the frame that the step belongs to.
        """
        network = self.network
        x = network.embed(classes)
        skips = x.new_zeros(())
        for number, (dilated, output) in enumerate(network.layers()):
            past, dilation = self.buffers[number], network.config.dilations[number]
            taps = [*(past[(self.steps + back) % len(past)] for back in range(0, len(past), dilation)), x]
            gates = F.linear(torch.cat(taps, -1), self.matrices[number], dilated.bias)
            past[self.steps % len(past)] = x
            if condition is not None:
                gates = gates + condition[:, number]
            residual, skip = network.split(F.linear(gate(gates, -1), output.weight[..., 0], output.bias), -1)
            x, skips = x + residual, skips + skip
        self.steps += 1
        return network.logits(skips[..., None])[..., 0]
