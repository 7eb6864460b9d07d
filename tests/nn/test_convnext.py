"""Layers of channels last against PyTorch's convolutions, in training and in inference."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from audiovq.nn.convnext import DepthwiseConv1d, FrameConv1d
from audiovq.nn.stream import Stream


def by_conv1d(layer, x):
    """What PyTorch makes of channels first behind zeros."""
    return F.conv1d(F.pad(x, (layer.context, 0)), layer.weight, layer.bias, groups=layer.groups).mT


@pytest.mark.parametrize(("batch", "frames", "kernel"), [(1, 1, 7), (1, 40, 7), (3, 40, 1), (2, 5, 3)])
def test_a_convolution_of_frames_is_pytorchs_in_training_and_inference(batch, frames, kernel):
    layer, x = FrameConv1d(6, 10, kernel), torch.randn(batch, 6, frames)
    layer.bias.data.normal_()
    torch.testing.assert_close(layer(x), by_conv1d(layer, x))
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), by_conv1d(layer, x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(layer.double()(x.double()), by_conv1d(layer, x.double()))


@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_a_depthwise_convolution_is_pytorchs_in_training_and_inference(kernel):
    layer, x = DepthwiseConv1d(6, kernel), torch.randn(2, 20, 6)
    layer.bias.data.normal_()
    torch.testing.assert_close(layer(x), by_conv1d(layer, x.mT))
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), by_conv1d(layer, x.mT), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("kind", "dim"), [(FrameConv1d, -1), (DepthwiseConv1d, 1)])
def test_pieces_give_what_the_whole_gives(kind, dim):
    layer = FrameConv1d(6, 10, 7) if kind is FrameConv1d else DepthwiseConv1d(6, 7)
    x, stream = torch.randn(2, 6, 30) if kind is FrameConv1d else torch.randn(2, 30, 6), Stream()
    with torch.inference_mode():
        pieces = [layer(piece, stream) for piece in x.split([1, 9, 2, 18], dim)]
        torch.testing.assert_close(torch.cat(pieces, 1), layer(x), atol=1e-6, rtol=1e-5)


def test_weights_that_training_changed_are_seen_in_inference():
    layer, x = FrameConv1d(6, 10, 7), torch.randn(1, 6, 8)
    with torch.inference_mode():
        layer(x)
    with torch.no_grad():
        layer.weight.mul_(2)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), by_conv1d(layer, x), atol=1e-5, rtol=1e-5)
