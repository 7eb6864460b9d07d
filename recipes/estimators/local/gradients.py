"""Experiments 1 to 4: gradients in a small trained model, all estimators with the same parameters and batch."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from cell_list import Cell
from cells import Bench
from estimates import GradientStatistics, OneLatent, encoder_gradient, gradient_statistics
from stochastic import OneDimension, StochasticVQ
from torch import Tensor
from torch.nn import functional as F
from training import experiment, load_model, make_task

from audiovq.bottlenecks.base import Bottleneck
from audiovq.bottlenecks.gumbel import GumbelBottleneck
from audiovq.bottlenecks.reinforce import ReinforceBottleneck
from audiovq.bottlenecks.vq import VectorQuantizer
from audiovq.config import ExperimentConfig, GaussianConfig, GumbelConfig, ReinforceConfig, VQConfig
from audiovq.devices import seed_everything
from audiovq.models.autoencoder import Autoencoder

BATCH, CROP_SECONDS = 4, 0.4
"""The fixed batch."""


class Problem:
    """A trained model, a fixed batch, and what latents cost: the loss of training, with the same noise at each call."""

    def __init__(self, bench: Bench, cell: Cell):
        (run,) = cell.needs
        settings = bench.cells.cells[run].settings
        self.config: ExperimentConfig = experiment(bench, settings, settings["overrides"])
        small = {"batch_size": BATCH, "crop_seconds": CROP_SECONDS, "memory_gib": 0.0}
        data = self.config.data.model_copy(update=small)
        task, _ = make_task(self.config.model_copy(update={"data": data}), bench.run_folder(cell.name))
        batch = dict(zip(task.inputs, task.batch(0), strict=True))
        self.loss, self.wave, self.f0 = task.loss, batch["wave"], batch.get("f0")
        self.model: Autoencoder = load_model(self.config, bench.run_folder(run)).train()
        self.weights = self.model.state_dict()
        self.settings = cell.settings

    def costs(self, latents: Tensor) -> Tensor:
        """Loss of each item of latents [N * B, D, F]."""
        model, found = self.model, []
        start = model.look_ahead * model.hop_length
        for part in latents.split(len(self.wave)):
            with torch.random.fork_rng(devices=[]):
                seed_everything("noise")
                output = model.decoder.reconstruct(F.pad(part, (0, model.look_ahead)), self.wave, None, self.f0)
            decoded = output.wave[..., start : start + self.wave.shape[-1]]
            found.append(self.loss(decoded, self.wave)[0] + self.config.loss.of_network(output.terms))
        return torch.cat(found)

    def use(self, bottleneck: Bottleneck) -> Bottleneck:
        """Put another bottleneck into the model, with the trained one's weights."""
        part = {n.removeprefix("bottleneck."): w for n, w in self.weights.items() if n.startswith("bottleneck.")}
        bottleneck.load_state_dict(part, strict=False)  # REINFORCE has a moving average beside them.
        self.model.bottleneck = bottleneck.train()
        if isinstance(bottleneck, ReinforceBottleneck) and bottleneck.config.baseline == "moving_average":
            with torch.no_grad():  # What it would have after many steps: the mean cost of sampled codes.
                bottleneck.cost_sum.fill_(self.costs(bottleneck(self.model.encode(self.wave)).latents).mean())
                bottleneck.cost_weight.fill_(1)
        return bottleneck

    def one_latent(self) -> OneLatent:
        """The frame in the middle, drawn alone."""
        frames = self.wave.shape[-1] // self.model.hop_length
        return OneLatent(self.model, self.costs, self.wave, frames // 2)

    def compare(self, name: str, exact: Tensor | None) -> dict[str, Any]:
        """Statistics of the model's estimator: of one frame against the exact gradient, and of the whole encoder."""
        found: dict[str, Any] = {"estimator": name}
        if exact is not None:
            seed_everything("one latent", name)
            one = gradient_statistics(self.one_latent().draw, self.settings["one_latent_draws"], exact)
            found["one"] = as_data(one)
        seed_everything("gradients", name)
        whole = gradient_statistics(lambda: encoder_gradient(self.model, self.costs, self.wave), self.settings["draws"])
        return found | {"all": as_data(whole)}


def gaussian_gradients(bench: Bench, cell: Cell) -> dict[str, Any]:
    """Reparameterised and score-function gradients of the same Gaussian.

    Bias is that of one dimension of one frame, whose expected cost is integrated; variance of the whole encoder's
    gradient is of all dimensions of all frames.
    """
    problem = Problem(bench, cell)
    config, dim = problem.config.bottleneck, problem.config.latent_dim
    assert isinstance(config, GaussianConfig)
    ways: list[tuple[str, Any, int]] = [("reparameterised", "reparameterised", 1), ("score function", "score", 1)]
    ways += [(f"score function, leave-one-out, {s} samples", "score", s) for s in problem.settings["samples"]]
    rows, exact, dimension = [], None, strongest(problem)
    for name, estimator, samples in ways:
        bottleneck = problem.use(OneDimension(dim, config, dimension, estimator, samples))
        latent = problem.one_latent()
        exact = integrated(bottleneck, latent) if exact is None else exact
        seed_everything("one latent", name)
        one = gradient_statistics(latent.draw, problem.settings["one_latent_draws"], exact)
        problem.use(OneDimension(dim, config, None, estimator, samples))
        whole = problem.compare(name, None)
        rows.append({**whole, "one": as_data(one), "samples": samples, "estimator_kind": estimator})
    return {"failed": None, "rows": rows}


def strongest(problem: Problem) -> int:
    """The dimension whose mean is farthest from the prior's at the frame in the middle, so that its sample matters."""
    bottleneck = problem.model.bottleneck
    with torch.no_grad():
        mean, _ = bottleneck.posterior(problem.model.encode(problem.wave))  # type: ignore[operator]
    return int(mean[:, mean.shape[1] // 2].square().mean(0).argmax())


def integrated(bottleneck: Bottleneck, latent: OneLatent) -> Tensor:
    """The exact gradient when one dimension of one frame is drawn, by costs at points across it."""
    assert isinstance(bottleneck, OneDimension)
    points, probabilities = bottleneck.nodes(latent.z)
    with torch.no_grad():
        costs = torch.stack([latent.costs_of(point) for point in points])
    # Probabilities of the points sum to one up to the tails; a constant in the costs must not count.
    expected = (probabilities * (costs - costs.mean(0))).sum(0).mean()
    return torch.autograd.grad(expected, latent.z)[0].flatten()


def reinforce_gradients(bench: Bench, cell: Cell) -> dict[str, Any]:
    """The score function with each baseline, and with more and more samples."""
    problem = Problem(bench, cell)
    samples = problem.settings["samples"]
    ways: list[dict[str, Any]] = [{"baseline": "none", "samples": 1}, {"baseline": "moving_average", "samples": 1}]
    ways += [{"baseline": "none", "samples": samples[-1]}]
    ways += [{"baseline": "leave_one_out", "samples": s} for s in samples]
    return categorical_rows(problem, [ReinforceConfig(**codes(problem), **way) for way in ways])


def gumbel_gradients(bench: Bench, cell: Cell) -> dict[str, Any]:
    """Relaxed and straight-through samples at each temperature, and REINFORCE with the same parameters."""
    problem = Problem(bench, cell)
    ways: list[Any] = [ReinforceConfig(**codes(problem), samples=problem.settings["samples"][-1])]
    for hard in (False, True):
        for t in problem.settings["temperatures"]:
            ways.append(GumbelConfig(**codes(problem), start_temperature=t, end_temperature=t, hard=hard))
    return categorical_rows(problem, ways)


def codes(problem: Problem) -> dict[str, Any]:
    """As many codes as the trained model has."""
    return {"codebook_size": problem.model.bottleneck.codebook_size}


def categorical_rows(problem: Problem, configs: list[Any]) -> dict[str, Any]:
    """Statistics of estimators for one categorical posterior."""
    rows, exact = [], None
    for config in configs:
        make: Any = ReinforceBottleneck if isinstance(config, ReinforceConfig) else GumbelBottleneck
        problem.use(make(problem.config.latent_dim, config))
        exact = problem.one_latent().exact() if exact is None else exact
        rows.append({**problem.compare(name_of(config), exact), "bottleneck": config.model_dump()})
    return {"failed": None, "rows": rows}


def name_of(config: ReinforceConfig | GumbelConfig) -> str:
    """What tables call an estimator."""
    if isinstance(config, ReinforceConfig):
        baseline = {"none": "no baseline", "moving_average": "moving average", "leave_one_out": "leave-one-out"}
        plural = "" if config.samples == 1 else "s"
        return f"REINFORCE, {baseline[config.baseline]}, {config.samples} sample{plural}"
    return f"Gumbel-Softmax, {'straight-through' if config.hard else 'relaxed'}, temperature {config.end_temperature:g}"


def vq_gradients(bench: Bench, cell: Cell) -> dict[str, Any]:
    """Straight-through past VQ, and past a stochastic VQ against its exact gradient, as its temperature falls."""
    problem = Problem(bench, cell)
    config, dim = problem.config.bottleneck, problem.config.latent_dim
    assert isinstance(config, VQConfig)
    config = config.model_copy(update={"revive_below": 0.0})
    nearest = StochasticVQ(dim, config, 1.0)
    problem.use(nearest)
    with torch.no_grad():
        unit = float(nearest.squared_distances(problem.model.encode(problem.wave)).amin(-1).mean())
    problem.use(VectorQuantizer(dim, config))
    straight = problem.one_latent().draw()
    rows = [problem.compare("straight-through, VQ", None)]
    for relative in problem.settings["vq_temperatures"]:
        stochastic = StochasticVQ(dim, config, relative * unit)
        problem.use(stochastic)
        latent = problem.one_latent()
        exact = latent.exact()
        row = problem.compare(f"straight-through, stochastic VQ at {relative:g}", exact)
        with torch.no_grad():
            entropy = float(torch.special.entr(stochastic.log_posterior(latent.z).exp()).sum(-1).mean())
        row |= {"temperature": relative, "entropy": entropy, "exact_norm": float(exact.norm())}
        row["deterministic"] = {
            "bias": float((straight - exact).norm() / exact.norm()),
            "cosine": float(torch.cosine_similarity(straight, exact, dim=0)),
        }
        rows.append(row)
    return {"failed": None, "unit": unit, "straight_norm": float(straight.norm()), "rows": rows}


def as_data(statistics: GradientStatistics) -> dict[str, Any]:
    """Plain data, with what is derived."""
    return {**asdict(statistics), "snr": statistics.snr, "variance_seconds": statistics.variance_seconds}
