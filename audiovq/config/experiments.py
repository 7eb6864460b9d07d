"""Schemas of training runs: a model and how it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from audiovq.config.models import AutoencoderConfig
from audiovq.config.schema import PositiveFloat, PositiveInt, Probability, Schema, Weight


class LossConfig(Schema):
    """Weights of the reconstruction losses. A loss of weight 0 is not computed.

    `decoder.type: wavenet` is trained by `mu_law` alone; the other decoders by any of `l1`, `l2`, `mel` and `stft`.
    """

    l1: Weight = 0.0
    """Mean absolute error of the waveform."""
    l2: Weight = 0.0
    """Mean squared error of the waveform."""
    mel: Weight = 1.0
    """L1 distance of log-mel spectrograms, averaged over `fft_sizes`."""
    stft: Weight = 1.0
    """Spectral convergence plus L1 of log magnitudes, averaged over `fft_sizes` (Yamamoto et al., 2020)."""
    mu_law: Weight = 0.0
    """Cross-entropy of the samples' mu-law classes in nats a sample."""
    fft_sizes: list[Annotated[int, Field(ge=16, le=2**20)]] = Field(default=[2048, 1024, 512, 256, 128], min_length=1)
    """FFT sizes in samples of the spectrograms; each uses a Hann window as long and a hop of a quarter."""
    bottleneck: Weight = 1.0
    """The bottleneck's own loss (codebook and commitment loss for `vq`)."""

    @model_validator(mode="after")
    def _something_is_minimised(self) -> LossConfig:
        if not (self.l1 or self.l2 or self.mel or self.stft or self.mu_law):
            raise ValueError("at least one of l1, l2, mel, stft and mu_law needs a weight above 0")
        return self


class DataConfig(Schema):
    """Manifests and batches."""

    train: Path
    """Manifest of the training utterances."""
    valid: Path
    """Manifest of the validation utterances."""
    crop_seconds: PositiveFloat = 1.0
    """Length of a training crop; rounded up to whole frames."""
    batch_size: PositiveInt = 16
    """Crops a batch, on each process."""
    valid_seconds: PositiveFloat = 10.0
    """Longest stretch of a validation utterance that is used, from its start: bounds the memory that validation takes,
    and is the same at every validation."""
    workers: PositiveInt = 2
    """Threads that read audio ahead of the training loop."""


class TrainingConfig(Schema):
    """Optimisation, validation and checkpoints."""

    steps: PositiveInt
    """Optimiser steps."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate of AdamW."""
    warmup_steps: Annotated[int, Field(ge=0, lt=2**31)] = 200
    """Steps of linear warm-up, after which a cosine falls to zero at the last step."""
    betas: tuple[Probability, Probability] = (0.8, 0.99)
    """AdamW's decay rates."""
    weight_decay: Weight = 0.01
    """AdamW's decoupled weight decay."""
    clip_norm: PositiveFloat = 1.0
    """Largest norm of the gradient."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Autocast type of the networks; losses and the bottleneck stay in float32."""
    averaging_decay: Probability | None = None
    """Decay of an exponential moving average of the weights, which is then validated and released; codebooks are those
    of the last step, and batch statistics the average's own. None: off."""
    seed: int = 0
    """Seed of the initialisation, the crops and all sampling."""
    log_every: PositiveInt = 20
    """Steps between two lines of metrics.jsonl and TensorBoard."""
    valid_every: PositiveInt = 500
    """Steps between two validations, each followed by a checkpoint."""
    valid_utterances: PositiveInt = 64
    """Utterances of the validation data that are used, evenly spread over them."""


class AutoencoderTrainingConfig(TrainingConfig):
    """Training of an autoencoder, from the start or from a released one."""

    init_from: str | None = None
    """Release to start from, a folder or `organisation/name` on the Hugging Face Hub, of the same model config.
    Speakers that the config leaves out are the release's. None: from random weights."""
    freeze: list[Literal["encoder", "bottleneck", "decoder"]] = Field(default=[])
    """Parts that stay as they are, statistics included; gradients pass through them."""


class ExperimentConfig(AutoencoderConfig):
    """A whole training run: the model and how it is trained."""

    loss: LossConfig = LossConfig()
    data: DataConfig
    training: AutoencoderTrainingConfig

    @model_validator(mode="after")
    def _encoder_gets_gradients(self) -> ExperimentConfig:
        frozen = self.training.freeze
        if self.bottleneck.type in ("gumbel", "reinforce") and "bottleneck" in frozen and "encoder" not in frozen:
            raise ValueError(
                f"training.freeze: a frozen bottleneck of type {self.bottleneck.type} passes no gradient to the "
                "encoder; freeze the encoder, too"
            )
        return self

    @model_validator(mode="after")
    def _loss_fits_the_decoder(self) -> ExperimentConfig:
        of_waves = [name for name in ("l1", "l2", "mel", "stft") if getattr(self.loss, name)]
        if self.decoder.type == "wavenet" and (of_waves or not self.loss.mu_law):
            zeros = "".join(f", {name}: 0" for name in of_waves)
            raise ValueError(f"loss: decoder.type wavenet is trained by mu_law alone; set mu_law: 1{zeros}")
        if self.decoder.type != "wavenet" and self.loss.mu_law:
            raise ValueError(f"loss.mu_law: is for decoder.type wavenet, found {self.decoder.type}; set mu_law: 0")
        return self

    def model_part(self) -> AutoencoderConfig:
        """The part that a released model keeps."""
        return AutoencoderConfig(**{name: getattr(self, name) for name in AutoencoderConfig.model_fields})
