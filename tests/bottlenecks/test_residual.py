"""Residual vector quantization against an encoder written as a loop, and the gradients of every level."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from audiovq.bottlenecks.residual import ResidualQuantizer, seen_codebooks
from audiovq.config import ResidualConfig, parse_config
from audiovq.devices import seed_everything
from audiovq.errors import ConfigError

DIM, Q, K = 8, 4, 16
SETTINGS = {
    "default": {},
    "projected": {"code_dim": 4, "normalize": True, "update": "gradient"},
    "normalized": {"normalize": True, "update": "gradient"},
    "gradient": {"update": "gradient"},
    "projected-ema": {"code_dim": 4, "normalize": True},
}


def build(**settings) -> ResidualQuantizer:
    """A quantizer whose codebooks have been placed."""
    config = ResidualConfig(**{"num_codebooks": Q, "codebook_size": K, "dropout": 0.0, **settings})
    quantizer = ResidualQuantizer(DIM, config).train()
    quantizer(latents(8, 50))
    return quantizer


def latents(batch: int = 3, frames: int = 20) -> torch.Tensor:
    return torch.randn(batch, DIM, frames)


@pytest.fixture(params=SETTINGS)
def quantizer(request):
    return build(**SETTINGS[request.param])


def test_each_level_takes_the_nearest_code_of_what_is_left(quantizer):
    quantizer.eval()
    z = latents(1, 30)
    codes, _ = quantizer.encode(z)
    left = z.clone()
    for number, level in enumerate(quantizer.levels):
        features = level.project_in(left.mT)[0]
        if level.config.normalize:
            normalized = (features - level.batch_norm.mean) / (level.batch_norm.variance + 1e-5).sqrt()
            features = normalized / normalized.norm(dim=-1, keepdim=True)
        distances = (features[:, None] - level.codes()[None]).square().sum(-1)
        assert torch.equal(codes[0, number], distances.argmin(-1))
        left = left - level.decode(codes[:, number : number + 1])
    torch.testing.assert_close(quantizer.decode(codes), z - left)


def test_fewer_codebooks_are_the_first_of_all(quantizer):
    quantizer.eval()
    z = latents()
    codes, margin = quantizer.encode(z)
    total = torch.zeros_like(z)
    for number, level in enumerate(quantizer.levels, start=1):
        some, some_margin = quantizer.encode(z, number)
        assert torch.equal(some, codes[:, :number])
        assert (some_margin >= margin).all()
        total = total + level.decode(codes[:, number - 1 : number])
        torch.testing.assert_close(quantizer.decode(some), total)


def test_the_margin_is_the_least_of_all_levels():
    quantizer = build().eval()
    margins = [quantizer.encode(latents_of(7), number)[1] for number in range(1, Q + 1)]
    assert all((later <= earlier).all() for earlier, later in pairwise(margins))
    assert (margins[-1] < margins[0]).any()


def latents_of(seed: int) -> torch.Tensor:
    return torch.randn(3, DIM, 20, generator=torch.Generator().manual_seed(seed))


def test_more_codebooks_leave_less():
    quantizer = build(codebook_size=64).eval()
    z = latents()
    errors = [(z - quantizer.decode(quantizer.encode(z, number)[0])).square().mean() for number in range(1, Q + 1)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.7 * errors[0]


@pytest.mark.parametrize("books", [1, 2])
def test_the_first_codebook_alone_is_told_where_there_are_several(books):
    quantizer = build(num_codebooks=books).eval()
    output = quantizer(latents())
    if books == 1:
        assert output.first is None
    else:
        torch.testing.assert_close(output.first, quantizer.decode(output.codes[:, :1]))


def test_first_codebooks_are_placed_on_what_the_levels_before_them_leave():
    seed_everything("residual")
    quantizer = ResidualQuantizer(DIM, ResidualConfig(num_codebooks=3, codebook_size=K, dropout=0.0))
    z = latents(4, 100)
    quantizer.train()(z)
    assert all(level.initialized for level in quantizer.levels)
    metrics = quantizer.eval()(z).metrics
    left = [1.0, *(float(metrics[f"left_{number}"]) for number in range(3))]
    assert all(after < 0.8 * before for before, after in pairwise(left)), left


def test_codes_that_nobody_chooses_are_revived_at_every_level(quantizer):
    for level in quantizer.levels:
        with torch.no_grad():
            level.codebook[:3] = level.codebook[3]  # Of equal codes one is chosen.
            level.usage[:3] = 0
    metrics = quantizer(latents(8, 50)).metrics
    for number, level in enumerate(quantizer.levels):
        assert metrics[f"revived_codes_{number}"] >= 3, number
        assert len(level.codebook[:4].unique(dim=0)) == 4, number


@pytest.mark.parametrize("name", ["projected", "normalized", "gradient"])
def test_every_level_gets_its_commitment_and_its_codebook_gradient(name):
    quantizer = build(**SETTINGS[name], revive_below=0.0)
    for number, level in enumerate(quantizer.levels):
        z = latents().requires_grad_()
        quantizer.zero_grad()
        outputs = []
        hook = level.register_forward_hook(lambda _module, _inputs, output, found=outputs: found.append(output))
        quantizer(z)
        hook.remove()
        outputs[0].loss.backward()
        assert z.grad.abs().sum() > 0, f"level {number}: no commitment gradient reaches the encoder"
        assert level.codebook.grad.abs().sum() > 0, f"level {number}: no codebook gradient"
        others = [other.codebook.grad for other in quantizer.levels if other is not level]
        assert all(gradient is None or not gradient.any() for gradient in others)


def test_the_loss_is_the_sum_over_the_levels():
    quantizer = build(revive_below=0.0)
    losses = []
    for level in quantizer.levels:
        level.register_forward_hook(lambda _module, _inputs, output: losses.append(output.loss))
    output = quantizer(latents())
    torch.testing.assert_close(output.loss, torch.stack(losses).sum())


def test_without_projections_the_gradient_passes_once():
    quantizer = build()
    z = latents().requires_grad_()
    quantizer(z).latents.sum().backward()
    assert torch.equal(z.grad, torch.ones_like(z))


def test_dropout_shows_the_decoder_the_first_codebooks_of_some_items():
    quantizer = build(dropout=1.0, revive_below=0.0, update="gradient")
    z = latents(400, 2)
    output = quantizer(z)
    sums = torch.stack([quantizer.decode(output.codes[:, :number]) for number in range(1, Q + 1)])  # [Q, B, D, F]
    distances, found = (sums - output.latents).abs().amax((2, 3)).min(0)
    assert distances.max() < 1e-5
    counts = torch.bincount(found, minlength=Q)
    assert (counts > 60).all(), "not all numbers of codebooks are as likely"
    torch.testing.assert_close(quantizer.eval()(z).latents, quantizer.decode(quantizer(z).codes))


def test_half_of_the_items_keep_all_codebooks_with_half_the_dropout():
    seen = seen_codebooks(2000, Q, 0.5, torch.device("cpu"))
    assert seen[:, 0].all()
    assert float(seen.all(1).float().mean()) == pytest.approx(0.5 + 0.5 / Q, abs=0.04)


def test_levels_may_have_codebooks_of_their_own_sizes():
    quantizer = build(codebook_size=[32, 16, 8, 4], num_codebooks=4).eval()
    assert quantizer.codebook_sizes == (32, 16, 8, 4)
    codes, _ = quantizer.encode(latents(2, 200))
    assert [int(book.max()) < size for book, size in zip(codes.unbind(1), (32, 16, 8, 4), strict=True)] == [True] * 4
    with pytest.raises(ConfigError, match="expected 4 sizes, found 2"):
        parse_config({"num_codebooks": 4, "codebook_size": [8, 8]}, ResidualConfig, "here")


def test_metrics_are_told_for_each_codebook():
    metrics = build()(latents()).metrics
    assert {
        f"{name}_{q}" for name in ("perplexity", "quantization_error", "revived_codes", "left") for q in range(Q)
    } == set(metrics)


def test_left_is_the_share_of_the_energy_that_the_codebooks_leave():
    quantizer, z = build().eval(), 5 + latents(10)
    metrics, left = quantizer(z).metrics, z
    for number, level in enumerate(quantizer.levels):
        left = left - level.decode(level.encode(left)[0])
        rest, whole = (x.mT.reshape(-1, DIM).var(0, correction=0).sum() for x in (left, z))
        torch.testing.assert_close(metrics[f"left_{number}"], rest / whole)


# --- codes of other latents ------------------------------------------------------------------------------------


def test_settled_codes_are_means_of_the_new_latents_level_by_level():
    quantizer = build().eval()
    before = [level.codebook.clone() for level in quantizer.levels]
    turn = torch.linalg.qr(torch.randn(DIM, DIM))[0]
    z = torch.einsum("ij,bjf->bif", 0.8 * torch.eye(DIM) + 0.2 * turn, latents(40, 25))  # As an encoder drifts.
    error = (quantizer(z).latents - z).square().mean()
    statistics = {name: value.clone() for name, value in quantizer.named_buffers()}
    quantizer.settle(z)
    assert (quantizer(z).latents - z).square().mean() < error
    left = z.mT.reshape(-1, DIM)
    for level, old in zip(quantizer.levels, before, strict=True):
        chosen = (left[:, None] - old[None]).square().sum(-1).argmin(-1)
        for code in range(K):
            expected = torch.cat([old[code : code + 1], left[chosen == code]]).mean(0)
            torch.testing.assert_close(level.codebook[code], expected, atol=1e-4, rtol=1e-4)
        left = left - level.codebook[(left[:, None] - level.codebook[None]).square().sum(-1).argmin(-1)]
    assert all(torch.equal(statistics[name], value) for name, value in quantizer.named_buffers())


def test_codebooks_that_gradients_train_do_not_settle():
    quantizer = build(update="gradient").eval()
    before = quantizer.levels[0].codebook.clone()
    quantizer.settle(latents() + 3)
    assert torch.equal(quantizer.levels[0].codebook, before)
