"""The prior's network: p(codes | speaker), its likelihoods, and codes drawn from it."""

from __future__ import annotations

import math
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from audiovq.config import CodesConfig, PriorConfig
from audiovq.devices import choose_device, derive_seed, full_float32
from audiovq.errors import ConfigError, TokenError
from audiovq.models import release
from audiovq.models.speakers import name_some, speaker_number
from audiovq.models.streaming import check_codes
from audiovq.nn.pattern import Pattern
from audiovq.nn.wavenet import WaveNet
from audiovq.sampling.base import sample
from audiovq.sampling.stepping import fastest_stepper
from audiovq.text import name_sizes

PIECE = 4096
"""Steps that are scored at a time, each piece behind a receptive field of context, which bounds memory."""
UNKNOWN = -1
"""In place of a code: still to be drawn."""


class PriorNetwork(nn.Module):
    """p(codes | speaker) of codes [B, Q, F], as a `WaveNet` over the steps that a `Pattern` makes of them.

    The sum of log p over the codes is the exact log-likelihood of the whole, with either pattern.

    Args:
        config: with its codes.
    """

    def __init__(self, config: PriorConfig):
        super().__init__()
        assert config.codes is not None, "a prior is built for the codes of a tokenizer"
        self.pattern = Pattern(config.pattern, config.codes.num_codebooks)
        sizes = config.codes.sizes
        self.silence = max(sizes)
        self.speaker_dropout = config.speaker_dropout
        # The last one stands for a speaker who is not told.
        self.speakers = nn.Embedding(len(config.speakers) + 1, config.speaker_dim) if config.speakers else None
        speaker_dim = config.speaker_dim if config.speakers else 0
        self.network = WaveNet(config, self.pattern.num_codebooks, self.silence, global_dim=speaker_dim, sizes=sizes)

    def forward(
        self, steps: Int[Tensor, "batch books steps"], speaker: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch books codes steps_1"]:
        """Logits of all steps but the first, each given the steps before it: teacher forcing.

        Args:
            steps: as a `Pattern` arranges them. In front of the whole belongs one silent step; in front of a part of
                it, the step before.
            speaker: numbers of the speakers in the config, or as many as there are for one who is not told. In training
                a share of them, `speaker_dropout`, is not told.
        """
        return self.network.predict(steps[..., :-1], None, self._embed(speaker, len(steps)))

    def _embed(self, speaker: Int[Tensor, " batch"] | None, batch_size: int) -> Float[Tensor, "batch channels"] | None:
        if self.speakers is None:
            return None
        nobody = self.speakers.num_embeddings - 1
        if speaker is None:
            speaker = torch.full((batch_size,), nobody, device=self.speakers.weight.device)
        if self.training and self.speaker_dropout:
            lost = torch.rand(batch_size, device=speaker.device) < self.speaker_dropout
            speaker = speaker.masked_fill(lost, nobody)
        return self.speakers(speaker)

    @torch.no_grad()
    def log_prob(
        self, codes: Int[Tensor, "batch books frames"], speaker: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch books frames"]:
        """log p in nats of each code given those that its pattern puts before it, in bounded memory."""
        steps = F.pad(self.pattern.arrange(codes, self.silence), (1, 0), value=self.silence)
        scored = []
        for start in range(0, steps.shape[-1] - 1, PIECE):
            context = min(start, self.network.receptive_field)
            piece = steps[..., start - context : start + PIECE + 1]
            logits = self(piece, speaker)[..., context:]
            log_p = logits.log_softmax(2, torch.promote_types(logits.dtype, torch.float32))
            targets = piece[..., context + 1 :].clamp(max=self.silence - 1)  # Silent steps are not restored.
            scored.append(log_p.gather(2, targets[:, :, None]).squeeze(2))
        return self.pattern.restore(torch.cat(scored, -1))

    @torch.inference_mode()
    def draw(
        self,
        codes: Int[Tensor, "batch books frames"],
        uniforms: Float[Tensor, "batch books steps"],
        speaker: Int[Tensor, " batch"] | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
    ) -> Int[Tensor, "batch books frames"]:
        """Codes with the unknown ones drawn, each given those before it; see `audiovq.sampling.base.sample`.

        Args:
            codes: `UNKNOWN` where a code is to be drawn, at the same places in all items.
            uniforms: random numbers from [0, 1), one for each stream and step.
        """
        steps = self.pattern.arrange(codes, self.silence)
        stepper = fastest_stepper(self.network, len(codes))
        conditions = self.network.conditions(None, self._embed(speaker, len(codes)))
        condition = None if conditions is None else conditions[..., 0]
        settings = (temperature, top_k, top_p)
        previous = stepper.start()
        unknown = steps[0] == UNKNOWN
        for free, group in groupby(range(steps.shape[-1]), key=unknown.all(0).tolist().__getitem__):
            if free:  # All streams are drawn: the stepper goes on by itself.
                numbers = list(group)
                drawn = stepper.generate(previous, uniforms[..., numbers], condition, *settings)
                steps[..., numbers] = drawn
                previous = drawn[..., -1]
                continue
            for number in group:
                logits = stepper.step(previous, condition)
                previous = steps[..., number]
                if unknown[:, number].any():
                    drawn = sample(logits, uniforms[..., number], *settings)
                    previous = torch.where(previous == UNKNOWN, drawn, previous)
                    steps[..., number] = previous
        return self.pattern.restore(steps)


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

    def save_pretrained(self, folder: str | Path, half: bool = False) -> None:
        """Write `model.safetensors`, `config.json` and a model card, `README.md`; each is replaced whole.

        Args:
            half: write the weights in half precision.
        """
        speaker = f', speaker="{self.speakers[0]}"' if self.speakers else ""
        example = EXAMPLE.format(frames=round(3 * self.codes.frame_rate), speaker=speaker)
        card = release.model_card("Prior over the codes of an audio tokenizer", TAGS, self.describe(), example)
        release.write(folder, self.config, self.network.state_dict(), card, half)

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
            "codes": name_sizes(codes.sizes),
            "frame rate": f"{codes.frame_rate:g} Hz (hop length {codes.hop_length} samples at {codes.sample_rate} Hz)",
            "codes sha256": codes.weights_sha256,
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
        most = max(self.codes.sizes)
        if top_k is not None and not 1 <= top_k <= most:
            raise ConfigError(f"top-k: expected 1 to {most} codes, found {top_k}")
        if not 0 < top_p <= 1:
            raise ConfigError(f"top-p: expected a probability above 0, up to 1, found {top_p:g}")

    def _check_prime(self, prime: Tensor | np.ndarray, num_frames: int) -> Int[Tensor, "books frames"]:
        prime, books = torch.as_tensor(prime), self.codes.num_codebooks
        if prime.ndim != 2 or len(prime) != books or prime.numel() == 0:
            raise TokenError(f"expected a prime of shape [{books}, P], found {list(prime.shape)}")
        prime = check_codes(prime[None], self.codes.sizes)[0]
        if prime.shape[-1] >= num_frames:
            raise TokenError(
                f"the prime has {prime.shape[-1]} frames, which leaves nothing to draw of {num_frames}; "
                "ask for more, since the prime counts"
            )
        return prime
