"""Verdicts on gradients: experiments 1 to 4."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from results import Results

UNBIASED = 3
"""Standard errors that the mean of an unbiased estimator may be away from the exact gradient."""
FEW = 100
"""Draws below which their own spread is not known well enough to judge by."""
FAR = 10
"""Factor between variances from which on one is far below the other."""
TRAINED = 0.5
"""Temperature at which Gumbel-Softmax ends training by default; no lower one counts in a comparison with it."""
Finding = tuple[bool | None, str]


def rows_of(results: Results, kind: str) -> list[dict[str, Any]]:
    """Estimators of the gradient that a cell compared."""
    return results["cells"][f"gradients-{kind}"]["result"]["rows"]


def told(names: Iterable[str], values: Iterable[float], more: Iterable[float | None] = ()) -> str:
    """Names with their values, and a second value in brackets if there is one."""
    parts = [f"{name}: {value:.3g}" for name, value in zip(names, values, strict=True)]
    brackets = ["" if value is None else f" ({value:.2g})" for value in more] or [""] * len(parts)
    return "; ".join(f"{part}{bracket}" for part, bracket in zip(parts, brackets, strict=True))


def unbiased(rows: Sequence[dict[str, Any]]) -> Finding:
    """Whether means are where the exact gradient is.

    An estimator tells that it is unbiased if a bias half as large as the gradient would show; one that is further away
    than its noise explains is biased, however noisy it is.
    """
    names = [row["estimator"] for row in rows]
    noise = [row["one"]["bias_noise"] for row in rows]
    ratios = [row["one"]["bias"] / max(1e-12, own) for row, own in zip(rows, noise, strict=True)]
    text = "distance of the mean from the exact gradient in standard errors (and one of these over that one's norm): "
    text += told(names, ratios, noise)
    if min(row["one"]["draws"] for row in rows) < FEW:
        return None, f"{text}. Too few draws to tell"
    if max(ratios) > UNBIASED:
        return False, text
    hidden = [name for name, own in zip(names, noise, strict=True) if own * UNBIASED >= 0.5]
    if len(hidden) == len(rows):
        return None, f"{text}. The noise would hide a bias half as large as the gradient"
    return True, text + (f". Too noisy to tell much: {'; '.join(hidden)}" if hidden else "")


def reparameterisation_is_unbiased(results: Results) -> Finding:
    return unbiased(rows_of(results, "gaussian")[:1])


def reparameterisation_has_low_variance(results: Results) -> Finding:
    """By the whole encoder. With a single dimension drawn the score function is not bad; it is told, too."""
    own, *others = rows_of(results, "gaussian")
    names = [row["estimator"] for row in others]
    whole, one = ([row[part]["variance"] / own[part]["variance"] for row in others] for part in ("all", "one"))
    text = f"variance of the encoder's gradient over that of the reparameterised one: {told(names, whole)}"
    return min(whole) > FAR, f"{text}. With one dimension of one frame drawn: {told(names, one)}"


def score_function_is_unbiased(results: Results) -> Finding:
    return unbiased([*rows_of(results, "reinforce"), *bernoulli_rows(results)])


def bernoulli_rows(results: Results) -> list[dict[str, Any]]:
    """Score functions of the textbook example, whose gradients at all p are taken as one vector: there even an
    estimator without a baseline is precise."""
    known = results["cells"]["textbook"]["result"]
    norm, rows = math.hypot(*known["true"]), []
    for name, own in known["estimators"].items():
        if name.startswith("score function"):
            bias = math.dist(own["mean"], known["true"]) / norm
            noise = math.hypot(*own["deviation"]) / known["draws"] ** 0.5 / norm
            one = {"bias": bias, "bias_noise": noise, "draws": known["draws"]}
            rows.append({"estimator": f"Bernoulli, {name}", "one": one})
    return rows


def score_function_has_high_variance(results: Results) -> Finding:
    """Against Gumbel-Softmax at the temperatures of training. Its variance may be low because its gradient is short, so
    that signal-to-noise ratios are told, too."""
    score, *relaxed = rows_of(results, "gumbel")
    names = [row["estimator"].removeprefix("Gumbel-Softmax, ") for row in relaxed]
    ratios = [score["all"]["variance_seconds"] / row["all"]["variance_seconds"] for row in relaxed]
    counted = [
        ratio for row, ratio in zip(relaxed, ratios, strict=True) if row["bottleneck"]["end_temperature"] >= TRAINED
    ]
    text = f"variance times seconds of {score['estimator']} (signal-to-noise ratio {score['all']['snr'] or 0.0:.2g}) "
    text += "over that of Gumbel-Softmax (and its signal-to-noise ratio): "
    text += told(names, ratios, [row["all"]["snr"] for row in relaxed])
    text += f". Temperatures below {TRAINED:g} do not count"
    return (min(counted) > 1 if counted else None), text


def baselines_help(results: Results) -> Finding:
    rows = {(row["bottleneck"]["baseline"], row["bottleneck"]["samples"]): row for row in rows_of(results, "reinforce")}
    most = max(samples for _, samples in rows)
    pairs = {
        "moving average, 1 sample": (rows["none", 1], rows["moving_average", 1]),
        f"leave-one-out, {most} samples": (rows["none", most], rows["leave_one_out", most]),
    }
    ratios = {name: plain["all"]["variance"] / own["all"]["variance"] for name, (plain, own) in pairs.items()}
    return min(ratios.values()) > 1, "variance without a baseline over that with one: " + told(ratios, ratios.values())


def samples_help(results: Results) -> Finding:
    """By the slope of log variance over log (S - 1): the leave-one-out baseline gets better with S, too, so that theory
    says 1 / (S - 1), and 1 / S without a baseline."""
    rows = {(row["bottleneck"]["baseline"], row["bottleneck"]["samples"]): row for row in rows_of(results, "reinforce")}
    own = {s: row["all"]["variance"] for (baseline, s), row in rows.items() if baseline == "leave_one_out"}
    points = [(math.log(s - 1), math.log(variance)) for s, variance in own.items()]
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    text = "variance of the encoder's gradient, leave-one-out: " + told([f"S = {s}" for s in own], own.values())
    text += f". It goes as S - 1 to the power of {slope:.2f} (theory: -1)"
    plain = {s: row["all"]["variance"] for (baseline, s), row in rows.items() if baseline == "none"}
    if len(plain) > 1:
        first, last = min(plain), max(plain)
        text += f". Without a baseline it is {plain[first] / plain[last]:.3g} times less with S = {last} than {first}"
    return -1.3 < slope < -0.7, text


def gumbel_trades_bias(results: Results) -> Finding:
    """By relaxed samples; straight-through ones are told. Biases that noise hides are small, and count as told only
    where they are clear; a bias may be above that of a higher temperature by what noise explains, and a variance below
    it by a fifth."""
    everything = rows_of(results, "gumbel")[1:]  # Temperatures fall.
    rows, hard = ([row for row in everything if row["bottleneck"]["hard"] is way] for way in (False, True))
    text = f"bias (and its noise), and variance of the encoder's gradient, relaxed: {_trade(rows)}"
    text += f". Straight-through: {_trade(hard)}" if hard else ""
    variances = [row["all"]["variance"] for row in rows]
    ones = [row["one"] for row in rows]
    clear = [one for one in ones if one["bias"] > 2 * one["bias_noise"]]
    if ones[0] not in clear or len(clear) < 2:
        return None, f"{text}. The noise hides the biases"
    falls = all(b["bias"] < a["bias"] + 2 * math.hypot(a["bias_noise"], b["bias_noise"]) for a, b in pairwise(clear))
    first, last = clear[0], clear[-1]
    falls = falls and first["bias"] - last["bias"] > 2 * math.hypot(first["bias_noise"], last["bias_noise"])
    rises = variances[-1] > variances[0] and all(b > 0.8 * a for a, b in pairwise(variances))
    return falls and rises, text


def _trade(rows: Sequence[dict[str, Any]]) -> str:
    parts = (
        f"at {row['bottleneck']['end_temperature']:g} {row['one']['bias']:.3g} ({row['one']['bias_noise']:.2g}) and "
        f"{row['all']['variance']:.3g}"
        for row in rows
    )
    return ", ".join(parts)


def straight_through_has_no_noise(results: Results) -> Finding:
    own = rows_of(results, "vq")[0]["all"]
    relative = own["variance"] / max(1e-30, own["squared_norm"])
    return relative < 1e-6, f"variance over squared norm of the encoder's gradient: {relative:.2g}"


def straight_through_is_biased(results: Results) -> Finding:
    rows = rows_of(results, "vq")[1:]
    text = "in norms of the exact gradient; " + "; ".join(
        f"temperature {row['temperature']:g} (entropy {row['entropy']:.2g} nats): bias {row['one']['bias']:.3g} "
        f"(noise {row['one']['bias_noise']:.2g}), cosine {row['one']['cosine']:.2f}, of VQ itself "
        f"{row['deterministic']['bias']:.3g}, cosine {row['deterministic']['cosine']:.2f}"
        for row in rows
    )
    clear = [row["one"]["bias"] > UNBIASED * row["one"]["bias_noise"] for row in rows]
    known = [own for own, row in zip(clear, rows, strict=True) if own or row["one"]["bias_noise"] < 0.1]
    return (all(known), text) if known else (None, f"{text}; the noise hides the bias")
