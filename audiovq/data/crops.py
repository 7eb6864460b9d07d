"""Training crops: where they come from, read from files or from memory, and changed a little."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.transforms import Resample

from audiovq.batching import read_ahead
from audiovq.config import AugmentationConfig
from audiovq.data.manifest import Utterance
from audiovq.devices import derive_seed, send
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

    def seconds(self, samples: Shaped[np.ndarray, " times"], sample_rate: int) -> Float[np.ndarray, "batch times"]:
        """Times in the utterances, in seconds, of samples of the crops, or of places between them."""
        return (np.array(self.starts)[:, None] + samples * np.array(self.speeds)[:, None]) / sample_rate


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

    def keep_in_memory(self, gib: float, threads: int, device: torch.device | None = None) -> None:
        """Read all utterances into the memory of a device, as 16-bit samples; there crops are made from now on.

        Raises:
            ConfigError: they need more than `gib` GiB.
            AudioError: one cannot be read.
        """
        lengths = np.array([self._length(number) for number in range(len(self.utterances))])
        needed = 2 * int(lengths.sum()) / 2**30
        if needed > gib:
            raise ConfigError(
                f"data.memory_gib: the training speech needs {needed:.2f} GiB as 16-bit samples, found {gib:g}; "
                "set it to at least that, or to 0 to read from the files"
            )
        waves = read_ahead(lambda utterance: utterance.source().read(self.sample_rate), self.utterances, threads)
        self._memory = Memory(lengths, waves, device or torch.device("cpu"))

    def batch(self, index: int) -> Crops:
        """Batch number `index`.

        Raises:
            AudioError: a file is missing, damaged, or no longer the one of the manifest.
        """
        generator = np.random.default_rng(derive_seed(self.seed, "crops", index))
        places = generator.random((self.batch_size, 2))
        numbers = np.searchsorted(self._ends, places[:, 0] * self._ends[-1], side="right").tolist()
        speeds, gains = self._changes(index)
        spares = [self._length(number) - self._needed(speed) for number, speed in zip(numbers, speeds, strict=True)]
        starts = [round(place * max(0, spare)) for place, spare in zip(places[:, 1], spares, strict=True)]
        wave = self._waves(numbers, starts, speeds)[:, None]
        if gains is not None:
            wave = wave * send(gains, wave.device)
            wave = wave / wave.abs().amax(-1, keepdim=True).clamp(min=1)  # What would be beyond 1 is quieter instead.
        return Crops(wave, numbers, starts, speeds)

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

    def _length(self, number: int) -> int:
        """Samples of an utterance, at the sampler's rate."""
        utterance = self.utterances[number]
        return -(-utterance.num_samples * self.sample_rate // utterance.sample_rate)

    def _needed(self, speed: float) -> int:
        """Samples of an utterance that become a crop."""
        if speed == 1:
            return self.crop_samples
        # By the rate that they are resampled from, which is a whole number.
        return math.ceil(self.crop_samples * (round(self.sample_rate * speed) / self.sample_rate)) + 1

    def _waves(self, numbers: list[int], starts: list[int], speeds: list[float]) -> Float[Tensor, "batch time"]:
        """The crops, those of one speed at a time."""
        waves: list[Tensor] = []
        order: list[int] = []
        for speed in sorted(set(speeds)):
            items = [item for item, found in enumerate(speeds) if found == speed]
            wave = self._read([numbers[item] for item in items], [starts[item] for item in items], self._needed(speed))
            if speed != 1:
                wave = resampler(round(self.sample_rate * speed), self.sample_rate, wave.device)(wave)
            waves.append(wave[:, : self.crop_samples])
            order += items
        crops = torch.cat(waves)
        return crops[send(torch.tensor(order).argsort(), crops.device)]

    def _read(self, numbers: list[int], starts: list[int], count: int) -> Float[Tensor, "batch time"]:
        """`count` samples of each of some utterances, followed by silence where one ends before."""
        if self._memory is not None:
            return self._memory.read(numbers, starts, count)
        waves = []
        for number, start in zip(numbers, starts, strict=True):
            there = min(count, self._length(number) - start)
            wave = self.utterances[number].listed_source().read(self.sample_rate, start, there)[0]
            waves.append(F.pad(wave, (0, count - there)))
        return torch.stack(waves)


@lru_cache(maxsize=32)
def resampler(source_rate: int, target_rate: int, device: torch.device) -> nn.Module:
    """What turns one rate into another, for many crops at once."""
    return Resample(source_rate, target_rate).to(device)


class Memory:
    """Utterances as 16-bit samples in one array on a device."""

    def __init__(self, lengths: Int[np.ndarray, " utterances"], waves: Iterable[Tensor], device: torch.device):
        self._ends = np.cumsum(lengths)
        samples = np.empty(self._ends[-1], np.int16)
        for end, length, wave in zip(self._ends, lengths, waves, strict=True):
            samples[end - length : end] = (wave[0].clamp(-1, 1) * LARGEST).round().short().numpy()
        self._samples = torch.from_numpy(samples).to(device)

    def read(self, numbers: list[int], starts: list[int], count: int) -> Float[Tensor, "batch time"]:
        """`count` samples of each of some utterances, followed by silence where one ends before."""
        before = np.where(np.array(numbers) > 0, self._ends[np.array(numbers) - 1], 0)
        both = torch.from_numpy(np.stack([before + starts, self._ends[numbers]]))
        first, end = send(both, self._samples.device)[..., None]
        places = first + torch.arange(count, device=first.device)
        samples = self._samples[places.clamp(max=len(self._samples) - 1)].float() / LARGEST
        return samples.masked_fill_(places >= end, 0)
