"""What a plan says: which trainings and measurements the bench makes, with which settings."""

from __future__ import annotations

from pydantic import model_validator

from audiovq.config.schema import Schema

KINDS = ("none", "gaussian", "gumbel", "reinforce", "vq")
"""Bottlenecks that are compared."""
EXPERIMENTS = (
    *("reparameterisation", "score-function", "gumbel-softmax", "straight-through", "posterior-collapse"),
    *("codebook-collapse", "commitment", "k-means", "two-stages", "representations", "rate-quality"),
)
"""All experiments: one for each statement, in its order, and the comparison itself."""


class Tuning(Schema):
    """Trials by which the settings of each bottleneck are chosen."""

    seconds: float
    trials: dict[str, list[list[str]]]
    """Overrides of each trial, by bottleneck; as many for all."""


class Curves(Schema):
    """Points of the rate-quality curves."""

    seconds: float
    values: dict[str, dict[str, dict[str, list[float]]]]
    """The setting that moves the rate and its values, by how the rate is measured (`entropy` of the codes, `kl`) and
    by bottleneck."""


class Compare(Schema):
    """Rates at which all are compared, with every seed."""

    seconds: float
    points: dict[str, list[float]]
    """Bits a second, by how the rate is measured."""


class Gradients(Schema):
    """What gradients are drawn."""

    draws: int
    one_latent_draws: int
    temperatures: list[float]
    samples: list[int]
    vq_temperatures: list[float]


class Schedules(Schema):
    """Temperature schedules of Gumbel-Softmax."""

    seconds: float
    settings: dict[str, list[str]]


class Context(Schema):
    """Decoders that see more and more of the waveform's past."""

    steps: int
    step_seconds: dict[str, float]
    units: list[int]
    overrides: list[str]
    bottlenecks: dict[str, list[str]]
    remedy_units: list[int]
    remedies: dict[str, list[str]]
    normalized: list[str]
    """Bottlenecks that are tried with batch normalisation of the latents, too, which `gumbel` and `reinforce` have
    built in."""
    free_nats_per_dimension: bool


class Codebooks(Schema):
    """What keeps codes in use."""

    seconds: float
    codebook_size: int
    revival: dict[str, float]
    updates: list[str]
    inits: list[str]


class Commitment(Schema):
    """Weights of the commitment loss."""

    seconds: float
    betas: list[float]


class KMeans(Schema):
    """Ways to fit a codebook to frozen latents."""

    codes: int
    frames: int
    passes: int
    learning_rate: float


class Stages(Schema):
    """A prior that is trained with the autoencoder or after it."""

    seconds: float
    prior_steps: int
    weight: float
    temperature: float
    bottlenecks: list[str]
    prior: dict[str, float]


class Probes(Schema):
    """Codes as a representation."""

    bits: float
    prior_steps: int
    min_count: int
    most_words: int


class Plan(Schema):
    """All that the bench does beside its model."""

    seeds: list[int]
    unseen: list[str]
    """Speakers that are kept for the test."""
    dev: float
    utterances: int
    seconds_each: float
    step_seconds: dict[str, float]
    sample_seconds: float
    bottlenecks: dict[str, list[str]]
    base_seconds: float
    tuning: Tuning
    curves: Curves
    compare: Compare
    gradients: Gradients
    schedules: Schedules
    context: Context
    codebooks: Codebooks
    commitment: Commitment
    kmeans: KMeans
    stages: Stages
    probes: Probes

    @model_validator(mode="after")
    def _probed_models_are_compared(self) -> Plan:
        missing = [name for name in ("entropy", "kl") if self.probes.bits not in self.compare.points[name]]
        if missing:
            raise ValueError(f"probes.bits: {self.probes.bits:g} is no point of compare.points.{missing[0]}")
        return self
