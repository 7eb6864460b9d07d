"""The training loop with a model of two weights, for which everything can be computed by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import count

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from audiovq.config import TrainingConfig
from audiovq.errors import TrainingError
from audiovq.training.loop import Task, average_of, build_optimizer, fit, learning_rate, train_step


def settings(**values) -> TrainingConfig:
    return TrainingConfig(**{"steps": 6, "warmup_steps": 0, "log_every": 2, "valid_every": 2, **values})


class Line(nn.Module):
    """y = weight * x, with a buffer that counts the calls."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x):
        self.calls += 1
        return x @ self.weight


class Toy:
    """A task that notes what the loop asks of it; validation losses come from a list."""

    def __init__(self, valid_losses=(), fail_at: int | None = None):
        self.model = Line()
        self.valid_losses = iter([*valid_losses])
        self.fail_at = fail_at
        self.briefly_validated: list[Line] = []
        self.released: list[float] = []
        self.steps: list[int] = []

    def task(self) -> Task:
        return Task(self.model, self.compute_loss, self.batches, self.validate, self.release, audio_seconds=1.0)

    def compute_loss(self, model, batch, step):
        self.steps.append(step)
        loss = (model(batch) - 3 * batch).square().mean()
        return (loss * math.nan if step == self.fail_at else loss), {"squared": loss.detach()}

    def batches(self, first_step: int) -> Iterator[torch.Tensor]:
        return (torch.full((2, 1), 1.0 + step % 3) for step in count(first_step))

    def validate(self, model, log, step, brief):
        if brief:
            self.briefly_validated.append(model)
            return {"loss": 1.0}
        return {"loss": next(self.valid_losses, 1.0)}

    def release(self, model):
        self.released.append(float(model.weight.detach()))


def run(toy: Toy, folder, **values):
    return fit(Accelerator(cpu=True), toy.task(), settings(**values), {"of": "toy"}, folder)


def test_the_learning_rate_at_its_ends_and_in_between():
    warm = settings(steps=100, warmup_steps=20, learning_rate=0.5)
    assert learning_rate(0, warm) == pytest.approx(0.5 / 20)
    assert learning_rate(18, warm) == pytest.approx(0.5 * 19 / 20)
    assert learning_rate(19, warm) == learning_rate(20, warm) == 0.5
    assert learning_rate(60, warm) == pytest.approx(0.25)
    assert learning_rate(99, warm) == pytest.approx(0.5 * math.sin(math.pi / 160) ** 2)
    assert learning_rate(100, warm) == learning_rate(1000, warm) == 0
    rates = [learning_rate(step, warm) for step in range(101)]
    assert rates == sorted(rates[:20]) + sorted(rates[20:], reverse=True)

    cold = settings(steps=10, warmup_steps=0, learning_rate=0.5)
    assert learning_rate(0, cold) == 0.5
    never_warm = settings(steps=10, warmup_steps=50, learning_rate=0.5)
    assert learning_rate(9, never_warm) == pytest.approx(0.1)


def test_weight_decay_is_for_matrices_but_not_for_codebooks():
    model = nn.ModuleDict({"layer": nn.Linear(3, 2), "norm": nn.LayerNorm(3), "conv": nn.Conv1d(1, 1, 3)})
    model.register_parameter("codebook", nn.Parameter(torch.ones(4, 2)))
    model.register_parameter("frozen", nn.Parameter(torch.ones(4, 2), requires_grad=False))
    decayed, plain = build_optimizer(model, settings(weight_decay=0.2)).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(parameter)] for parameter in decayed["params"]} == {"layer.weight", "conv.weight"}
    assert {names[id(parameter)] for parameter in plain["params"]} == {
        "layer.bias",
        "norm.weight",
        "norm.bias",
        "conv.bias",
        "codebook",
    }
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.2, 0.0)


@pytest.mark.parametrize(("clip_norm", "expected"), [(1000.0, -4.0), (0.5, -0.5)])
def test_the_gradient_is_clipped_to_its_largest_norm_and_logged_as_it_was(clip_norm, expected):
    toy = Toy()
    optimizer = torch.optim.SGD(toy.model.parameters())
    options = settings(clip_norm=clip_norm, learning_rate=1.0)
    batch = torch.ones(2, 1)  # Loss (w - 3)^2 at w = 1: gradient -4.
    metrics = train_step(Accelerator(cpu=True), toy.model, optimizer, toy.compute_loss, batch, options, 0)
    assert float(toy.model.weight.detach()) == pytest.approx(1 - expected)
    assert float(metrics["gradient_norm"]) == pytest.approx(4)
    assert float(metrics["loss"]) == 4
    assert float(metrics["learning_rate"]) == 1


def test_the_average_is_the_recurrence_it_should_be():
    model = Line()
    average = average_of(model, 0.75)
    assert average is not None
    expected, weights = None, [2.0, 5.0, -1.0]
    for weight in weights:
        model.weight.data.fill_(weight)
        model.calls += 1
        average.update_parameters(model)
        expected = weight if expected is None else 0.75 * expected + 0.25 * weight
    assert float(average.module.weight.detach()) == pytest.approx(expected)
    assert int(average.module.calls) == 3
    assert average_of(model, None) is None


def test_the_best_model_is_released_and_the_last_one_kept(tmp_path):
    toy = Toy(valid_losses=[2.0, 1.5, 1.7])
    progress = run(toy, tmp_path, valid_every=2)
    assert progress.best_loss == 1.5
    assert len(toy.released) == 2
    last = float(toy.model.weight.detach())
    assert toy.released[1] != last
    assert float(load_file(tmp_path / "state.safetensors")["model/weight"]) == last


def test_the_rehearsal_makes_two_steps_and_a_validation_and_leaves_no_trace(tmp_path, monkeypatch):
    toy = Toy()
    run(toy, tmp_path / "rehearsed")
    assert toy.steps[:3] == [0, 1, 0]
    (copy,) = toy.briefly_validated
    assert copy is not toy.model
    assert int(copy.calls) == 2
    assert int(toy.model.calls) == 6

    other = Toy()
    monkeypatch.setattr("audiovq.training.loop.rehearse", lambda *_: None)
    run(other, tmp_path / "not")
    assert other.steps == toy.steps[2:]
    assert torch.equal(other.model.weight, toy.model.weight)
    files = [tmp_path / folder / "metrics.jsonl" for folder in ("rehearsed", "not")]
    assert files[0].read_text() == files[1].read_text()


def test_a_mistake_in_validation_shows_before_the_first_step(tmp_path):
    toy = Toy()

    def broken(*_):
        raise ValueError("a mistake")

    toy.validate = broken
    with pytest.raises(ValueError, match="a mistake"):
        run(toy, tmp_path)
    assert toy.steps == [0, 1]
    assert int(toy.model.calls) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fail_at", [0, 2, 3])
def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_state(tmp_path, fail_at):
    toy = Toy(fail_at=fail_at)
    with pytest.raises(TrainingError, match=r"^loss is nan at step \d; try a lower training\.learning_rate$"):
        run(toy, tmp_path, log_every=5, valid_every=2)
    if fail_at:
        state = load_file(tmp_path / "state.safetensors")
        assert all(tensor.isfinite().all() for tensor in state.values())
        assert '"step": 2' in (tmp_path / "metrics.jsonl").read_text()
    else:
        assert list(tmp_path.iterdir()) == []


def test_a_validation_that_is_not_finite_releases_nothing(tmp_path):
    toy = Toy(valid_losses=[2.0, math.nan])
    with pytest.raises(TrainingError, match="loss is nan at step 4"):
        run(toy, tmp_path)
    assert len(toy.released) == 1
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["part"]) for line in lines] == [(2, "train"), (2, "valid"), (4, "train")]
