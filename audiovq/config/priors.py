"""Schemas of priors over codes: the network, the codes that it models, and how it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from audiovq.config.bottlenecks import CodebookCount, CodebookSize, CodebookSizes
from audiovq.config.decoders import SpeakerWaveNetConfig
from audiovq.config.experiments import TrainingConfig
from audiovq.config.schema import PositiveFloat, PositiveInt, Probability, SampleRate, Schema, Size
from audiovq.text import shown


class CodesConfig(Schema):
    """The codes that a prior models: those of one tokenizer."""

    weights_sha256: str
    """The tokenizer's `codes_sha256`."""
    sample_rate: SampleRate
    """Rate in Hz of the waveforms that the codes stand for."""
    hop_length: Size
    """Samples a frame."""
    frame_rate: PositiveFloat
    """Frames a second."""
    num_codebooks: CodebookCount
    """Codes a frame, Q."""
    codebook_size: CodebookSize
    """Codes in the largest codebook, K."""
    codebook_sizes: CodebookSizes | None = None
    """Codes in each codebook. None: all of them have K."""

    @property
    def sizes(self) -> list[int]:
        """Codes in each codebook."""
        return self.codebook_sizes or [self.codebook_size] * self.num_codebooks

    @model_validator(mode="after")
    def _a_size_for_each(self) -> CodesConfig:
        if len(self.sizes) != self.num_codebooks or max(self.sizes) != self.codebook_size:
            raise ValueError(
                f"codebook_sizes: expected {self.num_codebooks} sizes, the largest {self.codebook_size}, "
                f"found {shown(self.codebook_sizes)}"
            )
        return self


class PriorConfig(SpeakerWaveNetConfig):
    """A WaveNet over codes, p(codes | speaker)."""

    pattern: Literal["delay", "flatten"] = "delay"
    """Order of the codes of a frame when there are several codebooks. delay: codebook q is q steps late, and all
    codebooks take a step together (Copet et al., 2023). flatten: one code a step, Q steps a frame."""
    speaker_dropout: Probability = 0.0
    """Share of the training crops whose speaker is not told, so that the prior can do without. 0: it has to be told."""
    codes: CodesConfig | None = None
    """The codes that are modelled. None: those of the token data set, filled in when training starts."""

    @model_validator(mode="after")
    def _dropout_of_something(self) -> PriorConfig:
        if self.speaker_dropout and not self.speaker_dim:
            raise ValueError("speaker_dropout needs a speaker_dim of at least 1, found 0")
        return self


class PriorExperimentConfig(PriorConfig):
    """A whole training run of a prior: the network and how it is trained."""

    tokens: Path
    """Token data set to train on."""
    valid_tokens: Path | None = None
    """Token data set to validate on. None: a share of `tokens` is held out."""
    valid_share: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the utterances of `tokens` that is held out if there are no `valid_tokens`."""
    crop_frames: PositiveInt = 256
    """Length of a training crop in frames."""
    batch_size: PositiveInt = 16
    """Crops a batch, on each process."""
    training: TrainingConfig

    def model_part(self) -> PriorConfig:
        """The part that a released prior keeps."""
        return PriorConfig(**{name: getattr(self, name) for name in PriorConfig.model_fields})
