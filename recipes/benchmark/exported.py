#!/usr/bin/env python
"""A model in ONNX Runtime beside PyTorch: the same codes, the same sound, and what each costs, on one CPU thread.

    python recipes/benchmark/exported.py speech-16k recipes/mini/data --seconds 600 --output exp/exported.json

Prints Markdown tables. See README.md for what the columns mean.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from audiovq.allocator import keep_freed_memory
from audiovq.audio import find_audio_files, load_audio
from audiovq.errors import AudioVQError
from audiovq.files import write_json

if TYPE_CHECKING:
    import numpy as np

    from audiovq.interop.onnx_runtime import OnnxTokenizer
    from audiovq.models.tokenizer import AudioTokenizer

CLOSE = 1e-3
"""Samples that differ by no more count as the same."""


@dataclass
class Agreement:
    """How far both agree, over all files."""

    seconds: float = 0
    frames: int = 0
    margins: list[float] = field(default_factory=list)
    """Of each frame, as a share of its latent's length."""
    other: list[float] = field(default_factory=list)
    """Those of the frames whose codes differ."""
    other_near_ties: int = 0
    """How many of these are near ties by the bound that PyTorch's exact codes go by."""
    samples: int = 0
    far: int = 0
    """Samples of decoded speech that differ by more than `CLOSE`."""
    largest: float = 0
    """The largest difference of a sample."""
    power: float = 0
    error: float = 0


def compare(tokenizer: AudioTokenizer, exported: OnnxTokenizer, waves: Iterator[np.ndarray]) -> Agreement:
    """Encode and decode every wave with both; both decode the same codes."""
    import numpy as np
    import torch

    total = Agreement()
    for wave in waves:
        codes = tokenizer.encode(wave, tokenizer.sample_rate).numpy()
        found = exported.encode(wave, tokenizer.sample_rate)
        with torch.inference_mode():
            latents = tokenizer.model.encode(torch.from_numpy(wave)[None])
            margin = tokenizer.model.bottleneck.encode(latents)[1]
            near = tokenizer.exact.near_ties(latents, margin)[0].numpy()
            margins = (margin / latents.norm(dim=1))[0].numpy()
        differ = (codes != found).any(1)[0]
        total.seconds += wave.shape[-1] / tokenizer.sample_rate
        total.frames += codes.shape[-1]
        total.margins += margins.tolist()
        total.other += margins[differ].tolist()
        total.other_near_ties += int((differ & near).sum())
        expected, decoded = tokenizer.decode(codes).numpy(), exported.decode(codes)
        error = np.abs(expected - decoded)
        total.samples += error.size
        total.far += int((error > CLOSE).sum())
        total.largest = max(total.largest, float(error.max()))
        total.power += float((expected.astype(float) ** 2).sum())
        total.error += float((error.astype(float) ** 2).sum())
    return total


def describe(total: Agreement) -> dict[str, Any]:
    """The figures that are published."""
    import numpy as np

    largest = max(total.other, default=-np.inf)
    return {
        "seconds": total.seconds,
        "frames": total.frames,
        "other_frames": len(total.other),
        "same_frames_percent": 100 * (1 - len(total.other) / total.frames),
        "other_near_ties": total.other_near_ties,
        "largest_margin_of_other": largest if total.other else 0.0,
        "median_margin": median(total.margins),
        "frames_of_smaller_margin_percent": 100
        * float(np.mean(np.array(total.margins) <= max(total.other, default=0))),
        "close_samples_percent": 100 * (1 - total.far / total.samples),
        "largest_difference": total.largest,
        "difference_db": 10 * float(np.log10(max(total.error, 1e-30) / total.power)),
    }


def measure(
    tokenizer: AudioTokenizer, exported: OnnxTokenizer, wave: np.ndarray, rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """CPU and wall-clock seconds of every call, in turn, round after round."""
    rate = tokenizer.sample_rate
    codes = exported.encode(wave, rate)
    calls: dict[str, Callable[[], object]] = {
        "PyTorch encode": lambda: tokenizer.encode(wave, rate),
        "ONNX encode": lambda: exported.encode(wave, rate),
        "PyTorch decode": lambda: tokenizer.decode(codes),
        "ONNX decode": lambda: exported.decode(codes),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            cpu, wall = time.process_time(), time.perf_counter()
            call()
            if number:  # The first is a warm-up.
                times[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return times


def read_speech(inputs: Sequence[Path], sample_rate: int, seconds: float) -> Iterator[np.ndarray]:
    """Waves [1, T] of files, taken from all over the list, until there are so many seconds."""
    files = [path for item in inputs for path in (find_audio_files(item) if item.is_dir() else [item])]
    if not files:
        raise AudioVQError(f"{inputs[0]}: holds no audio files")
    for path in (path for start in range(4) for path in files[start::4]):
        if seconds <= 0:
            return
        wave, _ = load_audio(path, sample_rate)
        seconds -= wave.shape[-1] / sample_rate
        yield wave.numpy()


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A model in ONNX Runtime beside PyTorch, on one CPU thread.")
    add = parser.add_argument
    add("model", help="model folder, or the name of one that comes with audiovq")
    add("inputs", nargs="+", type=Path, help="audio files, or folders of them")
    add("--seconds", type=float, default=600.0, help="speech to compare on (default: %(default)g)")
    add("--rounds", type=int, default=10, help="rounds in which speed is measured (default: %(default)s)")
    add("--output", type=Path, help="JSON file for all figures (default: none is written)")
    args = parser.parse_args(arguments)
    for name in ("seconds", "rounds"):
        if getattr(args, name) <= 0:
            parser.error(f"argument --{name}: expected a number above 0, found {getattr(args, name)}")
    return args


def benchmark(args: argparse.Namespace) -> None:
    """Compare, measure, print the tables and write the figures."""
    import numpy as np
    import onnxruntime
    import torch

    from audiovq.interop.onnx import export_onnx
    from audiovq.interop.onnx_runtime import OnnxTokenizer
    from audiovq.models.tokenizer import AudioTokenizer

    keep_freed_memory()
    torch.set_num_threads(1)
    tokenizer = AudioTokenizer.from_pretrained(args.model, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(tokenizer, Path(folder) / "onnx")
        exported = OnnxTokenizer(Path(folder) / "onnx", threads=1)
    agreement = describe(compare(tokenizer, exported, read_speech(args.inputs, tokenizer.sample_rate, args.seconds)))
    print("| agreement | |\n|---|---:|")
    print("\n".join(f"| {name.replace('_', ' ')} | {value:.6g} |" for name, value in agreement.items()))
    speech = np.concatenate(list(read_speech(args.inputs, tokenizer.sample_rate, 10.0)), -1)
    wave = speech[:, : 10 * tokenizer.sample_rate]
    times = measure(tokenizer, exported, wave, args.rounds)
    seconds = wave.shape[-1] / tokenizer.sample_rate
    print("\n| | times real time, by CPU time | by the clock |\n|---|---:|---:|")
    for name, rounds in times.items():
        print(f"| {name} | {' | '.join(f'{seconds / median(column):.1f}' for column in zip(*rounds, strict=True))} |")
    for part in ("encode", "decode"):
        pairs = zip(times[f"PyTorch {part}"], times[f"ONNX {part}"], strict=True)
        print(f"\n{part}: ONNX Runtime is {median(a[0] / b[0] for a, b in pairs):.2f} times as fast by CPU time")
    if args.output:
        versions = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__, "threads": 1}
        write_json(args.output, {**versions, "model": args.model, "agreement": agreement, "times": times})


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        benchmark(parse_arguments(arguments))
    except AudioVQError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
