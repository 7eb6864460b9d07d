from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from pydantic import ValidationError
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from audiovq.audio.files import save_audio
from audiovq.config import load_config
from audiovq.data.crops import CropSampler
from audiovq.data.manifest import read_manifest, write_manifest
from audiovq.data.pitch import pitch_tracks
from audiovq.errors import AudioError, ConfigError, ManifestError
from audiovq.losses.reconstruction import ReconstructionLoss
from audiovq.models.autoencoder import Autoencoder
from audiovq.models.tokenizer import AudioTokenizer
from audiovq.training.autoencoder import AutoencoderTask, train_autoencoder
from audiovq.training.targets import PitchTargets
from audiovq.training.validation import validate_autoencoder


def lines_of(folder, part: str) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["part"] == part]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, request):
    """A run that is long enough to learn something."""
    folder = tmp_path_factory.mktemp("run")

    def train(experiment):
        if not (folder / "config.yaml").exists():
            options = {"steps": 60, "warmup_steps": 5, "valid_every": 30, "learning_rate": 5e-3, "log_every": 5}
            train_autoencoder(experiment(training=options), folder, "cpu")
        return folder

    return train


def test_the_loss_falls(finished, experiment):
    folder = finished(experiment)
    train = [line["loss"] for line in lines_of(folder, "train")]
    assert len(train) == 12
    assert np.mean(train[-3:]) < 0.8 * np.mean(train[:2])
    valid = [line["loss"] for line in lines_of(folder, "valid")]
    assert valid[1] < valid[0]


def test_metrics_say_what_the_model_learns_and_how_codes_are_used(finished, experiment):
    folder = finished(experiment)
    train = lines_of(folder, "train")[0]
    assert {"loss", "mel", "stft", "bottleneck", "perplexity", "gradient_norm", "learning_rate"} <= train.keys()
    for line in lines_of(folder, "valid"):
        assert line["codes_used"] + line["dead_codes"] == 16
        assert 1 <= line["perplexity"] <= line["codes_used"] <= 16
        assert line["loss"] == pytest.approx(line["mel"] + line["stft"])


def test_the_release_is_the_best_model(finished, experiment):
    folder = finished(experiment)
    losses = [line["loss"] for line in lines_of(folder, "valid")]
    assert losses[1] == min(losses)
    tokenizer = AudioTokenizer.from_pretrained(folder / "release", "cpu")
    state = load_file(folder / "state.safetensors")
    for name, tensor in tokenizer.model.state_dict().items():
        assert torch.equal(tensor, state[f"model/{name}"]), name
    assert tokenizer.config == experiment().model_part()


def test_with_averaging_the_average_is_released(experiment, tmp_path):
    options = {"averaging_decay": 0.9, "steps": 3, "valid_every": 3}
    train_autoencoder(experiment(training=options), tmp_path, "cpu")
    released = load_file(tmp_path / "release/model.safetensors")
    state = load_file(tmp_path / "state.safetensors")
    assert all(torch.equal(tensor, state[f"average/{name}"]) for name, tensor in released.items())
    assert any(not torch.equal(tensor, state[f"model/{name}"]) for name, tensor in released.items())


def test_tensorboard_holds_scalars_audio_and_pictures(finished, experiment):
    folder = finished(experiment)
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    tags = board.Tags()
    assert {"train/loss", "valid/loss", "valid/perplexity"} <= set(tags["scalars"])
    names = [utterance.id for utterance in read_manifest(experiment().data.valid)]
    kinds = [f"{name}/{kind}" for name in names for kind in ("original", "decoded")]
    assert set(tags["audio"]) == {f"audio/{kind}" for kind in kinds}
    assert set(tags["images"]) == {*(f"mel/{kind}" for kind in kinds), "codes/histogram"}
    assert [event.step for event in board.Scalars("valid/loss")] == [30, 60]


def test_the_config_is_kept_and_reads_back(finished, experiment):
    kept = load_config(finished(experiment) / "config.yaml")
    assert kept.model_part() == experiment().model_part()
    assert kept.data == experiment().data


def test_bad_validation_audio_shows_before_the_first_step(experiment, manifests, tmp_path, monkeypatch):
    good = read_manifest(manifests[1])
    copied = tmp_path / good[0].path.name
    shutil.copy(good[0].path, copied)
    write_manifest(tmp_path / "valid.jsonl", [replace(good[0], path=copied), good[1]])
    copied.write_bytes(b"")
    steps = []
    original = AutoencoderTask.update
    monkeypatch.setattr(AutoencoderTask, "update", lambda *args: steps.append(args[1]) or original(*args))
    with pytest.raises(AudioError, match="is empty"):
        train_autoencoder(experiment(data={"valid": tmp_path / "valid.jsonl"}), tmp_path / "run", "cpu")
    assert steps == [0, 1]
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_training_audio_that_goes_bad_ends_the_run_with_its_name(experiment, tmp_path, manifests):
    (first, *others) = read_manifest(manifests[0])
    bad = tmp_path / "bad.wav"
    save_audio(bad, torch.zeros(1, 16000), 16000)
    utterance = replace(first, path=bad, duration=1.0, num_samples=16000, sample_rate=16000)
    write_manifest(tmp_path / "train.jsonl", [utterance, *others])
    bad.write_text("no longer audio")
    with pytest.raises(AudioError, match=r"bad\.wav"):
        train_autoencoder(experiment(data={"train": tmp_path / "train.jsonl"}), tmp_path / "run", "cpu")


def test_a_missing_manifest_and_an_unknown_device_are_refused_before_anything_is_written(experiment, tmp_path):
    with pytest.raises(ManifestError, match=r"nowhere\.jsonl: cannot be read"):
        train_autoencoder(experiment(data={"valid": tmp_path / "nowhere.jsonl"}), tmp_path / "run", "cpu")
    with pytest.raises(ConfigError, match="device 'abacus' cannot be used"):
        train_autoencoder(experiment(), tmp_path / "run", "abacus")
    assert not (tmp_path / "run").exists()


# --- a decoder that starts from a source, several manifests ------------------------------------------------------


def test_a_codec_trains_on_several_manifests_with_the_true_pitch(experiment, codec, tmp_path):
    config = experiment(**codec)
    train_autoencoder(config, tmp_path / "run", "cpu")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["part"] == "train"]
    assert all(0 < line["pitch"] < 5 and 0 < line["voicing"] < 5 for line in trained)
    terms = sum(getattr(config.loss, name) * trained[0][name] for name in ("mel", "stft", "pitch", "voicing"))
    assert trained[0]["loss"] == pytest.approx(terms + trained[0]["bottleneck"], rel=1e-4)
    for manifest in config.data.train_manifests:
        assert manifest.with_name(f"{manifest.stem}.pitch-swift.npz").exists()
    valid = [line for line in lines if line["part"] == "valid"][-1]
    assert {"perplexity_0", "perplexity_1", "codes_used_0", "dead_codes_1"} <= set(valid)
    tokenizer = AudioTokenizer.from_pretrained(tmp_path / "run/release", "cpu")
    assert tokenizer.num_codebooks == 2


def test_a_sampled_code_answers_for_pitch_and_voicing_too(experiment, codec, tmp_path):
    bottleneck = {"type": "reinforce", "codebook_size": 8, "samples": 2}
    config = experiment(**{**codec, "bottleneck": bottleneck})
    train, valid = ({path: read_manifest(path) for path in paths} for paths in (config.data.train, [config.data.valid]))
    task = AutoencoderTask(config, train, valid, Accelerator(cpu=True), tmp_path)
    task.networks = task.modules
    seen, surrogate = [], task.model.bottleneck.surrogate_loss
    task.model.bottleneck.surrogate_loss = lambda output, cost: seen.append(cost) or surrogate(output, cost)
    output = task.run(0, task.batch(0))
    reconstruction = torch.arange(8.0)
    task.descend(output, reconstruction, output.wave.mean(), {})
    expected = reconstruction + config.loss.pitch * output.terms["pitch"]
    torch.testing.assert_close(seen[0], expected + config.loss.voicing * output.terms["voicing"])


def test_pitch_targets_are_those_of_the_crops(experiment, codec, manifests):
    """Looked up where the crop was taken, and as many times higher as it is faster."""
    config = experiment(**codec)
    train = {path: read_manifest(path) for path in config.data.train_manifests}
    model = Autoencoder(config.model_part())
    utterances = [utterance for part in train.values() for utterance in part]
    sampler = CropSampler(utterances, 16000, 3200, 4, 0, augmentation=config.data.augmentation)
    targets = PitchTargets(model, sampler, train, "swift")
    crops = sampler.batch(5)
    found = targets.of(crops)
    assert found.shape == (4, (40 + 1) * 2)
    for item, number in enumerate(crops.numbers):
        path = (
            manifests[0] if number < len(train[manifests[0]]) else next(path for path in train if path != manifests[0])
        )
        first = 0 if path == manifests[0] else len(train[manifests[0]])
        tracks = pitch_tracks(path, train[path], "swift")
        seconds = (crops.starts[item] + model.pitch_times(3200).numpy() * crops.speeds[item]) / 16000
        expected = crops.speeds[item] * tracks.at(np.array([number - first]), seconds[None])[0]
        np.testing.assert_allclose(found[item].numpy(), expected)


def test_shares_that_do_not_fit_the_manifests_are_refused(experiment, codec):
    codec["data"]["shares"] = [1.0]
    with pytest.raises(ValidationError, match=r"data\.shares: expected 2, one for each of data\.train, found 1"):
        experiment(**codec)


def test_validation_hears_the_first_seconds_of_each_utterance(experiment, manifests):
    config = experiment(data={"valid_seconds": 0.3})
    model, loss = Autoencoder(config.model_part()), ReconstructionLoss(config.loss, config.sample_rate)
    utterances = read_manifest(manifests[1])
    assert all(utterance.duration > 0.3 for utterance in utterances)

    def validate(utterances, seconds: float) -> dict[str, float]:
        config = experiment(data={"valid_seconds": seconds})
        return validate_autoencoder(model, loss, utterances, config, Accelerator(cpu=True), None, 0)

    begun = [replace(u, duration=0.3, num_samples=round(0.3 * u.sample_rate)) for u in utterances]
    assert validate(utterances, 0.3) == validate(begun, 10.0)
    assert validate(utterances, 0.3) != validate(utterances, 10.0)
    assert validate(utterances, 10.0) == validate(utterances, 99.0)
