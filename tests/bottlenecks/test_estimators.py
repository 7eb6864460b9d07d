"""Gradient estimators against the exact gradient, on problems small enough to sum over all codes."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.distributions import Bernoulli

from audiovq.bottlenecks.gumbel import GumbelBottleneck
from audiovq.bottlenecks.reinforce import ReinforceBottleneck
from audiovq.config import GumbelConfig, ReinforceConfig
from audiovq.devices import seed_everything

K, DIM, FRAMES = 3, 2, 2
DRAWS = 100_000


def same_weights(bottleneck):
    """The same posterior and codebook for all estimators of a test."""
    seed_everything("estimators")
    with torch.no_grad():
        for parameter in bottleneck.parameters():
            parameter.copy_(torch.randn_like(parameter))
    bottleneck.train().normalize.eval()  # the posterior of an item shall not depend on its batch
    return bottleneck


def reinforce(**settings):
    return same_weights(ReinforceBottleneck(DIM, ReinforceConfig(codebook_size=K, **settings)))


def gumbel(temperature, hard):
    settings = GumbelConfig(codebook_size=K, start_temperature=temperature, end_temperature=temperature, hard=hard)
    return same_weights(GumbelBottleneck(DIM, settings))


def cost(latents):
    """A cost of each item that is not linear and in which the frames act together: [N, D, F] -> [N]."""
    return (latents[..., 0] * latents[..., 1].sin()).sum(1).square() + (latents.sum((1, 2)) - 1).square()


@pytest.fixture
def z():
    return torch.randn(1, DIM, FRAMES, generator=torch.Generator().manual_seed(1))


def exact_gradient(bottleneck, z, cost=cost):
    """The gradient of the expected cost with respect to z: sum over all codes of grad q(codes) * cost(codes)."""
    z = z.clone().requires_grad_()
    log_q = bottleneck.log_posterior(z)[0]
    expected = torch.zeros(())
    for codes in itertools.product(range(bottleneck.codebook_size), repeat=z.shape[-1]):
        probability = torch.stack([log_q[t, code] for t, code in enumerate(codes)]).sum().exp()
        expected = expected + probability * cost(bottleneck.decode(torch.tensor([[codes]]))).squeeze().detach()
    return torch.autograd.grad(expected, z)[0].flatten()


def drawn_gradients(bottleneck, z, cost=cost, draws=DRAWS):
    """Estimates of that gradient, one a draw: [draws, D * F]. All draws are items of one batch."""
    z = z.repeat(draws, 1, 1).requires_grad_()
    output = bottleneck(z)
    costs = cost(output.latents)
    loss = costs.mean() + bottleneck.surrogate_loss(output, costs)
    return torch.autograd.grad(loss, z)[0].flatten(1) * draws


def bias_and_error(bottleneck, z, **settings):
    """Distance of the mean estimate from the exact gradient, and the standard error, both for each component."""
    gradients = drawn_gradients(bottleneck, z, **settings)
    error = gradients.std(0) / len(gradients) ** 0.5
    return gradients.mean(0) - exact_gradient(bottleneck, z, settings.get("cost", cost)), error


def variance(gradients):
    return float(gradients.var(0).sum())


# --- categorical ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"baseline": "none", "samples": 1},
        {"baseline": "none", "samples": 3},
        {"baseline": "moving_average", "samples": 1},
        {"baseline": "leave_one_out", "samples": 2},
        {"baseline": "leave_one_out", "samples": 4},
    ],
)
def test_reinforce_is_unbiased_with_every_baseline(settings, z):
    bottleneck = reinforce(**settings)
    drawn_gradients(bottleneck, z, draws=100)  # a moving average that is not 0
    bias, error = bias_and_error(bottleneck, z)
    assert (bias.abs() < 3 * error).all()
    assert error.norm() < 0.05 * exact_gradient(bottleneck, z).norm(), "too few draws to tell"


def test_a_baseline_that_holds_the_own_sample_is_biased(z):
    """What leave-one-out avoids, seen by the same test: the mean over all samples shrinks the gradient to 1/2."""
    bottleneck = reinforce(samples=2)
    gradients = drawn_gradients(bottleneck, z) / 2  # f - mean(f) = (f - mean of the others) * (S - 1) / S
    error = gradients.std(0) / DRAWS**0.5
    assert ((gradients.mean(0) - exact_gradient(bottleneck, z)).abs() > 3 * error).any()


def test_leave_one_out_has_less_variance_than_no_baseline(z):
    plain = variance(drawn_gradients(reinforce(baseline="none", samples=4), z))
    left_out = variance(drawn_gradients(reinforce(baseline="leave_one_out", samples=4), z))
    assert left_out < 0.5 * plain


def test_baselines_help_more_the_further_the_cost_is_from_zero(z):
    def shifted(latents):
        return cost(latents) + 10

    found = {}
    for baseline in ("none", "moving_average", "leave_one_out"):
        bottleneck = reinforce(baseline=baseline, samples=2)
        drawn_gradients(bottleneck, z, shifted, draws=1000)
        found[baseline] = variance(drawn_gradients(bottleneck, z, shifted))
    assert found["moving_average"] < 0.2 * found["none"]
    assert found["leave_one_out"] < 0.2 * found["none"]


def test_variance_falls_with_the_number_of_samples(z):
    two, eight = (variance(drawn_gradients(reinforce(samples=s), z)) for s in (2, 8))
    assert eight < two / 4


def test_relaxed_gumbel_trades_bias_for_variance_as_the_temperature_falls():
    """On average over latents: at a single one the bias need not fall all the way."""
    latents = torch.randn(20, 1, DIM, FRAMES)
    biases, variances = [], []
    for temperature in (2.0, 1.0, 0.5, 0.25):
        bottleneck = gumbel(temperature, hard=False)
        gradients = torch.stack([drawn_gradients(bottleneck, z, draws=20_000) for z in latents])
        exact = torch.stack([exact_gradient(bottleneck, z) for z in latents])
        biases.append(float((gradients.mean(1) - exact).norm(dim=1).mean()))
        variances.append(float(gradients.var(1).sum(1).mean()))
    assert biases == sorted(biases, reverse=True)
    assert variances == sorted(variances)
    assert biases[-1] < biases[0] / 2
    assert variances[-1] > 10 * variances[0]


def test_gumbel_is_biased_where_reinforce_is_not(z):
    for hard in (True, False):
        bias, error = bias_and_error(gumbel(1.0, hard), z)
        assert (bias.abs() > 10 * error).any()


# --- textbook: z = 2 p is differentiable, z ~ Bernoulli(p) is not --------------------------------------------

P, THETA = 0.7, torch.tensor(0.7).logit()


def bernoulli(bottleneck):
    """A latent theta, p = sigmoid(theta), and codes 0 and 1 that the decoder sees as these numbers."""
    with torch.no_grad():
        bottleneck.project_in.weight.copy_(torch.tensor([[0.0], [1.0]]))
        bottleneck.project_in.bias.zero_()
        bottleneck.codebook.copy_(torch.tensor([[0.0], [1.0]]))
    bottleneck.train().normalize.eval()
    return bottleneck


def square_cost(latents):
    """(z - 2)^2: [N, 1, 1] -> [N]."""
    return (latents - 2).square().sum((1, 2))


TRUE_GRADIENT = (1 - 4) * P * (1 - P)
"""Of E[(z - 2)^2] = p * 1 + (1 - p) * 4 with respect to theta."""


def test_z_equal_2p_is_differentiable():
    theta = THETA.clone().requires_grad_()
    (2 * theta.sigmoid() - 2).square().backward()
    assert theta.grad == pytest.approx(2 * (2 * P - 2) * 2 * P * (1 - P))


def test_autograd_gives_no_gradient_through_a_bernoulli_sample():
    theta = THETA.clone().requires_grad_()
    assert not Bernoulli(theta.sigmoid()).sample().requires_grad
    (gradient,) = torch.autograd.grad((torch.bernoulli(theta.sigmoid()) - 2).square(), theta)
    assert gradient == 0, "the function alone calls itself differentiable"
    bottleneck = bernoulli(ReinforceBottleneck(1, ReinforceConfig(codebook_size=2)))
    latents = bottleneck(theta.view(1, 1, 1)).latents
    assert torch.autograd.grad(latents.sum(), theta, allow_unused=True) == (None,)


def bernoulli_gradients(bottleneck, draws=100_000):
    gradients = drawn_gradients(bernoulli(bottleneck), THETA.view(1, 1, 1), square_cost, draws)[:, 0]
    return float(gradients.mean()), float(gradients.var()), float(gradients.std() / draws**0.5)


def test_enumeration_gives_the_gradient_on_paper():
    bottleneck = bernoulli(ReinforceBottleneck(1, ReinforceConfig(codebook_size=2)))
    assert exact_gradient(bottleneck, THETA.view(1, 1, 1), square_cost).item() == pytest.approx(TRUE_GRADIENT, rel=1e-4)


def test_score_function_recovers_the_true_gradient_with_the_variance_on_paper():
    settings = ReinforceConfig(codebook_size=2, baseline="none", samples=1)
    mean, var, error = bernoulli_gradients(ReinforceBottleneck(1, settings))
    assert abs(mean - TRUE_GRADIENT) < 3 * error
    # (z - 2)^2 * (z - p): 1 - p with probability p, -4 p otherwise.
    assert var == pytest.approx(P * (1 - P) * ((1 - P) + 4 * P) ** 2, rel=0.02)


@pytest.mark.parametrize("hard", [False, True])
def test_gumbel_is_biased_with_less_variance_than_the_score_function(hard):
    settings = GumbelConfig(codebook_size=2, start_temperature=1.0, end_temperature=1.0, hard=hard)
    mean, var, error = bernoulli_gradients(GumbelBottleneck(1, settings))
    assert abs(mean - TRUE_GRADIENT) > 10 * error
    assert mean < 0, "not even the right direction"
    assert var < 0.1 * P * (1 - P) * ((1 - P) + 4 * P) ** 2


def test_straight_through_is_biased_with_little_variance():
    """z + p - sg[p] in place of z (Bengio et al., 2013)."""
    theta = THETA.repeat(100_000).requires_grad_()
    p = theta.sigmoid()
    z = torch.bernoulli(p.detach())
    (z + p - p.detach() - 2).square().sum().backward()
    # 2 (z - 2) * p (1 - p): its mean lacks what the cost's curvature adds.
    assert theta.grad.mean() == pytest.approx(2 * (P - 2) * P * (1 - P), rel=0.01)
    assert abs(2 * (P - 2) * P * (1 - P) - TRUE_GRADIENT) > 0.05
    assert theta.grad.var() == pytest.approx(4 * (P * (1 - P)) ** 3, rel=0.03)
    assert theta.grad.var() < 0.1 * P * (1 - P) * ((1 - P) + 4 * P) ** 2
