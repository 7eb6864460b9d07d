"""Verdicts follow from figures: known outcomes give known verdicts, and stored results the stored ones."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import judges_of_collapse as collapse
import judges_of_gradients as gradients
import judges_of_trainings as trainings
import pytest
import report
from publish import BEGIN, END, LECTURE, published, with_findings, with_table
from results import difference, text_of
from tables import Table, comparison
from training import setting_for
from verdicts import CLAIMS, verdicts

ROOT = Path(__file__).parents[3]
STORED = ROOT / "recipes/estimators/results.json"


def record(name: str, result: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {name: {"settings": settings, "result": {"failed": None, **result}}}


# --- seeds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1.0, 1.1, 0.9], [2.0, 2.1, 1.9], -1),
        ([2.0, 2.1, 1.9], [1.0, 1.1, 0.9], 1),
        ([1.0, 3.0, 2.0], [1.5, 2.5, 2.2], 0),
        ([1.0], [2.0, 2.1], None),
        ([], [], None),
    ],
)
def test_a_difference_counts_when_it_exceeds_two_standard_errors(a, b, expected):
    assert difference(a, b) == expected


def test_no_figure_is_made_up():
    assert text_of([]) == "not run"
    assert text_of([0.5]) == "0.5"
    assert text_of([1.0, 3.0]) == "2 ± 1.4"


def test_a_setting_is_interpolated_within_its_curve_and_not_beyond():
    points = [(0.001, 400.0), (0.01, 200.0), (0.1, 50.0)]
    assert setting_for(points, 200.0) == pytest.approx(0.01)
    assert setting_for(points, 100.0) == pytest.approx(10**-1.5)
    assert setting_for(points, 401.0) is None
    assert setting_for(points, 49.0) is None
    assert setting_for([], 100.0) is None


# --- gradients -------------------------------------------------------------------------------------------------


def row(name: str, bias: float, noise: float, variance: float, **more: Any) -> dict[str, Any]:
    one = {"bias": bias, "bias_noise": noise, "variance": variance, "cosine": 0.5, "draws": 1000}
    whole = {"variance": variance, "variance_seconds": variance, "squared_norm": 1.0}
    return {"estimator": name, "one": one, "all": whole, **more}


def gradient_results(kind: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"cells": record(f"gradients-{kind}", {"rows": rows})}


@pytest.mark.parametrize(("bias", "noise", "expected"), [(0.1, 0.08, True), (0.5, 0.08, False), (2.0, 1.5, None)])
def test_unbiased_means_within_three_standard_errors(bias, noise, expected):
    rows = [row("reparameterised", bias, noise, 1.0), row("score function", 1.0, 1.0, 100.0)]
    assert gradients.reparameterisation_is_unbiased(gradient_results("gaussian", rows))[0] is expected


@pytest.mark.parametrize(("variance", "expected"), [(100.0, True), (5.0, False)])
def test_low_variance_is_a_tenth_at_most(variance, expected):
    results = gradient_results("gaussian", [row("a", 0, 1, 1.0), row("b", 0, 1, variance)])
    assert gradients.reparameterisation_has_low_variance(results)[0] is expected


@pytest.mark.parametrize(("power", "expected"), [(-1.0, True), (-0.2, False), (-3.0, False)])
def test_variance_as_one_over_s_is_a_slope(power, expected):
    rows = [
        row(f"{s}", 0, 1, 8.0 * s**power, bottleneck={"baseline": "leave_one_out", "samples": s}) for s in (2, 4, 8, 16)
    ]
    holds, text = gradients.samples_help(gradient_results("reinforce", rows))
    assert holds is expected
    assert f"power of {power:.2f}" in text


@pytest.mark.parametrize(
    ("biases", "variances", "expected"),
    [
        ([0.9, 0.5, 0.3], [1.0, 2.0, 4.0], True),
        ([0.3, 0.5, 0.9], [1.0, 2.0, 4.0], False),
        ([0.9, 0.5, 0.3], [4.0, 2.0, 1.0], False),
        ([0.05, 0.5, 0.3], [1.0, 2.0, 4.0], None),
    ],
)
def test_gumbel_trades_bias_for_variance_only_if_both_go_that_way(biases, variances, expected):
    rows = [row("REINFORCE", 0, 1, 1.0)]
    for t, bias, variance in zip((2, 1, 0.5), biases, variances, strict=True):
        rows.append(row(f"{t}", bias, 0.05, variance, bottleneck={"hard": False, "end_temperature": t}))
    assert gradients.gumbel_trades_bias(gradient_results("gumbel", rows))[0] is expected


@pytest.mark.parametrize(("bias", "noise", "expected"), [(0.8, 0.05, True), (0.08, 0.05, False), (0.8, 0.7, None)])
def test_straight_through_is_biased_where_noise_does_not_explain_it(bias, noise, expected):
    known = {"temperature": 1.0, "entropy": 1.0, "deterministic": {"bias": 1.0, "cosine": 0.1}}
    rows = [row("VQ", 0, 0, 0.0), row("stochastic", bias, noise, 1.0, **known)]
    results = gradient_results("vq", rows)
    assert gradients.straight_through_is_biased(results)[0] is expected
    assert gradients.straight_through_has_no_noise(results)[0] is True


# --- collapse --------------------------------------------------------------------------------------------------


def collapse_results(gaps: dict[str, dict[int, list[float]]]) -> dict[str, Any]:
    cells = {}
    for kind, contexts in gaps.items():
        for context, values in contexts.items():
            for seed, gap in enumerate(values):
                result = {"context": context, "gap": {"gap": gap}, "usage": {"information": gap}}
                name = f"context-{kind}-{context}-{seed}"
                cells |= record(name, result, units=context, remedy=None, bottleneck=kind)
    context = {"bottlenecks": dict.fromkeys(gaps), "units": [], "remedies": {}}
    return {"cells": cells, "plan": {"seeds": [0, 1], "context": context}}


USED, GONE = {0: [50.0, 60.0], 16: [20.0, 30.0], 256: [9.0, 8.0]}, {0: [50.0, 60.0], 16: [0.1, 0.2], 256: [0.0, 0.1]}
LATER, UNUSED = {0: [50.0, 60.0], 16: [9.0, 8.0], 256: [0.0, 0.1]}, {0: [0.1, 0.0], 16: [0.0, 0.0], 256: [0.0, 0.0]}
SPLIT = {0: [50.0, 60.0], 16: [9.0, 8.0], 256: [0.0, 5.0]}


@pytest.mark.parametrize(
    ("gaussian", "gumbel", "collapses", "first"),
    [
        (GONE, LATER, True, True),
        (LATER, GONE, True, False),
        (USED, USED, False, None),
        (USED, GONE, True, False),
        (SPLIT, USED, False, None),
        (UNUSED, UNUSED, None, None),
    ],
)
def test_collapse_is_told_by_all_seeds_of_what_is_used_without_context(gaussian, gumbel, collapses, first):
    results = collapse_results({"gaussian": gaussian, "gumbel": gumbel})
    assert collapse.context_makes_collapse(results)[0] is collapses
    assert collapse.gaussian_collapses_first(results)[0] is first


@pytest.mark.parametrize(("gaps", "expected"), [(USED, True), (LATER, False), (UNUSED, None)])
def test_vq_collapses_where_any_seed_ignores_its_codes(gaps, expected):
    assert collapse.vq_does_not_collapse(collapse_results({"vq": gaps}))[0] is expected


# --- trainings -------------------------------------------------------------------------------------------------


def commitment_results(stoi: dict[float, list[float]]) -> dict[str, Any]:
    cells = {}
    for beta, values in stoi.items():
        for seed, value in enumerate(values):
            curves = {"train": {"switched": [1.0 - beta] * 4, "drift": [value] * 4}}
            cells |= record(
                f"commitment-{beta:g}-{seed}", {"test": {"metrics": {"stoi": value}}, "curves": curves}, beta=beta
            )
    return {"cells": cells, "plan": {"commitment": {"betas": list(stoi)}}}


def test_commitment_does_not_matter_if_stoi_hardly_changes():
    flat = {0.0: [0.5, 0.5], 0.1: [0.75, 0.76], 0.25: [0.75, 0.755], 2.0: [0.75, 0.75]}
    assert collapse.commitment_does_not_matter(commitment_results(flat))[0] is True
    assert collapse.commitment_does_not_matter(commitment_results({**flat, 2.0: [0.6, 0.61]}))[0] is False


def test_seeds_that_are_missing_leave_a_verdict_open():
    holds, text = collapse.commitment_holds_the_encoder(commitment_results({0.0: [0.5], 0.25: [0.7]}))
    assert holds is None
    assert "one seed" in text


@pytest.mark.parametrize(
    ("rates", "stoi", "expected"),
    [
        ({"after": [400, 402], "joint": [300, 301]}, {"after": [0.7, 0.71], "joint": [0.7, 0.71]}, False),
        ({"after": [400, 402], "joint": [300, 301]}, {"after": [0.7, 0.71], "joint": [0.5, 0.51]}, True),
        ({"after": [400, 402], "joint": [400, 402]}, {"after": [0.7, 0.71], "joint": [0.7, 0.71]}, True),
        ({"after": [400], "joint": [300]}, {"after": [0.7], "joint": [0.7]}, None),
    ],
)
def test_two_stages_lose_if_one_has_less_rate_for_no_less_quality(rates, stoi, expected):
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


@pytest.mark.parametrize(("sampled", "expected"), [([0.6, 0.61], True), ([0.9, 0.91], False)])
def test_at_a_rate_by_kl_samples_of_the_posterior_are_heard(sampled, expected):
    cells: dict[str, Any] = {}
    for seed, value in enumerate(sampled):
        target = {"measure": "entropy", "bits": 400}
        known = {"test": {"metrics": {"stoi": 0.7 + seed / 100}}}
        cells |= record(f"compare-entropy-400-vq-{seed}", known, bottleneck="vq", target=target)
        target = {"measure": "kl", "bits": 400}
        heard = {"test": {"metrics": {"stoi": 1.5 - value}, "sampled": {"stoi": value}}}
        cells |= record(f"compare-kl-400-gaussian-{seed}", heard, bottleneck="gaussian", target=target)
    results = {"cells": cells, "plan": {"compare": {"points": {"entropy": [400], "kl": [400]}}}}
    assert trainings.vq_keeps_the_most(results)[0] is expected


Way = tuple[str, str]
"""A schedule, and soft or hard."""


def schedule_results(norms: dict[Way, list[float]], gaps: dict[Way, list[float]]) -> dict[str, Any]:
    """Gradient norms of all seeds of each schedule and way, and what hardening costs them at the end."""
    cells: dict[str, Any] = {}
    ends = {"constant 1": 1.0, "2 to 0.1": 0.11, trainings.LOW: 0.1}
    for (schedule, way), values in norms.items():
        for seed, norm in enumerate(values):
            gap = gaps.get((schedule, way), [0.0] * len(values))[seed]
            train = {"gradient_norm": [9.0, norm, norm], "temperature": [2.0, ends[schedule]]}
            curves = {"train": train, "valid": {"relaxed": [1.0], "hardened": [1.0 + gap]}}
            name = f"schedule-{schedule}-{way}-{seed}"
            cells |= record(name, {"curves": curves}, schedule=schedule, hard=way == "hard")
    return {"cells": cells, "plan": {"schedules": {"settings": ends}}}


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [([5.0, 5.1], [6.0, 6.1], True), ([5.0, 5.1], [2.0, 2.1], False), ([5.0], [6.0], None)],
)
def test_a_low_temperature_is_compared_with_schedules_that_end_high_soft_and_hard(soft, hard, expected):
    seeds = len(soft)
    norms = {("constant 1", way): [2.0, 2.1][:seeds] for way in ("soft", "hard")}
    norms |= {("2 to 0.1", way): [50.0] * seeds for way in ("soft", "hard")}
    norms |= {(trainings.LOW, "soft"): soft, (trainings.LOW, "hard"): hard}
    assert trainings.low_temperature_is_unstable(schedule_results(norms, {}))[0] is expected


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [([0.5, 0.6], [-0.1, 0.0], True), ([0.5, 0.6], [0.5, 0.6], False), ([0.0, 0.01], [-0.4, -0.3], False)],
)
def test_a_relaxation_is_exploited_if_hardening_costs_those_most_who_saw_it(soft, hard, expected):
    norms = {(schedule, way): [1.0, 1.0] for schedule in ("constant 1", trainings.LOW) for way in ("soft", "hard")}
    gaps = {("constant 1", "soft"): soft, ("constant 1", "hard"): hard}
    assert trainings.relaxation_is_exploited(schedule_results(norms, gaps))[0] is expected


# --- whole results ---------------------------------------------------------------------------------------------


def test_verdicts_are_those_that_the_results_give(results):
    assert [asdict(verdict) for verdict in verdicts(results)] == results["verdicts"]
    assert len(results["verdicts"]) == len(CLAIMS)


def test_results_survive_being_published(results):
    again = json.loads(published(results))
    assert again["cells"] == results["cells"]
    assert again["verdicts"] == results["verdicts"]
    assert report.markdown(again, with_figures=False) == report.markdown(results, with_figures=False)


def test_report_shows_every_statement_figure_and_command(results, tmp_path):
    report.write_report(results, tmp_path)
    text, page = (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()
    for verdict in results["verdicts"]:
        assert verdict["text"] in text
        assert verdict["command"] in text
    for section in report.sections(results):
        assert f"## {section.title}\n" in text
        assert f'<h2 id="{section.name}">' in page
        assert all(table.markdown() in text for table in section.tables)
    for name in report.FIGURES:
        assert (tmp_path / f"figures/{name}.svg").stat().st_size > 2000
        assert f'id="figure-{name}"' in page
    assert {*re.findall(r'href="#figure-(\w+)"', page)} <= {*report.FIGURES}
    assert page.count('href="#figure-') == len(CLAIMS)


def test_a_missing_cell_makes_its_experiment_not_run_and_no_other(results):
    cells = {name: cell for name, cell in results["cells"].items() if not name.startswith("kmeans")}
    partial = results | {"cells": cells}
    found = {verdict.experiment for verdict in verdicts(partial) if verdict.verdict == "not run"}
    assert found == {"k-means"}
    text = report.markdown(partial, with_figures=True)
    assert "Not run: 1 of 1 cells are left." in text
    assert "figures/kmeans.svg" not in text
    assert "figures/stages.svg" in text


def test_a_training_that_failed_is_counted_and_breaks_nothing(results):
    cells = json.loads(json.dumps(results["cells"]))
    for name, cell in cells.items():
        if name.startswith(("compare-", "schedule-constant", "context-vq", "commitment-0-")):
            cell["result"] = {"failed": "loss is nan at step 3", "context": cell["result"].get("context", 0)}
    broken = results | {"cells": cells}
    assert "1 of 1" in report.markdown(broken, with_figures=False)
    assert len(verdicts(broken)) == len(CLAIMS)
    assert report.figures(broken)


def test_table_goes_between_the_markers():
    once = with_table(f"# Title\n\n{BEGIN}\nold\n{END}\n\nrest\n", "| new |")
    assert once == f"# Title\n\n{BEGIN}\n\n| new |\n\n{END}\n\nrest\n"
    assert with_table(once, "| new |") == once
    with pytest.raises(ValueError, match="expected the lines"):
        with_table("no markers", "")


def test_a_table_escapes_bars():
    assert Table(["a", "b"], [["x|y", "1"]]).markdown().splitlines()[-1] == r"| x\|y | 1 |"


def test_lecture_shows_verdicts_and_figures_of_what_was_run_and_says_what_was_not(results):
    lecture = LECTURE.read_text(encoding="utf-8")
    told = with_findings(lecture, results)
    assert all(f"](figures/{name}.svg)" in told for name in report.FIGURES)
    assert all(claim.text in told for claim in CLAIMS)
    assert with_findings(told, results) == told
    empty = with_findings(told, None)
    assert empty.count("Not run yet: ") == len({claim.experiment for claim in CLAIMS})
    assert "figures/" not in empty


def test_lines_of_code_in_the_lecture_are_those_of_the_files():
    text = LECTURE.read_text(encoding="utf-8")
    files = {link: (LECTURE.parent / link).resolve().read_text() for link in re.findall(r"\]\(([./a-z_]+\.py)\)", text)}
    code = "".join("".join(source.split()) for source in files.values())
    quoted = [line for line in re.findall(r"`([^`]+)`", text.replace("\n", " ")) if " = " in line or "return " in line]
    quoted += re.findall(r"`(loss=[^`]+)`", text)
    assert len(quoted) >= 11
    for line in quoted:
        assert "".join(line.split()) in code, line


def test_stored_results_give_the_stored_verdicts_and_texts():
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    if "cells" not in stored:
        assert with_findings(LECTURE.read_text(encoding="utf-8"), None) == LECTURE.read_text(encoding="utf-8")
        pytest.skip("results.json is of the bench before this one")
    assert [asdict(verdict) for verdict in verdicts(stored)] == stored["verdicts"]
    lecture = LECTURE.read_text(encoding="utf-8")
    assert with_findings(lecture, stored) == lecture
    assert (STORED.parent / "RESULTS.md").read_text(encoding="utf-8") == report.markdown(stored, with_figures=False)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    if all(verdict["verdict"] != "not run" for verdict in stored["verdicts"]):
        assert with_table(readme, comparison(stored).markdown()) == readme
