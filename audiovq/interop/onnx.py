"""`audiovq export --format onnx`: encoder and decoder as ONNX graphs, and a file that runs them without PyTorch."""

from __future__ import annotations

import copy
import logging
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxscript  # noqa: F401 (torch.onnx needs it, and says so late)
import torch
from torch import Tensor, nn

import audiovq
from audiovq.errors import ExportError
from audiovq.files import sha256_of, write_json
from audiovq.interop import onnx_runtime
from audiovq.interop.folder import export_folder
from audiovq.interop.onnx_graphs import LARGEST_TABLES, DecoderGraph, EncoderGraph
from audiovq.interop.onnx_runtime import CONFIG, DECODER, ENCODER
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

Input = tuple[Tensor, tuple[str | None, ...]]
"""An example of an input, and the names of its dimensions; None: of a fixed size."""


def export_onnx(tokenizer: AudioTokenizer, output: str | Path, force: bool = False) -> None:
    """Write `encoder.onnx`, `decoder.onnx`, `config.json` and `onnx_tokenizer.py` to the folder `output`.

    - `encoder.onnx`: `wave` float32 [batch, 1, samples] to `codes` int64 [batch, codebooks, frames];
    - `decoder.onnx`: `codes` int64 [batch, books, frames] of the first `books` codebooks to `wave` float32
      [batch, 1, frames * hop_length]; where the decoder draws, `noise` float32
      [batch, (frames + look_ahead_frames) * hop_length], white, of variance 1, is an input, too.

    Args:
        force: replace an earlier export.

    Raises:
        ExportError: the model has no codes, or draws its waveform sample by sample.
        OutputExistsError: `output` is not empty and `force` is not given, or it holds something else than an export.
    """
    with export_folder(tokenizer, onnx_runtime.FORMAT, output, force) as folder:
        write_graphs(tokenizer, folder)
        shutil.copyfile(onnx_runtime.__file__, folder / RUNTIME)


def write_graphs(tokenizer: AudioTokenizer, folder: Path) -> dict[str, Any]:
    """Write both graphs and their `config.json`; returns what that holds."""
    require_graph(tokenizer)
    model = copy.deepcopy(tokenizer.model).cpu()
    hop, frames = model.hop_length, EXAMPLE_FRAMES
    decoder = DecoderGraph(model)
    wave = torch.zeros(EXAMPLE_BATCH, 1, frames * hop - 1)
    codes = torch.zeros(EXAMPLE_BATCH, min(2, tokenizer.num_codebooks), frames, dtype=torch.long)
    inputs: dict[str, Input] = {"codes": (codes, ("batch", "books" if tokenizer.num_codebooks > 1 else None, "frames"))}
    if decoder.draws:
        inputs["noise"] = (torch.zeros(EXAMPLE_BATCH, (frames + model.look_ahead) * hop), ("batch", "noise_samples"))
    write_graph(folder / ENCODER, EncoderGraph(model), {"wave": (wave, ("batch", None, "samples"))}, "codes")
    write_graph(folder / DECODER, decoder, inputs, "wave")
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
        "versions": {"audiovq": audiovq.__version__, "torch": torch.__version__, "onnx": onnx.__version__},
        "weights_sha256": tokenizer.weights_sha256,
        "sha256": {name: sha256_of(folder / name) for name in (ENCODER, DECODER)},
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
    if sum(sizes) * tokenizer.config.latent_dim > LARGEST_TABLES:
        raise ExportError(f"codebooks of {max(sizes)} codes make tables that are too large for an ONNX file")
    if isinstance(model.decoder, SourceDecoder) and model.hop_length < onnx_runtime.BLOCK:
        raise ExportError(f"expected a hop length of at least {onnx_runtime.BLOCK}, found {model.hop_length}")


def write_graph(path: Path, graph: nn.Module, inputs: Mapping[str, Input], output: str) -> None:
    """Trace a graph with examples of its inputs, by their names, and write it."""
    shapes = tuple(
        {axis: torch.export.Dim.DYNAMIC for axis, name in enumerate(axes) if name} for _, axes in inputs.values()
    )
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)  # It warns of packages that nothing here needs.
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph.eval(),
                tuple(example for example, _ in inputs.values()),
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=list(inputs),
                output_names=[output],
                opset_version=OPSET,
                verbose=False,
            )
    finally:
        quiet.setLevel(level)
    assert program is not None
    proto = program.model_proto
    name_axes(proto, {name: axes for name, (_, axes) in inputs.items()})
    forget_traces(proto)
    store_halves(proto)
    onnx.checker.check_model(proto)
    onnx.save_model(proto, path)


def name_axes(proto: onnx.ModelProto, axes: Mapping[str, tuple[str | None, ...]]) -> None:
    """Give the dimensions of the inputs the names that people read."""
    for value in proto.graph.input:
        for dim, name in zip(value.type.tensor_type.shape.dim, axes[value.name], strict=True):
            if name:
                dim.dim_param = name


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
