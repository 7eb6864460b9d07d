from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from audiovq.nn.linear import Linear

ROOT = Path(__file__).parents[3]

TINY = """
sample_rate: 1000
latent_dim: 6
encoder: {channels: [2, 4], strides: [5], dilations: [[], [1]], input_kernel_size: 7}
bottleneck: {type: vq, codebook_size: 16, code_dim: 3}
decoder: {type: transposed, channels: [4, 2], dilations: [[], []]}
data: {train: train.jsonl, valid: dev.jsonl}
training: {steps: 1}
"""


@pytest.fixture(scope="module")
def codec():
    spec = importlib.util.spec_from_file_location("benchmark_codec", ROOT / "recipes/benchmark/codec.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Dataclasses look their module up.
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def undecided(tiny_tokenizer, tmp_path):
    """A model all of whose codes are equal."""
    tokenizer = tiny_tokenizer()
    with torch.no_grad():
        tokenizer.model.bottleneck.codebook[:] = tokenizer.model.bottleneck.codebook[0]
    tokenizer.save_pretrained(tmp_path / "undecided")
    return str(tmp_path / "undecided")


@pytest.fixture
def threads():
    """Restores the number of threads, which the benchmark sets for its process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_shipped_configs_exist(codec):
    assert codec.SHIPPED[0] == "speech-16k"
    assert all(path.is_file() for path in codec.SHIPPED[1:])


@torch.inference_mode()
def test_multiply_adds_of_a_model_are_those_counted_by_hand(codec, tiny):
    encode, decode = codec.multiply_adds_a_second(codec.audiovq_codecs(tiny)[0])
    rate, frames = 1000, 200
    unit = frames * (4 * 2 * 3 + 2 * 4)
    encoder = rate * 1 * 2 * 7 + frames * 2 * 4 * 10 + unit + frames * 4 * 6
    quantizer = frames * 6 * 3 + frames * 3 * 16
    assert encode == encoder + quantizer
    # A transposed convolution multiplies each of its inputs, of which one is left context, with its whole kernel.
    # What the codes stand for is looked up.
    pieces = 1 / codec.COUNTED_SECONDS
    assert decode == frames * 6 * 4 * 7 + (frames + pieces) * 4 * 2 * 10 + rate * 2 * 1 * 7


@torch.inference_mode()
@pytest.mark.parametrize("onednn", [True, False])
def test_multiply_adds_of_lstm_layers_are_counted(codec, onednn):
    lstm = nn.LSTM(6, 8, num_layers=2)
    steps = torch.randn(7, 3, 6)
    before = torch._C._get_mkldnn_enabled()
    try:
        torch._C._set_mkldnn_enabled(onednn and before)
        counted = codec.count_multiply_adds(lambda: lstm(steps))
    finally:
        torch._C._set_mkldnn_enabled(before)
    assert counted == 7 * 3 * 4 * (6 * 8 + 8 * 8 + 8 * 8 + 8 * 8)


def test_a_call_is_repeated_until_its_time_can_be_told(codec, monkeypatch):
    clock = iter([10.0, 10.1, 10.2, 10.3])
    monkeypatch.setattr(codec.time, "perf_counter", lambda: next(clock))
    calls = []
    assert codec.seconds_of(lambda: calls.append(1)) == pytest.approx(0.1)
    assert len(calls) == 3


def test_codecs_are_timed_in_turn(codec, monkeypatch):
    monkeypatch.setattr(codec, "seconds_of", lambda call: call())
    order = []

    def stub(name):
        def log(part):
            return lambda _: order.append((name, part)) or 1.0

        parts = {part: log(part) for part in ("encode", "decode", "latents", "quantize", "fast")}
        return codec.Codec(name, 100, 10.0, 10.0, 0, **parts)

    results = codec.time_codecs([stub("a"), stub("b")], batch_sizes=[1, 2], seconds=1, rounds=3)
    one_round = [(name, part) for _ in (1, 2) for name in "ab" for part in ("encode", "fast", "decode", "quantize")]
    assert order[-3 * len(one_round) :] == 3 * one_round
    assert [(result.name, result.batch) for result in results] == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert all(len(part) == 3 for result in results for part in (result.encode, result.fast, result.decode))


def test_ratios_are_taken_within_a_round(codec):
    own = codec.Timings("own", 2, encode=[1.0, 2.0, 4.0], decode=[1.0, 1.0, 1.0], quantize=[0.1, 0.2, 0.0])
    own.fast, own.near_ties = [0.9, 1.9, 3.0], 0.01
    reference = codec.Timings("reference", 2, encode=[5.0, 6.0, 16.0], decode=[2.0, 3.0, 9.0])
    row = codec.speed_row(own, reference, seconds=10)
    assert row["encode_speed"] == 20 / 2
    assert row["encode_best_speed"] == 20 / 1
    assert row["encode_ratio"] == 4.0
    assert row["decode_ratio"] == 3.0
    assert row["quantizer_share"] == pytest.approx(0.1)
    assert (row["near_ties"], row["near_ties_cost"]) == (0.01, pytest.approx(0.1))
    own.near_ties = 0.0
    assert codec.speed_row(own, reference, seconds=10)["near_ties_cost"] == 0


@torch.inference_mode()
def test_near_ties_are_counted_and_left_as_they_are_by_the_fast_way(codec, undecided, monkeypatch):
    one = codec.audiovq_codecs(undecided)[0]
    wave = codec.speech(one, batch=2, seconds=0.5)
    assert one.near_ties(wave) == 1
    settled = []
    monkeypatch.setattr("audiovq.models.exact.ExactCodes.settle", lambda *given: settled.append(given))
    one.fast(wave)
    assert settled == []
    one.encode(wave)
    assert len(settled) == 1


def test_table_is_markdown(codec):
    rows = [{"name": "mini", "speed": 12.34}, {"name": "base", "speed": 5}]
    assert codec.table({"model": "{name}", "s/s": "{speed:.1f}"}, rows) == (
        "| model | s/s |\n| --- | ---: |\n| mini | 12.3 |\n| base | 5.0 |"
    )


def test_one_run_prints_and_writes_all_figures(codec, tiny, tmp_path, monkeypatch, capsys, threads):
    pytest.importorskip("encodec")
    monkeypatch.setattr(codec, "SHORTEST_TIMING", 0.0)
    output = tmp_path / "figures.json"
    assert (
        codec.main([str(tiny), "--threads=1", "--rounds=2", "--seconds=0.1", "--batch", "1", "2", f"--output={output}"])
        == 0
    )
    printed = capsys.readouterr().out
    assert printed.count("| tiny |") == printed.count("| EnCodec 24 kHz |") == 3
    figures = json.loads(output.read_text())
    assert figures["threads"] == 1
    assert {"cpu", "torch", "commit", "seed"} <= set(figures)
    assert [(row["name"], row["batch"]) for row in figures["speeds"]] == [
        (name, batch) for batch in (1, 2) for name in ("EnCodec 24 kHz", "tiny")
    ]
    assert all(row["encode_ratio"] == row["decode_ratio"] == 1 for row in figures["speeds"][::2])
    # 75 frames a second through two LSTM layers of 512, and convolutions, each way.
    encodec = figures["sizes"][0]
    assert encodec["decode_multiply_adds"] > 75 * 2 * 2 * 4 * 512 * 512


def test_missing_encodec_is_one_clear_line(codec, tiny, monkeypatch, capsys, threads):
    monkeypatch.setitem(sys.modules, "encodec.model", None)
    assert codec.main([str(tiny), "--threads=1"]) == 1
    assert capsys.readouterr().err == "error: EnCodec is not installed; pip install 'audiovq[bench]'\n"


@torch.inference_mode()
def test_products_of_weights_that_onednn_lays_out_are_counted(codec):
    layer, x = Linear(8, 12), torch.randn(2, 5, 8)
    assert codec.count_multiply_adds(lambda: layer(x, gelu=True)) == 2 * 5 * 8 * 12


def test_the_shipped_model_is_also_timed_at_the_bitrate_of_encodec(codec):
    whole, part = codec.audiovq_codecs("speech-16k")
    assert (whole.name, whole.bitrate) == ("speech-16k", 3000)
    assert (part.name, part.bitrate) == ("speech-16k, 3 of 6 codebooks", 1000 * codec.ENCODEC_KBPS)
    wave = codec.speech(part, batch=2, seconds=0.5)
    assert wave.shape == (2, 1, 8000)
    assert wave[0].abs().max() > 0.01
    codes = whole.encode(wave)
    assert torch.equal(part.encode(wave), codes[:, :3])
    assert part.decode(codes[:, :3]).shape == wave.shape


@pytest.mark.parametrize("option", ["--rounds=0", "--batch=0", "--threads=-1", "--seconds=nan", "--seconds=x"])
def test_impossible_options_are_refused(codec, option, capsys):
    with pytest.raises(SystemExit, match="2"):
        codec.main([option])
    assert option.partition("=")[0] in capsys.readouterr().err
