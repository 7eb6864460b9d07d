"""Drawing from logits: the distribution, its filters, and what a draw may depend on."""

from __future__ import annotations

import math

import pytest
import torch

from audiovq.sampling.base import Stepper, sample

PROBABILITIES = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])
LOGITS = PROBABILITIES.log() + 3.0


def shares(count: int = 2000, **options) -> list[float]:
    """How often each class is drawn by evenly spaced numbers."""
    uniforms = (torch.arange(count) / count)[:, None]
    drawn = sample(LOGITS.expand(count, 1, -1), uniforms, **options)
    return (drawn.flatten().bincount(minlength=5) / count).tolist()


def normalized(weights: list[float]) -> list[float]:
    return [weight / math.fsum(weights) for weight in weights]


def test_classes_are_drawn_with_their_probabilities():
    assert shares() == pytest.approx(PROBABILITIES.tolist(), abs=1e-3)


@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_temperature_is_a_power_of_the_probabilities(temperature):
    expected = normalized([p ** (1 / temperature) for p in PROBABILITIES.tolist()])
    assert shares(temperature=temperature) == pytest.approx(expected, abs=1e-3)


def test_temperature_zero_takes_the_likeliest():
    assert shares(temperature=0.0) == [0, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"top_k": 1}, [0, 1, 0, 0, 0]),
        ({"top_k": 2}, [0, 0.4, 0, 0.3, 0]),
        ({"top_k": 99}, PROBABILITIES.tolist()),
        ({"top_p": 0.0}, [0, 1, 0, 0, 0]),
        ({"top_p": 0.39}, [0, 1, 0, 0, 0]),
        ({"top_p": 0.71}, [0, 0.4, 0, 0.3, 0.15]),
        ({"top_p": 0.99}, PROBABILITIES.tolist()),
        # Of three classes 0.47, 0.35 and 0.18 are left, of which two make up 0.8: filters act in turn.
        ({"top_k": 3, "top_p": 0.8}, [0, 0.4, 0, 0.3, 0]),
    ],
)
def test_filters_keep_the_likeliest_classes(options, expected):
    assert shares(**options) == pytest.approx(normalized(expected), abs=1e-3)


def test_classes_that_tie_are_kept_together():
    uniforms = (torch.arange(100) / 100)[:, None]
    logits = torch.tensor([0.0, 2.0, 2.0, 1.0]).expand(100, 1, -1)
    for options in ({"top_k": 1}, {"top_p": 0.1}):
        assert sample(logits, uniforms, **options).unique().tolist() == [1, 2]


def test_impossible_classes_are_never_drawn():
    logits = torch.tensor([[[-torch.inf, 0.0, -torch.inf]]])
    for number in (0.0, 0.5, 1 - 2**-24):
        assert sample(logits, torch.tensor([[number]])).item() == 1


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.8}])
def test_a_draw_does_not_depend_on_its_batch(options):
    logits, uniforms = 4 * torch.randn(7, 3, 64), torch.rand(7, 3)
    together = sample(logits, uniforms, **options)
    for item in range(7):
        assert torch.equal(sample(logits[item : item + 1], uniforms[item : item + 1], **options)[0], together[item])


class Chain(Stepper):
    """A Markov chain: the class after c is most often c + 1."""

    def start(self):
        return torch.zeros(2, 1, dtype=torch.long)

    def step(self, classes, condition=None):
        logits = 2.0 * torch.nn.functional.one_hot((classes + 1) % 4, 4)
        return logits if condition is None else logits + condition[:, :1]


def test_generating_is_stepping_and_drawing_in_turn():
    chain, uniforms, condition = Chain(), torch.rand(1, 1, 20), torch.randn(2, 1, 4)
    drawn = chain.generate(chain.start(), uniforms, condition, temperature=0.8)
    assert drawn.shape == (2, 1, 20)
    previous = chain.start()
    for t in range(20):
        previous = sample(chain.step(previous, condition), uniforms[..., t], temperature=0.8)
        assert torch.equal(drawn[..., t], previous), t
    assert chain.generate(chain.start(), uniforms, temperature=0.0)[0, 0, :5].tolist() == [1, 2, 3, 0, 1]
