"""Samples drawn from a WaveNet decoder, frame by frame."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from audiovq.nn.conv import Stream
from audiovq.nn.wavenet_decoder import WaveNetDecoder
from audiovq.sampling.base import Stepper
from audiovq.sampling.stepping import fastest_stepper


class WaveNetSampler:
    """Draws samples from a `WaveNetDecoder`; latents may come in pieces.

    All that is random is one number a sample, drawn from `seed` on the CPU and the same for all items of a batch. So
    an item depends on its latents, its speaker and the seed, and not on what else is in the batch, the pieces or the
    device, up to rounding: where that carries one sample into the next class, the rest is another draw.

    Args:
        speaker: number of the speaker of each item, or of one for all.

    Shape:
        each call: latents [B, D, F]; result, classes [B, F * hop_length].
    """

    _last: Tensor

    def __init__(self, decoder: WaveNetDecoder, speaker: Int[Tensor, " #batch"] | None = None, seed: int = 0):
        self.decoder, self.speaker = decoder, speaker
        self._generator = torch.Generator().manual_seed(seed)
        self._stream = Stream()
        self._stepper: Stepper | None = None  # Made when the first piece tells the size of the batch.

    @torch.inference_mode()
    def __call__(self, latents: Float[Tensor, "batch dim frames"]) -> Int[Tensor, "batch time"]:
        network = self.decoder.network
        if self._stepper is None:
            self._stepper = fastest_stepper(network, len(latents))
            self._last = self._stepper.start()
        speaker = self.decoder.embed(self.speaker)
        speaker = speaker.expand(len(latents), -1) if speaker is not None else None
        samples = []
        # Frame by frame, so that its length does not change how a piece is rounded.
        for frame in latents.split(1, -1):
            condition = network.conditions(self.decoder.local(frame, self._stream), speaker)
            assert condition is not None
            uniforms = torch.rand(1, 1, self.decoder.hop_length, generator=self._generator)
            samples.append(self._stepper.generate(self._last, uniforms, condition[..., 0].contiguous()))
            self._last = samples[-1][..., -1]
        return torch.cat(samples, -1).squeeze(1)
