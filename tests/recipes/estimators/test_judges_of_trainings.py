"""Verdicts on trainings: known figures give known verdicts."""

from __future__ import annotations

from typing import Any

import judges_of_trainings as trainings
import pytest


def record(name: str, result: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {name: {"settings": settings, "result": {"failed": None, **result}}}


@pytest.mark.parametrize(
    ("rates", "stoi", "expected"),
    [
        ({"after": [400, 402], "joint": [300, 301]}, {"after": [0.7, 0.71], "joint": [0.7, 0.71]}, False),
        ({"after": [400, 402], "joint": [300, 301]}, {"after": [0.7, 0.71], "joint": [0.5, 0.51]}, None),
        ({"after": [400, 402], "joint": [300, 301]}, {"after": [0.7, 0.9], "joint": [0.5, 0.7]}, None),
        ({"after": [400, 402], "joint": [400, 402]}, {"after": [0.7, 0.71], "joint": [0.7, 0.71]}, True),
        ({"after": [400, 402], "joint": [500, 502]}, {"after": [0.7, 0.71], "joint": [0.6, 0.61]}, True),
        ({"after": [400, 402], "joint": [500, 502]}, {"after": [0.7, 0.71], "joint": [0.8, 0.81]}, None),
        ({"after": [400, 402], "joint": [400, 402]}, {"after": [0.7, 0.71], "joint": [0.8, 0.81]}, False),
        ({"after": [300, 500], "joint": [250, 450]}, {"after": [0.7, 0.71], "joint": [0.7, 0.71]}, None),
        ({"after": [400], "joint": [300]}, {"after": [0.7], "joint": [0.7]}, None),
    ],
)
def test_two_stages_lose_if_one_has_clearly_less_rate_or_more_quality_and_no_less_of_the_other(rates, stoi, expected):
    cells: dict[str, Any] = {}
    for way in rates:
        for seed, (rate, quality) in enumerate(zip(rates[way], stoi[way], strict=True)):
            result = {"test": {"metrics": {"stoi": quality}, "usage": {"perplexity": 9.0}}}
            # Of two priors for the same codes the better counts.
            result |= {"prior_joint": rate + 50, "prior_after": rate} if way == "joint" else {"prior_after": rate}
            cells |= record(f"stages-{way}-vq-{seed}", result)
    results = {"cells": cells, "plan": {"stages": {"bottlenecks": ["vq"]}}}
    assert trainings.two_stages_lose_nothing(results)[0] is expected


@pytest.mark.parametrize(
    ("gumbel", "expected"), [([0.6, 0.61], True), ([0.9, 0.91], False), ([0.7, 0.72], None), ([], None)]
)
def test_vq_keeps_the_most_if_no_other_comes_near_at_any_rate(gumbel, expected):
    cells: dict[str, Any] = {}
    target = {"measure": "entropy", "bits": 400}
    for kind, values in {"vq": [0.7, 0.71], "gumbel": gumbel}.items():
        for seed, value in enumerate(values):
            result = {"test": {"metrics": {"stoi": value}}}
            cells |= record(f"compare-entropy-400-{kind}-{seed}", result, bottleneck=kind, target=target)
    results = {"cells": cells, "plan": {"compare": {"points": {"entropy": [400]}}}}
    assert trainings.vq_keeps_the_most(results)[0] is expected


@pytest.mark.parametrize(
    ("rates", "stoi", "expected"),
    [
        ({"vq": 240, "gumbel": 250}, {"vq": [0.7, 0.71], "gumbel": [0.6, 0.61]}, True),
        ({"vq": 240, "gumbel": 200}, {"vq": [0.7, 0.71], "gumbel": [0.6, 0.61]}, None),
        ({"vq": 200, "gumbel": 240}, {"vq": [0.7, 0.71], "gumbel": [0.6, 0.61]}, True),
        ({"vq": 200, "gumbel": 240}, {"vq": [0.6, 0.61], "gumbel": [0.7, 0.71]}, None),
        ({"vq": 240, "gumbel": 200}, {"vq": [0.6, 0.61], "gumbel": [0.7, 0.71]}, False),
        ({"vq": 240, "gumbel": 240}, {"vq": [], "gumbel": [0.7, 0.71]}, None),
    ],
)
def test_to_be_better_at_a_higher_rate_proves_nothing(rates, stoi, expected):
    cells: dict[str, Any] = {}
    target = {"measure": "entropy", "bits": 240}
    for kind, values in stoi.items():
        for seed in range(2):
            result: dict[str, Any] = {"failed": "loss is nan"}
            if values:
                result = {"test": {"metrics": {"stoi": values[seed]}, "bits_per_second": {"entropy": rates[kind]}}}
            cells |= record(f"compare-entropy-240-{kind}-{seed}", result, bottleneck=kind, target=target)
    holds, text = trainings.vq_keeps_the_most({"cells": cells, "plan": {"compare": {"points": {"entropy": [240]}}}})
    assert holds is expected
    assert ("vq failed" in text) == (not stoi["vq"])


@pytest.mark.parametrize(("sampled", "expected"), [([0.6, 0.61], True), ([0.9, 0.91], False)])
def test_at_a_rate_by_kl_samples_of_the_posterior_are_heard(sampled, expected):
    cells: dict[str, Any] = {}
    target = {"measure": "kl", "bits": 400}
    for seed, value in enumerate(sampled):
        known = {"test": {"metrics": {"stoi": 0.7 + seed / 100}}}
        cells |= record(f"compare-kl-400-vq-{seed}", known, bottleneck="vq", target=target)
        heard = {"test": {"metrics": {"stoi": 1.5 - value}, "sampled": {"stoi": value}}}
        cells |= record(f"compare-kl-400-gaussian-{seed}", heard, bottleneck="gaussian", target=target)
    results = {"cells": cells, "plan": {"compare": {"points": {"kl": [400]}}}}
    assert trainings.vq_keeps_the_most(results)[0] is expected


def curves_results(cells: dict[str, dict[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, curve in cells.items():
        made |= record(name, {"steps": 100, "curves": {"valid": {"step": [20, 40, 60, 80, 100], **curve}}})
    return {"cells": made}


@pytest.mark.parametrize(
    ("slowest", "expected"), [([9, 5, 4, 3, 2], True), ([9, 8, 7, 5.5, 5], False), ([9, 8, 8, 7, 7], False)]
)
def test_the_score_function_is_slow_if_every_gumbel_is_soon_where_its_best_training_ends(slowest, expected):
    reinforce = {"tune-reinforce-0": {"loss": [9, 9, 8, 7, 6]}, "tune-reinforce-1": {"loss": [9, 9, 9, 9, 9]}}
    gumbel = {"tune-gumbel-0": {"loss": [5, 4, 3, 2, 1]}, "tune-gumbel-1": {"loss": slowest}}
    holds, text = trainings.score_function_is_slow(curves_results({**reinforce, **gumbel}))
    assert holds is expected
    assert "reinforce 6 to 9 (2 trainings)" in text


def schedule_results(**values: Any) -> dict[str, Any]:
    """Results of three schedules: by schedule and way (soft, hard), a list over seeds of what a training gives."""
    cells: dict[str, Any] = {}
    names = {"warm": "constant 1", "falling": "2 to 0.1", "low": "constant 0.1"}
    for key, results in values.items():
        name, way = key.split("_")
        for seed, result in enumerate(results):
            known = {"schedule": names[name], "hard": way == "hard"}
            cells |= record(f"schedule-{name}-{way}-{seed}", result, **known)
    return {"cells": cells, "plan": {"schedules": {"settings": dict.fromkeys(names.values())}}}


def norms(*seeds: list[float]) -> list[dict[str, Any]]:
    return [{"curves": {"train": {"gradient_norm": [0.0] * len(own) + own}}} for own in seeds]


CALM, LARGE, JUMPS = ([v, 1.1 * v, 1.2 * v] for v in (1.0, 9.0, 1.0))
CALMS, LARGES = norms(CALM, [1.1, 1.2, 1.0], [1.0, 1.1, 1.1]), norms(LARGE, [9.0, 10.0, 8.0], [9.5, 10.0, 9.0])
JUMPING = norms([1.0, 1.0, 9.0], [1.0, 1.1, 9.5], [0.9, 1.0, 9.2])


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [
        (JUMPING, JUMPING, True),
        (JUMPING, [*CALMS[:2], {"failed": "loss is nan"}], True),
        (JUMPING, LARGES, None),
        (CALMS, CALMS, None),
        (JUMPING[:1], JUMPING[:1], None),
    ],
)
def test_a_low_temperature_is_unstable_if_trainings_fail_or_gradients_jump_more_soft_and_hard(soft, hard, expected):
    results = schedule_results(warm_soft=CALMS, warm_hard=CALMS, low_soft=soft, low_hard=hard)
    assert trainings.low_temperature_is_unstable(results)[0] is expected


def test_a_low_temperature_is_stable_if_gradients_jump_less():
    results = schedule_results(warm_soft=JUMPING, warm_hard=JUMPING, low_soft=CALMS, low_hard=CALMS)
    assert trainings.low_temperature_is_unstable(results)[0] is False


@pytest.mark.parametrize(
    ("low", "expected"), [([0.5, 0.51, 0.49], True), ([0.69, 0.7, 0.71], False), ([0.9, 0.4, 0.6], False)]
)
def test_a_schedule_matters_if_chance_does_not_explain_the_range(low, expected):
    rows = {"warm_hard": [0.7, 0.71, 0.69], "falling_hard": [0.7, 0.69, 0.7], "low_hard": low}
    results = schedule_results(**{k: [{"test": {"metrics": {"stoi": v}}} for v in own] for k, own in rows.items()})
    assert trainings.schedule_matters(results)[0] is expected


def relaxed(*gaps: float) -> list[dict[str, Any]]:
    return [
        {"curves": {"valid": {"relaxed": [2.0, 1.0], "hardened": [2.0, 1.0 + gap], "mode": [2.0, 1.0 + gap / 2]}}}
        for gap in gaps
    ]


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [
        ((0.5, 0.6, 0.55), (-0.1, -0.1, -0.12), True),
        ((0.5, 0.6, 0.55), (0.5, 0.6, 0.5), None),
        ((0.5, 0.6, 0.55), (0.9, 0.9, 0.95), False),
        ((-0.1, 0.1, 0.0), (-0.9, -0.8, -0.9), None),
        ((-0.1, -0.12, -0.11), (-0.9, -0.8, -0.9), False),
        ((0.5,), (0.1,), None),
    ],
)
def test_a_relaxation_is_exploited_if_soft_training_alone_makes_hard_samples_cost(soft, hard, expected):
    # At a low temperature there is nothing to exploit, which is no evidence against it.
    rows = {"warm_soft": relaxed(*soft), "warm_hard": relaxed(*hard), "low_soft": relaxed(*[0.0] * len(soft))}
    holds, text = trainings.relaxation_is_exploited(schedule_results(**rows))
    assert holds is expected
    assert "constant 1, trained soft, 0 " in text
    assert "at the first validation" in text


def probe_results(target: str, vq: list[float], gaussian: list[float], chance: float) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for kind, values in {"vq": vq, "gaussian": gaussian}.items():
        for seed, value in enumerate(values):
            latents = {"accuracy": value, "commonest": chance, "error": 0.03}
            cells |= record(f"probe-{kind}-{seed}", {"probes": {target: {"latents": latents}}})
    return {"cells": cells}


@pytest.mark.parametrize(
    ("vq", "gaussian", "expected"),
    [
        ([0.5, 0.52], [0.53, 0.54], True),
        ([0.4, 0.41], [0.53, 0.54], False),
        ([0.7, 0.71], [0.53, 0.54], True),
        ([0.2, 0.21], [0.22, 0.24], None),  # next to what the commonest word gives
        ([0.5], [0.53], None),
        ([], [0.53, 0.54], None),
    ],
)
def test_codes_tell_words_if_a_probe_hardly_loses_and_there_is_something_to_lose(vq, gaussian, expected):
    holds, text = trainings.codes_tell_words(probe_results("word", vq, gaussian, 0.18))
    assert holds is expected
    assert "the commonest label 0.18" in text
    assert ("standard error of a probe 0.03" in text) == bool(vq)


@pytest.mark.parametrize(
    ("vq", "expected"),
    [([0.6, 0.62], True), ([0.97, 0.98], False), ([0.9, 0.97], None), ([0.999, 0.9995], False), ([0.6], None)],
)
def test_codes_tell_less_of_the_voice_if_seeds_say_so_and_not_if_they_tell_the_same(vq, expected):
    results = probe_results("voice", vq, [0.98, 0.985], 0.3)
    assert trainings.codes_tell_less_of_the_voice(results)[0] is expected


@pytest.mark.parametrize(("prior", "expected"), [([100.0, 101.0], True), ([100.0, 125.0], False)])
def test_a_prior_saves_bits_if_it_does_with_every_seed(prior, expected):
    cells: dict[str, Any] = {}
    for seed, bits in enumerate(prior):
        cells |= record(f"probe-vq-{seed}", {"prior": {"test": bits}, "frequencies": {"test": 120.0}})
    assert trainings.prior_saves_bits({"cells": cells})[0] is expected
    assert trainings.prior_saves_bits({"cells": {}})[0] is None
