"""ConvNeXt blocks: where encoders and decoders at the frame rate do their work (Liu et al., 2022, "A ConvNet for the
2020s", in one dimension)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from audiovq.config import ConvNeXtConfig
from audiovq.nn.conv import CausalConv1d
from audiovq.nn.linear import Derived, Linear, by_onednn, linear
from audiovq.nn.stream import Stream, extend_left


class DepthwiseConv1d(CausalConv1d):
    """Causal convolution of each channel by itself, channels last."""

    def __init__(self, channels: int, kernel_size: int):
        super().__init__(channels, channels, kernel_size, groups=channels)

    def forward(
        self, input: Float[Tensor, "batch frames channels"], stream: Stream | None = None
    ) -> Float[Tensor, "batch frames2 channels"]:
        x = extend_left(self, input, self.context, stream, dim=1)
        if torch.is_grad_enabled() or x.device.type != "cpu":
            return F.conv1d(x.mT, self.weight, self.bias, groups=self.groups).mT
        # Tap by tap, since PyTorch's way in double precision is channel by channel.
        frames, taps = x.shape[1] - self.context, self.weight[:, 0].mT.contiguous()
        assert self.bias is not None
        y = torch.addcmul(self.bias, x[:, :frames], taps[0])
        for lag, tap in enumerate(taps[1:], start=1):
            y.addcmul_(x[:, lag : lag + frames], tap)
        return y


class FrameConv1d(CausalConv1d):
    """Causal convolution of few frames and many channels, whose output has channels last."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__(in_channels, out_channels, kernel_size)
        self._packed = Derived()

    def forward(
        self, input: Float[Tensor, "batch channels frames"], stream: Stream | None = None
    ) -> Float[Tensor, "batch frames2 channels2"]:
        if not by_onednn(input, self.weight):
            return super().forward(input, stream).mT
        # PyTorch's convolution takes twice as long as this product.
        windows = extend_left(self, input, self.context, stream).unfold(-1, self.kernel_size[0], 1)
        assert self.bias is not None
        return linear(windows.transpose(1, 2).flatten(2), self.weight, self.bias, self._packed)


class ConvNeXtBlock(nn.Module):
    """Causal depthwise convolution, layer norm over channels, and a two-layer perceptron, as one residual unit."""

    def __init__(self, dim: int, kernel_size: int, expansion: int, scale: float):
        super().__init__()
        self.depthwise = DepthwiseConv1d(dim, kernel_size)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.expand = Linear(dim, expansion * dim)
        self.project = Linear(expansion * dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), scale))

    def forward(
        self, x: Float[Tensor, "batch frames dim"], stream: Stream | None = None
    ) -> Float[Tensor, "batch frames2 dim"]:
        y = self.norm(self.depthwise(x, stream))
        y = self.project(self.expand(y, gelu=True))
        return torch.addcmul(x[:, x.shape[1] - y.shape[1] :], self.scale, y)


class ConvNeXtStack(nn.Module):
    """Base of the networks that work at the frame rate: an input convolution, blocks, and a norm before the output."""

    def __init__(self, config: ConvNeXtConfig, channels: int, kernel_size: int):
        super().__init__()
        self.input = FrameConv1d(channels, config.dim, kernel_size)
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
        return self.trunk(self.input_norm(self.input(x, stream)), stream)

    def trunk(
        self, x: Float[Tensor, "batch frames dim"], stream: Stream | None = None
    ) -> Float[Tensor, "batch frames2 dim"]:
        """What the input norm gave, through blocks and norm."""
        for block in self.blocks:
            x = block(x, stream)
        return self.output_norm(x)
