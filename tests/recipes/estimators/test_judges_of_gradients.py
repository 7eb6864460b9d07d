"""Verdicts on gradients: known figures give known verdicts."""

from __future__ import annotations

from typing import Any

import judges_of_gradients as gradients
import pytest


def record(name: str, result: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {name: {"settings": settings, "result": {"failed": None, **result}}}


def row(name: str, bias: float, noise: float, variance: float, **more: Any) -> dict[str, Any]:
    one = {"bias": bias, "bias_noise": noise, "variance": variance, "cosine": 0.5, "draws": 1000}
    whole = {"variance": variance, "variance_seconds": variance, "squared_norm": 1.0, "snr": 1.0}
    return {"estimator": name, "one": one, "all": whole, **more}


def gradient_results(kind: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"cells": record(f"gradients-{kind}", {"rows": rows})}


@pytest.mark.parametrize(
    ("bias", "noise", "expected"),
    [(0.1, 0.08, True), (0.5, 0.08, False), (2.0, 1.5, None), (0.4, 0.2, None), (9.0, 1.5, False)],
)
def test_unbiased_means_within_three_standard_errors_that_would_show_a_bias(bias, noise, expected):
    rows = [row("reparameterised", bias, noise, 1.0), row("score function", 1.0, 1.0, 100.0)]
    assert gradients.reparameterisation_is_unbiased(gradient_results("gaussian", rows))[0] is expected


@pytest.mark.parametrize(("bias", "mean", "expected"), [(0.05, -0.5, True), (0.05, -0.4, False), (9.0, -0.5, False)])
def test_the_score_function_is_judged_by_the_textbook_example_where_the_model_is_too_noisy(bias, mean, expected):
    rows = [row("no baseline", 2.0, 2.0, 1.0), row("leave-one-out", bias, 0.05, 1.0)]
    own = {
        "score function": {"mean": [mean], "deviation": [1.0]},
        "straight-through": {"mean": [9.0], "deviation": [0.0]},
    }
    textbook = {"true": [-0.5], "draws": 10_000, "estimators": own}
    results = {"cells": record("gradients-reinforce", {"rows": rows}) | record("textbook", textbook)}
    holds, text = gradients.score_function_is_unbiased(results)
    assert holds is expected
    assert ("Too noisy to tell much: no baseline" in text) == expected


@pytest.mark.parametrize(("low", "warm", "expected"), [(9.0, 3.0, True), (0.5, 3.0, True), (9.0, 0.5, False)])
def test_gumbel_has_less_variance_at_the_temperatures_of_training_and_lower_ones_do_not_count(low, warm, expected):
    rows = [row("REINFORCE", 0, 1, 1.0)]
    for t, ratio in ((0.5, warm), (0.1, low)):
        rows.append(row(f"{t}", 0, 1, 1 / ratio, bottleneck={"hard": False, "end_temperature": t}))
    assert gradients.score_function_has_high_variance(gradient_results("gumbel", rows))[0] is expected


@pytest.mark.parametrize(("variance", "expected"), [(100.0, True), (5.0, False)])
def test_low_variance_is_a_tenth_at_most(variance, expected):
    results = gradient_results("gaussian", [row("a", 0, 1, 1.0), row("b", 0, 1, variance)])
    assert gradients.reparameterisation_has_low_variance(results)[0] is expected


@pytest.mark.parametrize(("with_one", "expected"), [(0.1, True), (2.0, False)])
def test_baselines_help_if_each_lowers_the_variance(with_one, expected):
    variances = {("none", 1): 1.0, ("moving_average", 1): with_one, ("none", 16): 1.0, ("leave_one_out", 16): 0.1}
    rows = [row(f"{b} {s}", 0, 1, v, bottleneck={"baseline": b, "samples": s}) for (b, s), v in variances.items()]
    assert gradients.baselines_help(gradient_results("reinforce", rows))[0] is expected


@pytest.mark.parametrize(("power", "expected"), [(-1.0, True), (-0.2, False), (-3.0, False)])
def test_variance_falls_with_the_other_samples_of_the_baseline(power, expected):
    rows = [
        row(f"{s}", 0, 1, 8.0 * (s - 1) ** power, bottleneck={"baseline": "leave_one_out", "samples": s})
        for s in (2, 4, 8, 16)
    ]
    rows += [row(f"none {s}", 0, 1, 32 / s, bottleneck={"baseline": "none", "samples": s}) for s in (1, 16)]
    holds, text = gradients.samples_help(gradient_results("reinforce", rows))
    assert holds is expected
    assert f"power of {power:.2f}" in text
    assert "16 times less with S = 16" in text


@pytest.mark.parametrize(
    ("biases", "variances", "expected"),
    [
        ([0.9, 0.5, 0.3], [1.0, 2.0, 4.0], True),
        ([0.3, 0.5, 0.9], [1.0, 2.0, 4.0], False),
        ([0.9, 0.5, 0.3], [4.0, 2.0, 1.0], False),
        ([0.05, 0.5, 0.3], [1.0, 2.0, 4.0], None),
        ([0.9, 0.3, 0.35], [1.0, 2.0, 4.0], True),  # the last rise is within the noise
        ([0.5, 0.45, 0.48], [1.0, 2.0, 4.0], False),
        ([0.9, 0.5, 0.3], [1.0, 4.0, 3.5], True),  # of few draws that count for much
        ([0.9, 0.5, 0.3], [1.0, 4.0, 2.0], False),
    ],
)
def test_gumbel_trades_bias_for_variance_only_if_both_go_that_way(biases, variances, expected):
    rows = [row("REINFORCE", 0, 1, 1.0)]
    for t, bias, variance in zip((2, 1, 0.5), biases, variances, strict=True):
        rows.append(row(f"{t}", bias, 0.05, variance, bottleneck={"hard": False, "end_temperature": t}))
    assert gradients.gumbel_trades_bias(gradient_results("gumbel", rows))[0] is expected


@pytest.mark.parametrize(
    ("bias", "noise", "expected"), [(0.8, 0.05, True), (0.08, 0.05, False), (0.8, 0.7, None), (0.35, 0.15, None)]
)
def test_straight_through_is_biased_where_noise_does_not_explain_it(bias, noise, expected):
    known = {"temperature": 1.0, "entropy": 1.0, "deterministic": {"bias": 1.0, "cosine": 0.1}}
    rows = [row("VQ", 0, 0, 0.0), row("stochastic", bias, noise, 1.0, **known)]
    results = gradient_results("vq", rows)
    assert gradients.straight_through_is_biased(results)[0] is expected
    assert gradients.straight_through_has_no_noise(results)[0] is True
