"""Stage 1: train encoder, bottleneck and decoder on audio crops, validate on the first seconds of utterances."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from audiovq.batching import evenly_spread
from audiovq.config import AutoencoderConfig, ExperimentConfig
from audiovq.data.crops import CropSampler
from audiovq.data.manifest import Utterance
from audiovq.data.sources import read_utterances, utterances_digest
from audiovq.devices import seed_everything
from audiovq.distributed import is_first_process
from audiovq.errors import ConfigError
from audiovq.losses.distillation import cosine_distance
from audiovq.losses.reconstruction import build_loss
from audiovq.models import release
from audiovq.models.autoencoder import Autoencoder, AutoencoderOutput
from audiovq.models.tokenizer import AudioTokenizer
from audiovq.storage import AnyPath
from audiovq.text import one_line, printable
from audiovq.training.averaging import SETTLING_BATCHES, settle_bottleneck
from audiovq.training.folder import RELEASE, STATE, flatten, open_run, start_accelerator
from audiovq.training.log import RunLog
from audiovq.training.loop import Batch, Task, fit
from audiovq.training.optimization import build_optimizer, descend
from audiovq.training.speakers import speaker_numbers, with_known_speakers, with_speakers
from audiovq.training.state import Progress, read_run_record
from audiovq.training.targets import Manifests, PitchTargets, TeacherTargets
from audiovq.training.validation import validate_autoencoder


def train_autoencoder(
    config: ExperimentConfig, output: str | Path, device: str = "auto", force: bool = False
) -> Progress:
    """Train a tokenizer, or go on with the run that `output` holds.

    `output` receives `config.yaml`, `state.safetensors` (the last state), `release/` (the best model so far, as
    `AudioTokenizer.from_pretrained` reads it), `metrics.jsonl` and, if TensorBoard is installed, `tensorboard/`.

    Args:
        force: start anew; the run that `output` holds is removed once the new one has shown that it can begin.

    Raises:
        ConfigError: `output` holds a run with another config or other data, or there is no such device, or the config
            is not that of the release to start from.
        ManifestError, AudioError: the data cannot be used.
        SpeakerError: the decoder is to be told who speaks, and the data do not say it, or tell of an unknown speaker.
        OutputExistsError: another process trains there, or `output` holds files that audiovq did not write.
        CheckpointError: the state, the release to start from or the teacher is damaged.
        Stopped: SIGTERM or SIGINT arrived; the state was saved first.
    """
    train = {path: _read(path) for path in config.data.train_manifests}
    valid = {path: _read(path) for path in config.data.valid_manifests}
    start, state, speakers = None, Path(output) / STATE, []
    if config.training.init_from is not None and (force or not state.exists()):
        start = release.load_network(config.training.init_from, None, AutoencoderConfig, Autoencoder)
        speakers = start[0].speakers
    elif config.training.init_from is not None:  # The release may be there no more; the run has its speakers.
        speakers = read_run_record(state)["config"].get("decoder", {}).get("speakers", [])
    if "decoder" in config.training.init_parts:  # A new decoder is told those of the training data.
        config = with_known_speakers(config, speakers)
    config = with_speakers(config, train, valid)
    if start is not None:
        check_same_model(config, start[0])
    accelerator = start_accelerator(device, config.training)
    kind = AutoencoderTask
    if config.adversarial is not None:
        from audiovq.training.adversarial import AdversarialTask as kind
    task = kind(config, train, valid, accelerator, Path(output) / RELEASE)
    if start is not None:
        for name in config.training.init_parts:
            task.model.get_submodule(name).load_state_dict(start[1].get_submodule(name).state_dict())
    parts = {"data.train": train, "data.valid": valid}
    data = {name: [utterances_digest(*each) for each in part.items()] for name, part in parts.items()}
    with open_run(output, {"config": config.model_dump(mode="json"), "data": data}, accelerator, force) as folder:
        return fit(accelerator, task, config.training, folder)


def _read(path: AnyPath) -> list[Utterance]:
    """The utterances of an input; what cannot be used is named on standard error."""
    utterances, left_out = read_utterances(path)
    if is_first_process():
        for item in left_out:
            print(f"left out of {printable(str(path))}: {one_line(f'{item.item}: {item.detail}')}", file=sys.stderr)
    return utterances


class AutoencoderTask(Task[Autoencoder]):
    """Encoder, bottleneck and decoder under a reconstruction loss and the bottleneck's own."""

    def __init__(
        self,
        config: ExperimentConfig,
        train: Manifests,
        valid: Manifests,
        accelerator: Accelerator,
        released: Path,
    ):
        self.config, self.accelerator, self.released = config, accelerator, released
        self.valid = [utterance for part in valid.values() for utterance in part]
        settings, data = config.training, config.data
        seed_everything(settings.seed, "model")
        self.model = Autoencoder(config.model_part())
        self.frozen = [self.model.get_submodule(name) for name in settings.freeze]
        for part in self.frozen:
            part.requires_grad_(False)
        self.modules = {"model": self.model}
        self.loss = build_loss(config.loss, config.sample_rate).to(accelerator.device)
        crop_samples = -(-round(data.crop_seconds * config.sample_rate) // config.hop_length) * config.hop_length
        self.sampler = CropSampler(
            [utterance for part in train.values() for utterance in part],
            config.sample_rate,
            crop_samples,
            data.batch_size,
            settings.seed,
            crop_weights(train.values(), data.shares),
            data.augmentation,
        )
        if data.memory_gib:
            self.sampler.keep_in_memory(data.memory_gib, data.workers, accelerator.device)
        self.pitch = (
            PitchTargets(self.model, self.sampler, train, data.pitch) if self.model.decoder.wants_pitch else None
        )
        self.teacher = None
        if data.teacher is not None:
            self.teacher = TeacherTargets(config.hop_length, self.sampler, train, data.teacher, accelerator.device)
            seed_everything(settings.seed, "teacher")
            self.modules["teacher"] = nn.Linear(config.latent_dim, self.teacher.dim)
        self.optimizers = {"generator": build_optimizer(nn.ModuleList(self.modules.values()), settings)}
        told = {"speaker": config.speakers, "f0": self.pitch, "teacher": self.teacher}
        self.inputs = ["wave", *(name for name, given in told.items() if given)]
        self.audio_seconds = crop_samples / config.sample_rate * data.batch_size * accelerator.num_processes
        self.workers = data.workers

    def batch(self, index: int) -> Batch:
        crops = self.sampler.batch(index)
        names = [self.sampler.utterances[number].speaker for number in crops.numbers]
        targets = [known.of(crops) if known else None for known in (self.pitch, self.teacher)]
        found = (crops.wave, speaker_numbers(names, self.config), *targets)
        return tuple(tensor for tensor in found if tensor is not None)

    def update(self, step: int, batch: Batch) -> dict[str, Tensor]:
        output = self.run(step, batch)
        reconstruction, terms = self.loss(output.prediction, true_waves(batch, output))
        return self.descend(output, reconstruction, reconstruction.mean(), terms)

    def run(self, step: int, batch: Batch) -> AutoencoderOutput:
        """The network's output for a training batch."""
        self.networks["model"].train()
        for part in self.frozen:
            part.eval()  # Its statistics stay as they are, too.
        if "bottleneck" in self.config.training.freeze:
            self.model.bottleneck.hold_statistics()
        self.model.bottleneck.set_step(step)
        told = dict(zip(self.inputs, batch, strict=True))
        features = told.pop("teacher", None)
        with self.accelerator.autocast():
            output = self.networks["model"](**told)
        if features is not None:
            heard, first = output.bottleneck.latents, output.bottleneck.first
            heard = first if first is not None and self.config.loss.distilled == "first" else heard
            output.terms["distill"] = cosine_distance(self.networks["teacher"](heard.mT), features)
        return output

    def descend(
        self,
        output: AutoencoderOutput,
        reconstruction: Float[Tensor, " batch"],
        total: Tensor,
        terms: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """One step down a loss of the waves, to which the bottleneck's loss and the network's terms are added."""
        network = torch.zeros_like(reconstruction) + self.config.loss.of_network(output.terms)
        total = total + network.mean() + self.config.loss.bottleneck * output.bottleneck.loss
        # What is sampled answers for all that the decoder's loss depends on.
        total = total + self.model.bottleneck.surrogate_loss(output.bottleneck, reconstruction + network)
        norm = self.step("generator", total, self.networks["model"])
        return {
            "loss": total.detach(),
            **terms,
            "bottleneck": output.bottleneck.loss.detach(),
            **{name: value.detach().mean() for name, value in output.terms.items()},
            **output.bottleneck.metrics,
            "gradient_norm": norm,
        }

    def step(self, name: str, loss: Tensor, network: nn.Module) -> Tensor:
        """A step of one optimiser; returns the norm that the gradient had."""
        return descend(self.accelerator, loss, network, self.optimizers[name], self.config.training.clip_norm)

    def validate(self, model: Autoencoder, log: RunLog | None, step: int, brief: bool) -> dict[str, float]:
        chosen = evenly_spread(self.valid, 2 if brief else self.config.training.valid_utterances)
        return validate_autoencoder(model, self.loss, chosen, self.config, self.accelerator, log, step)

    def settle(self, average: Autoencoder, batches: Iterator[Batch]) -> None:
        if "bottleneck" not in self.config.training.freeze:
            waves = (wave for wave, *_ in islice(batches, SETTLING_BATCHES))
            settle_bottleneck(average.bottleneck, (self._latents(average, wave) for wave in waves))

    def release(self, model: Autoencoder) -> None:
        copy = Autoencoder(self.config.model_part())  # On the CPU, for the release to freeze.
        copy.load_state_dict(model.state_dict())
        AudioTokenizer(copy, self.config.model_part()).save_pretrained(self.released)

    def _latents(self, model: Autoencoder, wave: Tensor) -> Tensor:
        with self.accelerator.autocast():
            return model.encode(wave).float()


def true_waves(batch: Batch, output: AutoencoderOutput) -> Float[Tensor, "batch 1 time"]:
    """The waves of a batch, once for each sample that the bottleneck drew."""
    return batch[0].repeat(output.bottleneck.samples, 1, 1)


def check_same_model(config: ExperimentConfig, found: AutoencoderConfig) -> None:
    """Refuse to start from parts of another model.

    Raises:
        ConfigError: names the first setting that differs.
    """
    others = {"encoder", "bottleneck", "decoder"} - {*config.training.init_parts}
    theirs, ours = (flatten(model.model_dump(mode="json", exclude=others)) for model in (found, config.model_part()))
    names = [*theirs, *(name for name in ours if name not in theirs)]
    for name in sorted(names, key=lambda name: not name.endswith(".type")):  # What follows from a type is no news.
        if theirs.get(name) != ours.get(name):
            raise ConfigError(
                f"training.init_from: {config.training.init_from} has {name} = {theirs.get(name)!r}, the config "
                f"{ours.get(name)!r}; a run starts from a release of the same model, or from those of its parts "
                "(training.init_parts) that are the same"
            )


def crop_weights(parts: Iterable[Sequence[Utterance]], shares: Sequence[float] | None) -> list[float]:
    """How likely each utterance of several manifests is drawn: by its duration, and its manifest's share if given."""
    durations = [np.array([utterance.duration for utterance in part]) for part in parts]
    if shares is not None:
        durations = [share * part / part.sum() for share, part in zip(shares, durations, strict=True)]
    return np.concatenate(durations).tolist()
