#!/usr/bin/env python
"""Speed and memory of `audiovq tokenize` on the CPU, beside the bare encoder.

    python recipes/benchmark/tokenizing.py --model exp/mini/release --speech speech --output exp/tokenizing.json

Prints Markdown tables. See README.md for what the columns mean. (The name is not tokenize.py, since a script of that
name would hide Python's own module from all scripts in this folder.)
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from codec import RECIPES, commit, cpu_name, table

from audiovq.allocator import keep_freed_memory
from audiovq.audio.files import AudioWriter, find_audio_files, load_audio
from audiovq.audio.resampling import resample
from audiovq.config import load_config
from audiovq.files import write_json

if TYPE_CHECKING:
    from torch import Tensor

    from audiovq.models.tokenizer import AudioTokenizer

RATES = (16000, 44100, 48000)
"""Rates of the files of the corpus `mixed`, in turn; the corpus `own` is at the model's rate."""
BATCHES = ((1, 20.0), (2, 10.0), (6, 10.0))
"""Batches that the bare encoder is tried with: signals, and seconds of each."""
PEAK = """
import sys
from audiovq.cli import main
sys.argv[0] = "audiovq"
try:
    main()
finally:
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")), file=sys.stderr)
"""
"""`audiovq ...`, which prints its peak memory in KiB last; ru_maxrss would begin with that of the process before it."""
Measured = dict[str, list[float]]


# --- speech --------------------------------------------------------------------------------------------------


def utterances(speech: Path, sample_rate: int, seconds: float) -> Iterator[Tensor]:
    """Recordings of a folder at a rate, again and again until there are `seconds` of them."""
    total = 0.0
    for path in itertools.cycle(find_audio_files(speech)):
        wave, _ = load_audio(path, sample_rate)
        yield wave
        total += wave.shape[-1] / sample_rate
        if total >= seconds:
            return


def write_corpus(folder: Path, waves: list[Tensor], sample_rate: int, rates: tuple[int, ...]) -> Path:
    """The signals as FLAC files, at the rates in turn."""
    for number, (wave, rate) in enumerate(zip(waves, itertools.cycle(rates), strict=False)):
        with AudioWriter(folder / f"{number:05d}.flac", rate) as file:
            file.write(resample(wave, sample_rate, rate))
    return folder


def copies(folder: Path, original: Path, count: int) -> Path:
    """A corpus `count` times as large."""
    for copy in range(count):
        (folder / str(copy)).mkdir(parents=True)
        for path in original.iterdir():
            (folder / str(copy) / path.name).hardlink_to(path)
    return folder


def write_long_file(path: Path, waves: list[Tensor], sample_rate: int, seconds: float) -> Path:
    """One file of `seconds`."""
    with AudioWriter(path, sample_rate) as file:
        left = round(seconds * sample_rate)
        for wave in itertools.cycle(waves):
            file.write(wave[:, :left])
            left -= wave.shape[-1]
            if left <= 0:
                return path
    raise AssertionError("a cycle does not end")


# --- speed ---------------------------------------------------------------------------------------------------


def bare(tokenizer: AudioTokenizer, waves: list[Tensor], batch: int, seconds: float, together: bool) -> float:
    """Audio seconds a second of `AudioTokenizer.encode` on batches without padding.

    Args:
        together: all cores compute one batch; otherwise each core one of its own.
    """
    import torch

    from audiovq.batching import read_ahead
    from audiovq.devices import single_threaded

    signal = torch.cat(waves, -1)[0]
    size = round(seconds * tokenizer.sample_rate)
    batches = [block.view(batch, 1, size) for block in signal.split(batch * size) if len(block) == batch * size]
    begin = time.perf_counter()
    if together:
        for block in batches:
            tokenizer.encode(block, tokenizer.sample_rate)
    else:
        with single_threaded() as cores:
            for _ in read_ahead(lambda block: tokenizer.encode(block, tokenizer.sample_rate), batches, cores):
                pass
    return len(batches) * batch * seconds / (time.perf_counter() - begin)


def run(model: Path, corpus: Path, scratch: Path, cores: int, processes: int) -> float:
    """Audio seconds a second of `audiovq tokenize`, from the first unit that is handed out on."""
    import torch

    from audiovq.tokenization.run import tokenize

    threads = torch.get_num_threads()
    torch.set_num_threads(cores)
    with tempfile.TemporaryDirectory(dir=scratch) as output:
        done = tokenize(model, [corpus], output, processes=processes, device="cpu")
    torch.set_num_threads(threads)
    return done.seconds / done.elapsed


def measure_speed(
    tokenizer: AudioTokenizer, model: Path, waves: list[Tensor], corpora: dict[str, Path], args: argparse.Namespace
) -> Measured:
    """Every way in every round, in turn, so that whatever else the machine does hits all of them alike."""
    ways: dict[str, Callable[[], float]] = {}
    for (batch, seconds), together in itertools.product(BATCHES, (True, False)):
        how = "one for all cores" if together else "one a core"
        ways[f"bare encoder, {batch} x {seconds:g} s, {how}"] = lambda b=batch, s=seconds, t=together: bare(
            tokenizer, waves, b, s, t
        )
    for name, corpus in corpora.items():
        for cores, processes in ((args.cores, 1), (args.cores, args.cores), (1, 1)):
            plural = ["", "es"][processes > 1], ["", "s"][max(cores, processes) > 1]
            text = f"tokenize {name}, {processes} process{plural[0]}, {max(cores, processes)} core{plural[1]}"
            ways[text] = lambda c=corpus, n=cores, p=processes: run(model, c, args.scratch, n, p)
    measured: Measured = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            measured[name].append(way())
    return measured


def speed_rows(measured: Measured) -> list[dict[str, Any]]:
    """Median speeds, best ones, and the median ratio to the bare encoder whose batch is the best, round by round."""
    bares = [values for name, values in measured.items() if name.startswith("bare")]
    best = max(bares, key=statistics.median)
    return [
        {
            "way": name,
            "speed": statistics.median(values),
            "best": max(values),
            "ratio": statistics.median(value / other for value, other in zip(values, best, strict=True)),
        }
        for name, values in measured.items()
    ]


def measure_split(model: Path, corpora: dict[str, Path], scratch: Path) -> list[dict[str, Any]]:
    """Shares of the CPU time that reading, encoding and writing take, on one core."""
    from audiovq.audio.files import AudioSource
    from audiovq.tokenization import worker

    spent: dict[str, float] = defaultdict(float)

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            begin, reading = time.thread_time(), spent["reading"]
            try:
                return function(*given)
            finally:
                # A long utterance is read within encoding.
                spent[part] += time.thread_time() - begin - (spent["reading"] - reading)

        return call

    places = {
        "reading": [(AudioSource, "_piece"), (worker.Item, "open")],
        "encoding": [(worker, "_encode")],
        "writing": [(worker, "commit_unit")],
    }
    rows = []
    with ExitStack() as patches:
        for part, (owner, name) in ((part, place) for part, found in places.items() for place in found):
            patches.enter_context(mock.patch.object(owner, name, timed(part, getattr(owner, name))))
        for name, corpus in corpora.items():
            spent.clear()
            run(model, corpus, scratch, 1, 1)
            total = sum(spent.values())
            rows.append({"corpus": name, **{part: spent[part] / total for part in places}})
    return rows


# --- memory and start-up -------------------------------------------------------------------------------------


def peak_memory(model: Path, corpus: Path, scratch: Path) -> float:
    """Peak memory in MiB of `audiovq tokenize`, in a process of its own."""
    with tempfile.TemporaryDirectory(dir=scratch) as output:
        command = [sys.executable, "-c", PEAK, "tokenize", model, corpus, "--output", output, "--device", "cpu"]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    return int(done.stderr.split()[-1]) / 1024


def start_up(model: Path, corpus: Path, scratch: Path, rounds: int) -> dict[str, float]:
    """Median seconds of a whole `audiovq tokenize` of one short file, and of importing torch alone."""
    torch_alone, whole = [], []
    for _ in range(rounds):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        torch_alone.append(time.perf_counter() - begin)
        with tempfile.TemporaryDirectory(dir=scratch) as output:
            command = [
                sys.executable,
                "-m",
                "audiovq",
                "tokenize",
                model,
                corpus,
                "--output",
                output,
                "--device",
                "cpu",
            ]
            begin = time.perf_counter()
            subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL)
            whole.append(time.perf_counter() - begin)
    differences = [a - b for a, b in zip(whole, torch_alone, strict=True)]
    return {"torch": statistics.median(torch_alone), "beyond": statistics.median(differences)}


# --- command line --------------------------------------------------------------------------------------------

SPEED = {"way": "{way}", "s/s (best)": "{speed:.1f} ({best:.1f})", "of the bare encoder's": "{ratio:.1%}"}
SPLIT = {"corpus": "{corpus}", "reading": "{reading:.1%}", "encoding": "{encoding:.1%}", "writing": "{writing:.1%}"}
MEMORY = {"input": "{input}", "peak, MiB": "{peak:.0f}"}


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed and memory of audiovq tokenize, beside the bare encoder.")
    add = parser.add_argument
    add(
        "--model", type=Path, default=RECIPES / "mini/conf/mini.yaml", help="model folder, or config for random weights"
    )
    add("--speech", type=Path, default=RECIPES / "mini/data", help="folder of recordings (default: %(default)s)")
    add("--seconds", type=float, default=900.0, help="audio in the corpus; 10 times as much for memory (%(default)s)")
    add("--long-seconds", type=float, default=3 * 3600.0, help="length of the long file (default: %(default)s)")
    add("--rounds", type=int, default=3, help="rounds, in each of which every way is timed (default: %(default)s)")
    add("--cores", type=int, default=os.cpu_count(), help="cores to compute with (default: all, %(default)s)")
    add("--scratch", type=Path, help="folder for what is written meanwhile (default: that of temporary files)")
    add("--output", type=Path, help="JSON file for all figures (default: none is written)")
    return parser.parse_args(arguments)


def benchmark(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, print the tables and write the figures."""
    import torch

    from audiovq.models.autoencoder import Autoencoder
    from audiovq.models.tokenizer import AudioTokenizer

    keep_freed_memory()  # As the command does, and for the bare encoder, too.
    torch.set_num_threads(args.cores)
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        args.scratch = Path(folder)
        model = args.model
        if model.is_file():
            torch.manual_seed(0)
            config, model = load_config(model).model_part(), args.scratch / "model"
            AudioTokenizer(Autoencoder(config), config).save_pretrained(model)
        tokenizer = AudioTokenizer.from_pretrained(model, "cpu")
        rate = tokenizer.sample_rate
        waves = list(utterances(args.speech, rate, args.seconds))
        corpora = {"own": (rate,), "mixed": RATES}
        corpora = {name: write_corpus(args.scratch / name, waves, rate, rates) for name, rates in corpora.items()}
        facts = {"cpu": cpu_name(), "cores": args.cores, "torch": torch.__version__, "commit": commit()}
        facts |= {"model": str(args.model), "audio_seconds": args.seconds, "files": len(waves), "rounds": args.rounds}
        print(f"{', '.join(f'{key} {value}' for key, value in facts.items())}\n", flush=True)

        measured = measure_speed(tokenizer, model, waves, corpora, args)
        speeds = speed_rows(measured)
        print(table(SPEED, speeds), end="\n\n", flush=True)
        split = measure_split(model, corpora, args.scratch)
        print(table(SPLIT, split), end="\n\n", flush=True)

        large = copies(args.scratch / "large", corpora["own"], 10)
        long_file = write_long_file(args.scratch / "long" / "long.flac", waves, rate, args.long_seconds)
        short_file = write_long_file(args.scratch / "short" / "short.flac", waves, rate, 1.0)
        inputs = {"1 x": corpora["own"], "10 x": large, f"one file of {args.long_seconds:g} s": long_file.parent}
        memory = [{"input": name, "peak": peak_memory(model, given, args.scratch)} for name, given in inputs.items()]
        print(table(MEMORY, memory), end="\n\n", flush=True)
        start = start_up(model, short_file.parent, args.scratch, args.rounds)
        print(f"importing torch {start['torch']:.2f} s, start-up beyond that {start['beyond']:.2f} s")
    results = {**facts, "speeds": speeds, "split": split, "memory": memory, "start_up": start, "measured": measured}
    if args.output:
        write_json(args.output, results)
    return results


if __name__ == "__main__":
    benchmark(parse_arguments(None))
