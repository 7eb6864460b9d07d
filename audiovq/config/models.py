"""Schemas of models: all that is needed to build a network."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from audiovq.config.schema import Probability, Schema, Weight


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


class WaveNetConfig(Schema):
    """A causal dilated stack with gated units (van den Oord et al., 2016)."""

    layers: PositiveInt = 20
    """Number of dilated convolutions."""
    cycle: PositiveInt = 10
    """Layers after which dilations start again from 1; they double from layer to layer."""
    kernel_size: Annotated[int, Field(ge=2)] = 2
    """Kernel of a dilated convolution."""
    residual_channels: PositiveInt = 256
    """Channels that pass from layer to layer; a layer has as many gated units."""
    skip_channels: PositiveInt = 256
    """Channels of the sum over layers from which the output is computed."""
    dropout: Probability = 0.0
    """Share of the elements that a layer's input loses in training."""

    @property
    def dilations(self) -> list[int]:
        """Dilation of each layer in steps."""
        return [2 ** (number % self.cycle) for number in range(self.layers)]

    @property
    def receptive_field(self) -> int:
        """Steps of the past that a prediction depends on."""
        return 1 + (self.kernel_size - 1) * sum(self.dilations)


class SpeakerWaveNetConfig(WaveNetConfig):
    """A WaveNet that may be told who speaks."""

    speaker_dim: Annotated[int, Field(ge=0)] = 0
    """Dimension of the speakers' embeddings. 0: the network is not told who speaks."""
    speakers: list[str] = Field(default=[])
    """The speakers that the network knows. Empty: those of the training data, filled in when training starts."""

    @model_validator(mode="after")
    def _speakers_have_embeddings(self) -> SpeakerWaveNetConfig:
        if self.speakers and not self.speaker_dim:
            raise ValueError("speakers need a speaker_dim of at least 1, found 0")
        if len(set(self.speakers)) < len(self.speakers):
            raise ValueError("speakers: a name occurs twice")
        return self


class WaveNetDecoderConfig(SpeakerWaveNetConfig):
    """A WaveNet over mu-law samples, conditioned on the latents and a speaker; it draws one sample after the other.

    It is trained by the cross-entropy of the samples, `loss.mu_law`, in place of all other reconstruction losses.
    """

    type: Literal["wavenet"] = "wavenet"
    layers: PositiveInt = 30
    """Number of dilated convolutions."""
    residual_channels: PositiveInt = 64
    """Channels that pass from layer to layer; a layer has as many gated units."""
    skip_channels: PositiveInt = 128
    """Channels of the sum over layers from which the output is computed."""
    condition_channels: PositiveInt = 128
    """Channels of the convolution over the latents whose output conditions all layers."""
    condition_kernel_size: PositiveInt = 3
    """Kernel of that convolution, in frames."""
    jitter: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Probability that a latent is replaced by the one before it in training; by the one after it, as much again."""


DecoderConfig = Annotated[
    TransposedDecoderConfig | ISTFTDecoderConfig | WaveNetDecoderConfig, Field(discriminator="type")
]


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

    @property
    def speakers(self) -> list[str]:
        """The speakers that the decoder is told apart; none for a decoder that is not told who speaks."""
        return self.decoder.speakers if isinstance(self.decoder, WaveNetDecoderConfig) else []

    @model_validator(mode="after")
    def _decoder_fits_the_encoder(self) -> AutoencoderConfig:
        if isinstance(self.decoder, TransposedDecoderConfig):
            rates = len(self.encoder.strides) + 1
            if len(self.decoder.channels) != rates or len(self.decoder.dilations) != rates:
                raise ValueError(
                    f"decoder: {len(self.encoder.strides)} strides need {rates} channels and {rates} lists of "
                    f"dilations, found {len(self.decoder.channels)} and {len(self.decoder.dilations)}"
                )
        elif isinstance(self.decoder, ISTFTDecoderConfig) and self.hop_length % self.decoder.subframes:
            raise ValueError(
                f"decoder.subframes: {self.decoder.subframes} does not divide the hop length {self.hop_length}"
            )
        return self
