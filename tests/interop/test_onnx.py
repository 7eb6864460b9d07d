"""Models as ONNX graphs: the codes and the sound of PyTorch, from a folder that needs none."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
import torch

import audiovq.interop.onnx
from audiovq.audio import load_audio
from audiovq.config import SourceDecoderConfig
from audiovq.errors import ExportError
from audiovq.files import read_json
from audiovq.interop.onnx import export_onnx
from audiovq.interop.onnx_graphs import DecoderGraph, EncoderGraph, SourceGraph
from audiovq.interop.onnx_runtime import Noise, OnnxTokenizer, OnnxTokenizerError
from audiovq.nn.source import NoiseMaker, SourceDecoder

PARTS = [
    ("istft", "vq", "conv"),
    ("transposed", "vq-plain", "conv"),
    ("source", "residual", "spectral"),
    ("source", "fsq-groups", "conv"),
    ("source-free", "residual", "spectral"),
    ("istft", "fsq-residual", "spectral"),
]
"""Every encoder, bottleneck and decoder that ONNX can hold."""


@pytest.fixture(scope="module")
def speech(speech_folder) -> list[torch.Tensor]:
    """About half a minute of two voices that the model never heard."""
    paths = [path for name in ("june", "carlo") for path in sorted((speech_folder / name).glob("*.ogg"))[:4]]
    return [load_audio(path, 16000)[0] for path in paths]


def test_codes_of_speech_are_those_of_pytorch_but_for_near_ties(shipped, onnx_folder, speech):
    exported, frames, others = OnnxTokenizer(onnx_folder, threads=1), 0, 0
    for wave in speech:
        codes = exported.encode(wave.numpy(), 16000)
        assert codes.dtype == np.int64
        differ = torch.from_numpy(codes != shipped.encode(wave, 16000).numpy()).any(1)
        with torch.inference_mode():
            latents = shipped.model.encode(wave[None])
            margin = shipped.model.bottleneck.encode(latents)[1]
        assert (margin / latents.norm(dim=1))[differ].lt(1e-4).all()
        frames, others = frames + codes.shape[-1], others + int(differ.sum())
    assert frames > 1000
    assert others <= frames / 1000 + 1


def test_decoded_speech_is_that_of_pytorch_with_the_same_seed(shipped, onnx_folder, speech):
    exported = OnnxTokenizer(onnx_folder, threads=1)
    codes = shipped.encode(torch.cat(speech[:2], -1), 16000)
    for books in (1, 6):
        expected = shipped.decode(codes[:, :books], seed=3).numpy()
        found = exported.decode(codes[:, :books].numpy(), seed=3)
        assert found.dtype == np.float32
        # One sample of a source may have a harmonic more, where rounding decides; it is heard by a window of others.
        assert np.mean(np.abs(found - expected) > 1e-3) < 1e-3
        assert np.abs(found - expected).max() < 0.05
    assert np.abs(exported.decode(codes.numpy(), seed=4) - found).max() > 1e-3
    np.testing.assert_array_equal(exported.decode(codes.numpy(), seed=np.int64(3)), found)


def test_signals_of_a_batch_and_in_pieces_have_the_same_codes(onnx_folder, speech, monkeypatch):
    exported = OnnxTokenizer(onnx_folder, threads=1)
    first, second = speech[0][:, :40000].numpy(), speech[4][:, :40000].numpy()
    whole = exported.encode(first, 16000)
    both = exported.encode(np.stack([first, second]), 16000)
    assert both.shape == (2, 6, 125)
    for one, alone in zip(both, (whole, exported.encode(second, 16000)), strict=True):
        assert np.mean((one != alone[0]).any(0)) < 0.01
    assert np.mean(both[0] != both[1]) > 0.5
    monkeypatch.setattr("audiovq.interop.onnx_runtime.PIECE_SECONDS", 0.5)
    assert np.mean((exported.encode(first, 16000) != whole).any(1)) < 0.01
    np.testing.assert_array_equal(exported.encode(first, 16000, 2), exported.encode(first, 16000)[:, :2])


def test_pulses_of_any_pitch_are_those_of_the_model():
    decoder = SourceDecoder(SourceDecoderConfig(dim=16, layers=1), 8, 40, 1500)
    f0 = torch.tensor([[100.0, 110.0, 700.0, 760.0, 900.0, 900.0]])
    voiced = torch.tensor([[True, True, False, True, True, True]])
    expected = decoder.pulses(f0, voiced)
    assert expected.isfinite().all()
    torch.testing.assert_close(SourceGraph(decoder).pulses(f0, voiced), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("parts", PARTS, ids="-".join)
def test_graphs_of_every_kind_compute_what_the_model_does(placed_tokenizer, mini_speech, parts):
    tokenizer = placed_tokenizer(*parts, look_ahead=(15, 1))
    if parts[0] == "source-free":  # It starts at nothing.
        torch.nn.init.normal_(tokenizer.model.decoder.free.weight)
    wave = torch.stack([mini_speech, mini_speech.flip(-1)])[..., :8005]
    model, codes = tokenizer.model, tokenizer.encode(wave, 16000)
    decoder = DecoderGraph(model)
    noise = NoiseMaker([1, 2])(codes.shape[-1] + 1, tokenizer.hop_length) if decoder.draws else None
    with torch.inference_mode():
        found = EncoderGraph(model)(wave)
        assert found.shape == codes.shape
        assert (found != codes).float().mean() < 0.002
        for books in range(1, tokenizer.num_codebooks + 1):
            expected = tokenizer.decode(codes[:, :books], seed=[1, 2])
            error = (decoder(codes[:, :books], noise) - expected).abs()
            assert error.gt(1e-4 * expected.abs().max()).float().mean() < 1e-3


def test_an_export_runs_with_any_length_and_batch(placed_tokenizer, mini_speech, tmp_path):
    tokenizer = placed_tokenizer("istft", "fsq-groups", "conv")
    export_onnx(tokenizer, tmp_path / "out")
    exported = OnnxTokenizer(tmp_path / "out", threads=1)
    for length, batch in ((1, 1), (20, 3), (7777, 2)):
        wave = mini_speech[None, :, :length].repeat(batch, 1, 1).numpy()
        expected = tokenizer.encode(wave, 16000)
        codes = exported.encode(wave, 16000)
        assert codes.shape == expected.shape
        assert np.mean(codes != expected.numpy()) < 0.01
        decoded = exported.decode(codes, length)
        assert decoded.shape == (batch, 1, length)
        np.testing.assert_allclose(decoded, tokenizer.decode(codes, length).numpy(), atol=1e-3)


@pytest.mark.parametrize("parts", PARTS, ids="-".join)
def test_graphs_with_a_state_compute_a_signal_piece_by_piece(placed_tokenizer, mini_speech, parts):
    tokenizer = placed_tokenizer(*parts, look_ahead=(0, 0))
    if parts[0] == "source-free":
        torch.nn.init.normal_(tokenizer.model.decoder.free.weight)
    hop = tokenizer.hop_length
    wave = torch.stack([mini_speech, mini_speech.flip(-1)])[..., : 300 * hop]
    encoder, decoder = EncoderGraph(tokenizer.model), DecoderGraph(tokenizer.model)
    frames = [1, 7, 100, 2, 190]
    noise = torch.randn(2, 300 * hop)
    with torch.inference_mode():
        codes = encoder(wave)
        states = torch.zeros(2, encoder.state_size), torch.zeros(2, decoder.state_size)
        found, decoded = [], []
        pieces = ([*signal.split([count * hop for count in frames], -1)] for signal in (wave, noise))
        for piece, drawn in zip(*pieces, strict=True):
            part, first = encoder(piece, states[0])
            sound, second = decoder(part, drawn if decoder.draws else None, states[1])
            states = first, second
            found.append(part)
            decoded.append(sound)
        expected = decoder(torch.cat(found, -1), noise if decoder.draws else None)
    assert (torch.cat(found, -1) != codes).float().mean() < 0.002
    error = (torch.cat(decoded, -1) - expected).abs()
    assert error.gt(1e-4 * expected.abs().max()).float().mean() < 1e-3


def test_an_exported_stream_is_the_whole_signal(run, placed_tokenizer, mini_speech, onnx_folder, tmp_path, monkeypatch):
    """Of a model that looks ahead, in pieces of several lengths; graphs of whole signals are not traced once more."""

    def write_graph(path, *rest) -> None:
        shutil.copyfile(onnx_folder / path.name, path) if "stream" not in path.name else trace(path, *rest)

    trace = audiovq.interop.onnx.write_graph
    monkeypatch.setattr(audiovq.interop.onnx, "write_graph", write_graph)
    tokenizer = placed_tokenizer("source", "residual", "spectral", look_ahead=(15, 1))
    tokenizer.save_pretrained(tmp_path / "model")
    command = ("export", tmp_path / "model", "--format", "onnx", "-o", tmp_path / "out")
    assert run(*command, "--streaming")[0] == 0
    exported, hop = OnnxTokenizer(tmp_path / "out", threads=1), tokenizer.hop_length
    wave = mini_speech[None, :, : 400 * hop - 7].repeat(2, 1, 1)
    ends = [hop, 30 * hop, 31 * hop, 200 * hop, wave.shape[-1]]
    pieces = [*zip([0, *ends[:-1]], ends, [False] * 4 + [True], strict=True)]
    codes = tokenizer.encode(wave, 16000, 3)
    expected = tokenizer.decode(codes, seed=5).numpy()
    encode, decode = exported.stream_encoder(3), exported.stream_decoder(seed=5)
    found = [encode(wave[..., start:end].numpy(), last) for start, end, last in pieces]
    assert found[0].shape == (2, 3, 0)  # It has not seen enough.
    assert np.mean(np.concatenate(found, -1) != codes.numpy()) < 0.002
    parts = codes.numpy()[..., :0], *np.split(codes.numpy(), [1, 50, 51], -1)
    decoded = [decode(part, last) for part, last in zip(parts, [False] * 4 + [True], strict=True)]
    assert [part.shape[-1] for part in decoded] == [0, 0, 49 * hop, hop, 350 * hop]
    assert np.mean(np.abs(np.concatenate(decoded, -1) - expected) > 1e-4 * np.abs(expected).max()) < 1e-3
    with pytest.raises(OnnxTokenizerError, match="the signal ended with a piece that was the last"):
        encode(wave.numpy())
    with pytest.raises(OnnxTokenizerError, match="the signal ended with a piece that was the last"):
        decode(codes.numpy())
    decode = exported.stream_decoder()
    decode(codes.numpy()[..., :3])
    with pytest.raises(OnnxTokenizerError, match="expected 2 items, as in the first piece, found 1"):
        decode(codes.numpy()[:1])
    for option in ("transformers", "web"):
        code, _, err = run(*command[:3], option, "-o", tmp_path / "other", "--streaming")
        assert (code, err) == (2, f"audiovq: --streaming belongs to --format onnx, found --format {option}\n")


@pytest.mark.parametrize("length", [16, 20, 37, 320])
def test_noise_is_what_pytorch_draws(length):
    for seed in (0, 2**62 + 12345):
        expected = NoiseMaker([seed])(5, length)[0].numpy()
        np.testing.assert_allclose(Noise([seed], 1, length)(5)[0], expected, atol=2e-6)


def test_the_exported_file_runs_where_there_is_no_torch(onnx_folder, speech, shipped, tmp_path):
    """In a process of its own, in which neither audiovq nor torch can be imported."""
    soundfile.write(tmp_path / "speech.wav", speech[0][0, :16000].numpy(), 16000)
    (tmp_path / "run.py").write_text(f"""
import sys
sys.modules |= {{"torch": None, "audiovq": None}}
sys.path.insert(0, {str(onnx_folder)!r})
import json, soundfile
from onnx_tokenizer import OnnxTokenizer
tokenizer = OnnxTokenizer({str(onnx_folder)!r}, threads=1)
wave, rate = soundfile.read("speech.wav")
codes = tokenizer.encode(wave, rate, num_codebooks=3)
print(json.dumps([codes.tolist(), tokenizer.decode(codes).shape]))
""")
    command = [sys.executable, "run.py"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    codes, shape = json.loads(result.stdout)
    wave, _ = load_audio(tmp_path / "speech.wav", 16000)
    assert np.mean(np.array(codes) != shipped.encode(wave, 16000, 3).numpy()) < 0.01
    assert shape == [1, 1, 16000]


def test_a_folder_says_what_it_is_and_nothing_of_where_it_was_made(shipped, onnx_folder):
    config = read_json(onnx_folder / "config.json")
    assert config["weights_sha256"] == shipped.weights_sha256
    assert (config["sample_rate"], config["hop_length"], config["codebook_sizes"]) == (16000, 320, 6 * [1024])
    encoder = onnx.load(onnx_folder / "encoder.onnx")
    assert [d.dim_param or d.dim_value for d in encoder.graph.input[0].type.tensor_type.shape.dim] == [
        *("batch", 1, "samples")
    ]
    assert [d.dim_param or d.dim_value for d in encoder.graph.output[0].type.tensor_type.shape.dim] == [
        *("batch", 6, "frames")
    ]
    for name in ("encoder.onnx", "decoder.onnx"):
        assert str(Path(torch.__file__).parent).encode() not in (onnx_folder / name).read_bytes()
    # The shipped weights are in half precision, and take no more here; codebooks are in double precision.
    assert sum((onnx_folder / name).stat().st_size for name in ("encoder.onnx", "decoder.onnx")) < 36e6


def test_what_cannot_be_a_graph_is_refused(tiny_tokenizer, tmp_path):
    with pytest.raises(ExportError, match="decoder 'wavenet' draws one sample after the other"):
        export_onnx(tiny_tokenizer("wavenet"), tmp_path / "out")
    with pytest.raises(ExportError, match="bottleneck 'none' has no codes"):
        export_onnx(tiny_tokenizer("istft", "none"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_it_refuses(run, tiny_tokenizer, tmp_path):
    tiny_tokenizer("wavenet").save_pretrained(tmp_path / "model")
    export = ("export", tmp_path / "model", "--format", "onnx")
    code, out, err = run(*export, "-o", tmp_path / "out")
    assert (code, out) == (2, "")
    assert err.startswith("audiovq: a model with decoder 'wavenet'")
    code, _, err = run(*export, "-o", tmp_path / "model")
    assert code == 2
    assert "add --force" in err
    code, _, err = run(*export, "-o", tmp_path / "model", "--force")
    assert (code, err.count("\n")) == (2, 1)
    assert "holds something else than an export" in err
    code, _, err = run(*export, "-o", tmp_path / "out", "--onnxruntime-web", tmp_path)
    assert (code, err) == (2, "audiovq: --onnxruntime-web belongs to --format web, found --format onnx\n")


def test_a_missing_package_is_named_with_the_extra_that_has_it(run, tiny_tokenizer, tmp_path, monkeypatch):
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    for module in ("audiovq.interop.onnx", "audiovq.interop.web"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    for format in ("onnx", "web"):
        code, out, err = run("export", tmp_path / "model", "--format", format, "-o", tmp_path / "out")
        assert (code, out) == (2, "")
        assert err == f"audiovq: --format {format} needs onnxscript: pip install 'audiovq[onnx]'\n"


def test_folders_that_are_no_export_are_named(onnx_folder, tmp_path, tiny_tokenizer):
    tiny_tokenizer().save_pretrained(tmp_path / "release")
    cases = {
        tmp_path / "nothing": "its config.json cannot be read",
        tmp_path / "release": "is no ONNX tokenizer; write one with: audiovq export",
    }
    for name, change in {
        "without": lambda path: (path / "decoder.onnx").unlink(),
        "damaged": lambda path: (path / "encoder.onnx").write_bytes(b"x" + (path / "encoder.onnx").read_bytes()[1:]),
        "newer": lambda path: (path / "config.json").write_text('{"format": "onnx", "format_version": 9}'),
    }.items():
        shutil.copytree(onnx_folder, tmp_path / name)
        change(tmp_path / name)
    cases |= {
        tmp_path / "without": "decoder.onnx is missing",
        tmp_path / "damaged": "encoder.onnx: is damaged",
        tmp_path / "newer": "expected format_version 1, found 9",
    }
    for path, message in cases.items():
        with pytest.raises(OnnxTokenizerError, match=message) as error:
            OnnxTokenizer(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_wrong_input_is_named(onnx_folder):
    exported = OnnxTokenizer(onnx_folder, threads=1)
    good = np.zeros((6, 3), np.int64)
    for call, message in (
        (lambda: exported.encode(np.zeros(100), 44100), "expected audio at 16000 Hz, found 44100 Hz"),
        (lambda: exported.encode(np.zeros((2, 100)), 16000), r"found \[2, 100\]"),
        (lambda: exported.encode(np.zeros(100, np.int16), 16000), "found int16"),
        (lambda: exported.encode(np.zeros(0), 16000), "is empty"),
        (lambda: exported.encode(np.full(9, np.nan), 16000), "NaN"),
        (lambda: exported.encode(np.zeros(100), 16000, 7), "expected 1 to 6 codebooks, found 7"),
        (lambda: exported.decode(good + 1024), "codebook 0: expected codes 0 to 1023, found 1024 to 1024"),
        (lambda: exported.decode(good.astype(float)), "codes are integers"),
        (lambda: exported.decode(np.zeros((7, 3), int)), r"found \[7, 3\]"),
        (lambda: exported.decode(good, 1), "1 samples are 1 frames, found 3"),
        (lambda: exported.decode(good, seed=[1, 2]), "expected 1 seeds"),
        (lambda: exported.stream_encoder(), "has no encoder_stream.onnx; export the model with --streaming"),
    ):
        with pytest.raises(OnnxTokenizerError, match=message):
            call()
