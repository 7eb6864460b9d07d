"""Adopt the results of a full run: results.json and RESULTS.md beside run.sh, and the table of the README."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from report import markdown
from results import Results, is_complete, read_results
from tables import comparison
from verdicts import as_data

from audiovq.files import write_text

RECIPE = Path(__file__).resolve().parents[1]
README = RECIPE.parents[1] / "README.md"
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
    if is_complete(results, "rate-quality"):  # The table of the run before stays until there is another.
        write_text(README, with_table(README.read_text(encoding="utf-8"), comparison(results).markdown()))


if __name__ == "__main__":
    main()
