"""The benchmark of exported models, at a small scale."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "recipes/benchmark/exported.py"


@pytest.fixture(scope="module")
def exported():
    spec = importlib.util.spec_from_file_location("exported", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["exported"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["exported"]


def test_one_run_prints_and_writes_all_figures(exported, placed_tokenizer, six_files, tmp_path, capsys):
    placed_tokenizer("transposed", "vq-plain", "conv").save_pretrained(tmp_path / "model")
    options = ["--seconds=3", "--rounds=2", f"--output={tmp_path / 'figures.json'}"]
    assert exported.main([str(tmp_path / "model"), str(six_files), *options]) == 0
    printed = capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    agreement = figures["agreement"]
    assert agreement["seconds"] >= 3
    assert agreement["frames"] == pytest.approx(agreement["seconds"] * 800, abs=6)
    assert agreement["other_frames"] <= agreement["frames"] / 100
    assert agreement["same_frames_percent"] == 100 * (1 - agreement["other_frames"] / agreement["frames"])
    assert agreement["close_samples_percent"] > 99
    assert all(len(rounds) == 2 for rounds in figures["times"].values())
    for name in ("PyTorch encode", "ONNX encode", "PyTorch decode", "ONNX decode"):
        assert f"| {name} |" in printed


def test_a_folder_without_audio_is_one_clear_line(exported, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(exported.AudioVQError, match="holds no audio files"):
        list(exported.read_speech([tmp_path / "empty"], 16000, 1.0))
    assert exported.main([str(tmp_path / "nothing"), str(tmp_path / "empty")]) == 1
    assert capsys.readouterr().err.startswith("error: ")
