"""Causal convolutions, and the strided encoder and decoder that are made of them.

Every layer pads on the left only, so that no output depends on later input. Activations are leaky ReLU, as in
HiFi-GAN (Kong et al., 2020): at the sample rate an exponential would cost more than the convolutions around it. Biases
start at zero: speech has an amplitude of a few hundredths, which PyTorch's usual biases would drown, and an encoder
that hardly hears its input teaches the codebook nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from audiovq.config import AutoencoderConfig, ConvEncoderConfig, TransposedDecoderConfig
from audiovq.nn.decoder import Decoder
from audiovq.nn.encoder import Encoder
from audiovq.nn.stream import Stream, extend_left


class CausalConv1d(nn.Conv1d):
    """Convolution whose output at step t sees input steps up to (t + 1) * stride - 1.

    Shape:
        input [B, C, T], T a multiple of the stride; output [B, C', T / stride].
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, dilation: int = 1, groups: int = 1
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride, dilation=dilation, groups=groups)
        zero_bias(self)
        self.context = (kernel_size - 1) * dilation + 1 - stride

    def forward(
        self, input: Float[Tensor, "batch channels time"], stream: Stream | None = None
    ) -> Float[Tensor, "batch channels2 time2"]:
        x = extend_left(self, input, self.context, stream)
        # Of an excerpt the first window begins where those of the signal do, which end with their step.
        return super().forward(x[..., (x.shape[-1] - self.context) % self.stride[0] :])


class CausalConvTranspose1d(nn.Module):
    """Upsampling by `stride` with a kernel of two strides: each output sees its own input step and the one before.

    Shape:
        input [B, C, T]; output [B, C', T * stride].
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride = stride
        self.conv = nn.ConvTranspose1d(in_channels, out_channels, kernel_size=2 * stride, stride=stride)
        zero_bias(self.conv)

    def forward(
        self, x: Float[Tensor, "batch channels time"], stream: Stream | None = None
    ) -> Float[Tensor, "batch channels2 time2"]:
        return self.conv(extend_left(self, x, 1, stream))[..., self.stride : -self.stride]


class ResidualUnit(nn.Module):
    """x + conv1x1(act(dilated_conv(act(x)))), with half the channels in between."""

    def __init__(self, channels: int, kernel_size: int, dilation: int):
        super().__init__()
        hidden = max(1, channels // 2)
        self.dilated = CausalConv1d(channels, hidden, kernel_size, dilation=dilation)
        self.pointwise = CausalConv1d(hidden, channels, 1)

    def forward(
        self, x: Float[Tensor, "batch channels time"], stream: Stream | None = None
    ) -> Float[Tensor, "batch channels time2"]:
        y = self.dilated(activate(x), stream)
        y = self.pointwise(activate(y))
        return x[..., x.shape[-1] - y.shape[-1] :] + y


class Activation(nn.Module):
    """The activation as a layer of a `CausalSequential`."""

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        return activate(x)


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.1."""
    return nn.functional.leaky_relu(x, 0.1)


def zero_bias(layer: nn.Conv1d | nn.ConvTranspose1d) -> None:
    """Start the bias of a convolution at zero."""
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


class CausalSequential(nn.ModuleList):
    """Causal layers in a row."""

    def forward(
        self, x: Float[Tensor, "batch channels time"], stream: Stream | None = None
    ) -> Float[Tensor, "batch channels2 time2"]:
        for layer in self:
            x = layer(x, stream)
        return x


def residual_units(channels: int, kernel_size: int, dilations: Sequence[int]) -> list[nn.Module]:
    """One residual unit a dilation."""
    return [ResidualUnit(channels, kernel_size, dilation) for dilation in dilations]


class ConvEncoder(CausalSequential, Encoder):  # pyright: ignore
    """Waveform to latents; frame t depends on no sample from (t + 1) * hop_length on.

    Shape:
        input [B, 1, F * hop_length]; output [B, D, F].
    """

    @classmethod
    def of(cls, config: AutoencoderConfig) -> ConvEncoder:
        assert isinstance(config.encoder, ConvEncoderConfig)
        return cls(config.encoder, config.latent_dim)

    def __init__(self, config: ConvEncoderConfig, latent_dim: int):
        channels, kernel = config.channels, config.kernel_size
        layers: list[nn.Module] = [CausalConv1d(1, channels[0], config.input_kernel_size)]
        for i, stride in enumerate(config.strides):
            layers += residual_units(channels[i], kernel, config.dilations[i])
            layers += [Activation(), CausalConv1d(channels[i], channels[i + 1], 2 * stride, stride)]
        layers += residual_units(channels[-1], kernel, config.dilations[-1])
        layers += [Activation(), CausalConv1d(channels[-1], latent_dim, 1)]
        super().__init__(layers)
        self.hop_length = math.prod(config.strides)

    @property
    def receptive_field(self) -> int:
        field = step = 1
        for layer in self.modules():
            if isinstance(layer, CausalConv1d):
                field += (layer.kernel_size[0] - 1) * layer.dilation[0] * step
                step *= layer.stride[0]
        return field

    @property
    def reach(self) -> int:
        return -(-self.receptive_field // self.hop_length)

    def front(
        self, wave: Float[Tensor, "batch 1 time"], stream: Stream | None = None
    ) -> Float[Tensor, "batch frames features"]:
        return rearrange(wave, "b 1 (f h) -> b f h", h=self.hop_length)

    def rest(
        self, features: Float[Tensor, "batch frames features"], stream: Stream | None = None
    ) -> Float[Tensor, "batch dim frames2"]:
        return self(rearrange(features, "b f h -> b 1 (f h)"), stream)


class TransposedDecoder(CausalSequential, Decoder):  # pyright: ignore[reportIncompatibleVariableOverride]
    """Latents to waveform by transposed convolutions, the mirror image of the encoder.

    Shape:
        input [B, D, F]; output [B, 1, F * hop_length].
    """

    @classmethod
    def of(cls, config: AutoencoderConfig) -> TransposedDecoder:
        assert isinstance(config.decoder, TransposedDecoderConfig)
        assert isinstance(config.encoder, ConvEncoderConfig)
        return cls(config.decoder, config.latent_dim, config.encoder.strides)

    def __init__(self, config: TransposedDecoderConfig, latent_dim: int, strides: Sequence[int]):
        channels, kernel = config.channels, config.kernel_size
        layers: list[nn.Module] = [CausalConv1d(latent_dim, channels[0], 7)]
        for i, stride in enumerate(reversed(strides)):
            layers += residual_units(channels[i], kernel, config.dilations[i])
            layers += [Activation(), CausalConvTranspose1d(channels[i], channels[i + 1], stride)]
        layers += residual_units(channels[-1], kernel, config.dilations[-1])
        layers += [Activation(), CausalConv1d(channels[-1], 1, 7)]
        super().__init__(layers)
