"""Verdicts on gradients: experiments 1 to 4."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from results import Results

UNBIASED = 3
"""Standard errors that the mean of an unbiased estimator may be away from the exact gradient."""
FEW = 100
"""Draws below which their own spread is not known well enough to judge by."""
FAR = 10
"""Factor between variances from which on one is far below the other."""
Finding = tuple[bool | None, str]


def rows_of(results: Results, kind: str) -> list[dict[str, Any]]:
    """Estimators of the gradient that a cell compared."""
    return results["cells"][f"gradients-{kind}"]["result"]["rows"]


def unbiased(rows: Sequence[dict[str, Any]]) -> Finding:
    """Whether means are where the exact gradient is; estimators whose noise exceeds it cannot tell."""
    told = [row for row in rows if row["one"]["bias_noise"] < 1]
    ratios = {row["estimator"]: row["one"]["bias"] / max(1e-12, row["one"]["bias_noise"]) for row in rows}
    text = "distance from the exact gradient in standard errors: "
    text += ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    if min(row["one"]["draws"] for row in rows) < FEW:
        return None, f"{text}; too few draws to tell"
    if not told:
        return None, f"{text}; the noise exceeds the gradient for all of them"
    return (
        max(ratios[row["estimator"]] for row in told) <= UNBIASED,
        f"{text}; of the exact gradient's norm the noise "
        f"is {min(row['one']['bias_noise'] for row in told):.2g} at least",
    )


def reparameterisation_is_unbiased(results: Results) -> Finding:
    return unbiased(rows_of(results, "gaussian")[:1])


def reparameterisation_has_low_variance(results: Results) -> Finding:
    own, *others = rows_of(results, "gaussian")
    ratios = {row["estimator"]: row["all"]["variance"] / own["all"]["variance"] for row in others}
    text = "variance of the encoder's gradient over that of the reparameterised one: "
    return min(ratios.values()) > FAR, text + ", ".join(f"{name} {ratio:.3g}" for name, ratio in ratios.items())


def score_function_is_unbiased(results: Results) -> Finding:
    return unbiased(rows_of(results, "reinforce"))


def score_function_has_high_variance(results: Results) -> Finding:
    score, *relaxed = rows_of(results, "gumbel")
    ratios = [score["all"]["variance_seconds"] / row["all"]["variance_seconds"] for row in relaxed]
    text = f"variance times seconds of {score['estimator']} over that of "
    text += ", ".join(f"{row['estimator']} {ratio:.3g}" for row, ratio in zip(relaxed, ratios, strict=True))
    return min(ratios) > 1, text


def baselines_help(results: Results) -> Finding:
    rows = {(row["bottleneck"]["baseline"], row["bottleneck"]["samples"]): row for row in rows_of(results, "reinforce")}
    most = max(samples for _, samples in rows)
    pairs = {
        "moving average, 1 sample": (rows["none", 1], rows["moving_average", 1]),
        f"leave-one-out, {most} samples": (rows["none", most], rows["leave_one_out", most]),
    }
    ratios = {name: plain["all"]["variance"] / own["all"]["variance"] for name, (plain, own) in pairs.items()}
    text = "variance without a baseline over that with one: "
    return min(ratios.values()) > 1, text + ", ".join(f"{name} {ratio:.3g}" for name, ratio in ratios.items())


def samples_help(results: Results) -> Finding:
    """By the slope of log variance over log S. The baseline gets better with S, too, so that theory says 1 / (S - 1): a
    slope of -1.3 from 2 to 16 samples."""
    rows = [row for row in rows_of(results, "reinforce") if row["bottleneck"]["baseline"] == "leave_one_out"]
    points = [(math.log(row["bottleneck"]["samples"]), math.log(row["all"]["variance"])) for row in rows]
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    text = ", ".join(f"S = {row['bottleneck']['samples']}: {row['all']['variance']:.3g}" for row in rows)
    return -1.5 < slope < -0.5, f"variance of the encoder's gradient {text}; it goes as S to the power of {slope:.2f}"


def gumbel_trades_bias(results: Results) -> Finding:
    rows = [row for row in rows_of(results, "gumbel")[1:] if not row["bottleneck"]["hard"]]  # Temperatures fall.
    biases = [max(0.0, row["one"]["bias"] ** 2 - row["one"]["bias_noise"] ** 2) ** 0.5 for row in rows]
    variances = [row["one"]["variance"] for row in rows]
    temperatures = [row["bottleneck"]["end_temperature"] for row in rows]
    text = "relaxed samples, bias less its noise and variance: "
    named = zip(temperatures, biases, variances, strict=True)
    text += ", ".join(f"at {t:g} {bias:.3g} and {variance:.3g}" for t, bias, variance in named)
    told = [row["one"]["bias"] > 2 * row["one"]["bias_noise"] for row in rows]
    rises = all(a < b for a, b in pairwise(variances))
    # Biases that noise hides are small; they bound the rest from below only.
    known = [bias for bias, clear in zip(biases, told, strict=True) if clear]
    if not told[0] or len(known) < 2:
        return None, f"{text}; the noise hides the biases"
    return rises and all(a > b for a, b in pairwise(known)), text


def straight_through_has_no_noise(results: Results) -> Finding:
    own = rows_of(results, "vq")[0]["all"]
    relative = own["variance"] / max(1e-30, own["squared_norm"])
    return relative < 1e-6, f"variance over squared norm of the encoder's gradient: {relative:.2g}"


def straight_through_is_biased(results: Results) -> Finding:
    rows = rows_of(results, "vq")[1:]
    text = "; ".join(
        f"temperature {row['temperature']:g} (entropy {row['entropy']:.2g} nats): bias {row['one']['bias']:.3g} "
        f"(noise {row['one']['bias_noise']:.2g}), cosine {row['one']['cosine']:.2f}, of VQ itself "
        f"{row['deterministic']['bias']:.3g}, cosine {row['deterministic']['cosine']:.2f}"
        for row in rows
    )
    told = [
        row for row in rows if row["one"]["bias_noise"] < 0.5 * row["one"]["bias"] or row["one"]["bias_noise"] < 0.1
    ]
    if not told:
        return None, f"{text}; the noise hides the bias"
    biased = [row["one"]["bias"] > UNBIASED * row["one"]["bias_noise"] for row in told]
    return all(biased), f"{text} (1 is the exact gradient's norm)"
