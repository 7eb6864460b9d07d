"""What there is to do: the cells of each experiment, as plain data.

A cell is one piece of work with a result of its own: a training run and its measurement, or a measurement of models
that other cells trained. Its settings say all that it depends on, apart from what the cells that it needs have found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from plan import KINDS, Plan

STARTING = 3.0
"""CPU seconds that a training takes besides its steps, for the plan's sum."""
MEASURING = 0.05
"""CPU seconds that a second of speech takes when a trained model is measured."""
DRAWING = 0.018
"""CPU seconds of a draw of a gradient with one sample; with S samples (1 + S) / 2 times as much."""
PRIOR_STEP = 0.04
"""CPU seconds of a step of a prior."""
NORMALISED = "batch normalisation"
"""What stands for a remedy where latents pass batch normalisation before the bottleneck."""
PREPARING = 130.0
"""CPU seconds that the pitch of the speech that comes with audiovq takes."""


@dataclass(frozen=True)
class Cell:
    """A piece of work."""

    name: str
    kind: str
    """What is done, a key of `work.WORK`."""
    settings: dict[str, Any]
    needs: tuple[str, ...] = ()
    """Cells whose results it takes."""
    seconds: float = 0.0
    """CPU seconds that it is planned to take."""


@dataclass
class Cells:
    """All cells of a plan by name, and those that an experiment's verdict is made of."""

    cells: dict[str, Cell] = field(default_factory=dict)
    experiments: dict[str, list[str]] = field(default_factory=dict)

    def add(self, experiments: str | Sequence[str], *cells: Cell) -> None:
        for cell in cells:
            self.cells[cell.name] = cell
            for name in [experiments] if isinstance(experiments, str) else experiments:
                known = self.experiments.setdefault(name, [])
                known += [cell.name] if cell.name not in known else []

    def wanted(self, experiments: Iterable[str]) -> list[Cell]:
        """The cells of some experiments and all that these need, each behind what it needs."""
        found: dict[str, Cell] = {}

        def visit(name: str) -> None:
            if name not in found:
                for needed in self.cells[name].needs:
                    visit(needed)
                found[name] = self.cells[name]

        for experiment in experiments:
            for name in self.experiments[experiment]:
                visit(name)
        return list(found.values())

    def digest(self, name: str, config: str) -> str:
        """Of all that a cell's result depends on: its settings, the model's config, and the same of what it needs."""
        cell = self.cells[name]
        needs = [self.digest(needed, config) for needed in cell.needs]
        return hashlib.sha256(json.dumps([cell.kind, cell.settings, config, needs]).encode()).hexdigest()[:16]


def cells_of(plan: Plan) -> Cells:
    """All cells of a plan."""
    made = Cells()
    shown = {"utterances": plan.utterances, "seconds_each": plan.seconds_each}
    data = Cell("data", "data", {"unseen": plan.unseen, "dev": plan.dev}, seconds=PREPARING)
    made.cells[data.name] = data

    def train(name: str, kind: str, seconds: float, seed: int, overrides: Sequence[str] = (), **more: Any) -> Cell:
        settings = {"bottleneck": kind, "overrides": [*plan.bottlenecks[kind], *overrides], "seed": seed}
        settings |= {"seconds": seconds, "speed": speed(plan, kind), **shown}
        needs = ["data", *more.pop("needs", [])]
        heard = 1 + has_samples(kind, more)
        return Cell(name, "train", settings | more, tuple(needs), seconds + STARTING + heard * measuring(plan))

    base = {kind: train(f"base-{kind}", kind, plan.base_seconds, plan.seeds[0]) for kind in KINDS if kind != "none"}
    made.cells |= {cell.name: cell for cell in base.values()}
    _gradients(made, plan)
    _rates(made, plan, train)
    _schedules(made, plan, train)
    _collapse(made, plan)
    _codebooks(made, plan, train)
    _stages(made, plan, shown)
    _probes(made, plan)
    return made


def measuring(plan: Plan) -> float:
    """CPU seconds that measuring a model takes."""
    return MEASURING * plan.utterances * plan.seconds_each


def has_samples(kind: str, settings: Mapping[str, Any]) -> bool:
    """Whether speech from samples of a model's posterior is measured: where quality is shown against a rate by KL."""
    return kind not in ("none", "vq") and ("moved" in settings or "target" in settings)


def speed(plan: Plan, kind: str) -> list[float]:
    """CPU seconds of a step with one sample, and of each further sample."""
    return [plan.step_seconds[kind], plan.sample_seconds if kind == "reinforce" else 0.0]


def _gradients(made: Cells, plan: Plan) -> None:
    settings, gradients = plan.gradients.model_dump(), plan.gradients
    most, temperatures = max(gradients.samples), len(gradients.temperatures)
    samples = {"gaussian": [1, 1, *gradients.samples], "reinforce": [1, 1, most, *gradients.samples]}
    samples |= {"gumbel": [most] + [1] * 2 * temperatures, "vq": [1] * (1 + len(gradients.vq_temperatures))}
    draws = gradients.draws + gradients.one_latent_draws
    kinds = {"reparameterisation": "gaussian", "score-function": "reinforce", "gumbel-softmax": "gumbel"}
    kinds["straight-through"] = "vq"
    for experiment, kind in kinds.items():
        seconds = 10 + DRAWING * draws * sum((1 + each) / 2 for each in samples[kind])
        cell = Cell(f"gradients-{kind}", f"{kind}_gradients", settings, (f"base-{kind}",), seconds)
        made.add(experiment, cell)
    made.add("score-function", Cell("textbook", "textbook", {}, seconds=10))
    made.add("score-function", made.cells["gradients-gumbel"], made.cells["base-reinforce"], made.cells["base-gumbel"])


def _rates(made: Cells, plan: Plan, train: Any) -> None:
    tuned = {kind: [f"tune-{kind}-{n}" for n in range(len(trials))] for kind, trials in plan.tuning.trials.items()}
    for kind, trials in plan.tuning.trials.items():
        # Trials at one KL weight show how fast the score function trains, too.
        experiments = ["rate-quality", *(["score-function"] if kind in ("gumbel", "reinforce") else [])]
        for name, overrides in zip(tuned[kind], trials, strict=True):
            made.add(experiments, train(name, kind, plan.tuning.seconds, plan.seeds[0], overrides))
    curves: dict[tuple[str, str], list[str]] = {}
    for measure, grids in plan.curves.values.items():
        for kind, grid in grids.items():
            ((setting, values),) = grid.items()
            curves[measure, kind] = [f"curve-{kind}-{value:g}" for value in values]
            for name, value in zip(curves[measure, kind], values, strict=True):
                more = {"tuned": tuned[kind], "needs": tuned[kind], "moved": [setting, value]}
                made.add("rate-quality", train(name, kind, plan.curves.seconds, plan.seeds[0], **more))
    for seed in plan.seeds:
        made.add("rate-quality", train(f"compare-none-{seed}", "none", plan.compare.seconds, seed))
    for (measure, points), seed in product(plan.compare.points.items(), plan.seeds):
        for bits, kind in product(points, plan.curves.values[measure]):
            curve = curves[measure, kind]
            target = {"measure": measure, "bits": bits, "curve": curve}
            more = {"tuned": tuned[kind], "needs": [*tuned[kind], *curve], "target": target}
            name = f"compare-{measure}-{bits:g}-{kind}-{seed}"
            made.add("rate-quality", train(name, kind, plan.compare.seconds, seed, **more))


def _schedules(made: Cells, plan: Plan, train: Any) -> None:
    for (name, overrides), hard, seed in product(plan.schedules.settings.items(), (False, True), plan.seeds):
        way = "hard" if hard else "soft"
        more = [*overrides, f"bottleneck.hard={str(hard).lower()}"]
        cell = train(f"schedule-{name.replace(' ', '_')}-{way}-{seed}", "gumbel", plan.schedules.seconds, seed, more)
        cell.settings.update(schedule=name, hard=hard, watch="relaxation")
        made.add("gumbel-softmax", cell)


def _collapse(made: Cells, plan: Plan) -> None:
    context = plan.context

    def cell(kind: str, units: int, seed: int, remedy: str | None, overrides: Sequence[str]) -> Cell:
        settings = {"bottleneck": kind, "units": units, "seed": seed, "remedy": remedy, "steps": context.steps}
        settings["normalized"] = remedy == NORMALISED
        settings["overrides"] = [*context.bottlenecks[kind], *context.overrides, *overrides]
        settings["utterances"], settings["seconds_each"] = plan.utterances, plan.seconds_each
        settings["share_free_nats"] = context.free_nats_per_dimension
        seconds = context.steps * context.step_seconds[kind] + STARTING + measuring(plan)
        name = f"context-{kind}-{units}-{remedy.replace(' ', '_') + '-' if remedy else ''}{seed}"
        return Cell(name, "context", settings, ("data",), seconds)

    def experiment_of(kind: str) -> str:
        return "codebook-collapse" if kind == "vq" else "posterior-collapse"

    for seed, units, kind in product(plan.seeds, context.units, context.bottlenecks):
        made.add(experiment_of(kind), cell(kind, units, seed, None, []))
    variational = [kind for kind in context.bottlenecks if kind != "vq"]
    for seed, units, kind, remedy in product(plan.seeds, context.remedy_units, variational, context.remedies):
        made.add("posterior-collapse", cell(kind, units, seed, remedy, context.remedies[remedy]))
    for seed, units, kind in product(plan.seeds, context.units, context.normalized):
        made.add(experiment_of(kind), cell(kind, units, seed, NORMALISED, []))


def _codebooks(made: Cells, plan: Plan, train: Any) -> None:
    codebooks = plan.codebooks
    rows = product(codebooks.revival.items(), codebooks.updates, codebooks.inits, plan.seeds)
    for (revival, below), update, init, seed in rows:
        overrides = [f"bottleneck.codebook_size={codebooks.codebook_size}", f"bottleneck.revive_below={below}"]
        overrides += [f"bottleneck.update={update}", f"bottleneck.init={'data' if init == 'random' else init}"]
        cell = train(f"codebook-{revival}-{update}-{init}-{seed}", "vq", codebooks.seconds, seed, overrides)
        cell.settings.update(revival=revival, update=update, init=init, random_codebook=init == "random")
        made.add("codebook-collapse", cell)
    for beta, seed in product(plan.commitment.betas, plan.seeds):
        name = f"commitment-{beta:g}-{seed}"
        cell = train(name, "vq", plan.commitment.seconds, seed, [f"bottleneck.beta={beta}"])
        cell.settings.update(beta=beta, watch="switching")
        made.add("commitment", cell)
    for seed in plan.seeds:
        settings = plan.kmeans.model_dump() | {"seed": seed}
        made.add(
            "k-means", Cell(f"kmeans-{seed}", "kmeans", settings, ("base-vq",), STARTING + plan.kmeans.passes / 10)
        )


def _stages(made: Cells, plan: Plan, shown: Mapping[str, Any]) -> None:
    stages = plan.stages
    for kind, seed, way in product(stages.bottlenecks, plan.seeds, ("after", "joint")):
        settings = {"bottleneck": kind, "seed": seed, "way": way, "overrides": plan.bottlenecks[kind]}
        settings |= {"seconds": stages.seconds, "speed": speed(plan, kind), "prior_steps": stages.prior_steps, **shown}
        settings |= stages.model_dump(include={"weight", "temperature", "prior"})
        seconds = 1.3 * stages.seconds + PRIOR_STEP * stages.prior_steps + 2 * STARTING + measuring(plan)
        made.add("two-stages", Cell(f"stages-{way}-{kind}-{seed}", "stages", settings, ("data",), seconds))


def _probes(made: Cells, plan: Plan) -> None:
    probes, seeds = plan.probes, plan.seeds
    named = [(kind, "entropy") for kind in plan.curves.values["entropy"]] + [("gaussian", "kl"), ("none", None)]
    for (kind, measure), seed in product(named, seeds):
        point = f"-{measure}-{probes.bits:g}" if measure else ""
        settings = probes.model_dump() | {"bottleneck": kind, "seed": seed, "prior": plan.stages.prior}
        run = f"compare{point}-{kind}-{seed}"
        seconds = 15 + PRIOR_STEP * probes.prior_steps
        made.add("representations", Cell(f"probe-{kind}-{seed}", "probe", settings, (run,), seconds))
