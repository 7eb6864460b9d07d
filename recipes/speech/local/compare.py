#!/usr/bin/env python
"""Train variants of the recipe's model for equal CPU time each, one change at a time, and time them.

    python recipes/speech/local/compare.py --train "exp/train.jsonl.gz" --valid "exp/dev.jsonl.gz" --output exp/compare

A variant's steps follow from what a step of it costs, measured first, for all variants in turn: what else the machine
does makes steps cost more. The learning rate falls to nothing by the last step. Training goes on where it stopped.
Releases are at OUTPUT/VARIANT/release and, with the weights of the last step in place of their average,
at OUTPUT/VARIANT-last/release, to be heard by ../../benchmark/quality.py; OUTPUT/compare.md has the costs.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from audiovq.files import write_json, write_text

CONV = "[16, 48, 96, 192, 512], strides: [4, 4, 4, 5], dilations: [[], [1], [1], [1, 3], [1, 3, 9, 1, 3, 9]]"
NO_PITCH = ["loss.pitch=0", "loss.voicing=0"]
BASE = ["decoder.dim=384", "decoder.layers=8", "decoder.look_ahead=1"]
"""The decoder of all, unless they change it."""
VARIANTS: dict[str, list[str]] = {
    "base": [],
    "conv": [f"encoder={{type: conv, channels: {CONV}, look_ahead: 320}}"],
    "istft": ["decoder={type: istft, dim: 384, layers: 8, look_ahead: 1}", *NO_PITCH],
    "both": ["decoder.free_spectrum=true"],
    "no_look_ahead": ["encoder.look_ahead=0", "decoder.look_ahead=0"],
    # One codebook has the rate of two at twice the frame rate; filters and spectra stay 5 and 10 ms apart.
    "vq": ["bottleneck.type=vq", "encoder.hop_length=160", "encoder.spectra=1", "decoder.subframes=2"],
    "fsq": ["bottleneck={type: fsq, levels: [8, 5, 5, 5], num_codebooks: 6, structure: residual}"],
    "projected": ["bottleneck.code_dim=8", "bottleneck.normalize=true", "bottleneck.update=gradient"],
    "teacher": ["loss.distill=10"],
    "small": ["decoder.dim=320", "decoder.layers=6", "decoder.look_ahead=2"],
}
"""Changes to the config with `BASE`."""
SHORT, LONG = 10, 40
"""Steps of the two runs whose difference says what a step costs."""
COST_ROUNDS = 3
"""Times that this is done, of which the least counts."""
SPEED_SECONDS, ROUNDS = 10.0, 5


def train(config: Path, output: Path, overrides: list[str], force: bool = False) -> float:
    """Train with one thread; returns the CPU seconds that this took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "audiovq", "train", str(config), *overrides, "--output", str(output)]
    command += ["--force"] if force else []
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=sys.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def step_seconds(config: Path, output: Path, overrides: list[str]) -> float:
    """CPU seconds of a training step."""
    # The longer first: the first of all may track pitch or listen to a teacher, and would take too much off the other.
    long, short = (
        train(config, output, [*overrides, f"training.steps={n}", f"training.warmup_steps={n // 2}"], force=True)
        for n in (LONG, SHORT)
    )
    shutil.rmtree(output)
    return (long - short) / (LONG - SHORT)


def measure_costs(variants: dict[str, list[str]], config: Path, output: Path) -> dict[str, float]:
    """CPU seconds of a training step of each variant, from its overrides; they are kept in OUTPUT/costs.json.

    Variants take turns, and the least of some rounds counts: costs that are measured while the machine does something
    else, for one variant and not for another, would not be equal time.
    """
    path = output / "costs.json"
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    missing = [name for name in variants if known.get(name, {}).get("overrides") != variants[name]]
    rounds = [
        {name: step_seconds(config, output / f"{name}-cost", variants[name]) for name in missing}
        for _ in range(COST_ROUNDS)
    ]
    for name in missing:
        known[name] = {"overrides": variants[name], "seconds": min(costs[name] for costs in rounds)}
    write_json(path, known)
    return {name: known[name]["seconds"] for name in variants}


def train_variant(
    name: str, config: Path, output: Path, overrides: list[str], seconds: float, minutes: float
) -> dict[str, Any]:
    """Train a variant, a step of which costs so many CPU seconds, for so many CPU minutes; returns what it cost."""
    facts = output / f"{name}.json"
    plan = {"minutes": minutes, "overrides": overrides, "step_seconds": seconds}
    found = json.loads(facts.read_text(encoding="utf-8")) if facts.exists() else {**plan, "done": False}
    if {key: found[key] for key in plan} != plan:
        raise SystemExit(f"{facts}: is of other settings; remove it and {output / name}, or take another --output")
    if not found["done"]:
        found["steps"] = steps = round(60 * minutes / seconds)
        write_json(facts, found)
        # Validation chooses among the last models alone: it costs no variant much time.
        last = [f"training.steps={steps}", f"training.warmup_steps={steps // 20}", f"training.valid_every={steps // 4}"]
        train(config, output / name, [*overrides, *last])
        found["done"] = True
        write_json(facts, found)
    return found


def without_averaging(run: Path, output: Path) -> None:
    """Release the weights of a run as the last step left them."""
    from safetensors.torch import load_file

    from audiovq.models.autoencoder import Autoencoder
    from audiovq.models.tokenizer import AudioTokenizer

    config = AudioTokenizer.from_pretrained(run / "release", "cpu").config
    model = Autoencoder(config)
    state = load_file(run / "state.safetensors")
    model.load_state_dict({key[6:]: value for key, value in state.items() if key.startswith("model/")})
    AudioTokenizer(model, config).save_pretrained(output / "release")


def speeds(releases: dict[str, Path]) -> dict[str, tuple[float, float]]:
    """How many times faster than real time each release encodes and decodes, one thread, in turn; medians."""
    import torch

    from audiovq.models.tokenizer import AudioTokenizer

    torch.set_num_threads(1)
    tokenizers = {name: AudioTokenizer.from_pretrained(path, "cpu") for name, path in releases.items()}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in releases}
    for _ in range(ROUNDS):
        for name, tokenizer in tokenizers.items():
            wave = 0.1 * torch.randn(1, 1, round(SPEED_SECONDS * tokenizer.sample_rate))
            start = time.process_time()
            codes = tokenizer.encode(wave, tokenizer.sample_rate)
            middle = time.process_time()
            tokenizer.decode(codes)
            taken[name].append((middle - start, time.process_time() - middle))
    return {
        name: (
            SPEED_SECONDS / statistics.median(a for a, _ in runs),
            SPEED_SECONDS / statistics.median(b for _, b in runs),
        )
        for name, runs in taken.items()
    }


def costs_table(output: Path, names: list[str]) -> str:
    """What the finished variants cost, in training and in use."""
    facts = {name: json.loads((output / f"{name}.json").read_text(encoding="utf-8")) for name in names}
    found = speeds({name: output / name / "release" for name in names})
    lines = [
        "| variant | changes | CPU s a step | steps | encodes, x real time | decodes, x real time |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, fact in facts.items():
        changes = "; ".join(f"`{change}`" for change in VARIANTS[name]) or "-"
        encodes, decodes = found[name]
        cost = f"{fact['step_seconds']:.2f} | {fact['steps']}"
        lines.append(f"| {name} | {changes} | {cost} | {encodes:.0f} | {decodes:.0f} |")
    return "\n".join(lines)


def main(
    train: Annotated[str, typer.Option(help="Manifests of the training speech.")],
    valid: Annotated[str, typer.Option(help="Manifests that say which model is best.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for all runs.")],
    shares: Annotated[str, typer.Option(help="Shares of the crops, one a manifest.  [default: by duration]")] = "",
    teacher: Annotated[str, typer.Option(help="Teacher of the variant of that name.  [default: it is left out]")] = "",
    minutes: Annotated[float, typer.Option(min=0.01, help="CPU minutes of training, for each variant.")] = 20.0,
    only: Annotated[str, typer.Option(help="Variants, in this order.  [default: all]")] = "",
    config: Annotated[Path, typer.Option(help="What is varied.")] = Path(__file__).parents[1] / "conf/speech.yaml",
    overrides: Annotated[str, typer.Option(help="Changes to it for all.")] = "",
) -> None:
    """Train variants of a model for equal CPU time each."""
    names = only.split() or [name for name in VARIANTS if teacher or name != "teacher"]
    if unknown := {*names} - {*VARIANTS}:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}; there are {', '.join(VARIANTS)}", param_hint="--only")
    if "teacher" in names and not teacher:
        raise typer.BadParameter("the variant teacher needs one", param_hint="--teacher")
    common = [f"data.valid={json.dumps(valid.split())}", *BASE, *overrides.split()]
    taught = [f"data.teacher={teacher}"]
    changes = {name: [*common, *VARIANTS[name], *(taught if name == "teacher" else [])] for name in names}
    speech = [
        f"data.train={json.dumps(train.split())}",
        *([f"data.shares=[{', '.join(shares.split())}]"] if shares else []),
    ]
    output.mkdir(parents=True, exist_ok=True)
    # A step costs the same on little speech, which is read at once.
    little = [f"data.train={json.dumps(valid.split())}"]
    costs = measure_costs({name: [*little, *changes[name]] for name in names}, config, output)
    for name in names:
        train_variant(name, config, output, [*speech, *changes[name]], costs[name], minutes)
        without_averaging(output / name, output / f"{name}-last")
    text = costs_table(output, names)
    typer.echo(text)
    write_text(output / "compare.md", text + "\n")


if __name__ == "__main__":
    typer.run(main)
