"""ConvNeXt blocks: where encoders and decoders at the frame rate do their work (Liu et al., 2022, "A ConvNet for the
2020s", in one dimension)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from audiovq.config import ConvNeXtConfig
from audiovq.nn.conv import CausalConv1d
from audiovq.nn.stream import Stream


class ConvNeXtBlock(nn.Module):
    """Causal depthwise convolution, layer norm over channels, and a two-layer perceptron, as one residual unit."""

    def __init__(self, dim: int, kernel_size: int, expansion: int, scale: float):
        super().__init__()
        self.depthwise = CausalConv1d(dim, dim, kernel_size, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.expand = nn.Linear(dim, expansion * dim)
        self.project = nn.Linear(expansion * dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), scale))

    def forward(
        self, x: Float[Tensor, "batch dim frames"], stream: Stream | None = None
    ) -> Float[Tensor, "batch dim frames"]:
        y = self.norm(self.depthwise(x, stream).mT)
        y = self.project(nn.functional.gelu(self.expand(y)))
        return x + (self.scale * y).mT


class ConvNeXtStack(nn.Module):
    """Base of the networks that work at the frame rate: an input convolution, blocks, and a norm before the output."""

    def __init__(self, config: ConvNeXtConfig, channels: int, kernel_size: int):
        super().__init__()
        self.input = CausalConv1d(channels, config.dim, kernel_size)
        self.input_norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(config.dim, config.kernel_size, config.expansion, scale=1 / config.layers)
            for _ in range(config.layers)
        )
        self.output_norm = nn.LayerNorm(config.dim, eps=1e-6)

    def features(
        self, x: Float[Tensor, "batch channels frames"], stream: Stream | None = None
    ) -> Float[Tensor, "batch frames dim"]:
        """What the output layers work on, channels last."""
        x = self.input_norm(self.input(x, stream).mT).mT
        for block in self.blocks:
            x = block(x, stream)
        return self.output_norm(x.mT)
