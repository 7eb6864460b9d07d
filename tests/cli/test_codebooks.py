"""`--codebooks`: encode, tokenize and evaluate with the first few codebooks of a model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from audiovq.audio.files import load_audio, save_audio
from audiovq.data.manifest import write_manifest
from audiovq.models.tokenizer import AudioTokenizer
from audiovq.tokens import TokenSet
from audiovq.tokens.codes_file import load_codes


@pytest.fixture(scope="module")
def tokenizer(placed_tokenizer) -> AudioTokenizer:
    return placed_tokenizer("istft", "residual")


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def speech(mini_speech, tmp_path) -> Path:
    save_audio(tmp_path / "speech/one.wav", mini_speech[:, 6000:18345], 16000)
    return tmp_path / "speech"


@pytest.fixture
def arguments(speech, manifest, utterances) -> dict[str, Path]:
    """What each command that knows the option is given."""
    write_manifest(manifest, utterances[:1])
    return {"encode": speech, "tokenize": speech, "evaluate": manifest}


def test_codes_files_hold_the_first_codebooks_and_decode(run, model, tokenizer, speech, tmp_path):
    assert run("encode", model, speech, "-o", tmp_path / "codes", "--codebooks", 2)[0] == 0
    wave, _ = load_audio(speech / "one.wav")
    file = load_codes(tmp_path / "codes/one.npz")
    np.testing.assert_array_equal(file.codes, tokenizer.encode(wave, 16000)[0, :2])
    assert file.model_codebooks == 3
    code, _, err = run("decode", model, tmp_path / "codes", "-o", tmp_path / "wavs")
    assert (code, err) == (0, "")
    decoded, _ = load_audio(tmp_path / "wavs/one.wav")
    expected = tokenizer.decode(file.codes, wave.shape[-1])[0].clamp(-1, 1)
    np.testing.assert_allclose(decoded, expected, atol=1e-4)


def test_a_token_set_of_the_first_codebooks_is_checked_measured_and_decoded(run, model, speech, tmp_path):
    tokens = tmp_path / "tokens"
    assert run("tokenize", model, speech, "-o", tokens, "--codebooks", 2)[0] == 0
    assert TokenSet(tokens)[0].codes.shape[0] == 2
    assert run("tokens", "verify", tokens, "--model", model, "--input", speech)[0] == 0
    assert "7200 bit/s with 2 of the model's 3 codebooks" in run("tokens", "stats", tokens)[1]
    assert run("decode", model, tokens, "-o", tmp_path / "wavs")[0] == 0
    code, out, err = run("tokenize", model, speech, "-o", tokens)
    assert (code, out) == (2, "")
    assert err.startswith(f"audiovq: {tokens}: holds the codes of another --codebooks, 2; ")
    assert err.count("\n") == 1


def test_an_evaluation_reports_the_codebooks_that_it_used(run, model, arguments, tmp_path):
    code, out, err = run("evaluate", model, arguments["evaluate"], "-o", tmp_path / "page", "--codebooks", 2)
    assert code == 0, err
    assert "bitrate 7200 bit/s with 2 of the model's 3 codebooks, empirical" in out
    assert "of 16 codes used" in out.splitlines()[-2]
    assert "dead, perplexity" in out.splitlines()[-2]
    metrics = json.loads((tmp_path / "page/metrics.json").read_text())
    assert (metrics["model"]["bitrate"], metrics["model"]["num_codebooks"]) == (7200, 2)
    codes = metrics["codes"]
    assert codes["sizes"] == [32, 16]
    assert [size - used for size, used in zip(codes["sizes"], codes["used"], strict=True)] == codes["dead"]
    assert len(codes["perplexity"]) == 2
    page = (tmp_path / "page/index.html").read_text()
    assert "32 + 16 <small>of 3 codebooks</small>" in page
    assert "of 16</span>" in page


@pytest.mark.parametrize("command", ["encode", "tokenize", "evaluate"])
@pytest.mark.parametrize(
    ("bottleneck", "number", "message"),
    [
        ("residual", 4, "codebooks: expected 1 to 3, as many as the model has, found 4"),
        ("residual", 0, "codebooks: expected 1 to 3, as many as the model has, found 0"),
        ("vq", 2, "codebooks: expected 1, as many as the model has, found 2"),
        ("none", 1, "a model with bottleneck 'none' has no codes"),
    ],
)
def test_what_the_model_does_not_have_is_one_line_and_exit_code_2(
    run, tiny_tokenizer, arguments, tmp_path, command, bottleneck, number, message
):
    tiny_tokenizer("istft", bottleneck).save_pretrained(tmp_path / "model")
    output = tmp_path / "output"
    code, out, err = run(command, tmp_path / "model", arguments[command], "-o", output, "--codebooks", number)
    assert (code, out, err) == (2, "", f"audiovq: {message}\n")
    assert not output.exists()


def test_info_tells_the_rate_at_each_number_of_codebooks(run, model, tiny_tokenizer, tmp_path):
    assert "kbit/s           4, 7.2, 9.6 with 1 to 3 codebooks\n" in run("info", model)[1]
    assert "bitrate          9600 bit/s\n" in run("info", model)[1]
    tiny_tokenizer("istft", "vq").save_pretrained(tmp_path)
    assert "kbit/s" not in run("info", tmp_path)[1]
