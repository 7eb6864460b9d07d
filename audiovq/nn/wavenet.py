"""WaveNet: a causal dilated stack that predicts the next class of a sequence (van den Oord et al., 2016).

It stands in two places: as the prior, over codes at the frame rate, and as a waveform decoder, over mu-law samples.
Layer l sees its input x at steps t and t - d_l, its condition c, and writes to the residual and the skip path:

    z = tanh(W_f * x + V_f c) . sigmoid(W_g * x + V_g c)        x <- x + R z,        skip <- skip + S z
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from audiovq.config import WaveNetConfig
from audiovq.nn.conv import CausalConv1d


class WaveNet(nn.Module):
    """p(x_t | x_1 ... x_{t-1}, condition) for sequences of classes, several streams side by side.

    Args:
        streams: classes Q at each step; their embeddings are added, and each stream has its own softmax, so that the
            classes of one step are independent of each other given the past.
        classes: classes K of each stream. Class K, which is never predicted, stands for what came before the start,
            and wherever else a stream is silent.
        local_dim: channels of a condition with a time axis, at the rate of the sequence or a lower one; 0: none.
        global_dim: channels of a condition that holds for a whole sequence, say a speaker; 0: none.
        sizes: classes of each stream, of which the largest has K. A class that its stream does not have is never
            predicted: its logit is -inf. None: all streams have K.
    """

    missing: Tensor | None
    offsets: Tensor

    def __init__(
        self,
        config: WaveNetConfig,
        streams: int,
        classes: int,
        local_dim: int = 0,
        global_dim: int = 0,
        sizes: Sequence[int] | None = None,
    ):
        super().__init__()
        self.config, self.streams, self.classes = config, streams, classes
        residual, skip = config.residual_channels, config.skip_channels
        self.embedding = nn.Embedding(streams * (classes + 1), residual)
        nn.init.normal_(self.embedding.weight, std=1 / math.sqrt(streams))
        self.dilated = nn.ModuleList(
            CausalConv1d(residual, 2 * residual, config.kernel_size, dilation=dilation) for dilation in config.dilations
        )
        self.local = nn.Conv1d(local_dim, config.layers * 2 * residual, 1, bias=False) if local_dim else None
        self.globals = nn.Linear(global_dim, config.layers * 2 * residual, bias=False) if global_dim else None
        self.output = nn.ModuleList(CausalConv1d(residual, residual + skip, 1) for _ in config.dilations)
        self.head = nn.ModuleList([CausalConv1d(skip, skip, 1), CausalConv1d(skip, streams * classes, 1)])
        self.register_buffer("offsets", torch.arange(streams) * (classes + 1), persistent=False)
        missing = None
        if sizes is not None and min(sizes) < classes:
            missing = torch.arange(classes) >= torch.tensor(sizes)[:, None]
        self.register_buffer("missing", missing, persistent=False)
        self.dropout = nn.Dropout(config.dropout)

    @property
    def receptive_field(self) -> int:
        """Steps of the past that a prediction depends on."""
        return self.config.receptive_field

    def forward(
        self,
        classes: Int[Tensor, "batch streams time"],
        local: Float[Tensor, "batch local_dim frames"] | None = None,
        speaker: Float[Tensor, "batch global_dim"] | None = None,
    ) -> Float[Tensor, "batch streams classes time"]:
        """Logits of each step, from the steps before it: teacher forcing.

        Args:
            local: condition of time / frames steps in turn.
        """
        return self.predict(F.pad(classes, (1, 0), value=self.classes)[..., :-1], local, speaker)

    def predict(
        self,
        past: Int[Tensor, "batch streams time"],
        local: Float[Tensor, "batch local_dim frames"] | None = None,
        speaker: Float[Tensor, "batch global_dim"] | None = None,
    ) -> Float[Tensor, "batch streams classes time"]:
        """Logits of the step after each of the given ones; what was before them, the network does not know."""
        x = self.embed(past).mT
        conditions = self.conditions(local, speaker)
        hold = past.shape[-1] // local.shape[-1] if local is not None else 1
        skips = x.new_zeros(())
        for number, (dilated, output) in enumerate(zip(self.dilated, self.output, strict=True)):
            gates = dilated(self.dropout(x))
            if conditions is not None:
                condition = conditions[:, number]
                gates = gates + (condition.repeat_interleave(hold, -1) if hold > 1 else condition)
            residual, skip = self.split(output(gate(gates, 1)), 1)
            x, skips = x + residual, skips + skip
        return self.logits(skips)

    def embed(self, classes: Int[Tensor, "batch streams *time"]) -> Float[Tensor, "batch *time channels"]:
        """Sum over the streams of their classes' embeddings."""
        offsets = self.offsets.view(-1, *[1] * (classes.ndim - 2))
        return self.embedding(classes + offsets).sum(1)

    def conditions(
        self, local: Float[Tensor, "batch local_dim frames"] | None, speaker: Float[Tensor, "batch global_dim"] | None
    ) -> Float[Tensor, "batch layers gates frames"] | None:
        """What the conditions add to the gates of each layer; a frame's holds for all its steps.

        The projections have a kernel of one step, so that they need not be computed at the rate of the sequence.
        """
        total = self.local(local) if self.local is not None else None
        if self.globals is not None:
            constant = self.globals(speaker)[..., None]
            total = constant if total is None else total + constant
        return None if total is None else total.unflatten(1, (self.config.layers, -1))

    def layers(self) -> Iterator[tuple[nn.Conv1d, nn.Conv1d]]:
        """The dilated and the output convolution of each layer."""
        for dilated, output in zip(self.dilated, self.output, strict=True):
            assert isinstance(dilated, nn.Conv1d)
            assert isinstance(output, nn.Conv1d)
            yield dilated, output

    def split(self, x: Tensor, dim: int) -> tuple[Tensor, ...]:
        """Residual and skip part of a layer's output."""
        return x.split([self.config.residual_channels, self.config.skip_channels], dim)

    def logits(self, skips: Float[Tensor, "batch skip time"]) -> Float[Tensor, "batch streams classes time"]:
        hidden, last = self.head
        x = last(F.relu(hidden(F.relu(skips)))).unflatten(1, (self.streams, self.classes))
        return x if self.missing is None else x.masked_fill(self.missing[..., None], -math.inf)


def gate(x: Tensor, dim: int) -> Tensor:
    """tanh of the first half times sigmoid of the second half along `dim`."""
    signal, opening = x.chunk(2, dim)
    return signal.tanh() * opening.sigmoid()
