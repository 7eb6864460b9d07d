"""Finite scalar quantization against its formula, its gradient against autograd, its margins by moving latents."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from audiovq.bottlenecks import fsq as fsq_module
from audiovq.bottlenecks.fsq import FiniteScalarQuantizer
from audiovq.bottlenecks.residual import ResidualStack
from audiovq.config import FSQConfig, parse_config
from audiovq.errors import ConfigError

DIM = 8
LEVELS = {"even": [4, 8], "odd": [3, 5, 7], "mixed": [8, 5, 2], "one": [16], "binary": [2, 2, 2, 2]}


def build(levels, num_codebooks: int = 1, dropout: float = 0.0) -> FiniteScalarQuantizer:
    """In evaluation, after a step that brought it statistics of latents."""
    quantizer = FiniteScalarQuantizer(DIM, levels, num_codebooks, dropout).train()
    for _ in range(30):
        quantizer(latents(4, 50))
    return quantizer.eval()


def latents(batch: int = 3, frames: int = 40) -> torch.Tensor:
    return 1 + 2 * torch.randn(batch, DIM, frames)


@pytest.fixture(params=LEVELS)
def levels(request):
    return LEVELS[request.param]


def plain(levels, u: torch.Tensor) -> torch.Tensor:
    """The values of numbers u [..., d], as the docstring has them."""
    last = torch.tensor(levels).to(u) - 1
    return 2 * torch.round(last * (u.tanh() + 1) / 2) / last - 1


def test_numbers_are_rounded_as_the_formula_says(levels):
    quantizer = build(levels, num_codebooks=2)
    z = latents()
    seen = []
    quantizer.project_out.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    quantizer(z)
    expected = plain(levels * 2, quantizer._features(z).mT)
    torch.testing.assert_close(seen[0], expected)


def test_odd_levels_are_those_of_the_paper():
    """In its section 3.1: round(L // 2 * tanh(z)), which the decoder sees divided by L // 2."""
    levels = [5, 7]
    u = torch.randn(1000, 2, dtype=torch.float64)
    half = (torch.tensor(levels) - 1) / 2
    torch.testing.assert_close(plain(levels, u), torch.round(half * u.tanh()) / half)


def test_all_codes_can_be_reached_and_each_has_values_of_its_own(levels):
    quantizer = build(levels)
    size = math.prod(levels)
    assert quantizer.codebook_sizes == (size,)
    codes = torch.arange(size)[None, None]
    values = quantizer._values(codes[:, 0, None] // quantizer.places[:, None] % quantizer.levels[:, None])
    assert len(values[0].mT.unique(dim=0)) == size
    assert (values.amin(-1) == -1).all()
    assert (values.amax(-1) == 1).all()
    # Latents whose features lie where the tanh gives the values; the extremes are its limits.
    u = torch.atanh(values.double() * (1 - 1e-9))
    quantizer = quantizer.double()
    weight = quantizer.project_in.weight * quantizer.batch_norm.scale()[:, None]
    shift = quantizer._features(torch.zeros(1, DIM, 1, dtype=torch.float64))
    z = (torch.linalg.pinv(weight) @ (u - shift)[0])[None]
    found, margin = quantizer.encode(z)
    assert torch.equal(found, codes)
    assert (margin > 0).all()


def test_the_gradient_is_that_of_the_bound_alone(levels):
    quantizer = build(levels, num_codebooks=2).double()
    z = latents().double().requires_grad_()
    weights = torch.randn(3, DIM, 40, dtype=torch.float64)
    (found,) = torch.autograd.grad((quantizer(z).latents * weights).sum(), z)
    bounded = quantizer.project_out(quantizer._features(z).tanh().mT).mT
    (expected,) = torch.autograd.grad((bounded * weights).sum(), z)
    torch.testing.assert_close(found, expected)


def test_in_a_residual_stack_the_gradients_of_all_levels_add_up():
    """What a level takes away carries none: r_{q+1} = r_q - sg[z_q]."""
    stack = ResidualStack([FiniteScalarQuantizer(DIM, [8, 5]) for _ in range(3)], dropout=0.0).double()
    for _ in range(30):
        stack.train()(latents().double())
    stack.eval()
    z = latents().double().requires_grad_()
    weights = torch.randn(3, DIM, 40, dtype=torch.float64)
    output = stack(z)
    (found,) = torch.autograd.grad((output.latents * weights).sum(), z)
    expected, taken = torch.zeros_like(z), torch.zeros_like(z)
    for number in range(3):
        level = stack.level(number)
        assert isinstance(level, FiniteScalarQuantizer)
        rest = (z - taken).detach().requires_grad_()
        bounded = level.project_out(level._features(rest).tanh().mT).mT
        (of_level,) = torch.autograd.grad((bounded * weights).sum(), rest)
        assert of_level.abs().sum() > 0
        expected += of_level
        taken += level.decode(output.codes[:, number : number + 1]).detach()
    torch.testing.assert_close(found, expected)


def test_the_loss_is_zero():
    assert build([8, 5]).train()(latents()).loss == 0


def test_a_latent_keeps_its_codes_within_the_margin_and_changes_them_beyond(levels):
    quantizer = build(levels, num_codebooks=2).double()
    z = latents().double()
    codes, margin = quantizer.encode(z)
    assert (margin > 0).all()
    weight = quantizer.project_in.weight
    directions = [sign * row / row.norm() for row in weight for sign in (1, -1)]
    for share, unchanged in ((0.999, 1.0), (1.001, 0.0)):
        same = torch.ones_like(margin, dtype=torch.bool)
        for direction in directions:
            moved = z + share * margin[:, None] * direction[:, None]
            same &= (quantizer.encode(moved)[0] == codes).all(1)
        assert same.double().mean() == unchanged


def test_what_rounding_could_decide_has_a_negative_margin_and_the_code_of_double_precision():
    """Latents on a boundary to within rounding, in many scales; the lower level is theirs."""
    quantizer = build([6], 1)
    with torch.no_grad():
        quantizer.project_in.bias.zero_()
        quantizer.batch_norm.mean.zero_()
    row = quantizer.project_in.weight[0].detach()
    across = torch.randn(1000, DIM) * torch.logspace(-3, 3, 1000)[:, None]
    across = across - (across @ row)[:, None] * row / row.square().sum()
    z = across.mT[None]
    codes, margin = quantizer.encode(z)
    exact, _ = quantizer.double().encode(z.double())
    assert len(exact.unique()) == 2, "the boundary between levels 2 and 3 is at 0"
    assert (margin < 0).all()
    assert (codes == 2).all()


def test_without_the_tolerance_rounding_would_decide_without_notice(monkeypatch):
    """The tests of exactness can fail: some codes of positive margin differ from double precision's."""
    quantizer, z = build([8, 5, 5, 5], 4), 1e4 + latents(20, 500)
    features = quantizer.project_in(z.mT).detach()
    quantizer.batch_norm.mean.copy_(features.mean((0, 1)))
    quantizer.batch_norm.variance.copy_(features.var((0, 1)))
    exact = copy.deepcopy(quantizer).double()
    wrong = {}
    for tolerance in (fsq_module.SCORE_ERROR, 0):
        monkeypatch.setattr(fsq_module, "SCORE_ERROR", tolerance)
        codes, margin = quantizer.encode(z)
        different = (codes != exact.encode(z.double())[0]).any(1)
        wrong[tolerance] = int((different & (margin > 0)).sum())
    assert wrong[8] == 0
    assert wrong[0] > 0


def test_what_a_level_is_left_with_is_as_uncertain_as_what_the_stack_was_given(monkeypatch):
    """Latents with a large constant part, which the first level takes away."""
    stack = ResidualStack([FiniteScalarQuantizer(DIM, [8, 5, 5, 5]) for _ in range(2)], dropout=0.0)
    with torch.no_grad():
        stack.level(0).project_out.bias.fill_(1e4)
    for _ in range(200):
        stack.train()(1e4 + latents())
    exact = copy.deepcopy(stack.eval()).double()
    z = 1e4 + latents(20, 500)
    expected, _ = exact.encode(z.double())

    def wrong() -> int:
        codes, margin = stack.encode(z)
        return int(((codes != expected).any(1) & (margin > 0)).sum())

    assert wrong() == 0
    choose = FiniteScalarQuantizer.choose
    monkeypatch.setattr(FiniteScalarQuantizer, "choose", lambda self, z, scale: choose(self, z))
    assert wrong() > 0, "the assertion above says nothing"


@pytest.mark.parametrize("structure", ["groups", "residual"])
def test_fewer_codebooks_are_the_first_of_all(structure, tiny_config):
    settings = FSQConfig(levels=[5, 4], num_codebooks=3, structure=structure)
    bottleneck = settings.build(tiny_config().model_copy(update={"bottleneck": settings}))
    bottleneck.train()(latents())
    bottleneck.eval()
    z = latents()
    codes, margin = bottleneck.encode(z)
    for number in (1, 2):
        some, some_margin = bottleneck.encode(z, number)
        assert torch.equal(some, codes[:, :number])
        assert (some_margin >= margin).all()
        assert (some_margin > margin).any()


def test_groups_that_are_not_told_count_as_zero():
    quantizer = build([5, 4], num_codebooks=3)
    codes, _ = quantizer.encode(latents())
    values = quantizer.project_out.weight, quantizer.project_out.bias
    numbers = torch.stack([codes[:, 0] % 5 / 2 - 1, codes[:, 0] // 5 / 1.5 - 1], -1)
    expected = numbers @ values[0][:, :2].mT + values[1]
    torch.testing.assert_close(quantizer.decode(codes[:, :1]), expected.mT)


@pytest.mark.parametrize("structure", ["groups", "residual"])
def test_dropout_shows_the_decoder_what_decoding_the_first_codebooks_gives(structure, tiny_config):
    settings = FSQConfig(levels=[5, 4], num_codebooks=3, structure=structure, dropout=1.0)
    bottleneck = settings.build(tiny_config().model_copy(update={"bottleneck": settings}))
    output = bottleneck.train()(latents(200, 3))
    sums = torch.stack([bottleneck.decode(output.codes[:, :number]) for number in (1, 2, 3)])
    distances = (sums - output.latents).abs().amax((2, 3))
    assert distances.amin(0).max() < 1e-5
    assert (torch.bincount(distances.argmin(0), minlength=3) > 40).all()
    output = bottleneck.eval()(latents(20, 3))
    torch.testing.assert_close(output.latents, bottleneck.decode(output.codes))


def test_levels_of_a_residual_stack_bring_what_is_left_to_the_size_that_they_round_well(tiny_config):
    settings = FSQConfig(levels=[8] * 4, num_codebooks=3, structure="residual")
    stack = settings.build(tiny_config().model_copy(update={"bottleneck": settings}))
    assert isinstance(stack, ResidualStack)
    for _ in range(30):
        output = stack.train()(0.01 * latents())
    assert all(len(book.unique()) > 30 for book in output.codes.unbind(1))


@pytest.mark.parametrize("structure", ["groups", "residual"])
def test_it_learns_to_keep_latents_and_each_codebook_keeps_more(structure, tiny_config):
    settings = FSQConfig(levels=[8, 5], num_codebooks=3, structure=structure)
    bottleneck = settings.build(tiny_config().model_copy(update={"bottleneck": settings}))
    optimizer = torch.optim.Adam(bottleneck.parameters(), 1e-2)
    mix = torch.randn(DIM, DIM)
    for _ in range(200):
        z = mix @ torch.randn(8, DIM, 50)
        optimizer.zero_grad()
        (bottleneck.train()(z).latents - z).square().mean().backward()
        optimizer.step()
    bottleneck.eval().requires_grad_(requires_grad=False)
    z = mix @ torch.randn(8, DIM, 50)
    codes, _ = bottleneck.encode(z)
    shares = [float((bottleneck.decode(codes[:, :n]) - z).square().mean() / z.square().mean()) for n in (1, 2, 3)]
    assert shares[0] < 0.75
    assert shares[1] < 0.75 * shares[0]
    assert shares[2] < 0.75 * shares[1]


def test_perplexity_follows_the_use_of_each_codebook(monkeypatch):
    quantizer = FiniteScalarQuantizer(DIM, [4, 4], 2).train()
    metrics = quantizer(latents()).metrics
    assert set(metrics) == {"perplexity_0", "perplexity_1"}
    assert all(15.5 < value < 16 for value in metrics.values()), "one batch hardly moves the average"
    constant = latents(1, 1).expand(4, DIM, 30) + 1e-3 * torch.randn(4, DIM, 30)
    monkeypatch.setattr(quantizer.batch_norm, "forward", quantizer.batch_norm.by_averages)
    for _ in range(600):
        quantizer(constant)
    assert all(value < 2 for value in quantizer(constant).metrics.values())
    assert set(build([4]).train()(latents()).metrics) == {"perplexity"}


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([256, 257], "expected a product of at most 65536, found 65792"),
        ([], "at least 1 item"),
        ([8, 1], "greater than or equal to 2"),
    ],
)
def test_settings_are_checked(levels, message):
    with pytest.raises(ConfigError, match=message):
        parse_config({"levels": levels}, FSQConfig, "here")
    assert FSQConfig(levels=[256, 256]).levels == [256, 256]
