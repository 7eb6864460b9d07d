from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from audiovq.config import WaveNetConfig
from audiovq.nn.wavenet import WaveNet
from audiovq.sampling.cached import CachedWaveNet
from audiovq.sampling.compiled import CompiledWaveNet

FOLDER = Path(__file__).parents[3] / "recipes/benchmark"
TINY = WaveNetConfig(layers=4, cycle=2, residual_channels=6, skip_channels=10)


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        import wavenet

        yield wavenet
    del sys.modules["wavenet"], sys.modules["codec"]


@pytest.fixture
def tiny(benchmark, monkeypatch):
    """Two networks of a few hundred weights, with and without a local condition, and short calls."""
    networks = {"a": benchmark.Network(TINY, 12, local_dim=0), "b": benchmark.Network(TINY, 8, local_dim=3)}
    monkeypatch.setattr(benchmark, "NETWORKS", networks)
    monkeypatch.setattr(benchmark, "BATCH_SIZES", (1, 2))
    monkeypatch.setattr(benchmark, "HOP", 4)
    monkeypatch.setattr(sys.modules["codec"], "SHORTEST_TIMING", 0.0)


@pytest.fixture
def threads():
    """Restores the number of threads, which the benchmark sets for its process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@torch.inference_mode()
def test_all_ways_draw_the_same(benchmark, tiny):
    network = WaveNet(TINY, 1, 12, 3, 2).eval()
    length = benchmark.window(network)
    assert length == 8  # Two frames: a receptive field of 7 steps, and the next step.
    past, speaker, uniforms = torch.randint(12, (2, 1, length - 1)), torch.randn(2, 2), torch.rand(2, 1, 30)
    local = torch.randn(2, 3, 1).expand(-1, -1, length // benchmark.HOP)
    drawn = benchmark.draw_naively(network, past, local, speaker, uniforms)
    condition = network.conditions(local, speaker)[..., 0].contiguous()
    for stepper in (CachedWaveNet(network, 2), CompiledWaveNet(network, 2)):
        for classes in past[..., :-1].unbind(-1):
            stepper.step(classes, condition)
        assert torch.equal(stepper.generate(past[..., -1], uniforms, condition), drawn)


def test_multiply_adds_and_bytes_are_those_counted_by_hand(benchmark):
    decoder = benchmark.NETWORKS["decoder"]
    network = WaveNet(decoder.config, 1, decoder.classes, decoder.local_dim, decoder.speaker_dim)
    by_hand = 30 * (2 * 64 * 128 + 64 * (64 + 128)) + 128 * 128 + 128 * 256
    assert sum(weight.numel() for weight in benchmark.matrices(network)) == by_hand == 909312
    for batch in (1, 16):
        (_, blas), (_, kernel) = benchmark.products(network, batch, threads=2)
        assert blas == batch * by_hand
        assert kernel == batch * benchmark.PASSES * (by_hand - 128 * 128 - 128 * 256)


def test_the_floor_is_the_larger_of_multiplying_and_reading(benchmark):
    case = benchmark.Case("a", 1, 9, multiply_adds=100, weight_bytes=400)
    case.product, case.reading = [1.0, 1.0], [0.2, 0.3]
    assert case.floor == [100.0, pytest.approx(120.0)]


def test_ratios_are_taken_within_a_round(benchmark):
    case = benchmark.Case("a", 1, 9, multiply_adds=1, weight_bytes=4, naive=[9.0, 80.0, 9.0], cached=[3.0, 4.0, 9.0])
    case.compiled, case.product, case.reading = [1.0, 2.0, 1.0], [0.5, 1.0, 0.1], [0.0, 0.0, 0.0]
    rows = {row["way"]: row for row in benchmark.speed_rows(case)}
    assert rows["cached"]["naive_ratio"] == 3.0
    assert rows["compiled"]["cached_ratio"] == 3.0
    assert rows["compiled"]["floor_ratio"] == 0.5
    assert rows["compiled"]["speed"] == rows["compiled"]["best_speed"] == 1.0


@pytest.mark.parametrize("number", ["1", "2"])
def test_one_run_prints_and_writes_all_figures(benchmark, tiny, tmp_path, capsys, threads, number):
    output = tmp_path / "figures.json"
    assert benchmark.main([f"--threads={number}", "--rounds=2", f"--output={output}"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("| naive |") == printed.count("| cached |") == printed.count("| compiled |") == 4
    figures = json.loads(output.read_text())
    assert {"cpu", "torch", "commit", "seed", "compile_seconds"} <= set(figures)
    assert figures["threads"] == int(number)
    assert [(row["name"], row["batch"]) for row in figures["floors"]] == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    assert all(row["floor"] > 0 for row in figures["floors"])
    assert all(row["naive_ratio"] == 1 for row in figures["speeds"][::3])


@pytest.mark.parametrize("option", ["--rounds=0", "--threads=-1", "--threads=x"])
def test_impossible_options_are_refused(benchmark, option, capsys):
    with pytest.raises(SystemExit, match="2"):
        benchmark.main([option])
    assert option.partition("=")[0] in capsys.readouterr().err
