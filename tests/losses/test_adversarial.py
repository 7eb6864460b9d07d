"""Adversarial losses against NumPy, and where they are zero."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from audiovq.losses.adversarial import GradientBalancer, discriminator_loss, feature_matching_loss, generator_loss

KINDS = ["hinge", "least_squares"]
SHAPES = [(2, 5, 3), (2, 7, 4)]


def draw() -> list[Tensor]:
    """Scores of two discriminators, on both sides of 0 and of 1."""
    return [2 * torch.randn(shape) for shape in SHAPES]


def full(value: float) -> list[Tensor]:
    return [torch.full(shape, value) for shape in SHAPES]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_cost_what_a_numpy_reference_says(kind):
    true, decoded = draw(), draw()
    xs, ys = ([scores.double().numpy() for scores in group] for group in (true, decoded))
    if kind == "hinge":
        judged = [np.maximum(0, 1 - x).mean() + np.maximum(0, 1 + y).mean() for x, y in zip(xs, ys, strict=True)]
        fooled = [np.where(y < 1, 1 - y, 0).mean() for y in ys]
    else:
        judged = [((1 - x) ** 2).mean() + (y**2).mean() for x, y in zip(xs, ys, strict=True)]
        fooled = [((1 - y) ** 2).mean() for y in ys]
    assert discriminator_loss(true, decoded, kind).item() == pytest.approx(np.mean(judged), rel=1e-5)
    assert generator_loss(decoded, kind).item() == pytest.approx(np.mean(fooled), rel=1e-5)


def test_features_cost_what_a_numpy_reference_says():
    true, decoded = [draw(), draw()], [draw(), draw()]
    expected = [
        np.abs(x - y).sum() / np.abs(x).sum()
        for xs, ys in zip(true, decoded, strict=True)
        for x, y in zip((x.double().numpy() for x in xs), (y.double().numpy() for y in ys), strict=True)
    ]
    assert feature_matching_loss(true, decoded).item() == pytest.approx(np.mean(expected), rel=1e-5)


@pytest.mark.parametrize(("kind", "rejected"), [("hinge", -1.0), ("least_squares", 0.0)])
def test_losses_are_zero_at_their_optimum_and_nowhere_near_it(kind, rejected):
    assert discriminator_loss(full(1.0), full(rejected), kind) == 0
    assert discriminator_loss(full(0.9), full(rejected), kind) > 0
    assert discriminator_loss(full(1.0), full(rejected + 0.1), kind) > 0
    assert generator_loss(full(1.0), kind) == 0
    assert generator_loss(full(0.9), kind) > 0
    assert feature_matching_loss([full(0.3)], [full(0.3)]) == 0
    assert feature_matching_loss([full(0.3)], [full(0.2)]) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_two_sides_pull_scores_of_decoded_waves_apart(kind):
    scores = torch.full((1, 4), 0.5, requires_grad=True)
    down = torch.autograd.grad(discriminator_loss([torch.ones(1, 4)], [scores], kind), scores)[0]
    up = torch.autograd.grad(generator_loss([scores], kind), scores)[0]
    assert (down > 0).all()
    assert (up < 0).all()


def test_hinge_leaves_alone_what_is_beyond_the_margin():
    true, decoded = torch.tensor([[1.5, 0.0]]).requires_grad_(), torch.tensor([[-1.5, 0.0]]).requires_grad_()
    discriminator_loss([true], [decoded]).backward()
    assert true.grad.tolist() == [[0, -0.5]]
    assert decoded.grad.tolist() == [[0, 0.5]]


def test_features_of_the_true_wave_are_no_targets_that_move():
    true, decoded = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randn(2, 3, 4, 5, requires_grad=True)
    feature_matching_loss([[true]], [[decoded]]).backward()
    assert true.grad is None
    torch.testing.assert_close(decoded.grad, (decoded - true).sign() / true.abs().sum())


def test_the_size_of_features_does_not_matter_unless_there_is_nothing():
    true, decoded = draw(), draw()
    scaled = feature_matching_loss([[30 * x for x in true]], [[30 * y for y in decoded]])
    torch.testing.assert_close(scaled, feature_matching_loss([true], [decoded]))
    assert feature_matching_loss([full(0.0)], [full(1.0)]).isfinite()


def test_balanced_gradients_have_sizes_in_the_ratio_of_the_weights():
    output = torch.randn(2, 1, 50, requires_grad=True)
    losses = {"loud": 1000 * output[..., :20].sum(), "quiet": 1e-3 * output[..., 20:].square().sum()}
    gradient = GradientBalancer({"loud": 1.0, "quiet": 3.0})(losses, output)
    assert gradient[..., :20].norm().item() == pytest.approx(1 / 4, rel=1e-5)
    assert gradient[..., 20:].norm().item() == pytest.approx(3 / 4, rel=1e-5)
    torch.testing.assert_close(gradient[..., :20], torch.full((2, 1, 20), 0.25 / 40**0.5))


def test_balancing_divides_by_the_moving_average_of_the_norms():
    balancer, scales, found = GradientBalancer({"only": 1.0}, decay=0.75), (1.0, 5.0, 2.0), []
    for scale in scales:
        output = torch.ones(4, requires_grad=True)
        found += [balancer({"only": scale * output.sum()}, output).norm().item()]
    averages = [np.average(scales[: n + 1], weights=0.75 ** np.arange(n, -1, -1)) for n in range(3)]
    assert found == pytest.approx([scale / average for scale, average in zip(scales, averages, strict=True)])
    assert set(balancer.state_dict()) == {"norms", "seen"}


def test_balancing_stands_a_loss_without_slope():
    output = torch.randn(5, 2, requires_grad=True)
    gradient = GradientBalancer({"some": 1.0, "none": 1.0})({"some": output.sum(), "none": 0 * output.sum()}, output)
    torch.testing.assert_close(gradient, torch.full((5, 2), 0.5 / 10**0.5))
