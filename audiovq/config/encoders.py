"""Schemas of encoders."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from audiovq.config.schema import ConvNeXtConfig, Dilations, Layers, LookAhead, PartConfig, Size, Sizes


class ConvEncoderConfig(PartConfig):
    """Causal strided convolutions: an input convolution, then residual units and one strided convolution a stage."""

    implementation: ClassVar[str] = "audiovq.nn.conv:ConvEncoder"
    type: Literal["conv"] = "conv"
    channels: Sizes = Field(min_length=1)
    """Channels at each rate, from the sample rate down to the frame rate: one more than strides."""
    strides: Sizes
    """Stride of each stage; their product is the hop length in samples. A strided kernel spans two strides."""
    dilations: Annotated[list[Dilations], Field(max_length=100)]
    """Dilations of the residual units at each rate, from the sample rate down: one list for each of `channels`."""
    kernel_size: Size = 3
    """Kernel of the dilated convolution in a residual unit."""
    input_kernel_size: Size = 7
    """Kernel of the first convolution, which sees the waveform."""
    look_ahead: LookAhead = 0
    """Samples behind its own that a frame sees, too."""

    @property
    def hop_length(self) -> int:
        """Samples a frame."""
        return math.prod(self.strides)

    @model_validator(mode="after")
    def _lengths_agree(self) -> ConvEncoderConfig:
        require_rates(self.strides, self.channels, self.dilations)
        return self


def require_rates(strides: list[int], channels: list[int], dilations: list[list[int]], place: str = "") -> None:
    """Raise `ValueError` unless there are channels and dilations for each rate that the strides lead to."""
    rates = len(strides) + 1
    if len(channels) != rates or len(dilations) != rates:
        raise ValueError(
            f"{place}{len(strides)} strides need {rates} channels and {rates} lists of dilations, "
            f"found {len(channels)} and {len(dilations)}"
        )


class SpectralEncoderConfig(ConvNeXtConfig):
    """A log-mel spectrogram by a fixed filter bank, frames of it stacked to the frame rate, ConvNeXt blocks there."""

    implementation: ClassVar[str] = "audiovq.nn.spectral:SpectralEncoder"
    type: Literal["spectral"] = "spectral"
    hop_length: Size = 320
    """Samples a frame."""
    spectra: Size = 2
    """Spectra that are stacked to a frame; they are hop_length / spectra samples apart."""
    window: Annotated[int, Field(ge=2, le=2**15)] = 640
    """Window of a spectrum in samples."""
    bands: Annotated[int, Field(gt=0, le=2**9)] = 100
    """Mel bands of a spectrum."""
    low_bins: Annotated[int, Field(ge=0, le=2**20)] = 0
    """Bins from 0 Hz up of a second spectrum, that of a window of twice the length: low voices' harmonics are narrower
    than mel bands, and a decoder that starts from a source has to know the pitch exactly. 0: there is none."""
    dim: Size = 256
    layers: Layers = 6
    look_ahead: LookAhead = 0
    """Samples behind its own that a frame sees, too."""

    @model_validator(mode="after")
    def _spectra_fit(self) -> SpectralEncoderConfig:
        if self.hop_length % self.spectra:
            raise ValueError(f"spectra: {self.spectra} does not divide the hop length {self.hop_length}")
        apart, bins = self.hop_length // self.spectra, 2 ** (self.window - 1).bit_length() + 1
        if self.window < apart:
            raise ValueError(f"window: expected at least the {apart} samples between two spectra, found {self.window}")
        if self.low_bins > bins:
            raise ValueError(f"low_bins: expected at most {bins}, as many as there are, found {self.low_bins}")
        return self


EncoderConfig = Annotated[ConvEncoderConfig | SpectralEncoderConfig, Field(discriminator="type")]
