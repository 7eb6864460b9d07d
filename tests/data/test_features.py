"""A teacher's features: of the right frames, kept beside the manifest, told at any time, refused if they cannot be."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch

from audiovq.data import features
from audiovq.data.features import SpeechFeatures, speech_features
from audiovq.data.manifest import Utterance, write_manifest
from audiovq.data.teachers import RATE, Teacher, find_teacher, load_teacher
from audiovq.errors import CheckpointError, ConfigError

CPU = torch.device("cpu")
SCALE = 100.0
"""Seconds at which a recording that tells the time is at its loudest."""


def clock(seconds: float) -> np.ndarray:
    """A recording whose samples say when they are."""
    return (np.arange(round(seconds * RATE)) / RATE / SCALE).astype(np.float32)


class Clock(Teacher):
    """Reads the time in the middle of each frame of 20 ms, and the seconds that it was given."""

    source, rate, first = "clock", 50.0, 0.01

    def __init__(self, frames_too_many: int = 0):
        self.heard: list[float] = []
        self.more = frames_too_many

    def hear(self, wave):
        self.heard.append(len(wave) / RATE)
        count = len(wave) // 320 + self.more
        middles = np.arange(count) * 320 + 160
        return np.stack([SCALE * wave[middles.clip(max=len(wave) - 1)], np.full(count, self.heard[-1])], 1)


@pytest.fixture
def folder(tmp_path) -> Path:
    """What looks like a teacher of faster-whisper."""
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher/config.json").write_text("{}")
    (tmp_path / "teacher/model.bin").write_bytes(b"weights")
    return tmp_path / "teacher"


@pytest.fixture
def listed(tmp_path) -> tuple[Path, list[Utterance]]:
    """A manifest of two recordings, of 0.8 s and of 61 s."""
    utterances = []
    for name, seconds in (("short", 0.8), ("long", 61.0)):
        soundfile.write(tmp_path / f"{name}.wav", clock(seconds), RATE, "FLOAT")
        utterances.append(Utterance(name, tmp_path / f"{name}.wav", seconds, RATE, round(seconds * RATE)))
    write_manifest(tmp_path / "train.jsonl.gz", utterances)
    return tmp_path / "train.jsonl.gz", utterances


@pytest.fixture
def loaded(monkeypatch) -> list[Teacher]:
    """The teachers that were loaded; they read the time."""
    teachers: list[Teacher] = []

    def load(*_):
        teachers.append(Clock())
        return teachers[-1]

    monkeypatch.setattr(features, "load_teacher", load)
    return teachers


def test_features_read_back_are_those_of_the_teacher_and_long_recordings_are_cut(listed, folder, loaded):
    found = speech_features(*listed, find_teacher(str(folder)), CPU)
    assert loaded[0].heard == pytest.approx([0.8, 20.34, 20.32, 20.34])
    for number, seconds in enumerate((0.8, 61.0)):
        expected = Clock().features(clock(seconds))
        assert found.of(number).dtype == np.float16
        assert np.array_equal(found.of(number), expected)
        assert len(expected) == seconds * 50
        np.testing.assert_allclose(expected[:, 0], np.arange(len(expected)) / 50 + 0.01, rtol=1e-3)


def test_features_are_kept_beside_the_manifest_and_made_anew_when_anything_changes(listed, folder, loaded, capsys):
    manifest, utterances = listed
    first = speech_features(manifest, utterances, find_teacher(str(folder)), CPU)
    cache = manifest.parent / "train.features-teacher.arrow"
    told = r"^features by teacher of 0\.02 hours in \d+ s, \d+ x real time: .*/train\.features-teacher\.arrow\n$"
    assert re.search(told, capsys.readouterr().err)

    again = speech_features(manifest, utterances, find_teacher(str(folder)), CPU)
    assert len(loaded) == 1
    assert (again.rate, again.first) == (first.rate, first.first) == (50.0, 0.01)
    assert np.array_equal(again.of(1), first.of(1))

    speech_features(manifest, utterances[:1], find_teacher(str(folder)), CPU)
    assert len(loaded) == 2
    (folder / "model.bin").write_bytes(b"other weights")
    speech_features(manifest, utterances[:1], find_teacher(str(folder)), CPU)
    assert len(loaded) == 3
    cache.write_bytes(cache.read_bytes()[:-100])
    speech_features(manifest, utterances[:1], find_teacher(str(folder)), CPU)
    assert len(loaded) == 4
    assert sorted(path.name for path in manifest.parent.glob("*.arrow")) == [cache.name]


def test_of_a_damaged_file_nothing_is_read_or_features_of_the_right_form(folder, loaded, tmp_path):
    soundfile.write(tmp_path / "a.wav", clock(0.1), RATE, "FLOAT")
    utterances = [Utterance(name, tmp_path / "a.wav", 0.1, RATE, 1600) for name in "ab"]
    teacher = find_teacher(str(folder))
    write_manifest(tmp_path / "a.jsonl", utterances)
    speech_features(tmp_path / "a.jsonl", utterances, teacher, CPU)
    cache = tmp_path / "a.features-teacher.arrow"
    whole, identity = cache.read_bytes(), f"{features.identity_of(utterances)} {teacher.digest}"
    results = set()
    for place in range(0, len(whole), 3):
        cache.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        found = features._read(cache, identity, 2)
        results.add(found is None)
        for number in range(2 if found else 0):
            assert found.of(number).dtype == np.float16
            assert found.of(number).ndim == 2
    assert results == {True, False}


def test_of_two_that_ask_at_once_one_computes_and_the_other_waits(listed, folder, loaded):
    found = []

    def ask():
        found.append(speech_features(*listed, find_teacher(str(folder)), CPU))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 1
    assert np.array_equal(found[0].of(1), found[1].of(1))


def test_between_two_frames_features_are_interpolated_and_outside_they_are_zero():
    values = np.array([[1, 8], [2, 4], [4, -4]], np.float16)
    frames = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 2)
    found = SpeechFeatures([frames], rate=10.0, first=0.05).at(
        0, np.array([-0.01, 0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.31])
    )
    expected = [[0, 0], [1, 8], [1, 8], [1.5, 6], [2, 4], [3, 0], [4, -4], [0, 0]]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_frame_more_or_less_is_mended_and_other_lengths_are_refused():
    wave = clock(1.0)
    for more in (-2, 2):
        found = Clock(more).features(wave)
        assert len(found) == 50
        np.testing.assert_allclose(found[:48, 0], np.arange(48) / 50 + 0.01, rtol=1e-3)
    for more in (-25, 50):
        message = f"data.teacher: clock gives {50 + more} frames of 1 s; about 50 were expected, at 50 a second"
        with pytest.raises(ConfigError, match=f"^{message}$"):
            Clock(more).features(wave)


@pytest.mark.parametrize("value", [np.nan, 1e6])
def test_features_that_are_no_16_bit_numbers_are_refused(value):
    with pytest.raises(ConfigError, match="clock gives features that are no 16-bit numbers"):
        Clock().features(np.full(RATE, value / SCALE, np.float32))


def test_what_is_no_teacher_is_named_in_one_line(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, wrong in (
        ("nowhere", "nowhere: no such model folder"),
        (str(folder), "is no teacher; expected config.json"),
    ):
        (folder / "model.bin").unlink(missing_ok=True)
        with pytest.raises(CheckpointError, match=wrong) as caught:
            find_teacher(name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("weights", "package"), [("model.bin", "ctranslate2"), ("model.safetensors", "transformers")])
def test_a_package_that_is_missing_is_named(folder, monkeypatch, weights, package):
    (folder / "model.bin").rename(folder / weights)
    monkeypatch.setitem(sys.modules, package, None)
    expected = rf"^data.teacher: .*teacher needs {package}: pip install 'audiovq\[teacher\]'$"
    with pytest.raises(ConfigError, match=expected):
        load_teacher(find_teacher(str(folder)), CPU)


def test_weights_that_are_none_are_refused_in_one_line(folder):
    pytest.importorskip("ctranslate2")
    pytest.importorskip("faster_whisper")
    with pytest.raises(CheckpointError, match="teacher: cannot be loaded as a faster-whisper model") as caught:
        load_teacher(find_teacher(str(folder)), CPU)
    assert "\n" not in str(caught.value)


# --- networks ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whisper() -> Teacher:
    """The encoder of a faster-whisper model."""
    pytest.importorskip("faster_whisper")
    folder = os.environ.get("AUDIOVQ_WER_MODEL")
    if not folder:
        pytest.skip("needs AUDIOVQ_WER_MODEL, the folder of a faster-whisper model")
    return load_teacher(find_teacher(folder), CPU)


def test_whisper_hears_the_same_where_speech_is_later_and_nothing_like_it_elsewhere(whisper, mini_speech):
    wave = mini_speech[0].numpy()
    found = whisper.features(wave).astype(np.float32)
    assert len(found) == 100
    assert np.array_equal(found, whisper.features(wave))
    later = whisper.features(np.pad(wave, (10 * 320, 0))).astype(np.float32)
    assert len(later) == 110
    units = [(part - found.mean(0)) / found.std(0) for part in (found, later)]
    units = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in units]
    by_shift = {shift: (units[0][:90] * units[1][shift : 90 + shift]).sum(1).mean() for shift in (0, 8, 10, 12, 20)}
    assert max(by_shift, key=by_shift.__getitem__) == 10, by_shift
    assert by_shift[10] > 0.6 > 0.3 > by_shift[0], by_shift


@pytest.mark.parametrize("kind", ["Whisper", "Hubert", "WavLM"])
def test_networks_of_transformers_give_fifty_frames_a_second(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    small = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    of_whisper = {f"{side}_{name}": 1 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    if kind == "Whisper":
        config = transformers.WhisperConfig(d_model=16, **of_whisper, encoder_ffn_dim=16, decoder_ffn_dim=16)
        transformers.WhisperFeatureExtractor().save_pretrained(tmp_path)
    else:
        config = getattr(transformers, f"{kind}Config")(**small, conv_dim=[16] * 7, num_conv_pos_embedding_groups=2)
        transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(tmp_path)
    teacher = load_teacher(find_teacher(str(tmp_path)), CPU)
    assert teacher.rate == 50
    assert teacher.first == pytest.approx(0.0 if kind == "Whisper" else 0.0125)
    noise = np.random.default_rng(0).standard_normal(31 * RATE).astype(np.float32) / 10
    for seconds, frames in ((0.01, 1), (1.0, 50), (31.0, 1550)):
        found = teacher.features(noise[: round(seconds * RATE)])
        assert found.shape == (frames, 16)
    assert np.ptp(found.astype(float), 0).max() > 0.1


def test_another_network_of_transformers_is_refused(tmp_path):
    transformers = pytest.importorskip("transformers")
    small = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.ASTModel(transformers.ASTConfig(**small)).save_pretrained(tmp_path)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "audio-spectrogram-transformer"
    with pytest.raises(ConfigError, match="is of type audio-spectrogram-transformer; expected Whisper, HuBERT, WavLM"):
        load_teacher(find_teacher(str(tmp_path)), CPU)
