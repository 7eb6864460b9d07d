"""The recipe's own modules can be imported, as they import each other; and the whole bench with a tiny model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[3] / "recipes"
sys.path.insert(0, str(RECIPES / "estimators/local"))

TINY_CONFIG = """
sample_rate: 16000
latent_dim: 6
encoder: {type: spectral, hop_length: 320, bands: 8, dim: 8, layers: 1, look_ahead: 320}
bottleneck: {type: vq, codebook_size: 8, code_dim: 3, normalize: false, decay: 0.9}
decoder: {type: source, dim: 8, layers: 1, look_ahead: 1}
loss: {fft_sizes: [256], pitch: 1.0, voicing: 0.5}
data: {train: none, valid: none, pitch: pyin, crop_seconds: 0.4, batch_size: 2, workers: 1}
training: {steps: 4, warmup_steps: 1, log_every: 1, valid_every: 2, valid_utterances: 1}
"""
TINY_PLAN = """
seeds: [0]
unseen: [carlo]
dev: 0.25
utterances: 2
seconds_each: 0.8
step_seconds: {none: 0.1, gaussian: 0.1, gumbel: 0.1, reinforce: 0.1, vq: 0.1}
sample_seconds: 0.1
bottlenecks: {none: [], gaussian: [], gumbel: [], reinforce: [bottleneck.samples=2], vq: []}
base_seconds: 0.4
tuning: {seconds: 0.2, trials: {gaussian: [[]], gumbel: [[]], reinforce: [[]], vq: [[]]}}
curves:
  seconds: 0.2
  values:
    entropy: {gumbel: {bottleneck.codebook_size: [16]}, vq: {bottleneck.codebook_size: [2, 16]}}
    kl:
      gaussian: {bottleneck.kl_weight: [0.001, 1.0]}
      gumbel: {bottleneck.kl_weight: [0.001]}
      reinforce: {bottleneck.kl_weight: [0.001]}
compare: {seconds: 0.2, points: {entropy: [75], kl: [75]}}
gradients: {draws: 2, one_latent_draws: 3, temperatures: [1.0, 0.5], samples: [2, 3], vq_temperatures: [1.0, 0.25]}
schedules:
  seconds: 0.2
  settings: {2 to 0.5: [], constant 0.1: [bottleneck.start_temperature=0.1, bottleneck.end_temperature=0.1]}
context:
  steps: 2
  step_seconds: {gaussian: 0.1, gumbel: 0.1, reinforce: 0.1, vq: 0.1}
  units: [0, 1]
  overrides: [data.batch_size=2, training.log_every=1, training.valid_every=2]
  bottlenecks: {gaussian: [bottleneck.kl_weight=1.0], gumbel: [], reinforce: [bottleneck.samples=2], vq: []}
  remedy_units: [1]
  remedies: {free bits: [bottleneck.free_nats=2.0]}
  normalized: [gaussian, vq]
  free_nats_per_dimension: true
codebooks: {seconds: 0.2, codebook_size: 16, revival: {without: 0.0}, updates: [ema], inits: [random]}
commitment: {seconds: 0.2, betas: [0.0, 0.25]}
kmeans: {codes: 4, frames: 100, passes: 2, learning_rate: 0.01}
stages:
  seconds: 0.2
  prior_steps: 2
  weight: 0.02
  temperature: 1.0
  bottlenecks: [vq]
  prior: {layers: 1, cycle: 1, residual_channels: 2, skip_channels: 2, dropout: 0.0}
probes: {bits: 75, prior_steps: 2, min_count: 2, most_words: 4}
"""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Options of the bench for a tiny model and a few steps, on the first second of some utterances."""
    from audiovq.audio.files import load_audio, save_audio

    folder = tmp_path_factory.mktemp("bench")
    for speaker in ("allison", "carlo"):
        for path in sorted((RECIPES / "mini/data" / speaker).glob("*.ogg"))[:4]:
            wave, rate = load_audio(path, 16000, offset=0.3, duration=1.1)
            save_audio(folder / "speech" / speaker / path.with_suffix(".wav").name, wave, rate)
    (folder / "tiny.yaml").write_text(TINY_CONFIG)
    (folder / "plan.yaml").write_text(TINY_PLAN)
    options = ["--config", folder / "tiny.yaml", "--plan", folder / "plan.yaml", "--data", folder / "speech"]
    return [*map(str, options), "--workers", "0"]


@pytest.fixture(scope="session")
def run(tiny, tmp_path_factory):
    """Run experiments in one folder, this process alone; what they share is done once. Gives the exit code."""
    exp = tmp_path_factory.mktemp("exp")

    def go(*only: str, exp: Path = exp) -> tuple[int, Path]:
        from bench import main

        options = [option for name in only for option in ("--only", name)]
        return main([*tiny, "--exp", str(exp), "--no-report", *options]), exp

    return go


@pytest.fixture(scope="session")
def results(run):
    """Results of the whole bench."""
    code, exp = run()
    assert code == 0
    return json.loads((exp / "results.json").read_text())
