"""Gaussian bottleneck: divergence, samples, weights and what it lacks, codes."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from audiovq.bottlenecks.base import bits_per_second
from audiovq.bottlenecks.gaussian import GaussianBottleneck, gaussian_kl
from audiovq.config import GaussianConfig
from audiovq.errors import TokenError
from audiovq.models.autoencoder import Autoencoder
from audiovq.models.tokenizer import AudioTokenizer

DRAWS = 100_000


def bottleneck_with_posterior(mean, variance, **settings):
    """A bottleneck of one latent channel whose posterior is the same whatever the latents."""
    bottleneck = GaussianBottleneck(len(mean), GaussianConfig(code_dim=None, **settings))
    torch.nn.init.zeros_(bottleneck.project_in.weight)
    with torch.no_grad():
        bottleneck.project_in.bias.copy_(torch.tensor([*mean, *(math.log(v) for v in variance)]))
    return bottleneck


def test_kl_is_that_of_torch_distributions():
    mean, log_variance = torch.randn(2, 5, 7, dtype=torch.float64)
    posterior = Normal(mean, (0.5 * log_variance).exp())
    expected = kl_divergence(posterior, Normal(torch.zeros(5, 7).double(), torch.ones(5, 7).double()))
    torch.testing.assert_close(gaussian_kl(mean, log_variance), expected)


@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1.0), (1.5, 0.2), (-0.3, 4.0)])
def test_kl_is_the_mean_log_ratio_of_posterior_to_prior(mean, variance):
    posterior = Normal(mean, math.sqrt(variance))
    x = posterior.sample((DRAWS,))
    ratio = posterior.log_prob(x) - Normal(0.0, 1.0).log_prob(x)
    found = gaussian_kl(torch.tensor(mean), torch.tensor(variance).log())
    assert abs(found - ratio.mean()) <= 3 * ratio.std() / math.sqrt(DRAWS) + 1e-6


def test_loss_sums_dimensions_and_averages_frames():
    bottleneck = bottleneck_with_posterior([1.0, -2.0], [1.0, 1.0], kl_weight=0.5)
    output = bottleneck(torch.randn(3, 2, 10))
    assert output.metrics["kl"] == pytest.approx((1 + 4) / 2)
    assert output.loss.item() == pytest.approx(0.5 * (1 + 4) / 2)


def test_free_nats_are_for_each_dimension():
    """Dimensions of 0.5 and 2 nats: below and above what is free."""
    bottleneck = bottleneck_with_posterior([1.0, -2.0], [1.0, 1.0], kl_weight=1.0, free_nats=0.75)
    output = bottleneck(torch.randn(3, 2, 10))
    assert output.loss.item() == pytest.approx(0.75 + 2.0)
    assert output.metrics["kl"] == pytest.approx(2.5)
    output.loss.backward()
    gradient = bottleneck.project_in.bias.grad
    torch.testing.assert_close(gradient, torch.tensor([0.0, -2.0, 0.0, 0.0]))


@pytest.mark.parametrize(
    ("warmup_steps", "weights"),
    [(0, {0: 0.2, 100: 0.2}), (4, {0: 0.05, 1: 0.1, 3: 0.2, 4: 0.2, 1000: 0.2})],
)
def test_weight_rises_linearly_to_its_end(warmup_steps, weights):
    bottleneck = bottleneck_with_posterior([2.0], [1.0], kl_weight=0.2, kl_warmup_steps=warmup_steps)
    for step, weight in weights.items():
        bottleneck.set_step(step)
        assert bottleneck(torch.zeros(1, 1, 1)).loss.item() == pytest.approx(2 * weight)


def test_samples_have_the_mean_and_variance_of_the_posterior():
    bottleneck = bottleneck_with_posterior([1.0, -2.0], [0.25, 4.0]).train()
    z = bottleneck(torch.zeros(10, 2, DRAWS // 10)).latents.transpose(0, 1).flatten(1)
    torch.testing.assert_close(z.mean(1), torch.tensor([1.0, -2.0]), atol=3 * 2 / math.sqrt(DRAWS), rtol=0)
    torch.testing.assert_close(z.var(1), torch.tensor([0.25, 4.0]), rtol=3 * math.sqrt(2 / DRAWS), atol=0)
    assert abs(torch.corrcoef(z)[0, 1]) < 3 / math.sqrt(DRAWS)


def test_evaluation_uses_the_mean():
    bottleneck = bottleneck_with_posterior([1.0, -2.0], [0.25, 4.0]).eval()
    latents = bottleneck(torch.zeros(1, 2, 3)).latents
    assert torch.equal(latents, torch.tensor([[1.0], [-2.0]]).expand(1, 2, 3))


def test_gradient_of_an_expectation_passes_the_sample():
    """E[z^2] = mu^2 + sigma^2 has the gradient 2 mu with respect to mu, and sigma^2 to log sigma^2."""
    bottleneck = bottleneck_with_posterior([0.7], [0.5]).train()
    bottleneck(torch.zeros(10, 1, DRAWS // 10)).latents.square().mean().backward()
    torch.testing.assert_close(bottleneck.project_in.bias.grad, torch.tensor([1.4, 0.5]), rtol=0.02, atol=0)


def test_nats_per_frame_are_bits_per_second():
    assert bits_per_second(math.log(1024), 50.0) == pytest.approx(500)


@pytest.fixture
def gaussian_tokenizer(tiny_config):
    config = tiny_config().model_copy(update={"bottleneck": GaussianConfig(code_dim=4)})
    return AudioTokenizer(Autoencoder(config), config)


def test_tokenizer_reconstructs_through_the_mean(gaussian_tokenizer, mini_speech):
    wave, codes = gaussian_tokenizer.reconstruct(mini_speech, 16000)
    assert codes is None
    expected = gaussian_tokenizer.model(mini_speech[None]).wave
    torch.testing.assert_close(wave, expected)
    assert wave.std() > 0


def test_tokenizer_says_that_it_has_no_codes(gaussian_tokenizer, mini_speech):
    for call in (
        lambda: gaussian_tokenizer.encode(mini_speech, 16000),
        lambda: gaussian_tokenizer.decode(torch.zeros(1, 5).long()),
    ):
        with pytest.raises(TokenError, match=r"^a model with bottleneck 'gaussian' has no codes$"):
            call()
    assert gaussian_tokenizer.bitrate == 0
