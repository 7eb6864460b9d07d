"""Patterns of several codebooks: where each code stands, and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audiovq.nn.pattern import Pattern

KINDS = ("delay", "flatten")
SILENCE = 99


def numbered(books: int, frames: int) -> torch.Tensor:
    """Codes that tell where they are from: 10 * codebook + frame."""
    return 10 * torch.arange(books)[:, None] + torch.arange(frames)


def test_delay_shifts_each_codebook_by_one_step_more():
    assert Pattern("delay", 3).arrange(numbered(3, 4), SILENCE).tolist() == [
        [0, 1, 2, 3, 99, 99],
        [99, 10, 11, 12, 13, 99],
        [99, 99, 20, 21, 22, 23],
    ]


def test_flatten_takes_one_code_a_step():
    assert Pattern("flatten", 3).arrange(numbered(3, 2), SILENCE).tolist() == [
        [0, 99, 99, 1, 99, 99],
        [99, 10, 99, 99, 11, 99],
        [99, 99, 20, 99, 99, 21],
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_one_codebook_stays_as_it_is(kind):
    codes = numbered(1, 6)
    assert torch.equal(Pattern(kind, 1).arrange(codes, SILENCE), codes)


@given(kind=st.sampled_from(KINDS), books=st.integers(1, 5), frames=st.integers(1, 9), batch=st.integers(1, 3))
def test_every_code_is_at_one_step_and_comes_back(kind, books, frames, batch):
    pattern = Pattern(kind, books)
    codes = torch.arange(batch * books * frames).reshape(batch, books, frames)
    steps = pattern.arrange(codes, -1)
    assert steps.shape == (batch, books, pattern.num_steps(frames))
    assert steps[steps >= 0].sort().values.tolist() == codes.flatten().tolist()
    assert torch.equal(pattern.restore(steps), codes)


@given(kind=st.sampled_from(KINDS), books=st.integers(1, 5), frames=st.integers(2, 9))
def test_the_codes_of_a_codebook_keep_their_order_and_those_of_a_frame_go_up(kind, books, frames):
    steps = Pattern(kind, books).arrange(numbered(books, frames), -1)
    places = (steps >= 0).long().argsort(dim=1, descending=True, stable=True)[:, :frames]
    assert (places.diff(dim=0) > 0).all()
    assert (places.diff(dim=1) > 0).all()
