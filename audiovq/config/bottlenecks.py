"""Schemas of bottlenecks."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from audiovq.config.schema import PartConfig, PositiveFloat, Probability, Size, Weight

CodebookSize = Annotated[int, Field(ge=2, le=65536)]
"""Number of codes K; at most 65536, so that a code fits into 16 bits."""
CodebookCount = Annotated[int, Field(ge=1, le=64)]
"""Number of codebooks Q."""
CodebookSizes = Annotated[list[CodebookSize], Field(max_length=64)]
"""Number of codes of each codebook."""


class QuantizerConfig(PartConfig):
    """What the bottlenecks that look up codes in codebooks share."""

    code_dim: Size | None = 8
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
    """A code that is used less, by a moving average, than this fraction of uniform use is placed on a random latent.
    0: never."""


class VQConfig(QuantizerConfig):
    """Vector quantization with one codebook (van den Oord et al., 2017)."""

    implementation: ClassVar[str] = "audiovq.bottlenecks.vq:VectorQuantizer"
    type: Literal["vq"] = "vq"
    codebook_size: CodebookSize = 1024
    """Number of codes K."""


class ResidualConfig(QuantizerConfig):
    """Residual vector quantization: each codebook quantizes what those before it leave (Zeghidour et al., 2021).

    By default codes are means of the latents themselves. A `code_dim` gives each codebook projections of its own, as in
    Kumar et al. (2023); then nothing makes the sum of the codes be near the latents, and what a codebook leaves may be
    as much as what it found (metric `left`).
    """

    implementation: ClassVar[str] = "audiovq.bottlenecks.residual:ResidualQuantizer"
    type: Literal["residual"] = "residual"
    num_codebooks: CodebookCount = 4
    """Number of codebooks Q."""
    codebook_size: CodebookSize | CodebookSizes = 1024
    """Number of codes K: one for all codebooks, or one for each."""
    dropout: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the items of a training batch of which the decoder sees a random number of codebooks, the first ones."""
    code_dim: Size | None = None
    normalize: bool = False
    update: Literal["gradient", "ema"] = "ema"

    @property
    def codebook_sizes(self) -> list[int]:
        """Number of codes of each codebook."""
        size = self.codebook_size
        return size if isinstance(size, list) else [size] * self.num_codebooks

    @model_validator(mode="after")
    def _a_size_for_each(self) -> ResidualConfig:
        if len(self.codebook_sizes) != self.num_codebooks:
            raise ValueError(f"codebook_size: expected {self.num_codebooks} sizes, found {len(self.codebook_sizes)}")
        return self


class FSQConfig(PartConfig):
    """Finite scalar quantization: each dimension is rounded to one of a few levels (Mentzer et al., 2023)."""

    implementation: ClassVar[str] = "audiovq.bottlenecks.fsq:FiniteScalarQuantizer"
    type: Literal["fsq"] = "fsq"
    levels: list[Annotated[int, Field(ge=2, le=65536)]] = Field(default=[8, 5, 5, 5], min_length=1, max_length=16)
    """Number of levels of each dimension of a codebook; their product is its number of codes, at most 65536."""
    num_codebooks: CodebookCount = 1
    """Number of codebooks Q."""
    structure: Literal["groups", "residual"] = "groups"
    """How several codebooks stand together: each has dimensions of its own, or quantizes what those before it leave."""
    dropout: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the items of a training batch of which the decoder sees a random number of codebooks, the first ones."""

    @model_validator(mode="after")
    def _codes_of_16_bits(self) -> FSQConfig:
        if math.prod(self.levels) > 65536:
            raise ValueError(f"levels: expected a product of at most 65536, found {math.prod(self.levels)}")
        return self


class VariationalConfig(PartConfig):
    """What all bottlenecks with a posterior q(z|x) share: the weight of its KL divergence to the prior."""

    kl_weight: Weight = 0.01
    """Weight of the KL divergence in nats per frame: what a nat costs in terms of the reconstruction loss."""
    kl_warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the weight rises linearly from 0."""


class GaussianConfig(VariationalConfig):
    """Gaussian posterior with diagonal covariance, reparameterised (Kingma & Welling, 2014)."""

    implementation: ClassVar[str] = "audiovq.bottlenecks.gaussian:GaussianBottleneck"
    type: Literal["gaussian"] = "gaussian"
    code_dim: Size | None = 8
    """Dimension of z; latents are projected to its mean and variance, and z back. None: that of the latents."""
    free_nats: Weight = 0.0
    """KL divergence in nats per frame that each dimension has for free (free bits; Kingma et al., 2016)."""


class CategoricalConfig(VariationalConfig):
    """What the bottlenecks with a categorical posterior over K codes share."""

    codebook_size: CodebookSize = 1024
    """Number of codes K."""
    free_nats: Weight = 0.0
    """KL divergence in nats per frame that is free, as in `gaussian`."""


class GumbelConfig(CategoricalConfig):
    """Categorical posterior, relaxed by Gumbel-Softmax (Jang et al., 2017; Maddison et al., 2017)."""

    implementation: ClassVar[str] = "audiovq.bottlenecks.gumbel:GumbelBottleneck"
    type: Literal["gumbel"] = "gumbel"
    start_temperature: PositiveFloat = 2.0
    """Temperature at the first step."""
    end_temperature: PositiveFloat = 0.5
    """Temperature from step `anneal_steps` on."""
    anneal_steps: Size = 10000
    """Steps over which the temperature goes exponentially from start to end."""
    hard: bool = True
    """Show the decoder a single code, and take the relaxed sample for the gradient only (straight-through)."""


class ReinforceConfig(CategoricalConfig):
    """Categorical posterior, trained by the score-function gradient (REINFORCE; Williams, 1992)."""

    implementation: ClassVar[str] = "audiovq.bottlenecks.reinforce:ReinforceBottleneck"
    type: Literal["reinforce"] = "reinforce"
    baseline: Literal["none", "moving_average", "leave_one_out"] = "leave_one_out"
    """What is subtracted from the cost of a sample: nothing, the average cost of the steps before, or the average
    cost of the item's other samples."""
    samples: Size = 4
    """Samples of codes for each item of a training batch; each passes through the decoder."""
    baseline_decay: Probability = 0.99
    """Decay of the moving average, for `baseline: moving_average`."""

    @model_validator(mode="after")
    def _others_to_average(self) -> ReinforceConfig:
        if self.baseline == "leave_one_out" and self.samples < 2:
            raise ValueError("baseline leave_one_out needs samples of at least 2, found 1")
        return self


class NoBottleneckConfig(PartConfig):
    """No bottleneck: a plain autoencoder, the upper bound of what a bottleneck can keep."""

    implementation: ClassVar[str] = "audiovq.bottlenecks.base:NoBottleneck"
    type: Literal["none"] = "none"


BottleneckConfig = Annotated[
    VQConfig | ResidualConfig | FSQConfig | GaussianConfig | GumbelConfig | ReinforceConfig | NoBottleneckConfig,
    Field(discriminator="type"),
]
