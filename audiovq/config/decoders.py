"""Schemas of decoders, and of the WaveNets that stand in decoders and priors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from audiovq.config.encoders import ConvEncoderConfig, require_rates
from audiovq.config.schema import (
    ConvNeXtConfig,
    Dilations,
    FramesAhead,
    Layers,
    PartConfig,
    Probability,
    Schema,
    Size,
    Sizes,
)

if TYPE_CHECKING:
    from audiovq.config.models import AutoencoderConfig


class TransposedDecoderConfig(PartConfig):
    """Mirrored encoder: residual units and one transposed convolution a stage, strides as the encoder's, reversed."""

    implementation: ClassVar[str] = "audiovq.nn.conv:TransposedDecoder"
    type: Literal["transposed"] = "transposed"
    channels: Sizes = Field(min_length=1)
    """Channels at each rate, from the frame rate up to the sample rate."""
    dilations: Annotated[list[Dilations], Field(max_length=100)]
    """Dilations of the residual units at each rate, from the frame rate up."""
    kernel_size: Size = 3
    """Kernel of the dilated convolution in a residual unit."""
    look_ahead: FramesAhead = 0
    """Frames behind its own that a sample sees, too."""

    def check(self, config: AutoencoderConfig) -> None:
        """Raise `ValueError` if the decoder does not fit the rest of the model."""
        if not isinstance(config.encoder, ConvEncoderConfig):
            raise ValueError(f"decoder.type transposed mirrors encoder.type conv, found {config.encoder.type}")
        require_rates(config.encoder.strides, self.channels, self.dilations, "decoder: ")


class ISTFTDecoderConfig(ConvNeXtConfig):
    """ConvNeXt-like blocks at the frame rate and an inverse STFT head (Vocos; Siuzdak, 2023), causal."""

    implementation: ClassVar[str] = "audiovq.nn.istft:ISTFTDecoder"
    type: Literal["istft"] = "istft"
    dim: Size = 384
    layers: Layers = 8
    subframes: Size = 4
    """Spectral frames that one code frame emits; the STFT's hop is hop_length / subframes."""
    overlap: Annotated[Size, Field(ge=2)] = 4
    """FFT size and window length, as a multiple of the STFT's hop."""
    look_ahead: FramesAhead = 0
    """Frames behind its own that a sample sees, too."""

    def check(self, config: AutoencoderConfig) -> None:
        """Raise `ValueError` if the decoder does not fit the rest of the model."""
        if config.hop_length % self.subframes:
            raise ValueError(f"decoder.subframes: {self.subframes} does not divide the hop length {config.hop_length}")


class SourceDecoderConfig(ConvNeXtConfig):
    """ConvNeXt-like blocks at the frame rate, then harmonic pulses and noise that are filtered as spectra."""

    implementation: ClassVar[str] = "audiovq.nn.source:SourceDecoder"
    type: Literal["source"] = "source"
    dim: Size = 320
    layers: Layers = 8
    subframes: Size = 4
    """Hops of the source in a frame, each with filters of its own."""
    overlap: Annotated[Size, Field(ge=3)] = 4
    """FFT size and window length, as a multiple of the source's hop."""
    free_spectrum: bool = False
    """Whether a spectrum that owes nothing to the source is added, as an iSTFT decoder predicts one."""
    look_ahead: FramesAhead = 1
    """Frames behind its own that a sample sees, too."""

    def check(self, config: AutoencoderConfig) -> None:
        """Raise `ValueError` if the decoder does not fit the rest of the model."""
        if config.hop_length % self.subframes:
            raise ValueError(f"decoder.subframes: {self.subframes} does not divide the hop length {config.hop_length}")


class WaveNetConfig(Schema):
    """A causal dilated stack with gated units (van den Oord et al., 2016)."""

    layers: Layers = 20
    """Number of dilated convolutions."""
    cycle: Annotated[int, Field(gt=0, le=20)] = 10
    """Layers after which dilations start again from 1; they double from layer to layer."""
    kernel_size: Annotated[Size, Field(ge=2)] = 2
    """Kernel of a dilated convolution."""
    residual_channels: Size = 256
    """Channels that pass from layer to layer; a layer has as many gated units."""
    skip_channels: Size = 256
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

    speaker_dim: Annotated[int, Field(ge=0, le=2**20)] = 0
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


class WaveNetDecoderConfig(SpeakerWaveNetConfig, PartConfig):
    """A WaveNet over mu-law samples, conditioned on the latents and a speaker; it draws one sample after the other.

    It is trained by the cross-entropy of the samples, `loss.mu_law`, in place of all other reconstruction losses.
    """

    implementation: ClassVar[str] = "audiovq.models.wavenet_decoder:WaveNetDecoder"
    look_ahead: ClassVar[int] = 0
    type: Literal["wavenet"] = "wavenet"
    layers: Layers = 30
    """Number of dilated convolutions."""
    residual_channels: Size = 64
    """Channels that pass from layer to layer; a layer has as many gated units."""
    skip_channels: Size = 128
    """Channels of the sum over layers from which the output is computed."""
    condition_channels: Size = 128
    """Channels of the convolution over the latents whose output conditions all layers."""
    condition_kernel_size: Size = 3
    """Kernel of that convolution, in frames."""
    jitter: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Probability that a latent is replaced by the one before it in training; by the one after it, as much again."""

    def check(self, config: AutoencoderConfig) -> None:
        """Raise `ValueError` if the decoder does not fit the rest of the model."""


DecoderConfig = Annotated[
    TransposedDecoderConfig | ISTFTDecoderConfig | SourceDecoderConfig | WaveNetDecoderConfig,
    Field(discriminator="type"),
]
