"""Every schema of audiovq: models, losses, data and training, read from YAML with dotted overrides.

The YAML files under `recipes/*/conf` are instances of `ExperimentConfig`. A released model keeps only its
`AutoencoderConfig` part. Unknown keys are refused, with the nearest known one in the message.
"""

from __future__ import annotations

from audiovq.config.experiments import (
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
    TransposedDecoderConfig,
    VariationalConfig,
    VQConfig,
    WaveNetConfig,
    WaveNetDecoderConfig,
)
from audiovq.config.reading import (
    load_config,
    parse_config,
)

__all__ = [
    "AutoencoderConfig",
    "BottleneckConfig",
    "CategoricalConfig",
    "DataConfig",
    "DecoderConfig",
    "EncoderConfig",
    "ExperimentConfig",
    "GaussianConfig",
    "GumbelConfig",
    "ISTFTDecoderConfig",
    "LossConfig",
    "NoBottleneckConfig",
    "ReinforceConfig",
    "TrainingConfig",
    "TransposedDecoderConfig",
    "VQConfig",
    "VariationalConfig",
    "WaveNetConfig",
    "WaveNetDecoderConfig",
    "load_config",
    "parse_config",
]
