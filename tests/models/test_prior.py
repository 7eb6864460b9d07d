"""The prior's likelihood: causal at every position, exact under both patterns, and that from which codes are drawn."""

from __future__ import annotations

import itertools

import pytest
import torch

from audiovq.errors import TokenError
from audiovq.models import prior as module
from audiovq.models.prior import UNKNOWN, PriorNetwork
from audiovq.sampling.cached import CachedWaveNet
from audiovq.sampling.graphs import GraphWaveNet
from audiovq.sampling.stepping import fastest_stepper

CASES = [(1, "delay"), (1, "flatten"), (3, "delay"), (3, "flatten")]
both_patterns = pytest.mark.parametrize(("books", "pattern"), CASES)


def random_codes(*shape: int, size: int = 7) -> torch.Tensor:
    return torch.randint(size, shape)


def step_of(pattern: str, books: int, book: int, frame: int) -> int:
    return frame + book if pattern == "delay" else frame * books + book


@both_patterns
@pytest.mark.parametrize("kernel_size", [2, 3])
def test_a_code_acts_on_the_codes_after_it_within_the_receptive_field_and_on_no_others(
    tiny_prior, books, pattern, kernel_size
):
    prior = tiny_prior(books, pattern=pattern, kernel_size=kernel_size)
    field = prior.config.receptive_field
    network = prior.network.double()  # So that no small difference is lost in rounding.
    codes = random_codes(1, books, field + 5)
    before = network.log_prob(codes)
    for book, frame in itertools.product(range(books), range(codes.shape[-1])):
        changed = codes.clone()
        changed[0, book, frame] = (codes[0, book, frame] + 1) % 7
        differs = network.log_prob(changed)[0] != before[0]
        at = step_of(pattern, books, book, frame)
        for other, place in itertools.product(range(books), range(codes.shape[-1])):
            distance = step_of(pattern, books, other, place) - at
            expected = 1 <= distance <= field or (other, place) == (book, frame)
            assert differs[other, place] == expected, ((book, frame), (other, place))


@pytest.mark.parametrize(("books", "pattern"), [(1, "delay"), (2, "delay"), (2, "flatten")])
def test_the_probabilities_of_all_codes_add_up_to_one(tiny_prior, books, pattern):
    frames, size = 4 if books == 1 else 2, 3
    network = tiny_prior(books, size, pattern=pattern).network
    every = torch.tensor(list(itertools.product(range(size), repeat=books * frames))).view(-1, books, frames)
    assert network.log_prob(every).double().sum((1, 2)).exp().sum().item() == pytest.approx(1, abs=1e-5)


@both_patterns
def test_the_likelihood_is_the_product_of_the_conditionals_step_by_step(tiny_prior, books, pattern):
    """Written another way: the whole past is passed for each step anew, and the step's softmax read off."""
    network = tiny_prior(books, pattern=pattern).network
    codes = random_codes(2, books, 5)
    steps = network.pattern.arrange(codes, network.silence)
    expected = torch.zeros(2)
    for number in range(steps.shape[-1]):
        past = torch.cat([torch.full_like(steps[..., :1], network.silence), steps[..., :number]], -1)
        log_p = network.network.predict(past)[..., -1].log_softmax(-1)
        for item, book in itertools.product(range(2), range(books)):
            if (code := int(steps[item, book, number])) != network.silence:
                expected[item] += log_p[item, book, code]
    torch.testing.assert_close(network.log_prob(codes).sum((1, 2)), expected, atol=1e-4, rtol=0)


@both_patterns
def test_scoring_in_pieces_changes_nothing(tiny_prior, books, pattern, monkeypatch):
    network = tiny_prior(books, pattern=pattern).network
    codes = random_codes(2, books, 40)
    whole = network.log_prob(codes)
    monkeypatch.setattr(module, "PIECE", 7)
    torch.testing.assert_close(network.log_prob(codes), whole, atol=1e-5, rtol=0)


@both_patterns
def test_codes_are_drawn_from_the_conditionals_that_the_likelihood_is_made_of(tiny_prior, books, pattern):
    """The likeliest codes: each of them is the largest of its conditional, given those drawn before it."""
    network = tiny_prior(books, pattern=pattern).network
    uniforms = torch.rand(2, books, network.pattern.num_steps(9))
    codes = network.draw(torch.full((2, books, 9), UNKNOWN), uniforms, temperature=0.0)
    steps = torch.nn.functional.pad(network.pattern.arrange(codes, network.silence), (1, 0), value=network.silence)
    best = network(steps).argmax(2)
    assert torch.equal(network.pattern.restore(best), codes)


@both_patterns
def test_draws_have_the_frequencies_of_the_likelihood(tiny_prior, books, pattern):
    network = tiny_prior(books, 3, pattern=pattern).network
    count, frames = 4000, 2
    uniforms = torch.rand(count, books, network.pattern.num_steps(frames))
    codes = network.draw(torch.full((count, books, frames), UNKNOWN), uniforms)
    kinds, counts = codes.flatten(1).unique(dim=0, return_counts=True)
    p = network.log_prob(kinds.view(-1, books, frames)).sum((1, 2)).exp()
    likely = p > 20 / count
    assert likely.sum() >= 3
    deviations = (counts[likely] - count * p[likely]) / (count * p * (1 - p))[likely].sqrt()
    assert deviations.abs().max() < 4.5


STEPPERS = {"fastest": fastest_stepper, "cached": CachedWaveNet, "graph": GraphWaveNet}


@pytest.mark.parametrize("stepper", STEPPERS.values(), ids=STEPPERS)
@pytest.mark.parametrize("sizes", [None, [7, 4, 2]], ids=["alike", "different"])
@both_patterns
def test_the_likelihood_is_the_product_of_what_a_sampler_computes_step_by_step(
    tiny_prior, books, pattern, sizes, stepper
):
    sizes = sizes[-books:] if sizes else [7] * books
    network = tiny_prior(books, max(sizes), sizes=sizes, pattern=pattern).network
    codes = torch.stack([random_codes(2, 9, size=size) for size in sizes], 1)
    steps, stepping = network.pattern.arrange(codes, network.silence), stepper(network.network, 2)
    previous, total = stepping.start(), torch.zeros(2)
    for number in range(steps.shape[-1]):
        log_p = stepping.step(previous, None).log_softmax(-1)
        previous = steps[..., number]
        for item, book in itertools.product(range(2), range(books)):
            if (code := int(previous[item, book])) != network.silence:
                total[item] += log_p[item, book, code]
    torch.testing.assert_close(network.log_prob(codes).sum((1, 2)), total, atol=1e-3, rtol=0)


# --- codebooks of different sizes ---------------------------------------------------------------------------

SIZES = [5, 3, 2]
different = pytest.mark.parametrize("pattern", ["delay", "flatten"])


@different
def test_the_probabilities_of_all_codes_that_there_are_add_up_to_one(tiny_prior, pattern):
    network = tiny_prior(2, 3, sizes=[3, 2], pattern=pattern).network
    every = torch.tensor(list(itertools.product(range(3), range(3), range(2), range(2)))).view(-1, 2, 2)
    assert network.log_prob(every).double().sum((1, 2)).exp().sum().item() == pytest.approx(1, abs=1e-5)


@different
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0}, {"temperature": 1e6}, {"top_k": 5, "top_p": 0.99}])
def test_no_code_is_drawn_that_its_codebook_does_not_have(tiny_prior, pattern, settings):
    prior = tiny_prior(3, 5, sizes=SIZES, pattern=pattern)
    codes = prior.sample(50, 20, **settings)
    for book, size in zip(codes.unbind(1), SIZES, strict=True):
        assert 0 <= book.min() <= book.max() < size
        if settings.get("temperature") != 0.0:
            assert len(book.unique()) == size


@different
def test_codes_that_there_are_not_give_no_gradient_and_no_loss(tiny_prior, pattern):
    network = tiny_prior(3, 5, sizes=SIZES, pattern=pattern).network.train().requires_grad_(True)
    codes = torch.stack([random_codes(8, 12, size=size) for size in SIZES], 1)
    steps = network.pattern.arrange(codes, network.silence)
    targets = steps[..., 1:]
    loss = torch.nn.functional.cross_entropy(network(steps).transpose(1, 2), targets, ignore_index=network.silence)
    loss.backward()
    assert loss.isfinite()
    assert all(weight.grad.isfinite().all() for weight in network.parameters())
    of_class = network.network.head[-1].weight.grad.flatten(1).abs().sum(1).view(3, 5)
    assert torch.equal(of_class > 0, torch.arange(5) < torch.tensor(SIZES)[:, None])


def test_a_prime_is_compared_with_the_size_of_each_codebook(tiny_prior):
    prior = tiny_prior(3, 5, sizes=SIZES)
    with pytest.raises(TokenError, match="expected codes from 0 to 2, found 3 to 3"):
        prior.sample(1, 5, prime=torch.tensor([[4], [3], [1]]))
    assert prior.sample(1, 5, prime=torch.tensor([[4], [2], [1]]))[0, :, 0].tolist() == [4, 2, 1]
    assert prior.describe()["codes"] == "5 + 3 + 2"


# --- speakers ------------------------------------------------------------------------------------------------

NAMES = ["allison", "june"]


def test_the_speaker_changes_every_code_s_probability(tiny_prior):
    network = tiny_prior(2, speaker_dim=3, speakers=NAMES).network
    codes = random_codes(1, 2, 6).expand(3, -1, -1)
    scored = network.log_prob(codes, torch.tensor([0, 1, 2]))
    for one, other in itertools.combinations(range(3), 2):
        assert (scored[one] != scored[other]).all()
    assert torch.equal(network.log_prob(codes[:1]), network.log_prob(codes[:1], torch.tensor([2])))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.9])
def test_a_share_of_the_speakers_is_not_told_in_training_alone(tiny_prior, share):
    network: PriorNetwork = tiny_prior(1, speaker_dim=3, speakers=NAMES, speaker_dropout=share).network
    steps, speaker = random_codes(1, 1, 5).expand(400, -1, -1), torch.ones(400, dtype=torch.long)
    told, untold = network(steps, speaker), network(steps)
    assert not torch.isclose(told, untold).any()
    logits = network.train()(steps, speaker)
    network.eval()
    lost = torch.isclose(logits, untold).flatten(1).all(1)
    assert torch.equal(lost, ~torch.isclose(logits, told).flatten(1).all(1))
    assert float(lost.float().mean()) == pytest.approx(share, abs=0.08)
    assert lost.any() == bool(share)


def test_every_weight_gets_a_gradient(tiny_prior):
    network = tiny_prior(2, speaker_dim=3, speakers=NAMES, speaker_dropout=0.5).network.train().requires_grad_(True)
    steps = network.pattern.arrange(random_codes(32, 2, 12), network.silence)
    logits = network(steps, torch.tensor([0, 1] * 16))
    targets = steps[..., 1:]
    torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, ignore_index=network.silence).backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []
    assert (network.speakers.weight.grad.abs().sum(1) > 0).all()
