"""`audiovq convert`, and the other commands with a model that is told who speaks: from speech to a trained model on."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from audiovq.audio.files import load_audio, save_audio
from audiovq.data.manifest import read_manifest, write_manifest
from audiovq.models.tokenizer import AudioTokenizer

SPEECH = Path(__file__).parents[2] / "recipes" / "mini" / "data"
SAMPLES = 601
"""Samples of each recording: no whole frames."""

CONFIG = {
    "sample_rate": 8000,
    "latent_dim": 8,
    "encoder": {"channels": [4, 8], "strides": [40], "dilations": [[], [1]]},
    "bottleneck": {"type": "vq", "codebook_size": 16, "code_dim": 4},
    "decoder": {
        **{"type": "wavenet", "layers": 2, "cycle": 2, "residual_channels": 4, "skip_channels": 4},
        **{"condition_channels": 4, "speaker_dim": 2},
    },
    "loss": {"mu_law": 1, "mel": 0, "stft": 0},
    "data": {"crop_seconds": 0.05, "batch_size": 4},
    "training": {"steps": 8, "warmup_steps": 1, "valid_every": 8, "valid_utterances": 2, "learning_rate": 0.02},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("voices")


@pytest.fixture(scope="module")
def speech(root) -> Path:
    """A folder for each of two voices, with three short recordings each."""
    for voice in ("allison", "june"):
        (root / "speech" / voice).mkdir(parents=True)
        for number, path in enumerate(sorted((SPEECH / voice).glob("*.ogg"))[:3]):
            wave, _ = load_audio(path, 8000, offset=0.5, duration=0.1)
            save_audio(root / f"speech/{voice}/{number}.wav", wave[:, :SAMPLES], 8000)
    return root / "speech"


@pytest.fixture
def model(run, speech, root) -> Path:
    """A tiny model, trained by the command line when a test first asks for it."""
    if not (root / "exp").exists():
        pattern = ("--speaker-pattern", "{speaker}/", "--split-by", "utterance")
        assert run("prepare", "folder", speech, *pattern, "-o", root / "data")[0] == 0
        (root / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
        data = [f"data.{part}={root}/data/{split}.jsonl.gz" for part, split in (("train", "train"), ("valid", "dev"))]
        code, _, err = run("train", root / "tiny.yaml", *data, "-o", root / "exp", "--device", "cpu")
        assert code == 0, err
    return root / "exp/release"


@pytest.fixture
def plain_model(tiny_tokenizer, tmp_path) -> Path:
    """A model without speakers."""
    tiny_tokenizer("istft").save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def assert_one_line(err: str, *parts: object) -> None:
    assert err.startswith("audiovq: ")
    assert err.count("\n") == 1
    for part in parts:
        assert str(part) in err


def test_convert_says_every_file_in_the_voice_of_the_speaker(run, model, speech, tmp_path):
    tokenizer = AudioTokenizer.from_pretrained(model, "cpu")
    for voice in ("june", "allison"):
        output = tmp_path / voice
        done = run("convert", model, speech, "--speaker", voice, "-o", output)
        assert done == (0, f"6 of 6 files written: {output}\n", "")
        for path in speech.rglob("*.wav"):
            converted, rate = soundfile.read(output / path.relative_to(speech))
            assert (len(converted), rate) == (SAMPLES, 8000)
            codes = tokenizer.encode(*load_audio(path))
            expected = tokenizer.decode(codes, SAMPLES, speaker=voice)[0, 0]
            np.testing.assert_allclose(converted, expected.numpy(), atol=1.01 / 32768)
    for path in speech.rglob("*.wav"):
        names = [tmp_path / voice / path.relative_to(speech) for voice in ("june", "allison")]
        assert names[0].read_bytes() != names[1].read_bytes()


def test_existing_files_are_overwritten_only_with_force(run, model, speech, tmp_path):
    arguments = ("convert", model, speech / "june/0.wav", "--speaker", "allison", "-o", tmp_path)
    (tmp_path / "0.wav").write_text("old")
    code, _, err = run(*arguments)
    assert code == 2
    assert_one_line(err, tmp_path / "0.wav", "exists already", "--force")
    assert (tmp_path / "0.wav").read_text() == "old"
    assert run(*arguments, "--force")[0] == 0
    assert soundfile.info(tmp_path / "0.wav").frames == SAMPLES


def test_an_input_is_never_overwritten(run, model, speech, tmp_path):
    folder = Path(shutil.copytree(speech, tmp_path / "speech"))
    (tmp_path / "link").symlink_to(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*.wav")}
    for output in (folder, tmp_path / "link"):
        for force in ((), ("--force",)):
            code, out, err = run("convert", model, folder, "--speaker", "june", "-o", output, *force)
            assert (code, out) == (2, "")
            assert_one_line(err, f"{output / 'allison/0.wav'}: is one of the inputs; choose another output")
    assert {path: path.read_bytes() for path in folder.rglob("*.wav")} == before


def test_bad_audio_is_told_and_the_rest_is_converted(run, model, speech, tmp_path):
    (tmp_path / "bad.wav").write_text("no audio")
    inputs = (tmp_path / "bad.wav", speech / "june/0.wav")
    code, out, err = run("convert", model, *inputs, "--speaker", "june", "-o", tmp_path / "out")
    assert (code, out) == (1, f"1 of 2 files written: {tmp_path / 'out'}\n")
    assert_one_line(err, "bad.wav: is no audio")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["0.wav"]


@pytest.mark.parametrize(
    ("speaker", "message"),
    [("jun", "unknown speaker 'jun'; did you mean 'june'?"), ("p225", "known are allison, june")],
)
@pytest.mark.parametrize("command", ["convert", "decode", "decode tokens"])
def test_an_unknown_speaker_is_one_line_and_writes_nothing(run, model, speech, tmp_path, command, speaker, message):
    given = speech
    if command == "decode":
        run("encode", model, speech, "-o", given := tmp_path / "codes")
    elif command == "decode tokens":
        run("tokenize", model, speech, "-o", given := tmp_path / "tokens")
    code, out, err = run(command.split()[0], model, given, "--speaker", speaker, "-o", tmp_path / "out")
    assert (code, out) == (2, "")
    assert_one_line(err, message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["convert", "decode"])
def test_a_model_without_speakers_cannot_speak_as_somebody(run, plain_model, speech, tmp_path, command):
    given = speech
    if command == "decode":
        run("encode", plain_model, speech, "-o", given := tmp_path / "codes")
    code, out, err = run(command, plain_model, given, "--speaker", "june", "-o", tmp_path / "out")
    assert (code, out) == (2, "")
    assert_one_line(err, "the model knows no speakers and cannot speak as 'june'")
    assert not (tmp_path / "out").exists()


def test_a_model_without_codes_cannot_convert(run, tiny_tokenizer, speech, tmp_path):
    tiny_tokenizer("wavenet", "none").save_pretrained(tmp_path / "model")
    code, _, err = run("convert", tmp_path / "model", speech, "--speaker", "june", "-o", tmp_path / "out")
    assert code == 2
    assert_one_line(err, "'none' has no codes")


def test_convert_needs_a_speaker(run, model, speech, tmp_path):
    code, _, err = run("convert", model, speech, "-o", tmp_path)
    assert code == 2
    assert "Missing option '--speaker'" in err


def test_codes_files_are_decoded_as_the_speaker_that_is_named(run, model, speech, tmp_path):
    run("encode", model, speech / "june", "-o", tmp_path / "codes")
    code, _, err = run("decode", model, tmp_path / "codes", "-o", tmp_path / "out")
    assert code == 2
    assert_one_line(err, "has to be told who speaks; known are allison, june")
    assert run("decode", model, tmp_path / "codes", "--speaker", "allison", "-o", tmp_path / "out")[0] == 0
    run("convert", model, speech / "june", "--speaker", "allison", "-o", tmp_path / "converted")
    for name in ("0.wav", "1.wav", "2.wav"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "converted" / name).read_bytes()


def test_a_token_data_set_is_decoded_as_its_own_speakers_unless_one_is_named(run, model, root, tmp_path):
    manifest = root / "data/train.jsonl.gz"
    run("tokenize", model, manifest, "-o", tmp_path / "tokens")
    assert run("decode", model, tmp_path / "tokens", "-o", tmp_path / "own")[0] == 0
    assert run("decode", model, tmp_path / "tokens", "--speaker", "june", "-o", tmp_path / "june")[0] == 0
    same = {
        utterance.speaker: np.array_equal(
            *(soundfile.read(tmp_path / folder / f"{utterance.id}.wav")[0] for folder in ("own", "june"))
        )
        for utterance in read_manifest(manifest)
    }
    assert same == {"june": True, "allison": False}


def test_tokens_without_speaker_are_told_and_the_exit_code_is_1(run, model, speech, tmp_path):
    run("tokenize", model, speech, "-o", tmp_path / "tokens")
    code, out, err = run("decode", model, tmp_path / "tokens", "-o", tmp_path / "out")
    assert (code, out) == (1, f"0 of 6 files written: {tmp_path / 'out'}\n")
    assert err.count("has to be told who speaks") == 6


def test_evaluate_reconstructs_each_utterance_in_its_own_voice(run, model, root, tmp_path, monkeypatch):
    spoken = []
    original = AudioTokenizer.reconstruct

    def reconstruct(self, wave, rate, **named):
        spoken.append(named["speaker"])
        return original(self, wave, rate, **named)

    monkeypatch.setattr(AudioTokenizer, "reconstruct", reconstruct)
    manifest = root / "data/train.jsonl.gz"
    code, _, err = run("evaluate", model, manifest, "-o", tmp_path / "report", "--device", "cpu")
    assert code == 0, err
    assert spoken == [utterance.speaker for utterance in read_manifest(manifest)]
    assert {*spoken} == {"allison", "june"}
    assert (tmp_path / "report/index.html").exists()


@pytest.mark.parametrize(
    ("speaker", "message"), [("carlo", "unknown speaker 'carlo'"), (None, "has to be told who speaks")]
)
def test_evaluate_refuses_utterances_of_speakers_that_the_model_does_not_know(
    run, model, root, tmp_path, speaker, message
):
    (first, *_) = read_manifest(root / "data/dev.jsonl.gz")
    write_manifest(tmp_path / "test.jsonl", [replace(first, speaker=speaker)])
    code, _, err = run("evaluate", model, tmp_path / "test.jsonl", "-o", tmp_path / "report")
    assert code == 2
    assert_one_line(err, f"utterance {first.id!r}: ", message)


def test_info_names_the_speakers(run, model):
    code, out, _ = run("info", model)
    assert code == 0
    assert "speakers         allison, june\n" in out
