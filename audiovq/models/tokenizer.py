"""AudioTokenizer: a trained model as people use it, waveforms to codes and back."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from audiovq.audio.files import AudioSource, AudioWriter
from audiovq.audio.resampling import resample
from audiovq.devices import full_float32
from audiovq.errors import AudioError, TokenError
from audiovq.models.base import BaseTokenizer
from audiovq.models.streaming import LatentStream, StreamingDecoder, StreamingEncoder, check_codes, check_wave

CHUNK_SECONDS, ACCELERATOR_CHUNK_SECONDS = 20.48, 60.0
"""Audio that is encoded or decoded at a time, all items of a batch together, on a CPU and on an accelerator; longer
pieces are hardly faster there. Longer input goes through in pieces, which bounds memory and changes no code."""
LENGTH_SECONDS = 0.32
"""Pieces are as long as a multiple of this, the last one with zeros behind it. A backend that makes kernels for each
length, as oneDNN does on a CPU, spends time and memory on that if all lengths differ."""

# OpenMP's threads do not survive a fork, and would be waited for without end, as in `Dataset.map` with `num_proc`.
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


class AudioTokenizer(BaseTokenizer):
    """Waveforms to discrete codes and back.

        tokenizer = AudioTokenizer.from_pretrained("path/to/model")
        codes = tokenizer.encode(wave, sample_rate)  # [B, Q, F]
        wave = tokenizer.decode(codes)  # [B, 1, F * hop_length]

    Everything is computed in float32 on `device`. Codes of frame t depend on the samples before (t + 1) * hop_length +
    look_ahead and on nothing else, be it the batch, the pieces that a signal comes in or the number of threads: where
    rounding would decide between two codes, double precision does (`audiovq.models.exact`).
    """

    def encode(
        self, wave: Float[Tensor, "*shape time"] | np.ndarray, sample_rate: int, num_codebooks: int | None = None
    ) -> Int[Tensor, "batch books frames"]:
        """Codes [B, Q, F] of waveforms [T], [1, T] or [B, 1, T] in [-1, 1], resampled if their rate is another.

        To encode utterances of different lengths in one batch, pad them on the right and keep the first
        `num_frames(T_i)` frames of each: padding does not change them.

        Args:
            num_codebooks: how many of the model's codebooks are used, the first ones; None: all.

        Raises:
            AudioError: the waveform is empty, not finite or of another shape.
            TokenError: the model has no codes, or not so many codebooks.
        """
        self.require_codes(num_codebooks)
        return self.encode_pieces(self._pieces(self._prepare(wave, sample_rate)), num_codebooks)

    def decode(
        self,
        codes: Int[Tensor, "*shape books frames"] | np.ndarray,
        num_samples: int | None = None,
        *,
        speaker: str | None = None,
        seed: int | Sequence[int] = 0,
    ) -> Float[Tensor, "batch 1 time"]:
        """Waveforms [B, 1, T] of codes [Q, F] or [B, Q, F]; the codes may be those of the first codebooks alone.

        Args:
            num_samples: length T of the result in samples; None gives F * hop_length.
            speaker: who speaks; for a model with `speakers`, and one of them.
            seed: of what a decoder draws: one for each item, or one from which those of the items are derived by their
                numbers. An item depends on its codes, its speaker and its seed alone.

        Raises:
            TokenError: shape, type or range of the codes, or `num_samples`, do not fit the model.
            SpeakerError: the model does not know the speaker, or has to be told one.
        """
        codes = self._check_codes(codes, num_samples)
        return torch.cat(list(self._decoded_pieces(codes, speaker, seed)), dim=-1)[..., :num_samples]

    def encode_source(self, source: AudioSource, num_codebooks: int | None = None) -> Int[Tensor, "1 books frames"]:
        """Codes of an audio file or a segment of it, read piece by piece in bounded memory.

        Raises:
            AudioError: the file cannot be read to its end.
            TokenError: the model has no codes, or not so many codebooks.
        """
        self.require_codes(num_codebooks)
        blocks = source.blocks(self.sample_rate, self.piece_samples())
        return self.encode_pieces((piece[None] for piece in blocks), num_codebooks)

    def encode_pieces(
        self, pieces: Iterable[Float[Tensor, "batch 1 time"]], num_codebooks: int | None = None
    ) -> Int[Tensor, "batch books frames"]:
        """Codes of a signal, or a batch of them, that comes in pieces of any lengths."""
        stream, unit = self.stream_encoder(num_codebooks), self._unit_frames * self.hop_length
        codes, samples, waiting = [], 0, torch.zeros(0)
        for piece in pieces:
            # What waits is encoded when more has come: the last piece goes with the zeros behind it.
            units = waiting.shape[-1] // unit * unit
            if units:
                codes.append(stream(waiting[..., :units]))
                waiting = waiting[..., units:]
            samples += piece.shape[-1]
            waiting = torch.cat([waiting, piece], -1) if waiting.numel() else piece
        # Zeros up to a whole unit behind all that the last frame sees: they change nothing that is kept.
        seen = self.num_frames(samples) * self.hop_length + self.model.delay.look_ahead
        rest = seen - (samples - waiting.shape[-1])
        codes.append(stream(F.pad(waiting, (0, -(-rest // unit) * unit - waiting.shape[-1]))))
        return torch.cat(codes, dim=-1)[..., : self.num_frames(samples)]

    def stream_encoder(self, num_codebooks: int | None = None) -> StreamingEncoder:
        """What encodes a signal that arrives in pieces.

        Raises:
            TokenError: the model has no codes, or not so many codebooks.
        """
        self.require_codes(num_codebooks)
        return StreamingEncoder(self.model, self.exact, self.device, num_codebooks)

    def stream_decoder(self, *, speaker: str | None = None, seed: int | Sequence[int] = 0) -> StreamingDecoder:
        """What decodes codes that arrive in pieces; the settings are those of `decode`.

        Raises:
            SpeakerError: the model does not know the speaker, or has to be told one.
        """
        return StreamingDecoder(self.model, self.device, self.speaker_number(speaker), seed)

    def decode_to_file(
        self,
        codes: Int[Tensor, "books frames"] | np.ndarray,
        path: str | Path,
        num_samples: int | None = None,
        *,
        speaker: str | None = None,
        seed: int = 0,
    ) -> None:
        """Decode codes [Q, F] into an audio file, piece by piece in bounded memory.

        Raises:
            TokenError, SpeakerError: as for `decode`.
        """
        checked = self._check_codes(codes, num_samples)
        left = checked.shape[-1] * self.hop_length if num_samples is None else num_samples
        with AudioWriter(path, self.sample_rate) as file:
            for piece in self._decoded_pieces(checked, speaker, seed):
                file.write(piece[0, :, :left])
                left -= piece.shape[-1]

    def _decoded_pieces(
        self, codes: Int[Tensor, "batch books frames"], speaker: str | None, seed: int | Sequence[int]
    ) -> Iterator[Float[Tensor, "batch 1 piece"]]:
        stream = self.stream_decoder(speaker=speaker, seed=seed)
        pieces = codes.split(self._piece_frames(len(codes)), dim=-1)
        for number, piece in enumerate(pieces, start=1):
            yield stream(piece, last=number == len(pieces))

    @property
    def chunk_seconds(self) -> float:
        """Audio that is encoded or decoded at a time, in seconds, all items of a batch together."""
        return CHUNK_SECONDS if self.device.type == "cpu" else ACCELERATOR_CHUNK_SECONDS

    @property
    def _unit_frames(self) -> int:
        return max(1, round(LENGTH_SECONDS * self.frame_rate))

    def _piece_frames(self, batch_size: int) -> int:
        units = self.chunk_seconds * self.frame_rate / batch_size / self._unit_frames
        return max(1, round(units)) * self._unit_frames

    @torch.inference_mode()
    def reconstruct(
        self,
        wave: Float[Tensor, "*shape time"] | np.ndarray,
        sample_rate: int,
        *,
        speaker: str | None = None,
        seed: int = 0,
        num_codebooks: int | None = None,
    ) -> tuple[Float[Tensor, "batch 1 time"], Int[Tensor, "batch books frames"] | None]:
        """What the decoder makes of the bottleneck's output, and the codes; codes are None for a model without.

        The waveform is at the model's rate, and as long as the input at that rate. `num_codebooks` is as for `encode`,
        `speaker` and `seed` are as for `decode`.
        """
        wave = self._prepare(wave, sample_rate)
        if self.num_codebooks:
            codes = self.encode(wave, self.sample_rate, num_codebooks)
            return self.decode(codes, wave.shape[-1], speaker=speaker, seed=seed), codes
        latents = LatentStream(self.model, self.device)
        decode = self.stream_decoder(speaker=speaker, seed=seed)
        behind = self.model.delay.frames * self.hop_length  # As far as the encoder looks ahead.
        pieces = self._pieces(F.pad(self.model.whole_frames(wave), (0, behind)))
        decoded = []
        for number, piece in enumerate(pieces, start=1):
            with full_float32():
                z, _, dropped = latents(piece)
                z = self.model.bottleneck(z).latents[..., dropped:]
            decoded.append(decode.decode_latents(z, last=number == len(pieces)))
        return torch.cat(decoded, dim=-1)[..., : wave.shape[-1]], None

    def _prepare(self, wave: Tensor | np.ndarray, sample_rate: int) -> Float[Tensor, "batch 1 time"]:
        """Check a waveform and bring it to [B, 1, T] at the model's rate."""
        wave = torch.as_tensor(wave)
        shape = tuple(wave.shape)
        if wave.ndim == 1:
            wave = wave[None, None]
        elif wave.ndim == 2:
            wave = wave[None]
        if wave.ndim != 3 or wave.shape[1] != 1:
            raise AudioError(f"expected a mono waveform of shape [T], [1, T] or [B, 1, T], found {list(shape)}")
        wave = check_wave(wave)
        if wave.numel() == 0:
            raise AudioError("the waveform is empty")
        return resample(wave, sample_rate, self.sample_rate)

    def piece_samples(self, batch_size: int = 1) -> int:
        """Length of the pieces in which a long signal, or a batch of them, is encoded."""
        return self._piece_frames(batch_size) * self.hop_length

    def _pieces(self, wave: Float[Tensor, "batch 1 time"]) -> tuple[Float[Tensor, "batch 1 piece"], ...]:
        return wave.split(self.piece_samples(len(wave)), dim=-1)

    def _check_codes(self, codes: Tensor | np.ndarray, num_samples: int | None) -> Int[Tensor, "batch books frames"]:
        self.require_codes()
        codes = torch.as_tensor(codes)
        codes = check_codes(codes[None] if codes.ndim == 2 else codes, self.codebook_sizes)
        if codes.numel() == 0:
            raise TokenError(f"expected codes of at least one frame, found {list(codes.shape)}")
        if num_samples is not None and self.num_frames(num_samples) != codes.shape[-1]:
            raise TokenError(
                f"{num_samples} samples are {self.num_frames(num_samples)} frames, "
                f"found {codes.shape[-1]} frames of codes"
            )
        return codes
