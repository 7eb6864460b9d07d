"""Verdicts on collapse and codebooks: known figures give known verdicts."""

from __future__ import annotations

from typing import Any

import judges_of_collapse as collapse
import pytest

FAILED = float("nan")
"""Stands for a training that failed."""


def record(name: str, result: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {name: {"settings": settings, "result": {"failed": None, **result}}}


def collapse_results(gaps: dict[str, dict[int, list[float]]]) -> dict[str, Any]:
    """Gaps by bottleneck and context; behind a + stands the remedy that a bottleneck was tried with."""
    cells = {}
    for name, contexts in gaps.items():
        kind, _, remedy = name.partition(" + ")
        for context, values in contexts.items():
            for seed, gap in enumerate(values):
                result: dict[str, Any] = {"context": context}
                result |= {"failed": "loss is nan"} if gap != gap else {"gap": {"gap": gap}}
                known = {"units": context, "remedy": remedy or None, "bottleneck": kind}
                cells |= record(f"context-{kind}-{context}-{remedy}-{seed}", result, **known)
    kinds = dict.fromkeys(name for name in gaps if "+" not in name)
    return {"cells": cells, "plan": {"seeds": [0, 1, 2], "context": {"bottlenecks": kinds}}}


USED = {0: [50.0, 60.0, 55.0], 16: [20.0, 30.0, 25.0], 256: [9.0, 8.0, 7.0]}
GONE = {0: [50.0, 60.0, 55.0], 16: [0.1, 0.2, 9.0], 256: [0.0, 0.1, -0.3]}
LATER = {0: [50.0, 60.0, 55.0], 16: [9.0, 8.0, 7.0], 256: [0.0, 0.1, 0.2]}
UNUSED = {0: [0.1, 0.0, 5.0], 16: [0.0, 0.0, 0.0], 256: [0.0, 0.0, 0.0]}
ONCE = {0: [50.0, 60.0, 55.0], 16: [9.0, 8.0, 0.1], 256: [0.0, 5.0, 6.0]}
BACK = {0: [50.0, 60.0, 55.0], 16: [0.1, 0.2, 0.1], 256: [9.0, 8.0, 7.0]}
SLIGHT = {0: [500.0, 600.0, 550.0], 16: [90.0, 80.0, 70.0], 256: [0.9, 0.7, 0.6]}
BROKEN = {0: [50.0, 60.0, 55.0], 16: [20.0, 30.0, 25.0], 256: [FAILED] * 3}
EQUAL = "gaussian + batch normalisation"


@pytest.mark.parametrize(
    ("gaussian", "gumbel", "expected"),
    [
        (GONE, USED, True),
        (USED, LATER, True),
        (USED, USED, False),
        (ONCE, USED, False),
        (BACK, USED, False),
        (SLIGHT, USED, True),  # of what latents are worth without context next to nothing
        (UNUSED, UNUSED, None),
        (UNUSED, GONE, True),
        (BROKEN, USED, None),
        (BROKEN, GONE, True),
    ],
)
def test_collapse_is_told_by_most_seeds_of_what_is_used_without_context(gaussian, gumbel, expected):
    results = collapse_results({"gaussian": gaussian, "gumbel": gumbel})
    assert collapse.context_makes_collapse(results)[0] is expected


@pytest.mark.parametrize(
    ("gaussian", "gumbel", "reinforce", "expected"),
    [
        (GONE, LATER, USED, True),
        (LATER, GONE, USED, False),
        (USED, GONE, USED, False),
        (GONE, LATER, UNUSED, True),  # what cannot collapse is no rival
        (GONE, UNUSED, UNUSED, None),
        (UNUSED, GONE, USED, None),
        (USED, USED, USED, None),
        (LATER, LATER, USED, None),
        (GONE, LATER, BROKEN, None),
    ],
)
def test_who_collapses_first_is_told_with_batch_normalisation_for_all(gaussian, gumbel, reinforce, expected):
    gaps = {"gaussian": GONE, EQUAL: gaussian, "gumbel": gumbel, "reinforce": reinforce}
    assert collapse.gaussian_collapses_first(collapse_results(gaps))[0] is expected


@pytest.mark.parametrize(
    ("without", "with_", "expected"),
    [
        (GONE, USED, True),
        (GONE, GONE, False),
        (GONE, LATER, False),
        (USED, USED, None),
        (GONE, BROKEN, False),
        (USED, GONE, False),  # it makes what was used be ignored
    ],
)
def test_a_remedy_helps_where_latents_are_ignored_without_it_and_used_with_it(without, with_, expected):
    results = collapse_results({"gaussian": without, EQUAL: with_, "gumbel": USED})
    assert collapse.normalisation_helps(results)[0] is expected
    assert collapse.warm_up_helps(results) == (None, "the plan does not try it")
    tried = {"gaussian + free bits": {256: with_[256]}, "gumbel + free bits": {256: USED[256]}}
    results = collapse_results({"gaussian": without, "gumbel": USED, **tried})
    assert collapse.free_bits_help(results)[0] is expected


@pytest.mark.parametrize(
    ("gaps", "expected"), [(USED, True), (LATER, False), (ONCE, False), (UNUSED, None), (BROKEN, None)]
)
def test_vq_collapses_where_any_seed_ignores_its_codes(gaps, expected):
    assert collapse.vq_does_not_collapse(collapse_results({"vq": gaps}))[0] is expected
    for plain, normalised in ((gaps, USED), (USED, gaps)):
        both = collapse_results({"vq": plain, "vq + batch normalisation": normalised})
        assert collapse.vq_does_not_collapse(both)[0] is expected
        assert "vq with batch normalisation 0: " in collapse.vq_does_not_collapse(both)[1]
    worst = collapse_results({"vq": LATER, "vq + batch normalisation": gaps})
    assert collapse.vq_does_not_collapse(worst)[0] is False


# --- codebooks -------------------------------------------------------------------------------------------------


def codebook_results(shares: dict[tuple[str, str, str], list[float]]) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for (revival, update, init), values in shares.items():
        for seed, share in enumerate(values):
            result = {"dev": {"usage": {"codes_used": 100 * share}}, "test": {"usage": {"codes_used": 0}}}
            name = f"codebook-{revival}-{update}-{init}-{seed}"
            cells |= record(name, result, revival=revival, update=update, init=init)
    plan = {"codebook_size": 100, "inits": ["kmeans", "data", "random"]}
    return {"cells": cells, "plan": {"seeds": [0, 1], "codebooks": plan}}


@pytest.mark.parametrize(
    ("random", "expected"), [([0.1, 0.2], True), ([0.4, 0.6], False), ([0.9, 0.8], False), ([], None)]
)
def test_codes_are_not_used_if_all_seeds_of_one_start_say_so(random, expected):
    results = codebook_results({("without", "gradient", "random"): random})
    assert collapse.codes_die(results)[0] is expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [([0.8, 0.81], True), ([0.1, 0.11], False), ([0.02, 0.03], False), ([0.1, 0.9], None), ([0.8], None)],
)
def test_every_remedy_alone_has_to_keep_more_codes(data, expected):
    shares = {("without", "gradient", "random"): [0.1, 0.11], ("with", "gradient", "random"): [0.8, 0.81]}
    shares |= {("without", "ema", "random"): [0.5, 0.51], ("without", "gradient", "kmeans"): [0.7, 0.71]}
    shares[("without", "gradient", "data")] = data
    assert collapse.codes_are_kept(codebook_results(shares))[0] is expected


@pytest.mark.parametrize(("adam", "expected"), [([0.48, 0.47], True), ([0.48, 0.56], False)])
def test_every_way_to_fit_a_codebook_has_to_end_where_lloyds_does_with_every_seed(adam, expected):
    cells: dict[str, Any] = {}
    for seed, value in enumerate(adam):
        errors = {"Lloyd": [1.0, 0.5], "codebook loss, Adam": [1.0, value]}
        cells |= record(f"kmeans-{seed}", {"errors": errors, "step_difference": 1e-6})
    assert collapse.codebook_loss_is_kmeans({"cells": cells})[0] is expected


def commitment_results(stoi: dict[float, list[float]]) -> dict[str, Any]:
    cells = {}
    for beta, values in stoi.items():
        for seed, value in enumerate(values):
            falls = [3.0 - beta + 0.01 * seed] * 4
            curves = {"train": {"switched": falls, "spread": falls, "drift": [value] * 4}}
            cells |= record(
                f"commitment-{beta:g}-{seed}", {"test": {"metrics": {"stoi": value}}, "curves": curves}, beta=beta
            )
    return {"cells": cells, "plan": {"commitment": {"betas": list(stoi)}}}


def test_commitment_does_not_matter_if_stoi_hardly_changes():
    flat = {0.0: [0.5, 0.5], 0.1: [0.75, 0.76], 0.25: [0.75, 0.755], 2.0: [0.75, 0.75]}
    assert collapse.commitment_does_not_matter(commitment_results(flat))[0] is True
    assert collapse.commitment_does_not_matter(commitment_results({**flat, 2.0: [0.6, 0.61]}))[0] is False
    apart_by_chance = commitment_results({**flat, 2.0: [0.7, 0.8], 0.1: [0.72, 0.74]})
    assert collapse.commitment_does_not_matter(apart_by_chance)[0] is None
    assert collapse.commitment_does_not_matter(commitment_results({0.1: [0.75], 2.0: [0.75]}))[0] is None
    failed = commitment_results(flat)
    failed["cells"]["commitment-2-1"]["result"] = {"failed": "loss is nan at step 3"}
    assert collapse.commitment_does_not_matter(failed)[0] is False


@pytest.mark.parametrize(("seeds", "expected"), [((0.0, 0.25), True), ((0.25, 0.0), False)])
def test_commitment_holds_the_encoder_if_without_it_codes_switch_and_latents_spread_more(seeds, expected):
    results = commitment_results({0.0: [0.7, 0.7, 0.7], 0.25: [0.7, 0.7, 0.7]})
    for own in results["cells"].values():
        own["settings"]["beta"] = dict(zip((0.0, 0.25), seeds, strict=True))[own["settings"]["beta"]]
    assert collapse.commitment_holds_the_encoder(results)[0] is expected
    for own in results["cells"].values():
        own["result"]["curves"]["train"]["spread"] = [1.0] * 4
    assert collapse.commitment_holds_the_encoder(results)[0] is (None if expected else False)


def test_seeds_that_are_missing_leave_a_verdict_open():
    holds, text = collapse.commitment_holds_the_encoder(commitment_results({0.0: [0.5], 0.25: [0.7]}))
    assert holds is None
    assert "one seed" in text
