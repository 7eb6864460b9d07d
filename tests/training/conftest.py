from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.state import AcceleratorState, GradientState

from audiovq.audio.files import AudioSource
from audiovq.config import ExperimentConfig
from audiovq.data import features
from audiovq.data.manifest import Utterance, write_manifest
from audiovq.data.teachers import Teacher

SPEECH = Path(__file__).parents[2] / "recipes" / "mini" / "data"


def utterance(path: Path) -> Utterance:
    source = AudioSource.open(path)
    return Utterance(
        path.stem,
        path.resolve(),
        source.duration,
        source.sample_rate,
        source.num_samples,
        speaker=path.parent.name,
    )


@pytest.fixture(autouse=True)
def new_accelerator() -> Iterator[None]:
    """Accelerate keeps its settings for the whole process; some tests make an `Accelerator` of their own."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="session")
def manifests(tmp_path_factory) -> tuple[Path, Path]:
    """A few short utterances of real speech to train on, and two others to validate on."""
    folder = tmp_path_factory.mktemp("manifests")
    found = [utterance(path) for path in sorted((SPEECH / "allison").glob("*.ogg"))[:20]]
    short = sorted(found, key=lambda utterance: utterance.duration)[:6]
    write_manifest(folder / "train.jsonl", short[:4])
    write_manifest(folder / "valid.jsonl", short[4:])
    return folder / "train.jsonl", folder / "valid.jsonl"


@pytest.fixture
def wavenet() -> dict[str, dict[str, Any]]:
    """The sections of an experiment that give it a WaveNet decoder, told who speaks, with time jitter."""
    small = {"layers": 3, "cycle": 3, "residual_channels": 6, "skip_channels": 6, "condition_channels": 4}
    return {
        "decoder": {"type": "wavenet", **small, "speaker_dim": 2, "jitter": 0.2},
        "loss": {"mu_law": 1, "mel": 0, "stft": 0},
    }


class Loudness(Teacher):
    """Knows how loud and how bright each 20 ms of speech are."""

    source, rate, first = "loudness", 50.0, 0.01

    def hear(self, wave):
        frames = np.pad(wave, (0, -len(wave) % 320)).reshape(-1, 320)
        level = np.log10(np.square(frames).mean(1) + 1e-6)
        bright = np.log10(np.square(np.diff(frames)).mean(1) + 1e-6)
        return np.stack([level, bright - level], 1)


@pytest.fixture
def taught(tmp_path_factory, monkeypatch) -> dict[str, dict[str, Any]]:
    """The sections of an experiment that give it residual codes, of which the first is to tell a teacher's features."""
    folder = tmp_path_factory.mktemp("teachers") / "loudness"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.bin").write_bytes(b"loudness")
    monkeypatch.setattr(features, "load_teacher", lambda *_: Loudness())
    return {
        "bottleneck": {"type": "residual", "num_codebooks": 3, "codebook_size": 8, "code_dim": 4},
        "loss": {"fft_sizes": [512, 128], "distill": 2.0},
        "data": {"teacher": str(folder)},
    }


@pytest.fixture
def codec(manifests) -> dict[str, Any]:
    """Sections of a codec of residual codes with a source-driven decoder, trained on two manifests."""
    return {
        "encoder": {"type": "spectral", "hop_length": 80, "window": 128, "bands": 8, "dim": 8, "layers": 1},
        "bottleneck": {"type": "residual", "num_codebooks": 2, "codebook_size": 8, "code_dim": 4},
        "decoder": {"type": "source", "dim": 8, "layers": 1, "subframes": 2, "overlap": 3},
        "data": {
            **{"train": [manifests[0], manifests[1]], "shares": [0.7, 0.3], "memory_gib": 0.1, "pitch": "swift"},
            "augmentation": {"gain": [-6, 3], "flip": True, "speeds": [0.9, 1.0]},
        },
    }


@pytest.fixture
def experiment(manifests) -> Callable[..., ExperimentConfig]:
    """A run of eight steps with a model of a few thousand weights; sections given are merged into its own."""

    def make(**sections: dict[str, Any]) -> ExperimentConfig:
        config = {
            "sample_rate": 16000,
            "latent_dim": 8,
            "encoder": {"channels": [4, 6, 8], "strides": [8, 10], "dilations": [[], [1], [1, 3]]},
            # A code that nobody chose for a step or two is revived.
            "bottleneck": {"type": "vq", "codebook_size": 16, "code_dim": 4, "decay": 0.8, "revive_below": 0.8},
            "decoder": {"type": "istft", "dim": 12, "layers": 2, "kernel_size": 3, "subframes": 2},
            "loss": {"fft_sizes": [512, 128]},
            "data": {"train": manifests[0], "valid": manifests[1], "crop_seconds": 0.2, "batch_size": 4},
            "training": {"steps": 8, "warmup_steps": 2, "log_every": 1, "valid_every": 3, "valid_utterances": 2},
        }
        for name, section in sections.items():
            ours = config.get(name, {})
            same_type = section.get("type", ours.get("type")) == ours.get("type")
            config[name] = {**ours, **section} if same_type else section
        return ExperimentConfig.model_validate(config)

    return make
