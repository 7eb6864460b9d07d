#!/usr/bin/env python
"""Speed and size of the shipped models beside EnCodec 24 kHz (Défossez et al., 2022), on the CPU.

    python recipes/benchmark/codec.py --threads 2 --output exp/codec.json

Prints Markdown tables. A released model has its weights, since how often two codes are nearly as good depends on them;
those of the configs and of EnCodec are random, and neither speed nor size depends on them. See README.md for what the
columns mean.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiovq.allocator import keep_freed_memory
from audiovq.config import load_config
from audiovq.errors import AudioVQError
from audiovq.files import write_json

if TYPE_CHECKING:
    from torch import Tensor

    from audiovq.models.tokenizer import AudioTokenizer

Row = dict[str, float | str]

RECIPES = Path(__file__).resolve().parents[1]
SHIPPED = (
    "speech-16k",
    RECIPES / "mini/conf/mini.yaml",
    RECIPES / "vctk/conf/vqvae_base.yaml",
    RECIPES / "vctk/conf/vqvae_paper.yaml",
)
SPEECH = RECIPES / "mini/data/june"
"""Recordings on which codecs are timed."""
BATCH_SIZES = (1, 16)
ENCODEC_KBPS = 1.5
"""EnCodec's lowest bitrate: the nearest to one codebook, and its fastest setting."""
SHORTEST_TIMING = 0.25
"""Seconds; a faster call is repeated within one measurement, and the mean taken."""
COUNTED_SECONDS = 8
"""Audio on which multiply-adds are counted: whole frames at 50, 62.5 and 75 frames a second, and one piece."""


@dataclass
class Codec:
    """A codec as the benchmark sees it, with the functions that its users call."""

    name: str
    sample_rate: int
    frame_rate: float
    bitrate: float
    parameters: int
    """Weights; of EnCodec's codebooks those that `bitrate` uses."""
    encode: Callable[[Tensor], Any]
    """Waveform [B, 1, T] to codes."""
    decode: Callable[[Any], Tensor]
    """What `encode` returns to waveform."""
    latents: Callable[[Tensor], Tensor]
    """Waveform to what the quantizer sees."""
    quantize: Callable[[Tensor], Any]
    """The quantizer's part of `encode`."""
    fast: Callable[[Tensor], Any]
    """`encode` that leaves near ties between codes as float32 has them."""
    near_ties: Callable[[Tensor], float] = lambda _: 0.0
    """Share of a waveform's frames that `encode` settles in double precision, since float32 could err there."""


@dataclass
class Timings:
    """Seconds that one codec took at one batch size, one number a round."""

    name: str
    batch: int
    encode: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    quantize: list[float] = field(default_factory=list)
    fast: list[float] = field(default_factory=list)
    near_ties: float = 0.0


# --- codecs --------------------------------------------------------------------------------------------------


def audiovq_codecs(model: str | Path) -> list[Codec]:
    """A model with all its codebooks and, if it has some to spare, with as few as come up to EnCodec's bitrate.

    Args:
        model: YAML config of a model, which gets random weights; or a released model.
    """
    from audiovq.models.autoencoder import Autoencoder
    from audiovq.models.tokenizer import AudioTokenizer

    if str(model).endswith((".yaml", ".yml")):
        config = load_config(Path(model)).model_part()
        tokenizer, name = AudioTokenizer(Autoencoder(config), config), Path(model).stem
    else:
        tokenizer, name = AudioTokenizer.from_pretrained(model, "cpu"), Path(model).name
    books, fast = tokenizer.num_codebooks, without_near_ties(tokenizer)
    enough = (n for n in range(1, books) if tokenizer.bitrate_of(n) >= 1000 * ENCODEC_KBPS)
    return [
        Codec(
            name=name if count == books else f"{name}, {count} of {books} codebooks",
            sample_rate=tokenizer.sample_rate,
            frame_rate=tokenizer.frame_rate,
            bitrate=tokenizer.bitrate_of(count),
            parameters=tokenizer.num_parameters,
            encode=partial(tokenizer.encode, sample_rate=tokenizer.sample_rate, num_codebooks=count),
            decode=tokenizer.decode,
            latents=tokenizer.model.encode,
            quantize=partial(tokenizer.model.bottleneck.encode, num_codebooks=count),
            fast=partial(fast.encode, sample_rate=tokenizer.sample_rate, num_codebooks=count),
            near_ties=partial(share_of_near_ties, tokenizer, num_codebooks=count),
        )
        for count in (books, *list(enough)[:1])
    ]


def without_near_ties(tokenizer: AudioTokenizer) -> AudioTokenizer:
    """The same, but for near ties, which stay as float32 has them."""
    import torch

    fast, exact = copy.copy(tokenizer), copy.copy(tokenizer.exact)
    exact.near_ties = lambda latents, margin: torch.zeros_like(margin, dtype=torch.bool)
    fast.exact = exact
    return fast


def share_of_near_ties(tokenizer: AudioTokenizer, wave: Tensor, num_codebooks: int) -> float:
    """Share of frames in which float32 could give another code, so that they are settled in double precision."""
    latents = tokenizer.model.encode(wave)
    _, margin = tokenizer.model.bottleneck.encode(latents, num_codebooks)
    return float(tokenizer.exact.near_ties(latents, margin).float().mean())


def encodec_codec() -> Codec:
    """EnCodec 24 kHz at `ENCODEC_KBPS`, with its weight normalisation folded into the weights, which is faster.

    Raises:
        AudioVQError: the package `encodec` is not installed.
    """
    import warnings

    from torch import nn

    try:
        from encodec.model import EncodecModel
    except ImportError as error:
        raise AudioVQError("EnCodec is not installed; pip install 'audiovq[bench]'") from error

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # EnCodec uses torch.nn.utils.weight_norm, which is deprecated.
        model = EncodecModel.encodec_model_24khz(pretrained=False)
    model.set_target_bandwidth(ENCODEC_KBPS)
    for layer in model.modules():
        if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d):
            nn.utils.remove_weight_norm(layer)
    books = int(ENCODEC_KBPS * 1000 / (model.frame_rate * model.bits_per_codebook))
    codebooks = books * model.quantizer.bins * model.quantizer.dimension
    return Codec(
        name="EnCodec 24 kHz",
        sample_rate=model.sample_rate,
        frame_rate=model.frame_rate,
        bitrate=1000 * ENCODEC_KBPS,
        parameters=codebooks + sum(parameter.numel() for parameter in model.parameters()),
        encode=model.encode,
        decode=model.decode,
        latents=model.encoder,
        quantize=lambda latents: model.quantizer.encode(latents, model.frame_rate, ENCODEC_KBPS),
        fast=model.encode,
    )


# --- measuring -----------------------------------------------------------------------------------------------


def count_multiply_adds(call: Callable[[], Any]) -> float:
    """Multiply-adds of convolutions, matrix products and LSTMs in a call; element-wise work and FFTs are not counted.

    PyTorch's counter gives two operations a multiply-add. On the CPU it does not know the LSTM layer of oneDNN, which
    EnCodec uses, and its product with weights that are laid out for it.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    def lstm_layer(steps: Sequence[int], weight_ih: Sequence[int], weight_hh: Sequence[int], *_: Any, **__: Any) -> int:
        return 2 * math.prod(steps[:-1]) * (math.prod(weight_ih) + math.prod(weight_hh))

    def product(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
        return 2 * math.prod(x) * weight[0]

    custom = {torch.ops.aten.mkldnn_rnn_layer: lstm_layer, torch.ops.mkldnn._linear_pointwise: product}
    with FlopCounterMode(display=False, custom_mapping=custom) as counter:
        call()
    return counter.get_total_flops() / 2


def multiply_adds_a_second(codec: Codec) -> tuple[float, float]:
    """Multiply-adds of encoding and of decoding a second of audio."""
    wave = noise(codec, batch=1, seconds=COUNTED_SECONDS)
    codes = codec.encode(wave)
    calls = (lambda: codec.encode(wave), lambda: codec.decode(codes))
    encode, decode = (count_multiply_adds(call) / COUNTED_SECONDS for call in calls)
    return encode, decode


def noise(codec: Codec, batch: int, seconds: float) -> Tensor:
    """Noise [B, 1, T] at the codec's rate."""
    import torch

    return 0.1 * torch.randn(batch, 1, round(seconds * codec.sample_rate))


def speech(codec: Codec, batch: int, seconds: float) -> Tensor:
    """Speech [B, 1, T] at the codec's rate: recordings one after the other, each item from another place on."""
    import torch

    from audiovq.audio.files import load_audio
    from audiovq.audio.resampling import resample

    clips = (load_audio(path) for path in sorted(SPEECH.glob("*.ogg")))
    wave = torch.cat([resample(wave, rate, codec.sample_rate) for wave, rate in clips], -1)[0]
    samples = round(seconds * codec.sample_rate)
    wave = wave.repeat(-(-batch * samples // len(wave)))
    return wave[: batch * samples].view(batch, 1, samples).clone()


def seconds_of(call: Callable[[], Any]) -> float:
    """Wall-clock seconds of one call."""
    calls, start = 0, time.perf_counter()
    while True:
        call()
        calls += 1
        elapsed = time.perf_counter() - start
        if elapsed >= SHORTEST_TIMING:
            return elapsed / calls


def time_codecs(codecs: Sequence[Codec], batch_sizes: Sequence[int], seconds: float, rounds: int) -> list[Timings]:
    """Time every codec in every round, in turn, so that whatever else the machine does hits all of them alike."""
    runs: list[tuple[list[float], Callable[[], Any]]] = []
    results: list[Timings] = []
    for batch in batch_sizes:
        for codec in codecs:
            wave = speech(codec, batch, seconds)
            codes, latents = codec.encode(wave), codec.latents(wave)
            result = Timings(codec.name, batch, near_ties=codec.near_ties(wave))
            runs += [
                (result.encode, partial(codec.encode, wave)),
                (result.fast, partial(codec.fast, wave)),
                (result.decode, partial(codec.decode, codes)),
                (result.quantize, partial(codec.quantize, latents)),
            ]
            results.append(result)
    for _, call in runs:
        call()  # Warm-up.
    for _ in range(rounds):
        for measured, call in runs:
            measured.append(seconds_of(call))
    return results


# --- results -------------------------------------------------------------------------------------------------


def size_row(codec: Codec) -> Row:
    """Size of a codec, as a row of the first table."""
    encode, decode = multiply_adds_a_second(codec)
    return {
        "name": codec.name,
        "frame_rate": codec.frame_rate,
        "bitrate": codec.bitrate,
        "parameters": codec.parameters,
        "encode_multiply_adds": encode,
        "decode_multiply_adds": decode,
    }


def speed_row(timings: Timings, reference: Timings, seconds: float) -> Row:
    """Speed of a codec, as a row of the second table; ratios are taken within a round."""
    row: Row = {"name": timings.name, "batch": timings.batch}
    audio = timings.batch * seconds
    for part in ("encode", "decode"):
        own, other = getattr(timings, part), getattr(reference, part)
        row[f"{part}_speed"] = audio / statistics.median(own)
        row[f"{part}_best_speed"] = audio / min(own)
        row[f"{part}_ratio"] = statistics.median(b / a for a, b in zip(own, other, strict=True))
    shares = (q / e for q, e in zip(timings.quantize, timings.encode, strict=True))
    row["quantizer_share"] = statistics.median(shares)
    costs = (1 - f / e for f, e in zip(timings.fast, timings.encode, strict=True))
    # Without near ties both ways are one, and their difference is noise.
    cost = statistics.median(costs) if timings.near_ties else 0.0
    return row | {"near_ties": timings.near_ties, "near_ties_cost": cost}


SIZE_COLUMNS = {
    "model": "{name}",
    "frames/s": "{frame_rate:g}",
    "bit/s": "{bitrate:.0f}",
    "parameters": "{parameters:,}",
    "encode, multiply-adds/s": "{encode_multiply_adds:,.0f}",
    "decode, multiply-adds/s": "{decode_multiply_adds:,.0f}",
}
SPEED_COLUMNS = {
    "model": "{name}",
    "batch": "{batch}",
    "encode, s/s (best)": "{encode_speed:.1f} ({encode_best_speed:.1f})",
    "encode / EnCodec": "{encode_ratio:.1f}",
    "decode, s/s (best)": "{decode_speed:.1f} ({decode_best_speed:.1f})",
    "decode / EnCodec": "{decode_ratio:.1f}",
    "quantizer": "{quantizer_share:.1%}",
    "near ties": "{near_ties:.2%}",
    "their cost": "{near_ties_cost:.1%}",
}


def table(columns: Mapping[str, str], rows: Sequence[Row]) -> str:
    """A Markdown table; `columns` maps headings to formats of a row. The first column is text, the others figures."""
    cells = [list(columns), ["---", *["---:"] * (len(columns) - 1)]]
    cells += [[text.format_map(row) for text in columns.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def conditions(args: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on."""
    import torch

    return {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit(),
        "seed": args.seed,
        "audio_seconds": args.seconds,
        "rounds": args.rounds,
        "encodec_kbps": ENCODEC_KBPS,
    }


def cpu_name() -> str:
    """Model name of the CPU, as far as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    """Commit of this checkout, marked if files differ from it."""
    command = ["git", "-C", str(RECIPES), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# --- command line --------------------------------------------------------------------------------------------


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed and size of models beside EnCodec 24 kHz, on the CPU.")
    add = parser.add_argument
    add("models", nargs="*", help="configs or released models (default: speech-16k, those of recipes/mini and vctk)")
    add("--batch", type=int, nargs="+", default=BATCH_SIZES, help="batch sizes (default: 1 16)")
    add("--threads", type=int, default=os.cpu_count(), help="threads to compute with (default: all cores, %(default)s)")
    add("--rounds", type=int, default=5, help="rounds, in each of which every codec is timed (default: %(default)s)")
    add("--seconds", type=float, default=10.0, help="length of the audio in seconds (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of weights and audio (default: %(default)s)")
    add("--output", type=Path, help="JSON file for all figures (default: none is written)")
    args = parser.parse_args(arguments)
    for name, value in [(n, getattr(args, n)) for n in ("threads", "rounds", "seconds")] + [("batch", min(args.batch))]:
        if not 0 < value < math.inf:
            parser.error(f"argument --{name}: expected a number above 0, found {value}")
    return args


def benchmark(args: argparse.Namespace) -> None:
    """Measure, print the tables and write the figures."""
    import torch

    keep_freed_memory()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    facts = conditions(args)
    codecs = [encodec_codec(), *(codec for model in args.models or SHIPPED for codec in audiovq_codecs(model))]
    with torch.inference_mode():
        sizes = [size_row(codec) for codec in codecs]
        timings = time_codecs(codecs, args.batch, args.seconds, args.rounds)
    references = {timing.batch: timing for timing in timings if timing.name == codecs[0].name}
    speeds = [speed_row(timing, references[timing.batch], args.seconds) for timing in timings]
    print(f"{', '.join(f'{key} {value}' for key, value in facts.items())}\n")
    print(f"{table(SIZE_COLUMNS, sizes)}\n\n{table(SPEED_COLUMNS, speeds)}")
    if args.output:
        raw = [asdict(timing) for timing in timings]
        write_json(args.output, {**facts, "sizes": sizes, "speeds": speeds, "seconds": raw})


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        benchmark(parse_arguments(arguments))
    except AudioVQError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
