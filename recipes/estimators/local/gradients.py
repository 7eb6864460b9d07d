"""Statistics of gradients in trained models of the bench, all with the same batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from estimates import (
    Cost,
    GradientStatistics,
    OneLatent,
    encoder_gradient,
    gradient_statistics,
)
from grid import FAILED, Bench, Run
from safetensors.torch import load_file
from torch import Tensor

from audiovq.bottlenecks.reinforce import ReinforceBottleneck
from audiovq.config import ExperimentConfig, GumbelConfig, ReinforceConfig
from audiovq.data.crops import CropSampler
from audiovq.data.manifest import read_manifest
from audiovq.devices import seed_everything
from audiovq.losses.reconstruction import ReconstructionLoss
from audiovq.models.autoencoder import Autoencoder

BATCH, CROP_SECONDS = 4, 0.5
"""The fixed batch."""


def own_gradients(bench: Bench) -> list[dict[str, Any]]:
    """The whole encoder's gradient: each bottleneck of the first seed, with its own trained parameters."""
    found = []
    for run in bench.runs()[: len(bench.grid.bottlenecks)]:
        if (run.folder / FAILED).exists():
            continue
        model, (cost, wave) = load_run(run), problem(run.config)
        warm_up(model, cost, wave)
        found.append({"bottleneck": run.kind, "gradient": encoder_statistics(model, cost, wave, bench)})
        print(f"gradient of {run.name}: variance {found[-1]['gradient']['variance']:.3g}", flush=True)
    return found


def estimator_gradients(bench: Bench) -> list[dict[str, Any]]:
    """Every estimator for a categorical posterior, all with the parameters of the trained `gumbel` of the first seed.

    Of the whole encoder's gradient, where all frames are sampled, and of that with respect to one frame, where the
    exact gradient is known.
    """
    gumbel = next(run for run in bench.runs() if run.kind == "gumbel")
    weights = load_run(gumbel).state_dict()
    cost, wave = problem(gumbel.config)
    found, exact = [], None
    for name, bottleneck in estimators(gumbel.config, bench.grid.gradients.temperatures).items():
        model = Autoencoder(gumbel.config.model_part().model_copy(update={"bottleneck": bottleneck}))
        model.load_state_dict(weights, strict=False)  # REINFORCE has a moving average beside them.
        warm_up(model, cost, wave)
        latent = OneLatent(model, cost, wave, frame=wave.shape[-1] // model.hop_length // 2)
        exact = latent.exact() if exact is None else exact
        one = gradient_statistics(latent.draw, bench.grid.gradients.one_latent_draws, exact)
        whole = encoder_statistics(model, cost, wave, bench)
        found.append({"estimator": name, "bottleneck": bottleneck.model_dump(), "one": as_data(one), "all": whole})
        print(f"{name}: bias {one.bias:.3g}, variance {one.variance:.3g}", flush=True)
    return found


def estimators(config: ExperimentConfig, temperatures: Sequence[float]) -> dict[str, ReinforceConfig | GumbelConfig]:
    """The bottlenecks to compare, by name, with as many codes as the bench's."""
    codes = {"codebook_size": config.model_dump()["bottleneck"]["codebook_size"]}
    baselines = {"none": "no baseline", "moving_average": "moving average", "leave_one_out": "leave-one-out"}
    found: dict[str, ReinforceConfig | GumbelConfig] = {
        f"REINFORCE, {title}": ReinforceConfig.model_validate({**codes, "baseline": baseline})
        for baseline, title in baselines.items()
    }
    for hard, title in ((False, "relaxed"), (True, "straight-through")):
        for t in temperatures:
            settings = GumbelConfig(**codes, start_temperature=t, end_temperature=t, hard=hard)
            found[f"Gumbel-Softmax, {title}, temperature {t:g}"] = settings
    return found


def problem(config: ExperimentConfig) -> tuple[Cost, Tensor]:
    """The training's reconstruction loss, and a fixed batch of training crops."""
    loss = ReconstructionLoss(config.loss, config.sample_rate)
    length = round(CROP_SECONDS * config.frame_rate) * config.hop_length
    sampler = CropSampler(read_manifest(config.data.train_manifests[0]), config.sample_rate, length, BATCH, seed=0)
    return lambda y, x: loss(y, x)[0], sampler.batch(0).wave


def encoder_statistics(model: Autoencoder, cost: Cost, wave: Tensor, bench: Bench) -> dict[str, Any]:
    """Statistics of the whole encoder's gradient, with the same random numbers for all models."""
    seed_everything("gradients")
    model.train()
    return as_data(gradient_statistics(lambda: encoder_gradient(model, cost, wave), bench.grid.gradients.draws))


@torch.no_grad()
def warm_up(model: Autoencoder, cost: Cost, wave: Tensor) -> None:
    """Give REINFORCE's moving average what it would have after many steps: the mean cost of sampled codes."""
    if isinstance(model.bottleneck, ReinforceBottleneck):
        output = model.train()(wave)
        model.bottleneck.cost_sum.fill_(cost(output.wave, wave.repeat(output.bottleneck.samples, 1, 1)).mean())
        model.bottleneck.cost_weight.fill_(1)


def as_data(statistics: GradientStatistics) -> dict[str, Any]:
    """Plain data, with what is derived."""
    return {**asdict(statistics), "snr": statistics.snr, "variance_seconds": statistics.variance_seconds}


def load_run(run: Run) -> Autoencoder:
    """The released model of a run, the best on the validation set."""
    model = Autoencoder(run.config.model_part())
    model.load_state_dict(load_file(run.folder / "release" / "model.safetensors"))
    return model
