"""Choosing codes: the highest score, and the frames where rounding could decide."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from audiovq.bottlenecks import build_bottleneck
from audiovq.bottlenecks import choice as choice_module
from audiovq.bottlenecks.choice import Choice
from audiovq.config import GumbelConfig, VQConfig

K, D = 64, 6
BOTTLENECKS = {
    "vq": VQConfig(codebook_size=K, code_dim=4),
    "vq-unprojected": VQConfig(codebook_size=K, code_dim=None),
    "vq-plain": VQConfig(codebook_size=K, code_dim=None, normalize=False),
    "vq-plain-projected": VQConfig(codebook_size=K, code_dim=3, normalize=False),
    "categorical": GumbelConfig(codebook_size=K),
}


def make_choice(frames=2000, error=1e-3, dtype=torch.float32) -> Choice:
    weight, features = torch.randn(K, D, dtype=dtype), torch.randn(frames, D, dtype=dtype)
    return Choice(
        features, weight, torch.randn(K, dtype=dtype), torch.positive, torch.full((frames,), error, dtype=dtype)
    )


@pytest.fixture(params=BOTTLENECKS)
def bottleneck(tiny_config, request):
    config = tiny_config().model_copy(update={"bottleneck": BOTTLENECKS[request.param], "latent_dim": 8})
    bottleneck = build_bottleneck(config).train()
    # Latents with a large constant part, as an encoder's: normalisation makes their errors larger.
    bottleneck(5 + torch.randn(4, 8, 100))
    return bottleneck.eval()


def test_the_code_is_the_one_with_the_highest_score():
    choice = make_choice()
    expected = [
        max(range(K), key=lambda k: float(u @ choice.weight[k] + choice.bias[k])) for u in choice.features[:100]
    ]
    assert choice.codes()[:100].tolist() == expected
    assert torch.equal(choice.codes_and_near_ties()[0], choice.codes())


def test_no_error_of_the_stated_size_changes_the_code_of_a_frame_that_is_no_near_tie():
    choice = make_choice(dtype=torch.float64)
    codes, near_ties = choice.codes_and_near_ties()
    # The shortest way to each other code is along the difference of the weights.
    away = choice.weight[None] - choice.weight[codes][:, None]
    away = away / away.norm(dim=-1, keepdim=True).clamp(min=1e-9)
    moved = choice.features[:, None] + choice.error[:, None, None] * away
    scores = moved @ choice.weight.mT + choice.bias
    changed = (scores.argmax(-1) != codes[:, None]).any(-1)
    assert 0 < changed.sum() < len(codes) / 10
    assert torch.equal(changed, near_ties)


def test_frames_between_two_codes_are_near_ties():
    choice = make_choice(error=1e-5)
    first, second = choice.codes(), (choice.features @ choice.weight.mT + choice.bias).topk(2).indices[:, 1]
    difference = choice.weight[first] - choice.weight[second]
    gap = ((choice.features * difference).sum(-1) + choice.bias[first] - choice.bias[second]) / difference.norm(dim=-1)
    between = choice.features - gap[:, None] * difference / difference.norm(dim=-1, keepdim=True)
    moved = replace(choice, features=between)
    codes, near_ties = moved.codes_and_near_ties()
    overtaken = (codes != first) & (codes != second)  # A third code lies there.
    assert overtaken.float().mean() < 0.2
    assert (near_ties | overtaken).all()
    assert choice.codes_and_near_ties()[1].float().mean() < 0.01


@pytest.mark.parametrize(("ulps", "tied"), [(1, True), (4, True), (1000, False)])
def test_scores_that_differ_by_the_rounding_of_a_large_bias_are_near_ties(ulps, tied):
    bias = torch.tensor([-30.0, -30.0 - ulps * 2**-19])  # Between 16 and 32 neighbours are 2^-19 apart.
    choice = Choice(1e-9 * torch.randn(50, D), torch.randn(2, D), bias, torch.positive, torch.zeros(50))
    codes, near_ties = choice.codes_and_near_ties()
    assert not codes.any()
    assert (near_ties == tied).all()


def test_equal_codes_are_ties_and_the_first_of_them_is_chosen():
    choice = make_choice(dtype=torch.float64)
    weight, bias = choice.weight.repeat(2, 1), choice.bias.repeat(2)
    twice = replace(choice, weight=weight, bias=bias)
    assert torch.equal(twice.first_codes(), choice.codes())
    assert twice.codes_and_near_ties()[1].all()


def test_blocks_change_nothing(monkeypatch):
    choice = make_choice(frames=101)
    codes, near_ties = choice.codes_and_near_ties()
    first = choice.first_codes()
    monkeypatch.setattr(choice_module, "SCORES_PER_BLOCK", 7 * K)
    assert torch.equal(choice.codes_and_near_ties()[0], codes)
    assert torch.equal(choice.codes_and_near_ties()[1], near_ties)
    assert torch.equal(choice.first_codes(), first)


def test_an_error_of_the_latents_carries_over_to_scores_as_stated(bottleneck):
    z = (5 + torch.randn(2, 8, 50)).double().requires_grad_()
    choice = bottleneck.double().choice(z)
    scores = choice.features @ choice.weight.mT + choice.bias
    latent_weight = choice.in_latents(choice.weight)
    for code in range(0, K, 7):
        (gradient,) = torch.autograd.grad(scores[:, code].sum(), z, retain_graph=True)
        torch.testing.assert_close(gradient, latent_weight[code][None, :, None].expand_as(z))
    allowed = choice_module.LATENT_ERROR * torch.finfo(z.dtype).eps * z.norm(dim=1)
    torch.testing.assert_close(choice.error, allowed.flatten())


def test_encoding_takes_the_choice(bottleneck):
    z = 5 + torch.randn(3, 8, 50)
    assert torch.equal(bottleneck.encode(z).flatten(), bottleneck.choice(z).codes())
    assert torch.equal(bottleneck.encode(z), bottleneck(z).codes)
