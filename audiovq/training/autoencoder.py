"""Stage 1: train encoder, bottleneck and decoder on audio crops, validate on whole utterances."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor, nn

from audiovq.batching import evenly_spread, read_ahead
from audiovq.bottlenecks.base import bits_per_second, count_codes, perplexity
from audiovq.config import ExperimentConfig, WaveNetDecoderConfig
from audiovq.data.crops import CropSampler
from audiovq.data.manifest import Utterance, read_manifest
from audiovq.devices import seed_everything
from audiovq.distributed import sum_over_processes
from audiovq.errors import SpeakerError
from audiovq.losses.reconstruction import build_loss
from audiovq.models.autoencoder import Autoencoder
from audiovq.models.speakers import speaker_number
from audiovq.models.tokenizer import AudioTokenizer
from audiovq.training.folder import open_run
from audiovq.training.log import RunLog
from audiovq.training.loop import Task, fit
from audiovq.training.state import Progress

EXAMPLES = 4
"""Validation utterances whose audio and mel pictures are logged."""


def train_autoencoder(config: ExperimentConfig, output: str | Path, device: str = "auto") -> Progress:
    """Train a tokenizer, or go on with the run that `output` holds.

    `output` receives `config.yaml`, `state.safetensors` (the last state), `release/` (the best model so far, as
    `AudioTokenizer.from_pretrained` reads it), `metrics.jsonl` and `tensorboard/`.

    Raises:
        ConfigError: `output` holds a run with another config, or there is no such device.
        ManifestError, AudioError: the data cannot be used.
        SpeakerError: the decoder is to be told who speaks, and the data do not say it, or tell of an unknown speaker.
        Stopped: SIGTERM or SIGINT arrived; the state was saved first.
    """
    output = Path(output)
    train, valid = read_manifest(config.data.train), read_manifest(config.data.valid)
    config = with_speakers(config, train, valid)
    plain = config.model_dump(mode="json")
    accelerator = open_run(output, plain, config.training, device)

    seed_everything(config.training.seed, "model")
    model = Autoencoder(config.model_part())
    loss = build_loss(config.loss, config.sample_rate).to(accelerator.device)
    crop_samples = -(-round(config.data.crop_seconds * config.sample_rate) // config.hop_length) * config.hop_length
    sampler = CropSampler(train, config.sample_rate, crop_samples, config.data.batch_size, config.training.seed)

    def batch(index: int) -> tuple[Tensor, ...]:
        wave, speakers = sampler.batch(index), speaker_numbers(sampler.speakers(index), config)
        return (wave,) if speakers is None else (wave, speakers)

    def batches(first_step: int) -> Iterator[tuple[Tensor, ...]]:
        # Each process takes its own batches: numbers step * processes + rank.
        processes, rank = accelerator.num_processes, accelerator.process_index
        return read_ahead(batch, count(first_step * processes + rank, processes), config.data.workers)

    def compute_loss(model: nn.Module, batch: tuple[Tensor, ...], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        bottleneck = accelerator.unwrap_model(model).bottleneck
        bottleneck.set_step(step)
        with accelerator.autocast():
            output = model(*batch)
        reconstruction, terms = loss(output.prediction, batch[0].repeat(output.bottleneck.samples, 1, 1))
        total = reconstruction.mean() + config.loss.bottleneck * output.bottleneck.loss
        total = total + bottleneck.surrogate_loss(output.bottleneck, reconstruction)
        return total, {**terms, "bottleneck": output.bottleneck.loss.detach(), **output.bottleneck.metrics}

    def validate(model: nn.Module, log: RunLog | None, step: int, brief: bool) -> dict[str, float]:
        assert isinstance(model, Autoencoder)
        chosen = evenly_spread(valid, 2 if brief else config.training.valid_utterances)
        return validate_autoencoder(model, loss, chosen, config, accelerator, log, step)

    def release(model: nn.Module) -> None:
        AudioTokenizer(_on_cpu(model, config), config.model_part()).save_pretrained(output / "release")

    audio_seconds = crop_samples / config.sample_rate * config.data.batch_size * accelerator.num_processes
    task = Task(model, compute_loss, batches, validate, release, audio_seconds)
    return fit(accelerator, task, config.training, plain, output)


@torch.no_grad()
def validate_autoencoder(
    model: Autoencoder,
    loss: nn.Module,
    utterances: Sequence[Utterance],
    config: ExperimentConfig,
    accelerator: Accelerator,
    log: RunLog | None,
    step: int,
) -> dict[str, float]:
    """Means over whole utterances, each process taking its share; code statistics are of the whole set."""
    model.eval()
    sums: dict[str, Tensor] = {}
    codebook_size = model.bottleneck.codebook_size
    counts = torch.zeros(model.bottleneck.num_codebooks, codebook_size, device=accelerator.device)
    # With more processes than utterances some take one again, with weight 0, so that all sum the same quantities.
    processes, rank = accelerator.num_processes, accelerator.process_index
    for number in range(rank, max(len(utterances), processes), processes):
        weight = float(number < len(utterances))
        utterance = utterances[number % len(utterances)]
        wave = utterance.source().read(config.sample_rate)[None].to(accelerator.device)
        speakers = speaker_numbers([utterance.speaker], config)
        with accelerator.autocast():
            output = model(wave, None if speakers is None else speakers.to(accelerator.device))
        reconstruction, terms = loss(output.prediction, wave)
        values = {"loss": reconstruction.mean(), **terms, "bottleneck": output.bottleneck.loss}
        values |= {name: v for name, v in output.bottleneck.metrics.items() if not name.startswith("perplexity")}
        for name, value in values.items():
            sums[name] = sums.get(name, 0) + weight * value.double()
        if output.bottleneck.codes is not None:
            counts += weight * count_codes(output.bottleneck.codes, codebook_size)
        if log is not None and number < EXAMPLES:
            log.audio(step, f"{utterance.id}/original", wave[0], config.sample_rate)
            kind = "decoded" if output.logits is None else "predicted"
            log.audio(step, f"{utterance.id}/{kind}", output.wave[0], config.sample_rate)
    means = {name: float(sum_over_processes(total)) / len(utterances) for name, total in sums.items()}
    if "kl" in means:
        means["kl_bits_per_second"] = bits_per_second(means["kl"], config.frame_rate)
    if codebook_size:
        counts = sum_over_processes(counts)
        means |= code_metrics(counts, model.bottleneck.codebook_sizes)
        if log is not None:
            log.code_histogram(step, counts)
    return means


def code_metrics(counts: Float[Tensor, "books codes"], sizes: Sequence[int]) -> dict[str, float]:
    """Perplexity, codes used and dead codes of each codebook; the names end in its number if there are several."""
    metrics: dict[str, float] = {}
    used = (counts > 0).sum(-1).tolist()
    for book, (size, value) in enumerate(zip(sizes, perplexity(counts).tolist(), strict=True)):
        end = f"_{book}" if len(sizes) > 1 else ""
        metrics |= {f"perplexity{end}": value, f"codes_used{end}": used[book], f"dead_codes{end}": size - used[book]}
    return metrics


def with_speakers(config: ExperimentConfig, train: Sequence[Utterance], valid: Sequence[Utterance]) -> ExperimentConfig:
    """The config with the speakers of the training utterances, if its decoder is told who speaks and it names none.

    Raises:
        SpeakerError: an utterance has no speaker, or one that the decoder does not know.
    """
    decoder = config.decoder
    if not isinstance(decoder, WaveNetDecoderConfig) or not decoder.speaker_dim:
        return config
    if not decoder.speakers:
        names = sorted({utterance.speaker for utterance in train if utterance.speaker is not None})
        decoder = decoder.model_copy(update={"speakers": names})
        config = config.model_copy(update={"decoder": decoder})
    for manifest, utterances in ((config.data.train, train), (config.data.valid, valid)):
        for utterance in utterances:
            place = f"{manifest}: utterance {utterance.id!r}"
            if utterance.speaker is None:
                raise SpeakerError(f"{place} has no speaker; prepare the data with them, or set decoder.speaker_dim=0")
            try:
                speaker_number(utterance.speaker, decoder.speakers)
            except SpeakerError as error:
                raise SpeakerError(
                    f"{place}: {error}; to train and validate on the same speakers, divide the data by utterance "
                    "(audiovq prepare --split-by utterance)"
                ) from error
    return config


def speaker_numbers(names: Sequence[str | None], config: ExperimentConfig) -> Int[Tensor, " batch"] | None:
    """The numbers of speakers, for a decoder that is told who speaks."""
    if not config.speakers:
        return None
    return torch.tensor([speaker_number(name, config.speakers) for name in names])


def _on_cpu(model: nn.Module, config: ExperimentConfig) -> Autoencoder:
    """A copy of a model that the release may move and freeze."""
    copy = Autoencoder(config.model_part())
    copy.load_state_dict(model.state_dict())
    return copy
