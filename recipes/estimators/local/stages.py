"""Experiment 9: a prior trained after the autoencoder, as VQ-VAE does, or with it, its cross-entropy in the loss."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from cell_list import Cell
from cells import Bench
from data import whole
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from training import BenchTask, curves, experiment, load_model, make_task, measured, steps_done

from audiovq.bottlenecks.base import bits_per_second
from audiovq.bottlenecks.vq import VectorQuantizer
from audiovq.config import CodesConfig, ExperimentConfig, PriorConfig, TrainingConfig
from audiovq.data.manifest import read_manifest
from audiovq.devices import derive_seed, seed_everything
from audiovq.errors import TrainingError
from audiovq.files import atomic_path
from audiovq.models.autoencoder import Autoencoder
from audiovq.models.prior import PriorNetwork
from audiovq.training.autoencoder import true_waves
from audiovq.training.folder import open_run
from audiovq.training.log import RunLog
from audiovq.training.loop import Batch, Task, fit
from audiovq.training.optimization import build_optimizer, descend

PRIOR = "prior.safetensors"
CROP_FRAMES, BATCH = 50, 8
"""Codes that a prior sees in a step: as many as when it is trained with the autoencoder."""
LEARNING_RATE = 2e-3


def stages_cell(bench: Bench, cell: Cell) -> dict[str, Any]:
    """Train an autoencoder, with or without a prior in its loss, then a prior for its codes; rate and quality."""
    settings, folder = cell.settings, bench.run_folder(cell.name)
    overrides = list(settings["overrides"])
    if settings["bottleneck"] == "gumbel":  # The prior takes the place of the uniform one at the same price.
        overrides.append(f"bottleneck.kl_weight={settings['weight']}")
    config, joint = experiment(bench, settings, overrides), settings["way"] == "joint"
    began, first = time.process_time(), steps_done(folder)
    try:
        train_stage(config, folder, settings if joint else None)
    except TrainingError as error:
        return {"failed": str(error), "curves": curves(folder)}
    steps = config.training.steps
    each = (time.process_time() - began) / (steps - first) if steps > first else None
    model = load_model(config, folder)
    codes = {split: codes_of(bench, model, config, split) for split in ("train", "dev", "test")}
    after = train_prior(settings, config, codes["train"], codes["dev"], folder / "prior")
    found = {
        "failed": None,
        "made": {"seconds_per_step": each},
        "curves": curves(folder),
        "test": measured(bench, model, config, "test", settings, metrics=True),
        "prior_after": rate(after, codes["test"], config.frame_rate),
        "prior_joint": None,
    }
    if joint:
        own = build_prior(settings["prior"], config)
        own.load_state_dict(load_file(folder / PRIOR))
        found["prior_joint"] = rate(own, codes["test"], config.frame_rate)
    return found


def train_stage(config: ExperimentConfig, folder: Path, joint: dict[str, Any] | None) -> None:
    """Train the autoencoder, or go on with it."""
    task, accelerator = make_task(config, folder / "release", BenchTask if joint is None else JointTask)
    if joint is not None:
        task.join(joint)
    record = {"config": config.model_dump(mode="json"), "data": {}}
    with open_run(folder, record, accelerator, force=False) as run:
        fit(accelerator, task, config.training, run)


def build_prior(settings: dict[str, Any], config: ExperimentConfig) -> PriorNetwork:
    """A small WaveNet over the codes of a model."""
    size = config.bottleneck.model_dump()["codebook_size"]
    codes = CodesConfig(
        weights_sha256="", sample_rate=config.sample_rate, hop_length=config.hop_length, frame_rate=config.frame_rate,
        num_codebooks=1, codebook_size=size,
    )  # fmt: skip
    whole_numbers = {name: value if name == "dropout" else int(value) for name, value in settings.items()}
    return PriorNetwork(PriorConfig.model_validate({**whole_numbers, "speaker_dim": 0, "codes": codes}))


def predict(
    prior: nn.Module, codes: Int[Tensor, "batch 1 frames"], silence: int
) -> Float[Tensor, "batch frames codes"]:
    """log p(k_t | k_1 ... k_{t-1}) of all codes k_t."""
    logits = prior(F.pad(codes, (1, 0), value=silence))
    return logits[:, 0].mT.float().log_softmax(-1)


class JointTask(BenchTask):
    """One stage: the prior p learns the codes k of each batch, and the encoder to choose codes that p expects.

        L = reconstruction + bottleneck + sum_t -log p(k_t | k_<t) + w * sum_t E_q(k|x_t)[-sg log p(k | k_<t)]

    The third term trains the prior alone, the fourth the encoder alone; q is the posterior of a categorical
    bottleneck, and for `vq`, which has none, the softmax over squared distances at a temperature.
    """

    def join(self, settings: dict[str, Any]) -> None:
        """Add a prior to what is trained."""
        self.joint = settings
        seed_everything(self.config.training.seed, "prior")
        self.prior = build_prior(settings["prior"], self.config)
        self.modules["prior"] = self.prior
        self.optimizers = {"generator": build_optimizer(nn.ModuleList(self.modules.values()), self.config.training)}
        self._projected: Tensor | None = None
        projection = self.model.bottleneck.get_submodule("project_in")
        projection.register_forward_hook(lambda _module, _inputs, output: setattr(self, "_projected", output))

    def update(self, step: int, batch: Batch) -> dict[str, Tensor]:
        output = self.run(step, batch)
        reconstruction, terms = self.loss(output.prediction, true_waves(batch, output))
        codes = output.bottleneck.codes
        assert codes is not None
        assert self._projected is not None
        log_p = predict(self.networks["prior"].train(), codes, self.prior.silence)
        nats = -log_p.gather(-1, codes.mT).mean()
        expected = -(self.log_posterior(self._projected).exp() * log_p.detach()).sum(-1).mean()
        total = reconstruction.mean() + nats + self.joint["weight"] * expected
        return {**self.descend(output, reconstruction, total, terms), "prior": nats.detach()}

    def log_posterior(self, projected: Float[Tensor, "batch frames dim"]) -> Float[Tensor, "batch frames codes"]:
        """log q(k|x) of what the bottleneck's projection gives."""
        bottleneck = self.model.bottleneck
        if not isinstance(bottleneck, VectorQuantizer):
            return projected.log_softmax(-1)
        squared = (projected[:, :, None] - bottleneck.codes().detach()).square().sum(-1)
        return (-squared / self.joint["temperature"]).log_softmax(-1)

    def release(self, model: Autoencoder) -> None:
        super().release(model)
        with atomic_path(self.released.parent / PRIOR) as path:
            save_file(self.prior.state_dict(), path)


@torch.no_grad()
def codes_of(bench: Bench, model: Autoencoder, config: ExperimentConfig, split: str) -> list[Int[Tensor, "1 frames"]]:
    """Codes of all utterances of a split."""
    waves = (whole(utterance, config.sample_rate) for utterance in read_manifest(bench.manifest(split)))
    return [model.bottleneck.encode(model.encode(wave).float())[0][0] for wave in waves]


def train_prior(
    settings: dict[str, Any],
    config: ExperimentConfig,
    train: Sequence[Int[Tensor, "1 frames"]],
    valid: Sequence[Int[Tensor, "1 frames"]],
    folder: Path,
) -> PriorNetwork:
    """Train a prior on codes that stay as they are, or go on with it."""
    steps = int(settings["prior_steps"])
    warmup = min(50, steps // 10)
    training = TrainingConfig(
        steps=steps, learning_rate=LEARNING_RATE, warmup_steps=warmup, valid_every=steps, seed=settings["seed"]
    )
    accelerator = Accelerator(cpu=True)
    seed_everything(training.seed, "prior")
    task = PriorTask(build_prior(settings["prior"], config), train, valid, training, folder, accelerator)
    with open_run(folder, {"config": training.model_dump(), "data": {}}, accelerator, force=False) as run:
        fit(accelerator, task, training, run)
    prior = build_prior(settings["prior"], config)
    prior.load_state_dict(load_file(folder / PRIOR))
    return prior.eval()


class PriorTask(Task[PriorNetwork]):
    """A prior over codes in memory, in crops."""

    def __init__(
        self,
        prior: PriorNetwork,
        train: Sequence[Int[Tensor, "1 frames"]],
        valid: Sequence[Int[Tensor, "1 frames"]],
        training: TrainingConfig,
        folder: Path,
        accelerator: Accelerator,
    ):
        self.train, self.valid, self.training, self.folder = train, valid, training, folder
        self.accelerator = accelerator
        self.model, self.modules = prior, {"model": prior}
        self.optimizers = {"generator": build_optimizer(prior, training)}
        self.audio_seconds = 1.0 * BATCH

    def batch(self, index: int) -> Batch:
        generator = np.random.default_rng(derive_seed(self.training.seed, "codes", index))
        lengths = np.array([codes.shape[-1] for codes in self.train])
        found = []
        for number in generator.choice(len(lengths), BATCH, p=lengths / lengths.sum()):
            start = generator.integers(max(1, lengths[number] - CROP_FRAMES + 1))
            crop = self.train[number][:, start : start + CROP_FRAMES]
            found.append(F.pad(crop, (CROP_FRAMES - crop.shape[-1], 0), value=self.model.silence))
        return (torch.stack(found),)

    def update(self, step: int, batch: Batch) -> dict[str, Tensor]:
        (codes,), network = batch, self.networks["model"].train()
        log_p = predict(network, codes, self.model.silence)
        loss = F.nll_loss(log_p.mT, codes[:, 0], ignore_index=self.model.silence)
        norm = descend(self.accelerator, loss, network, self.optimizers["generator"], self.training.clip_norm)
        return {"loss": loss.detach(), "gradient_norm": norm}

    def validate(self, model: PriorNetwork, log: RunLog | None, step: int, brief: bool) -> dict[str, float]:
        return {"loss": rate(model.eval(), self.valid[:2] if brief else self.valid, 1.0)}

    def release(self, model: PriorNetwork) -> None:
        with atomic_path(self.folder / PRIOR) as path:
            save_file(model.state_dict(), path)


@torch.no_grad()
def rate(prior: PriorNetwork, codes: Sequence[Int[Tensor, "1 frames"]], frame_rate: float) -> float:
    """Bits a second that codes of whole utterances take under a prior."""
    prior.eval()
    nats = sum(-float(prior.log_prob(book[None]).double().sum()) for book in codes)
    return bits_per_second(nats / sum(book.shape[-1] for book in codes), frame_rate)
