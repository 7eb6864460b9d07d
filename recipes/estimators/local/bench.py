"""The stages of the bench: train the grid, train the decoders with context, measure, report."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from grid import Bench, Run, train

from audiovq.errors import AudioVQError
from audiovq.files import write_json


def train_autoencoder(run: Run) -> float:
    """Train one autoencoder, as `audiovq train` does; returns the best validation loss."""
    from audiovq.training.autoencoder import train_autoencoder

    progress = train_autoencoder(run.config, run.folder, "cpu")
    assert progress.best_loss is not None
    return progress.best_loss


def stage_train(bench: Bench) -> None:
    train(bench.runs(), train_autoencoder)


def stage_context(bench: Bench) -> None:
    from context import train_context

    train(bench.context_runs(), train_context)


def stage_measure(bench: Bench) -> None:
    from measure import results

    write_json(bench.exp / "results.json", results(bench))


def stage_report(bench: Bench) -> None:
    from report import write_report

    write_report(bench.exp)


STAGES = {"train": stage_train, "context": stage_context, "measure": stage_measure, "report": stage_report}


def main() -> int:
    parser = argparse.ArgumentParser(description="A stage of the bench; run.sh calls them in turn.")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--grid", type=Path, required=True, help="what to train and measure")
    parser.add_argument("--config", type=Path, required=True, help="base config of all models")
    parser.add_argument("--exp", type=Path, required=True, help="folder of all results")
    args = parser.parse_args()
    try:
        STAGES[args.stage](Bench.read(args.grid, args.config, args.exp))
    except AudioVQError as error:
        print(f"bench.py: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, BrokenProcessPool):
        print("bench.py: stopped; the same command goes on", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
