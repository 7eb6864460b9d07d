"""Adopt the results of a full run: results.json and RESULTS.md beside run.sh, and the table of the README."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from report import markdown, read_results
from tables import comparison

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = RECIPE / "exp/full/results.json"
    parser.add_argument("results", type=Path, nargs="?", default=default, help="(default: %(default)s)")
    results = read_results(parser.parse_args().results)
    readme = with_table(README.read_text(encoding="utf-8"), comparison(results).markdown())
    write_text(RECIPE / "results.json", json.dumps(results, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(RECIPE / "RESULTS.md", markdown(results, with_figures=False))
    write_text(README, readme)


if __name__ == "__main__":
    main()
