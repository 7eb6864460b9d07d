"""Schemas of adversarial training: discriminators, and the losses that they give."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator

from audiovq.config.schema import Probability, Schema, Size, Weight

AdversarialKind = Literal["hinge", "least_squares"]


class DiscriminatorConfig(Schema):
    """Small discriminators: one for each STFT resolution and one for each period."""

    resolutions: list[Annotated[int, Field(ge=16, le=2**20, multiple_of=4)]] = Field(default=[1024, 512, 256])
    """FFT sizes in samples; each uses a Hann window as long and a hop of a quarter."""
    periods: list[Annotated[int, Field(ge=2, le=2**20)]] = Field(default=[])
    """Samples after which a wave is folded. Empty: no such discriminators."""
    channels: list[Size] = Field(default=[16, 16, 32, 32], min_length=1)
    """Channels of the convolutions of each discriminator, from input to output."""

    @model_validator(mode="after")
    def _something_judges(self) -> DiscriminatorConfig:
        if not (self.resolutions or self.periods):
            raise ValueError("at least one of resolutions and periods needs a number")
        return self


class AdversarialConfig(Schema):
    """How a decoder is trained against discriminators: weights of the losses, and the discriminators' optimiser."""

    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    kind: AdversarialKind = "hinge"
    """The loss of the scores."""
    weight: Weight = 1.0
    """Weight of the loss of the decoded waves' scores."""
    feature_matching: Weight = 2.0
    """Weight of the distance between the features of true and decoded waves."""
    reconstruction: Weight = 3.0
    """Weight of the reconstruction loss beside the two, from the first step at which they count."""
    balance: bool = False
    """Give the three losses' gradients at the decoded waves sizes in the ratio of their weights (EnCodec), whatever the
    losses' own scales."""
    start_step: NonNegativeInt = 0
    """First step at which discriminators are trained and count; before it there is the reconstruction loss alone."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate of the discriminators' AdamW."""
    betas: tuple[Probability, Probability] = (0.8, 0.99)
    """Its decay rates."""

    @model_validator(mode="after")
    def _something_counts(self) -> AdversarialConfig:
        if not (self.weight or self.feature_matching or self.reconstruction):
            raise ValueError("at least one of weight, feature_matching and reconstruction has to be above 0")
        return self
