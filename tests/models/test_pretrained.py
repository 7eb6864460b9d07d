"""The model that comes with audiovq: found by its name, and good enough to be worth it."""

from __future__ import annotations

import json

import pytest
import torch

from audiovq.errors import CheckpointError
from audiovq.evaluation.metrics import stoi
from audiovq.models.pretrained import QUALITY, Rate, pretrained_models
from audiovq.models.release import CARD, PRETRAINED
from audiovq.models.tokenizer import AudioTokenizer

NAME = "speech-16k"


@pytest.fixture(scope="module")
def tokenizer() -> AudioTokenizer:
    return AudioTokenizer.from_pretrained(NAME, "cpu")


def test_it_is_small_and_says_what_it_is(tokenizer):
    files = [path for path in (PRETRAINED / NAME).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 25e6
    card = (PRETRAINED / NAME / CARD).read_text()
    assert "CC BY 4.0" in card
    assert f"{tokenizer.num_parameters / 1e6:.1f} million" in card
    encoder, decoder = tokenizer.config.encoder, tokenizer.config.decoder
    assert f"{encoder.layers} blocks of {encoder.dim} channels, looks {encoder.look_ahead / 16:g} ms ahead |" in card
    assert f"{decoder.layers} blocks of {decoder.dim} channels, looks {20 * decoder.look_ahead} ms ahead |" in card
    assert f"| latency | {1000 * tokenizer.latency:g} ms |" in card
    assert (tokenizer.sample_rate, tokenizer.frame_rate, tokenizer.codebook_sizes) == (16000, 50.0, (1024,) * 6)
    assert [tokenizer.bitrate_of(books) for books in (1, 3, 6)] == [500, 1500, 3000]


def test_it_is_listed_with_what_it_is(run):
    code, out, err = run("models")
    assert (code, err) == (0, "")
    assert out.startswith(f"{NAME}: 16 kHz, 50 frames/s, 7.4 M parameters, ")
    (found,) = pretrained_models()
    assert [rate.bitrate for rate in found.rates] == [500, 1000, 1500, 3000]
    card = (PRETRAINED / NAME / CARD).read_text()
    for rate in found.rates:  # The card, the list and the record say the same.
        figures = [f"{value:.3g}" for value in rate.metrics.values()]
        assert f"| {rate.codebooks} | {rate.bitrate / 1000:g} | {' | '.join(figures)} |" in card
        assert all(figure in out for figure in figures)


def test_an_installation_without_models_says_so(run, monkeypatch):
    monkeypatch.setattr("audiovq.models.pretrained.pretrained_models", list)
    assert run("models") == (1, "", "audiovq: no models came with this installation\n")


def test_a_list_of_models_has_their_quality_and_damage_is_named(tiny_tokenizer, tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    quality = {"rates": [{"codebooks": 1, "bitrate": 4000.0, "metrics": {"STOI": 0.5}}], "conditions": ["two clips"]}
    (tmp_path / "tiny" / QUALITY).write_text(json.dumps(quality))
    (found,) = pretrained_models(tmp_path)
    assert (found.name, found.config.sample_rate, found.conditions) == ("tiny", 16000, ["two clips"])
    assert found.rates == [Rate(1, 4000.0, {"STOI": 0.5})]
    (tmp_path / "tiny" / QUALITY).write_text('{"rates": [{"size": 1}], "conditions": []}')
    with pytest.raises(CheckpointError, match=QUALITY):
        pretrained_models(tmp_path)


def test_speech_stays_intelligible_and_more_codebooks_keep_more(tokenizer, speech_folder):
    """On a voice, and in a language, that it was not trained on."""
    from audiovq.audio import load_audio

    wave, rate = load_audio(speech_folder / "june" / "fr-vm-intro.ogg")
    codes = tokenizer.encode(wave, rate)
    scores = [stoi(wave, tokenizer.decode(codes[:, :books], wave.shape[-1])[0], rate) for books in (1, 3, 6)]
    assert scores == sorted(scores)
    assert scores[1] > 0.8
    assert scores[2] > 0.83


def test_codes_are_those_of_any_batch_and_piece(tokenizer, mini_speech):
    codes = tokenizer.encode(mini_speech, 16000)
    batch = tokenizer.encode(torch.stack([mini_speech.flip(-1), mini_speech]), 16000)
    assert torch.equal(batch[1:], codes)
    stream = tokenizer.stream_encoder()
    pieces = [stream(piece) for piece in mini_speech[None].split(7 * 320, -1)]
    if mini_speech.shape[-1] % 320 == 0:
        pieces.append(stream(mini_speech[None, :, :0], last=True))
    assert torch.equal(torch.cat(pieces, -1), codes)


def test_a_folder_of_that_name_wins_if_it_is_a_model(tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "hello.npz").write_bytes(b"codes")
    assert AudioTokenizer.from_pretrained(NAME, "cpu").num_codebooks == 6
    with pytest.raises(CheckpointError, match=f"^{NAME}: is no model folder"):
        AudioTokenizer.from_pretrained(f"./{NAME}", "cpu")
    tiny_tokenizer().save_pretrained(tmp_path / NAME)
    assert AudioTokenizer.from_pretrained(NAME, "cpu").num_codebooks == 1
    (tmp_path / NAME / "config.json").unlink()  # What is left of a model is not taken for another one.
    with pytest.raises(CheckpointError, match=f"^{NAME}: is no model folder"):
        AudioTokenizer.from_pretrained(NAME, "cpu")


def test_a_name_that_is_misspelt_is_told_the_right_one(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = f"audiovq: speech16k: no such model folder; with audiovq comes {NAME}\n"
    assert run("info", "speech16k") == (2, "", expected)
