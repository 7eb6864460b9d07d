"""Training against discriminators: each side follows its own loss and no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn

from audiovq.config import ExperimentConfig
from audiovq.data.manifest import read_manifest
from audiovq.errors import ConfigError, TrainingError
from audiovq.losses.adversarial import discriminator_loss, feature_matching_loss, generator_loss
from audiovq.models.autoencoder import AutoencoderOutput
from audiovq.training.adversarial import AdversarialTask
from audiovq.training.autoencoder import train_autoencoder
from audiovq.training.folder import start_accelerator

SMALL = {"discriminator": {"resolutions": [256, 128], "periods": [3], "channels": [4, 4]}}


@pytest.fixture
def task(experiment, tmp_path) -> Callable[..., AdversarialTask]:
    """A task as the loop would have it before the first step."""

    def make(**sections: dict[str, Any]) -> AdversarialTask:
        config = experiment(adversarial=SMALL | sections.pop("adversarial", {}), **sections)
        train = {path: read_manifest(path) for path in config.data.train_manifests}
        made = AdversarialTask(config, train, train, start_accelerator("cpu", config.training), tmp_path / "release")
        made.networks = dict(made.modules)
        return made

    return make


def gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["hinge", "least_squares"])
def test_each_side_gets_the_gradient_of_its_own_loss_alone(task, monkeypatch, kind):
    """Against the same gradients computed apart, one plain backward pass a side."""
    tried = task(adversarial={"kind": kind, "weight": 0.7, "feature_matching": 1.3, "reconstruction": 2.0})
    model, discriminators, batch, found, outputs = tried.model, tried.modules["discriminators"], tried.batch(0), {}, []

    def keep(name, loss, module):
        loss.backward()
        found[module] = gradients(module)
        model.zero_grad(), discriminators.zero_grad()
        return torch.zeros(())

    def run(step, batch) -> AutoencoderOutput:
        outputs.append(AdversarialTask.run(tried, step, batch))
        return outputs[-1]

    monkeypatch.setattr(tried, "step", keep)
    monkeypatch.setattr(tried, "run", run)
    torch.manual_seed(0)
    metrics = tried.update(0, batch)

    true, wave = discriminators(batch[0]), discriminators(outputs[0].wave.detach())
    told = discriminator_loss([score for score, _ in true], [score for score, _ in wave], kind)
    told.backward()
    expected = gradients(discriminators)
    for name, gradient in found[discriminators].items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
    assert found[discriminators].keys() == expected.keys()

    assert model.bottleneck.initialized  # The first pass placed the codebook, so the second one sees the same codes.
    torch.manual_seed(0)
    output = model(*batch)
    judged = discriminators.requires_grad_(False)(output.wave)
    total = 2.0 * tried.loss(output.wave, batch[0])[0].mean() + output.bottleneck.loss
    total = total + 0.7 * generator_loss([score for score, _ in judged], kind)
    total = total + 1.3 * feature_matching_loss([part for _, part in true], [part for _, part in judged])
    total.backward()
    expected = gradients(model)
    assert found[model].keys() == expected.keys()
    for name, gradient in found[model].items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)
    assert metrics["discriminators"].item() == pytest.approx(told.item(), rel=1e-5)


def test_balanced_losses_pull_at_the_waves_as_their_weights_say(task):
    tried = task(adversarial={"balance": True, "weight": 1.0, "feature_matching": 0.0, "reconstruction": 0.0})
    wave = torch.randn(2, 1, 1600, requires_grad=True)
    losses = {"reconstruction": wave.sum(), "features": wave.abs().sum(), "adversarial": 1e4 * wave.square().sum()}
    gradient = tried.gradient(losses, wave)
    torch.testing.assert_close(gradient, (wave / wave.norm()).detach())


def test_discriminators_learn_to_tell_speech_from_what_an_untrained_model_decodes(task):
    tried = task(training={"learning_rate": 1e-9}, adversarial={"learning_rate": 1e-2})
    told = [float(tried.update(step, tried.batch(step))["discriminators"]) for step in range(60)]
    assert told[0] > 1.5  # A score of 0 for all costs 2.
    assert told[-1] < 1.0


def test_before_the_start_step_it_is_training_without_discriminators(experiment, tmp_path):
    train_autoencoder(experiment(), tmp_path / "plain", "cpu")
    train_autoencoder(experiment(adversarial={**SMALL, "start_step": 8}), tmp_path / "later", "cpu")
    plain, later = (load_file(tmp_path / name / "state.safetensors") for name in ("plain", "later"))
    assert [name for name in plain if not torch.equal(plain[name], later[name])] == []


def test_discriminators_that_come_late_are_tried_before_training_begins(experiment, tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise TrainingError("of no use")

    monkeypatch.setattr(AdversarialTask, "judge", fail)
    with pytest.raises(TrainingError, match="of no use"):
        train_autoencoder(experiment(adversarial={**SMALL, "start_step": 8}), tmp_path / "run", "cpu")
    assert not (tmp_path / "run/config.yaml").exists()


def test_the_last_model_is_released(experiment, tmp_path):
    train_autoencoder(experiment(adversarial=SMALL), tmp_path, "cpu")
    released, state = load_file(tmp_path / "release/model.safetensors"), load_file(tmp_path / "state.safetensors")
    assert [name for name, tensor in released.items() if not torch.equal(tensor, state[f"model/{name}"])] == []


def test_frozen_parts_keep_every_bit(experiment, tmp_path):
    train_autoencoder(experiment(), tmp_path / "start", "cpu")
    training = {"init_from": str(tmp_path / "start/release"), "freeze": ["encoder", "bottleneck"]}
    train_autoencoder(experiment(adversarial=SMALL, training=training), tmp_path / "tuned", "cpu")
    before, after = (load_file(tmp_path / name / "release/model.safetensors") for name in ("start", "tuned"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("decoder.") for name in moved)


def test_a_decoder_that_gives_no_wave_in_training_is_refused(experiment, wavenet):
    with pytest.raises(ValidationError, match=r"adversarial: decoder\.type wavenet gives no wave"):
        experiment(adversarial=SMALL, **wavenet)


@pytest.mark.parametrize("frozen", [[], ["encoder"]])
def test_a_bottleneck_that_passes_no_gradient_is_refused_while_something_before_the_decoder_learns(experiment, frozen):
    sections = {"adversarial": SMALL, "bottleneck": {"type": "reinforce", "codebook_size": 8}}
    with pytest.raises(ValidationError, match=r"adversarial: bottleneck\.type reinforce passes the encoder no"):
        experiment(**sections, training={"freeze": frozen})
    held = {"init_from": "release", "freeze": ["encoder", "bottleneck"]}
    assert experiment(**sections, training=held).adversarial is not None


@pytest.mark.parametrize("balance", [True, False])
def test_weights_that_train_nothing_are_refused(experiment, balance):
    weights = {"weight": 0, "feature_matching": 0, "reconstruction": 0}
    with pytest.raises(ValidationError, match="at least one of weight, feature_matching and reconstruction"):
        experiment(adversarial={**SMALL, **weights, "balance": balance})


def test_a_run_is_not_resumed_without_its_discriminators(experiment, tmp_path: Path):
    train_autoencoder(experiment(adversarial=SMALL), tmp_path, "cpu")
    config: ExperimentConfig = experiment()
    with pytest.raises(ConfigError, match=r"holds a run with adversarial\."):
        train_autoencoder(config, tmp_path, "cpu")
