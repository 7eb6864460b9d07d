"""Crops of codes: where they are from is a function of (seed, index), and what they hold is a part of the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from audiovq.errors import TokenError
from audiovq.nn.pattern import Pattern
from audiovq.tokens import CodeCrops, TokenSet, code_counts

SIZE = 500
LENGTHS = {"long": 60, "short": 5, "middle": 20}


@pytest.fixture(params=[(1, "delay"), (2, "delay"), (2, "flatten")], ids=lambda param: f"{param[0]}-{param[1]}")
def pattern(request) -> Pattern:
    return Pattern(request.param[1], request.param[0])


@pytest.fixture
def tokens(pattern, write_tokens, tmp_path) -> TokenSet:
    """Three utterances, every code of which occurs once."""
    codes, first = {}, 0
    for name, length in LENGTHS.items():
        count = pattern.num_codebooks * length
        codes[name, None] = np.arange(first, first + count).reshape(-1, length)
        first += count
    return TokenSet(write_tokens(tmp_path / "tokens", codes, SIZE))


def crops_of(tokens: TokenSet, pattern: Pattern, rows=(0, 1, 2), frames: int = 12, seed: int = 0) -> CodeCrops:
    return CodeCrops(tokens, rows, pattern, SIZE, frames, 64, seed)


def test_a_crop_is_a_part_of_the_steps_of_its_utterance_and_the_step_before(tokens, pattern):
    crops = crops_of(tokens, pattern)
    batch = crops.batch(0)
    assert batch.shape == (64, pattern.num_codebooks, 12 * pattern.stride + 1)
    for crop, row in zip(batch, crops.rows(0), strict=True):
        whole = pattern.arrange(torch.from_numpy(tokens[row].codes.astype(np.int64)), SIZE)
        whole = torch.nn.functional.pad(whole, (1, crops.crop_steps), value=SIZE)
        last = max(0, whole.shape[-1] - 1 - 2 * crops.crop_steps)
        assert any(torch.equal(crop, whole[:, start : start + crop.shape[-1]]) for start in range(last + 1))


def test_every_code_is_in_some_crop_and_the_whole_of_a_short_utterance_in_each_of_its(tokens, pattern):
    crops = crops_of(tokens, pattern)
    batches = torch.cat([crops.batch(index) for index in range(20)])
    total = pattern.num_codebooks * sum(LENGTHS.values())
    # The first step of a crop is seen and not predicted.
    assert sorted(set(batches[..., 1:].flatten().tolist()) - {SIZE}) == list(range(total))
    for crop, row in zip(crops.batch(0), crops.rows(0), strict=True):
        if row == 1:
            assert set(tokens[row].codes.flatten().tolist()) == set(crop.flatten().tolist()) - {SIZE}


def test_utterances_are_drawn_in_proportion_to_their_frames(tokens, pattern):
    crops = crops_of(tokens, pattern)
    rows = np.concatenate([crops.rows(index) for index in range(50)])
    shares = np.bincount(rows) / len(rows)
    np.testing.assert_allclose(shares, np.array([*LENGTHS.values()]) / sum(LENGTHS.values()), atol=0.03)


def test_a_batch_is_a_function_of_seed_and_index(tokens, pattern):
    first = crops_of(tokens, pattern)
    first.batch(0)
    again = crops_of(TokenSet(tokens.folder), pattern)
    assert torch.equal(first.batch(7), again.batch(7))
    assert not torch.equal(first.batch(7), first.batch(8))
    assert not torch.equal(first.batch(7), crops_of(tokens, pattern, seed=1).batch(7))


def test_rows_that_are_held_out_are_never_read(tokens, pattern):
    crops = crops_of(tokens, pattern, rows=[2])
    assert crops.rows(0) == [2] * 64
    assert set(crops.batch(0).flatten().tolist()) - {SIZE} == set(tokens[2].codes.flatten().tolist())


def test_codes_are_counted_for_each_codebook(write_tokens, tmp_path: Path):
    tokens = TokenSet(write_tokens(tmp_path, {("a", None): np.array([[0, 2, 2], [1, 1, 1]])}, 3))
    assert code_counts(tokens, tokens[0]).tolist() == [[1, 0, 2], [0, 3, 0]]


def test_a_code_outside_the_codebook_is_refused(write_tokens, tmp_path: Path):
    tokens = TokenSet(write_tokens(tmp_path, {("a", None): np.array([[0, 3]])}, 3))
    with pytest.raises(TokenError, match="utterance 'a' holds code 3, the codebook has 3"):
        code_counts(tokens, tokens[0])
