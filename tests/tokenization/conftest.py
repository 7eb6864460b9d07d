from __future__ import annotations

from pathlib import Path

import pytest
import soundfile

from audiovq.audio import AudioSource
from audiovq.data.manifest import Utterance, write_manifest

SPEECH = Path(__file__).parents[2] / "recipes" / "mini" / "data"


def utterance(path: Path, **known) -> Utterance:
    source = AudioSource.open(path)
    return Utterance(path.stem, path, source.duration, source.sample_rate, source.num_samples, **known)


@pytest.fixture(scope="session")
def speech_folder(tmp_path_factory) -> Path:
    """Six files of real speech, half a second to two seconds long, at three rates."""
    folder = tmp_path_factory.mktemp("speech")
    originals = sorted((SPEECH / "allison").glob("*.ogg"))
    for number, original in enumerate(originals[:6]):
        wave = AudioSource.open(original).read((8000, 16000, 22050)[number % 3])
        rate = (8000, 16000, 22050)[number % 3]
        samples = wave[0, : round(rate * (2.0, 0.5, 1.3, 1.31, 0.9, 1.7)[number])]
        soundfile.write(folder / f"utt{number}.wav", samples.numpy(), rate)
    return folder


@pytest.fixture
def utterances(speech_folder) -> list[Utterance]:
    return [utterance(path, speaker="allison") for path in sorted(speech_folder.glob("*.wav"))]


@pytest.fixture(scope="session")
def model(tiny_tokenizer, tmp_path_factory) -> Path:
    """A released model with random weights."""
    folder = tmp_path_factory.mktemp("tokenizing") / "model"
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def manifest(utterances, tmp_path) -> Path:
    """A manifest of the six utterances."""
    write_manifest(tmp_path / "manifest" / "data.jsonl", utterances)
    return tmp_path / "manifest" / "data.jsonl"
