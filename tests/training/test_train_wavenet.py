"""Training with a WaveNet decoder: cross-entropy of mu-law samples by teacher forcing, told who speaks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from audiovq.audio.files import AudioSource
from audiovq.audio.signal import mu_law_encode
from audiovq.config import AutoencoderConfig, LossConfig
from audiovq.data.manifest import Utterance, read_manifest, write_manifest
from audiovq.errors import ConfigError, SpeakerError
from audiovq.losses.reconstruction import build_loss
from audiovq.models.autoencoder import Autoencoder
from audiovq.models.tokenizer import AudioTokenizer
from audiovq.training.autoencoder import train_autoencoder

SPEECH = Path(__file__).parents[2] / "recipes" / "mini" / "data"


@pytest.fixture
def voices(tmp_path) -> dict[str, Path]:
    """Manifests of a second of each of two voices, the same to train and to validate on."""
    utterances = []
    for speaker in ("june", "allison"):
        path = min((SPEECH / speaker).glob("*.ogg"))
        rate = AudioSource.open(path).sample_rate
        utterances.append(Utterance(speaker, path.resolve(), 1.0, rate, rate, offset=0.5, speaker=speaker))
    write_manifest(tmp_path / "voices.jsonl", utterances)
    return {"train": tmp_path / "voices.jsonl", "valid": tmp_path / "voices.jsonl"}


def overfit(model: Autoencoder, wave: torch.Tensor, steps: int) -> float:
    """Train on one waveform alone; returns the last cross-entropy in nats a sample."""
    loss = build_loss(LossConfig(mu_law=1, mel=0, stft=0), 16000)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2)
    nats = torch.zeros(1)
    for _ in range(steps):
        output = model(wave)
        nats, _ = loss(output.prediction, wave)
        optimizer.zero_grad()
        (nats.mean() + output.bottleneck.loss).backward()
        optimizer.step()
    return float(nats.detach().mean())


def test_it_learns_a_second_of_speech_far_below_the_entropy_of_its_samples(experiment, wavenet, mini_speech):
    wave = mini_speech[None, :, 8000:24000]
    frequencies = torch.bincount(mu_law_encode(wave).flatten(), minlength=256) / wave.numel()
    entropy = float(torch.special.entr(frequencies).sum())
    wavenet["decoder"] |= {"residual_channels": 16, "skip_channels": 16, "speaker_dim": 0, "jitter": 0}
    torch.manual_seed(0)
    model = Autoencoder(experiment(**wavenet).model_part())
    assert overfit(model, wave, steps=50) < 0.75 * entropy


def test_encoder_codebook_speakers_and_decoder_get_gradients(experiment, wavenet, mini_speech):
    wavenet["decoder"]["speakers"] = ["june", "allison"]
    config = experiment(**wavenet)
    model, loss = Autoencoder(config.model_part()).train(), build_loss(config.loss, 16000)
    wave = mini_speech[None, :, 8000:12000].repeat(2, 1, 1)
    output = model(wave, torch.tensor([0, 1]))
    (loss(output.prediction, wave)[0].mean() + output.bottleneck.loss).backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []


def test_the_straight_through_gradient_of_the_samples_alone_reaches_the_encoder(experiment, wavenet, mini_speech):
    config = experiment(**wavenet)
    model, loss = Autoencoder(config.model_part()).train(), build_loss(config.loss, 16000)
    wave = mini_speech[None, :, 8000:12000]
    loss(model(wave).prediction, wave)[0].mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.encoder.parameters() if parameter.ndim > 1)


def test_each_sample_of_an_item_s_codes_has_a_loss_of_its_own(experiment, wavenet, mini_speech):
    """As REINFORCE needs it: three samples of codes of two items, each compared with its own item."""
    wavenet["decoder"] |= {"speakers": ["june", "allison"], "jitter": 0}
    config = experiment(bottleneck={"type": "reinforce", "codebook_size": 16, "samples": 3}, **wavenet)
    model, loss = Autoencoder(config.model_part()).train(), build_loss(config.loss, 16000)
    wave = torch.stack([mini_speech[:, 8000:9001], mini_speech[:, 12000:13001]])
    output = model(wave, torch.tensor([0, 1]))
    costs, _ = loss(output.prediction, wave.repeat(3, 1, 1))
    assert costs.shape == (6,)
    model.eval()
    latents = output.bottleneck.latents
    for number in range(6):
        item = number % 2
        classes = mu_law_encode(nn.functional.pad(wave[item], (0, -1001 % config.hop_length)))
        logits = model.decoder(latents[number : number + 1], classes, torch.tensor([item]))[..., :1001]
        alone, _ = loss(logits, wave[item : item + 1])
        torch.testing.assert_close(alone[0], costs[number])


def test_a_run_ends_in_a_release_that_knows_the_speakers(experiment, wavenet, voices, tmp_path):
    config = experiment(data=voices, training={"steps": 4, "valid_every": 2, "averaging_decay": 0.5}, **wavenet)
    train_autoencoder(config, tmp_path / "run", "cpu")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert 0 < line["mu_law"] < 7
        assert {"mel", "stft"}.isdisjoint(line)
        if line["part"] == "valid":
            assert line["loss"] == pytest.approx(line["mu_law"])
    tokenizer = AudioTokenizer.from_pretrained(tmp_path / "run/release", "cpu")
    assert tokenizer.config.speakers == ["allison", "june"]
    assert tokenizer.model.decoder.speakers.weight.shape == (2, 2)
    # The same command goes on, or has nothing to do.
    assert train_autoencoder(config, tmp_path / "run", "cpu").step == 4


def test_validation_tells_the_decoder_who_speaks(experiment, wavenet, voices, tmp_path):
    """Validation under swapped names costs something else, once the decoder has learnt that voices differ."""
    swapped = [
        replace(utterance, speaker={"june": "allison", "allison": "june"}[utterance.speaker or ""])
        for utterance in read_manifest(voices["valid"])
    ]
    write_manifest(tmp_path / "swapped.jsonl", swapped)
    losses = []
    for name in ("voices", "swapped"):
        data = {"train": voices["train"], "valid": tmp_path / f"{name}.jsonl"}
        progress = train_autoencoder(experiment(data=data, **wavenet), tmp_path / name, "cpu")
        losses.append(progress.best_loss)
    assert losses[0] != losses[1]


def changed_manifest(voices: dict[str, Path], **changes) -> Path:
    """The manifest, with its last utterance changed."""
    *others, last = read_manifest(voices["train"])
    path = voices["train"].with_name("changed.jsonl")
    write_manifest(path, [*others, replace(last, **changes)])
    return path


@pytest.mark.parametrize("part", ["train", "valid"])
def test_an_utterance_without_speaker_is_refused(experiment, wavenet, voices, tmp_path, part):
    data = {**voices, part: changed_manifest(voices, speaker=None)}
    with pytest.raises(SpeakerError, match=r"changed\.jsonl: utterance 'allison' has no speaker; .*speaker_dim=0"):
        train_autoencoder(experiment(data=data, **wavenet), tmp_path / "run", "cpu")
    assert not (tmp_path / "run").exists()


def test_a_validation_speaker_that_does_not_occur_in_training_is_refused(experiment, wavenet, voices, tmp_path):
    data = {**voices, "valid": changed_manifest(voices, speaker="alison")}
    message = r"changed\.jsonl: utterance 'allison': unknown speaker 'alison'; did you mean 'allison'\?.*--split-by utt"
    with pytest.raises(SpeakerError, match=message):
        train_autoencoder(experiment(data=data, **wavenet), tmp_path / "run", "cpu")


def test_speakers_of_the_config_are_kept_and_all_others_refused(experiment, wavenet, voices, tmp_path):
    wavenet["decoder"]["speakers"] = ["june", "carlo"]
    with pytest.raises(SpeakerError, match="unknown speaker 'allison'; known are june, carlo"):
        train_autoencoder(experiment(data=voices, **wavenet), tmp_path / "run", "cpu")


def test_a_run_is_not_resumed_with_other_speakers(experiment, wavenet, voices, tmp_path):
    options = {"steps": 1}
    train_autoencoder(experiment(data=voices, training=options, **wavenet), tmp_path / "run", "cpu")
    write_manifest(voices["train"], read_manifest(voices["train"])[:1])
    with pytest.raises(ConfigError, match=r"decoder\.speakers = \['allison', 'june'\], now it is \['june'\]"):
        train_autoencoder(experiment(data=voices, training=options, **wavenet), tmp_path / "run", "cpu")


def test_without_speaker_dim_nobody_has_to_be_named(experiment, wavenet, voices, tmp_path):
    wavenet["decoder"]["speaker_dim"] = 0
    data = {**voices, "train": changed_manifest(voices, speaker=None)}
    train_autoencoder(experiment(data=data, training={"steps": 1}, **wavenet), tmp_path / "run", "cpu")
    config = AudioTokenizer.from_pretrained(tmp_path / "run/release", "cpu").config
    assert isinstance(config, AutoencoderConfig)
    assert config.speakers == []
