"""All figures of the bench, as plain data."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from context import context_samples, load_context, whole_frames
from diagnostics import elbo, latent_gap, usage
from gradients import estimator_gradients, load_run, own_gradients
from grid import FAILED, TIMES, Bench, Run, in_parallel
from textbook import textbook
from torch import Tensor

import audiovq
from audiovq.batching import evenly_spread
from audiovq.bottlenecks.base import bits_per_second
from audiovq.bottlenecks.gaussian import GaussianBottleneck
from audiovq.config import ExperimentConfig, load_config
from audiovq.data.manifest import Utterance, read_manifest
from audiovq.devices import seed_everything
from audiovq.evaluation.metrics import METRICS, measure, summarize
from audiovq.files import write_json
from audiovq.losses.reconstruction import ReconstructionLoss
from audiovq.models.autoencoder import Autoencoder

MEASURED = "measured.json"
CURVES = ("loss", "mel", "stft", "kl", "kl_weight", "temperature", "perplexity")
DIGITS = 5
"""Significant digits of all figures."""


def results(bench: Bench) -> dict[str, Any]:
    """All that report and README show; what has been measured before is taken from the runs' folders."""
    in_parallel([run for run in bench.runs() if not (run.folder / MEASURED).exists()], _measure_run)
    contexts = [run for run in bench.context_runs() if not (run.folder / MEASURED).exists()]
    in_parallel(contexts, partial(_measure_context, bench.grid.context.utterances))
    torch.set_num_threads(1)
    return rounded(
        {
            "conditions": conditions(bench),
            "runs": [_read(run.folder / MEASURED) for run in bench.runs()],
            "contexts": [_read(run.folder / MEASURED) for run in bench.context_runs()],
            "gradients": own_gradients(bench),
            "estimators": estimator_gradients(bench),
            "textbook": textbook(),
        }
    )


def commit() -> str | None:
    """The commit that is checked out; None outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def conditions(bench: Bench) -> dict[str, Any]:
    """What the figures depend on."""
    config = bench.runs()[0].config
    return {
        "audiovq": audiovq.__version__,
        "commit": commit(),
        "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "sample_rate": config.sample_rate,
        "frame_rate": config.frame_rate,
        "codebook_size": load_config(bench.config).model_dump()["bottleneck"]["codebook_size"],
        "steps": config.training.steps,
        "seeds": bench.grid.seeds,
        "test_utterances": len(read_manifest(bench.manifest("test"))),
        "context_steps": bench.context_runs()[0].config.training.steps,
        "context_utterances": bench.grid.context.utterances,
    }


# --- part 1 --------------------------------------------------------------------------------------------------


def _measure_run(run: Run) -> str:
    """Reconstruction, rate, collapse and curves of a trained autoencoder."""
    found = {"bottleneck": run.kind, "seed": run.config.training.seed, "failed": None, "curves": curves(run.folder)}
    if (run.folder / FAILED).exists():
        found["failed"] = (run.folder / FAILED).read_text(encoding="utf-8").strip()
        write_json(run.folder / MEASURED, found)
        return "failed in training"
    model, loss = load_run(run).eval(), ReconstructionLoss(run.config.loss, run.config.sample_rate)
    waves = _read_waves(
        read_manifest(run.config.data.train_manifests[0].with_name("test.jsonl.gz")), run.config.sample_rate
    )
    with torch.no_grad():
        latents = [model.encode(wave) for wave in waves]
        scores = [
            measure(wave[0], model(wave).wave[0], run.config.sample_rate)  # As evaluation has it: mode or mean.
            for wave in waves
        ]

        def utterance_loss(number: int, changed: Tensor) -> float:
            wave = waves[number]
            return float(loss(model.decode(changed)[..., : wave.shape[-1]], wave)[0])

        gap = latent_gap(model.bottleneck, latents, utterance_loss)
        used = usage(model.bottleneck, torch.cat(latents, dim=-1))
    found |= {
        "seconds": _read(run.folder / TIMES),
        "metrics": {name: summarize(score[name] for score in scores).mean for name in METRICS},
        "usage": asdict(used),
        "gap": {**asdict(gap), "gap": gap.gap},
        "bits_per_second": rates(used.kl, used.information, used.perplexity, run.config),
        "elbo": evidence_bound(model, waves, used.kl, run.config),
    }
    write_json(run.folder / MEASURED, found)
    return f"mel distance {found['metrics']['mel_distance']:.3f}"


def rates(
    kl: float | None, information: float | None, perplexity: float | None, config: ExperimentConfig
) -> dict[str, float | None]:
    """Rates in bits per second: of the KL divergence, of the information, and of codes coded by their frequency."""
    nats = {"kl": kl, "information": information, "codes": math.log(perplexity) if perplexity else None}
    return {name: None if value is None else bits_per_second(value, config.frame_rate) for name, value in nats.items()}


@torch.no_grad()
def evidence_bound(
    model: Autoencoder, waves: Sequence[Tensor], kl: float | None, config: ExperimentConfig
) -> dict[str, float] | None:
    """The ELBO of a Gaussian bottleneck, with z drawn from the posterior; None for the others."""
    if kl is None or not isinstance(model.bottleneck, GaussianBottleneck):
        return None
    seed_everything(config.training.seed, "elbo")
    model.bottleneck.train()
    errors = torch.cat([(model(wave).wave - wave).square().flatten() for wave in waves])
    model.bottleneck.eval()
    nats = elbo(float(errors.double().mean()), kl, config.hop_length)
    return {
        "nats_per_second": nats * config.frame_rate,
        "bits_per_second": bits_per_second(nats, config.frame_rate),
    }


def curves(folder: Path) -> dict[str, dict[str, list[float]]]:
    """What a run has logged, by part (train, valid) and quantity; `step` counts."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found: dict[str, dict[str, list[float]]] = {}
    for part in ("train", "valid"):
        chosen = [line for line in lines if line["part"] == part]
        names = [name for name in CURVES if chosen and name in chosen[0]]
        found[part] = {name: [line[name] for line in chosen] for name in ("step", *names)}
    return found


def _read_waves(utterances: Sequence[Utterance], sample_rate: int) -> list[Tensor]:
    return [utterance.source().read(sample_rate)[None] for utterance in utterances]


# --- part 2 --------------------------------------------------------------------------------------------------


def _measure_context(utterances: int, run: Run) -> str:
    """Likelihood, use of the latents and collapse of a decoder that sees the past."""
    found = {"bottleneck": run.kind, "context": context_samples(run.context_units), "failed": None}
    if (run.folder / FAILED).exists():
        found["failed"] = (run.folder / FAILED).read_text(encoding="utf-8").strip()
        write_json(run.folder / MEASURED, found)
        return "failed in training"
    model = load_context(run)
    test = evenly_spread(read_manifest(run.config.data.train_manifests[0].with_name("test.jsonl.gz")), utterances)
    waves = [whole_frames(wave, model.hop_length) for wave in _read_waves(test, run.config.sample_rate)]
    with torch.no_grad():
        latents = [model.encoder(wave) for wave in waves]
        gap = latent_gap(model.bottleneck, latents, lambda i, z: float(model.nll(z, waves[i])))
        used = usage(model.bottleneck, torch.cat(latents, dim=-1))
    found |= {
        "seconds": _read(run.folder / TIMES),
        "usage": asdict(used),
        "gap": {**asdict(gap), "gap": gap.gap},
    }
    write_json(run.folder / MEASURED, found)
    return f"gap {gap.gap:.2f} nats a frame"


# --- files ---------------------------------------------------------------------------------------------------


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def rounded(data: Any) -> Any:
    """Plain data with every float at a few significant digits."""
    if isinstance(data, float):
        return float(f"{data:.{DIGITS}g}")
    if isinstance(data, dict):
        return {key: rounded(value) for key, value in data.items()}
    return [rounded(value) for value in data] if isinstance(data, list | tuple) else data
