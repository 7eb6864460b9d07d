"""Every schema of audiovq: models, losses, data and training, read from YAML with dotted overrides.

The YAML files under `recipes/*/conf` are instances of `ExperimentConfig`, or, for a prior over codes, of
`PriorExperimentConfig`. A released model keeps only its `AutoencoderConfig` or `PriorConfig` part. Unknown keys are
refused, with the nearest known one in the message.
"""

from __future__ import annotations

from audiovq.config.experiments import (
    AutoencoderTrainingConfig,
    DataConfig,
    ExperimentConfig,
    LossConfig,
    TrainingConfig,
)
from audiovq.config.models import (
    AutoencoderConfig,
    BottleneckConfig,
    CategoricalConfig,
    DecoderConfig,
    EncoderConfig,
    GaussianConfig,
    GumbelConfig,
    ISTFTDecoderConfig,
    NoBottleneckConfig,
    ReinforceConfig,
    SpeakerWaveNetConfig,
    TransposedDecoderConfig,
    VariationalConfig,
    VQConfig,
    WaveNetConfig,
    WaveNetDecoderConfig,
)
from audiovq.config.priors import (
    CodesConfig,
    PriorConfig,
    PriorExperimentConfig,
)
from audiovq.config.reading import (
    load_config,
    parse_config,
)

__all__ = [
    "AutoencoderConfig",
    "AutoencoderTrainingConfig",
    "BottleneckConfig",
    "CategoricalConfig",
    "CodesConfig",
    "DataConfig",
    "DecoderConfig",
    "EncoderConfig",
    "ExperimentConfig",
    "GaussianConfig",
    "GumbelConfig",
    "ISTFTDecoderConfig",
    "LossConfig",
    "NoBottleneckConfig",
    "PriorConfig",
    "PriorExperimentConfig",
    "ReinforceConfig",
    "SpeakerWaveNetConfig",
    "TrainingConfig",
    "TransposedDecoderConfig",
    "VQConfig",
    "VariationalConfig",
    "WaveNetConfig",
    "WaveNetDecoderConfig",
    "load_config",
    "parse_config",
]
