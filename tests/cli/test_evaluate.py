import json
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from typer.testing import CliRunner

from audiovq import cli
from audiovq.config import AutoencoderConfig
from audiovq.data.manifest import Utterance, write_manifest
from audiovq.models.autoencoder import Autoencoder
from audiovq.models.tokenizer import AudioTokenizer

SPEECH = Path(__file__).parents[2] / "recipes" / "mini" / "data"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A tiny untrained tokenizer, 16 kHz with 100 frames a second."""
    config = AutoencoderConfig.model_validate(
        {
            "sample_rate": 16000,
            "latent_dim": 8,
            "encoder": {"channels": [4, 8, 8], "strides": [10, 16], "dilations": [[], [1], [1]]},
            "bottleneck": {"type": "vq", "codebook_size": 16, "code_dim": 4},
            "decoder": {"type": "istft", "dim": 8, "layers": 1},
        }
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    AudioTokenizer(Autoencoder(config), config).save_pretrained(folder)
    return str(folder)


def manifest_of(folder: Path, *paths: Path) -> str:
    known = []
    for number, path in enumerate(paths):
        info = soundfile.info(path)
        duration = info.frames / info.samplerate
        known.append(Utterance(f"u{number}", path.resolve(), duration, info.samplerate, info.frames))
    write_manifest(folder / "test.jsonl", known)
    return str(folder / "test.jsonl")


@pytest.fixture
def speech() -> list[Path]:
    return [path for path in sorted(SPEECH.rglob("*.ogg")) if soundfile.info(path).duration > 2][:3]


def exit_code(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["audiovq", "evaluate", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def run(*arguments: str):
    return CliRunner().invoke(cli.app, ["evaluate", *arguments, "--device", "cpu"])


def test_prints_the_metrics_and_writes_the_page(model, speech, tmp_path):
    output = tmp_path / "report"
    result = run(model, manifest_of(tmp_path, *speech), "--output", str(output), "--examples", "1")
    assert result.exit_code == 0, result.output
    assert {path.name for path in output.iterdir()} == {"index.html", "metrics.json", "utterances.jsonl"}
    found = json.loads((output / "metrics.json").read_text())
    assert found["model"]["weights_sha256"] == AudioTokenizer.from_pretrained(model, "cpu").weights_sha256
    assert found["model"]["bitrate"] == found["codes"]["nominal_bitrate"] == 400
    assert f"{found['metrics']['stoi']['mean']:.3f} ± " in result.stdout
    assert str(output / "index.html") in result.stdout
    assert (output / "index.html").read_text().count("<article") == 1


def test_limit_takes_utterances_from_all_over_the_manifest(model, speech, tmp_path):
    result = run(model, manifest_of(tmp_path, *speech, *speech), "-o", str(tmp_path / "report"), "--limit", "2")
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "report" / "utterances.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["u0", "u3"]


def test_bad_audio_is_named_and_the_exit_code_is_1(model, speech, tmp_path):
    broken = tmp_path / "broken.wav"
    soundfile.write(broken, torch.zeros(32000).numpy(), 16000)
    manifest = manifest_of(tmp_path, speech[0], broken)
    broken.write_bytes(broken.read_bytes()[:1000])
    result = run(model, manifest, "-o", str(tmp_path / "report"))
    assert result.exit_code == 1
    assert "rejected u1: " in result.stderr
    assert "broken.wav: is truncated" in result.stderr
    assert "broken.wav: is truncated" in (tmp_path / "report" / "index.html").read_text()


def test_silence_has_failed_metrics_and_no_numbers(model, tmp_path):
    silence = tmp_path / "silence.wav"
    soundfile.write(silence, torch.zeros(32000).numpy(), 16000)
    result = run(model, manifest_of(tmp_path, silence), "-o", str(tmp_path / "report"))
    assert result.exit_code == 0, result.output
    assert "STOI failed 1x: the original is silent" in result.stdout
    assert json.loads((tmp_path / "report" / "metrics.json").read_text())["metrics"]["stoi"]["mean"] is None


def test_an_earlier_report_is_kept_unless_forced(model, speech, tmp_path, monkeypatch, capsys):
    output = tmp_path / "report"
    output.mkdir()
    (output / "index.html").write_text("earlier")
    arguments = [model, manifest_of(tmp_path, speech[0]), "-o", str(output), "--device", "cpu"]
    assert exit_code(monkeypatch, *arguments) == 2
    assert "exists already" in capsys.readouterr().err
    assert exit_code(monkeypatch, *arguments, "--force") == 2
    assert "index.html may not be what evaluate has written there" in capsys.readouterr().err
    assert (output / "index.html").read_text() == "earlier"
    (output / "metrics.json").write_text('{"audiovq_version": "0.1.0"}')
    (output / "notes.txt").write_text("mine")
    assert run(*arguments[:4], "--force").exit_code == 0
    assert (output / "index.html").read_text() != "earlier"
    assert (output / "notes.txt").read_text() == "mine"


def test_a_missing_model_or_manifest_is_one_line_and_exit_code_2(model, speech, tmp_path, monkeypatch, capsys):
    manifest = manifest_of(tmp_path, speech[0])
    for arguments in ([str(tmp_path / "nothing"), manifest], [model, str(tmp_path / "nothing.jsonl")]):
        assert exit_code(monkeypatch, *arguments, "-o", str(tmp_path / "report"), "--device", "cpu") == 2
        error = capsys.readouterr().err
        assert error.startswith("audiovq: ")
        assert "nothing" in error
        assert error.count("\n") == 1
    assert not (tmp_path / "report").exists()


def test_a_judge_that_cannot_run_is_one_line_and_exit_code_1(model, speech, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distillmos", None)  # Which makes its import fail.
    result = run(model, manifest_of(tmp_path, speech[0]), "-o", str(tmp_path / "report"), "--judges", "mos")
    assert result.exit_code == 1
    assert result.stdout.count("judge mos cannot run: ") == 1
    found = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert "pip install" in found["judges"]["mos"]["cannot_run"]
    assert "mos" not in found["metrics"]


def test_an_unknown_judge_is_one_line_and_exit_code_2_before_anything_is_read(tmp_path, monkeypatch, capsys):
    arguments = ["no model", str(tmp_path / "no manifest"), "-o", str(tmp_path / "report"), "--device", "cpu"]
    assert exit_code(monkeypatch, *arguments, "--judges", "mos,ears") == 2
    assert capsys.readouterr().err == "audiovq: unknown judge 'ears'; there are mos, wer, speaker, pitch\n"
    assert not (tmp_path / "report").exists()
