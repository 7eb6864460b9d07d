"""The config class of transformers for audiovq's tokenizers."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedConfig

import audiovq
from audiovq.config import AutoencoderConfig, parse_config
from audiovq.errors import CheckpointError
from audiovq.interop.remote_code import CLASSES, InPackage, auto_map
from audiovq.models import release


class AudioVQConfig(InPackage, PreTrainedConfig):
    """The `config.json` of a release of audiovq, with what transformers adds to it.

    Without settings it is that of `speech-16k`.
    """

    model_type = "audiovq"

    format_version: int = release.FORMAT_VERSION
    audiovq_version: str = audiovq.__version__
    kind: str = "tokenizer"
    model: dict[str, Any] | None = None
    """An `audiovq.config.AutoencoderConfig`."""

    def __post_init__(self, **kwargs: Any) -> None:
        if self.format_version != release.FORMAT_VERSION or self.kind != "tokenizer":
            raise CheckpointError(
                f"config: expected kind tokenizer and format_version {release.FORMAT_VERSION}, found kind "
                f"{self.kind!s:.60} and {self.format_version!s:.60}; is it of this version of audiovq?"
            )
        if self.model is None:
            shipped = release.read_config(release.locate("speech-16k"), AutoencoderConfig)
            self.model = shipped.model_dump(mode="json")
        super().__post_init__(**{"auto_map": auto_map(*CLASSES), **kwargs})

    @property
    def settings(self) -> AutoencoderConfig:
        """The settings of the network, checked.

        Raises:
            ConfigError: they are malformed or do not fit together.
        """
        return parse_config(self.model, AutoencoderConfig, "config.json")

    @property
    def sampling_rate(self) -> int:
        """Rate in Hz of the waveforms that the model works on."""
        return self.settings.sample_rate

    @property
    def hop_length(self) -> int:
        """Samples a frame."""
        return self.settings.hop_length

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.settings.frame_rate

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes in each codebook."""
        settings = self.settings
        with torch.device("meta"):
            return settings.bottleneck.build(settings).codebook_sizes

    @property
    def num_quantizers(self) -> int:
        """Number of codebooks Q."""
        return len(self.codebook_sizes)

    @property
    def codebook_size(self) -> int:
        """Codes in the largest codebook."""
        return max(self.codebook_sizes, default=0)
