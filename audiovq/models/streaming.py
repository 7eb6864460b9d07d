"""Encoding and decoding signals that arrive in pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from audiovq.devices import full_float32
from audiovq.errors import AudioError
from audiovq.nn.conv import Stream

if TYPE_CHECKING:
    from audiovq.models.tokenizer import AudioTokenizer


class StreamingEncoder:
    """Encodes a signal that arrives in pieces; the codes are those of the whole signal.

    Each call takes a piece [B, 1, T] at the model's rate and returns codes [B, Q, F] on the CPU. All pieces but the
    last are a multiple of `hop_length` samples long.

    Raises:
        AudioError: a piece follows one that was no multiple of the hop length, which ends the signal.
    """

    def __init__(self, tokenizer: AudioTokenizer):
        self.tokenizer = tokenizer
        self._stream = Stream()
        self._past = torch.zeros(0)
        self._ended = False

    @torch.inference_mode()
    def __call__(self, wave: Float[Tensor, "batch 1 time"]) -> Int[Tensor, "batch books frames"]:
        if self._ended:
            raise AudioError(
                f"the signal ended with a piece that was no multiple of {self.tokenizer.hop_length} samples; "
                "start a new stream, or pass whole frames"
            )
        self._ended = wave.shape[-1] % self.tokenizer.hop_length != 0
        model, ties = self.tokenizer.model, self.tokenizer.ties
        wave = model.whole_frames(wave)
        with full_float32():
            choice = model.bottleneck.choice(model.encode(wave.to(self.tokenizer.device), self._stream))
            chosen, near_ties = (found.cpu().view(len(wave), -1) for found in choice.codes_and_near_ties())
        codes = chosen[:, None]
        signal = torch.cat([self._past, wave.cpu()], dim=-1) if self._past.numel() else wave.cpu()
        if near_ties.any():
            ties.settle(codes, near_ties, signal)
        # A copy, since a view would keep all of the signal in memory.
        self._past = signal[..., -ties.frames * self.tokenizer.hop_length :].clone()
        return codes


class StreamingDecoder:
    """Decodes codes that arrive in pieces; the waveform is that of all codes at once.

    Each call takes codes [B, Q, F] and returns their F * hop_length samples [B, 1, T] on the CPU. `speaker` and `seed`
    are as for `AudioTokenizer.decode`.
    """

    def __init__(self, tokenizer: AudioTokenizer, speaker: str | None = None, seed: int = 0):
        self.tokenizer = tokenizer
        self._decode = tokenizer.model.start_decoding(tokenizer.speaker_number(speaker), seed)

    @torch.inference_mode()
    def __call__(self, codes: Int[Tensor, "batch books frames"]) -> Float[Tensor, "batch 1 time"]:
        model = self.tokenizer.model
        with full_float32():
            return self._decode(model.bottleneck.decode(codes.to(self.tokenizer.device))).cpu()
