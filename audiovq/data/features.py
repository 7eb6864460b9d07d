"""Features that a teacher gives of a manifest's utterances, needed in training alone.

They are computed once, utterance after utterance, and kept beside the manifest as an Arrow file of 16-bit floats, which
is mapped into memory and never read as a whole. All dimensions are kept. At 50 frames of 512 numbers a second, an hour
takes 184 MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from audiovq.batching import read_ahead
from audiovq.data.kept import identity_of, kept_beside
from audiovq.data.manifest import Utterance
from audiovq.data.teachers import RATE, Teacher, TeacherFiles, load_teacher
from audiovq.storage import AnyPath
from audiovq.text import watched

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Float16, Float32


@dataclass(frozen=True)
class SpeechFeatures:
    """Features of utterances, at a fixed rate."""

    frames: list[pa.FixedSizeListArray]
    """Of each utterance, a row a frame."""
    rate: float
    """Frames a second."""
    first: float
    """Middle of the first frame, in seconds."""

    @classmethod
    def joined(cls, parts: Sequence[SpeechFeatures]) -> SpeechFeatures:
        """One teacher's features of several lists of utterances, as those of one list."""
        return cls([frames for part in parts for frames in part.frames], parts[0].rate, parts[0].first)

    def of(self, number: int) -> Float16[np.ndarray, "frames dim"]:
        """All features of utterance `number`."""
        frames = self.frames[number]
        return frames.flatten().to_numpy().reshape(len(frames), -1)

    def at(self, number: int, seconds: Float[np.ndarray, " times"]) -> Float32[np.ndarray, "times dim"]:
        """Features of utterance `number` at some times in seconds from its start, interpolated; 0 outside it."""
        found = self.of(number)
        place = ((seconds - self.first) * self.rate).clip(0, len(found) - 1)
        left = place.astype(int)
        right = np.minimum(left + 1, len(found) - 1)
        share = (place - left)[:, None]
        between = (1 - share) * found[left] + share * found[right]
        inside = (seconds >= 0) & (seconds * self.rate <= len(found))
        return np.where(inside[:, None], between, 0).astype(np.float32)


def speech_features(
    manifest: AnyPath, utterances: Sequence[Utterance], teacher: TeacherFiles, device: torch.device
) -> SpeechFeatures:
    """The features of a manifest's utterances: read from the file beside it, or computed and written there.

    Raises:
        CheckpointError: the teacher is damaged.
        ConfigError: its package is not installed, or it gives other features than are expected.
        AudioError: an utterance cannot be read.
    """
    identity = f"{identity_of(utterances)} {teacher.digest}"

    def make(path: Path) -> None:
        _write(path, utterances, load_teacher(teacher, device), identity)

    def read(path: Path) -> SpeechFeatures | None:
        return _read(path, identity, len(utterances))

    name = Path(teacher.source).resolve().name if Path(teacher.source).is_dir() else teacher.source.replace("/", "-")
    return kept_beside(manifest, f"features-{name}.arrow", utterances, f"features by {name}", read, make)


def _write(path: Path, utterances: Sequence[Utterance], teacher: Teacher, identity: str) -> None:
    """One record batch an utterance."""
    known = {"identity": identity, "rate": repr(teacher.rate), "first": repr(teacher.first)}
    waves = read_ahead(lambda utterance: utterance.source().read(RATE)[0].numpy(), utterances, 1)
    found = map(teacher.features, watched(waves, "Listening to a teacher", len(utterances)))
    rows = (pa.FixedSizeListArray.from_arrays(pa.array(frames.ravel()), frames.shape[1]) for frames in found)
    first = next(rows)
    schema = pa.schema([("features", first.type)], known)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for frames in chain([first], rows):
            writer.write_batch(pa.record_batch([frames], schema))


def _read(path: Path, identity: str, count: int) -> SpeechFeatures | None:
    """The features in a file, if they are those of the utterances; a damaged file counts as none."""
    try:
        with pa.ipc.open_file(pa.memory_map(str(path))) as reader:
            known = {name.decode(): value.decode() for name, value in (reader.schema.metadata or {}).items()}
            if known.get("identity") != identity or reader.num_record_batches != count:
                return None
            frames = [reader.get_batch(number).column("features") for number in range(count)]
            found = SpeechFeatures(frames, float(known["rate"]), float(known["first"]))
    except (OSError, ValueError, KeyError):
        return None
    return found if all(map(_is_whole, frames)) else None


def _is_whole(frames: pa.Array) -> bool:
    try:
        frames.validate()
    except pa.ArrowInvalid:
        return False
    kind = frames.type
    return pa.types.is_fixed_size_list(kind) and kind.value_type == pa.float16() and not frames.null_count
