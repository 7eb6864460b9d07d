"""Codes of speech and speech of codes with ONNX Runtime alone: this file needs NumPy and onnxruntime, and no PyTorch.

`audiovq export MODEL --format onnx` puts a copy of it beside the graphs, as `onnx_tokenizer.py`:

    from onnx_tokenizer import OnnxTokenizer

    tokenizer = OnnxTokenizer("path/to/folder")
    codes = tokenizer.encode(wave, sample_rate)  # int64 [B, Q, F]
    wave = tokenizer.decode(codes)  # float32 [B, 1, F * hop_length]

With `--streaming` there are graphs for live audio, too: `tokenizer.stream_encoder()` and `tokenizer.stream_decoder()`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

FORMAT, FORMAT_VERSION = "onnx", 1
CONFIG, ENCODER, DECODER = "config.json", "encoder.onnx", "decoder.onnx"
STREAM_ENCODER, STREAM_DECODER = "encoder_stream.onnx", "decoder_stream.onnx"
PIECE_SECONDS = 30.0
"""Audio that is encoded at a time, all items of a batch together; longer signals go through in pieces."""
BLOCK = 16
"""Normal numbers that are made at a time of as many uniform ones, as PyTorch does."""


class OnnxTokenizerError(ValueError):
    """A folder, waveform or codes that cannot be used; the message is one line."""


class OnnxTokenizer:
    """Waveforms to discrete codes and back, with the graphs in a folder.

    Codes are those of `audiovq.AudioTokenizer`, but for near ties, which rounding decides here. What a decoder draws is
    the same for the same seed, so that waveforms agree to rounding.

    Args:
        folder: where `audiovq export --format onnx` wrote.
        threads: threads to compute with; 0: one for each core that this process may use.
        providers: execution providers of ONNX Runtime, the first that can be had.

    Raises:
        OnnxTokenizerError: the folder is no such export, or a file in it is missing or damaged.
    """

    def __init__(self, folder: str | Path, threads: int = 0, providers: Sequence[str] = ("CPUExecutionProvider",)):
        self.folder = Path(folder)
        self.config = read_config(self.folder)
        self.sample_rate: int = self.config["sample_rate"]
        self.hop_length: int = self.config["hop_length"]
        self.codebook_sizes: list[int] = self.config["codebook_sizes"]
        self._threads, self._providers = threads, providers
        self._encoder, self._decoder = self._open(ENCODER), self._open(DECODER)

    @property
    def num_codebooks(self) -> int:
        """Codes a frame, Q."""
        return len(self.codebook_sizes)

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.sample_rate / self.hop_length

    def encode(self, wave: np.ndarray, sample_rate: int, num_codebooks: int | None = None) -> np.ndarray:
        """Codes int64 [B, Q, F] of waveforms [T], [1, T] or [B, 1, T] in [-1, 1].

        Args:
            sample_rate: the model's; this file cannot resample.
            num_codebooks: how many of the codebooks are used, the first ones; None: all.

        Raises:
            OnnxTokenizerError: the waveform is empty, not finite, or of another shape or rate; there are not so many
                codebooks.
        """
        if sample_rate != self.sample_rate:
            raise OnnxTokenizerError(
                f"expected audio at {self.sample_rate} Hz, found {sample_rate} Hz; resample it first"
            )
        self._check_count(num_codebooks)
        wave = check_wave(wave)
        if wave.size == 0:
            raise OnnxTokenizerError("the waveform is empty")
        hop, context, ahead = self.hop_length, self.config["context_frames"], self.config["look_ahead_samples"]
        frames = -(-wave.shape[-1] // hop)
        size = max(1, round(PIECE_SECONDS * self.frame_rate / len(wave)))
        codes = []
        for first in range(0, frames, size):
            last, before = min(first + size, frames), min(first, context)
            piece = wave[..., (first - before) * hop : last * hop + ahead]
            codes.append(self._encoder.run(None, {"wave": piece})[0][..., before : before + last - first])
        return np.concatenate(codes, -1)[:, :num_codebooks]

    def decode(self, codes: np.ndarray, num_samples: int | None = None, *, seed: int | Sequence[int] = 0) -> np.ndarray:
        """Waveforms float32 [B, 1, T] of codes [Q, F] or [B, Q, F], which may be those of the first codebooks alone.

        A signal is decoded at once, in less than 2 MB of memory a second.

        Args:
            num_samples: length T of the result; None gives F * hop_length.
            seed: of what a decoder draws: one for each item, or one from which those of the items are derived.

        Raises:
            OnnxTokenizerError: type, shape or range of the codes, or `num_samples`, do not fit the model.
        """
        codes = self.check_codes(codes)
        batch, _, frames = codes.shape
        if num_samples is not None and -(-num_samples // self.hop_length) != frames:
            raise OnnxTokenizerError(
                f"{num_samples} samples are {-(-num_samples // self.hop_length)} frames, found {frames} frames of codes"
            )
        inputs = {"codes": codes}
        if self.config["noise"]:
            inputs["noise"] = Noise(seed, batch, self.hop_length)(frames + self.config["look_ahead_frames"])
        return self._decoder.run(None, inputs)[0][..., :num_samples]

    def stream_encoder(self, num_codebooks: int | None = None) -> StreamEncoder:
        """What encodes a signal that arrives in pieces.

        Raises:
            OnnxTokenizerError: the export has no graphs for it, or the model has not so many codebooks.
        """
        self._check_count(num_codebooks)
        return StreamEncoder(self, self._open(STREAM_ENCODER), num_codebooks)

    def stream_decoder(self, *, seed: int | Sequence[int] = 0) -> StreamDecoder:
        """What decodes codes that arrive in pieces; `seed` is that of `decode`.

        Raises:
            OnnxTokenizerError: the export has no graphs for it.
        """
        return StreamDecoder(self, self._open(STREAM_DECODER), seed)

    def _open(self, name: str) -> Any:
        if name not in self.config["sha256"]:
            raise OnnxTokenizerError(f"{self.folder}: has no {name}; export the model with --streaming")
        return open_session(self.folder / name, self.config["sha256"][name], self._threads, self._providers)

    def _check_count(self, num_codebooks: int | None) -> None:
        if num_codebooks is not None and not 1 <= num_codebooks <= self.num_codebooks:
            raise OnnxTokenizerError(f"expected 1 to {self.num_codebooks} codebooks, found {num_codebooks}")

    def check_codes(self, codes: np.ndarray, least: int = 1) -> np.ndarray:
        """Codes as int64 [B, Q, F] of at least so many frames, if they are the model's."""
        codes = np.asarray(codes)
        if not np.issubdtype(codes.dtype, np.integer):
            raise OnnxTokenizerError(f"codes are integers, found {codes.dtype}")
        found = list(codes.shape)
        if codes.ndim == 2:
            codes = codes[None]
        fits = codes.ndim == 3 and 1 <= codes.shape[1] <= self.num_codebooks
        if not fits or len(codes) == 0 or codes.shape[-1] < least:
            raise OnnxTokenizerError(f"expected codes of shape [B, 1 to {self.num_codebooks}, F], found {found}")
        for number, size in enumerate(self.codebook_sizes[: codes.shape[1]]):
            low, high = (int(codes[:, number].min()), int(codes[:, number].max())) if codes.size else (0, 0)
            if low < 0 or high >= size:
                raise OnnxTokenizerError(f"codebook {number}: expected codes 0 to {size - 1}, found {low} to {high}")
        return codes.astype(np.int64)


class StreamEncoder:
    """Encodes a signal that arrives in pieces; the codes are those of the whole signal, but for near ties.

    Each call takes a piece [T], [1, T] or [B, 1, T] at the model's rate, of any number of whole frames, and returns the
    codes int64 [B, Q, F] of frames that have seen enough; the call with `last`, of any length, all that are left.

    Raises:
        OnnxTokenizerError: a piece has another shape, or follows one that ended the signal: the last one, or one that
            was not whole frames.
    """

    def __init__(self, tokenizer: OnnxTokenizer, session: Any, num_codebooks: int | None):
        self._session, self._num_codebooks = session, num_codebooks or tokenizer.num_codebooks
        self._hop, self._ahead = tokenizer.hop_length, tokenizer.config["look_ahead_samples"]
        self._state_size = tokenizer.config["state_sizes"][STREAM_ENCODER]
        self._late = -(-self._ahead // self._hop)
        self._waiting = self._state = None
        self._ended = False

    def __call__(self, wave: np.ndarray, last: bool = False) -> np.ndarray:
        if self._ended:
            raise OnnxTokenizerError(
                f"the signal ended with a piece that was the last, or no multiple of {self._hop} samples; start a new "
                "stream, or pass whole frames"
            )
        wave = check_wave(wave)
        if self._waiting is None or self._state is None:  # Zeros in front, so that frames are late by whole ones.
            self._waiting = np.zeros((len(wave), 1, self._late * self._hop - self._ahead), np.float32)
            self._state = np.zeros((len(wave), self._state_size), np.float32)
        missing = -wave.shape[-1] % self._hop
        self._ended = last or missing > 0
        require_batch(wave, self._state)
        behind = np.zeros((len(wave), 1, missing + self._ahead if self._ended else 0), np.float32)
        signal = np.concatenate([self._waiting, wave, behind], -1)
        whole = signal.shape[-1] // self._hop * self._hop
        self._waiting = signal[..., whole:]
        if not whole:
            return np.zeros((len(wave), self._num_codebooks, 0), np.int64)
        codes, self._state = self._session.run(None, {"wave": signal[..., :whole], "state": self._state})
        dropped = min(self._late, codes.shape[-1])
        self._late -= dropped
        return codes[:, : self._num_codebooks, dropped:]


class StreamDecoder:
    """Decodes codes that arrive in pieces; the waveform is that of all codes at once, to rounding.

    Each call takes codes [Q, F] or [B, Q, F] and returns samples float32 [B, 1, T]: F * hop_length of them, or fewer in
    the beginning if the model looks ahead; the call with `last` gives all that are left.

    Raises:
        OnnxTokenizerError: codes do not fit the model, are of another number of signals or follow the last ones.
    """

    def __init__(self, tokenizer: OnnxTokenizer, session: Any, seed: int | Sequence[int]):
        self._tokenizer, self._session, self._seed = tokenizer, session, seed
        self._late = tokenizer.config["look_ahead_frames"]
        self._state = self._noise = None
        self._ended = False

    def __call__(self, codes: np.ndarray, last: bool = False) -> np.ndarray:
        if self._ended:
            raise OnnxTokenizerError("the signal ended with a piece that was the last; start a new stream")
        codes, hop = self._tokenizer.check_codes(codes, least=0), self._tokenizer.hop_length
        if self._state is None or self._noise is None:
            size = self._tokenizer.config["state_sizes"][STREAM_DECODER]
            self._state = np.zeros((len(codes), size), np.float32)
            self._noise = Noise(self._seed, len(codes), hop)
        require_batch(codes, self._state)
        self._ended = last
        if last:
            ahead = self._tokenizer.config["look_ahead_frames"]
            codes = np.pad(codes, ((0, 0), (0, 0), (0, ahead)), constant_values=-1)
        if not codes.shape[-1]:
            return np.zeros((len(codes), 1, 0), np.float32)
        inputs = {"codes": codes, "state": self._state}
        if self._tokenizer.config["noise"]:
            inputs["noise"] = self._noise(codes.shape[-1])
        wave, self._state = self._session.run(None, inputs)
        dropped = min(self._late, codes.shape[-1])
        self._late -= dropped
        return wave[..., dropped * hop :]


def read_config(folder: Path) -> dict[str, Any]:
    """What `config.json` says.

    Raises:
        OnnxTokenizerError: the folder is no export to ONNX, or a file of it is missing.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OnnxTokenizerError(f"{folder}: is no ONNX tokenizer, its {CONFIG} cannot be read ({error})") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise OnnxTokenizerError(
            f"{folder}: is no ONNX tokenizer; write one with: audiovq export MODEL --format onnx --output DIR"
        )
    if config.get("format_version") != FORMAT_VERSION:
        raise OnnxTokenizerError(
            f"{folder / CONFIG}: expected format_version {FORMAT_VERSION}, found {config.get('format_version')!s:.60}"
        )
    for name in (ENCODER, DECODER):
        if not (folder / name).is_file():
            raise OnnxTokenizerError(f"{folder}: {name} is missing; export the model again")
    return config


def open_session(path: Path, sha256: str, threads: int, providers: Sequence[str]) -> Any:
    """A graph that is ready to run; its file has to be the one that was exported."""
    import onnxruntime

    graph = path.read_bytes()
    if hashlib.sha256(graph).hexdigest() != sha256:
        raise OnnxTokenizerError(f"{path}: is damaged, its SHA-256 is another than in {CONFIG}; export the model again")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    return onnxruntime.InferenceSession(graph, options, providers=list(providers))


def usable_cores() -> int:
    """Cores that this process may use; ONNX Runtime itself would count all, and complain of those it may not."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_wave(wave: np.ndarray) -> np.ndarray:
    """A waveform as float32 [B, 1, T]."""
    wave = np.asarray(wave)
    found = list(wave.shape)
    wave = wave.reshape((1,) * (3 - wave.ndim) + wave.shape) if wave.ndim in (1, 2) else wave
    if wave.ndim != 3 or wave.shape[1] != 1:
        raise OnnxTokenizerError(f"expected a mono waveform of shape [T], [1, T] or [B, 1, T], found {found}")
    if not np.issubdtype(wave.dtype, np.floating):
        raise OnnxTokenizerError(f"expected a floating-point waveform in [-1, 1], found {wave.dtype}")
    if not np.isfinite(wave).all():
        raise OnnxTokenizerError("the waveform holds NaN or infinite samples")
    return wave.astype(np.float32)


def require_batch(piece: np.ndarray, state: np.ndarray) -> None:
    """Raise `OnnxTokenizerError` unless a piece has as many items as those before it."""
    if len(piece) != len(state):
        raise OnnxTokenizerError(f"expected {len(state)} items, as in the first piece, found {len(piece)}")


def derive_seed(*parts: int) -> int:
    """The seed of an item from the seed of a batch and the item's number, as `audiovq` derives it."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Noise:
    """White noise for each item of a batch, as PyTorch draws it on a CPU, frame by frame: the Mersenne Twister's lower
    24 bits, and of each block of uniform numbers as many normal ones (Box & Muller, 1958).

    Args:
        seed: one for each item, or one from which those of the items are derived.
        length: samples of a frame, at least 16.
    """

    def __init__(self, seed: int | Sequence[int], batch: int, length: int):
        given = np.asarray(seed).tolist()
        seeds = given if isinstance(given, list) else [derive_seed(given, item) for item in range(batch)]
        if len(seeds) != batch:
            raise OnnxTokenizerError(f"expected {batch} seeds, one for each item, found {len(seeds)}")
        self._twisters = [np.random.RandomState(each & 0xFFFFFFFF) for each in seeds]
        self._length = length

    def __call__(self, frames: int) -> np.ndarray:
        """The next frames, float32 [B, frames * length]."""
        return np.stack([self._draw(twister, frames) for twister in self._twisters])

    def _draw(self, twister: np.random.RandomState, frames: int) -> np.ndarray:
        length, rest = self._length, self._length % BLOCK
        bits = twister.randint(0, 2**32, (frames, length + (BLOCK if rest else 0)), dtype=np.uint32)
        uniform = (bits & 0xFFFFFF) * 2.0**-24
        noise = np.empty((frames, length), np.float32)
        noise[:, : length - rest] = normal(uniform[:, : length - rest])
        if rest:  # The last block is drawn anew, and overlaps the one before.
            noise[:, -BLOCK:] = normal(uniform[:, length:])
        return noise.reshape(-1)


def normal(uniform: np.ndarray) -> np.ndarray:
    """Blocks of normal numbers, of two halves of uniform ones: radii and angles."""
    radius, angle = np.moveaxis(uniform.reshape(len(uniform), -1, 2, BLOCK // 2), 2, 0)
    radius, angle = np.sqrt(-2 * np.log(1 - radius)), 2 * np.pi * angle
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 2).reshape(len(uniform), -1)
