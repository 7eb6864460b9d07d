"""Speakers of a run whose decoder is told who speaks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from audiovq.config import ExperimentConfig
from audiovq.errors import SpeakerError
from audiovq.models.speakers import speaker_number
from audiovq.training.targets import Manifests


def with_known_speakers(config: ExperimentConfig, speakers: Sequence[str]) -> ExperimentConfig:
    """The config with these speakers, if its decoder is told who speaks and it names none."""
    if config.speakers or not speakers or not getattr(config.decoder, "speaker_dim", 0):
        return config
    return config.model_copy(update={"decoder": config.decoder.model_copy(update={"speakers": [*speakers]})})


def with_speakers(config: ExperimentConfig, train: Manifests, valid: Manifests) -> ExperimentConfig:
    """The config with the speakers of the training utterances, if its decoder is told who speaks and it names none.

    Raises:
        SpeakerError: an utterance has no speaker, or one that the decoder does not know.
    """
    if not getattr(config.decoder, "speaker_dim", 0):
        return config
    if not config.speakers:
        everyone = (utterance.speaker for part in train.values() for utterance in part)
        config = with_known_speakers(config, sorted({name for name in everyone if name is not None}))
    for manifest, utterances in [*train.items(), *valid.items()]:
        for utterance in utterances:
            place = f"{manifest}: utterance {utterance.id!r}"
            if utterance.speaker is None:
                raise SpeakerError(f"{place} has no speaker; prepare the data with them, or set decoder.speaker_dim=0")
            try:
                speaker_number(utterance.speaker, config.speakers)
            except SpeakerError as error:
                raise SpeakerError(
                    f"{place}: {error}; to train and validate on the same speakers, divide the data by utterance "
                    "(audiovq prepare --split-by utterance)"
                ) from error
    return config


def speaker_numbers(names: Sequence[str | None], config: ExperimentConfig) -> Int[Tensor, " batch"] | None:
    """The numbers of speakers, for a decoder that is told who speaks."""
    if not config.speakers:
        return None
    return torch.tensor([speaker_number(name, config.speakers) for name in names])
