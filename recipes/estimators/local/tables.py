"""Tables of the report and of the README, from results.json alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from audiovq.config import GumbelConfig

Results = dict[str, Any]

LATENTS = {
    "none": "continuous",
    "gaussian": "continuous, random",
    "gumbel": "discrete, random",
    "reinforce": "discrete, random",
    "vq": "discrete",
}
MECHANISMS = {
    "none": "latents pass unchanged",
    "gaussian": "mean + noise, KL to N(0, I)",
    "gumbel": "categorical posterior, KL to uniform",
    "reinforce": "categorical posterior, KL to uniform",
    "vq": "nearest code, commitment loss",
}
ESTIMATORS = {
    "none": "exact",
    "gaussian": "reparameterisation",
    "gumbel": "Gumbel-Softmax, straight-through",
    "reinforce": "score function, leave-one-out",
    "vq": "straight-through",
}


@dataclass(frozen=True)
class Table:
    """Text for a table; the first column and `words` more are left-aligned, all others hold figures."""

    columns: list[str]
    rows: list[list[str]]
    words: int = 0

    def markdown(self) -> str:
        align = ["---" if i <= self.words else "---:" for i in range(len(self.columns))]
        lines = [self.columns, align, *self.rows]
        escaped = [[cell.replace("|", r"\|") for cell in line] for line in lines]
        return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def per_bottleneck(results: Results) -> dict[str, list[dict[str, Any]]]:
    """Runs of part 1 by bottleneck."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in results["runs"]:
        found.setdefault(run["bottleneck"], []).append(run)
    return found


def values_of(runs: Sequence[dict[str, Any]], part: str, name: str) -> list[float]:
    """A figure of all runs that have it."""
    return [run[part][name] for run in runs if not run["failed"] and run[part][name] is not None]


def mean_of(runs: Sequence[dict[str, Any]], part: str, name: str) -> float | None:
    """Its mean over seeds."""
    values = values_of(runs, part, name)
    return statistics.fmean(values) if values else None


def over_seeds(runs: Sequence[dict[str, Any]], part: str, name: str, decimals: int) -> str:
    """Mean and, of several seeds, standard deviation."""
    values = values_of(runs, part, name)
    if not values:
        return "-"
    text = f"{statistics.fmean(values):.{decimals}f}"
    return text if len(values) < 2 else f"{text} ± {statistics.stdev(values):.{decimals}f}"


def comparison(results: Results) -> Table:
    """The README's table: each bottleneck in a line."""
    columns = ["bottleneck", "latent", "gradient", "gradient SNR", "mel distance ↓", "STOI ↑", "bit/s", "shuffle gap ↑"]
    rows = [
        [
            f"`{kind}`",
            LATENTS[kind],
            ESTIMATORS[kind],
            gradient_snr(results, kind),
            over_seeds(runs, "metrics", "mel_distance", 3),
            over_seeds(runs, "metrics", "stoi", 3),
            rate(runs),
            over_seeds(runs, "gap", "gap", 3),
        ]
        for kind, runs in per_bottleneck(results).items()
    ]
    return Table(columns, rows, words=2)


def mechanisms(results: Results) -> Table:
    """What the bottlenecks are, and how good their gradients."""
    columns = ["bottleneck", "latent", "mechanism", "gradient estimator", "bias", "variance", "SNR", "s a draw"]
    gradients = {row["bottleneck"]: row["gradient"] for row in results["gradients"]}
    rows = []
    for kind in per_bottleneck(results):
        own = gradients.get(kind)
        figures = [f"{own['variance']:.3g}", gradient_snr(results, kind), f"{own['seconds']:.3f}"] if own else ["-"] * 3
        rows.append([f"`{kind}`", LATENTS[kind], MECHANISMS[kind], ESTIMATORS[kind], bias(results, kind), *figures])
    return Table(columns, rows, words=3)


def reconstruction(results: Results) -> Table:
    """Quality, rate and stability."""
    columns = ["bottleneck", "mel distance ↓", "STOI ↑", "PESQ-WB ↑", "loss ↓", "bit/s", "failed runs", "s a run"]
    rows = [
        [
            f"`{kind}`",
            over_seeds(runs, "metrics", "mel_distance", 3),
            over_seeds(runs, "metrics", "stoi", 3),
            over_seeds(runs, "metrics", "pesq_wb", 2),
            over_seeds(runs, "gap", "true", 3),
            rate(runs),
            f"{sum(bool(run['failed']) for run in runs)} of {len(runs)}",
            f"{statistics.fmean(seconds):.0f}" if (seconds := [r["seconds"] for r in runs if not r["failed"]]) else "-",
        ]
        for kind, runs in per_bottleneck(results).items()
    ]
    return Table(columns, rows)


def collapse(results: Results) -> Table:
    """Use of the latents."""
    columns = [
        "bottleneck",
        "KL",
        "information",
        "perplexity",
        "codes used",
        "active units",
        "gap: shuffled",
        "constant",
    ]
    rows = []
    for kind, runs in per_bottleneck(results).items():
        constant = [run["gap"]["constant"] - run["gap"]["true"] for run in runs if not run["failed"]]
        rows.append(
            [
                f"`{kind}`",
                over_seeds(runs, "usage", "kl", 2) + (" (log K)" if kind == "vq" else ""),
                over_seeds(runs, "usage", "information", 2),
                over_seeds(runs, "usage", "perplexity", 1),
                over_seeds(runs, "usage", "codes_used", 0),
                over_seeds(runs, "usage", "active_units", 0),
                over_seeds(runs, "gap", "gap", 3),
                f"{statistics.fmean(constant):.3f}" if constant else "-",
            ]
        )
    return Table(columns, rows)


def estimators(results: Results) -> Table:
    """Gradient estimators of the same categorical posterior."""
    columns = [
        "estimator",
        "bias",
        "(if unbiased)",
        "cosine",
        "variance",
        "SNR",
        "encoder: variance",
        "s a draw",
        "x s",
    ]
    rows = []
    for row in results["estimators"]:
        one, whole = row["one"], row["all"]
        figures = [one["bias"], one["bias_noise"], one["cosine"], one["variance"], one["snr"], whole["variance"]]
        figures += [whole["seconds"], whole["variance_seconds"]]
        rows.append([row["estimator"], *("-" if figure is None else f"{figure:.3g}" for figure in figures)])
    return Table(columns, rows)


def contexts(results: Results) -> Table:
    """Decoders that see the past."""
    columns = ["bottleneck", "context", "-log p(x|z)", "KL", "information", "perplexity", "gap: shuffled", "constant"]
    rows = []
    for row in sorted(results["contexts"], key=lambda row: row["bottleneck"]):
        if row["failed"]:
            rows.append([f"`{row['bottleneck']}`", str(row["context"]), "failed", *["-"] * 5])
            continue
        gap, usage = row["gap"], row["usage"]
        figures = [gap["true"], usage["kl"], usage["information"], usage["perplexity"], gap["gap"]]
        figures.append(gap["constant"] - gap["true"])
        texts = ["-" if figure is None else f"{figure:.2f}" for figure in figures]
        rows.append([f"`{row['bottleneck']}`", str(row["context"]), *texts])
    return Table(columns, rows)


def rate(runs: Sequence[dict[str, Any]]) -> str:
    """Bits a second: of codes coded by their frequency, else of the KL divergence, else without bound."""
    for name, mark in (("codes", ""), ("kl", " (KL)")):
        if values_of(runs, "bits_per_second", name):
            return over_seeds(runs, "bits_per_second", name, 0) + mark
    return "unbounded"


def gradient_snr(results: Results, kind: str) -> str:
    """Signal-to-noise ratio of the encoder's gradient, at the bottleneck's own parameters."""
    gradient = next((row["gradient"] for row in results["gradients"] if row["bottleneck"] == kind), None)
    if gradient is None:
        return "-"
    if gradient["snr"] is None or gradient["snr"] > 1e6:
        return "no noise"
    return f"{gradient['snr']:.2g}" if gradient["snr"] else "about 0"


def bias(results: Results, kind: str) -> str:
    """Bias of the estimator that training uses: measured where all codes can be tried, otherwise from theory."""
    if kind in ("none", "gaussian"):
        return "0 (theory)"
    if kind == "vq":
        return "no true gradient"
    rows = [row for row in results["estimators"] if row["bottleneck"]["type"] == kind]
    if kind == "reinforce":
        chosen = next(row for row in rows if row["bottleneck"]["baseline"] == "leave_one_out")
    else:
        end = GumbelConfig().end_temperature  # Where training arrives.
        hard = [row for row in rows if row["bottleneck"]["hard"]]
        chosen = min(hard, key=lambda row: abs(row["bottleneck"]["end_temperature"] - end))
    return f"{chosen['one']['bias']:.2g} (noise {chosen['one']['bias_noise']:.2g})"
