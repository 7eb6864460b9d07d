"""Schema of a tokenizer's network."""

from __future__ import annotations

from typing import Any

from pydantic import field_validator, model_validator

from audiovq.config.bottlenecks import BottleneckConfig, VQConfig
from audiovq.config.decoders import DecoderConfig
from audiovq.config.encoders import EncoderConfig
from audiovq.config.schema import SampleRate, Schema, Size
from audiovq.text import shown


class AutoencoderConfig(Schema):
    """All that is needed to build a tokenizer's network."""

    sample_rate: SampleRate
    """Rate of the waveforms in Hz."""
    latent_dim: Size = 128
    """Channels D of the latents between encoder, bottleneck and decoder."""
    encoder: EncoderConfig
    bottleneck: BottleneckConfig = VQConfig()
    decoder: DecoderConfig

    @property
    def hop_length(self) -> int:
        """Samples a frame."""
        return self.encoder.hop_length

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.sample_rate / self.hop_length

    @property
    def speakers(self) -> list[str]:
        """The speakers that the decoder is told apart; none for a decoder that is not told who speaks."""
        return getattr(self.decoder, "speakers", [])

    @field_validator("encoder", mode="before")
    @classmethod
    def _conv_by_default(cls, encoder: Any) -> Any:
        """Configs of before there were other encoders do not name a type."""
        return {"type": "conv", **encoder} if isinstance(encoder, dict) else encoder

    @model_validator(mode="after")
    def _decoder_fits(self) -> AutoencoderConfig:
        if self.hop_length > self.sample_rate:
            raise ValueError(
                f"encoder: a frame of at most a second is expected, found {shown(self.hop_length)} samples"
            )
        self.decoder.check(self)
        return self
