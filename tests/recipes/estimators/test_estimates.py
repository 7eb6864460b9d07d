from __future__ import annotations

import numpy as np
import pytest
import torch
from estimates import OneLatent, encoder_gradient, gradient_statistics

from audiovq.bottlenecks.base import count_codes
from audiovq.config import GumbelConfig, NoBottleneckConfig, ReinforceConfig, VQConfig
from audiovq.models.autoencoder import Autoencoder

K = 6


def cost(y, x):
    return 100 * (y - x).square().mean((1, 2))


def costs_of(model, wave):
    """What latents cost, as `OneLatent` and `encoder_gradient` want to know it."""
    return lambda latents: cost(model.decode(latents)[..., :100], wave.repeat(len(latents) // len(wave), 1, 1))


@pytest.fixture
def wave():
    return 0.3 * torch.randn(2, 1, 100)


@pytest.fixture
def build(tiny_config):
    def make(bottleneck):
        torch.manual_seed(3)
        model = Autoencoder(tiny_config().model_copy(update={"bottleneck": bottleneck}))
        with torch.no_grad():  # An untrained encoder hardly tells one input from another.
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1 and not name.endswith("codebook"):
                    parameter.mul_(2)
        return model

    return make


# --- statistics ----------------------------------------------------------------------------------------------


@pytest.fixture
def draws():
    """500 draws of mean (1, 2, 2) and variances (1, 4, 0.25), far from 0 in comparison, and a source of them."""
    values = torch.randn(500, 3, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.5]) + torch.tensor([1.0, 2.0, 2.0])
    source = iter(torch.cat([torch.zeros(1, 3), values]))  # The first one prepares.
    return values.numpy(), lambda: next(source)


def test_statistics_are_those_of_the_sample(draws):
    values, draw = draws
    found = gradient_statistics(draw, 500)
    variance = np.var(values, axis=0, ddof=1).sum()
    assert found.variance == pytest.approx(variance)
    assert found.squared_norm == pytest.approx(np.square(values.mean(0)).sum() - variance / 500)
    assert found.snr == pytest.approx(found.squared_norm / variance)
    assert found.snr == pytest.approx(9 / 5.25, rel=0.2)
    assert found.variance_seconds == found.variance * found.seconds > 0
    assert found.bias is None


def test_bias_is_relative_and_compared_with_its_noise(draws):
    values, draw = draws
    exact = torch.tensor([1.0, 2.0, 2.0])
    found = gradient_statistics(draw, 500, exact)
    mean = values.mean(0)
    assert found.bias == pytest.approx(np.linalg.norm(mean - exact.numpy()) / 3)
    assert found.bias_noise == pytest.approx(np.sqrt(found.variance / 500) / 3)
    assert found.bias < 3 * found.bias_noise
    assert found.cosine == pytest.approx(mean @ exact.numpy() / np.linalg.norm(mean) / 3)


def test_an_estimator_without_noise_has_no_variance():
    found = gradient_statistics(lambda: torch.tensor([3.0, 4.0]), 10, torch.tensor([3.0, 0.0]))
    assert (found.variance, found.snr) == (0, None)
    assert (found.squared_norm, found.bias, found.cosine) == pytest.approx((25, 4 / 3, 0.6))


# --- encoder -------------------------------------------------------------------------------------------------


def test_encoder_gradient_is_that_of_training(build, wave):
    model = build(NoBottleneckConfig())
    cost(model(wave).wave, wave).mean().backward()
    expected = torch.cat([weight.grad.flatten() for weight in model.encoder.parameters()])
    torch.testing.assert_close(encoder_gradient(model, costs_of(model, wave), wave), expected)


@pytest.mark.parametrize(
    "config",
    [
        VQConfig(codebook_size=32, revive_below=1.0),
        VQConfig(codebook_size=32, update="ema"),
        GumbelConfig(codebook_size=K),
        ReinforceConfig(codebook_size=K, baseline="moving_average"),
    ],
    ids=lambda config: config.type,
)
def test_a_draw_leaves_the_model_as_it_was(build, wave, config):
    model = build(config).train()
    model(wave)  # The first batch places the codebook.
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    drawn = [encoder_gradient(model, costs_of(model, wave), wave) for _ in range(2)]
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    assert all(gradient.abs().sum() > 0 for gradient in drawn)
    assert model.bottleneck.training


def test_straight_through_has_no_noise_and_reinforce_has(build, wave):
    for config, noisy in ((VQConfig(codebook_size=4, revive_below=0), False), (ReinforceConfig(codebook_size=K), True)):
        model = build(config).train()
        model(wave)
        first, second = (encoder_gradient(model, costs_of(model, wave), wave) for _ in range(2))
        assert torch.equal(first, second) != noisy


# --- one latent ----------------------------------------------------------------------------------------------

FRAME = 2


def expected_cost(model, wave, z):
    """Mean over items of the cost expected when frame 2 alone is drawn, by trying all codes in the whole model."""
    bottleneck = model.bottleneck.eval()
    with torch.no_grad():
        codes, _ = bottleneck.encode(model.encode(wave))
        q = bottleneck.log_posterior(z)[:, 0].exp()
        total = 0.0
        for k in range(K):
            codes[:, 0, FRAME] = k
            total += float((q[:, k] * cost(model.decode(bottleneck.decode(codes)), wave)).mean())
    return total


def test_exact_gradient_is_the_slope_of_the_expected_cost(build, wave):
    model = build(GumbelConfig(codebook_size=K)).double()
    wave = wave.double()
    problem = OneLatent(model, costs_of(model, wave), wave, FRAME)
    z, exact = problem.z.detach(), problem.exact()
    for place in ((0, 0), (1, 3), (0, 7)):
        step = torch.zeros_like(z)
        step[place] = 1e-5
        slope = (expected_cost(model, wave, z + step) - expected_cost(model, wave, z - step)) / 2e-5
        assert exact.view(2, 8)[place] == pytest.approx(slope, rel=1e-4, abs=1e-12)
    assert exact.norm() > 0


def test_reinforce_is_unbiased_and_gumbel_is_not(build, wave):
    reinforce = build(ReinforceConfig(codebook_size=K))
    problem = OneLatent(reinforce, costs_of(reinforce, wave), wave, FRAME)
    found = gradient_statistics(problem.draw, 600, problem.exact())
    assert found.bias < 2 * found.bias_noise < 0.5, "too few draws to tell"
    assert found.cosine > 0.9

    gumbel = build(GumbelConfig(codebook_size=K, start_temperature=2.0, hard=False))
    gumbel.load_state_dict(reinforce.state_dict(), strict=False)
    other = OneLatent(gumbel, costs_of(gumbel, wave), wave, FRAME)
    torch.testing.assert_close(other.exact(), problem.exact())
    found = gradient_statistics(other.draw, 300, problem.exact())
    assert found.bias > 3 * found.bias_noise


def test_only_the_one_frame_is_sampled(build, wave):
    model = build(ReinforceConfig(codebook_size=K, samples=3))
    problem = OneLatent(model, costs_of(model, wave), wave, FRAME)
    seen = []
    model.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    problem.draw()
    assert seen[0].shape == (3 * 2, 8, 5)
    others = [frame for frame in range(5) if frame != FRAME]
    with torch.no_grad():
        expected = model.bottleneck.eval()(model.encode(wave)).latents
    torch.testing.assert_close(seen[0][..., others], expected.repeat(3, 1, 1)[..., others])
    assert count_codes(model.bottleneck.encode(model.encode(wave))[0], K).sum() == 10
