"""The bench: do the cells of some or all experiments, collect what they found, and report."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from cells import Bench, run_cells
from plan import EXPERIMENTS
from results import collect

from audiovq.errors import AudioVQError, Stopped
from audiovq.files import write_json

RECIPE = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The bench; run.sh calls it.")
    parser.add_argument("--plan", type=Path, default=RECIPE / "conf/plan/full.yaml", help="what to do")
    parser.add_argument("--config", type=Path, default=RECIPE / "conf/bench.yaml", help="the model")
    parser.add_argument("--data", type=Path, default=RECIPE.parent / "mini/data", help="speech, a folder a speaker")
    parser.add_argument("--exp", type=Path, default=RECIPE / "exp/full", help="folder of all that is made")
    parser.add_argument("--only", choices=EXPERIMENTS, action="append", help="an experiment; may be given again")
    parser.add_argument("--hours", type=float, default=4.0, help="no cell begins later than that")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="cells at a time; 0: in this process")
    parser.add_argument("--list", action="store_true", help="say what would be done, and how long it takes")
    parser.add_argument("--no-report", action="store_true", help="write results.json alone")
    parser.add_argument("--no-cells", action="store_true", help="report what is done already")
    args = parser.parse_args(arguments)
    try:
        bench = Bench.read(args.plan, args.config, args.data, args.exp)
        if args.list:
            return show(bench, args.only or EXPERIMENTS)
        # Should time run out, the comparison is done.
        cells = [] if args.no_cells else bench.cells.wanted(args.only or ("rate-quality", *EXPERIMENTS))
        left = run_cells(bench, cells, args.workers, 3600 * args.hours)
        tell(bench, args.only or EXPERIMENTS, not args.no_report)
        if left:
            print(f"bench.py: {len(left)} cells are left, first {left[0]}; the same command goes on", file=sys.stderr)
        return 1 if left else 0
    except Stopped as error:
        print(f"bench.py: {error}", file=sys.stderr)
        return 1
    except AudioVQError as error:
        print(f"bench.py: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, BrokenProcessPool):
        print("bench.py: stopped; the same command goes on", file=sys.stderr)
        return 1


def tell(bench: Bench, experiments: Sequence[str], report: bool) -> None:
    """Write results and report, and print verdicts."""
    from verdicts import as_data

    results = collect(bench)
    judged = as_data(results)
    write_json(bench.exp / "results.json", results | {"verdicts": judged})
    if report:
        from report import write_report

        write_report(results, bench.exp)
    for verdict in judged:
        if verdict["experiment"] in experiments:
            print(f"{verdict['verdict']}: {verdict['text']} {verdict['evidence']}")


def show(bench: Bench, experiments: Sequence[str]) -> int:
    """Print the cells of experiments and their CPU seconds."""
    cells = bench.cells.wanted(experiments)
    for cell in cells:
        done = "done" if bench.record(cell.name) else "to do"
        print(f"{cell.seconds:6.0f} s  {done:5}  {cell.name}")
    left = sum(cell.seconds for cell in cells if not bench.record(cell.name))
    print(f"{len(cells)} cells, {sum(cell.seconds for cell in cells) / 60:.0f} CPU minutes, {left / 60:.0f} to do")
    return 0


if __name__ == "__main__":
    sys.exit(main())
