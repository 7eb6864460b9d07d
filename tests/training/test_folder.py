"""The folder of a run: what is resumed, what is removed, and that one process trains in it."""

from __future__ import annotations

import fcntl
import json
import shutil
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import save_file

from audiovq.config import TrainingConfig
from audiovq.data.manifest import read_manifest, write_manifest
from audiovq.errors import AudioVQError, CheckpointError, ConfigError, ManifestError, OutputExistsError
from audiovq.training import folder as run_folder
from audiovq.training.autoencoder import train_autoencoder
from audiovq.training.folder import lock_folder, start_accelerator
from audiovq.training.state import read_run_record


def content(folder) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_a_moved_manifest_resumes_and_an_edited_one_is_refused(experiment, manifests, tmp_path):
    first = tmp_path / "first.jsonl"
    shutil.copy(manifests[0], first)
    utterances = read_manifest(manifests[0])
    write_manifest(first, utterances)
    train_autoencoder(experiment(data={"train": first}, training={"steps": 1}), tmp_path / "run", "cpu")
    (tmp_path / "moved").mkdir()
    moved = shutil.move(first, tmp_path / "moved/other.jsonl")
    assert (
        train_autoencoder(experiment(data={"train": moved}, training={"steps": 2}), tmp_path / "run", "cpu").step == 2
    )
    for edited in (utterances[1:], utterances[::-1], [replace(utterances[0], speaker="x"), *utterances[1:]]):
        write_manifest(moved, edited)
        with pytest.raises(ConfigError, match=r"other\.jsonl: data\.train no longer holds .*--force"):
            train_autoencoder(experiment(data={"train": moved}, training={"steps": 3}), tmp_path / "run", "cpu")


def test_force_leaves_the_old_run_whole_until_the_new_one_can_begin(experiment, tmp_path):
    train_autoencoder(experiment(training={"steps": 1}), tmp_path, "cpu")
    before = content(tmp_path)
    with pytest.raises(ManifestError):
        train_autoencoder(experiment(data={"train": tmp_path / "typo.jsonl"}), tmp_path, "cpu", force=True)
    with pytest.raises(ConfigError):
        train_autoencoder(experiment(), tmp_path, "abacus", force=True)
    with pytest.raises(AudioVQError, match="nan"):
        train_autoencoder(experiment(training={"learning_rate": 1e30}), tmp_path, "cpu", force=True)
    assert content(tmp_path) == before


@pytest.mark.parametrize("name", ["state.safetensors", "config.yaml", "metrics.jsonl", "release/mine.txt"])
@pytest.mark.parametrize("force", [True, False])
def test_files_that_audiovq_did_not_write_are_neither_removed_nor_overwritten(experiment, tmp_path, name, force):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("precious")
    with pytest.raises(AudioVQError, match=name.split("/")[0]):
        train_autoencoder(experiment(), tmp_path, "cpu", force=force)
    assert content(tmp_path) == {tmp_path / name: b"precious"}


def test_a_second_training_in_a_folder_is_refused_while_the_first_lasts(experiment, tmp_path):
    with lock_folder(tmp_path), pytest.raises(OutputExistsError, match=r"process \d+ on .* trains there"):
        train_autoencoder(experiment(), tmp_path, "cpu")
    with (tmp_path / ".lock").open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # Free again.
    train_autoencoder(experiment(training={"steps": 1}), tmp_path, "cpu")


def test_a_damaged_log_and_config_are_repaired_by_the_next_start(experiment, tmp_path):
    train_autoencoder(experiment(training={"steps": 2}), tmp_path, "cpu")
    metrics, config = tmp_path / "metrics.jsonl", (tmp_path / "config.yaml").read_text()
    good = metrics.read_bytes()
    metrics.write_bytes(good + b'5\n"x"\n{"step": "1"}\n\xff\xfe\n{"step": 1}\n' + b"[" * 5000 + b"\n")
    (tmp_path / "config.yaml").write_bytes(b"\xff: [")
    assert train_autoencoder(experiment(training={"steps": 2}), tmp_path, "cpu").step == 2
    assert metrics.read_bytes() == good
    assert (tmp_path / "config.yaml").read_text() == config
    assert all(json.loads(line) for line in metrics.read_text().splitlines())


def test_the_named_device_is_the_one_that_trains(monkeypatch):
    used = []
    monkeypatch.setattr(run_folder, "choose_device", torch.device)
    monkeypatch.setattr(run_folder, "use_device", used.append)
    accelerator = start_accelerator("cuda:1", TrainingConfig(steps=1))
    assert accelerator.device == torch.device("cuda:1")
    assert used == [torch.device("cuda:1")]
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(ConfigError, match="each process takes a device of its own"):
        start_accelerator("cuda:1", TrainingConfig(steps=1))


def test_each_training_of_a_process_has_its_own_precision(experiment, tmp_path):
    for precision, expected in (("fp32", "no"), ("bf16", "bf16"), ("fp32", "no")):
        config = experiment(training={"steps": 1, "precision": precision})
        assert train_autoencoder(config, tmp_path / precision, "cpu").step == 1
        assert AcceleratorState().mixed_precision == expected


GARBAGE = (b"\xff" * 8 + b"{", b"", b"precious", b"\x40\0\0\0\0\0\0\0{}")


@pytest.mark.parametrize("garbage", GARBAGE)
def test_force_removes_the_remains_of_a_state_from_a_run(experiment, tmp_path, garbage):
    train_autoencoder(experiment(training={"steps": 1}), tmp_path, "cpu")
    state = tmp_path / "state.safetensors"
    state.write_bytes(garbage)
    (tmp_path / "release/config.json").write_bytes(garbage)
    with pytest.raises(CheckpointError, match="add --force to start anew"):
        train_autoencoder(experiment(training={"steps": 1}), tmp_path, "cpu")
    assert state.read_bytes() == garbage
    assert train_autoencoder(experiment(training={"steps": 1}), tmp_path, "cpu", force=True).step == 1
    assert read_run_record(state)["config"]["training"]["steps"] == 1


def test_force_removes_no_weights_of_others_from_a_run(experiment, tmp_path):
    train_autoencoder(experiment(training={"steps": 1}), tmp_path, "cpu")
    save_file({"weight": torch.ones(2)}, tmp_path / "state.safetensors", {"format": "pt"})
    before = content(tmp_path)
    with pytest.raises(OutputExistsError, match=r"state\.safetensors: is no file of an audiovq run"):
        train_autoencoder(experiment(training={"steps": 1}), tmp_path, "cpu", force=True)
    assert content(tmp_path) == before


def test_force_removes_a_state_of_an_older_version(experiment, tmp_path):
    save_file({}, tmp_path / "state.safetensors", {"format": "1", "progress": "{}"})
    with pytest.raises(CheckpointError, match="of another version"):
        train_autoencoder(experiment(training={"steps": 1}), tmp_path, "cpu")
    assert train_autoencoder(experiment(training={"steps": 1}), tmp_path, "cpu", force=True).step == 1
