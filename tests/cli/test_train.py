from __future__ import annotations

import json
import os
import resource
import signal
from pathlib import Path

import pytest
import yaml

from audiovq.audio.files import AudioSource
from audiovq.data.manifest import Utterance, write_manifest
from audiovq.models.tokenizer import AudioTokenizer
from audiovq.training import log
from audiovq.training.autoencoder import AutoencoderTask

SPEECH = Path(__file__).parents[2] / "recipes" / "mini" / "data" / "june"


@pytest.fixture
def train(run):
    """Run `audiovq train ...` on the CPU; gives exit code, standard output and standard error."""
    return lambda *arguments: run("train", "--device", "cpu", *arguments)


@pytest.fixture
def config(tmp_path) -> Path:
    """A run of four steps on one file of real speech."""
    path = min(SPEECH.glob("*.ogg"), key=lambda path: AudioSource.open(path).duration)
    source = AudioSource.open(path)
    utterance = Utterance(path.stem, path, source.duration, source.sample_rate, source.num_samples)
    write_manifest(tmp_path / "speech.jsonl", [utterance])
    settings = {
        "sample_rate": 16000,
        "latent_dim": 8,
        "encoder": {"channels": [4, 8], "strides": [80], "dilations": [[], [1]]},
        "bottleneck": {"type": "vq", "codebook_size": 16, "code_dim": 4},
        "decoder": {"type": "istft", "dim": 8, "layers": 1, "kernel_size": 3, "subframes": 2},
        "loss": {"fft_sizes": [256]},
        "data": {"train": str(tmp_path / "speech.jsonl"), "valid": str(tmp_path / "speech.jsonl"), "batch_size": 2},
        "training": {"steps": 4, "warmup_steps": 1, "log_every": 1, "valid_every": 2},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "tiny.yaml"


def assert_one_line(err: str, *parts: object) -> None:
    assert err.startswith("audiovq: ")
    assert err.count("\n") == 1
    for part in parts:
        assert str(part) in err


def test_after_adversarial_training_the_loss_is_that_of_the_last_model(train, config, tmp_path, monkeypatch):
    losses = iter([1.0, 1.5, 2.0])  # The first one is the rehearsal's.
    monkeypatch.setattr(AutoencoderTask, "validate", lambda *_: {"loss": next(losses)})
    small = "adversarial={discriminator: {resolutions: [64], channels: [2]}}"
    code, out, err = train(config, "-o", tmp_path / "exp", small)
    assert code == 0, err
    assert out == f"4 steps done, last validation loss 2.0000: {tmp_path / 'exp/release'}\n"


def test_a_run_leaves_a_model_to_use_and_is_not_repeated(train, config, tmp_path):
    output = tmp_path / "exp"
    code, out, err = train(config, "-o", output, "training.log_every=2")
    assert code == 0
    metrics = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    best = min(line["loss"] for line in metrics if line["part"] == "valid")
    assert out == f"4 steps done, best validation loss {best:.4f}: {output / 'release'}\n"
    assert [line.split("  ")[0] for line in err.splitlines()] == [f"step {n}/4" for n in (2, 2, 4, 4)]
    assert AudioTokenizer.from_pretrained(output / "release", "cpu").codebook_size == 16
    assert {path.name for path in output.iterdir()} == {
        ".lock",
        "config.yaml",
        "metrics.jsonl",
        "release",
        "state.safetensors",
        "tensorboard",
    }

    assert train(config, "-o", output) == (0, out, "")


def test_a_run_without_tensorboard_says_so_once_and_trains_the_same_model(train, config, tmp_path, monkeypatch):
    assert train(config, "-o", tmp_path / "with")[0] == 0
    monkeypatch.setattr(log, "find_spec", lambda _: None)
    code, _, err = train(config, "-o", tmp_path / "without")
    assert code == 0
    assert err.splitlines()[0] == log.NO_BOARD
    assert err.count("TensorBoard") == 1
    assert "pip install 'audiovq[tensorboard]'" in err
    assert not (tmp_path / "without/tensorboard").exists()
    for name in ("metrics.jsonl", "release/model.safetensors"):
        assert (tmp_path / "without" / name).read_bytes() == (tmp_path / "with" / name).read_bytes()


def test_a_changed_setting_is_refused_and_force_starts_anew(train, config, tmp_path):
    output = tmp_path / "exp"
    assert train(config, "-o", output)[0] == 0
    before = (output / "state.safetensors").read_bytes()
    code, out, err = train(config, "-o", output, "training.learning_rate=0.01")
    assert (code, out) == (2, "")
    assert_one_line(err, output, "training.learning_rate = 0.001, now it is 0.01", "--force")
    assert (output / "state.safetensors").read_bytes() == before

    code, _, err = train(config, "-o", output, "training.learning_rate=0.01", "--force")
    assert code == 0
    assert err.startswith("step 1/4")
    assert (output / "state.safetensors").read_bytes() != before


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_the_state_and_the_same_command_goes_on(train, config, tmp_path, monkeypatch, number, expected):
    from audiovq.training.autoencoder import AutoencoderTask

    assert train(config, "-o", tmp_path / "whole")[0] == 0
    original = AutoencoderTask.update

    def signalled(task, step, batch):
        if step == 2:
            os.kill(os.getpid(), number)
        return original(task, step, batch)

    with monkeypatch.context() as patch:
        patch.setattr(AutoencoderTask, "update", signalled)
        code, out, err = train(config, "-o", tmp_path / "parts")
    assert (code, out) == (expected, "")
    last = err.splitlines()[-1]
    assert last == f"audiovq: stopped by {number.name} after step 3; the same command goes on"
    code, _, err = train(config, "-o", tmp_path / "parts")
    assert code == 0
    assert err.startswith("step 4/4")
    for name in ("metrics.jsonl", "release/model.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.step=4", "training.step: unknown key; did you mean 'steps'?"),
        ("bottleneck.codebooksize=4", "bottleneck.codebooksize: unknown key; did you mean 'codebook_size'?"),
        ("training.steps=none", "training.steps: "),
        ("training.steps", "expected key.subkey=value"),
        ("encoder.strides=[80, 2]", "encoder: 2 strides need 3 channels"),
        ("data.train=/nowhere.jsonl", "/nowhere.jsonl: cannot be read (No such file or directory)"),
    ],
)
def test_a_wrong_setting_is_one_line_and_writes_nothing(train, config, tmp_path, override, message):
    code, out, err = train(config, "-o", tmp_path / "exp", override)
    assert (code, out) == (2, "")
    assert_one_line(err, message)
    assert not (tmp_path / "exp").exists()


def test_a_config_that_cannot_be_read_is_one_line(train, tmp_path):
    (tmp_path / "broken.yaml").write_text("a: [1")
    for name in ("broken.yaml", "missing.yaml"):
        code, _, err = train(tmp_path / name, "-o", tmp_path / "exp")
        assert code == 2
        assert_one_line(err, tmp_path / name)


def test_a_loss_that_is_not_finite_is_one_line(train, config, tmp_path):
    code, out, err = train(config, "-o", tmp_path / "exp", "training.learning_rate=1e30")
    assert (code, out) == (2, "")
    assert_one_line(err.splitlines(keepends=True)[-1], "is nan at step", "try a lower training.learning_rate")
    assert "Traceback" not in err


def test_a_pickle_in_place_of_the_state_is_one_line(train, config, tmp_path):
    output = tmp_path / "exp"
    output.mkdir()
    (output / "state.safetensors").write_bytes(b"\x80\x05cos\nsystem\n(S'touch sprung'\ntR.")
    code, _, err = train(config, "-o", output)
    assert code == 2
    assert_one_line(err, output / "state.safetensors", "is no training state or is damaged")
    assert [path.name for path in output.iterdir()] == ["state.safetensors"]


def test_a_full_disk_is_one_line_and_keeps_the_old_state(train, config, tmp_path):
    output = tmp_path / "exp"
    assert train(config, "-o", output)[0] == 0
    kept = ("state.safetensors", "metrics.jsonl", "release/model.safetensors")
    before = {name: (output / name).read_bytes() for name in kept}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Room for the log, none for the state.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before["state.safetensors"]) - 1000, limits[1]))
    try:
        code, out, err = train(config, "-o", output, "training.steps=6", "training.valid_every=6")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (code, out) == (2, "")
    assert_one_line(err.splitlines(keepends=True)[-1], output, "File too large")
    assert "Traceback" not in err
    assert (output / "state.safetensors").read_bytes() == before["state.safetensors"]
    assert (output / "metrics.jsonl").read_bytes().startswith(before["metrics.jsonl"])
    assert not list(output.rglob(".partial-*"))
