"""A run that was stopped and resumed computes, bit for bit, what an uninterrupted one computes."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from audiovq.errors import CheckpointError, ConfigError, Stopped
from audiovq.training import loop
from audiovq.training.autoencoder import AutoencoderTask, train_autoencoder

EMA = {"update": "ema"}
CASES = {
    "gradient": {},
    "ema": {"bottleneck": EMA},
    "ema and averaging": {"bottleneck": EMA, "training": {"averaging_decay": 0.7}},
    "bf16": {"training": {"precision": "bf16"}},
    "none": {"bottleneck": {"type": "none"}},
    "gaussian": {"bottleneck": {"type": "gaussian", "code_dim": 4, "kl_warmup_steps": 6}},
    "gumbel": {"bottleneck": {"type": "gumbel", "codebook_size": 16, "anneal_steps": 6}},
    "reinforce": {"bottleneck": {"type": "reinforce", "codebook_size": 16, "baseline": "moving_average"}},
    "adversarial": {
        "adversarial": {"discriminator": {"resolutions": [128], "periods": [3], "channels": [4]}, "start_step": 2},
        "training": {"averaging_decay": 0.7},
    },
}


def assert_same_run(one: Path, other: Path) -> None:
    lines = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (one, other)]
    assert len(lines[0]) == 8 + 3
    assert lines[0] == lines[1]
    for file in ("state.safetensors", "release/model.safetensors"):
        first, second = load_file(one / file), load_file(other / file)
        assert first.keys() == second.keys()
        assert [name for name in first if not torch.equal(first[name], second[name])] == []


@contextmanager
def signal_during(step: int, number: int) -> Iterator[None]:
    """Send a signal to this process while it computes a step (from 1; the rehearsal makes no more than two)."""
    original = AutoencoderTask.run

    def run(task, at, batch):
        output = original(task, at, batch)
        if at == step - 1:
            os.kill(os.getpid(), number)
        return output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoencoderTask, "run", run)
        yield


@contextmanager
def kept_states(folder: Path) -> Iterator[None]:
    """Keep every state that a run writes, as folder/step."""
    original = loop.save_state

    def save_state(path, parts, progress, record):
        original(path, parts, progress, record)
        shutil.copy(path, folder / str(progress.step))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_state", save_state)
        yield


@pytest.fixture
def fine_tuned(experiment, codec, tmp_path) -> dict[str, dict[str, Any]]:
    """The sections of a run behind the frozen encoder and bottleneck of a release."""
    train_autoencoder(experiment(**codec, training={"steps": 1}), tmp_path / "first", "cpu")
    return {
        **codec,
        "adversarial": {"discriminator": {"resolutions": [128], "channels": [4]}, "balance": True},
        "training": {"init_from": str(tmp_path / "first/release"), "freeze": ["encoder", "bottleneck"]},
    }


@pytest.mark.parametrize("case", [*CASES, "wavenet", "taught", "codec", "fine_tuned"])
def test_a_run_stopped_by_a_signal_and_resumed_equals_an_uninterrupted_one(case, experiment, request, tmp_path):
    config = experiment(**(CASES[case] if case in CASES else request.getfixturevalue(case)))
    train_autoencoder(config, tmp_path / "whole", "cpu")

    handler = signal.getsignal(signal.SIGTERM)
    with signal_during(5, signal.SIGTERM), pytest.raises(Stopped, match="SIGTERM after step 5") as stopped:
        train_autoencoder(config, tmp_path / "parts", "cpu")
    assert stopped.value.signal_number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is handler
    assert len((tmp_path / "parts/metrics.jsonl").read_text().splitlines()) == 5 + 1
    train_autoencoder(config, tmp_path / "parts", "cpu")

    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("case", ["gradient", "ema and averaging", "adversarial"])
def test_a_run_killed_after_a_checkpoint_equals_an_uninterrupted_one(case, experiment, tmp_path):
    """As a crash leaves it: an old state, with lines that were logged after it, the last one cut off."""
    config = experiment(**CASES[case])
    (tmp_path / "states").mkdir()
    with kept_states(tmp_path / "states"):
        train_autoencoder(config, tmp_path / "whole", "cpu")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.copy(tmp_path / "states/3", tmp_path / "parts/state.safetensors")
    metrics = tmp_path / "parts/metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-30])

    assert train_autoencoder(config, tmp_path / "parts", "cpu").step == 8

    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_run_resumed_after_its_last_step_does_nothing(experiment, tmp_path):
    first = train_autoencoder(experiment(), tmp_path, "cpu")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    again = train_autoencoder(experiment(), tmp_path, "cpu")
    assert vars(again) == vars(first)
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_may_be_made_longer_or_shorter_but_nothing_else(experiment, tmp_path):
    with signal_during(3, signal.SIGINT), pytest.raises(Stopped) as stopped:
        train_autoencoder(experiment(), tmp_path, "cpu")
    assert stopped.value.signal_number == signal.SIGINT

    for changed in (
        {"data": {"batch_size": 3}},
        {"bottleneck": {"beta": 0.5}},
        {"bottleneck": {"type": "none"}},
        {"training": {"seed": 1}},
        {"encoder": {"strides": [10, 8]}},
    ):
        ((section, values),) = changed.items()
        (name,) = values
        with pytest.raises(ConfigError, match=rf"{section}\..*--force"):
            train_autoencoder(experiment(**changed), tmp_path, "cpu")
        if section != "bottleneck" or name != "type":
            with pytest.raises(ConfigError, match=rf"{section}\.{name} = "):
                train_autoencoder(experiment(**changed), tmp_path, "cpu")

    # Fewer steps than are done already: the run ends where it is, with a model to use.
    progress = train_autoencoder(experiment(training={"steps": 3}), tmp_path, "cpu")
    assert progress.step == 3
    assert progress.best_loss is not None
    assert (tmp_path / "release/model.safetensors").exists()
    assert train_autoencoder(experiment(training={"steps": 5}), tmp_path, "cpu").step == 5


def test_force_removes_the_run_and_nothing_else(experiment, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    train_autoencoder(experiment(), tmp_path, "cpu")
    assert len(list(tmp_path.iterdir())) > 1
    (tmp_path / "release/mine.txt").write_text("mine, too")
    (tmp_path / "tensorboard/mine.txt").write_text("mine, too")
    config = experiment(data={"batch_size": 3}, training={"steps": 1})
    assert train_autoencoder(config, tmp_path, "cpu", force=True).step == 1
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "release/mine.txt").read_text() == (tmp_path / "tensorboard/mine.txt").read_text() == "mine, too"
    assert len(list((tmp_path / "tensorboard").glob("events*"))) == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_state_that_is_none_is_refused(experiment, tmp_path):
    train_autoencoder(experiment(training={"steps": 1}), tmp_path, "cpu")
    shutil.copy(tmp_path / "release/model.safetensors", tmp_path / "state.safetensors")
    with pytest.raises(CheckpointError, match="is no training state"):
        train_autoencoder(experiment(training={"steps": 1}), tmp_path, "cpu")
