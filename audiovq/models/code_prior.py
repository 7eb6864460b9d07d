"""CodePrior: a trained prior as people use it, to sample new codes or continue given ones."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from audiovq.config import CodesConfig, PriorConfig
from audiovq.devices import choose_device, derive_seed, full_float32
from audiovq.errors import ConfigError, TokenError
from audiovq.models import release
from audiovq.models.prior import UNKNOWN, PriorNetwork
from audiovq.models.speakers import name_some, speaker_number

TAGS = "audio, speech, prior, wavenet, vq-vae"
EXAMPLE = """tokenizer = audiovq.AudioTokenizer.from_pretrained("path/to/the/tokenizer")  # the one named above
prior = audiovq.CodePrior.from_pretrained("path/to/this/folder")
codes = prior.sample(4, num_frames={frames}{speaker})
wave = tokenizer.decode(codes)"""
"""What a model card shows in Python."""


class CodePrior:
    """p(codes | speaker), from which codes are sampled; an `AudioTokenizer` decodes them.

        prior = CodePrior.from_pretrained("path/to/prior")
        codes = prior.sample(4, num_frames=300, speaker="p225")  # [4, Q, 300]
        wave = tokenizer.decode(codes)  # by the tokenizer whose codes the prior models

    Everything is computed in float32 on `device`.
    """

    def __init__(self, network: PriorNetwork, config: PriorConfig, device: str | torch.device = "cpu"):
        self.network = network.to(device).eval().requires_grad_(False)
        self.config = config
        self.device = torch.device(device)

    @classmethod
    def from_pretrained(
        cls, path_or_hub_id: str | Path, device: str = "auto", revision: str | None = None
    ) -> CodePrior:
        """Load a released prior from a folder or the Hugging Face Hub; see `AudioTokenizer.from_pretrained`.

        Raises:
            CheckpointError: the folder or its files are missing, damaged, another kind of model, or of a format this
                version cannot read.
        """
        config, network = release.load_network(path_or_hub_id, revision, PriorConfig, PriorNetwork)
        return cls(network, config, choose_device(device))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `model.safetensors`, `config.json` and a model card, `README.md`; each is replaced whole."""
        speaker = f', speaker="{self.speakers[0]}"' if self.speakers else ""
        example = EXAMPLE.format(frames=round(3 * self.codes.frame_rate), speaker=speaker)
        card = release.model_card("Prior over the codes of an audio tokenizer", TAGS, self.describe(), example)
        release.write(folder, self.config, self.network.state_dict(), card)

    def push_to_hub(self, hub_id: str, private: bool = False) -> str:
        """Upload to the Hugging Face Hub as `organisation/name`; returns the address of the commit."""
        return release.push(self, hub_id, private)

    @property
    def codes(self) -> CodesConfig:
        """The codes that are modelled, and whose they are."""
        assert self.config.codes is not None
        return self.config.codes

    @property
    def speakers(self) -> list[str]:
        """The speakers that the prior knows; empty for one that is not told who speaks."""
        return self.config.speakers

    def describe(self) -> dict[str, str]:
        """The prior's properties, named and in words."""
        field = self.config.receptive_field
        seconds = field / self.network.pattern.stride / self.codes.frame_rate
        codes = self.codes
        return {
            "codes": f"{codes.num_codebooks} x {codes.codebook_size}",
            "frame rate": f"{codes.frame_rate:g} Hz (hop length {codes.hop_length} samples at {codes.sample_rate} Hz)",
            "tokenizer sha256": codes.weights_sha256,
            "pattern": self.config.pattern,
            "layers": f"{self.config.layers} x {self.config.residual_channels} channels",
            "receptive field": f"{field} steps ({seconds:.2f} s)",
            **({"speakers": name_some(self.speakers)} if self.speakers else {}),
            "parameters": f"{sum(parameter.numel() for parameter in self.network.parameters()):,}",
        }

    def sample(
        self,
        num: int,
        num_frames: int,
        *,
        speaker: str | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        prime: Int[Tensor, "books frames"] | np.ndarray | None = None,
        seed: int = 0,
        first: int = 0,
    ) -> Int[Tensor, "num books num_frames"]:
        """Draw the codes of `num` utterances, all in one batch.

        Utterance i draws from its own random numbers, a function of (seed, first + i): it is the same in a batch of any
        size, up to rounding.

        Args:
            num_frames: length of each, with its prime.
            speaker: who speaks, one of `speakers`. None: nobody in particular, for a prior that can do without.
            temperature: below 1 sharpens the distributions, above 1 flattens them; 0 takes the likeliest codes.
            top_k: draw from this many likeliest codes, 1 to K.
            top_p: draw from the fewest likeliest codes that together have at least this probability, above 0, up to 1.
            prime: codes [Q, P] with which all utterances begin, and which they continue.
            first: number of the first utterance, to go on where another call ended.

        Raises:
            ConfigError: one of the settings is out of range.
            SpeakerError: the prior does not know the speaker, or has to be told one.
            TokenError: the prime does not fit the codes that are modelled, or leaves nothing to draw.
        """
        self.check_settings(temperature, top_k, top_p)
        if num < 1 or num_frames < 1:
            raise ConfigError(f"expected at least one utterance and one frame, found {num} and {num_frames}")
        number = self.speaker_number(speaker)
        codes = torch.full((num, self.codes.num_codebooks, num_frames), UNKNOWN)
        if prime is not None:
            known = self._check_prime(prime, num_frames)
            codes[..., : known.shape[-1]] = known
        # Step by step, so that a longer utterance begins with the same numbers.
        shape = (self.network.pattern.num_steps(num_frames), self.codes.num_codebooks)
        generators = [torch.Generator().manual_seed(derive_seed(seed, first + i)) for i in range(num)]
        uniforms = torch.stack([torch.rand(shape, generator=generator) for generator in generators]).mT
        told = None if number is None else torch.full((num,), number, device=self.device)
        with full_float32():
            drawn = self.network.draw(codes.to(self.device), uniforms.to(self.device), told, temperature, top_k, top_p)
        return drawn.cpu()

    def speaker_number(self, speaker: str | None) -> int | None:
        """The number of a speaker as the network is told it; None if it is not told.

        Raises:
            SpeakerError: the prior does not know the speaker, or has to be told one.
        """
        if speaker is None and (not self.speakers or self.config.speaker_dropout):
            return None
        return speaker_number(speaker, self.speakers)

    def check_settings(self, temperature: float, top_k: int | None, top_p: float) -> None:
        """Raise `ConfigError` unless codes can be drawn with these settings."""
        if not 0 <= temperature < math.inf:
            raise ConfigError(f"temperature: expected a number from 0 (the likeliest codes) on, found {temperature:g}")
        if top_k is not None and not 1 <= top_k <= self.codes.codebook_size:
            raise ConfigError(f"top-k: expected 1 to {self.codes.codebook_size} codes, found {top_k}")
        if not 0 < top_p <= 1:
            raise ConfigError(f"top-p: expected a probability above 0, up to 1, found {top_p:g}")

    def _check_prime(self, prime: Tensor | np.ndarray, num_frames: int) -> Int[Tensor, "books frames"]:
        prime = torch.as_tensor(np.asarray(prime).astype(np.int64))
        books, size = self.codes.num_codebooks, self.codes.codebook_size
        if prime.ndim != 2 or len(prime) != books or prime.numel() == 0:
            raise TokenError(f"expected a prime of shape [{books}, P], found {list(prime.shape)}")
        if prime.min() < 0 or prime.max() >= size:
            raise TokenError(f"expected codes from 0 to {size - 1}, found {prime.min()} to {prime.max()}")
        if prime.shape[-1] >= num_frames:
            raise TokenError(
                f"the prime has {prime.shape[-1]} frames, which leaves nothing to draw of {num_frames}; "
                "ask for more, since the prime counts"
            )
        return prime
