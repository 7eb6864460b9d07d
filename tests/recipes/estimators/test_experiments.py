"""What single experiments compute: the joint prior, k-means, probes, the relaxation, and codes that a step switches."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from cells import Bench
from codebooks import lloyd, step_difference
from collapse import ContextModel, context_config, context_samples
from probes import WORDS, Item, logistic_regression, mean_of, probe, unigram_rate
from stages import JointTask, build_prior, rate
from training import BenchTask, experiment, make_task, relaxation

from audiovq.bottlenecks.vq import draw_rows
from audiovq.config import ExperimentConfig, GumbelConfig
from audiovq.devices import seed_everything
from audiovq.models.autoencoder import Autoencoder


@pytest.fixture(scope="module")
def bench(tiny, run):
    """The tiny bench, whose speech is listed."""
    _, exp = run("k-means")
    config, plan, data = (Path(tiny[place]) for place in (1, 3, 5))
    return Bench.read(plan, config, data, exp)


def settings_of(bench: Bench, name: str):
    return bench.cells.cells[name].settings


def unclipped(config: ExperimentConfig) -> ExperimentConfig:
    return config.model_copy(update={"training": config.training.model_copy(update={"clip_norm": 1e9})})


# --- a prior in the loss ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vq", "gumbel"])
def test_a_joint_prior_of_no_weight_leaves_the_autoencoder_alone_and_of_some_moves_the_encoder_only(
    bench, kind, tmp_path
):
    settings = settings_of(bench, "stages-joint-vq-0") | {"bottleneck": kind}
    config = unclipped(experiment(bench, settings, []))
    moved = {}
    for way, weight in (("after", None), ("joint", 0.0), ("heavy", 50.0)):
        task, _ = make_task(config, tmp_path, BenchTask if weight is None else JointTask)
        if weight is not None:
            task.join(settings | {"weight": weight})
            before = [parameter.clone() for parameter in task.prior.parameters()]
        task.networks = task.modules
        seed_everything("step")
        task.update(0, task.batch(0))
        moved[way] = {name: parameter.detach().clone() for name, parameter in task.model.named_parameters()}
        if weight is not None:
            assert any(not torch.equal(a, b) for a, b in zip(before, task.prior.parameters(), strict=True))
    for name, after in moved["after"].items():
        torch.testing.assert_close(moved["joint"][name], after, msg=name)
        same = torch.equal(moved["heavy"][name], moved["joint"][name])
        if name.startswith("decoder"):
            assert same, name
    assert any(
        not torch.equal(moved["heavy"][name], after) for name, after in moved["joint"].items() if "encoder" in name
    )


def test_codes_of_a_prior_that_knows_nothing_take_log_k_bits(bench):
    config = experiment(bench, settings_of(bench, "base-vq"), [])
    prior = build_prior(bench.plan.stages.prior, config)
    for parameter in prior.parameters():
        torch.nn.init.zeros_(parameter)
    codes = [torch.randint(8, (1, 9)), torch.randint(8, (1, 5))]
    assert rate(prior, codes, config.frame_rate) == pytest.approx(math.log2(8) * 50)


def test_codes_take_the_bits_of_their_frequencies_in_known_speech():
    known = [torch.tensor([[0, 1, 0] * 1000]), torch.tensor([[1, 0, 1] * 1000])]
    assert unigram_rate(known, [torch.tensor([[0, 1, 1]])], 2, 50.0) == pytest.approx(50)
    often, seldom = ([torch.tensor([[code]])] for code in (0, 2))
    assert unigram_rate([torch.tensor([[0, 0, 0, 1]])], often, 4, 1.0) == pytest.approx(-math.log2(3.5 / 6))
    assert unigram_rate([torch.tensor([[0, 0, 0, 1]])], seldom, 4, 1.0) == pytest.approx(-math.log2(0.5 / 6))


# --- codebooks -------------------------------------------------------------------------------------------------


def test_a_step_of_the_codebook_loss_is_one_of_lloyds():
    torch.manual_seed(0)
    z = torch.randn(500, 4).double()
    start = draw_rows(z, 8)
    assert step_difference(z, start) < 1e-6
    errors = lloyd(z, start, 10)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.8 * errors[0]


def test_switching_compares_codes_before_and_after_the_step_itself(bench, tmp_path):
    config = unclipped(experiment(bench, settings_of(bench, "commitment-0-0"), []))
    task, _ = make_task(config, tmp_path)
    task.watch, task.networks = "switching", task.modules
    task.update(0, task.batch(0))  # The first batch places the codebook.
    found = {}
    for rate_ in (0.0, 0.3):
        for group in task.optimizers["generator"].param_groups:
            group["lr"] = rate_
        found[rate_] = task.update(1, task.batch(0))
    assert (found[0.0]["switched"], found[0.0]["drift"]) == (0, 0)
    assert found[0.3]["switched"] > 0
    assert found[0.3]["drift"] > 0


# --- decoders that see the past --------------------------------------------------------------------------------


@pytest.mark.parametrize("units", [0, 2, 4])
def test_a_decoder_sees_its_context_and_no_more(bench, units):
    settings = settings_of(bench, "context-gaussian-0-0")
    torch.manual_seed(0)
    model = ContextModel(context_config(bench, settings), units, False).double().eval()
    wave = torch.zeros(1, 1, 960).double()
    latents = torch.randn(1, model.bottleneck.project_in.in_features, 3).double()
    place, context = 700, context_samples(units)

    slopes = torch.autograd.functional.jacobian(lambda x: model.distribution(latents, x)[0][0, 0, place], wave)
    seen = slopes[0, 0].nonzero().flatten().tolist()
    assert seen == list(range(place - context, place))


def test_batch_normalisation_before_the_bottleneck_is_of_the_encoders_output(bench):
    config = context_config(bench, settings_of(bench, "context-gaussian-0-0"))
    plain, normal = (ContextModel(config, 0, normalized).train() for normalized in (False, True))
    normal.load_state_dict(plain.state_dict(), strict=False)
    wave = 0.1 * torch.randn(2, 1, 3200)
    z = plain.encode(wave)
    expected = (z - z.mean((0, 2), keepdim=True)) / (z.var((0, 2), correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(normal.encode(wave), expected, atol=1e-4, rtol=1e-4)


# --- the textbook example --------------------------------------------------------------------------------------


def test_score_functions_and_autograd_of_2p_are_right_and_the_others_are_not():
    from textbook import textbook

    found = textbook()
    for name, own in found["estimators"].items():
        true = torch.tensor(own.get("true", found["true"]))
        error = torch.tensor(own["deviation"]) / found["draws"] ** 0.5 + 1e-6
        distance = ((torch.tensor(own["mean"]) - true) / error).square().mean().sqrt()
        right = name.startswith(("score function", "z = 2p"))
        assert (distance < 2) if right else (distance > 5), name
    deviations = {name: max(own["deviation"]) for name, own in found["estimators"].items()}
    assert deviations["z = 2p: autograd"] < 1e-6
    assert deviations["score function, moving average"] < 0.7 * deviations["score function"]


# --- relaxation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("temperature", "gap"), [(1e-4, False), (20.0, True)])
def test_hardening_costs_nothing_where_samples_are_hard_already(tiny_config, temperature, gap):
    torch.manual_seed(1)
    config = GumbelConfig(codebook_size=4, start_temperature=temperature, end_temperature=temperature)
    model = Autoencoder(tiny_config().model_copy(update={"bottleneck": config}))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    waves = [torch.randn(1, 1, 200), torch.randn(1, 1, 100)]
    found = relaxation(model, lambda y, x: (1e3 * (y - x).square().mean((1, 2)), {}), waves)
    assert (abs(found["relaxed"] - found["hardened"]) > 1e-5 * found["relaxed"]) == gap
    assert model.bottleneck.config == config
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# --- probes ----------------------------------------------------------------------------------------------------


def test_the_words_are_those_of_the_shipped_speech_in_order():
    speech = WORDS.parents[1] / "mini/data"
    words = json.loads(WORDS.read_text(encoding="utf-8"))["words"]
    assert {*words} == {path.relative_to(speech).as_posix() for path in speech.rglob("*.ogg")}
    assert sum(map(len, words.values())) > 2000
    for name, found in words.items():
        assert all(0 <= start <= end <= 13 and word for start, end, word in found), name
        assert [start for start, _, _ in found] == sorted(start for start, _, _ in found), name


def test_a_probe_finds_what_is_linear_and_not_what_is_not_there(bench):
    from audiovq.data.manifest import read_manifest

    utterances = read_manifest(bench.manifest("train"))
    seed_everything("items")
    items = [Item(n % len(utterances), 0.0, 0.1, "ab"[n % 2]) for n in range(60)]
    nothing = probe(items, utterances, [torch.zeros(2, 100) for _ in utterances], 50.0)
    assert nothing["accuracy"] == nothing["commonest"] <= 0.8
    assert nothing["labels"] == 2
    assert nothing["items"] == 60
    # A feature of each half says which label it has; utterances differ in which comes first.
    features = [torch.tensor([[n % 2] * 50 + [1 - n % 2] * 50]).float() for n in range(len(utterances))]
    items = [
        Item(n, second, second + 0.1, "ab"[(n + int(second)) % 2])
        for n in range(len(utterances))
        for second in (0.0, 1.0)
        for _ in range(10)
    ]
    assert probe(items, utterances, features, 50.0)["accuracy"] == 1


def test_words_are_told_from_words_of_the_same_voice(bench):
    from audiovq.data.manifest import read_manifest

    utterances = read_manifest(bench.manifest("train"))
    # The features say which voice it is, one in the first second and the other in the next, and nothing of the word.
    voices = [torch.tensor([[0.0] * 50 + [1.0] * 50])] * len(utterances)
    items = [
        Item(number, second, second + 0.1, label, group=group)
        for number in range(len(utterances))
        for second, group, words in ((0.0, "m", "ab"), (1.0, "f", "cd"))
        for label in words * 10
    ]
    found = probe(items, utterances, voices, 50.0)
    assert found["accuracy"] == pytest.approx(0.5)
    assert found["commonest"] == pytest.approx(0.5)
    assert found["labels"] == 4


def test_logistic_regression_separates():
    torch.manual_seed(0)
    y = torch.arange(90) % 3
    x = torch.nn.functional.one_hot(y, 3) * 3.0 + torch.randn(90, 3)
    predicted = logistic_regression(x[:60], y[:60], x[60:], 3)
    assert (predicted == y[60:]).float().mean() > 0.85


def test_a_stretch_has_the_mean_of_its_frames_and_at_least_one():
    features = torch.arange(20.0)[None]
    assert mean_of(features, Item(0, 0.1, 0.2, "a"), 50.0) == torch.tensor([7.0])  # frames 5 to 9
    assert mean_of(features, Item(0, 0.1, 0.1, "a"), 50.0) == torch.tensor([5.0])
    assert mean_of(features, Item(0, 9.0, 9.5, "a"), 50.0) == torch.tensor([19.0])
