"""Verdicts follow from figures: stored results give the stored ones, in every form in which they are shown."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import report
from publish import BEGIN, END, LECTURE, published, with_findings, with_table
from results import difference, text_of
from tables import Table, comparison
from training import setting_for
from verdicts import CLAIMS, verdicts

ROOT = Path(__file__).parents[3]
STORED = ROOT / "recipes/estimators/results.json"


# --- seeds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1.0, 1.1, 0.9], [2.0, 2.1, 1.9], -1),
        ([2.0, 2.1, 1.9], [1.0, 1.1, 0.9], 1),
        ([1.0, 3.0, 2.0], [1.5, 2.5, 2.2], 0),
        ([1.0, 1.1, 0.9], [1.2, 1.3, 1.1], 0),  # 2.4 standard errors: with three seeds each, too few
        ([0.5, 0.5], [0.4, 0.4], 1),
        ([1.0], [2.0, 2.1], None),
        ([], [], None),
    ],
)
def test_a_difference_counts_when_a_t_test_finds_it(a, b, expected):
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
    falls_again = [(4, 96.0), (16, 146.0), (64, 149.0), (512, 131.0)]
    assert setting_for(falls_again, 140.0) == pytest.approx(14, abs=0.5)
    assert setting_for(falls_again[1:], 140.0) == pytest.approx(175, abs=1)


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
    counts = [report.markdown(each, with_figures=False).count("1 of 1") for each in (broken, results)]
    assert counts[0] > counts[1]
    assert [own.text for own in verdicts(broken)] == [claim.text for claim in CLAIMS]
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
    """Those of a full run, from which verdicts, report, lecture and README follow."""
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    assert stored["cells"].keys() == stored["planned"].keys()
    assert len(stored["plan"]["seeds"]) >= 3
    assert {"commit", "processor"} <= stored["conditions"].keys()
    assert [asdict(verdict) for verdict in verdicts(stored)] == stored["verdicts"]
    assert "not run" not in {verdict["verdict"] for verdict in stored["verdicts"]}
    assert (STORED.parent / "RESULTS.md").read_text(encoding="utf-8") == report.markdown(stored, with_figures=False)
    lecture = LECTURE.read_text(encoding="utf-8")
    assert with_findings(lecture, stored) == lecture
    pictures = {path.stem for path in (STORED.parent / "figures").glob("*.svg")}
    assert pictures == report.FIGURES.keys()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_table(readme, comparison(stored).markdown()) == readme


def test_vq_of_the_full_run_is_good_enough_to_be_listened_to():
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    own = [
        cell["result"]["test"]["metrics"]["stoi"]
        for name, cell in stored["cells"].items()
        if name.startswith("curve-vq-")
    ]
    assert max(own) > 0.75
