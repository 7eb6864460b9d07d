"""Pitch tracks of a manifest's utterances: targets for a decoder that starts from a source, needed in training alone.

They are computed once, in processes, and kept beside the manifest. Trackers are those of well-kept libraries: pYIN of
librosa, or SwiftF0 (`pip install 'audiovq[pitch]'`), a small network that is several times as fast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from audiovq.data.kept import beside, identity_of, kept_beside
from audiovq.data.manifest import Utterance
from audiovq.devices import usable_cores
from audiovq.errors import ConfigError, WorkerError
from audiovq.storage import AnyPath
from audiovq.text import watched

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Int

Tracker = Literal["pyin", "swift"]
RATE, PERIOD = 16000, 256
"""Rate in Hz at which pitch is tracked, and samples between two values; the first is at the first sample."""
LOWEST, HIGHEST = 50.0, 600.0
"""Range of pitches in Hz."""
TOLD = 32
"""Utterances that a process is given at a time."""


@dataclass(frozen=True)
class PitchTracks:
    """Pitch of utterances, `PERIOD / RATE` seconds apart."""

    values: Float32[np.ndarray, " frames"]
    """In Hz, 0 where there is no voice: those of all utterances in a row."""
    ends: np.ndarray
    """Where in `values` each utterance's end."""

    @classmethod
    def joined(cls, parts: Sequence[PitchTracks]) -> PitchTracks:
        """The tracks of several lists of utterances, as those of one list."""
        before = np.cumsum([0, *(len(part.values) for part in parts)])
        ends = [part.ends + start for part, start in zip(parts, before, strict=False)]
        return cls(np.concatenate([part.values for part in parts]), np.concatenate(ends))

    def at(
        self, numbers: Int[np.ndarray, " batch"], seconds: Float[np.ndarray, "batch times"]
    ) -> Float32[np.ndarray, "batch times"]:
        """Pitch of some utterances at times in seconds from their start; 0 outside and where it is unvoiced.

        Between two voiced values the logarithm is interpolated; beside an unvoiced one the nearer counts.
        """
        first = np.where(numbers > 0, self.ends[numbers - 1], 0)[:, None]
        length = self.ends[numbers][:, None] - first
        place = seconds * RATE / PERIOD
        left = np.clip(np.floor(place).astype(int), 0, length - 1)
        right = np.minimum(left + 1, length - 1)
        share = np.clip(place - left, 0, 1)
        a, b = self.values[first + left], self.values[first + right]
        nearer = np.where(share < 0.5, a, b)
        between = np.exp((1 - share) * np.log(np.maximum(a, 1)) + share * np.log(np.maximum(b, 1)))
        pitch = np.where((a > 0) & (b > 0), between, nearer)
        return np.where((place < 0) | (place > length), 0, pitch).astype(np.float32)


def pitch_tracks(
    manifest: AnyPath, utterances: Sequence[Utterance], tracker: Tracker | None = None, processes: int | None = None
) -> PitchTracks:
    """The pitch of a manifest's utterances: read from the file beside it, or tracked and written there.

    Args:
        tracker: None: SwiftF0 if it is installed, or what it found is there; else pYIN.
        processes: how many track at a time; None: one for each core.

    Raises:
        ConfigError: the tracker is not installed.
        AudioError: an utterance cannot be read.
        WorkerError: a process was killed.
    """
    identity = identity_of(utterances)

    def make(path: Path) -> None:
        if name == "swift" and not find_spec("swift_f0"):
            raise ConfigError("pitch tracker 'swift' is not installed: pip install 'audiovq[pitch]', or use 'pyin'")
        tracks = _track_all(utterances, TRACKERS[name], processes or usable_cores())
        ends = np.cumsum([len(track) for track in tracks])
        with path.open("wb") as file:
            np.savez_compressed(file, values=np.concatenate(tracks), ends=ends, identity=np.str_(identity))

    def read(path: Path) -> PitchTracks | None:
        return _read(path, identity, len(utterances))

    found = read(beside(manifest, file_ending("swift"))) if tracker is None else None
    name = tracker or ("swift" if found is not None else default_tracker())
    return kept_beside(manifest, file_ending(name), utterances, f"pitch by {name}", read, make)


def file_ending(tracker: Tracker) -> str:
    """Ending of the file that has a manifest's pitch by a tracker."""
    return f"pitch-{tracker}.npz"


def default_tracker() -> Tracker:
    """SwiftF0 if it is installed, else pYIN."""
    return "swift" if find_spec("swift_f0") else "pyin"


def _track_all(
    utterances: Sequence[Utterance], track: Callable[[np.ndarray], np.ndarray], processes: int
) -> list[np.ndarray]:
    # Not forked: OpenMP does not survive it.
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        results = pool.map(partial(_track_one, track=track), utterances, chunksize=TOLD)
        try:
            return list(watched(results, "Tracking pitch", len(utterances)))
        except BrokenProcessPool as error:
            raise WorkerError("a process that tracked pitch was killed (is there too little memory?)") from error


def _track_one(utterance: Utterance, track: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    import torch

    torch.set_num_threads(1)
    return track(utterance.source().read(RATE)[0].numpy()).astype(np.float32)


def track_pyin(wave: Float32[np.ndarray, " time"]) -> Float[np.ndarray, " frames"]:
    """By pYIN (Mauch & Dixon, 2014, "pYIN: A Fundamental Frequency Estimator"; librosa)."""
    import librosa

    pitch, voiced, _ = librosa.pyin(wave, fmin=LOWEST, fmax=HIGHEST, sr=RATE, frame_length=1024, hop_length=PERIOD)
    return np.where(voiced, np.nan_to_num(pitch), 0)


def track_swift(wave: Float32[np.ndarray, " time"]) -> Float[np.ndarray, " frames"]:
    """By SwiftF0 (Nieradzik, 2025; package `swift-f0`)."""
    from swift_f0 import SwiftF0

    result = SwiftF0().detect(wave, RATE, fmin=LOWEST, fmax=HIGHEST)
    return np.where(result.confidence >= 0.5, result.pitch_hz, 0)


TRACKERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"pyin": track_pyin, "swift": track_swift}


def _read(cache: Path, identity: str, count: int) -> PitchTracks | None:
    """The tracks of a file, if they are those of the utterances; a damaged file counts as none."""
    try:
        with cache.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            tracks = PitchTracks(arrays["values"], arrays["ends"])
            fits = str(arrays["identity"]) == identity and len(tracks.ends) == count
    except Exception:  # Whatever a damaged archive makes its readers raise.
        return None
    return tracks if fits else None
