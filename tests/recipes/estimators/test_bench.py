"""The bench of bottlenecks, and that every recipe's config takes every bottleneck."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from audiovq.config import BottleneckConfig, load_config
from audiovq.models.autoencoder import Autoencoder

ROOT = Path(__file__).parents[3]
RECIPES = ROOT / "recipes"
RECIPE = RECIPES / "estimators"
CONFIGS = sorted(path for path in RECIPES.glob("**/conf/*.yaml") if path.name != "prior.yaml")
GRIDS = sorted((RECIPE / "conf/grid").glob("*.yaml"))
TYPES = ["none", "gaussian", "gumbel", "reinforce", "vq"]
MODULES = ["bench", "claims", "context", "figures", "gradients", "grid", "measure", "publish"]
MODULES += ["report", "sections", "tables", "textbook"]


@pytest.fixture(scope="module")
def local():
    """The recipe's own modules."""
    return SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})


# --- configurations ------------------------------------------------------------------------------------------


def test_all_types_are_listed():
    assert set(re.findall(r"type: Literal\['(\w+)'\]", str(BottleneckConfig))) <= set(TYPES)


@pytest.mark.parametrize("kind", TYPES)
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


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_runs_of_a_grid_differ_in_nothing_but_bottleneck_and_seed(local, path, tmp_path):
    bench = local.grid.Bench.read(path, RECIPE / "conf/estimators.yaml", tmp_path)
    for runs, seeds in ((bench.runs(), bench.grid.seeds), (bench.context_runs(), [0])):
        assert len({run.folder for run in runs}) == len(runs)
        assert {run.config.training.seed for run in runs} == set(seeds)
        common = []
        for run in runs:
            plain = run.config.model_dump(mode="json")
            if plain["bottleneck"]["type"] == "gumbel":
                assert plain["bottleneck"]["anneal_steps"] == plain["training"]["steps"]
            assert plain["bottleneck"].get("codebook_size", 256) == 256
            del plain["bottleneck"], plain["training"]["seed"]
            common.append(plain)
        assert all(plain == common[0] for plain in common)
    assert {run.kind for run in bench.runs()} == set(TYPES)


def test_the_full_grid_has_three_seeds(local, tmp_path):
    bench = local.grid.Bench.read(RECIPE / "conf/grid/full.yaml", RECIPE / "conf/estimators.yaml", tmp_path)
    assert len(bench.grid.seeds) >= 3


# --- decoder with context ------------------------------------------------------------------------------------


@pytest.mark.parametrize("units", [0, 1, 2, 3])
def test_decoder_sees_exactly_its_context(local, units):
    config = load_config(RECIPE / "conf/estimators.yaml", ["bottleneck.type=none"])
    model = local.context.ContextModel(config, units).double()
    latents, wave = torch.randn(1, 32, 3).double(), torch.randn(1, 1, 480).double()
    seen = []
    model.head.register_forward_hook(lambda module, inputs, output: seen.append(output))

    def head_of(changed):
        model.nll(latents, changed)
        return seen[-1]

    before, at = head_of(wave), 150
    changed = wave.clone()
    changed[..., at] += 1
    differs = (head_of(changed) != before).any(1)[0].nonzero().flatten().tolist()
    context = local.context.context_samples(units)
    assert context == [0, 4, 16, 64][units]
    assert differs == list(range(at + 1, at + 1 + context))


def test_nll_is_that_of_a_laplace_distribution(local):
    config = load_config(RECIPE / "conf/estimators.yaml", ["bottleneck.type=none"])
    model = local.context.ContextModel(config, 2)
    outputs = []
    model.head.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    wave = torch.randn(2, 1, 320)
    nll = model.nll(torch.randn(2, 32, 2), wave)
    mean, raw = outputs[0].chunk(2, dim=1)
    scale = local.context.SMALLEST_SCALE + 0.1 * torch.nn.functional.softplus(raw)
    expected = -torch.distributions.Laplace(mean, scale).log_prob(wave).sum((1, 2)) / 2
    torch.testing.assert_close(nll, expected)


# --- textbook ------------------------------------------------------------------------------------------------


def test_textbook_figures(local):
    found = local.textbook.textbook()
    true = torch.tensor(found["true"])
    errors = {name: torch.tensor(v["mean"]) - true for name, v in found["estimators"].items()}
    deviations = {name: torch.tensor(v["deviation"]) for name, v in found["estimators"].items()}
    assert not torch.tensor(found["estimators"]["autograd through the sample"]["mean"]).any()
    for name in ("score function", "score function, leave-one-out (S = 4)"):
        assert (errors[name].abs() < 4 * deviations[name] / local.textbook.DRAWS**0.5).all()
    for name in ("Gumbel-Softmax, relaxed (temperature 1)", "straight-through"):
        assert (deviations[name] < deviations["score function"]).all()
        assert (errors[name].abs() > 5 * deviations[name] / local.textbook.DRAWS**0.5).any()


# --- results -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (RECIPE / "results.json").exists(), reason="no results of a full run")
def test_readme_and_results_say_what_the_data_give(local):
    results = local.report.read_results(RECIPE / "results.json")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert local.publish.with_table(readme, local.tables.comparison(results).markdown()) == readme
    assert (RECIPE / "RESULTS.md").read_text(encoding="utf-8") == local.report.markdown(results, with_figures=False)


def test_table_goes_between_the_markers(local):
    begin, end = local.publish.BEGIN, local.publish.END
    once = local.publish.with_table(f"# Title\n\n{begin}\nold\n{end}\n\nrest\n", "| new |")
    assert once == f"# Title\n\n{begin}\n\n| new |\n\n{end}\n\nrest\n"
    assert local.publish.with_table(once, "| new |") == once
    with pytest.raises(ValueError, match="expected the lines"):
        local.publish.with_table("no markers", "")


TINY_CONFIG = """
sample_rate: 16000
latent_dim: 4
encoder: {channels: [2, 2, 4], strides: [16, 10], dilations: [[], [], [1]]}
bottleneck: {type: vq, codebook_size: 8, code_dim: 2}
decoder: {type: istft, dim: 8, layers: 1, subframes: 2, overlap: 2}
loss: {fft_sizes: [256]}
data: {train: none, valid: none, crop_seconds: 0.5, batch_size: 2, workers: 1}
training: {steps: 4, warmup_steps: 1, log_every: 1, valid_every: 2, valid_utterances: 1}
"""
TINY_GRID = """
seeds: [0]
bottlenecks: {none: [], gaussian: [], gumbel: [], reinforce: [], vq: []}
overrides: []
context: {bottlenecks: {gaussian: [], vq: []}, units: [1], overrides: [training.steps=2], utterances: 1}
gradients: {draws: 3, one_latent_draws: 4, temperatures: [1.0, 0.5]}
"""


@pytest.fixture(scope="module")
def finished(bash, tmp_path_factory):
    """The whole bench with a few steps of a tiny model."""
    folder = tmp_path_factory.mktemp("bench")
    for speaker in ("allison", "carlo"):
        (folder / "speech" / speaker).mkdir(parents=True)
        for path in sorted((RECIPES / "mini/data" / speaker).glob("*.ogg"))[:4]:
            (folder / "speech" / speaker / path.name).symlink_to(path)
    (folder / "tiny.yaml").write_text(TINY_CONFIG)
    (folder / "grid.yaml").write_text(TINY_GRID)
    command = [RECIPE / "run.sh", "--data", folder / "speech", "--exp", folder / "exp"]
    command += ["--config", folder / "tiny.yaml", "--grid", folder / "grid.yaml"]
    done = bash(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "exp", lambda: bash(*command)


@pytest.mark.slow
def test_bench_from_end_to_end(finished, local):
    exp, run = finished
    results = json.loads((exp / "results.json").read_text())
    assert [(r["bottleneck"], r["seed"]) for r in results["runs"]] == [(t, 0) for t in TYPES]
    assert not any(r["failed"] for r in results["runs"] + results["contexts"])
    assert {r["bottleneck"] for r in results["gradients"]} == set(TYPES)
    again = run()
    assert again.stdout.count("done already") == 5


@pytest.mark.slow
def test_report_shows_all_tables_and_figures(finished, local):
    exp, _ = finished
    text, page = (exp / "report.md").read_text(), (exp / "report.html").read_text()
    results = local.report.read_results(exp / "results.json")
    for section in local.sections.sections(results):
        assert f"## {section.title}\n" in text
        assert f"<h2>{section.title}</h2>" in page
        assert section.table is None or section.table.markdown() in text
        for name, _ in section.figures:
            assert (exp / f"figures/{name}.svg").stat().st_size > 2000
            assert f"](figures/{name}.svg)" in text
    assert page.count("data:image/svg+xml;base64,") == 5
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert "the KL divergence to the uniform prior is log K whatever the encoder does" in text


@pytest.mark.slow
def test_a_run_that_failed_is_reported_as_such(finished, local):
    exp, _ = finished
    results = local.report.read_results(exp / "results.json")
    kept = {"bottleneck", "seed", "curves"}
    runs = [r for r in results["runs"] if r["bottleneck"] == "reinforce"]
    for run in runs:
        for name in set(run) - kept:
            del run[name]
        run["failed"] = "loss is nan at step 3"
    text = local.report.markdown(results, with_figures=True)
    assert "1 of 1" in text
    assert local.figures.figures(results)
