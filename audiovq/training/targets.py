"""What training knows of its crops besides the waves: the pitch of the speech, and what a teacher makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from audiovq.batching import evenly_spread
from audiovq.data.crops import Crops, CropSampler
from audiovq.data.features import SpeechFeatures, speech_features
from audiovq.data.manifest import Utterance
from audiovq.data.pitch import PitchTracks, Tracker, pitch_tracks
from audiovq.data.teachers import find_teacher
from audiovq.models.autoencoder import Autoencoder
from audiovq.storage import AnyPath

Manifests = Mapping[AnyPath, Sequence[Utterance]]
"""Utterances by their manifest, or another input."""
MEASURED = 512
"""Utterances by whose features all are normalised."""


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
        parts = [speech_features(path, utterances, teacher, device) for path, utterances in train.items()]
        self._features, self._rate = SpeechFeatures.joined(parts), sampler.sample_rate
        self._each = max(1, round(self._features.rate * hop_length / self._rate))
        """Times in a frame at which features are taken, and averaged: as often as the teacher has any."""
        count = sampler.crop_samples // hop_length * self._each
        self._samples = (np.arange(count) + 0.5) * hop_length / self._each
        measured = evenly_spread(range(len(self._features.frames)), MEASURED)
        some = np.concatenate([self._features.of(number) for number in measured])
        self._mean = some.mean(0, dtype=np.float64).astype(np.float32)
        self._scale = some.std(0, dtype=np.float64).astype(np.float32).clip(np.finfo(np.float16).eps)

    @property
    def dim(self) -> int:
        """Numbers a frame."""
        return len(self._mean)

    def of(self, crops: Crops) -> Float[Tensor, "batch frames dim"]:
        """Normalised features; 0 where a frame begins after the end of its utterance."""
        times = crops.seconds(self._samples, self._rate)
        found = np.stack([self._features.at(*place) for place in zip(crops.numbers, times, strict=True)])
        inside = found.any(-1, keepdims=True)
        normal = np.where(inside, (found - self._mean) / self._scale, 0)
        return torch.from_numpy(normal.reshape(len(found), -1, self._each, self.dim).mean(2))
