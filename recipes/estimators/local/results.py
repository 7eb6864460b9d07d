"""The results of a bench as plain data, and looking things up in them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cells import Bench, conditions

Results = dict[str, Any]
ONE_SEED = "one seed does not show how much seeds differ"
SEEDS_DIFFER = "seeds differ by as much"


def collect(bench: Bench) -> Results:
    """All cells that are done, with what they were made on."""
    records = {name: found for name in bench.cells.cells if (found := bench.record(name)) is not None}
    cells = {
        name: {part: found[part] for part in ("kind", "settings", "made", "result")} for name, found in records.items()
    }
    return {
        "conditions": conditions(),
        "plan": bench.plan.model_dump(),
        "planned": {name: cell.seconds for name, cell in bench.cells.cells.items()},
        "experiments": dict(bench.cells.experiments),
        "cells": cells,
    }


def read_results(path: Path) -> Results:
    """Results from a file."""
    return json.loads(path.read_text(encoding="utf-8"))


def is_complete(results: Results, experiment: str) -> bool:
    """Whether all cells of an experiment are there."""
    return all(name in results["cells"] for name in results["experiments"][experiment])


def records(results: Results, prefix: str, **settings: Any) -> list[dict[str, Any]]:
    """Records of the cells whose names begin so and which have these settings, in the order of the plan."""
    return [
        record
        for name, record in results["cells"].items()
        if name.startswith(prefix) and all(record["settings"].get(key) == value for key, value in settings.items())
    ]


def found(records: Sequence[dict[str, Any]], *path: str) -> list[float]:
    """A figure of all results that have it."""
    values = []
    for record in records:
        value: Any = record["result"]
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            values.append(value)
    return values


def quality(records: Sequence[dict[str, Any]], measure: str, name: str) -> list[float]:
    """A metric of the test voice's reconstructions from what has the rate: the mode has the entropy of its codes, and
    what a KL divergence bounds is a sample of the posterior, not its mean; of `vq` the two are the same."""
    values = []
    for record in records:
        heard = record["result"].get("test", {})
        sampled = measure == "kl" and "sampled" in heard
        values += found([record], "test", "sampled" if sampled else "metrics", name)
    return values


def failures(records: Sequence[dict[str, Any]]) -> int:
    """Trainings that ended without a finite loss."""
    return sum(bool(record["result"]["failed"]) for record in records)


def mean(values: Sequence[float]) -> float | None:
    """The mean, if there are any."""
    return statistics.fmean(values) if values else None


def spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds; 0 of one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def difference(a: Sequence[float], b: Sequence[float]) -> int | None:
    """Whether the mean of `a` over seeds is above (1) or below (-1) that of `b` by Welch's t-test at 5 %; 0 if neither,
    and None if there is no second seed to tell how much seeds differ."""
    if min(len(a), len(b)) < 2:
        return None
    squares = [statistics.variance(own) / len(own) for own in (a, b)]
    gap, error = statistics.fmean(a) - statistics.fmean(b), math.sqrt(sum(squares))
    if error > 0:
        from scipy.special import stdtrit

        parts = [square**2 / (len(own) - 1) for square, own in zip(squares, (a, b), strict=True)]
        error *= float(stdtrit(sum(squares) ** 2 / sum(parts), 0.975))
    return 0 if abs(gap) <= error else (1 if gap > 0 else -1)


def decided(signs: Sequence[int | None]) -> bool | None:
    """What becomes of a claim whose parts each hold at a sign of 1: it fails by one that is clearly otherwise, and is
    left open by one that seeds, or their lack, do not tell."""
    known = [sign for sign in signs if sign is not None]
    if -1 in known:
        return False
    return True if signs and len(known) == len(signs) and 0 not in known else None


def why_open(signs: Sequence[int | None]) -> str:
    """Why signs leave a claim open."""
    return ONE_SEED if None in signs else SEEDS_DIFFER


def judged(signs: Sequence[int | None], text: str) -> tuple[bool | None, str]:
    """What signs decide, and the evidence; why it is open behind it."""
    holds = decided(signs)
    return holds, text if holds is not None else f"{text}; {why_open(signs)}"


def apart(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The largest less the smallest mean of some groups of seeds, and how likely chance gives that (one-way ANOVA)."""
    from scipy.stats import f_oneway

    means = [statistics.fmean(own) for own in groups]
    return max(means) - min(means), float(f_oneway(*groups).pvalue)


def text_of(values: Sequence[float], digits: int = 3) -> str:
    """Mean and, of several seeds, standard deviation; `not run` of none."""
    if not values:
        return "not run"
    shown = _plain(statistics.fmean(values), digits)
    return shown if len(values) < 2 else f"{shown} ± {_plain(statistics.stdev(values), 2)}"


def _plain(value: float, digits: int) -> str:
    """A figure with so many significant digits, or more for those before the point."""
    return f"{value:.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"
