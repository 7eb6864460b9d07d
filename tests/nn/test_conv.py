"""Causal convolutions against sums and paddings written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audiovq.nn.conv import CausalConv1d, CausalConvTranspose1d, CausalSequential, ResidualUnit
from audiovq.nn.stream import Stream

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def test_a_convolution_is_the_sum_over_its_own_and_earlier_samples():
    layer = CausalConv1d(2, 3, kernel_size=4, dilation=3)
    x = torch.randn(1, 2, 20)
    y = layer(x)
    for t in range(20):
        expected = layer.bias.clone()
        for tap in range(4):
            source = t - (3 - tap) * 3
            if source >= 0:
                expected += layer.weight[:, :, tap] @ x[0, :, source]
        torch.testing.assert_close(y[0, :, t], expected, **TOLERANCE)


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
def test_a_strided_convolution_sees_its_own_stride_and_the_one_before(stride):
    layer = CausalConv1d(2, 3, kernel_size=2 * stride, stride=stride)
    x = torch.randn(1, 2, 6 * stride)
    y = layer(x)
    assert y.shape == (1, 3, 6)
    for t in range(6):
        seen = torch.zeros(2, 2 * stride)
        first = (t - 1) * stride
        seen[:, max(0, -first) :] = x[0, :, max(0, first) : first + 2 * stride]
        torch.testing.assert_close(y[0, :, t], (layer.weight * seen).sum((1, 2)) + layer.bias, **TOLERANCE)


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
def test_a_transposed_convolution_spreads_each_step_over_its_own_stride_and_the_next(stride):
    layer = CausalConvTranspose1d(2, 3, stride)
    x = torch.randn(1, 2, 6)
    expected = torch.zeros(3, 7 * stride)
    for t in range(6):
        expected[:, t * stride : (t + 2) * stride] += torch.einsum("ijk,i->jk", layer.conv.weight, x[0, :, t])
    expected = expected[:, : 6 * stride] + layer.conv.bias[:, None]
    torch.testing.assert_close(layer(x)[0], expected, **TOLERANCE)


def test_a_residual_unit_of_zero_weights_is_the_identity():
    unit = ResidualUnit(4, kernel_size=3, dilation=2)
    torch.nn.init.zeros_(unit.pointwise.weight)
    torch.nn.init.zeros_(unit.pointwise.bias)
    x = torch.randn(2, 4, 9)
    assert torch.equal(unit(x), x)


LAYERS = {
    "dilated": lambda: CausalConv1d(2, 2, 3, dilation=4),
    "pointwise": lambda: CausalConv1d(2, 2, 1),
    "strided": lambda: CausalConv1d(2, 2, 6, stride=3),
    "depthwise": lambda: CausalConv1d(2, 2, 7, groups=2),
    "transposed": lambda: CausalConvTranspose1d(2, 2, 3),
    "residual": lambda: ResidualUnit(2, 3, 5),
    "down and up": lambda: CausalSequential([CausalConv1d(2, 4, 6, stride=3), CausalConvTranspose1d(4, 2, 3)]),
}


@pytest.mark.parametrize("name", LAYERS)
@given(pieces=st.lists(st.integers(1, 6), min_size=1, max_size=6))
def test_pieces_through_a_stream_give_what_the_whole_gives(name, pieces):
    layer = LAYERS[name]()
    x = torch.randn(2, 2, 3 * sum(pieces))
    stream = Stream()
    streamed = torch.cat([layer(piece, stream) for piece in x.split([3 * n for n in pieces], dim=-1)], dim=-1)
    torch.testing.assert_close(streamed, layer(x), **TOLERANCE)


def test_a_stream_keeps_the_context_of_its_layers_and_no_more():
    layer, stream = CausalConv1d(2, 2, 3, dilation=4), Stream()
    layer(torch.randn(1, 2, 10_000), stream)
    (context,) = stream._contexts.values()
    assert context.untyped_storage().nbytes() == 2 * 8 * 4


def test_two_streams_do_not_mix():
    layer, a, b = CausalConv1d(1, 1, 3), torch.randn(1, 1, 8), torch.randn(1, 1, 8)
    streams = Stream(), Stream()
    interleaved = [layer(x[..., i : i + 4], s) for i in (0, 4) for x, s in zip((a, b), streams, strict=True)]
    torch.testing.assert_close(torch.cat(interleaved[0::2], -1), layer(a), **TOLERANCE)
    torch.testing.assert_close(torch.cat(interleaved[1::2], -1), layer(b), **TOLERANCE)
