"""Gumbel-Softmax bottleneck: relaxed and hard samples, temperature, divergence."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical

from audiovq.bottlenecks.categorical import uniform_kl
from audiovq.bottlenecks.gumbel import GumbelBottleneck
from audiovq.config import GumbelConfig

K = 4


def bottleneck_that_shows_weights(**settings):
    """Latents are the logits, and the decoder sees the weights y of the codes themselves."""
    bottleneck = GumbelBottleneck(K, GumbelConfig(codebook_size=K, **settings))
    with torch.no_grad():
        torch.nn.init.eye_(bottleneck.project_in.weight)
        torch.nn.init.zeros_(bottleneck.project_in.bias)
        torch.nn.init.eye_(bottleneck.codebook)
    bottleneck.normalize = torch.nn.Identity()
    return bottleneck.train()


def test_temperature_falls_exponentially_from_start_to_end():
    bottleneck = bottleneck_that_shows_weights(start_temperature=4.0, end_temperature=0.25, anneal_steps=100)
    expected = {0: 4.0, 25: 2.0, 50: 1.0, 75: 0.5, 100: 0.25, 101: 0.25, 10**6: 0.25}
    for step, temperature in expected.items():
        bottleneck.set_step(step)
        assert float(bottleneck.temperature()) == pytest.approx(temperature)


def test_hard_samples_are_one_hot():
    bottleneck = bottleneck_that_shows_weights(hard=True).train()
    output = bottleneck(torch.randn(5, K, 50))
    expected = torch.nn.functional.one_hot(output.codes[:, 0], K).mT.float()
    torch.testing.assert_close(output.latents, expected)


def test_soft_samples_are_weights_that_sharpen_as_the_temperature_falls():
    bottleneck = bottleneck_that_shows_weights(hard=False, start_temperature=5.0, end_temperature=0.01, anneal_steps=1)
    z, largest = torch.randn(5, K, 50), []
    for step in (0, 1):
        bottleneck.train().set_step(step)
        output = bottleneck(z)
        torch.testing.assert_close(output.latents.sum(1), torch.ones(5, 50))
        assert (output.latents >= 0).all()
        assert torch.equal(output.codes[:, 0], output.latents.argmax(1))
        largest.append(output.latents.amax(1))
    assert largest[0].mean() < 0.6
    assert largest[1].median() > 0.999


@pytest.mark.parametrize("temperature", [0.2, 3.0])
def test_codes_are_samples_of_the_posterior_at_any_temperature(temperature):
    draws = 100_000
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    bottleneck = bottleneck_that_shows_weights(start_temperature=temperature, end_temperature=temperature).train()
    codes = bottleneck(logits[None, :, None].expand(1, K, draws)).codes
    p = logits.softmax(0)
    error = (p * (1 - p) / draws).sqrt()
    assert ((codes.flatten().bincount(minlength=K) / draws - p).abs() < 3 * error).all()


def test_straight_through_has_the_gradient_of_the_relaxed_sample():
    """For a linear cost, whose slope does not depend on where it is taken."""
    z, slope, gradients = torch.randn(5, K, 50), torch.randn(5, K, 50), []
    for hard in (True, False):
        torch.manual_seed(3)
        leaf = z.clone().requires_grad_()
        (bottleneck_that_shows_weights(hard=hard).train()(leaf).latents * slope).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
    assert gradients[0].abs().sum() > 0


def test_evaluation_takes_the_most_likely_code():
    bottleneck = bottleneck_that_shows_weights(hard=False).eval()
    z = torch.randn(5, K, 50)
    output = bottleneck(z)
    assert torch.equal(output.codes[:, 0], z.argmax(1))
    assert torch.equal(output.latents.argmax(1), z.argmax(1))
    assert output.latents.unique().tolist() == [0.0, 1.0]


def test_encode_is_the_same_in_training_mode():
    """By the moving averages of batch normalisation, not by the batch at hand."""
    bottleneck = GumbelBottleneck(K, GumbelConfig(codebook_size=K)).train()
    z = torch.randn(5, K, 50) + 3
    bottleneck(z)
    alone = [bottleneck.encode(item[None])[0][0] for item in z]
    assert torch.equal(torch.stack(alone), bottleneck.eval().encode(z)[0])


def test_kl_is_log_k_less_the_entropy():
    logits = torch.randn(5, 7, K, dtype=torch.float64) * 3
    expected = math.log(K) - Categorical(logits=logits).entropy()
    torch.testing.assert_close(uniform_kl(logits.log_softmax(-1)), expected)


def test_kl_is_the_mean_log_ratio_of_posterior_to_prior():
    log_q = torch.tensor([0.0, 1.0, -1.0, 2.0]).log_softmax(0)
    ratio = log_q[Categorical(logits=log_q).sample((100_000,))] + math.log(K)
    assert abs(uniform_kl(log_q) - ratio.mean()) < 3 * ratio.std() / math.sqrt(100_000)


def test_kl_of_certain_and_of_uniform_posteriors_has_a_finite_gradient():
    logits = torch.tensor([[0.0, 500.0, -500.0, 0.0], [0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    kl = uniform_kl(logits.log_softmax(-1))
    torch.testing.assert_close(kl, torch.tensor([math.log(K), 0.0]))
    kl.sum().backward()
    assert logits.grad.isfinite().all()


def test_loss_is_the_weighted_kl_per_frame():
    bottleneck = bottleneck_that_shows_weights(kl_weight=0.5, kl_warmup_steps=10)
    bottleneck.set_step(4)
    z = torch.randn(5, K, 50)
    kl = (math.log(K) - Categorical(logits=z.mT).entropy()).mean()
    for output in (bottleneck.train()(z), bottleneck.eval()(z)):
        torch.testing.assert_close(output.metrics["kl"], kl)
        torch.testing.assert_close(output.loss, 0.25 * kl)


def test_free_nats_are_for_the_whole_frame_on_average():
    z = torch.tensor([3.0, 0.0, 0.0, 0.0]).view(1, K, 1).expand(2, K, 5)
    kl = float((math.log(K) - Categorical(logits=z.mT).entropy()).mean())
    for free, expected, learns in ((0.5 * kl, kl, True), (2 * kl, 2 * kl, False)):
        latents = z.clone().requires_grad_()
        output = bottleneck_that_shows_weights(kl_weight=1.0, free_nats=free)(latents)
        assert output.loss.item() == pytest.approx(expected)
        assert output.metrics["kl"] == pytest.approx(kl)
        assert torch.autograd.grad(output.loss, latents)[0].any() == learns


def test_perplexity_follows_the_codes_of_many_batches():
    """Two codes alone are used: from all codes at the start down to 2."""
    bottleneck = bottleneck_that_shows_weights().train()
    z = torch.full((1, K, 200), -1e4)
    z[:, :2] = 0
    found = [float(bottleneck(z).metrics["perplexity"]) for _ in range(600)]
    assert found[0] > 3.9
    assert found[-1] == pytest.approx(2, abs=0.05)
