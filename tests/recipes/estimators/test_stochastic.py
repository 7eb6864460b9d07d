"""The stochastic VQ and the Gaussian of one dimension against exact gradients, by enumeration and by integration."""

from __future__ import annotations

import itertools

import pytest
import torch
from estimates import OneLatent, gradient_statistics
from gradients import integrated
from stochastic import OneDimension, StochasticVQ

from audiovq.bottlenecks.vq import VectorQuantizer
from audiovq.config import GaussianConfig, VQConfig
from audiovq.devices import seed_everything
from audiovq.models.autoencoder import Autoencoder

K, DIM, FRAMES = 3, 2, 2


def cost(latents):
    """A cost of each item that is not linear and in which the frames act together: [N, D, F] -> [N]."""
    return (latents[..., 0] * latents[..., 1].sin()).sum(1).square() + (latents.sum((1, 2)) - 1).square()


def quantizer(temperature: float | None, **settings):
    config = VQConfig(codebook_size=K, code_dim=None, normalize=False, revive_below=0.0, **settings)
    made = VectorQuantizer(DIM, config) if temperature is None else StochasticVQ(DIM, config, temperature)
    with torch.no_grad():
        made.codebook.copy_(torch.randn(K, DIM, generator=torch.Generator().manual_seed(2)))
        made.initialized.fill_(True)
    return made.train()


@pytest.fixture
def z():
    return torch.randn(1, DIM, FRAMES, generator=torch.Generator().manual_seed(1))


def exact_gradient(bottleneck, z):
    """Sum over all codes of both frames of grad q(codes) * cost(codes)."""
    z = z.clone().requires_grad_()
    log_q, expected = bottleneck.log_posterior(z)[0], torch.zeros(())
    for codes in itertools.product(range(K), repeat=FRAMES):
        probability = torch.stack([log_q[t, code] for t, code in enumerate(codes)]).sum().exp()
        latents = bottleneck.decode(torch.tensor([[codes]]))
        expected = expected + probability * cost(latents).squeeze().detach()
    return torch.autograd.grad(expected, z)[0].flatten()


def drawn(bottleneck, z, draws):
    """Straight-through estimates, all draws as one batch: [draws, D * F]."""
    z = z.repeat(draws, 1, 1).requires_grad_()
    return torch.autograd.grad(cost(bottleneck(z).latents).sum(), z)[0].flatten(1)


@pytest.mark.parametrize("temperature", [0.2, 1.0, 5.0])
def test_codes_are_drawn_by_the_softmax_over_squared_distances(temperature, z):
    bottleneck = quantizer(temperature)
    seed_everything("draws")
    codes = bottleneck(z[..., :1].repeat(50_000, 1, 1)).codes
    shares = torch.bincount(codes.flatten(), minlength=K) / len(codes)
    squared = (z[0, :, 0] - bottleneck.codebook).square().sum(-1)
    torch.testing.assert_close(shares, (-squared / temperature).softmax(-1), atol=0.01, rtol=0)
    q = bottleneck.log_posterior(z).exp()[0, 0]
    torch.testing.assert_close(q, (-squared / temperature).softmax(-1))


def test_the_exact_gradient_is_the_slope_of_the_expected_cost(z):
    bottleneck = quantizer(1.0).double()

    def expected(at):
        log_q = bottleneck.log_posterior(at)[0]
        pairs = itertools.product(range(K), repeat=FRAMES)
        return sum(
            float((log_q[0, a] + log_q[1, b]).exp() * cost(bottleneck.decode(torch.tensor([[[a, b]]]))))
            for a, b in pairs
        )

    z = z.double()
    with torch.no_grad():
        slopes = []
        for place in range(DIM * FRAMES):
            step = torch.zeros(DIM * FRAMES, dtype=torch.float64)
            step[place] = 1e-5
            step = step.view_as(z)
            slopes.append((expected(z + step) - expected(z - step)) / 2e-5)
    torch.testing.assert_close(
        exact_gradient(bottleneck, z), torch.tensor(slopes, dtype=torch.float64), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
def test_straight_through_is_biased_and_the_enumeration_says_by_how_much(temperature, z):
    bottleneck = quantizer(temperature)
    seed_everything("draws")
    gradients, exact = drawn(bottleneck, z, 50_000), exact_gradient(bottleneck, z)
    error = gradients.std(0) / len(gradients) ** 0.5
    assert error.norm() < 0.2 * (gradients.mean(0) - exact).norm(), "too few draws to tell"
    assert ((gradients.mean(0) - exact).abs() > 5 * error).any()


def test_a_score_function_finds_the_exact_gradient_of_the_stochastic_vq(z):
    """The enumeration is not only consistent with itself: an unbiased estimator arrives there."""
    bottleneck = quantizer(1.0)
    seed_everything("draws")
    batch = z.repeat(200_000, 1, 1).requires_grad_()
    log_q = bottleneck.log_posterior(batch)
    codes = bottleneck(batch).codes[:, 0]
    costs = cost(bottleneck.decode(codes[:, None])).detach()
    log_prob = log_q.gather(-1, codes[..., None]).sum((1, 2))
    gradients = torch.autograd.grad(((costs - costs.mean()) * log_prob).sum(), batch)[0].flatten(1)
    error = gradients.std(0) / len(gradients) ** 0.5
    exact = exact_gradient(bottleneck, z)
    assert error.norm() < 0.1 * exact.norm(), "too few draws to tell"
    assert ((gradients.mean(0) - exact).abs() < 4 * error).all()


def test_at_a_low_temperature_it_is_vq_whose_cost_has_no_slope(z):
    cold, nearest = quantizer(1e-4), quantizer(None)
    torch.testing.assert_close(drawn(cold, z, 4), drawn(nearest, z, 4))
    assert drawn(nearest, z, 4).abs().min() > 0
    assert exact_gradient(cold, z).abs().max() < 1e-6


def test_one_latent_enumerates_the_stochastic_vq_in_a_model(tiny_config):
    torch.manual_seed(3)
    config = VQConfig(codebook_size=5, code_dim=2, normalize=False, revive_below=0.0)
    model = Autoencoder(tiny_config().model_copy(update={"bottleneck": config})).double()
    wave = 0.3 * torch.randn(2, 1, 100).double()
    model.bottleneck = StochasticVQ(8, config, 0.5).double()
    latent = OneLatent(model, lambda x: 100 * (model.decode(x) - wave).square().mean((1, 2)), wave, 2)
    z, exact = latent.z.detach(), latent.exact().view(2, 8)

    def expected(at):
        with torch.no_grad():
            q = model.bottleneck.log_posterior(at)[:, 0].exp()
            codes = torch.arange(5).view(5, 1, 1, 1).expand(5, 2, 1, 1)
            costs = torch.stack([latent.costs_of(model.bottleneck.decode(code)) for code in codes], -1)
            return float((q * costs).sum(-1).mean())

    for place in ((0, 0), (1, 3)):
        step = torch.zeros_like(z)
        step[place] = 1e-5
        assert exact[place] == pytest.approx((expected(z + step) - expected(z - step)) / 2e-5, rel=1e-4, abs=1e-12)


# --- one dimension of a Gaussian -------------------------------------------------------------------------------


@pytest.fixture
def gaussian(tiny_config):
    """A model whose cost bends in z, with one frame of which one dimension is drawn."""
    torch.manual_seed(4)
    config = GaussianConfig(code_dim=3)
    model = Autoencoder(tiny_config().model_copy(update={"bottleneck": config})).double()
    wave = torch.zeros(2, 1, 100).double()

    def make(estimator, samples=1):
        bottleneck = OneDimension(8, config, 1, estimator, samples).double()
        bottleneck.load_state_dict(model.bottleneck.state_dict())
        model.bottleneck = bottleneck
        weight = torch.linspace(-1, 1, 8).double()
        return OneLatent(model, lambda x: (x[..., 2] @ weight).exp() + x.square().mean((1, 2)), wave, 2), bottleneck

    return make


def test_integration_gives_the_slope_of_the_expected_cost(gaussian):
    latent, bottleneck = gaussian("reparameterised")
    exact = integrated(bottleneck, latent).view(2, 8)
    z = latent.z.detach()

    def expected(at):
        """With the other dimensions where they are at z."""
        with torch.no_grad():
            (mean, log_variance), (known, _) = bottleneck.posterior(at), bottleneck.posterior(z)
            mean = torch.cat([known[..., :1], mean[..., 1:2], known[..., 2:]], -1)
            nodes = torch.linspace(-6, 6, 2001).double()
            density = (-0.5 * nodes.square()).exp()
            costs = []
            for node in nodes:
                point = mean.clone()
                point[..., 1] += node * (0.5 * log_variance[..., 1]).exp()
                costs.append(latent.costs_of(bottleneck.project_out(point).mT).mean())
            return float((torch.stack(costs) * density).sum() / density.sum())

    for place in ((0, 0), (1, 5)):
        step = torch.zeros_like(z)
        step[place] = 1e-4
        assert exact[place] == pytest.approx((expected(z + step) - expected(z - step)) / 2e-4, rel=1e-3)


@pytest.mark.parametrize(("estimator", "samples"), [("reparameterised", 1), ("score", 1), ("score", 3)])
def test_both_estimators_of_a_gaussian_are_unbiased(gaussian, estimator, samples):
    latent, bottleneck = gaussian(estimator, samples)
    exact = integrated(bottleneck, latent)
    seed_everything("draws")
    found = gradient_statistics(latent.draw, 1500, exact)
    assert found.bias_noise < 0.2, "too few draws to tell"
    assert found.bias < 3 * found.bias_noise


def test_the_score_function_has_the_larger_variance(gaussian):
    found = {}
    for estimator in ("reparameterised", "score"):
        latent, _ = gaussian(estimator)
        seed_everything("draws")
        found[estimator] = gradient_statistics(latent.draw, 200).variance
    assert found["score"] > 3 * found["reparameterised"]
