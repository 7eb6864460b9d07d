"""A trained tokenizer as a thing that is loaded, saved and described; what it does is in `audiovq.models.tokenizer`."""

from __future__ import annotations

import copy
import hashlib
import math
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from audiovq.config import AutoencoderConfig
from audiovq.devices import choose_device
from audiovq.errors import TokenError
from audiovq.models import release
from audiovq.models.autoencoder import Autoencoder
from audiovq.models.exact import ExactCodes
from audiovq.models.speakers import name_some, speaker_number
from audiovq.text import name_sizes

TAGS = "audio, speech, tokenizer, codec, vq-vae"
EXAMPLE = """tokenizer = audiovq.AudioTokenizer.from_pretrained("path/to/this/folder")
wave, sample_rate = audiovq.load_audio("speech.wav")
codes = tokenizer.encode(wave, sample_rate)
wave = tokenizer.decode(codes{speaker})"""
"""What a model card shows in Python."""

TokenizerT = TypeVar("TokenizerT", bound="BaseTokenizer")


class BaseTokenizer:
    """A network, its config and the device it computes on."""

    def __init__(self, model: Autoencoder, config: AutoencoderConfig, device: str | torch.device = "cpu"):
        self.model = model.to(device).eval().requires_grad_(False)
        self.config = config
        self.device = torch.device(device)

    @classmethod
    def from_pretrained(
        cls: type[TokenizerT], path_or_hub_id: str | Path, device: str = "auto", revision: str | None = None
    ) -> TokenizerT:
        """Load a released model from a folder or, if there is no such folder, from the Hugging Face Hub.

        Args:
            path_or_hub_id: folder with `config.json` and `model.safetensors`, or `organisation/name` on the Hub.
            device: where to compute; `auto` takes an accelerator if there is one.
            revision: branch, tag or commit on the Hub.

        Raises:
            CheckpointError: the folder or its files are missing, damaged, another kind of model, or of a format this
                version cannot read.
        """
        config, model = release.load_network(path_or_hub_id, revision, AutoencoderConfig, Autoencoder)
        return cls(model, config, choose_device(device))

    def save_pretrained(self, folder: str | Path, half: bool = False) -> None:
        """Write `model.safetensors`, `config.json` and a model card, `README.md`; each is replaced whole.

        Args:
            half: write the weights in half precision. That is another model, of other codes; it computes in float32.
        """
        speaker = f', speaker="{self.speakers[0]}"' if self.speakers else ""
        example = EXAMPLE.format(speaker=speaker)
        written = self._in_half_precision() if half else self
        card = release.model_card("Audio tokenizer", TAGS, written.describe(), example)
        release.write(folder, self.config, self.model.state_dict(), card, half)

    def _in_half_precision(self: TokenizerT) -> TokenizerT:
        """What is loaded where the weights were written in half precision."""
        model = copy.deepcopy(self.model)
        for weight in model.state_dict().values():
            weight.copy_(weight.half() if weight.is_floating_point() else weight)
        return type(self)(model, self.config, self.device)

    def push_to_hub(self, hub_id: str, private: bool = False) -> str:
        """Upload to the Hugging Face Hub as `organisation/name`; returns the address of the commit."""
        return release.push(self, hub_id, private)

    @property
    def sample_rate(self) -> int:
        """Rate in Hz of the waveforms that the model works on."""
        return self.config.sample_rate

    @property
    def hop_length(self) -> int:
        """Samples a frame."""
        return self.config.hop_length

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.config.frame_rate

    @property
    def num_codebooks(self) -> int:
        """Codes a frame, Q; 0 for a model without codes."""
        return self.model.bottleneck.num_codebooks

    @property
    def codebook_size(self) -> int:
        """Codes in the largest codebook, K; 0 for a model without codes."""
        return self.model.bottleneck.codebook_size

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes K in each codebook."""
        return self.model.bottleneck.codebook_sizes

    @property
    def bitrate(self) -> float:
        """Nominal bits a second of all codebooks; 0 for a model without codes."""
        return self.bitrate_of(self.num_codebooks)

    def bitrate_of(self, num_codebooks: int) -> float:
        """Nominal bits a second of the first few codebooks, frame_rate * sum of log2(K).

        Raises:
            TokenError: the model has not so many codebooks.
        """
        if num_codebooks:
            self.require_codes(num_codebooks)
        return self.frame_rate * sum(map(math.log2, self.codebook_sizes[:num_codebooks]))

    @property
    def latency(self) -> float:
        """Seconds by which a stream's output lags its input: a frame, and what encoder and decoder look ahead."""
        frames = self.hop_length * (1 + self.model.look_ahead) + self.model.delay.look_ahead
        return frames / self.sample_rate

    @property
    def speakers(self) -> list[str]:
        """The speakers whose voices the decoder knows; empty for a decoder that is not told who speaks."""
        return self.config.speakers

    @property
    def num_parameters(self) -> int:
        """Weights of encoder, bottleneck and decoder."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights, as `save_pretrained` writes them; names the model in what is said of it."""
        return hashlib.sha256(release.serialize(self.model.state_dict())).hexdigest()

    @cached_property
    def codes_sha256(self) -> str:
        """SHA-256 of the weights that codes depend on, those of encoder and bottleneck; names the model in codes.

        Models that differ in their decoders alone read each other's codes.
        """
        weights = self.model.state_dict()
        named = {name: weight for name, weight in weights.items() if not name.startswith("decoder.")}
        return hashlib.sha256(release.serialize(named)).hexdigest()

    def made(self, sha256: str) -> bool:
        """Whether codes that name a model by this are the tokenizer's; older ones name it by all of its weights."""
        return sha256 == self.codes_sha256 or sha256 == self.weights_sha256

    @cached_property
    def exact(self) -> ExactCodes:
        """What settles near ties between codes."""
        return ExactCodes(self.model, self.sample_rate, self.device)

    def describe(self) -> dict[str, str]:
        """The model's properties, named and in words."""
        counts = range(1, self.num_codebooks + 1)
        rates = ", ".join(f"{self.bitrate_of(count) / 1000:.3g}" for count in counts)
        return {
            "sample rate": f"{self.sample_rate} Hz",
            "frame rate": f"{self.frame_rate:g} Hz (hop length {self.hop_length} samples)",
            "bottleneck": self.config.bottleneck.type,
            "codes": name_sizes(self.codebook_sizes),
            "bitrate": f"{self.bitrate:g} bit/s" if self.num_codebooks else "none",
            **({"kbit/s": f"{rates} with 1 to {self.num_codebooks} codebooks"} if len(counts) > 1 else {}),
            "encoder": self.config.encoder.type,
            "decoder": self.config.decoder.type,
            "latency": f"{1000 * self.latency:g} ms",
            **({"speakers": name_some(self.speakers)} if self.speakers else {}),
            "parameters": f"{self.num_parameters:,}",
            "weights sha256": self.weights_sha256,
            "codes sha256": self.codes_sha256,
        }

    def num_frames(self, num_samples: int) -> int:
        """Frames that `num_samples` samples at the model's rate are encoded to: ceil(T / hop_length)."""
        return -(-num_samples // self.hop_length)

    def speaker_number(self, speaker: str | None) -> Int[Tensor, " 1"] | None:
        """The number of a speaker as the decoder is told it; None for a model without speakers.

        Raises:
            SpeakerError: the model does not know the speaker, or has to be told one.
        """
        if speaker is None and not self.speakers:
            return None
        return torch.tensor([speaker_number(speaker, self.speakers)], device=self.device)

    def require_codes(self, num_codebooks: int | None = None) -> None:
        """Raise `TokenError` if the model has no codes, or not so many codebooks."""
        if not self.num_codebooks:
            raise TokenError(f"a model with bottleneck {self.config.bottleneck.type!r} has no codes")
        if num_codebooks is not None and not 1 <= num_codebooks <= self.num_codebooks:
            possible = f"1 to {self.num_codebooks}" if self.num_codebooks > 1 else "1"
            raise TokenError(f"codebooks: expected {possible}, as many as the model has, found {num_codebooks}")
