"""Every schema of audiovq: models, losses, data and training, read from YAML with dotted overrides.

The YAML files under `recipes/*/conf` are instances of `ExperimentConfig`. A released model keeps only its
`AutoencoderConfig` part. Unknown keys are refused, with the nearest known one in the message.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from audiovq.errors import ConfigError

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, lt=1)]
ConfigT = TypeVar("ConfigT", bound=BaseModel)


class Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


# --- model ---------------------------------------------------------------------------------------------------


class EncoderConfig(Schema):
    """Causal strided convolutions: an input convolution, then residual units and one strided convolution a stage."""

    channels: list[PositiveInt] = Field(min_length=1)
    """Channels at each rate, from the sample rate down to the frame rate: one more than strides."""
    strides: list[PositiveInt]
    """Stride of each stage; their product is the hop length in samples. A strided kernel spans two strides."""
    dilations: list[list[PositiveInt]]
    """Dilations of the residual units at each rate, from the sample rate down: one list for each of `channels`."""
    kernel_size: PositiveInt = 3
    """Kernel of the dilated convolution in a residual unit."""
    input_kernel_size: PositiveInt = 7
    """Kernel of the first convolution, which sees the waveform."""

    @model_validator(mode="after")
    def _lengths_agree(self) -> EncoderConfig:
        rates = len(self.strides) + 1
        if len(self.channels) != rates or len(self.dilations) != rates:
            raise ValueError(
                f"{len(self.strides)} strides need {rates} channels and {rates} lists of dilations, "
                f"found {len(self.channels)} and {len(self.dilations)}"
            )
        return self


class TransposedDecoderConfig(Schema):
    """Mirrored encoder: residual units and one transposed convolution a stage, strides as the encoder's, reversed."""

    type: Literal["transposed"] = "transposed"
    channels: list[PositiveInt] = Field(min_length=1)
    """Channels at each rate, from the frame rate up to the sample rate."""
    dilations: list[list[PositiveInt]]
    """Dilations of the residual units at each rate, from the frame rate up."""
    kernel_size: PositiveInt = 3
    """Kernel of the dilated convolution in a residual unit."""


class ISTFTDecoderConfig(Schema):
    """ConvNeXt-like blocks at the frame rate and an inverse STFT head (Vocos; Siuzdak, 2023), causal."""

    type: Literal["istft"] = "istft"
    dim: PositiveInt = 384
    """Channels of the blocks."""
    layers: PositiveInt = 8
    """Number of blocks."""
    kernel_size: PositiveInt = 7
    """Kernel of the depthwise convolution of a block."""
    expansion: PositiveInt = 3
    """Width of a block's hidden layer, as a multiple of `dim`."""
    subframes: PositiveInt = 4
    """Spectral frames that one code frame emits; the STFT's hop is hop_length / subframes."""
    overlap: Annotated[int, Field(ge=2)] = 4
    """FFT size and window length, as a multiple of the STFT's hop."""


DecoderConfig = Annotated[TransposedDecoderConfig | ISTFTDecoderConfig, Field(discriminator="type")]


class VQConfig(Schema):
    """Vector quantization with one codebook (van den Oord et al., 2017)."""

    type: Literal["vq"] = "vq"
    codebook_size: Annotated[int, Field(ge=2, le=65536)] = 1024
    """Number of codes K; at most 65536, so that a code fits into 16 bits."""
    code_dim: PositiveInt | None = 8
    """Dimension in which codes are compared; latents are projected down to it and back. None: no projection."""
    normalize: bool = True
    """Compare l2-normalised latents with l2-normalised codes."""
    update: Literal["gradient", "ema"] = "gradient"
    """How the codebook learns: through the codebook loss, or as moving averages of the latents assigned to a code."""
    beta: Weight = 0.25
    """Weight of the commitment loss."""
    decay: Probability = 0.99
    """Decay of the moving averages: of code usage, and of the codebook with `update: ema`."""
    init: Literal["kmeans", "data"] = "kmeans"
    """First codebook, from the first training batch: k-means centres, or latents drawn at random."""
    revive_below: Weight = 0.1
    """A code whose moving average of assignments a step falls below this is placed on a random latent. 0: never."""


class VariationalConfig(Schema):
    """What all bottlenecks with a posterior q(z|x) share: the weight of its KL divergence to the prior."""

    kl_weight: Weight = 0.01
    """Weight of the KL divergence in nats per frame: what a nat costs in terms of the reconstruction loss."""
    kl_warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the weight rises linearly from 0."""


class GaussianConfig(VariationalConfig):
    """Gaussian posterior with diagonal covariance, reparameterised (Kingma & Welling, 2014)."""

    type: Literal["gaussian"] = "gaussian"
    code_dim: PositiveInt | None = 8
    """Dimension of z; latents are projected to its mean and variance, and z back. None: that of the latents."""
    free_nats: Weight = 0.0
    """KL divergence in nats per frame that each dimension has for free (free bits; Kingma et al., 2016)."""


class CategoricalConfig(VariationalConfig):
    """What the bottlenecks with a categorical posterior over K codes share."""

    codebook_size: Annotated[int, Field(ge=2, le=65536)] = 1024
    """Number of codes K; at most 65536, so that a code fits into 16 bits."""


class GumbelConfig(CategoricalConfig):
    """Categorical posterior, relaxed by Gumbel-Softmax (Jang et al., 2017; Maddison et al., 2017)."""

    type: Literal["gumbel"] = "gumbel"
    start_temperature: PositiveFloat = 2.0
    """Temperature at the first step."""
    end_temperature: PositiveFloat = 0.5
    """Temperature from step `anneal_steps` on."""
    anneal_steps: PositiveInt = 10000
    """Steps over which the temperature goes exponentially from start to end."""
    hard: bool = True
    """Show the decoder a single code, and take the relaxed sample for the gradient only (straight-through)."""


class ReinforceConfig(CategoricalConfig):
    """Categorical posterior, trained by the score-function gradient (REINFORCE; Williams, 1992)."""

    type: Literal["reinforce"] = "reinforce"
    baseline: Literal["none", "moving_average", "leave_one_out"] = "leave_one_out"
    """What is subtracted from the cost of a sample: nothing, the average cost of the steps before, or the average
    cost of the item's other samples."""
    samples: PositiveInt = 4
    """Samples of codes for each item of a training batch; each passes through the decoder."""
    baseline_decay: Probability = 0.99
    """Decay of the moving average, for `baseline: moving_average`."""

    @model_validator(mode="after")
    def _others_to_average(self) -> ReinforceConfig:
        if self.baseline == "leave_one_out" and self.samples < 2:
            raise ValueError("baseline leave_one_out needs samples of at least 2, found 1")
        return self


class NoBottleneckConfig(Schema):
    """No bottleneck: a plain autoencoder, the upper bound of what a bottleneck can keep."""

    type: Literal["none"] = "none"


BottleneckConfig = Annotated[
    VQConfig | GaussianConfig | GumbelConfig | ReinforceConfig | NoBottleneckConfig, Field(discriminator="type")
]


class AutoencoderConfig(Schema):
    """All that is needed to build a tokenizer's network."""

    sample_rate: PositiveInt
    """Rate of the waveforms in Hz."""
    latent_dim: PositiveInt = 128
    """Channels D of the latents between encoder, bottleneck and decoder."""
    encoder: EncoderConfig
    bottleneck: BottleneckConfig = VQConfig()
    decoder: DecoderConfig

    @property
    def hop_length(self) -> int:
        """Samples a frame."""
        return math.prod(self.encoder.strides)

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.sample_rate / self.hop_length

    @model_validator(mode="after")
    def _decoder_fits_the_encoder(self) -> AutoencoderConfig:
        if isinstance(self.decoder, TransposedDecoderConfig):
            rates = len(self.encoder.strides) + 1
            if len(self.decoder.channels) != rates or len(self.decoder.dilations) != rates:
                raise ValueError(
                    f"decoder: {len(self.encoder.strides)} strides need {rates} channels and {rates} lists of "
                    f"dilations, found {len(self.decoder.channels)} and {len(self.decoder.dilations)}"
                )
        elif self.hop_length % self.decoder.subframes:
            raise ValueError(
                f"decoder.subframes: {self.decoder.subframes} does not divide the hop length {self.hop_length}"
            )
        return self


# --- training ------------------------------------------------------------------------------------------------


class LossConfig(Schema):
    """Weights of the reconstruction losses. A loss of weight 0 is not computed."""

    l1: Weight = 0.0
    """Mean absolute error of the waveform."""
    l2: Weight = 0.0
    """Mean squared error of the waveform."""
    mel: Weight = 1.0
    """L1 distance of log-mel spectrograms, averaged over `fft_sizes`."""
    stft: Weight = 1.0
    """Spectral convergence plus L1 of log magnitudes, averaged over `fft_sizes` (Yamamoto et al., 2020)."""
    fft_sizes: list[Annotated[int, Field(ge=16)]] = Field(default=[2048, 1024, 512, 256, 128], min_length=1)
    """FFT sizes in samples of the spectrograms; each uses a Hann window as long and a hop of a quarter."""
    bottleneck: Weight = 1.0
    """The bottleneck's own loss (codebook and commitment loss for `vq`)."""

    @model_validator(mode="after")
    def _something_is_minimised(self) -> LossConfig:
        if not (self.l1 or self.l2 or self.mel or self.stft):
            raise ValueError("at least one of l1, l2, mel and stft needs a weight above 0")
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
    workers: PositiveInt = 2
    """Threads that read audio ahead of the training loop."""


class TrainingConfig(Schema):
    """Optimisation, validation and checkpoints."""

    steps: PositiveInt
    """Optimiser steps."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate of AdamW."""
    warmup_steps: Annotated[int, Field(ge=0)] = 200
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
    """Decay of an exponential moving average of the weights, which is then validated and released. None: off."""
    seed: int = 0
    """Seed of the initialisation, the crops and all sampling."""
    log_every: PositiveInt = 20
    """Steps between two lines of metrics.jsonl and TensorBoard."""
    valid_every: PositiveInt = 500
    """Steps between two validations, each followed by a checkpoint."""
    valid_utterances: PositiveInt = 64
    """Utterances of the validation manifest that are used, evenly spread over it."""


class ExperimentConfig(AutoencoderConfig):
    """A whole training run: the model and how it is trained."""

    loss: LossConfig = LossConfig()
    data: DataConfig
    training: TrainingConfig

    def model_part(self) -> AutoencoderConfig:
        """The part that a released model keeps."""
        return AutoencoderConfig(**{name: getattr(self, name) for name in AutoencoderConfig.model_fields})


# --- reading -------------------------------------------------------------------------------------------------


def load_config(path: str | Path, overrides: Sequence[str] = (), schema: type[ConfigT] = ExperimentConfig) -> ConfigT:
    """Read a YAML file, apply `key.subkey=value` overrides and validate.

    An override of a `type` (say `bottleneck.type=none`) keeps those settings of the section that the new type
    also knows and takes its defaults for the rest.

    Raises:
        ConfigError: the file is missing or no YAML mapping, an override is malformed, or a key or value is wrong.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, found {type(data).__name__}")
    for override in overrides:
        _apply_override(data, override, schema)
    return parse_config(data, schema, str(path))


def parse_config(data: Any, schema: type[ConfigT], source: str) -> ConfigT:
    """Validate plain data; errors become one line that names `source`, the key and, for a typo, the right key."""
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        problems = "; ".join(_explain(problem, schema) for problem in error.errors())
        raise ConfigError(f"{source}: {problems}") from error


def _apply_override(data: dict[str, Any], override: str, schema: type[BaseModel]) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: expected key.subkey=value, as in training.steps=1000")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from error
    *parents, last = key.split(".")
    section = data
    for depth, parent in enumerate(parents, start=1):
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise ConfigError(f"override {override!r}: {'.'.join(parents[:depth])} is a value, not a section")
    if last == "type" and section.get("type") != value:
        known = {name for option in _schemas_at(schema, [*parents, str(value)]) for name in option.model_fields}
        for name in set(section) - known:
            del section[name]
    section[last] = value


def _schemas_at(schema: Any, location: Sequence[str | int]) -> list[type[BaseModel]]:
    """The schemas that a location can stand for; a union's member is named by its `type`."""
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        if not location:
            return [schema]
        field = schema.model_fields.get(str(location[0]))
        return _schemas_at(field.annotation, location[1:]) if field else []
    options = [option for option in get_args(schema) if isinstance(option, type) and issubclass(option, BaseModel)]
    if not options:
        return [found for option in get_args(schema) for found in _schemas_at(option, location)]
    tagged = [option for option in options if location and option.model_fields["type"].default == location[0]]
    rest = location[1:] if tagged else location
    return [found for option in tagged or options for found in _schemas_at(option, rest)]


def _is_tag(schema: type[BaseModel], parents: list[str | int], part: str | int) -> bool:
    """Whether a part of pydantic's location is the `type` of a union's member, which a user's key does not contain."""
    options = _schemas_at(schema, parents)
    return len(options) > 1 and part in {option.model_fields["type"].default for option in options}


def _explain(problem: Any, schema: type[BaseModel]) -> str:
    location = list(problem["loc"])
    name = ".".join(str(part) for i, part in enumerate(location) if not _is_tag(schema, location[:i], part))
    if problem["type"] == "extra_forbidden":
        known = [field for option in _schemas_at(schema, location[:-1]) for field in option.model_fields]
        close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
        return f"{name}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{name}: is required"
    message = problem["msg"].removeprefix("Value error, ")
    found = "" if isinstance(problem["input"], dict | BaseModel) else f", found {problem['input']!r}"
    return f"{name}: {message}{found}" if name else message
