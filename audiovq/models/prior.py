"""The prior's network: p(codes | speaker), its likelihoods, and codes drawn from it."""

from __future__ import annotations

from itertools import groupby

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from audiovq.config import PriorConfig
from audiovq.nn.pattern import Pattern
from audiovq.nn.sampling import sample
from audiovq.nn.stepping import fastest_stepper
from audiovq.nn.wavenet import WaveNet

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
        self.silence = config.codes.codebook_size
        self.speaker_dropout = config.speaker_dropout
        # The last one stands for a speaker who is not told.
        self.speakers = nn.Embedding(len(config.speakers) + 1, config.speaker_dim) if config.speakers else None
        speaker_dim = config.speaker_dim if config.speakers else 0
        self.network = WaveNet(config, self.pattern.num_codebooks, self.silence, global_dim=speaker_dim)

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
        """Codes with the unknown ones drawn, each given those before it; see `audiovq.nn.sampling.sample`.

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
