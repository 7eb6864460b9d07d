"""ConvNeXt blocks: where encoders and decoders at the frame rate do their work."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from audiovq.nn.conv import CausalConv1d
from audiovq.nn.stream import Stream


class ConvNeXtBlock(nn.Module):
    """Causal depthwise convolution, layer norm over channels, and a two-layer perceptron, as one residual unit.

    The 1-D form of Liu et al. (2022), "A ConvNet for the 2020s".
    """

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
