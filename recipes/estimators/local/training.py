"""Training an autoencoder of the bench, and measuring it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from cell_list import Cell, has_samples
from cells import Bench
from data import read_waves
from diagnostics import drawn, latent_gap, usage
from estimates import restored
from safetensors.torch import load_file
from torch import Tensor

from audiovq.batching import evenly_spread
from audiovq.bottlenecks.base import bits_per_second
from audiovq.bottlenecks.gumbel import GumbelBottleneck
from audiovq.bottlenecks.vq import VectorQuantizer
from audiovq.config import ExperimentConfig
from audiovq.data.manifest import read_manifest
from audiovq.devices import seed_everything
from audiovq.errors import TrainingError
from audiovq.evaluation.metrics import METRICS, measure, summarize
from audiovq.losses.reconstruction import build_loss
from audiovq.models.autoencoder import Autoencoder
from audiovq.training.autoencoder import AutoencoderTask
from audiovq.training.folder import open_run, start_accelerator
from audiovq.training.log import RunLog
from audiovq.training.loop import Batch, fit

LINES, VALIDATIONS = 25, 6
"""Points of training and validation curves."""
WATCHED = 6
"""Validation utterances on which the relaxation is looked at."""
CURVES = (
    *("loss", "kl", "kl_weight", "temperature", "perplexity", "gradient_norm", "quantization_error"),
    *("switched", "drift", "spread", "relaxed", "hardened", "mode", "revived_codes"),
)


class BenchTask(AutoencoderTask):
    """Training as `audiovq train` does it, with a look at what a statement is about.

    `watch` says at what: `switching`, how many frames of a batch get another code by the step itself, and how far
    their latents move; or `relaxation`, what a decoder makes of relaxed samples and of the same samples made hard.
    """

    keeps_best = False
    watch: str | None = None

    def update(self, step: int, batch: Batch) -> dict[str, Tensor]:
        bottleneck, looks = self.model.bottleneck, (step + 1) % self.config.training.log_every == 0
        if self.watch != "switching" or not looks or not isinstance(bottleneck, VectorQuantizer):
            return super().update(step, batch)
        before = self._codes(batch[0])
        metrics = super().update(step, batch)
        after = self._codes(batch[0])
        moved = (after[1] - before[1]).square().sum(1).mean()
        spread = (before[1] - before[1].mean((0, 2), keepdim=True)).square().sum(1).mean()
        switched = (after[0] != before[0]).float().mean()
        return {**metrics, "switched": switched, "drift": (moved / spread).sqrt(), "spread": spread.sqrt()}

    @torch.no_grad()
    def _codes(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of a batch, and the latents as they are compared with the codebook."""
        z = self.model.encode(wave)
        projected = self.model.bottleneck.get_submodule("project_in")(z.mT).mT
        return self.model.bottleneck.encode(z)[0], projected

    def validate(self, model: Autoencoder, log: RunLog | None, step: int, brief: bool) -> dict[str, float]:
        metrics = super().validate(model, None, step, brief)
        if self.watch == "relaxation" and isinstance(model.bottleneck, GumbelBottleneck):
            seed_everything(self.config.training.seed, "relaxation", step)
            metrics |= relaxation(model, self.loss, self._some_waves(2 if brief else WATCHED))
        return metrics

    def _some_waves(self, count: int) -> list[Tensor]:
        config = self.config
        most, found = round(config.data.valid_seconds * config.sample_rate), []
        for utterance in evenly_spread(self.valid, count):
            source = utterance.source()
            found.append(source.read(config.sample_rate, 0, min(most, source.length_at(config.sample_rate)))[None])
        return found


@torch.no_grad()
def relaxation(model: Autoencoder, loss: Any, waves: Sequence[Tensor]) -> dict[str, float]:
    """Losses of reconstructions from relaxed samples, from the largest weight of each, and from the mode."""
    bottleneck, sums = model.bottleneck, {"relaxed": 0.0, "hardened": 0.0, "mode": 0.0}
    assert isinstance(bottleneck, GumbelBottleneck)
    settings, bottleneck.config = bottleneck.config, bottleneck.config.model_copy(update={"hard": False})
    with restored(bottleneck):
        for wave in waves:
            z = model.encode(wave)
            bottleneck.train().normalize.eval()
            sample = bottleneck(z)
            assert sample.codes is not None
            shown = {"relaxed": sample.latents, "hardened": bottleneck.decode(sample.codes)}
            shown["mode"] = bottleneck.eval()(z).latents
            for name, latents in shown.items():
                sums[name] += float(loss(model.decode(latents)[..., : wave.shape[-1]], wave)[0].mean())
    bottleneck.config = settings
    return {name: total / len(waves) for name, total in sums.items()}


def train_cell(bench: Bench, cell: Cell) -> dict[str, Any]:
    """Train an autoencoder and measure it; a training that fails, or a rate that is out of reach, is a result, too."""
    settings = cell.settings
    overrides, reason = resolved(bench, settings)
    if reason is not None:
        return {"failed": None, "out_of_reach": reason}
    config = experiment(bench, settings, overrides)
    folder, began, first = bench.run_folder(cell.name), time.process_time(), steps_done(bench.run_folder(cell.name))
    steps = config.training.steps
    found: dict[str, Any] = {"failed": None, "out_of_reach": None, "overrides": overrides, "steps": steps}
    try:
        train(config, folder, settings.get("watch"), settings.get("random_codebook", False))
    except TrainingError as error:
        return found | {"failed": str(error), "curves": curves(folder)}
    each = (time.process_time() - began) / (steps - first) if steps > first else None
    model = load_model(config, folder)
    return found | {
        "made": {"seconds_per_step": each},
        "curves": curves(folder),
        "dev": measured(bench, model, config, "dev", settings, metrics=False),
        "test": measured(bench, model, config, "test", settings, metrics=True),
    }


def resolved(bench: Bench, settings: dict[str, Any]) -> tuple[list[str], str | None]:
    """The overrides of a run: its own, those of the best trial, and the setting that gives the rate that is asked for.

    The second is the reason why there is no such setting.
    """
    overrides = list(settings["overrides"])
    if "tuned" in settings:
        overrides += chosen_trial(bench, settings["tuned"])
    if "moved" in settings:
        name, value = settings["moved"]
        overrides.append(f"{name}={value:g}")
    if "target" in settings:
        target = settings["target"]
        points = [
            (bench.cells.cells[name].settings["moved"], found["dev"]["bits_per_second"][target["measure"]])
            for name in target["curve"]
            if not (found := bench.result(name))["failed"]
        ]
        value = setting_for([(moved[1], rate) for moved, rate in points], target["bits"])
        if value is None:
            rates = [rate for _, rate in points]
            return overrides, f"the curve has {min(rates):.0f} to {max(rates):.0f} bit/s" if rates else "no curve"
        name = bench.cells.cells[target["curve"][0]].settings["moved"][0]
        overrides.append(f"{name}={round(value) if name.endswith('codebook_size') else value}")
    return overrides, None


def chosen_trial(bench: Bench, names: Sequence[str]) -> list[str]:
    """What the trial with the least objective on dev changes: reconstruction loss, and what the rate costs in it."""

    def objective(name: str) -> float:
        found = bench.result(name)
        return math.inf if found["failed"] else found["dev"]["objective"]

    best = min(names, key=objective)
    kind = bench.cells.cells[best].settings["bottleneck"]
    common = len(bench.plan.bottlenecks[kind])
    return bench.cells.cells[best].settings["overrides"][common:]


def setting_for(points: Sequence[tuple[float, float]], rate: float) -> float | None:
    """The setting at which a curve of (setting, rate) has a rate, by logarithms between neighbouring settings.

    The least of several such settings, as a rate may fall again; None if the curve does not come to the rate.
    """
    known = sorted((setting, max(found, 1e-3)) for setting, found in points)
    for (first, before), (second, after) in pairwise(known):
        if min(before, after) <= rate <= max(before, after):
            share = (math.log(rate) - math.log(before)) / ((math.log(after) - math.log(before)) or 1.0)
            return math.exp((1 - share) * math.log(first) + share * math.log(second))
    return None


def experiment(bench: Bench, settings: dict[str, Any], overrides: Sequence[str]) -> ExperimentConfig:
    """The config of a run: as many steps as fit into its time, and schedules as long."""
    kind = settings["bottleneck"]
    common = [f"bottleneck.type={kind}", *overrides, f"training.seed={settings['seed']}"]
    config = bench.load(common)
    first, further = settings["speed"]
    samples = getattr(config.bottleneck, "samples", 1)
    steps = max(2, round(settings["seconds"] / (first + further * (samples - 1))))
    common += [f"training.steps={steps}", f"training.warmup_steps={min(config.training.warmup_steps, steps // 10)}"]
    common += [f"training.log_every={max(1, steps // LINES)}", f"training.valid_every={max(1, steps // VALIDATIONS)}"]
    common += [f"training.valid_utterances={settings['utterances']}", f"data.valid_seconds={settings['seconds_each']}"]
    if kind == "gumbel":
        common.append(f"bottleneck.anneal_steps={steps}")
    return bench.load(common)


def train(config: ExperimentConfig, folder: Path, watch: str | None, random_codebook: bool) -> None:
    """Train in a folder, or go on there.

    Args:
        random_codebook: the first codebook is drawn from a normal distribution, instead of placed on latents.
    """
    task, accelerator = make_task(config, folder / "release")
    task.watch = watch
    if random_codebook:
        assert isinstance(task.model.bottleneck, VectorQuantizer)
        task.model.bottleneck.initialized.fill_(True)
    record = {"config": config.model_dump(mode="json"), "data": {}}
    with open_run(folder, record, accelerator, force=False) as run:
        fit(accelerator, task, config.training, run)


def make_task(config: ExperimentConfig, released: Path, kind: type[AutoencoderTask] = BenchTask) -> tuple[Any, Any]:
    """A task, and the accelerator that it runs on."""
    accelerator = start_accelerator("cpu", config.training)
    paths = (config.data.train_manifests[0], config.data.valid_manifests[0])
    train, valid = ({path: read_manifest(path)} for path in paths)
    return kind(config, train, valid, accelerator, released), accelerator


def steps_done(folder: Path) -> int:
    """Steps of an interrupted run that its last checkpoint holds; 0 if it has none."""
    log = folder / "metrics.jsonl"
    if not (folder / "state.safetensors").exists() or not log.exists():
        return 0
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return max((line["step"] for line in lines if line["part"] == "valid"), default=0)


def load_model(config: ExperimentConfig, folder: Path) -> Autoencoder:
    """The released model of a run, in evaluation."""
    model = Autoencoder(config.model_part())
    model.load_state_dict(load_file(folder / "release" / "model.safetensors"))
    return model.eval()


@torch.no_grad()
def measured(
    bench: Bench,
    model: Autoencoder,
    config: ExperimentConfig,
    split: str,
    settings: dict[str, Any],
    metrics: bool,
) -> dict[str, Any]:
    """Reconstruction, rate and use of the latents on one split, with the mode or mean of the posterior.

    Metrics of reconstructions from samples of the posterior stand beside them, `sampled`.
    """
    seed_everything("measure")
    hop, frame_rate = config.hop_length, config.frame_rate
    loss = build_loss(config.loss, config.sample_rate)
    waves = read_waves(bench, split, settings["utterances"], settings["seconds_each"], hop)
    latents = [model.encode(wave).float() for wave in waves]
    used = usage(model.bottleneck, torch.cat(latents, dim=-1))

    def utterance_loss(number: int, changed: Tensor) -> float:
        seed_everything("decode", number)  # The decoder's noise is the same for all latents.
        return float(loss(model.decode(changed), waves[number])[0])

    gap = latent_gap(model.bottleneck, latents, utterance_loss)
    nats = {
        "kl": used.kl,
        "information": used.information,
        "entropy": math.log(used.perplexity) if used.perplexity else None,
    }
    # What a nat costs in training; a quantizer pays nothing for its rate.
    weight = getattr(config.bottleneck, "kl_weight", 0.0)
    found: dict[str, Any] = {
        "objective": gap.true + weight * (used.kl or 0.0),
        "usage": asdict(used),
        "gap": {**asdict(gap), "gap": gap.gap},
        "bits_per_second": {
            name: None if value is None else bits_per_second(value, frame_rate) for name, value in nats.items()
        },
    }
    if metrics:
        shown = [model.bottleneck(z).latents for z in latents]
        found["metrics"] = scores(model, waves, shown, config.sample_rate)
        if has_samples(config.bottleneck.type, settings):
            samples = [drawn(model.bottleneck, z) for z in latents]
            found["sampled"] = scores(model, waves, samples, config.sample_rate)
    return found


def scores(
    model: Autoencoder, waves: Sequence[Tensor], latents: Sequence[Tensor], rate: int
) -> dict[str, float | None]:
    """Mean of each metric over utterances, decoded from what the decoder sees of each."""
    found = [measure(wave[0], model.decode(shown)[0], rate) for wave, shown in zip(waves, latents, strict=True)]
    return {name: summarize(score[name] for score in found).mean for name in METRICS}


def curves(folder: Path) -> dict[str, dict[str, list[float]]]:
    """What a run has logged, by part (train, valid) and quantity; `step` counts."""
    log = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    found: dict[str, dict[str, list[float]]] = {}
    for part in ("train", "valid"):
        chosen = [line for line in lines if line["part"] == part]
        names = [name for name in CURVES if chosen and name in chosen[-1]]
        chosen = [line for line in chosen if all(name in line for name in names)]
        found[part] = {name: [line[name] for line in chosen] for name in ("step", *names)}
    return found
