"""The bench of bottlenecks from end to end, in a tiny form, and that every recipe's config takes every bottleneck."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, get_args

import plan
import pytest
import torch
from cells import Bench
from results import is_complete, records
from verdicts import CLAIMS

from audiovq.config import BottleneckConfig, load_config
from audiovq.errors import Stopped
from audiovq.models.autoencoder import Autoencoder
from audiovq.training import loop

RECIPES = Path(__file__).parents[3] / "recipes"
RECIPE = RECIPES / "estimators"
CONFIGS = sorted(path for path in RECIPES.glob("**/conf/*.yaml") if path.name != "prior.yaml")
TYPES = list(plan.KINDS)
BOTTLENECKS = [kind.model_fields["type"].default for kind in get_args(get_args(BottleneckConfig)[0])]


def bench_of(name: str, exp: Path) -> Bench:
    return Bench.read(RECIPE / f"conf/plan/{name}.yaml", RECIPE / "conf/bench.yaml", RECIPES / "mini/data", exp)


# --- configurations ------------------------------------------------------------------------------------------


def test_what_is_compared_is_known():
    assert {*BOTTLENECKS} - {*TYPES} == {"residual", "fsq"}
    assert {*TYPES} <= {*BOTTLENECKS}


@pytest.mark.parametrize("kind", BOTTLENECKS)
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.relative_to(RECIPES).as_posix())
def test_every_config_takes_every_bottleneck_with_its_defaults(path, kind):
    config = load_config(path, [f"bottleneck.type={kind}"])
    assert config.bottleneck.type == kind
    model = Autoencoder(config.model_part())
    wave = torch.randn(1, 1, 3 * config.hop_length)
    output = model.train()(wave)
    assert output.wave.shape == (output.bottleneck.samples, 1, 3 * config.hop_length)
    cost = output.prediction.square().mean((1, 2))
    loss = cost.mean() + output.bottleneck.loss + model.bottleneck.surrogate_loss(output.bottleneck, cost)
    loss.backward()
    gradients = [weight.grad for weight in model.encoder.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


# --- plans -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "minutes"), [("full", 2 * 2.5 * 60 + 5), ("quick", 2 * 5)])
def test_a_plan_stays_within_its_time_on_two_cores(name, minutes, tmp_path):
    cells = bench_of(name, tmp_path).cells
    assert set(cells.experiments) == set(plan.EXPERIMENTS)
    assert sum(cell.seconds for cell in cells.wanted(plan.EXPERIMENTS)) <= 60 * minutes


def test_the_full_plan_is_fair(tmp_path):
    bench = bench_of("full", tmp_path)
    own = bench.plan
    assert len(own.seeds) >= 3
    grids = own.curves.values
    assert set(own.tuning.trials) == set(grids["entropy"]) | set(grids["kl"]) == set(TYPES) - {"none"}
    assert set(grids["entropy"]) == set(TYPES) - {"none", "gaussian"}, "all that have codes"
    assert len({len(trials) for trials in own.tuning.trials.values()}) == 1
    assert all(len(values) >= 4 for kinds in grids.values() for grid in kinds.values() for values in grid.values())
    runs = [cell.settings for name, cell in bench.cells.cells.items() if name.startswith("compare-")]
    assert {run["seconds"] for run in runs} == {own.compare.seconds}
    assert {run["bottleneck"] for run in runs} == set(TYPES)


@pytest.mark.parametrize("name", ["full", "quick"])
def test_trainings_of_a_plan_differ_in_nothing_but_bottleneck_steps_and_seed(name, tmp_path):
    from training import experiment

    bench, common = bench_of(name, tmp_path), set()
    for cell in bench.cells.cells.values():
        if cell.kind == "train":
            config = experiment(bench, cell.settings, cell.settings["overrides"])
            if config.bottleneck.type == "gumbel":
                assert config.bottleneck.anneal_steps == config.training.steps
            plain = config.model_dump(mode="json")
            assert config.training.seed in bench.plan.seeds
            del plain["bottleneck"], plain["training"]
            common.add(json.dumps(plain))
    assert len(common) == 1


def test_every_cell_comes_behind_what_it_needs(tmp_path):
    cells = bench_of("full", tmp_path).cells
    seen: set[str] = set()
    for cell in cells.wanted(plan.EXPERIMENTS):
        assert seen >= {*cell.needs}
        seen.add(cell.name)
    assert seen >= {name for names in cells.experiments.values() for name in names}


def test_every_statement_belongs_to_an_experiment_and_every_experiment_has_one():
    assert {claim.experiment for claim in CLAIMS} == set(plan.EXPERIMENTS)


# --- from end to end -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", plan.EXPERIMENTS[::-1])  # So that none finds what those before it have made.
def test_an_experiment_runs_alone(run, name, capsys):
    code, exp = run(name)
    assert code == 0
    results = json.loads((exp / "results.json").read_text())
    assert is_complete(results, name)
    own = [verdict for verdict in results["verdicts"] if verdict["experiment"] == name]
    assert own
    assert all(verdict["verdict"] in ("holds", "does not hold here", "cannot be told") for verdict in own)
    assert all(verdict["command"].endswith(f"--only {name}") for verdict in own)
    assert capsys.readouterr().out.count(own[0]["text"]) == 1


def test_what_is_done_is_passed_over(run, results, capsys):
    code, exp = run()
    assert code == 0
    assert " min  " not in capsys.readouterr().out
    assert json.loads((exp / "results.json").read_text())["cells"] == results["cells"]


def test_every_cell_says_what_it_was_made_of(results):
    for record in results["cells"].values():
        assert {"commit", "processor", "seconds", "torch"} <= record["made"].keys()
    assert not any(record["result"].get("failed") for record in results["cells"].values())


def test_the_unseen_voice_is_only_tested_on(results):
    data = results["cells"]["data"]["result"]
    assert data["train"]["speakers"] == data["dev"]["speakers"] == ["allison"]
    assert data["test"]["speakers"] == ["carlo"]


def test_compared_rates_come_from_the_own_curve(results):
    (vq,) = records(results, "compare-entropy-75-vq")
    sizes = [int(o.partition("=")[2]) for o in vq["result"]["overrides"] if o.startswith("bottleneck.codebook_size")]
    assert len(sizes) == 1
    assert 2 < sizes[0] < 16
    (gumbel,) = records(results, "compare-entropy-75-gumbel")
    assert "bit/s" in gumbel["result"]["out_of_reach"], "its curve has a single point"


def test_samples_are_heard_where_quality_is_shown_against_a_rate_by_kl(results):
    for kind, heard in (("gaussian", True), ("gumbel", True), ("reinforce", True), ("vq", False)):
        for own in records(results, f"curve-{kind}-"):
            assert ("sampled" in own["result"]["test"]) == heard
    test = records(results, "curve-gaussian-")[0]["result"]["test"]
    assert {*test["sampled"]} == {*test["metrics"]}
    assert test["sampled"]["mel_distance"] != test["metrics"]["mel_distance"]


def without_times(data: Any) -> Any:
    """Results without what depends on how fast they were made."""
    timed = ("made", "seconds", "variance_seconds", "conditions")
    if isinstance(data, dict):
        return {key: without_times(value) for key, value in data.items() if key not in timed}
    return [without_times(value) for value in data] if isinstance(data, list) else data


def test_killed_and_resumed_the_bench_ends_with_the_same_results(run, results, tmp_path, monkeypatch):
    """Stopped once within a training, behind a checkpoint, and once between cells."""
    exp, save = tmp_path / "exp", loop.TrainingRun.save
    saved: list[str] = []

    def save_and_stop(self):
        save(self)
        saved.append(self.folder.path.name)
        if saved.count("commitment-0-0") == 1 and self.progress.step < self.settings.steps:
            raise Stopped(15, "stopped")

    with monkeypatch.context() as patch:
        patch.setattr(loop.TrainingRun, "save", save_and_stop)
        assert run("commitment", exp=exp)[0] == 1
    assert (exp / "runs/commitment-0-0/state.safetensors").exists()
    assert [path.stem for path in (exp / "cells").iterdir()] == ["data"]
    assert run("commitment", exp=exp)[0] == 0
    resumed = json.loads((exp / "results.json").read_text())["cells"]
    assert len(resumed) == 3
    for name, record in resumed.items():
        assert without_times(record) == without_times(results["cells"][name]), name


def test_a_cell_with_other_settings_is_done_again(run, tiny, results, tmp_path, capsys):
    from bench import main

    _, exp = run()
    other = tmp_path / "plan.yaml"
    other.write_text(Path(tiny[3]).read_text().replace("betas: [0.0, 0.25]", "betas: [0.0, 0.5]"))
    assert main([*tiny, "--plan", str(other), "--exp", str(exp), "--only", "commitment", "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in listed if "to do " in line] == ["commitment-0.5-0"]


def test_speech_that_has_moved_is_listed_again_and_nothing_else(run, tiny, results, tmp_path, capsys):
    from bench import main

    _, exp = run()
    moved = shutil.copytree(tiny[5], tmp_path / "moved")
    for folder, expected in ((moved, ["data"]), (tiny[5], [])):
        capsys.readouterr()
        assert main([*tiny, "--data", str(folder), "--exp", str(exp), "--list"]) == 0
        listed = capsys.readouterr().out.splitlines()
        assert [line.split()[-1] for line in listed if "to do " in line] == expected
    (moved / "allison/new.wav").touch()
    assert main([*tiny, "--data", str(moved), "--exp", str(exp), "--only", "k-means", "--list"]) == 0
    assert capsys.readouterr().out.count("to do ") == 3


def test_a_bench_without_time_says_what_is_left_and_reports_it_as_not_run(tiny, tmp_path, capsys):
    from bench import main

    assert main([*tiny, "--exp", str(tmp_path), "--hours", "0"]) == 1
    assert "cells are left, first data; the same command goes on" in capsys.readouterr().err
    results = json.loads((tmp_path / "results.json").read_text())
    assert {verdict["verdict"] for verdict in results["verdicts"]} == {"not run"}
    text = (tmp_path / "report.md").read_text()
    assert text.count("**not run**") == 2 * len(CLAIMS)


def test_an_unknown_voice_is_one_line(tiny, tmp_path, capsys):
    from bench import main

    other = tmp_path / "plan.yaml"
    other.write_text(Path(tiny[3]).read_text().replace("unseen: [carlo]", "unseen: [nobody]"))
    assert main([*tiny, "--plan", str(other), "--exp", str(tmp_path / "exp"), "--only", "k-means"]) == 2
    assert "has no folder of the unseen voice nobody; change the plan" in capsys.readouterr().err
