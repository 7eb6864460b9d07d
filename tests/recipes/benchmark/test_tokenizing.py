"""The benchmark of tokenizing, on a few seconds of speech."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from audiovq.audio.files import AudioSource, load_audio
from audiovq.tokenization import worker

BENCHMARK = Path(__file__).parents[3] / "recipes" / "benchmark"


@pytest.fixture
def tokenizing(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARK))
    spec = importlib.util.spec_from_file_location("benchmark_tokenizing", BENCHMARK / "tokenizing.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)
    sys.modules.pop("codec", None)


@pytest.fixture
def speech(speech_folder) -> Path:
    return speech_folder / "june"


def test_the_whole_benchmark_runs(tokenizing, tiny_tokenizer, speech, tmp_path, monkeypatch, capsys):
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(tokenizing, "BATCHES", ((1, 1.0), (2, 0.5)))
    # Processes of their own would load PyTorch again and again.
    monkeypatch.setattr(tokenizing, "peak_memory", lambda *_: 1.0)
    monkeypatch.setattr(tokenizing, "start_up", lambda *_: {"torch": 2.0, "beyond": 0.5})
    arguments = ["--model", tmp_path / "model", "--speech", speech, "--seconds", 6, "--long-seconds", 7, "--rounds", 2]
    given = tokenizing.parse_arguments([*map(str, arguments), "--cores", "1", "--output", str(tmp_path / "out.json")])
    results = tokenizing.benchmark(given)
    assert json.loads((tmp_path / "out.json").read_text()) == results
    speeds = {row["way"]: row for row in results["speeds"]}
    assert len(speeds) == 4 + 2  # With one core there is but one way to tokenize a corpus.
    best = max((row for way, row in speeds.items() if way.startswith("bare")), key=lambda row: row["speed"])
    assert best["ratio"] == 1
    assert all(row["speed"] > 0 for row in speeds.values())
    for row in results["split"]:
        assert sum(row[part] for part in ("reading", "encoding", "writing")) == pytest.approx(1)
        assert min(row[part] for part in ("reading", "encoding", "writing")) > 0
    assert "importing torch 2.00 s, start-up beyond that 0.50 s" in capsys.readouterr().out
    patched = (AudioSource._piece, worker.Item.open, worker._encode, worker.commit_unit)
    assert "timed" not in f"{patched}"  # All is as it was.


def test_ratios_are_to_the_best_batch_of_the_bare_encoder_in_the_same_round(tokenizing):
    measured = {"bare a": [10.0, 40.0, 10.0], "bare b": [20.0, 10.0, 30.0], "tokenize": [10.0, 8.0, 24.0]}
    rows = {row["way"]: row for row in tokenizing.speed_rows(measured)}
    assert [rows[way]["speed"] for way in measured] == [10.0, 20.0, 10.0]
    assert [rows[way]["best"] for way in measured] == [40.0, 30.0, 24.0]
    assert [rows[way]["ratio"] for way in measured] == [0.5, 1.0, 0.8]


def test_the_bare_encoder_is_given_all_the_audio_it_is_timed_for(tokenizing, tiny_tokenizer, monkeypatch):
    tokenizer = tiny_tokenizer()
    encoded = []
    monkeypatch.setattr(tokenizer, "encode", lambda wave, rate: encoded.append(tuple(wave.shape)))
    waves = [torch.randn(1, 16000 * seconds) for seconds in (3, 2, 4)]
    for together in (True, False):
        encoded.clear()
        assert tokenizing.bare(tokenizer, waves, 2, 2.0, together) > 0
        assert encoded == [(2, 1, 32000)] * 2


def test_corpora_hold_the_speech_at_the_rates_in_turn(tokenizing, speech, tmp_path):
    waves = list(tokenizing.utterances(speech, 16000, 8.0))
    assert sum(wave.shape[-1] for wave in waves) >= 8 * 16000
    corpus = tokenizing.write_corpus(tmp_path / "mixed", waves, 16000, (16000, 48000))
    files = sorted(corpus.iterdir())
    assert [AudioSource.open(path).sample_rate for path in files] == [(16000, 48000)[i % 2] for i in range(len(waves))]
    torch.testing.assert_close(load_audio(files[0])[0], waves[0], atol=1e-4, rtol=0)
    many = tokenizing.copies(tmp_path / "many", corpus, 3)
    assert len(list(many.rglob("*.flac"))) == 3 * len(waves)
    long_file = tokenizing.write_long_file(tmp_path / "long.flac", waves, 16000, 30.0)
    assert AudioSource.open(long_file).num_samples == 30 * 16000
