"""The comparison: variants are models at one rate, and steps follow from what a step costs."""

from __future__ import annotations

import json
import shutil

import compare
import pytest
import torch
from safetensors.torch import load_file

from audiovq.config import load_config
from audiovq.models.autoencoder import Autoencoder

CONFIG = compare.Path(compare.__file__).parents[1] / "conf/speech.yaml"
TINY = [
    *("data.crop_seconds=0.2", "data.batch_size=2", "data.pitch=swift", "latent_dim=4"),
    *("training.precision=fp32", "training.valid_utterances=1", "loss.fft_sizes=[256]"),
    *("encoder.dim=8", "encoder.layers=1", "decoder.dim=8", "decoder.layers=1", "bottleneck.codebook_size=8"),
]
STEP = 0.25
"""CPU seconds of a step, as the stand-in says."""


@pytest.fixture
def trained(monkeypatch, run) -> list[tuple[str, int]]:
    """Training runs in this process; lists the runs' names and steps. Loading takes ten seconds, a step `STEP`."""
    runs = []

    def train(config, output, overrides, force=False):
        code, _, err = run("train", config, *overrides, "--output", output, *(["--force"] if force else []))
        assert code == 0, err
        steps = load_config(config, overrides).training.steps
        runs.append((output.name, steps))
        return 10 + STEP * steps

    monkeypatch.setattr(compare, "train", train)
    monkeypatch.setattr(compare, "SHORT", 2)
    monkeypatch.setattr(compare, "LONG", 4)
    monkeypatch.setattr(compare, "SPEED_SECONDS", 1.0)
    return runs


def test_every_variant_is_a_model_at_one_and_a_half_kbit_or_one():
    for name, changes in compare.VARIANTS.items():
        teacher = ["data.teacher=whisper"] if name == "teacher" else []
        config = load_config(CONFIG, [*compare.BASE, *changes, *teacher])
        model = Autoencoder(config.model_part())
        rate = config.sample_rate / config.hop_length
        bits = torch.tensor(model.bottleneck.codebook_sizes).log2().cumsum(0) * rate / 1000
        assert float(bits[min(1, len(bits) - 1)]) == pytest.approx(1.0, rel=0.01), name
        assert name == "vq" or float(bits[2]) == pytest.approx(1.5, rel=0.01), name


def test_costs_are_measured_in_turn_and_the_least_counts(monkeypatch, tmp_path):
    measured = []

    def step_seconds(config, output, overrides):
        measured.append(output.name)
        return float(overrides[0]) + len(measured)

    monkeypatch.setattr(compare, "step_seconds", step_seconds)
    variants = {"a": ["30"], "b": ["20"]}
    assert compare.measure_costs(variants, CONFIG, tmp_path) == {"a": 31, "b": 22}
    assert measured == ["a-cost", "b-cost"] * compare.COST_ROUNDS
    assert compare.measure_costs({**variants, "c": ["10"]}, CONFIG, tmp_path) == {"a": 31, "b": 22, "c": 17}
    assert measured[6:] == ["c-cost"] * compare.COST_ROUNDS
    assert compare.measure_costs({"a": ["60"]}, CONFIG, tmp_path) == {"a": 70}  # Of other overrides.


def test_steps_follow_from_the_cost_and_a_finished_variant_is_not_trained_again(trained, manifest, tmp_path):
    overrides = [f"data.train={manifest}", f"data.valid={manifest}", *TINY]
    cost = compare.step_seconds(CONFIG, tmp_path / "base-cost", overrides)
    assert cost == pytest.approx(STEP)
    compare.train_variant("base", CONFIG, tmp_path, overrides, cost, minutes=8 * STEP / 60)
    assert trained == [("base-cost", compare.LONG), ("base-cost", compare.SHORT), ("base", 8)]
    compare.train_variant("base", CONFIG, tmp_path, overrides, cost, minutes=8 * STEP / 60)
    assert len(trained) == 3
    for seconds, minutes in ((cost, 1), (2 * cost, 8 * STEP / 60)):
        with pytest.raises(SystemExit, match="other settings"):
            compare.train_variant("base", CONFIG, tmp_path, overrides, seconds, minutes)

    # The weights that the averages are made of.
    compare.without_averaging(tmp_path / "base", tmp_path / "raw")
    averaged, raw = (load_file(tmp_path / name / "release/model.safetensors") for name in ("base", "raw"))
    assert not torch.equal(averaged["encoder.input.weight"], raw["encoder.input.weight"])
    torch.testing.assert_close(averaged["encoder.input.weight"], raw["encoder.input.weight"], atol=0.1, rtol=0)

    table = compare.costs_table(tmp_path, ["base"])
    assert json.loads((tmp_path / "base.json").read_text())["done"]
    assert table.splitlines()[2].startswith("| base | - | 0.25 | 8 | ")


def test_a_comparison_leaves_a_model_of_averaged_and_one_of_last_weights_for_each_variant(trained, manifest, tmp_path):
    other = manifest.with_name("other.jsonl")
    shutil.copy(manifest, other)
    compare.main(
        train=f"{manifest} {other}", valid=str(manifest), output=tmp_path, shares="1 2", minutes=4 * STEP / 60,
        only="base small", config=CONFIG, overrides=" ".join(TINY),
    )  # fmt: skip
    assert [name for name, _ in trained if not name.endswith("-cost")] == ["base", "small"]
    for name in ("base", "small"):
        averaged, last = (load_file(tmp_path / f / "release/model.safetensors") for f in (name, f"{name}-last"))
        state = load_file(tmp_path / name / "state.safetensors")
        assert all(torch.equal(weight, state[f"model/{key}"]) for key, weight in last.items())
        assert any(not torch.equal(weight, averaged[key]) for key, weight in last.items())
        assert load_config(tmp_path / name / "config.yaml").data.train == [manifest, other]
    rows = (tmp_path / "compare.md").read_text(encoding="utf-8").splitlines()
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| base", "| small"]
