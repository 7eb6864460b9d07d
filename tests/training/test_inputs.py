"""Training reads whatever tokenizing reads; batches, and a resumed run, are the same as from a manifest."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
import torch
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

from audiovq.data.crops import CropSampler
from audiovq.data.manifest import read_manifest
from audiovq.data.sources import read_utterances
from audiovq.errors import ConfigError
from audiovq.storage import locate
from audiovq.training.autoencoder import train_autoencoder


@pytest.fixture
def tars(manifests, tmp_path) -> Path:
    """A pattern of two tars that hold the training utterances, with texts and a member that only looks like audio."""
    files = [utterance.path for utterance in read_manifest(manifests[0])]
    for number, part in enumerate((files[:2], files[2:])):
        with tarfile.open(tmp_path / f"train-{number}.tar", "w") as tar:
            members = {file.name: file.read_bytes() for file in part} | {f"note{number}.txt": b"no audio"}
            for name, data in (members | ({"broken.flac": b"no sound"} if number else {})).items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return tmp_path / "train-*.tar"


@pytest.fixture
def cuts(manifests, tmp_path) -> Path:
    """The training utterances as lhotse lists them."""

    def cut(utterance) -> MonoCut:
        recording = Recording.from_file(utterance.path, recording_id=utterance.id)
        segment = SupervisionSegment(utterance.id, recording.id, 0, recording.duration, speaker=utterance.speaker)
        return MonoCut(utterance.id, 0, recording.duration, 0, [segment], recording=recording)

    CutSet.from_cuts(map(cut, read_manifest(manifests[0]))).to_file(tmp_path / "cuts.jsonl.gz")
    return tmp_path / "cuts.jsonl.gz"


def sampler(path) -> CropSampler:
    return CropSampler(read_utterances(locate(path))[0], 16000, 3200, 8, seed=3)


def test_crops_of_tars_and_cuts_are_those_of_the_files(manifests, tars, cuts):
    expected = sampler(manifests[0])
    for path in (tars, cuts):
        found = sampler(path)
        assert [utterance.id for utterance in found.utterances] == [utterance.id for utterance in expected.utterances]
        for index in (0, 7, 3):
            assert torch.equal(found.batch(index).wave, expected.batch(index).wave)


def test_a_run_on_tars_that_was_resumed_equals_one_that_was_not(experiment, tars, tmp_path, capsys):
    data = {"train": str(tars)}
    train_autoencoder(experiment(data=data), tmp_path / "whole", "cpu")
    err = capsys.readouterr().err
    assert f"left out of {tars}: broken: {tars.parent}/train-1.tar: is no audio" in err
    assert "note" not in err
    short = {"valid_every": 3, "steps": 8}
    stopped = experiment(data=data, training=short)
    with pytest.MonkeyPatch.context() as patch:
        from audiovq.training.autoencoder import AutoencoderTask

        update = AutoencoderTask.update

        def fail(task, step, batch):
            if step == 5:
                raise KeyboardInterrupt
            return update(task, step, batch)

        patch.setattr(AutoencoderTask, "update", fail)
        with pytest.raises(KeyboardInterrupt):
            train_autoencoder(stopped, tmp_path / "resumed", "cpu")
    train_autoencoder(stopped, tmp_path / "resumed", "cpu")
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "resumed")]
    assert lines[0] == lines[1]
    assert len(lines[0]) == 8 + 3


def test_a_run_does_not_go_on_with_other_tars(experiment, tars, tmp_path):
    config = experiment(data={"train": str(tars)})
    train_autoencoder(config, tmp_path / "run", "cpu")
    (tars.parent / "train-1.tar").unlink()
    with pytest.raises(ConfigError, match=r"train-\*\.tar: data\.train no longer holds what the run"):
        train_autoencoder(config, tmp_path / "run", "cpu")


def test_pitch_of_tars_is_kept_beside_them(experiment, tars, tmp_path, capsys):
    source = {"type": "source", "dim": 12, "layers": 2, "kernel_size": 3, "subframes": 2, "overlap": 3}
    training = {"steps": 2, "valid_every": 2, "valid_utterances": 1}
    config = experiment(decoder=source, data={"train": str(tars), "pitch": "swift"}, training=training)
    for name in ("one", "two"):
        train_autoencoder(config, tmp_path / name, "cpu")
    assert capsys.readouterr().err.count("pitch by swift of") == 1
    assert (tars.parent / "train-_.tar.pitch-swift.npz").is_file()
