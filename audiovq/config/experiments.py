"""Schemas of training runs: a model and how it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, PlainValidator, model_validator

from audiovq.config.adversarial import AdversarialConfig
from audiovq.config.models import AutoencoderConfig
from audiovq.config.schema import PositiveFloat, PositiveInt, Probability, Schema, Weight
from audiovq.errors import ConfigError
from audiovq.storage import AnyPath, RemotePath, locate

OF_WAVES = ("l1", "l2", "mel", "stft", "compressed")
"""Reconstruction losses that compare waves."""


class LossConfig(Schema):
    """Weights of the reconstruction losses. A loss of weight 0 is not computed.

    `decoder.type: wavenet` is trained by `mu_law` alone; the other decoders by any of `l1`, `l2`, `mel`,
    `stft` and `compressed`.
    """

    l1: Weight = 0.0
    """Mean absolute error of the waveform."""
    l2: Weight = 0.0
    """Mean squared error of the waveform."""
    mel: Weight = 1.0
    """L1 distance of log-mel spectrograms, averaged over `fft_sizes`."""
    stft: Weight = 1.0
    """Spectral convergence plus L1 of log magnitudes, averaged over `fft_sizes` (Yamamoto et al., 2020)."""
    compressed: Weight = 0.0
    """Relative difference of mel magnitudes to the power of 0.3, averaged over `fft_sizes`."""
    pitch: Weight = 2.0
    """Error of the pitch that the decoder says, in octaves, on voiced hops. For `decoder.type: source` alone."""
    voicing: Weight = 0.5
    """Cross-entropy in nats of the voicing that the decoder says. For `decoder.type: source` alone."""
    mu_law: Weight = 0.0
    """Cross-entropy of the samples' mu-law classes in nats a sample."""
    distill: Weight = 0.0
    """Cosine distance of what one linear layer makes of the codes to the features of `data.teacher` (Zhang et al.,
    2024, "SpeechTokenizer"; Défossez et al., 2024, "Moshi", on Mimi). The layer is no part of the model."""
    distilled: Literal["first", "latents"] = "first"
    """What that layer sees: the first codebook alone, as the decoder would see it, or all that the decoder sees."""
    fft_sizes: list[Annotated[int, Field(ge=16, le=2**20)]] = Field(default=[2048, 1024, 512, 256, 128], min_length=1)
    """FFT sizes in samples of the spectrograms; each uses a Hann window as long and a hop of a quarter."""
    bottleneck: Weight = 1.0
    """The bottleneck's own loss (codebook and commitment loss for `vq`)."""

    def of_network(self, terms: Mapping[str, Any]) -> Any:
        """The weighted sum of the network's own terms, of each item; 0 if there are none."""
        return sum(getattr(self, name) * term for name, term in terms.items())

    @model_validator(mode="after")
    def _something_is_minimised(self) -> LossConfig:
        if not (any(getattr(self, name) for name in OF_WAVES) or self.mu_law):
            raise ValueError(f"at least one of {', '.join(OF_WAVES)} and mu_law needs a weight above 0")
        return self


def _located(value: Any) -> AnyPath:
    if not isinstance(value, str | Path | RemotePath):
        raise ValueError("expected a path or a URL")
    try:
        return locate(value)
    except ConfigError as error:
        raise ValueError(str(error)) from error


Manifest = Annotated[AnyPath, PlainValidator(_located), PlainSerializer(str)]
"""Path or URL of a manifest, or of what else lists utterances: a CutSet of lhotse, tars, a folder of audio."""


def _plain(value: AnyPath | list[AnyPath]) -> str | list[str]:
    # The serializer of `Manifest` would take a list for one path.
    return [str(path) for path in value] if isinstance(value, list) else str(value)


Manifests = Annotated[Manifest | Annotated[list[Manifest], Field(min_length=1)], PlainSerializer(_plain)]
"""One manifest or several."""


class AugmentationConfig(Schema):
    """How training crops are changed, each at random."""

    gain: tuple[float, float] = (0.0, 0.0)
    """Lowest and highest gain in decibels."""
    flip: bool = False
    """Turn half of the crops upside down."""
    speeds: list[Annotated[float, Field(ge=0.5, le=2)]] = Field(default=[1.0], min_length=1)
    """Speeds, of which each crop has one; pitch and formants change with it. Multiples of 0.05 are the cheapest."""

    @model_validator(mode="after")
    def _lowest_gain_first(self) -> AugmentationConfig:
        if self.gain[0] > self.gain[1]:
            raise ValueError(f"gain: expected the lowest before the highest, found {[*self.gain]}")
        return self


class DataConfig(Schema):
    """Manifests and batches."""

    train: Manifests
    """Manifest of the training utterances, or several."""
    valid: Manifests
    """Manifest of the validation utterances, or several."""
    shares: list[PositiveFloat] | None = None
    """Shares of the training crops that each manifest gives, in proportion. None: every second is equally likely."""
    memory_gib: Weight = 0.0
    """Most memory in GiB, of the device that trains, for the training speech, kept as 16-bit samples. 0: crops are read
    from the files."""
    augmentation: AugmentationConfig | None = None
    """How training crops are changed. None: not at all."""
    pitch: Literal["pyin", "swift"] | None = None
    """Tracker of the true pitch, for `decoder.type: source`. None: `swift` if it is installed, else `pyin`."""
    teacher: str | None = None
    """Network for speech whose features `loss.distill` wants to find in the codes: a folder or `organisation/name` on
    the Hugging Face Hub, of faster-whisper, or of transformers (Whisper, or HuBERT, WavLM and the like)."""
    crop_seconds: PositiveFloat = 1.0
    """Length of a training crop; rounded up to whole frames."""
    batch_size: PositiveInt = 16
    """Crops a batch, on each process."""
    valid_seconds: PositiveFloat = 10.0
    """Longest stretch of a validation utterance that is used, from its start: bounds the memory that validation takes,
    and is the same at every validation."""
    workers: PositiveInt = 2
    """Threads that read audio ahead of the training loop."""

    @model_validator(mode="after")
    def _each_manifest_once(self) -> DataConfig:
        for name, paths in (("train", self.train_manifests), ("valid", self.valid_manifests)):
            for path in paths:
                if paths.count(path) > 1:
                    raise ValueError(f"{name}: {path} occurs twice; name it once")
        return self

    @property
    def train_manifests(self) -> list[AnyPath]:
        """The manifests of `train`."""
        return self.train if isinstance(self.train, list) else [self.train]

    @property
    def valid_manifests(self) -> list[AnyPath]:
        """The manifests of `valid`."""
        return self.valid if isinstance(self.valid, list) else [self.valid]


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
    compile: bool = False
    """Compile the networks (torch.compile): the first steps take minutes, the others less time, mostly on a GPU. How
    results are rounded changes with it."""
    averaging_decay: Probability | None = None
    """Decay of an exponential moving average of the weights, which is then validated and released; codebooks are those
    of the last step, and batch statistics the average's own. Early in a training, step t, it is t / (t + 20) at most.
    None: off."""
    seed: int = 0
    """Seed of the initialisation, the crops and all sampling."""
    log_every: PositiveInt = 20
    """Steps between two lines of metrics.jsonl and TensorBoard."""
    valid_every: PositiveInt = 500
    """Steps between two validations, each followed by a checkpoint."""
    valid_utterances: PositiveInt = 64
    """Utterances of the validation data that are used, evenly spread over them."""


Part = Literal["encoder", "bottleneck", "decoder"]
"""A part of an autoencoder."""


class AutoencoderTrainingConfig(TrainingConfig):
    """Training of an autoencoder, from the start or from a released one."""

    init_from: str | None = None
    """Release of the same model config to start from: a model that comes with audiovq, a folder or `organisation/name`
    on the Hugging Face Hub. Speakers that the config leaves out are the release's, if its decoder is. None: from random
    weights."""
    init_parts: list[Part] = Field(default=["encoder", "bottleneck", "decoder"], min_length=1)
    """Parts that start as they are in the release; others start from random weights, and may be of another config."""
    freeze: list[Part] = Field(default=[])
    """Parts that stay as they are, statistics included; gradients pass through them. A bottleneck has to come from the
    release."""

    @model_validator(mode="after")
    def _frozen_bottleneck_has_learnt(self) -> AutoencoderTrainingConfig:
        if "bottleneck" in self.freeze and (self.init_from is None or "bottleneck" not in self.init_parts):
            raise ValueError(
                "freeze: a bottleneck that starts from random weights never learns; take it from a release (init_from, "
                "init_parts)"
            )
        return self


class ExperimentConfig(AutoencoderConfig):
    """A whole training run: the model and how it is trained."""

    loss: LossConfig = LossConfig()
    adversarial: AdversarialConfig | None = None
    """Discriminators that the decoded waves are trained against, too. None: there are none."""
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
        held = {"encoder", "bottleneck"} <= {*frozen}
        if self.bottleneck.type == "reinforce" and self.adversarial is not None and not held:
            raise ValueError(
                "adversarial: bottleneck.type reinforce passes the encoder no gradient of the discriminators; leave it "
                "out, or freeze encoder and bottleneck"
            )
        return self

    @model_validator(mode="after")
    def _a_share_for_each_manifest(self) -> ExperimentConfig:
        shares, manifests = self.data.shares, self.data.train_manifests
        if shares is not None and len(shares) != len(manifests):
            raise ValueError(f"data.shares: expected {len(manifests)}, one for each of data.train, found {len(shares)}")
        return self

    @model_validator(mode="after")
    def _teacher_reaches_the_codes(self) -> ExperimentConfig:
        loss, kind, frozen = self.loss, self.bottleneck.type, {"encoder", "bottleneck"}
        if bool(loss.distill) != (self.data.teacher is not None):
            missing = "data.teacher: is required" if loss.distill else "loss.distill: needs a weight above 0"
            raise ValueError(f"{missing}; a teacher and its weight go together")
        if loss.distill and kind in ("none", "gaussian") and loss.distilled == "first":
            raise ValueError(f"loss.distilled: bottleneck.type {kind} has no codes; set distilled: latents")
        if loss.distill and kind == "reinforce":
            raise ValueError("loss.distill: bottleneck.type reinforce passes the encoder no gradient; set distill: 0")
        if loss.distill and frozen <= {*self.training.freeze}:
            raise ValueError("loss.distill: encoder and bottleneck are frozen and learn nothing; set distill: 0")
        return self

    @model_validator(mode="after")
    def _loss_fits_the_decoder(self) -> ExperimentConfig:
        of_waves = [name for name in OF_WAVES if getattr(self.loss, name)]
        if self.decoder.type == "wavenet" and (of_waves or not self.loss.mu_law):
            zeros = "".join(f", {name}: 0" for name in of_waves)
            raise ValueError(f"loss: decoder.type wavenet is trained by mu_law alone; set mu_law: 1{zeros}")
        if self.decoder.type == "wavenet" and self.adversarial is not None:
            raise ValueError("adversarial: decoder.type wavenet gives no wave in training; leave it out")
        if self.decoder.type != "wavenet" and self.loss.mu_law:
            raise ValueError(f"loss.mu_law: is for decoder.type wavenet, found {self.decoder.type}; set mu_law: 0")
        return self

    def model_part(self) -> AutoencoderConfig:
        """The part that a released model keeps."""
        return AutoencoderConfig(**{name: getattr(self, name) for name in AutoencoderConfig.model_fields})
