"""Choosing codes: the highest score, and how far a latent may move before it is another."""

from __future__ import annotations

import pytest
import torch

from audiovq.bottlenecks import choice as choice_module
from audiovq.bottlenecks.choice import Scores, choose
from audiovq.config import GumbelConfig, VQConfig

K, D, FRAMES = 64, 6, 500
BOTTLENECKS = {
    "vq": VQConfig(codebook_size=K, code_dim=4),
    "vq-unprojected": VQConfig(codebook_size=K, code_dim=None),
    "vq-plain": VQConfig(codebook_size=K, code_dim=None, normalize=False),
    "vq-plain-projected": VQConfig(codebook_size=K, code_dim=3, normalize=False),
    "categorical": GumbelConfig(codebook_size=K),
}


@pytest.fixture
def scene(monkeypatch):
    """Latents that are their own features, weights and biases, in double precision; all margins are told exactly."""
    monkeypatch.setattr(choice_module, "SMALL", 1e30)
    double = {"dtype": torch.float64}
    return torch.randn(2, D, FRAMES, **double), torch.randn(K, D, **double), torch.randn(K, **double)


def chosen(z, weight, bias):
    return choose(z, z.mT, Scores(weight, bias, weight))


@pytest.fixture(params=BOTTLENECKS)
def bottleneck(tiny_config, request):
    config = tiny_config().model_copy(update={"bottleneck": BOTTLENECKS[request.param], "latent_dim": 8})
    bottleneck = config.bottleneck.build(config).train()
    # Latents with a large constant part, as an encoder's: normalisation makes their errors larger.
    bottleneck(5 + torch.randn(4, 8, 100))
    return bottleneck.eval()


def test_the_code_is_the_one_with_the_highest_score(scene):
    z, weight, bias = scene
    codes, _ = chosen(*scene)
    for item, frame in ((0, 0), (0, 7), (1, 3), (1, FRAMES - 1)):
        scores = [float(z[item, :, frame] @ weight[k] + bias[k]) for k in range(K)]
        assert codes[item, frame] == max(range(K), key=scores.__getitem__)


@pytest.mark.parametrize(("share", "changes"), [(0.999, False), (1.001, True)])
def test_the_margin_is_how_far_a_latent_has_to_move_before_its_code_changes(scene, share, changes):
    z, weight, bias = scene
    codes, margin = chosen(*scene)
    # The shortest way to each other code is along the difference of the weights.
    away = weight[None, None] - weight[codes][:, :, None]
    away = away / away.norm(dim=-1, keepdim=True).clamp(min=1e-9)
    moved = z.mT[:, :, None] + share * margin[..., None, None] * away
    changed = ((moved @ weight.mT + bias).argmax(-1) != codes[..., None]).any(-1)
    assert (changed == changes).all()


def test_margins_are_exact_where_small_and_never_too_large(scene, monkeypatch):
    z, _, _ = scene
    _, exact = chosen(*scene)
    unit = torch.finfo(torch.float32).eps * z.norm(dim=1)
    small = 0.01 / torch.finfo(torch.float32).eps
    monkeypatch.setattr(choice_module, "SMALL", small)
    _, margin = chosen(*scene)
    assert (margin <= exact * (1 + 1e-9)).all()
    near = exact < small * unit
    assert 0.005 < near.double().mean() < 0.2
    torch.testing.assert_close(margin[near], exact[near])
    assert torch.equal(margin < small * unit, near)


@pytest.mark.parametrize(("ulps", "negative"), [(1, True), (4, True), (1000, False)])
def test_scores_that_differ_by_the_rounding_of_a_large_bias_have_no_margin(ulps, negative):
    bias = torch.tensor([-30.0, -30.0 - ulps * 2**-19])  # Between 16 and 32 neighbours are 2^-19 apart.
    codes, margin = chosen(1e-9 * torch.randn(1, D, 50), torch.randn(2, D), bias)
    assert not codes.any()
    assert ((margin < 0) == negative).all()


def test_of_equal_codes_the_first_is_chosen_without_a_margin(scene):
    z, weight, bias = scene
    expected, _ = chosen(*scene)
    codes, margin = chosen(z, weight.repeat(2, 1), bias.repeat(2))
    assert torch.equal(codes, expected)
    assert (margin < 0).all()


def test_blocks_change_nothing(scene, monkeypatch):
    codes, margin = chosen(*scene)
    monkeypatch.setattr(choice_module, "SCORES_PER_BLOCK", 7 * K)
    assert torch.equal(chosen(*scene)[0], codes)
    torch.testing.assert_close(chosen(*scene)[1], margin)


def test_a_bottleneck_tells_margins_in_terms_of_latents(bottleneck, monkeypatch):
    """Against a search for the shortest way to another code, by steps along the difference of two scores' gradients."""
    monkeypatch.setattr(choice_module, "SMALL", 1e30)
    bottleneck = bottleneck.double()
    z = 5 + torch.randn(1, 8, 40, dtype=torch.float64)
    codes, margin = bottleneck.encode(z)
    for share, unchanged in ((0.99, 1.0), (1.01, 0.0)):
        same = torch.ones(40, dtype=torch.bool)
        for code in range(K):
            inputs = z.clone().requires_grad_()
            moved = z + share * margin[:, None] * direction(bottleneck, inputs, codes[0, 0], code)
            same &= bottleneck.encode(moved)[0][0, 0] == codes[0, 0]
        assert same.double().mean() == unchanged


def direction(bottleneck, z, codes, other):
    """Unit vectors [1, D, F] along which code `other` gains most on the frames' own."""
    if hasattr(bottleneck, "log_posterior"):
        scores = bottleneck.log_posterior(z)[0]
    else:
        features = bottleneck.project_in(z.mT)
        if bottleneck.config.normalize:
            features = bottleneck.batch_norm.by_averages(features.mT).mT
        scores = (features @ bottleneck.codes().mT - 0.5 * bottleneck.codes().square().sum(-1))[0]
    gain = (scores[:, other] - scores.gather(-1, codes[:, None])[:, 0]).sum()
    (gradient,) = torch.autograd.grad(gain, z)
    return gradient / gradient.norm(dim=1, keepdim=True).clamp(min=1e-12)


def test_encoding_is_what_evaluation_does(bottleneck):
    z = 5 + torch.randn(3, 8, 50)
    codes, margin = bottleneck.encode(z)
    sure = (margin > 0)[:, None]  # Of codes that rounding decides between, `encode` takes the first.
    assert sure.float().mean() > 0.9
    assert torch.equal(codes[sure], bottleneck(z).codes[sure])
