"""The models that come with audiovq: what is there, and how good it was found to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from audiovq.config import AutoencoderConfig, PriorConfig
from audiovq.errors import CheckpointError
from audiovq.files import read_json
from audiovq.models.autoencoder import Autoencoder
from audiovq.models.release import CONFIG, PRETRAINED, PRIOR, WEIGHTS, read_config

QUALITY = "quality.json"
"""Measured quality of a model, beside its weights; `recipes/speech/local/pack.py` writes it."""


@dataclass(frozen=True)
class Rate:
    """What a model keeps of speech with some of its codebooks."""

    codebooks: int
    """How many are used, the first ones."""
    bitrate: float
    """Nominal bits a second."""
    metrics: Mapping[str, float]
    """Means over the clips, by the metric's name."""


@dataclass(frozen=True)
class Pretrained:
    """A tokenizer that comes with audiovq."""

    name: str
    """What `AudioTokenizer.from_pretrained` and the commands know it by."""
    config: AutoencoderConfig
    num_bytes: int
    """Size of its files, those of its prior among them."""
    num_parameters: int
    rates: list[Rate]
    """From the lowest bitrate to the highest; empty if it was not measured."""
    conditions: list[str]
    """What the metrics were measured on, and how."""
    prior: PriorConfig | None = None
    """The prior over its codes that comes with it."""


def pretrained_models(folder: Path = PRETRAINED) -> list[Pretrained]:
    """All tokenizers that come with audiovq, by name; no weights are read.

    Raises:
        CheckpointError: the files of one are damaged.
    """
    return [_describe(path.parent) for path in sorted(folder.glob(f"*/{WEIGHTS}"))]


def _describe(folder: Path) -> Pretrained:
    measured = folder / QUALITY
    try:
        quality = read_json(measured) if measured.exists() else {"rates": [], "conditions": []}
        rates = [Rate(**rate) for rate in quality["rates"]]
        conditions = [str(line) for line in quality["conditions"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{measured}: cannot be read ({error})") from error
    config = read_config(folder, AutoencoderConfig)
    with torch.device("meta"):  # Counting takes no memory.
        num_parameters = sum(parameter.numel() for parameter in Autoencoder(config).parameters())
    return Pretrained(
        name=folder.name,
        config=config,
        num_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        num_parameters=num_parameters,
        rates=rates,
        conditions=conditions,
        prior=read_config(folder / PRIOR, PriorConfig) if (folder / PRIOR / CONFIG).is_file() else None,
    )
