"""Products with weights that stay: those of PyTorch, and of the weights as they are."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from audiovq.nn import linear as linear_module
from audiovq.nn.linear import Derived, Linear

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture
def layer():
    return Linear(24, 40)


@pytest.mark.parametrize("gelu", [True, False])
@pytest.mark.parametrize("shape", [(24,), (0, 24), (1, 24), (3, 17, 24), (1, 250, 24)])
def test_inference_gives_what_training_gives(layer, shape, gelu):
    x = torch.randn(shape)
    expected = layer(x, gelu)
    assert expected.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(layer(x, gelu), expected.detach(), **CLOSE)
        torch.testing.assert_close(layer(x.expand(2, *shape).mT.contiguous().mT[0], gelu), expected.detach(), **CLOSE)


def test_weights_that_change_are_seen(layer):
    x = torch.randn(5, 24)
    changes = [
        lambda: layer.weight.mul_(2),
        lambda: setattr(layer, "weight", nn.Parameter(torch.randn(40, 24))),
        lambda: layer.load_state_dict({"weight": torch.randn(40, 24), "bias": torch.randn(40)}),
        lambda: layer.double().float(),
    ]
    with torch.no_grad():
        for change in changes:
            layer(x)
            change()
            torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), **CLOSE)


def test_a_layer_is_copied_and_saved_without_what_is_derived(layer):
    x = torch.randn(5, 24)
    with torch.inference_mode():
        expected = layer(x)
        assert torch.equal(copy.deepcopy(layer)(x), expected)
    assert len(pickle.dumps(layer)) < 1.5 * len(pickle.dumps(nn.Linear(24, 40)))
    assert set(layer.state_dict()) == {"weight", "bias"}


def test_double_precision_and_autocast_keep_their_own(layer):
    x = torch.randn(5, 24)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        assert layer.double()(x.double()).dtype == torch.float64


@pytest.mark.skipif(not linear_module.X86, reason="elsewhere PyTorch's own products are taken")
def test_weights_are_laid_out_once(layer, monkeypatch):
    packed = []
    pack = linear_module._pack
    monkeypatch.setattr(linear_module, "_pack", lambda weight: packed.append(weight) or pack(weight))
    with torch.inference_mode():
        for _ in range(3):
            layer(torch.randn(5, 24))
    assert len(packed) == 1


def test_derived_values_follow_all_their_tensors():
    derived, a, b = Derived(), torch.zeros(2), torch.zeros(2)
    assert derived.of(torch.add, a, b).tolist() == [0, 0]
    b.add_(1)
    assert derived.of(torch.add, a, b).tolist() == [1, 1]
    assert derived.of(torch.add, a, b) is derived.of(torch.add, a, b)
