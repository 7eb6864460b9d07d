"""Training that starts from a release, and training of some of the parts."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from audiovq.bottlenecks import fsq, residual
from audiovq.config import parse_config
from audiovq.errors import CheckpointError, ConfigError
from audiovq.models.tokenizer import AudioTokenizer
from audiovq.training.autoencoder import train_autoencoder


@pytest.fixture
def start(experiment, tmp_path):
    """A release that has been trained for a few steps."""
    train_autoencoder(experiment(training={"steps": 3}), tmp_path / "first", "cpu")
    return tmp_path / "first/release"


BOTTLENECKS = {
    "gradient": {"update": "gradient"},
    "ema": {"update": "ema"},
    "residual": {"type": "residual", "num_codebooks": 3, "codebook_size": 8, "revive_below": 0.8, "decay": 0.8},
    "fsq": {"type": "fsq", "levels": [5, 4], "num_codebooks": 2},
    "fsq-residual": {"type": "fsq", "levels": [5, 4], "num_codebooks": 2, "structure": "residual"},
}
PROJECTED = {"type": "residual", "num_codebooks": 2, "code_dim": 4, "normalize": True, "update": "gradient"}


@pytest.mark.parametrize("bottleneck", BOTTLENECKS.values(), ids=BOTTLENECKS)
@pytest.mark.parametrize("frozen", [["encoder"], ["bottleneck"], ["decoder"], ["encoder", "bottleneck"]])
def test_frozen_parts_keep_every_bit_and_the_others_learn(experiment, tmp_path, bottleneck, frozen):
    train_autoencoder(experiment(bottleneck=bottleneck, training={"steps": 3}), tmp_path / "first", "cpu")
    options = {"init_from": str(tmp_path / "first/release"), "freeze": frozen, "averaging_decay": 0.5}
    train_autoencoder(experiment(bottleneck=bottleneck, training=options), tmp_path / "second", "cpu")
    before = load_file(tmp_path / "first/release/model.safetensors")
    state = load_file(tmp_path / "second/state.safetensors")
    for kind in ("model", "average"):
        changed = {name.split(".")[0] for name in before if not torch.equal(before[name], state[f"{kind}/{name}"])}
        assert changed == {"encoder", "bottleneck", "decoder"} - {*frozen}
    first, second = (AudioTokenizer.from_pretrained(tmp_path / name / "release", "cpu") for name in ("first", "second"))
    assert (second.codes_sha256 == first.codes_sha256) == (frozen == ["encoder", "bottleneck"])
    assert second.weights_sha256 != first.weights_sha256


@pytest.mark.parametrize("name", ["residual", "fsq", "fsq-residual"])
def test_behind_a_frozen_bottleneck_the_decoder_still_learns_to_do_with_fewer_codebooks(
    experiment, tmp_path, monkeypatch, name
):
    shown = []

    def seen(*args):
        shown.append(residual_seen(*args))
        return shown[-1]

    bottleneck = BOTTLENECKS[name] | {"dropout": 1.0}
    train_autoencoder(experiment(bottleneck=bottleneck, training={"steps": 1}), tmp_path / "first", "cpu")
    residual_seen = residual.seen_codebooks
    for module in (residual, fsq):
        monkeypatch.setattr(module, "seen_codebooks", seen)
    options = {"init_from": str(tmp_path / "first/release"), "freeze": ["encoder", "bottleneck"]}
    options |= {"steps": 4, "valid_every": 4}
    train_autoencoder(experiment(bottleneck=bottleneck, training=options), tmp_path / "run", "cpu")
    trained = torch.cat([books for books in shown if len(books) > 1 and books.shape[1] > 1])
    assert trained[:, 0].all()
    assert 0 < trained[:, -1].float().mean() < 1


def test_a_run_starts_with_the_release_s_weights(experiment, start, tmp_path):
    options = {"steps": 1, "learning_rate": 1e-12, "init_from": str(start), "freeze": ["bottleneck"]}
    train_autoencoder(experiment(training=options), tmp_path / "run", "cpu")
    before, after = load_file(start / "model.safetensors"), load_file(tmp_path / "run/release/model.safetensors")
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-6, rtol=0)


def test_parts_that_are_not_named_start_anew_and_may_be_of_another_config(experiment, start, tmp_path):
    options = {"steps": 1, "learning_rate": 1e-12, "init_from": str(start), "init_parts": ["encoder", "decoder"]}
    train_autoencoder(experiment(bottleneck={"codebook_size": 8}, training=options), tmp_path / "run", "cpu")
    before, after = load_file(start / "model.safetensors"), load_file(tmp_path / "run/release/model.safetensors")
    assert after["bottleneck.codebook"].shape[0] == 8
    for name in before:
        if not name.startswith("bottleneck."):
            torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("bottleneck", {"codebook_size": 8}, r"has bottleneck\.codebook_size = 16, the config 8"),
        ("bottleneck", {"type": "residual"}, r"has bottleneck\.type = 'vq', the config 'residual'"),
        ("decoder", {"layers": 1}, r"has decoder\.layers = 2, the config 1"),
        ("encoder", {"channels": [4, 6, 10]}, r"has encoder\.channels = \[4, 6, 8\], the config \[4, 6, 10\]"),
    ],
)
def test_a_release_of_another_model_is_refused_with_the_first_difference(
    experiment, start, tmp_path, section, values, message
):
    config = experiment(**{section: values}, training={"init_from": str(start)})
    with pytest.raises(ConfigError, match=message):
        train_autoencoder(config, tmp_path / "run", "cpu")
    assert not (tmp_path / "run").exists()


def test_a_release_that_is_not_there_is_refused(experiment, tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        train_autoencoder(experiment(training={"init_from": "/nowhere"}), tmp_path / "run", "cpu")
    assert not (tmp_path / "run").exists()


def test_a_started_run_is_resumed_without_its_release(experiment, start, tmp_path):
    config = experiment(training={"init_from": str(start), "steps": 2})
    train_autoencoder(config, tmp_path / "run", "cpu")
    start.rename(start.with_name("moved"))
    assert train_autoencoder(config, tmp_path / "run", "cpu").step == 2


def test_a_run_with_the_speakers_of_its_release_is_resumed(experiment, wavenet, tmp_path):
    """The training speech may be that of one of them."""
    everyone = wavenet["decoder"] | {"speakers": ["allison", "june"]}
    train_autoencoder(experiment(**{**wavenet, "decoder": everyone}, training={"steps": 1}), tmp_path / "first", "cpu")
    for steps in (1, 2):
        config = experiment(**wavenet, training={"init_from": str(tmp_path / "first/release"), "steps": steps})
        assert train_autoencoder(config, tmp_path / "run", "cpu").step == steps
    assert AudioTokenizer.from_pretrained(tmp_path / "run/release", "cpu").speakers == ["allison", "june"]


def test_a_new_decoder_learns_the_speakers_of_its_own_data(experiment, wavenet, tmp_path):
    everyone = wavenet["decoder"] | {"speakers": ["allison", "june"]}
    train_autoencoder(experiment(**{**wavenet, "decoder": everyone}, training={"steps": 1}), tmp_path / "first", "cpu")
    options = {"init_from": str(tmp_path / "first/release"), "init_parts": ["encoder", "bottleneck"]}
    for steps in (1, 2):
        config = experiment(**wavenet, training={**options, "steps": steps})
        assert train_autoencoder(config, tmp_path / "run", "cpu").step == steps
    assert AudioTokenizer.from_pretrained(tmp_path / "run/release", "cpu").speakers == ["allison"]


@pytest.mark.parametrize("start", [{}, {"init_from": "release", "init_parts": ["encoder", "decoder"]}])
def test_a_bottleneck_is_not_frozen_before_it_has_learnt(experiment, start):
    with pytest.raises(ValidationError, match="freeze: a bottleneck that starts from random weights never learns"):
        experiment(training={**start, "freeze": ["bottleneck"]})


def test_unknown_parts_and_combinations_that_train_nothing_are_refused(experiment, start, tmp_path):
    plain = experiment().model_dump(mode="json")
    plain["training"]["freeze"] = ["head"]
    with pytest.raises(ConfigError, match=r"training\.freeze.*'encoder', 'bottleneck' or 'decoder'"):
        parse_config(plain, type(experiment()), "tiny.yaml")
    plain |= {"bottleneck": {"type": "gumbel"}}
    plain["training"] |= {"freeze": ["bottleneck"], "init_from": "release"}
    with pytest.raises(ConfigError, match="passes no gradient to the encoder"):
        parse_config(plain, type(experiment()), "tiny.yaml")
    everything = experiment(training={"init_from": str(start), "freeze": ["encoder", "bottleneck", "decoder"]})
    with pytest.raises(ConfigError, match="leaves no weights to train"):
        train_autoencoder(everything, tmp_path / "run", "cpu")


def averaged(experiment, folder, bottleneck):
    """State and released weights of a short run whose average is far from the model."""
    options = {"averaging_decay": 0.9, "learning_rate": 3e-2, "steps": 6, "valid_every": 6}
    train_autoencoder(experiment(bottleneck=bottleneck, training=options), folder, "cpu")
    released = AudioTokenizer.from_pretrained(folder / "release", "cpu").model.state_dict()
    return load_file(folder / "state.safetensors"), released


@pytest.mark.parametrize(
    "bottleneck", [PROJECTED, *(BOTTLENECKS[name] for name in ("gradient", "fsq", "fsq-residual"))]
)
def test_an_averaged_model_has_batch_statistics_of_its_own_latents(experiment, tmp_path, bottleneck):
    state, released = averaged(experiment, tmp_path, bottleneck)
    means = [name for name in released if name.endswith("batch_norm.mean")]
    assert means
    for name in means:
        assert not torch.equal(state[f"average/{name}"], state[f"model/{name}"])
        assert torch.equal(released[name], state[f"average/{name}"])
    for name in [name for name in released if name.endswith("codebook")]:
        assert torch.equal(state[f"average/{name}"], state[f"model/{name}"])


@pytest.mark.parametrize("bottleneck", [BOTTLENECKS[name] for name in ("ema", "residual")])
def test_an_averaged_model_s_ema_codebooks_are_means_of_its_own_latents(experiment, tmp_path, bottleneck):
    state, released = averaged(experiment, tmp_path, bottleneck)
    books = [name for name in released if name.endswith("codebook")]
    assert books
    for name in books:
        assert not torch.equal(state[f"average/{name}"], state[f"model/{name}"])
        assert torch.equal(released[name], state[f"average/{name}"])
