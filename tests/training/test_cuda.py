"""Training on a GPU: steps wait for nothing and keep no memory, losses fall, and a run goes on where it was killed."""

from __future__ import annotations

import gc
import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import config as shape_checks

from audiovq.config import PriorExperimentConfig
from audiovq.data.pitch import RATE, PitchTracks
from audiovq.models.prior import CodePrior
from audiovq.models.tokenizer import AudioTokenizer
from audiovq.training import loop, targets
from audiovq.training.autoencoder import train_autoencoder
from audiovq.training.averaging import Average
from audiovq.training.prior import train_prior

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),  # What it detects is what counts.
]

SOURCE = {
    "encoder": {
        **{"type": "spectral", "hop_length": 80, "spectra": 2, "window": 128, "bands": 8, "low_bins": 4},
        **{"dim": 12, "layers": 2, "kernel_size": 3, "look_ahead": 80},
    },
    "bottleneck": {"type": "residual", "num_codebooks": 3, "codebook_size": 16, "code_dim": 4, "dropout": 0.3},
    "decoder": {
        **{"type": "source", "dim": 12, "layers": 2, "kernel_size": 3, "subframes": 2, "overlap": 3},
        **{"look_ahead": 1, "free_spectrum": True},
    },
    "loss": {"fft_sizes": [512, 128], "l1": 1.0, "compressed": 1.0},
}
JUDGED = {"discriminator": {"resolutions": [128], "periods": [3], "channels": [4]}, "start_step": 2}
KINDS = {
    "spectral, residual, source": SOURCE,
    "conv, vq, istft, from memory": {
        "data": {"memory_gib": 0.1, "augmentation": {"gain": (-6.0, 3.0), "flip": True, "speeds": [1.0, 1.1]}},
        "bottleneck": {"init": "kmeans", "update": "ema"},
    },
    "conv, fsq, transposed": {
        "bottleneck": {"type": "fsq", "levels": [8, 5], "num_codebooks": 2, "structure": "residual", "dropout": 0.3},
        "decoder": {"type": "transposed", "channels": [8, 6, 4], "dilations": [[1, 3], [1], []]},
    },
    "gumbel": {"bottleneck": {"type": "gumbel", "codebook_size": 16, "anneal_steps": 6, "hard": True}},
    "reinforce": {"bottleneck": {"type": "reinforce", "codebook_size": 16, "baseline": "moving_average"}},
    "gaussian": {"bottleneck": {"type": "gaussian", "code_dim": 4, "kl_warmup_steps": 6}},
    "adversarial": {"adversarial": JUDGED},
    "adversarial, balanced": {"adversarial": {**JUDGED, "balance": True, "kind": "least_squares"}},
}
SETTLED = 3
"""Updates after which codebooks are known to be placed, and nothing may wait."""


@pytest.fixture(autouse=True)
def pitch(monkeypatch) -> None:
    """Pitch tracks of half a second of voice at 120 Hz and half of none, since how they are found is no matter here."""

    def tracks(_, utterances, *__) -> PitchTracks:
        lengths = [math.ceil(utterance.duration * RATE / 256) for utterance in utterances]
        values = [np.where(np.arange(length) // 31 % 2, 120.0, 0.0).astype(np.float32) for length in lengths]
        return PitchTracks(np.concatenate(values), np.cumsum(lengths))

    monkeypatch.setattr(targets, "pitch_tracks", tracks)


def losses(output: Path) -> list[float]:
    """Training losses by step, of a run that logs them all."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    found = {line["step"]: line["loss"] for line in lines if line["part"] == "train"}
    assert list(found) == list(range(1, len(found) + 1))
    return list(found.values())


@contextmanager
def no_waiting() -> Iterator[list[int]]:
    """Within the block an update that waits for the GPU fails; gives the bytes in use after every fifth update.

    Reports of PyTorch are of calls that wait for a stream, such as `item` and `nonzero`.
    """
    update, follow, memory = loop.TrainingRun.update, Average.update, []

    @contextmanager
    def strictly(step: int) -> Iterator[None]:
        torch.cuda.set_sync_debug_mode("error" if step >= SETTLED else "default")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def strict_update(run, step, batch, purpose="step"):
        with strictly(step):
            metrics = update(run, step, batch, purpose)
        if purpose == "step" and step and step % 5 == 0:
            gc.collect()
            memory.append(torch.cuda.memory_allocated())
        return metrics

    def strict_follow(average, model, step):
        with strictly(step - 1):
            follow(average, model, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.TrainingRun, "update", strict_update)
        patch.setattr(Average, "update", strict_follow)
        yield memory


def assert_constant(memory: list[int]) -> None:
    """Memory does not grow by so much as the waves of a batch a step; how many batches are read ahead varies."""
    assert len(memory) >= 5
    assert min(memory[-3:]) <= max(memory[:3]) + 2**18


@pytest.mark.parametrize("kind", [*KINDS, "wavenet", "teacher"])
def test_an_update_waits_for_nothing_and_keeps_no_memory(kind, experiment, wavenet, taught, tmp_path, gpu):
    sections = {**KINDS, "wavenet": wavenet, "teacher": taught}[kind]
    precision = "bf16" if kind in ("spectral, residual, source", "adversarial", "wavenet") else "fp32"
    training = {"steps": 26, "log_every": 26, "valid_every": 26, "averaging_decay": 0.9, "precision": precision}
    sections = {**sections, "data": {**sections.get("data", {}), "workers": 1}, "training": training}
    with no_waiting() as memory:
        train_autoencoder(experiment(**sections), tmp_path / "exp", gpu)
    assert_constant(memory)


def test_a_wait_would_be_found(experiment, tmp_path, monkeypatch, gpu):
    """The check above sees what it is there for."""
    seed = loop.seed_everything

    def waiting(*parts):
        torch.zeros(3, device=gpu).nonzero()
        seed(*parts)

    monkeypatch.setattr(loop, "seed_everything", waiting)
    with no_waiting(), pytest.raises(RuntimeError, match="synchroniz"):
        train_autoencoder(experiment(), tmp_path / "exp", gpu)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_fall_and_a_killed_run_goes_on_from_its_checkpoint(precision, experiment, tmp_path, monkeypatch, gpu):
    """Sums on a GPU may be added up in another order, so that what follows is the same but for rounding."""
    training = {"steps": 40, "valid_every": 20, "learning_rate": 1e-2, "precision": precision, "averaging_decay": 0.9}
    config, save = experiment(**SOURCE, training=training), loop.save_state

    def save_state(path, parts, progress, record):
        save(path, parts, progress, record)
        if progress.step:  # Not in the rehearsal.
            shutil.copy(path, tmp_path / f"state-{progress.step}")

    monkeypatch.setattr(loop, "save_state", save_state)
    train_autoencoder(config, tmp_path / "whole", gpu)
    whole = losses(tmp_path / "whole")
    assert np.mean(whole[-5:]) < 0.9 * np.mean(whole[:5])

    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    shutil.copy(tmp_path / "state-20", tmp_path / "killed/state.safetensors")
    assert train_autoencoder(config, tmp_path / "killed", gpu).step == 40
    resumed = losses(tmp_path / "killed")
    assert resumed[:20] == whole[:20]
    close = 1e-4 if precision == "fp32" else 2e-3
    assert resumed[20:23] == pytest.approx(whole[20:23], rel=close)
    assert resumed[23:] == pytest.approx(whole[23:], rel=0.05)
    assert resumed[20:23] != pytest.approx(whole[17:20], rel=close)

    one, other = (AudioTokenizer.from_pretrained(tmp_path / "killed/release", device) for device in ("cpu", gpu))
    wave = 0.1 * torch.randn(1, 16000)
    assert torch.equal(one.encode(wave, 16000), other.encode(wave, 16000))


@pytest.fixture
def plain_functions() -> Iterator[None]:
    """No checks of shapes, which a compiler would have to trace."""
    shape_checks.update("jaxtyping_disable", True)
    yield
    shape_checks.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("plain_functions")
@pytest.mark.filterwarnings("default")  # A compiler tells much that is not ours.
def test_a_compiled_network_trains_as_it_does_uncompiled(experiment, tmp_path, gpu):
    sections = {"encoder": {"channels": [4, 6], "strides": [80], "dilations": [[], [1]]}}
    found = []
    for compiled in (False, True):
        training = {"steps": 4, "valid_every": 4, "compile": compiled}
        train_autoencoder(experiment(**sections, training=training), tmp_path / str(compiled), gpu)
        found.append(losses(tmp_path / str(compiled)))
    assert found[1] == pytest.approx(found[0], rel=0.02)


def test_a_prior_learns_waits_for_nothing_and_samples_what_it_learned(write_tokens, tmp_path, gpu):
    """It is taught to count from where the speaker begins."""
    names = ("june", "carlo")
    codes = {(f"utt-{n}", names[n % 2]): (np.arange(60) + 4 * (n % 2) + np.arange(3)[:, None]) % 8 for n in range(8)}
    tokens = write_tokens(tmp_path / "tokens", codes, 8)
    network = {"layers": 4, "cycle": 4, "residual_channels": 16, "skip_channels": 32, "speaker_dim": 4}
    training = {"steps": 80, "warmup_steps": 5, "learning_rate": 2e-2, "valid_every": 80, "log_every": 80}
    data = {"tokens": tokens, "valid_tokens": tokens, "crop_frames": 60, "batch_size": 8}
    config = PriorExperimentConfig.model_validate({**network, **data, "training": {**training, "precision": "bf16"}})
    with no_waiting() as memory:
        train_prior(config, tmp_path / "exp", gpu)
    assert_constant(memory)
    prior = CodePrior.from_pretrained(tmp_path / "exp/release", gpu)
    for name, first in zip(names, (0, 4), strict=True):
        counted = (np.arange(60) + first + np.arange(3)[:, None]) % 8
        drawn = prior.sample(2, 60, speaker=name, temperature=0.0, seed=1)
        assert np.array_equal(drawn.numpy(), np.stack([counted, counted]))
