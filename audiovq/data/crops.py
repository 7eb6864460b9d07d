"""Training crops: where they come from, read from files or from memory, and changed a little."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from audiovq.audio.resampling import resample
from audiovq.batching import read_ahead
from audiovq.config import AugmentationConfig
from audiovq.data.manifest import Utterance
from audiovq.devices import derive_seed
from audiovq.errors import ConfigError

LARGEST = 32767
"""Of a 16-bit sample."""


@dataclass(frozen=True)
class Crops:
    """A batch of crops, and where each was taken."""

    wave: Float[Tensor, "batch 1 time"]
    numbers: list[int]
    """Number of the utterance of each."""
    starts: list[int]
    """First sample of each in its utterance, at the sampler's rate."""
    speeds: list[float]
    """How many times as fast each is as its utterance."""

    def seconds(self, samples: Shaped[np.ndarray, " times"], sample_rate: int) -> list[Float[np.ndarray, " times"]]:
        """Times in the utterances, in seconds, of samples of the crops, or of places between them."""
        places = zip(self.starts, self.speeds, strict=True)
        return [(start + samples * speed) / sample_rate for start, speed in places]


class CropSampler:
    """Random crops of a set of utterances; batch `index` is a pure function of (seed, index).

    An utterance is drawn with a probability in proportion to its weight, then a position in it. Only the crop itself
    is read. An utterance that is shorter than a crop is followed by silence.

    Args:
        utterances: of one or more manifests.
        weights: of the utterances; None: their durations, so that every second of audio is equally likely.
        augmentation: how crops are changed; None: not at all.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        sample_rate: int,
        crop_samples: int,
        batch_size: int,
        seed: int,
        weights: Sequence[float] | None = None,
        augmentation: AugmentationConfig | None = None,
    ):
        self.utterances = utterances
        self.sample_rate, self.crop_samples = sample_rate, crop_samples
        self.batch_size, self.seed = batch_size, seed
        self.augmentation = augmentation
        self._ends = np.cumsum([utterance.duration for utterance in utterances] if weights is None else weights)
        self._memory: Memory | None = None

    def keep_in_memory(self, gib: float, threads: int) -> None:
        """Read all utterances into memory, as 16-bit samples.

        Raises:
            ConfigError: they need more than `gib` GiB.
            AudioError: one cannot be read.
        """
        self._memory = Memory(self.utterances, self.sample_rate, gib, threads)

    def batch(self, index: int) -> Crops:
        """Batch number `index`.

        Raises:
            AudioError: a file is missing, damaged, or no longer the one of the manifest.
        """
        generator = np.random.default_rng(derive_seed(self.seed, "crops", index))
        places = generator.random((self.batch_size, 2))
        numbers = np.searchsorted(self._ends, places[:, 0] * self._ends[-1], side="right").tolist()
        speeds, gains = self._changes(index)
        crops = [
            self._crop(number, place, speed) for number, place, speed in zip(numbers, places[:, 1], speeds, strict=True)
        ]
        wave = torch.stack([wave for wave, _ in crops])
        if gains is not None:
            wave = wave * gains
            wave = wave / wave.abs().amax(-1, keepdim=True).clamp(min=1)  # What would be beyond 1 is quieter instead.
        return Crops(wave, numbers, [start for _, start in crops], speeds)

    def _changes(self, index: int) -> tuple[list[float], Float[Tensor, "batch 1 1"] | None]:
        """Speed and gain of each crop of a batch."""
        if self.augmentation is None:
            return [1.0] * self.batch_size, None
        settings = self.augmentation
        generator = np.random.default_rng(derive_seed(self.seed, "augmentation", index))
        speeds = generator.choice(settings.speeds, self.batch_size).tolist()
        gains = 10 ** (generator.uniform(*settings.gain, self.batch_size) / 20)
        signs = generator.choice([-1, 1], self.batch_size) if settings.flip else 1
        return speeds, torch.from_numpy(gains * signs).float()[:, None, None]

    def _crop(self, number: int, place: float, speed: float) -> tuple[Float[Tensor, "1 time"], int]:
        """A crop, and its first sample in the utterance."""
        needed = self.crop_samples if speed == 1 else math.ceil(self.crop_samples * speed) + 1
        if self._memory is None:
            source = self.utterances[number].listed_source()
            spare = source.length_at(self.sample_rate) - needed
            start = round(place * max(0, spare))
            wave = source.read(self.sample_rate, start, needed + min(0, spare))
        else:
            spare = self._memory.length(number) - needed
            start = round(place * max(0, spare))
            wave = self._memory.read(number, start, needed + min(0, spare))
        if speed != 1:
            wave = resample(wave, round(self.sample_rate * speed), self.sample_rate)[:, : self.crop_samples]
        return F.pad(wave, (0, self.crop_samples - wave.shape[-1])), start


class Memory:
    """Utterances as 16-bit samples in one array."""

    def __init__(self, utterances: Sequence[Utterance], sample_rate: int, gib: float, threads: int):
        lengths = [-(-utterance.num_samples * sample_rate // utterance.sample_rate) for utterance in utterances]
        self._ends = np.cumsum(lengths)
        needed = 2 * int(self._ends[-1]) / 2**30
        if needed > gib:
            raise ConfigError(
                f"data.memory_gib: the training speech needs {needed:.2f} GiB as 16-bit samples, found {gib:g}; "
                "set it to at least that, or to 0 to read from the files"
            )
        self._samples = np.empty(self._ends[-1], np.int16)
        waves = read_ahead(lambda utterance: utterance.source().read(sample_rate), utterances, threads)
        for end, length, wave in zip(self._ends, lengths, waves, strict=True):
            self._samples[end - length : end] = (wave[0].clamp(-1, 1) * LARGEST).round().short().numpy()

    def length(self, number: int) -> int:
        """Samples of an utterance."""
        return int(self._ends[number] - (self._ends[number - 1] if number else 0))

    def read(self, number: int, start: int, count: int) -> Float[Tensor, "1 time"]:
        """Samples of an utterance."""
        first = int(self._ends[number]) - self.length(number) + start
        return torch.from_numpy(self._samples[first : first + count].astype(np.float32) / LARGEST)[None]
