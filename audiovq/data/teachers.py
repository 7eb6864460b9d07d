"""Teachers: networks that know speech, and what they make of a recording, frame by frame.

A recording is heard by itself, in pieces of at most half a minute: several in one window of Whisper's 30 s would change
each other's features. Its window ends a second after the recording, since a full one only costs more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from audiovq.errors import CheckpointError, ConfigError
from audiovq.files import model_folder, sha256_of
from audiovq.text import reason_of

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Float32

RATE = 16000
"""Rate in Hz at which all teachers hear."""
LONGEST = 30
"""Seconds that a teacher is given at a time."""
SHORTEST = 0.1
"""Seconds up to which silence follows what is shorter: the layers of some teachers look as far."""
SILENCE = 1
"""Seconds of silence that Whisper hears after a piece, if its window has room."""
FRAME = 320
"""Samples a frame of Whisper."""
SLACK = 2
"""Frames that a teacher may give more or less than there are: some have none where a window is not full."""
FASTER_WHISPER, TRANSFORMERS = "model.bin", "model*.safetensors"
"""Weights, by which the two kinds of models are told apart."""


class Teacher(ABC):
    """A network that gives features of speech at a fixed rate."""

    source: str
    """Where it comes from, for messages."""
    rate: float
    """Frames a second."""
    first: float = 0.0
    """Middle of the first frame, in seconds."""

    @abstractmethod
    def hear(self, wave: Float32[np.ndarray, " time"]) -> Float[np.ndarray, "frames dim"]:
        """Features of a piece of speech at 16 kHz, from `SHORTEST` to `LONGEST` seconds."""

    def features(self, wave: Float32[np.ndarray, " time"]) -> Float[np.ndarray, "frames dim"]:
        """Features of a recording at 16 kHz: `ceil(seconds * rate)` frames, as 16-bit floats.

        Raises:
            ConfigError: the teacher gives too many or too few, or what is no number.
        """
        pieces = -(-len(wave) // (LONGEST * RATE))
        hop = RATE / self.rate
        frames = -(-len(wave) // hop)
        edges = [min(len(wave), round(hop * round(frames * piece / pieces))) for piece in range(pieces + 1)]
        return np.concatenate([self._of_piece(wave[start:end]) for start, end in pairwise(edges)])

    def _of_piece(self, wave: Float32[np.ndarray, " time"]) -> Float[np.ndarray, "frames dim"]:
        heard = np.pad(wave, (0, max(0, round(SHORTEST * RATE) - len(wave))))
        with np.errstate(over="ignore"):
            found = self.hear(heard).astype(np.float16)
        seconds, frames = len(heard) / RATE, int(-(-len(wave) * self.rate // RATE))
        expected = round(seconds * self.rate)
        if abs(len(found) - expected) > SLACK:
            raise ConfigError(
                f"data.teacher: {self.source} gives {len(found)} frames of {seconds:g} s; "
                f"about {expected} were expected, at {self.rate:g} a second"
            )
        if not np.isfinite(found).all():
            raise ConfigError(f"data.teacher: {self.source} gives features that are no 16-bit numbers")
        return np.pad(found, ((0, max(0, frames - len(found))), (0, 0)), "edge")[:frames]


class FasterWhisperTeacher(Teacher):
    """The encoder of a Whisper model as CTranslate2 runs it. Its window is little longer than what it hears."""

    rate = RATE / FRAME

    def __init__(self, files: TeacherFiles, device: torch.device):
        import ctranslate2  # pyright: ignore[reportMissingImports]
        import torch
        from faster_whisper.feature_extractor import FeatureExtractor  # pyright: ignore[reportMissingImports]

        self.source = files.source
        kind, index = ("cuda", device.index or 0) if device.type == "cuda" else ("cpu", 0)
        try:
            self.network = ctranslate2.models.Whisper(
                str(files.folder), kind, device_index=index, compute_type="auto", intra_threads=torch.get_num_threads()
            )
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"{files.source}: cannot be loaded as a faster-whisper model: {error}") from error
        self.spectrum, self.array = FeatureExtractor(self.network.n_mels), ctranslate2.StorageView.from_array

    def hear(self, wave: Float32[np.ndarray, " time"]) -> Float[np.ndarray, "frames dim"]:
        frames = min(round(LONGEST * self.rate), -(-len(wave) // FRAME) + round(SILENCE * self.rate))
        padded = np.pad(wave, (0, frames * FRAME - len(wave)))
        spectra = self.spectrum(padded, padding=0)[None, :, : 2 * frames]  # Of two the encoder makes one frame.
        heard = self.network.encode(self.array(np.ascontiguousarray(spectra, np.float32)), to_cpu=True)
        return np.asarray(heard)[0, : -(-len(wave) // FRAME)]


class TransformersTeacher(Teacher):
    """The last layer of Whisper's encoder, HuBERT, WavLM or another like wav2vec 2.0, as transformers runs it."""

    def __init__(self, files: TeacherFiles, device: torch.device):
        from transformers import AutoFeatureExtractor, AutoModel  # pyright: ignore[reportMissingImports]

        self.source, self.device = files.source, device
        try:
            self.prepare = AutoFeatureExtractor.from_pretrained(files.folder, local_files_only=True)
            model: Any = AutoModel.from_pretrained(files.folder, local_files_only=True, use_safetensors=True)
        except (OSError, ValueError, KeyError) as error:
            reason = reason_of(error)
            raise CheckpointError(f"{files.source}: cannot be loaded by transformers: {reason}") from error
        self.windowed = model.config.model_type == "whisper"
        if self.windowed:
            model, self.rate = model.get_encoder(), RATE / FRAME
        elif hop := getattr(model.config, "inputs_to_logits_ratio", None):
            self.rate = RATE / hop
            self.first = _span(model.config.conv_kernel, model.config.conv_stride) / 2 / RATE
        else:
            raise ConfigError(
                f"data.teacher: {files.source} is of type {model.config.model_type}; "
                "expected Whisper, HuBERT, WavLM or another like wav2vec 2.0"
            )
        self.network = model.float().to(device).eval()

    def hear(self, wave: Float32[np.ndarray, " time"]) -> Float[np.ndarray, "frames dim"]:
        import torch

        given = self.prepare(wave, sampling_rate=RATE, return_tensors="pt")
        name = self.prepare.model_input_names[0]
        with torch.inference_mode():
            found = self.network(given[name].to(self.device)).last_hidden_state[0].float().cpu().numpy()
        return found[: -(-len(wave) // FRAME)] if self.windowed else found


def _span(kernels: list[int], strides: list[int]) -> int:
    """Samples that a stack of convolutions sees at once."""
    span, hop = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        span, hop = span + (kernel - 1) * hop, hop * stride
    return span


@dataclass(frozen=True)
class TeacherFiles:
    """A teacher that is not loaded yet."""

    source: str
    """Folder or Hub repository, as the config names it."""
    folder: Path
    digest: str
    """SHA-256 of its weights."""


def find_teacher(source: str) -> TeacherFiles:
    """Look a teacher up; if it is on the Hub, it is downloaded.

    Raises:
        CheckpointError: there is no such folder, or no model in it.
    """
    folder = model_folder(source, ["*.json", "vocabulary.*", FASTER_WHISPER, TRANSFORMERS])
    weights = sorted(folder.glob(FASTER_WHISPER)) or sorted(folder.glob(TRANSFORMERS))
    if not weights or not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder}: is no teacher; expected config.json, and {FASTER_WHISPER} (faster-whisper) or {TRANSFORMERS} "
            "(transformers)"
        )
    return TeacherFiles(source, folder, " ".join(map(sha256_of, weights)))


def load_teacher(files: TeacherFiles, device: torch.device) -> Teacher:
    """Load a teacher.

    Raises:
        ConfigError: its package is not installed, or it is of another kind.
        CheckpointError: it is damaged.
    """
    kind = FasterWhisperTeacher if (files.folder / FASTER_WHISPER).is_file() else TransformersTeacher
    try:
        return kind(files, device)
    except ModuleNotFoundError as error:
        raise ConfigError(f"data.teacher: {files.source} needs {error.name}: pip install 'audiovq[teacher]'") from error
