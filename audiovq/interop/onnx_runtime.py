"""Codes of speech and speech of codes with ONNX Runtime alone: this file needs NumPy and onnxruntime, and no PyTorch.

`audiovq export MODEL --format onnx` puts a copy of it beside the graphs, as `onnx_tokenizer.py`:

    from onnx_tokenizer import OnnxTokenizer

    tokenizer = OnnxTokenizer("path/to/folder")
    codes = tokenizer.encode(wave, sample_rate)  # int64 [B, Q, F]
    wave = tokenizer.decode(codes)  # float32 [B, 1, F * hop_length]
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
        self._encoder, self._decoder = (
            open_session(self.folder / name, self.config["sha256"][name], threads, providers)
            for name in (ENCODER, DECODER)
        )

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
        if num_codebooks is not None and not 1 <= num_codebooks <= self.num_codebooks:
            raise OnnxTokenizerError(f"expected 1 to {self.num_codebooks} codebooks, found {num_codebooks}")
        wave = check_wave(wave)
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
        codes = self._check_codes(codes)
        batch, _, frames = codes.shape
        if num_samples is not None and -(-num_samples // self.hop_length) != frames:
            raise OnnxTokenizerError(
                f"{num_samples} samples are {-(-num_samples // self.hop_length)} frames, found {frames} frames of codes"
            )
        inputs = {"codes": codes}
        if self.config["noise"]:
            seeds = [derive_seed(seed, number) for number in range(batch)] if isinstance(seed, int) else seed
            if len(seeds) != batch:
                raise OnnxTokenizerError(f"expected {batch} seeds, one for each item, found {len(seeds)}")
            drawn = frames + self.config["look_ahead_frames"]
            inputs["noise"] = np.stack([white_noise(each, drawn, self.hop_length) for each in seeds])
        return self._decoder.run(None, inputs)[0][..., :num_samples]

    def _check_codes(self, codes: np.ndarray) -> np.ndarray:
        codes = np.asarray(codes)
        if not np.issubdtype(codes.dtype, np.integer):
            raise OnnxTokenizerError(f"codes are integers, found {codes.dtype}")
        found = list(codes.shape)
        if codes.ndim == 2:
            codes = codes[None]
        if codes.ndim != 3 or not 1 <= codes.shape[1] <= self.num_codebooks or codes.size == 0:
            raise OnnxTokenizerError(f"expected codes of shape [B, 1 to {self.num_codebooks}, F], found {found}")
        for number, size in enumerate(self.codebook_sizes[: codes.shape[1]]):
            low, high = int(codes[:, number].min()), int(codes[:, number].max())
            if low < 0 or high >= size:
                raise OnnxTokenizerError(f"codebook {number}: expected codes 0 to {size - 1}, found {low} to {high}")
        return codes.astype(np.int64)


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
    if wave.size == 0:
        raise OnnxTokenizerError("the waveform is empty")
    if not np.isfinite(wave).all():
        raise OnnxTokenizerError("the waveform holds NaN or infinite samples")
    return wave.astype(np.float32)


def derive_seed(*parts: int) -> int:
    """The seed of an item from the seed of a batch and the item's number, as `audiovq` derives it."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def white_noise(seed: int, frames: int, length: int) -> np.ndarray:
    """Noise [frames * length] as PyTorch draws it on a CPU, frame by frame: the Mersenne Twister's lower 24 bits, and
    of each block of uniform numbers as many normal ones (Box & Muller, 1958). A frame has at least 16 samples.
    """
    rest = length % BLOCK
    twister = np.random.RandomState(seed & 0xFFFFFFFF)
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
