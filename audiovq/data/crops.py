"""Training crops and whole utterances, read from audio files as they are needed."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from audiovq.data.manifest import Utterance
from audiovq.devices import derive_seed

Item = TypeVar("Item")
Result = TypeVar("Result")


class CropSampler:
    """Random crops of a set of utterances; batch `index` is a pure function of (seed, index).

    An utterance is drawn with a probability in proportion to its duration, so that every second of audio is
    equally likely, then a position in it. Only the crop itself is read from the file. An utterance that is shorter
    than a crop is followed by silence.
    """

    def __init__(self, utterances: list[Utterance], sample_rate: int, crop_samples: int, batch_size: int, seed: int):
        self.utterances = utterances
        self.sample_rate = sample_rate
        self.crop_samples = crop_samples
        self.batch_size = batch_size
        self.seed = seed
        self._ends = np.cumsum([utterance.duration for utterance in utterances])

    def batch(self, index: int) -> Float[Tensor, "batch 1 time"]:
        """Batch number `index`: [batch_size, 1, crop_samples].

        Raises:
            AudioError: a file is missing, damaged, or no longer the one of the manifest.
        """
        return torch.stack([self._crop(utterance, place) for utterance, place in self._places(index)])

    def speakers(self, index: int) -> list[str | None]:
        """Who speaks in each crop of batch number `index`."""
        return [utterance.speaker for utterance, _ in self._places(index)]

    def _places(self, index: int) -> list[tuple[Utterance, float]]:
        """From which utterance each crop of a batch is, and from where in it: from 0, its start, to 1."""
        generator = np.random.default_rng(derive_seed(self.seed, "crops", index))
        places = generator.random((self.batch_size, 2))
        chosen = np.searchsorted(self._ends, places[:, 0] * self._ends[-1], side="right")
        return [(self.utterances[which], place) for which, place in zip(chosen, places[:, 1], strict=True)]

    def _crop(self, utterance: Utterance, place: float) -> Float[Tensor, "1 time"]:
        source = utterance.listed_source()
        spare = source.length_at(self.sample_rate) - self.crop_samples
        if spare <= 0:
            return torch.nn.functional.pad(source.read(self.sample_rate), (0, -spare))
        return source.read(self.sample_rate, round(place * spare), self.crop_samples)
