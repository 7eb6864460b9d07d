"""Adopt the results of a full run: results.json, RESULTS.md, figures and what LECTURE.md says of them, and the table of
the README."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pictures import figures
from plan import EXPERIMENTS
from report import markdown, section_of
from results import Results, is_complete, read_results
from tables import comparison
from verdicts import as_data, verdicts

from audiovq.files import write_text

RECIPE = Path(__file__).resolve().parents[1]
README, LECTURE = RECIPE.parents[1] / "README.md", RECIPE / "LECTURE.md"
BEGIN, END = "<!-- bottlenecks: begin, written by recipes/estimators/local/publish.py -->", "<!-- bottlenecks: end -->"


def with_table(readme: str, table: str) -> str:
    """A README with this table between its markers.

    Raises:
        ValueError: a marker is missing.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"expected the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def with_findings(lecture: str, results: Results | None) -> str:
    """The lecture with the figures and verdicts of each experiment between its markers.

    Args:
        results: None: nothing has been run.
    """
    for experiment in EXPERIMENTS:
        begin, end = f"<!-- {experiment}: begin -->", f"<!-- {experiment}: end -->"
        before, found, rest = lecture.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"expected the lines {begin} and {end}")
        lecture = f"{before}{begin}\n{findings(experiment, results)}\n{end}{after}"
    return lecture


def findings(experiment: str, results: Results | None) -> str:
    """Figures and verdicts of one experiment in Markdown."""
    command = f"`recipes/estimators/run.sh --only {experiment}`"
    if results is None or not is_complete(results, experiment):
        return f"Not run yet: {command}."
    parts = [f"![{caption}](figures/{name}.svg)" for name, caption in section_of(results, experiment).figures]
    own = [verdict for verdict in verdicts(results) if verdict.experiment == experiment]
    parts.append("\n".join(f"- {verdict.text} **{verdict.verdict.capitalize()}**" for verdict in own))
    return "\n\n".join([*parts, f"By which figures: [RESULTS.md](RESULTS.md). Again: {command}."])


def published(results: Results) -> str:
    """Results as the repository keeps them: a cell a line, with the verdicts."""
    cells = results["cells"]
    rest = {name: part for name, part in results.items() if name not in ("cells", "verdicts")}
    head = json.dumps(rest | {"verdicts": as_data(results)}, ensure_ascii=False, allow_nan=False)[:-1]
    lines = [
        f"{json.dumps(name)}: {json.dumps(cell, ensure_ascii=False, allow_nan=False)}" for name, cell in cells.items()
    ]
    return f'{head}, "cells": {{\n' + ",\n".join(lines) + "\n}}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = RECIPE / "exp/full/results.json"
    parser.add_argument("results", type=Path, nargs="?", default=default, help="(default: %(default)s)")
    results = read_results(parser.parse_args().results)
    write_text(RECIPE / "results.json", published(results))
    write_text(RECIPE / "RESULTS.md", markdown(results, with_figures=False))
    for name, svg in figures(results).items():
        write_text(RECIPE / "figures" / f"{name}.svg", svg)
    write_text(LECTURE, with_findings(LECTURE.read_text(encoding="utf-8"), results))
    if is_complete(results, "rate-quality"):  # The table of the run before stays until there is another.
        write_text(README, with_table(README.read_text(encoding="utf-8"), comparison(results).markdown()))


if __name__ == "__main__":
    main()
