"""Training a prior: it learns, its figures are right, it resumes exactly, and it refuses codes that do not fit."""

from __future__ import annotations

import json
import math
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from audiovq.config import PriorExperimentConfig
from audiovq.errors import ConfigError, SpeakerError, Stopped, TokenError
from audiovq.models.prior import CodePrior, PriorNetwork
from audiovq.training.prior import PriorTask, read_parts, train_prior

Make = Callable[..., PriorExperimentConfig]


def speech_like(seed: int, books: int = 1, size: int = 8, count: int = 12) -> dict:
    """Utterances of two speakers, in whose codes each step goes on from the one before with a probability of a half."""
    generator = np.random.default_rng(seed)
    found = {}
    for number in range(count):
        frames = int(generator.integers(20, 60))
        jumps = generator.integers(size, size=(books, frames)) * (generator.random((books, frames)) < 0.5)
        found[f"{seed}-{number}", ("june", "carlo")[number % 2]] = (jumps + 1).cumsum(1) % size
    return found


@pytest.fixture
def sets(write_tokens, tmp_path) -> tuple[Path, Path]:
    train = write_tokens(tmp_path / "train", speech_like(0), 8)
    return train, write_tokens(tmp_path / "valid", speech_like(1, count=5), 8)


@pytest.fixture
def make(sets) -> Make:
    """A run of eight steps with a small network."""

    def experiment(training: dict | None = None, **options) -> PriorExperimentConfig:
        settings = {
            **{"layers": 3, "cycle": 3, "residual_channels": 8, "skip_channels": 8, "speaker_dim": 2},
            **{"speaker_dropout": 0.3, "dropout": 0.1},
            **{"tokens": sets[0], "valid_tokens": sets[1], "crop_frames": 24, "batch_size": 4},
        }
        plain = {"steps": 8, "warmup_steps": 2, "log_every": 1, "valid_every": 3, **(training or {})}
        return PriorExperimentConfig.model_validate({**settings, **options, "training": plain})

    return experiment


def read_metrics(output: Path, part: str) -> list[dict]:
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["part"] == part]


def best_validation(output: Path) -> dict:
    return min(read_metrics(output, "valid"), key=lambda line: line["loss"])


# --- learning ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("books", "pattern"), [(1, "delay"), (2, "delay"), (2, "flatten")])
def test_a_prior_learns_a_tiny_token_set_by_heart_and_continues_it(write_tokens, tmp_path, books, pattern):
    codes = np.random.default_rng(0).integers(16, size=(3, books, 30))
    tokens = write_tokens(tmp_path / "tokens", {(f"utt-{n}", None): item for n, item in enumerate(codes)}, 16)
    network = {"layers": 5, "cycle": 5, "residual_channels": 32, "skip_channels": 64, "pattern": pattern}
    training = {"steps": 150, "warmup_steps": 10, "learning_rate": 1e-2, "valid_every": 150, "log_every": 150}
    config = {**network, "tokens": tokens, "valid_tokens": tokens, "crop_frames": 30, "batch_size": 6}
    train_prior(PriorExperimentConfig.model_validate({**config, "training": training}), tmp_path / "exp", "cpu")
    assert best_validation(tmp_path / "exp")["bits_per_code"] < 0.1

    prior = CodePrior.from_pretrained(tmp_path / "exp/release", "cpu")
    for item in codes:
        continued = prior.sample(2, 30, prime=item[:, :3], temperature=0.0)
        assert np.array_equal(continued, np.stack([item, item]))


def test_the_speaker_is_of_use(write_tokens, tmp_path, make):
    """One speaker counts up, the other down: who knows the speaker knows the second code."""
    codes = {}
    for number in range(16):
        step = (1, -1)[number % 2]
        codes[f"utt-{number:02d}", ("up", "down")[number % 2]] = (number + step * np.arange(2))[None] % 8
    tokens = write_tokens(tmp_path / "counting", codes, 8)
    bits = {}
    for name, options in {"told": {"speaker_dim": 4}, "not told": {"speaker_dim": 0}}.items():
        training = {"steps": 200, "learning_rate": 1e-2, "valid_every": 200, "log_every": 200}
        sets = {"tokens": tokens, "valid_tokens": tokens, "crop_frames": 2, "batch_size": 16}
        config = make(training, **sets, **options, speaker_dropout=0, dropout=0, residual_channels=16)
        train_prior(config, tmp_path / name, "cpu")
        bits[name] = best_validation(tmp_path / name)["bits_per_code"]
    # The first code is one of eight. Half of the speakers count from even and half from odd numbers, so that the first
    # code of a speaker is one of four; the second follows from the speaker, or from the first.
    assert bits["told"] == pytest.approx((2 + 0) / 2, abs=0.1)
    assert bits["not told"] == pytest.approx((3 + 0) / 2, abs=0.1)


# --- figures -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[8], [8, 8], [8, 5]], ids=str)
def test_the_figures_are_those_of_the_definitions(write_tokens, tmp_path, make, sizes):
    """Written another way: code by code, from the released prior."""
    books, of_book = len(sizes), np.array(sizes)[:, None]
    train = {name: item % of_book for name, item in speech_like(0, books).items()}
    valid = {name: item % of_book for name, item in speech_like(1, books, count=5).items()}
    sets = {"tokens": write_tokens(tmp_path / "two/train", train, 8, sizes=sizes)}
    sets["valid_tokens"] = write_tokens(tmp_path / "two/valid", valid, 8, sizes=sizes)
    train_prior(make({"steps": 3}, **sets), tmp_path / "exp", "cpu")
    prior = CodePrior.from_pretrained(tmp_path / "exp/release", "cpu")

    bits, uniform, train_unigram, own_unigram = [], [], [], []
    counts = [Counter(np.concatenate([item[book] for item in train.values()]).tolist()) for book in range(books)]
    own = [Counter(np.concatenate([item[book] for item in valid.values()]).tolist()) for book in range(books)]
    for (_, speaker), item in valid.items():
        told = torch.tensor([prior.speakers.index(speaker)])
        bits += (-prior.network.log_prob(torch.from_numpy(item)[None], told)[0] / math.log(2)).flatten().tolist()
        for book, code in [(number, code) for number, codes in enumerate(item.tolist()) for code in codes]:
            uniform.append(math.log2(sizes[book]))
            train_unigram.append(-math.log2((counts[book][code] + 1) / (counts[book].total() + sizes[book])))
            own_unigram.append(-math.log2(own[book][code] / own[book].total()))
    (found,) = read_metrics(tmp_path / "exp", "valid")
    expected = {
        "loss": np.mean(bits) * math.log(2),
        "bits_per_code": np.mean(bits),
        "bits_per_second": np.mean(bits) * books * 50,
        "gain_over_uniform": np.mean(uniform) - np.mean(bits),
        "gain_over_train_unigram": np.mean(train_unigram) - np.mean(bits),
        "gain_over_unigram": np.mean(own_unigram) - np.mean(bits),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    if books > 1:
        assert np.mean([found["bits_per_code_0"], found["bits_per_code_1"]]) == pytest.approx(found["bits_per_code"])


def test_without_validation_tokens_a_share_is_held_out(make, tmp_path):
    config = make({"steps": 1}, valid_tokens=None, valid_share=0.25)
    train, valid = read_parts(config)
    assert (len(train.rows), len(valid.rows)) == (9, 3)
    assert sorted(train.rows + valid.rows) == list(range(12))
    train_prior(config, tmp_path / "exp", "cpu")
    assert read_metrics(tmp_path / "exp", "valid")


def test_codes_and_speakers_are_those_of_the_token_set(make, tmp_path):
    train_prior(make({"steps": 1}), tmp_path / "exp", "cpu")
    prior = CodePrior.from_pretrained(tmp_path / "exp/release", "cpu")
    assert prior.speakers == ["carlo", "june"]
    assert prior.codes.model_dump() == {
        **{"weights_sha256": "ab" * 32, "sample_rate": 16000, "hop_length": 320, "frame_rate": 50.0},
        **{"num_codebooks": 1, "codebook_size": 8, "codebook_sizes": None},
    }


def test_bf16_trains_in_bf16_and_hardly_changes_the_figures(make, tmp_path, monkeypatch):
    found = {}
    dtypes = set()
    original = PriorNetwork.forward

    def forward(network, *arguments):
        logits = original(network, *arguments)
        dtypes.add(logits.dtype)
        return logits

    monkeypatch.setattr(PriorNetwork, "forward", forward)
    for precision, expected in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        dtypes.clear()
        train_prior(make({"precision": precision}), tmp_path / precision, "cpu")
        assert dtypes == {expected}
        found[precision] = best_validation(tmp_path / precision)["bits_per_code"]
    assert found["bf16"] == pytest.approx(found["fp32"], abs=0.05)
    assert found["bf16"] != found["fp32"]


# --- resuming ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"averaging_decay": 0.5}], ids=["plain", "averaged"])
def test_stopped_and_resumed_is_uninterrupted_to_the_bit(make, tmp_path, monkeypatch, options):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_prior(make(options), whole, "cpu")
    original = PriorTask.update

    def signalled(task, step, batch):
        if step in (2, 5):  # Not the two steps of the rehearsal.
            os.kill(os.getpid(), signal.SIGTERM)
        return original(task, step, batch)

    with monkeypatch.context() as patch:
        patch.setattr(PriorTask, "update", signalled)
        for _ in range(2):
            with pytest.raises(Stopped):
                train_prior(make(options), parts, "cpu")
    train_prior(make(options), parts, "cpu")
    assert len(read_metrics(whole, "train")) == 8
    assert (whole / "metrics.jsonl").read_text() == (parts / "metrics.jsonl").read_text()
    first, second = load_file(whole / "state.safetensors"), load_file(parts / "state.safetensors")
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_a_run_does_not_go_on_with_the_codes_of_another_model(make, sets, write_tokens, tmp_path):
    train_prior(make({"steps": 1}), tmp_path / "exp", "cpu")
    for folder, codes in zip(sets, (speech_like(0), speech_like(1)), strict=True):
        write_tokens(folder, codes, 8, weights_sha256="cd" * 32)
    with pytest.raises(ConfigError, match=r"exp: holds a run with codes\.weights_sha256 = 'abab.*'cdcd.*--force"):
        train_prior(make({"steps": 2}), tmp_path / "exp", "cpu")
    train_prior(make({"steps": 2}), tmp_path / "exp", "cpu", force=True)
    assert CodePrior.from_pretrained(tmp_path / "exp/release", "cpu").codes.weights_sha256 == "cd" * 32


def test_moved_tokens_resume_and_edited_ones_are_refused(make, sets, write_tokens, tmp_path):
    train_prior(make({"steps": 1}), tmp_path / "exp", "cpu")
    moved = sets[0].rename(tmp_path / "moved")
    assert train_prior(make({"steps": 2}, tokens=moved), tmp_path / "exp", "cpu").step == 2
    codes = speech_like(0)
    next(iter(codes.values()))[0, 0] += 1
    next(iter(codes.values()))[0, 0] %= 8
    edited = write_tokens(tmp_path / "edited", codes, 8)
    with pytest.raises(ConfigError, match=r"edited: tokens no longer holds .*--force"):
        train_prior(make({"steps": 3}, tokens=edited), tmp_path / "exp", "cpu")


# --- refusals ------------------------------------------------------------------------------------------------


def refused(config: PriorExperimentConfig, output: Path, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        train_prior(config, output, "cpu")
    assert not output.exists()


def test_training_and_validation_codes_of_different_models_are_refused(make, write_tokens, tmp_path):
    other = write_tokens(tmp_path / "other", speech_like(1), 8, weights_sha256="cd" * 32)
    message = "other: holds codes of another model .weights cdcd.* than .*train .weights abab.*tokenize both"
    refused(make(valid_tokens=other), tmp_path / "exp", TokenError, message)


def test_sets_of_different_numbers_of_codebooks_are_refused(make, write_tokens, tmp_path):
    two = write_tokens(tmp_path / "two", speech_like(1, books=2), 8)
    message = "two: holds 2 of the model's codebooks, .*train holds 1; tokenize both with the same --codebooks"
    refused(make(valid_tokens=two), tmp_path / "exp", TokenError, message)


def test_a_run_does_not_go_on_with_another_number_of_codebooks(make, sets, write_tokens, tmp_path):
    train_prior(make({"steps": 1}), tmp_path / "exp", "cpu")
    for seed, folder in enumerate(sets):
        write_tokens(folder, speech_like(seed, books=2), 8)
    with pytest.raises(ConfigError, match=r"exp: holds a run with codes\.num_codebooks = 1, now it is 2.*--force"):
        train_prior(make({"steps": 2}), tmp_path / "exp", "cpu")


def test_codes_that_are_not_those_of_the_config_are_refused(make, tmp_path, tiny_prior):
    config = make(codes=tiny_prior(1, 8, "cd" * 32).codes)
    message = "train: holds codes with weights_sha256 'abab.*, the config names codes with 'cdcd"
    refused(config, tmp_path / "exp", TokenError, message)


@pytest.mark.parametrize("name", ["tokens", "valid_tokens"])
@pytest.mark.parametrize("codes", [{}, {("a", "june"): np.zeros((1, 0))}], ids=["no rows", "no frames"])
def test_an_empty_token_set_is_refused(make, write_tokens, tmp_path, name, codes):
    empty = write_tokens(tmp_path / "empty", codes, 8)
    refused(make(**{name: empty}), tmp_path / "exp", TokenError, "empty: holds no utterances")


def test_a_set_that_is_too_small_to_hold_utterances_out_is_refused(make, write_tokens, tmp_path):
    small = write_tokens(tmp_path / "small", speech_like(0, count=1), 8)
    refused(
        make(tokens=small, valid_tokens=None),
        tmp_path / "exp",
        TokenError,
        "small: holds too few utterances to hold any out, 1;",
    )


@pytest.mark.parametrize("name", ["tokens", "valid_tokens"])
def test_codes_outside_the_codebook_are_found_before_training(make, write_tokens, tmp_path, name):
    bad = write_tokens(tmp_path / "bad", {**speech_like(3), ("worst", "june"): np.array([[1, 8]])}, 8)
    with pytest.raises(TokenError, match="utterance 'worst' holds code 8, the codebook has 8"):
        train_prior(make(**{name: bad}), tmp_path / "exp", "cpu")
    assert not (tmp_path / "exp/state.safetensors").exists()


def test_no_speakers_at_all_are_refused_if_they_are_to_be_told(make, write_tokens, tmp_path):
    nobody = {(name, None): item for (name, _), item in speech_like(0).items()}
    tokens = write_tokens(tmp_path / "nobody", nobody, 8)
    config = make(tokens=tokens, valid_tokens=tokens)
    refused(config, tmp_path / "exp", SpeakerError, "nobody: no utterance has a speaker; set speaker_dim=0")


@pytest.mark.parametrize(("speaker", "message"), [(None, "has to be told"), ("ivrvoice", "unknown speaker 'ivrvoice'")])
def test_a_speaker_that_is_missing_or_unknown_is_nobody_if_the_prior_can_do_without(
    make, write_tokens, tmp_path, speaker, message
):
    found = {**speech_like(1), ("stranger", speaker): np.array([[1, 2, 3]])}
    options = {"valid_tokens": write_tokens(tmp_path / "strange", found, 8)}
    match = f"strange: utterance 'stranger': .*{message}.*speaker_dropout=0.1"
    refused(make({"steps": 1}, speaker_dropout=0, **options), tmp_path / "exp", SpeakerError, match)
    train_prior(make({"steps": 1}, **options), tmp_path / "exp", "cpu")
