"""REINFORCE bottleneck: samples, their log probability, baselines and what the surrogate loss reaches."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical

from audiovq.bottlenecks.reinforce import ReinforceBottleneck, draw_codes
from audiovq.config import ReinforceConfig, parse_config
from audiovq.errors import ConfigError

K, DIM, BATCH, FRAMES = 5, 3, 2, 4


def make(**settings):
    return ReinforceBottleneck(DIM, ReinforceConfig(codebook_size=K, **settings)).train()


def test_codes_are_samples_of_the_posterior():
    draws = 100_000
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, -30.0])
    found = draw_codes(logits.log_softmax(0).expand(draws, K)).bincount(minlength=K) / draws
    p = logits.softmax(0)
    assert ((found - p).abs() <= 3 * (p * (1 - p) / draws).sqrt()).all()


def test_samples_of_an_item_differ_and_come_sample_after_sample():
    bottleneck, z = make(samples=50), torch.randn(BATCH, DIM, FRAMES) * 10
    output = bottleneck(z)
    posterior = Categorical(logits=bottleneck.log_posterior(z))
    codes = output.codes.view(50, BATCH, FRAMES)
    assert len(codes.unique(dim=0)) > 1
    torch.testing.assert_close(output.log_prob.view(50, BATCH, FRAMES), posterior.log_prob(codes))
    assert torch.equal(output.latents, bottleneck.decode(output.codes))


def test_no_gradient_passes_the_sample():
    z = torch.randn(BATCH, DIM, FRAMES, requires_grad=True)
    output = make()(z)
    assert torch.autograd.grad(output.latents.sum(), z, allow_unused=True) == (None,)


def test_surrogate_lowers_the_probability_of_a_costly_sample():
    bottleneck = make(baseline="none", samples=1)
    output = bottleneck(torch.randn(BATCH, DIM, FRAMES))
    surrogate = bottleneck.surrogate_loss(output, torch.tensor([2.0, 0.0]))
    (gradient,) = torch.autograd.grad(surrogate, output.log_prob)
    # Minimising goes against the gradient: 2 / BATCH for each frame of the first item, nothing for the second.
    torch.testing.assert_close(gradient, torch.tensor([[1.0] * FRAMES, [0.0] * FRAMES]))


def advantages(bottleneck, costs):
    """What the surrogate multiplies the log probability of each item with."""
    output = bottleneck(torch.randn(len(costs) // bottleneck.config.samples, DIM, FRAMES))
    (gradient,) = torch.autograd.grad(bottleneck.surrogate_loss(output, costs), output.log_prob)
    return gradient[:, 0] * len(costs)


def test_leave_one_out_compares_a_sample_with_the_others_of_its_item():
    costs = torch.tensor([[1.0, 10.0], [4.0, 20.0], [7.0, 60.0]])  # three samples of two items
    expected = [[1 - (4 + 7) / 2, 10 - (20 + 60) / 2], [4 - (1 + 7) / 2, 20 - (10 + 60) / 2], [7 - 2.5, 60 - 15.0]]
    found = advantages(make(samples=3), costs.flatten())
    torch.testing.assert_close(found, torch.tensor(expected).flatten())


def test_moving_average_is_of_the_steps_before():
    bottleneck = make(baseline="moving_average", samples=2, baseline_decay=0.9)
    seen, weights = 0.0, 0.0
    for step in range(5):
        costs = torch.rand(2 * BATCH) + step
        expected = costs - (seen / weights if weights else 0.0)
        torch.testing.assert_close(advantages(bottleneck, costs), expected, rtol=1e-4, atol=1e-5)
        seen, weights = 0.9 * seen + 0.1 * float(costs.mean()), 0.9 * weights + 0.1


def test_moving_average_stays_in_evaluation():
    bottleneck = make(baseline="moving_average", samples=1)
    advantages(bottleneck, torch.ones(2))
    before = bottleneck.cost_sum.clone()
    bottleneck.eval()
    bottleneck.surrogate_loss(bottleneck(torch.randn(BATCH, DIM, FRAMES)), torch.ones(BATCH))
    assert torch.equal(bottleneck.cost_sum, before)
    assert before > 0


def test_surrogate_does_not_reach_the_codebook():
    bottleneck = make()
    output = bottleneck(torch.randn(BATCH, DIM, FRAMES))
    cost = output.latents.square().mean((1, 2))
    surrogate = bottleneck.surrogate_loss(output, cost)
    assert torch.autograd.grad(surrogate, bottleneck.codebook, allow_unused=True) == (None,)


def test_leave_one_out_needs_two_samples():
    with pytest.raises(ConfigError, match="baseline leave_one_out needs samples of at least 2, found 1"):
        parse_config({"samples": 1}, ReinforceConfig, "conf.yaml")
    assert ReinforceConfig(baseline="none", samples=1).samples == 1


def test_posterior_that_is_not_a_number_gives_codes_all_the_same():
    """So that training ends with its own message about the loss."""
    codes = make()(torch.full((BATCH, DIM, FRAMES), torch.nan)).codes
    assert codes.min() >= 0
    assert codes.max() < K
