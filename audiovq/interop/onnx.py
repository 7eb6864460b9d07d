"""`audiovq export --format onnx`: encoder and decoder as ONNX graphs, and a file that runs them without PyTorch."""

from __future__ import annotations

import copy
import logging
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxscript  # noqa: F401 (torch.onnx needs it, and says so late)
import torch
from torch import nn

import audiovq
from audiovq.errors import ExportError
from audiovq.files import sha256_of, write_json
from audiovq.interop import onnx_runtime
from audiovq.interop.folder import exported_model
from audiovq.interop.onnx_graphs import LARGEST_TABLES, DecoderGraph, EncoderGraph
from audiovq.interop.onnx_runtime import CONFIG, DECODER, ENCODER, STREAM_DECODER, STREAM_ENCODER
from audiovq.models.tokenizer import AudioTokenizer
from audiovq.models.wavenet_decoder import WaveNetDecoder
from audiovq.nn.source import SourceDecoder

OPSET = 20
"""Version of ONNX's operators: the first that has GELU."""
RUNTIME = "onnx_tokenizer.py"
"""What `onnx_runtime.py` is called beside the graphs."""
EXAMPLE_BATCH, EXAMPLE_FRAMES = 2, 7
"""Size of the input that the graphs are traced with. They take any; these are not 1, which is told apart."""
SMALLEST = 1024
"""Numbers in a tensor that is worth storing in half precision."""

Axes = tuple[int | str, ...]
"""Names of a tensor's dimensions, or their sizes where these are fixed."""


def export_onnx(tokenizer: AudioTokenizer, output: str | Path, force: bool = False, streaming: bool = False) -> None:
    """Write `encoder.onnx`, `decoder.onnx`, `config.json` and `onnx_tokenizer.py` to the folder `output`.

    - `encoder.onnx`: `wave` float32 [batch, 1, samples] to `codes` int64 [batch, codebooks, frames];
    - `decoder.onnx`: `codes` int64 [batch, books, frames] of the first `books` codebooks to `wave` float32
      [batch, 1, frames * hop_length]; where the decoder draws, `noise` float32
      [batch, (frames + look_ahead_frames) * hop_length], white, of variance 1, is an input, too;
    - if `streaming`: `encoder_stream.onnx` and `decoder_stream.onnx`, which take whole frames of a signal that arrives
      in pieces, and `state` float32 [batch, size], 0 at the start; `next_state` is that of the next piece. Codes are
      late by the frames that the encoder looks ahead, and the waveform by those of the decoder; `noise` is
      [batch, frames * hop_length], and codes -1 are a frame behind the signal's end.

    Args:
        force: replace an earlier export.

    Raises:
        ExportError: the model has no codes, or draws its waveform sample by sample.
        OutputExistsError: `output` is not empty and `force` is not given, or it holds something else than an export.
    """
    with exported_model(tokenizer, onnx_runtime.FORMAT, output, force) as folder:
        write_graphs(tokenizer, folder, streaming)
        shutil.copyfile(onnx_runtime.__file__, folder / RUNTIME)


def write_graphs(tokenizer: AudioTokenizer, folder: Path, streaming: bool = False) -> dict[str, Any]:
    """Write the graphs and their `config.json`; returns what that holds."""
    require_graph(tokenizer)
    model = copy.deepcopy(tokenizer.model).cpu()
    encoder, decoder = EncoderGraph(model), DecoderGraph(model)
    hop, books = model.hop_length, tokenizer.num_codebooks
    wave: Axes = ("batch", 1, "samples")
    codes: Axes = ("batch", "books" if books > 1 else 1, "frames")
    noise: dict[str, Axes] = {"noise": ("batch", "noise_samples")} if decoder.draws else {}
    size = {"batch": EXAMPLE_BATCH, "books": 2, "frames": EXAMPLE_FRAMES, "samples": EXAMPLE_FRAMES * hop - 1}
    size["noise_samples"] = (EXAMPLE_FRAMES + model.look_ahead) * hop
    found: dict[str, Axes] = {"codes": ("batch", books, "frames")}
    write_graph(folder / ENCODER, encoder, {"wave": wave}, found, size)
    write_graph(folder / DECODER, decoder, {"codes": codes, **noise}, {"wave": wave}, size)
    if streaming:
        size["samples"] = size["noise_samples"] = EXAMPLE_FRAMES * hop
        for name, graph, inputs, outputs in (
            (STREAM_ENCODER, encoder, {"wave": wave}, found),
            (STREAM_DECODER, decoder, {"codes": codes, **noise}, {"wave": wave}),
        ):
            state: Axes = ("batch", graph.state_size)
            write_graph(folder / name, graph, {**inputs, "state": state}, {**outputs, "next_state": state}, size)
    names = (ENCODER, DECODER, STREAM_ENCODER, STREAM_DECODER)
    config = {
        "format": onnx_runtime.FORMAT,
        "format_version": onnx_runtime.FORMAT_VERSION,
        "sample_rate": tokenizer.sample_rate,
        "hop_length": hop,
        "codebook_sizes": list(tokenizer.codebook_sizes),
        "look_ahead_samples": model.delay.look_ahead,
        "look_ahead_frames": model.look_ahead,
        "context_frames": -(-model.encoder.receptive_field // hop),
        "noise": decoder.draws,
        "state_sizes": {STREAM_ENCODER: encoder.state_size, STREAM_DECODER: decoder.state_size} if streaming else {},
        "versions": {"audiovq": audiovq.__version__, "torch": torch.__version__, "onnx": onnx.__version__},
        "weights_sha256": tokenizer.weights_sha256,
        "sha256": {name: sha256_of(folder / name) for name in names if (folder / name).exists()},
    }
    write_json(folder / CONFIG, config)
    return config


def require_graph(tokenizer: AudioTokenizer) -> None:
    """Raise `ExportError` if ONNX cannot hold the model."""
    model, sizes = tokenizer.model, tokenizer.codebook_sizes
    if isinstance(model.decoder, WaveNetDecoder):
        raise ExportError(
            "a model with decoder 'wavenet' draws one sample after the other, which an ONNX graph cannot; "
            "export one with another decoder"
        )
    dim = tokenizer.config.latent_dim
    if sum(sizes) * dim > LARGEST_TABLES:
        raise ExportError(
            f"expected codebooks of at most {LARGEST_TABLES} numbers, which an ONNX file holds, found {sum(sizes)} "
            f"codes of {dim}; export a model with fewer or smaller ones"
        )
    if isinstance(model.decoder, SourceDecoder) and model.hop_length < onnx_runtime.BLOCK:
        raise ExportError(
            f"a source decoder in an ONNX graph needs a hop length of at least {onnx_runtime.BLOCK} samples, found "
            f"{model.hop_length}; export a model with another decoder"
        )


def write_graph(
    path: Path, graph: nn.Module, inputs: Mapping[str, Axes], outputs: Mapping[str, Axes], size: Mapping[str, int]
) -> None:
    """Trace a graph with examples of its inputs, by their names, and write it.

    Args:
        size: how large dimensions that have a name are in the examples.
    """
    examples, dynamic = {}, {}
    for name, axes in inputs.items():
        shape = [axis if isinstance(axis, int) else size[axis] for axis in axes]
        examples[name] = torch.zeros(shape, dtype=torch.long if name == "codes" else torch.float32)
        dynamic[name] = {number: torch.export.Dim.DYNAMIC for number, axis in enumerate(axes) if isinstance(axis, str)}
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)  # It warns of packages that nothing here needs.
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph.eval(),
                kwargs=examples,
                dynamo=True,
                dynamic_shapes=dynamic,
                input_names=list(inputs),
                output_names=list(outputs),
                opset_version=OPSET,
                verbose=False,
            )
    finally:
        quiet.setLevel(level)
    assert program is not None
    proto = program.model_proto
    name_axes(proto.graph.input, inputs)
    name_axes(proto.graph.output, outputs)
    forget_traces(proto)
    store_halves(proto)
    onnx.checker.check_model(proto)
    onnx.save_model(proto, path)


def name_axes(values: Sequence[onnx.ValueInfoProto], axes: Mapping[str, Axes]) -> None:
    """Give the dimensions of inputs or outputs the names that people read."""
    for value in values:
        for dim, axis in zip(value.type.tensor_type.shape.dim, axes[value.name], strict=True):
            if isinstance(axis, str):
                dim.dim_param = axis


def forget_traces(proto: onnx.ModelProto) -> None:
    """Remove what the exporter notes about every step: lines of code, and the paths of files on this machine."""
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
    del graph.value_info[:]


def store_halves(proto: onnx.ModelProto) -> None:
    """Store tensors in half precision where that holds every one of their numbers; they are used as they were."""
    casts = []
    for tensor in proto.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        half = values.astype("float16") if abs(values).max(initial=0) < 65504 else values
        if values.size >= SMALLEST and (half == values).all() and half is not values:
            name = tensor.name
            tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}_half"))
            casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
