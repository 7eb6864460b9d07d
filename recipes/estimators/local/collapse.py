"""Experiments 5 and 6: an autoregressive decoder that sees more or less of the waveform's past.

    -log p(x|z) = sum over samples t of -log Laplace(x_t; m_t, b_t),    (m_t, b_t) = decoder(z, x_{t-1} ... x_{t-C})

The past is the true one, in training and evaluation (teacher forcing). With C = 0 all that the decoder knows comes
through the latents; the larger C, the less they are needed. With the KL divergence at weight 1, the loss is the
negative ELBO in nats, and nothing but the ELBO decides whether the latents are used.

The plan gives the model an encoder of the waveform. The bench's own begins with a spectrum, so that its latents say
something before the decoder has learned anything, and a race between the two cannot be lost.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from cell_list import Cell
from cells import Bench
from data import read_waves
from diagnostics import latent_gap, usage
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from training import curves, steps_done

from audiovq.batching import evenly_spread
from audiovq.bottlenecks.batch_norm import BatchNorm
from audiovq.config import ExperimentConfig
from audiovq.data.crops import CropSampler
from audiovq.data.manifest import read_manifest
from audiovq.devices import seed_everything
from audiovq.errors import TrainingError
from audiovq.files import atomic_path
from audiovq.nn.conv import CausalConv1d, CausalConvTranspose1d, CausalSequential, ResidualUnit, activate
from audiovq.training.folder import open_run
from audiovq.training.log import RunLog
from audiovq.training.loop import Batch, Task, fit
from audiovq.training.optimization import build_optimizer, descend

CHANNELS, UNITS, KERNEL = 24, 5, 4
SMALLEST_SCALE = 1e-3
"""Of the Laplace distribution: a floor of -54 dB, without which digital silence would have infinite density."""
WEIGHTS = "model.safetensors"


class ContextModel(nn.Module):
    """An encoder and a bottleneck with a decoder that sees a context of 4 ** units samples (none for 0).

    The number of residual units is always the same; those beyond the context have a kernel of one sample.

    Args:
        normalized: latents pass batch normalisation before the bottleneck, as they do within `gumbel` and `reinforce`.
    """

    def __init__(self, config: ExperimentConfig, units: int, normalized: bool):
        super().__init__()
        self.hop_length = config.hop_length
        self.encoder = config.encoder.build(config)
        self.normalize = BatchNorm(config.latent_dim) if normalized else nn.Identity()
        self.bottleneck = config.bottleneck.build(config)
        self.upsample = CausalConvTranspose1d(config.latent_dim, CHANNELS, config.hop_length)
        self.past = CausalConv1d(1, CHANNELS, KERNEL) if units else None
        self.units = CausalSequential(
            ResidualUnit(CHANNELS, *((KERNEL, KERNEL**i) if i < units else (1, 1))) for i in range(1, UNITS)
        )
        self.head = CausalConv1d(CHANNELS, 2, 1)

    def encode(self, wave: Tensor) -> Tensor:
        """Latents as the bottleneck gets them: [B, 1, F * hop_length] -> [B, D, F]."""
        return self.normalize(self.encoder(wave))

    def distribution(self, latents: Tensor, wave: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale of the Laplace distribution of each sample: latents [B, D, F], wave [B, 1, F * hop_length]."""
        h = self.upsample(latents)
        if self.past is not None:
            h = h + self.past(F.pad(wave, (1, 0))[..., :-1])
        mean, raw = self.head(activate(self.units(h))).chunk(2, dim=1)
        return mean, SMALLEST_SCALE + 0.1 * F.softplus(raw)

    def nll(self, latents: Tensor, wave: Tensor) -> Tensor:
        """-log p(x|z) in nats per frame, a mean over frames: latents [B, D, F], wave [B, 1, F * hop_length] -> [B]."""
        mean, scale = self.distribution(latents, wave)
        nll = (2 * scale).log() + (wave - mean).abs() / scale
        return nll.mean((1, 2)) * self.hop_length


def context_samples(units: int) -> int:
    """Samples of the past that the decoder sees."""
    return KERNEL**units if units else 0


def whole_frames(wave: Tensor, hop_length: int) -> Tensor:
    """A waveform without the rest after its last whole frame."""
    return wave[..., : wave.shape[-1] // hop_length * hop_length]


def context_cell(bench: Bench, cell: Cell) -> dict[str, Any]:
    """Train one model and measure whether its decoder uses the latents."""
    settings, folder = cell.settings, bench.run_folder(cell.name)
    config, units, normalized = context_config(bench, settings), settings["units"], settings["normalized"]
    found: dict[str, Any] = {"failed": None, "context": context_samples(units)}
    began, first = time.process_time(), steps_done(folder)
    try:
        train_context(config, units, normalized, folder)
    except TrainingError as error:
        return found | {"failed": str(error), "curves": curves(folder)}
    steps = config.training.steps
    each = (time.process_time() - began) / (steps - first) if steps > first else None
    model = ContextModel(config, units, normalized)
    model.load_state_dict(load_file(folder / WEIGHTS))
    model.eval()
    waves = read_waves(bench, "test", settings["utterances"], settings["seconds_each"], config.hop_length)
    with torch.no_grad():
        latents = [model.encode(wave) for wave in waves]
        gap = latent_gap(model.bottleneck, latents, lambda i, z: float(model.nll(z, waves[i])))
        used = usage(model.bottleneck, torch.cat(latents, dim=-1))
    return found | {
        "made": {"seconds_per_step": each},
        "curves": curves(folder),
        "usage": asdict(used),
        "gap": {**asdict(gap), "gap": gap.gap},
    }


def context_config(bench: Bench, settings: dict[str, Any]) -> ExperimentConfig:
    """The bench's config with the plan's changes and no look-ahead: a latent stands for the frame that it saw."""
    kind, steps = settings["bottleneck"], settings["steps"]
    common = [f"bottleneck.type={kind}", *settings["overrides"], f"training.seed={settings['seed']}"]
    common += [f"training.steps={steps}", "encoder.look_ahead=0"]
    if kind == "gumbel":
        common.append(f"bottleneck.anneal_steps={steps}")
    config = bench.load(common)
    if kind == "gaussian" and settings["share_free_nats"]:
        free, dims = config.bottleneck.free_nats, config.bottleneck.code_dim or config.latent_dim  # type: ignore[union-attr]
        config = bench.load([*common, f"bottleneck.free_nats={free / dims}"])
    return config


def train_context(config: ExperimentConfig, units: int, normalized: bool, folder: Path) -> None:
    """Train one model, or go on with it."""
    accelerator = Accelerator(cpu=True)
    record = {"config": config.model_dump(mode="json"), "data": {}}
    task = ContextTask(config, units, normalized, folder, accelerator)
    with open_run(folder, record, accelerator, force=False) as run:
        fit(accelerator, task, config.training, run)


class ContextTask(Task[ContextModel]):
    """A context model under its negative log-likelihood and the bottleneck's loss."""

    keeps_best = False

    def __init__(self, config: ExperimentConfig, units: int, normalized: bool, folder: Path, accelerator: Accelerator):
        self.config, self.folder, self.accelerator = config, folder, accelerator
        settings = config.training
        train, self.valid = read_manifest(config.data.train_manifests[0]), read_manifest(config.data.valid_manifests[0])
        seed_everything(settings.seed, "model")
        self.model = ContextModel(config, units, normalized)
        self.modules = {"model": self.model}
        self.optimizers = {"generator": build_optimizer(self.model, settings)}
        crop = math.ceil(config.data.crop_seconds * config.frame_rate) * config.hop_length
        self.sampler = CropSampler(train, config.sample_rate, crop, config.data.batch_size, settings.seed)
        self.audio_seconds = crop / config.sample_rate * config.data.batch_size
        self.workers = config.data.workers

    def batch(self, index: int) -> Batch:
        return (self.sampler.batch(index).wave,)

    def update(self, step: int, batch: Batch) -> dict[str, Tensor]:
        model, (wave,) = self.model.train(), batch
        model.bottleneck.set_step(step)
        output = model.bottleneck(model.encode(wave))
        costs = model.nll(output.latents, wave.repeat(output.samples, 1, 1))
        nll = costs.mean()
        surrogate = model.bottleneck.surrogate_loss(output, costs)
        # In nats per sample, so that gradients have the size that clipping expects.
        loss = (nll + output.loss + surrogate) / self.config.hop_length
        norm = descend(self.accelerator, loss, model, self.optimizers["generator"], self.config.training.clip_norm)
        return {"loss": loss.detach(), "nll": nll.detach(), **output.metrics, "gradient_norm": norm}

    @torch.no_grad()
    def validate(self, model: ContextModel, log: RunLog | None, step: int, brief: bool) -> dict[str, float]:
        model.eval()
        losses = []
        for utterance in evenly_spread(self.valid, 1 if brief else self.config.training.valid_utterances):
            wave = utterance.source().read(self.config.sample_rate)
            wave = whole_frames(wave, self.config.hop_length)[None]
            output = model.bottleneck(model.encode(wave))
            losses.append(float(model.nll(output.latents, wave) + output.loss))
        return {"loss": sum(losses) / len(losses)}

    def release(self, model: ContextModel) -> None:
        with atomic_path(self.folder / WEIGHTS) as path:
            save_file(model.state_dict(), path)
