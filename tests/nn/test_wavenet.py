"""The network as a whole, and one step at a time."""

from __future__ import annotations

import pytest
import torch

from audiovq.config import WaveNetConfig
from audiovq.nn.wavenet import WaveNet
from audiovq.sampling.cached import CachedWaveNet

STREAMS, CLASSES, HOLD, SPEAKER, LOCAL = 2, 7, 3, 4, 5


def build(**options) -> WaveNet:
    torch.manual_seed(0)
    config = WaveNetConfig(**{"layers": 5, "cycle": 3, "residual_channels": 6, "skip_channels": 9, **options})
    return WaveNet(config, STREAMS, CLASSES, LOCAL, SPEAKER).eval()


def inputs(batch: int, frames: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    classes = torch.randint(CLASSES, (batch, STREAMS, frames * HOLD), generator=generator)
    local = torch.randn(batch, LOCAL, frames, generator=generator)
    return classes, local, torch.randn(batch, SPEAKER, generator=generator)


@pytest.mark.parametrize("kernel_size", [2, 3])
def test_a_prediction_depends_on_all_of_its_receptive_field_and_on_nothing_else(kernel_size):
    network = build(kernel_size=kernel_size)
    field = network.receptive_field
    assert field == 1 + (kernel_size - 1) * (1 + 2 + 4 + 1 + 2)
    classes, local, speaker = inputs(1, -(-(field + 10) // HOLD))
    before = network(classes, local, speaker)
    for position in range(classes.shape[-1]):
        changed = classes.clone()
        changed[..., position] = (changed[..., position] + 1) % CLASSES
        differs = (network(changed, local, speaker) != before).any(2).any(1)[0]
        expected = torch.zeros_like(differs)
        expected[position + 1 : position + 1 + field] = True
        assert torch.equal(differs, expected), position


def test_a_frame_of_the_local_condition_acts_from_its_first_step_on():
    network = build()
    classes, local, speaker = inputs(1, 8)
    changed = local.clone()
    changed[..., 4] += 1
    differs = (network(classes, changed, speaker) != network(classes, local, speaker)).any(2).any(1)[0]
    assert not differs[: 4 * HOLD].any()
    assert differs[4 * HOLD : 5 * HOLD].all()


def test_the_speaker_acts_everywhere():
    network = build()
    classes, local, speaker = inputs(1, 4)
    assert (network(classes, local, speaker + 1) != network(classes, local, speaker)).any(2).all()


@pytest.mark.parametrize("kernel_size", [2, 3])
def test_step_by_step_gives_the_logits_of_the_whole(kernel_size):
    network = build(kernel_size=kernel_size)
    classes, local, speaker = inputs(3, 20)
    whole = network(classes, local, speaker)
    cached = CachedWaveNet(network, batch_size=3)
    conditions = network.conditions(local, speaker)
    previous = cached.start()
    for t in range(classes.shape[-1]):
        logits = cached.step(previous, conditions[..., t // HOLD])
        torch.testing.assert_close(logits, whole[..., t], atol=1e-5, rtol=0)
        previous = classes[..., t]


def test_step_by_step_without_conditions():
    torch.manual_seed(0)
    network = WaveNet(WaveNetConfig(layers=3, cycle=2, residual_channels=4, skip_channels=4), 1, CLASSES).eval()
    classes = inputs(2, 4)[0][:, :1]
    cached, previous = CachedWaveNet(network, 2), None
    for t, expected in enumerate(network(classes).unbind(-1)):
        logits = cached.step(cached.start() if previous is None else previous)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
        previous = classes[..., t]


def test_every_weight_gets_a_gradient():
    network = build().train()
    classes, local, speaker = inputs(2, 10)
    loss = torch.nn.functional.cross_entropy(network(classes, local, speaker).transpose(1, 2), classes)
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
