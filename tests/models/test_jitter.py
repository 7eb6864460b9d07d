from __future__ import annotations

import pytest
import torch

from audiovq.models.wavenet_decoder import jitter


def steps(latents: torch.Tensor, probability: float) -> torch.Tensor:
    """How far each latent of [B, D, F], numbered by its frame, has come from: [B, F]."""
    jittered = jitter(latents, probability)
    assert torch.equal(jittered.amin(1), jittered.amax(1))  # A latent moves as a whole.
    return jittered[:, 0] - latents[:, 0]


@pytest.mark.parametrize("probability", [0.05, 0.3, 0.5])
def test_each_neighbour_stands_in_with_the_probability_asked_for(probability):
    frames = 1000
    moved = steps(torch.arange(float(frames)).expand(20, 3, frames).contiguous(), probability)
    assert moved.abs().max() == 1
    inner = moved[:, 1:-1]
    deviation = (probability * (1 - probability) / inner.numel()) ** 0.5
    for side in (-1, 1):
        assert float((inner == side).float().mean()) == pytest.approx(probability, abs=4 * deviation)
    assert not torch.equal(moved[0], moved[1])


def test_at_both_ends_a_latent_without_a_neighbour_stays():
    moved = steps(torch.arange(4.0).expand(2000, 1, 4).contiguous(), 0.4)
    assert set(moved[:, 0].tolist()) == {0, 1}
    assert set(moved[:, -1].tolist()) == {-1, 0}
    assert jitter(torch.ones(1, 2, 1), 0.5).shape == (1, 2, 1)


def test_with_probability_0_nothing_moves():
    latents = torch.randn(2, 3, 50)
    assert torch.equal(jitter(latents, 0.0), latents)


def test_the_generator_of_pytorch_decides():
    latents = torch.randn(2, 3, 50)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(jitter(latents, 0.3))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_the_gradient_goes_to_the_latent_that_was_used():
    latents = torch.arange(30.0)[None, None].requires_grad_()
    jittered = jitter(latents, 0.3)
    jittered.sum().backward()
    used = torch.bincount(jittered.detach().long().flatten(), minlength=30)
    assert torch.equal(latents.grad.flatten().long(), used)
