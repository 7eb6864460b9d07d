"""What every worker is told, and does, whoever starts it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import audiovq
from audiovq.errors import TokenError
from audiovq.tokenization.plan import Unit

if TYPE_CHECKING:
    from audiovq.models.tokenizer import AudioTokenizer
    from audiovq.tokenization.worker import Settings

_PACKAGES = ("torch", "torchaudio", "numpy", "soundfile", "pyarrow")


@dataclass(frozen=True)
class Job:
    """A model, and where its codes go; small, so that it can be sent to other processes."""

    model: str
    """Folder of the model, or its name on the Hugging Face Hub."""
    weights_sha256: str
    """What the model is expected to be."""
    output: Path
    settings: Settings
    device: str = "auto"

    def load(self, device: str | None = None) -> AudioTokenizer:
        """The model, on `device` or the job's.

        Raises:
            TokenError: it is no longer the one that the job began with.
        """
        from audiovq.models.tokenizer import AudioTokenizer

        tokenizer = AudioTokenizer.from_pretrained(self.model, device or self.device)
        if tokenizer.weights_sha256 != self.weights_sha256:
            raise TokenError(f"{self.model}: has changed since the job began; start the job again")
        return tokenizer


def work(job: Job, tokenizer: AudioTokenizer, units: Iterable[Unit]) -> Iterator[dict[str, Any]]:
    """Encode and commit units one after another; yields the sidecar of each when it is safely on disk."""
    from audiovq.tokenization.commit import commit_unit
    from audiovq.tokenization.worker import encode_units

    made_by = {
        "weights_sha256": job.weights_sha256,
        "device": tokenizer.device.type,
        "dtype": "float32",
        "versions": {"audiovq": audiovq.__version__, **{name: version(name) for name in _PACKAGES}},
    }
    for encoded in encode_units(tokenizer, units, job.settings):
        yield commit_unit(job.output, encoded, made_by)
