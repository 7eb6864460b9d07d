"""Every schema of audiovq: models, losses, data and training, read from YAML with dotted overrides.

The YAML files under `recipes/*/conf` are instances of `ExperimentConfig`, or, for a prior over codes, of
`PriorExperimentConfig`. A released model keeps only its `AutoencoderConfig` or `PriorConfig` part. Unknown keys are
refused, with the nearest known one in the message.
"""

from __future__ import annotations

from audiovq.config.adversarial import AdversarialConfig, AdversarialKind, DiscriminatorConfig
from audiovq.config.bottlenecks import (
    BottleneckConfig,
    CategoricalConfig,
    FSQConfig,
    GaussianConfig,
    GumbelConfig,
    NoBottleneckConfig,
    QuantizerConfig,
    ReinforceConfig,
    ResidualConfig,
    VariationalConfig,
    VQConfig,
)
from audiovq.config.decoders import (
    DecoderConfig,
    ISTFTDecoderConfig,
    SourceDecoderConfig,
    SpeakerWaveNetConfig,
    TransposedDecoderConfig,
    WaveNetConfig,
    WaveNetDecoderConfig,
)
from audiovq.config.encoders import ConvEncoderConfig, EncoderConfig, SpectralEncoderConfig
from audiovq.config.experiments import (
    AugmentationConfig,
    AutoencoderTrainingConfig,
    DataConfig,
    ExperimentConfig,
    LossConfig,
    TrainingConfig,
)
from audiovq.config.models import AutoencoderConfig
from audiovq.config.priors import (
    CodesConfig,
    PriorConfig,
    PriorExperimentConfig,
)
from audiovq.config.reading import (
    load_config,
    parse_config,
)
from audiovq.config.schema import ConvNeXtConfig, PartConfig

__all__ = [
    "AdversarialConfig",
    "AdversarialKind",
    "AugmentationConfig",
    "AutoencoderConfig",
    "AutoencoderTrainingConfig",
    "BottleneckConfig",
    "CategoricalConfig",
    "CodesConfig",
    "ConvEncoderConfig",
    "ConvNeXtConfig",
    "DataConfig",
    "DecoderConfig",
    "DiscriminatorConfig",
    "EncoderConfig",
    "ExperimentConfig",
    "FSQConfig",
    "GaussianConfig",
    "GumbelConfig",
    "ISTFTDecoderConfig",
    "LossConfig",
    "NoBottleneckConfig",
    "PartConfig",
    "PriorConfig",
    "PriorExperimentConfig",
    "QuantizerConfig",
    "ReinforceConfig",
    "ResidualConfig",
    "SourceDecoderConfig",
    "SpeakerWaveNetConfig",
    "SpectralEncoderConfig",
    "TrainingConfig",
    "TransposedDecoderConfig",
    "VQConfig",
    "VariationalConfig",
    "WaveNetConfig",
    "WaveNetDecoderConfig",
    "load_config",
    "parse_config",
]
