"""Encoding and decoding signals that arrive in pieces."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from audiovq.devices import derive_seed, full_float32
from audiovq.errors import AudioError, TokenError
from audiovq.models.autoencoder import Autoencoder
from audiovq.models.exact import ExactCodes
from audiovq.nn.stream import Stream


class LatentStream:
    """Latents of a signal that arrives in pieces, those of the whole signal, and the features that they come from.

    Frames come as soon as all samples that they see are there, so that the first call may give fewer.
    """

    def __init__(self, model: Autoencoder, device: torch.device):
        self._model, self._device = model, device
        self._stream = Stream()
        self._waiting = torch.zeros(0)
        self._dropped = 0
        self._begun = False

    def __call__(
        self, wave: Float[Tensor, "batch 1 time"]
    ) -> tuple[Float[Tensor, "batch dim frames"], Float[Tensor, "batch frames features"], int]:
        """Latents, the features of their frames, both on the device, and how many of the frames, the first ones of the
        signal, are to be dropped, since the encoder looks ahead."""
        delay, hop = self._model.delay, self._model.hop_length
        self._waiting = torch.cat([self._waiting, wave], -1) if self._begun else F.pad(wave, (delay.samples, 0))
        self._begun = True
        whole = self._waiting.shape[-1] // hop * hop
        signal, self._waiting = self._waiting[..., :whole], self._waiting[..., whole:].clone()
        features = self._model.encoder.front(signal.to(self._device), self._stream)
        latents = self._model.encoder.rest(features, self._stream)
        drop = min(delay.frames - self._dropped, latents.shape[-1])
        self._dropped += drop
        return latents, features, drop


class StreamingEncoder:
    """Encodes a signal that arrives in pieces; the codes are those of the whole signal.

    Each call takes a piece [B, 1, T] at the model's rate and returns codes [B, Q, F] on the CPU. All pieces but the
    last are a multiple of `hop_length` samples long. A model that looks ahead gives a frame's codes when it has seen
    enough; the call with `last` gives all that are left.

    Raises:
        AudioError: a piece is of another shape or number of signals, not finite, or follows the last one, or one that
            was no multiple of the hop length, which ends the signal.
    """

    def __init__(self, model: Autoencoder, exact: ExactCodes, device: torch.device, num_codebooks: int | None = None):
        self._model, self._exact, self._num_codebooks = model, exact, num_codebooks or model.bottleneck.num_codebooks
        self._latents = LatentStream(model, device)
        self._past: Tensor | None = None
        self._ended = False
        self._signals: int | None = None

    @torch.inference_mode()
    def __call__(self, wave: Float[Tensor, "batch 1 time"], last: bool = False) -> Int[Tensor, "batch books frames"]:
        if self._ended:
            raise AudioError(
                f"the signal ended with a piece that was the last, or no multiple of {self._model.hop_length} samples; "
                "start a new stream, or pass whole frames"
            )
        wave = check_wave(wave).cpu()
        self._signals = self._signals or len(wave)
        if len(wave) != self._signals:
            raise AudioError(f"the stream is one of {self._signals} signals, found a piece of {len(wave)}")
        self._ended = last or wave.shape[-1] % self._model.hop_length != 0
        wave = self._model.whole_frames(wave)
        if self._ended:
            wave = F.pad(wave, (0, self._model.delay.look_ahead))
        if not wave.shape[-1]:
            return torch.zeros(len(wave), self._num_codebooks, 0, dtype=torch.long)
        with full_float32():
            latents, features, dropped = self._latents(wave)
            codes, margin = self._model.bottleneck.encode(latents, self._num_codebooks)
            near_ties = self._exact.near_ties(latents, margin).cpu()
            codes = codes.cpu()
            near_ties[:, :dropped] = False
            features = features if self._past is None else torch.cat([self._past, features], dim=1)
            if near_ties.any():
                self._exact.settle(codes, near_ties, features)
        # A copy, since a view would keep all features in memory.
        self._past = features[:, -self._exact.reach :].clone()
        return codes[..., dropped:]


class StreamingDecoder:
    """Decodes codes that arrive in pieces; the waveform is that of all codes at once.

    Each call takes codes [B, Q, F] and returns samples [B, 1, T] on the CPU: F * hop_length of them, or fewer in the
    beginning if the model looks ahead; the call with `last` gives all that are left.

    Args:
        speaker: number of the speaker, for a model that is told who speaks.
        seed: of what a decoder draws: one for each item, or one from which those of the items are derived.

    Raises:
        TokenError: shape, type or range of the codes do not fit the model, they are of another number of signals or
            follow the last ones, or there are not as many seeds as signals.
    """

    def __init__(
        self,
        model: Autoencoder,
        device: torch.device,
        speaker: Int[Tensor, " #batch"] | None = None,
        seed: int | Sequence[int] = 0,
    ):
        self._model, self._device = model, device
        self._speaker, self._seed = speaker, seed
        self._decode: Callable[[Tensor], Tensor] | None = None
        self._ahead = model.look_ahead
        self._ended = False
        self._signals = 0

    def __call__(self, codes: Int[Tensor, "batch books frames"], last: bool = False) -> Float[Tensor, "batch 1 time"]:
        codes = check_codes(codes, self._model.bottleneck.codebook_sizes)
        with torch.inference_mode(), full_float32():
            latents = self._model.bottleneck.decode(codes.to(self._device))
        return self.decode_latents(latents, last)

    @torch.inference_mode()
    def decode_latents(
        self, latents: Float[Tensor, "batch dim frames"], last: bool = False
    ) -> Float[Tensor, "batch 1 time"]:
        """The same for what the bottleneck gives, of which a continuous one has no codes."""
        if self._ended:
            raise TokenError("the signal ended with a piece that was the last; start a new stream")
        if self._decode is None:  # Only now is it known how many signals there are.
            self._decode = self._model.decoder.start(self._speaker, item_seeds(self._seed, len(latents)))
            self._signals = len(latents)
        if len(latents) != self._signals:
            raise TokenError(f"the stream is one of {self._signals} signals, found codes of {len(latents)}")
        self._ended = last
        if last:
            latents = F.pad(latents, (0, self._model.look_ahead))
        if not latents.shape[-1]:
            return torch.zeros(len(latents), 1, 0)
        with full_float32():
            wave = self._decode(latents).cpu()
        ahead = min(self._ahead, latents.shape[-1])
        self._ahead -= ahead
        return wave[..., ahead * self._model.hop_length :]


def item_seeds(seed: int | Sequence[int], batch_size: int) -> list[int]:
    """A seed for each item of a batch: as given, or derived from one by the items' numbers.

    Raises:
        TokenError: there are not as many seeds as items.
    """
    seeds = [derive_seed(seed, number) for number in range(batch_size)] if isinstance(seed, int) else list(seed)
    if len(seeds) != batch_size:
        raise TokenError(f"expected {batch_size} seeds, one for each item, found {len(seeds)}")
    return seeds


def check_wave(wave: Tensor) -> Float[Tensor, "batch 1 time"]:
    """Waveforms [B, 1, T], in float32.

    Raises:
        AudioError: they are of another shape or not finite.
    """
    if wave.ndim != 3 or wave.shape[1] != 1:
        raise AudioError(f"expected mono waveforms of shape [B, 1, T], found {list(wave.shape)}")
    if not wave.is_floating_point():
        raise AudioError(f"expected a floating-point waveform in [-1, 1], found {wave.dtype}")
    if not wave.isfinite().all():
        raise AudioError("the waveform holds NaN or infinite samples")
    return wave.float()


def check_codes(codes: Tensor, sizes: Sequence[int]) -> Int[Tensor, "batch books frames"]:
    """Codes [B, Q, F] of the first few codebooks, in int64.

    Args:
        sizes: codes in each of the model's codebooks.

    Raises:
        TokenError: shape, type or range do not fit.
    """
    if codes.is_floating_point() or codes.dtype == torch.bool:
        raise TokenError(f"codes are integers, found {codes.dtype}")
    if codes.ndim != 3 or not 1 <= codes.shape[1] <= len(sizes):
        books = "1" if len(sizes) == 1 else f"1 to {len(sizes)}"
        raise TokenError(f"expected codes of shape [B, {books}, F], found {list(codes.shape)}")
    codes = codes.long()
    for book, size in zip(codes.unbind(1) if codes.numel() else (), sizes, strict=False):
        low, high = int(book.min()), int(book.max())
        if low < 0 or high >= size:
            raise TokenError(f"expected codes from 0 to {size - 1}, found {low} to {high}")
    return codes
