"""What training knows of its crops besides the waves: the pitch of the speech, and what a teacher makes of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from audiovq.batching import evenly_spread
from audiovq.data.crops import Crops, CropSampler
from audiovq.data.features import speech_features
from audiovq.data.manifest import Utterance
from audiovq.data.pitch import PitchTracks, Tracker, pitch_tracks
from audiovq.data.teachers import find_teacher
from audiovq.models.autoencoder import Autoencoder
from audiovq.storage import AnyPath

Manifests = Mapping[AnyPath, Sequence[Utterance]]
"""Utterances by their manifest, or another input."""
MEASURED = 512
"""Utterances by whose features all are normalised."""


class CropPlaces:
    """Where in the manifests crops were taken, and when their samples are in their utterances.

    Args:
        samples: of a crop, whose times are wanted.
    """

    def __init__(self, sampler: CropSampler, train: Manifests, samples: np.ndarray):
        self._samples, self._rate = samples, sampler.sample_rate
        self._ends = np.cumsum([len(utterances) for utterances in train.values()])

    def of(self, crops: Crops) -> Iterator[tuple[int, int, Float[np.ndarray, " times"]]]:
        """Number of the manifest, number of the utterance in it, and times in seconds, of each crop."""
        for number, seconds in zip(crops.numbers, crops.seconds(self._samples, self._rate), strict=True):
            part = int(np.searchsorted(self._ends, number, side="right"))
            yield part, number - (int(self._ends[part - 1]) if part else 0), seconds


class PitchTargets:
    """The true pitch of training crops, for a decoder that starts from a source."""

    def __init__(self, model: Autoencoder, sampler: CropSampler, train: Manifests, tracker: Tracker | None):
        self._samples, self._rate = model.pitch_times(sampler.crop_samples).numpy(), sampler.sample_rate
        self._tracks = PitchTracks.joined(
            [pitch_tracks(path, utterances, tracker) for path, utterances in train.items()]
        )

    def of(self, crops: Crops) -> Float[Tensor, "batch hops"]:
        """Pitch in Hz, 0 where it is unvoiced, at the times that the decoder wants to know it."""
        found = self._tracks.at(np.array(crops.numbers), crops.seconds(self._samples, self._rate))
        return torch.from_numpy(np.array(crops.speeds, np.float32)[:, None] * found)


class TeacherTargets:
    """What a teacher makes of training crops, frame by frame of the tokenizer.

    A dimension has mean 0 and variance 1 over speech: what is always there teaches nothing, and a few dimensions of
    large numbers would count alone.
    """

    def __init__(self, hop_length: int, sampler: CropSampler, train: Manifests, source: str, device: torch.device):
        teacher = find_teacher(source)
        self._features = [speech_features(path, utterances, teacher, device) for path, utterances in train.items()]
        self._each = max(1, round(self._features[0].rate * hop_length / sampler.sample_rate))
        """Times in a frame at which features are taken, and averaged: as often as the teacher has any."""
        count = sampler.crop_samples // hop_length * self._each
        self._places = CropPlaces(sampler, train, (np.arange(count) + 0.5) * hop_length / self._each)
        listed = [(part, number) for part, found in enumerate(self._features) for number in range(len(found.frames))]
        some = np.concatenate([self._features[part].of(number) for part, number in evenly_spread(listed, MEASURED)])
        self._mean = some.mean(0, dtype=np.float64).astype(np.float32)
        self._scale = some.std(0, dtype=np.float64).astype(np.float32).clip(np.finfo(np.float16).eps)

    @property
    def dim(self) -> int:
        """Numbers a frame."""
        return len(self._mean)

    def of(self, crops: Crops) -> Float[Tensor, "batch frames dim"]:
        """Normalised features; 0 where a frame begins after the end of its utterance."""
        found = np.stack([self._features[part].at(number, times) for part, number, times in self._places.of(crops)])
        inside = found.any(-1, keepdims=True)
        normal = np.where(inside, (found - self._mean) / self._scale, 0)
        return torch.from_numpy(normal.reshape(len(found), -1, self._each, self.dim).mean(2))
