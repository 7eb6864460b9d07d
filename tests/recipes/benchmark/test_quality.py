"""The benchmark of quality, on a few seconds of speech."""

from __future__ import annotations

import json
import shutil
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from audiovq.audio.files import AudioSource, load_audio
from audiovq.data.manifest import Utterance, write_manifest
from audiovq.evaluation.judges import Judges
from audiovq.evaluation.metrics import Metric, MetricError, Weighted, estoi

BENCHMARK = Path(__file__).parents[3] / "recipes" / "benchmark"
RATE = 16000


@pytest.fixture
def modules(monkeypatch):
    """The benchmark's modules by name."""
    monkeypatch.syspath_prepend(str(BENCHMARK))
    names = ("codec", "classical", "figures", "quality")
    yield {name: import_module(name) for name in names}
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def quality(modules, monkeypatch):
    """The benchmark without judges."""
    monkeypatch.setattr(modules["quality"], "load_judges", lambda *_: Judges())
    return modules["quality"]


@pytest.fixture
def manifest(tmp_path, speech_folder) -> Path:
    """Three clips; the last cannot be read any more."""
    found = []
    for number, path in enumerate(sorted((speech_folder / "june").glob("*.ogg"))[:3]):
        copy = Path(shutil.copy(path, tmp_path / f"clip{number}.ogg"))
        source = AudioSource.open(copy)
        found.append(Utterance(copy.stem, copy, source.duration, source.sample_rate, source.num_samples))
    copy.write_bytes(b"no audio")
    write_manifest(tmp_path / "test.jsonl", found)
    return tmp_path / "test.jsonl"


@pytest.fixture
def model(tiny_tokenizer, tmp_path) -> str:
    """A model with three codebooks."""
    tiny_tokenizer("istft", "residual").save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def run(quality, *arguments: object):
    return CliRunner().invoke(quality.app, [str(argument) for argument in arguments], catch_exceptions=False)


def sure_of_a_word(reference, degraded, rate) -> float:
    """Stands in for a recogniser: of ten words one is wrong, in a reconstruction."""
    return Weighted(0.0 if degraded is reference else 10.0, 10)


def test_the_whole_benchmark_runs(modules, model, manifest, tmp_path, monkeypatch):
    panel = Judges({"wer": Metric("WER", "%", False, 1, sure_of_a_word)}, {"wer": "Ear 1"}, {"mos": "no package"})
    monkeypatch.setattr(modules["quality"], "load_judges", lambda *_: panel)
    monkeypatch.setattr(modules["quality"], "CODECS", modules["classical"].CODECS[1:2])
    output, base = tmp_path / "out", f"{model}, 1 of 3 codebooks"
    models = ["--model", model, "--model", model, "--codebooks", "1,3,3,9"]
    options = ["--limit", 2, "--seconds", 2, "--reference", base, "--output", output]
    result = run(modules["quality"], manifest, *models, *options)
    assert result.exit_code == 0, result.output
    assert result.stdout == (output / "quality.md").read_text()
    assert "- WER by Ear 1\n- judge mos cannot run: no package\n" in result.stdout
    assert (output / "quality.png").read_bytes().startswith(b"\x89PNG")

    found = json.loads((output / "quality.json").read_text())
    rows = {row["system"]: row for row in found["systems"]}
    assert len(rows) == len(found["systems"])  # What is asked for twice is measured once.
    assert found["clips"] == ["clip0", "clip1"]
    assert found["words"] == [10, 10]
    assert rows["original"]["metrics"]["pesq_wb"]["mean"] == pytest.approx(4.644, abs=1e-3)
    assert [row["kbps"] for name, row in rows.items() if name.startswith(model)] == pytest.approx([4.0, 9.6])
    opus = ["Opus 6k", "Opus 8k"] if shutil.which("opusenc") else []
    assert [name for name in rows if not name.startswith(model)] == ["original", *opus]
    for row in rows.values():
        assert set(row["metrics"]) == {"pesq_wb", "stoi", "estoi", "mel_distance", "wer"}
        assert [len(values) for values in row["clips"].values()] == [2] * 5
    assert rows[base]["differences"]["stoi"] == {"mean": 0, "low": 0, "high": 0}
    assert f"| original | 256 | {rows['original']['metrics']['pesq_wb']['mean']:.2f}" in result.stdout
    assert "| 0 ± 0 |" in result.stdout
    assert f"| less {base} | PESQ-WB ↑ |" in result.stdout


def test_codecs_that_are_not_installed_are_left_out_with_a_word(quality, model, manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    result = run(quality, manifest, "--model", model, "--limit", 1, "--seconds", 1, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "- Codec 2 is left out: c2enc is not installed (Debian package codec2)\n" in result.stdout
    found = json.loads((tmp_path / "out/quality.json").read_text())
    assert [row["system"] for row in found["systems"]] == ["original", f"{model}, 3 of 3 codebooks"]


def test_without_the_reader_of_ogg_only_the_codecs_that_need_it_are_left_out(modules, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda tool: tool)
    monkeypatch.setitem(sys.modules, "av", None)  # Which makes its import fail.
    systems, notes = modules["quality"].codec_systems()
    assert {system.family for system in systems} == {"Codec 2"}
    reason = "is left out: PyAV is not installed (pip install 'audiovq[media]')"
    assert notes == [f"Opus {reason}", f"Speex {reason}"]


def test_a_clip_that_cannot_be_read_is_named_and_the_exit_code_is_1(quality, manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "CODECS", ())
    result = run(quality, manifest, "--seconds", 1, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "rejected clip2: " in result.stdout
    assert json.loads((tmp_path / "out/quality.json").read_text())["clips"] == ["clip0", "clip1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reference", "Codec 3"], "no system is called 'Codec 3'; there are 'original'"),
        (["--model", "nowhere"], "nowhere"),
        (["--codebooks", "1,two"], "expected numbers, such as 1,2,3, found '1,two'"),
    ],
)
def test_a_mistake_in_the_call_has_exit_code_2_and_writes_nothing(quality, manifest, tmp_path, options, message):
    result = run(quality, manifest, *options, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", "").split())
    assert not (tmp_path / "out").exists()


# --- codecs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [5.0, 4.317])
@pytest.mark.parametrize(("family", "settings"), [("Codec 2", 4), ("Opus", 2), ("Speex", 2)])
def test_codecs_give_speech_without_delay_and_the_bits_that_it_took(modules, speech_folder, family, settings, seconds):
    codec = next(codec for codec in modules["classical"].CODECS if codec.name == family)
    if not shutil.which(codec.tool):
        pytest.skip(f"needs {codec.tool}")
    speech, _ = load_audio(min((speech_folder / "june").glob("*.ogg")), RATE, duration=seconds)
    assert len(codec.settings) == settings
    rates = []
    for name, run in codec.settings.items():
        decoded, bits = run(speech)
        rates.append(bits / speech.shape[-1] * RATE)
        assert decoded.shape == speech.shape
        later = torch.nn.functional.pad(decoded, (160, 0))[:, :-160]
        assert estoi(speech, decoded, RATE) > max(0.4, estoi(speech, later, RATE))
        if family == "Codec 2":
            assert rates[-1] == pytest.approx({"700C": 700}.get(name) or int(name), rel=1e-6)
    assert rates == sorted(rates)
    assert family == "Codec 2" or 3500 < rates[0] < rates[-1] < 9000


def test_alignment_undoes_a_delay_although_phases_are_lost(modules, speech_folder):
    speech, _ = load_audio(min((speech_folder / "june").glob("*.ogg")), RATE, duration=3.0)
    spectra = torch.stft(speech, 320, 80, window=torch.hann_window(320), return_complex=True)
    spectra = spectra.abs() * torch.exp(2j * torch.pi * torch.rand(spectra.shape))
    vocoded = torch.istft(spectra, 320, 80, window=torch.hann_window(320), length=speech.shape[-1])
    for delay in (0, 37, 99):
        late = torch.nn.functional.pad(vocoded, (delay * 16, 0))
        moved = modules["classical"].align(speech, late)
        assert moved.shape == speech.shape
        shifts = [torch.roll(vocoded, shift * 16, -1) for shift in (-2, -1, 0, 1, 2)]
        assert min((moved - shifted)[:, 1600:-1600].abs().max() for shifted in shifts) == 0


# --- figures -------------------------------------------------------------------------------------------------


def test_error_rates_are_those_of_all_words_together(modules):
    found = modules["figures"].figure([Weighted(100.0, 1), Weighted(0.0, 9), MetricError("none")])
    assert found.mean == pytest.approx(10)
    assert (found.low, found.high) == (0, 100)


def test_the_interval_is_about_that_of_students_t(modules):
    values = np.random.default_rng(1).normal(3.0, 2.0, 60).tolist()
    found = modules["figures"].figure(values)
    margin = 2.001 * np.std(values, ddof=1) / 60**0.5
    assert (found.mean - found.low, found.high - found.mean) == pytest.approx((margin, margin), rel=0.15)
    assert modules["figures"].figure(values[:1]) == (values[0], None, None)
    assert modules["figures"].figure([MetricError("silent")]).text(2) == "failed"


def test_differences_are_taken_clip_by_clip(modules):
    other = [1.0, 5.0, MetricError("silent"), 9.0]
    own = [1.5, 5.5, 3.0, MetricError("silent")]
    assert modules["figures"].difference(own, other) == pytest.approx((0.5, 0.5, 0.5))
