"""The training loop with a model of two weights, for which everything can be computed by hand."""

from __future__ import annotations

import json
import math
import os
import signal

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from audiovq.config import TrainingConfig
from audiovq.errors import Stopped, TrainingError
from audiovq.training.averaging import Average
from audiovq.training.folder import open_run
from audiovq.training.loop import Task, fit
from audiovq.training.optimization import build_optimizer, descend, schedule


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


class Toy(Task[Line]):
    """A task that notes what the loop asks of it; validation losses come from a list."""

    audio_seconds = 1.0

    def __init__(self, valid_losses=(), fail_at: int | None = None):
        self.model = Line()
        self.modules = {"model": self.model}
        self.optimizers = {"generator": build_optimizer(self.model, settings())}
        self.valid_losses = iter([*valid_losses])
        self.fail_at = fail_at
        self.briefly_validated: list[int] = []
        self.released: list[float] = []
        self.steps: list[int] = []

    def batch(self, index):
        return (torch.full((2, 1), 1.0 + index % 3),)

    def update(self, step, batch):
        self.steps.append(step)
        loss = (self.networks["model"](*batch) - 3 * batch[0]).square().mean()
        loss = loss * (math.nan if step == self.fail_at else 1)
        norm = descend(Accelerator(cpu=True), loss, self.model, self.optimizers["generator"], 1.0)
        return {"loss": loss.detach(), "gradient_norm": norm}

    def validate(self, model, log, step, brief):
        if brief:
            self.briefly_validated.append(int(model.calls))
            return {"loss": 1.0}
        return {"loss": next(self.valid_losses, 1.0)}

    def release(self, model):
        self.released.append(float(model.weight.detach()))


def run(toy: Toy, folder, **values):
    accelerator = Accelerator(cpu=True)
    with open_run(folder, {"config": {"of": "toy"}, "data": {}}, accelerator, force=False) as opened:
        return fit(accelerator, toy, settings(**values), opened)


def test_the_schedule_at_its_ends_and_in_between():
    warm = settings(steps=100, warmup_steps=20)
    assert schedule(0, warm) == pytest.approx(1 / 20)
    assert schedule(18, warm) == pytest.approx(19 / 20)
    assert schedule(19, warm) == schedule(20, warm) == 1
    assert schedule(60, warm) == pytest.approx(0.5)
    assert schedule(99, warm) == pytest.approx(math.sin(math.pi / 160) ** 2)
    assert schedule(100, warm) == schedule(1000, warm) == 0
    shares = [schedule(step, warm) for step in range(101)]
    assert shares == sorted(shares[:20]) + sorted(shares[20:], reverse=True)
    assert schedule(0, settings(steps=10, warmup_steps=0)) == 1
    assert schedule(9, settings(steps=10, warmup_steps=50)) == pytest.approx(0.2)


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
def test_the_gradient_is_clipped_to_its_largest_norm_which_is_returned_as_it_was(clip_norm, expected):
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    loss = (model(torch.ones(2, 1)) - 3).square().mean()  # (w - 3)^2 at w = 1: gradient -4.
    norm = descend(Accelerator(cpu=True), loss, model, optimizer, clip_norm)
    assert float(model.weight.detach()) == pytest.approx(1 - expected)
    assert float(norm) == pytest.approx(4)
    assert model.weight.grad is None


def test_the_average_is_the_recurrence_it_should_be_and_copies_codebooks_frozen_weights_and_buffers():
    model = Line()
    model.codebook = nn.Parameter(torch.zeros(2, 1))
    model.frozen = nn.Parameter(torch.zeros(2, 1), requires_grad=False)
    average = Average(model, 0.1)
    expected = 0.0
    for step, weight in enumerate([2.0, 5.0, -1.0], start=1):
        for parameter in model.parameters():
            parameter.data.fill_(weight)
        model.calls += 1
        average.update(model, step)
        decay = min(0.1, step / (step + 20))
        expected = weight if step == 1 else decay * expected + (1 - decay) * weight
    assert float(average.model.weight) == pytest.approx(expected)
    assert average.model.codebook.tolist() == average.model.frozen.tolist() == [[-1.0], [-1.0]]
    assert int(average.model.calls) == 3


@pytest.mark.parametrize(("steps", "behind"), [(400, 20), (4000, 100)])
def test_the_average_of_a_short_training_is_a_twentieth_of_it_behind_and_of_a_long_one_what_its_decay_says(
    steps, behind
):
    model, average = Line(), Average(Line(), 0.99)
    for step in range(1, steps + 1):
        model.weight.data.fill_(step)
        average.update(model, step)
    assert steps - float(average.model.weight) == pytest.approx(behind, rel=0.1)


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
    assert toy.briefly_validated == [2]
    assert int(toy.model.calls) == 6

    other = Toy()
    monkeypatch.setattr("audiovq.training.loop.TrainingRun.rehearse", lambda _: None)
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
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


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
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_validation_that_is_not_finite_releases_nothing(tmp_path):
    toy = Toy(valid_losses=[2.0, math.nan])
    with pytest.raises(TrainingError, match="loss is nan at step 4"):
        run(toy, tmp_path)
    assert len(toy.released) == 1
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["part"]) for line in lines] == [(2, "train"), (2, "valid"), (4, "train")]


class Rivals(Toy):
    """Two modules, each with an optimiser of its own; a signal may stop them after a step."""

    def __init__(self, stop_at: int | None = None):
        super().__init__()
        self.critic = nn.Linear(1, 2)
        self.modules = {"model": self.model, "critic": self.critic}
        self.optimizers["critic"] = build_optimizer(self.critic, settings(learning_rate=0.02))
        self.stop_at = stop_at

    def update(self, step, batch):
        noise = torch.randn(2, 1)
        judged = self.networks["critic"](self.networks["model"](batch[0] + noise))
        first = descend(Accelerator(cpu=True), judged.square().mean(), self.critic, self.optimizers["critic"], 1.0)
        self.model.zero_grad()
        metrics = super().update(step, batch)
        if step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return {**metrics, "gradient_norm_critic": first}


def test_a_task_of_two_optimisers_resumes_to_the_bit(tmp_path):
    torch.manual_seed(1)
    critic = Rivals().critic.state_dict()
    tasks = {name: Rivals(stop_at) for name, stop_at in {"whole": None, "stopped": 2, "resumed": None}.items()}
    for name in ("whole", "stopped"):
        tasks[name].critic.load_state_dict(critic)
    run(tasks["whole"], tmp_path / "whole")
    with pytest.raises(Stopped, match="after step 3"):
        run(tasks["stopped"], tmp_path / "parts")
    assert run(tasks["resumed"], tmp_path / "parts").step == 6
    assert tasks["resumed"].steps == [3, 4, 5]
    whole, parts = (load_file(tmp_path / name / "state.safetensors") for name in ("whole", "parts"))
    assert {"optimizer.generator/0/exp_avg", "optimizer.critic/0/exp_avg", "optimizer.critic/1/exp_avg"} <= whole.keys()
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
    assert int(whole["optimizer.critic/0/step"]) == 6
    assert not torch.equal(whole["critic/weight"], critic["weight"])
    rates = [optimizer.param_groups[0]["lr"] for optimizer in tasks["resumed"].optimizers.values()]
    assert rates[1] / rates[0] == pytest.approx(0.02 / settings().learning_rate)


def test_compiled_networks_train_as_others_do_and_leave_plain_states(tmp_path, monkeypatch):
    """With a backend that changes no number; what a real one makes of them is PyTorch's affair."""
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: original(module, backend="eager"))
    plain, compiled = Toy(), Toy()
    run(plain, tmp_path / "plain")
    run(compiled, tmp_path / "compiled", compile=True)
    assert plain.networks["model"] is plain.model
    assert compiled.networks["model"] is not compiled.model
    assert int(compiled.model.calls) == int(plain.model.calls)  # The compiled one is what was called.
    one, other = (load_file(tmp_path / name / "state.safetensors") for name in ("plain", "compiled"))
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
