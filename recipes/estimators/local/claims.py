"""What papers and lecture notes say, held against what was measured here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tables import mean_of, per_bottleneck

Results = dict[str, Any]
UNBIASED = 3
"""Standard errors that the mean of an unbiased estimator may be away from the exact gradient."""
IGNORED = 0.5
"""Shuffle gap in nats per frame below which a decoder counts as ignoring its latents."""


@dataclass(frozen=True)
class Claim:
    """A statement and what became of it."""

    text: str
    source: str
    holds: bool | None
    """None: cannot be told from these results."""
    evidence: str

    @property
    def verdict(self) -> str:
        return {True: "holds", False: "does not hold here", None: "cannot be told"}[self.holds]


def claims(results: Results) -> list[Claim]:
    """All claims, each with its verdict."""
    return [Claim(text, source, *judge(results)) for text, source, judge in CLAIMS]


def score_function_is_unbiased(results: Results) -> tuple[bool | None, str]:
    rows = _estimators(results, "REINFORCE")
    ratios = [row["one"]["bias"] / row["one"]["bias_noise"] for row in rows]
    text = f"distance from the exact gradient, in standard errors: {_listed(rows, ratios)}"
    noisy = [row for row in rows if row["one"]["bias_noise"] > 1]
    if noisy:
        names = ", ".join(row["estimator"].split(", ")[1] for row in noisy)
        text += f"; the noise exceeds the gradient for: {names}"
    within = max(ratios) <= UNBIASED
    return (None if within and len(noisy) == len(rows) else within), text


def leave_one_out_has_less_variance(results: Results) -> tuple[bool | None, str]:
    plain, left_out = (_estimators(results, f"REINFORCE, {name}")[0] for name in ("no baseline", "leave-one-out"))
    ratios = [plain[part]["variance"] / left_out[part]["variance"] for part in ("one", "all")]
    return min(
        ratios
    ) > 1, f"variance is {ratios[0]:.3g} times smaller for one frame, {ratios[1]:.3g} times for the encoder"


def gumbel_trades_bias_for_variance(results: Results) -> tuple[bool | None, str]:
    rows = _estimators(results, "Gumbel-Softmax, relaxed")  # Temperatures fall.
    variances = [row["one"]["variance"] for row in rows]
    biases = [max(0.0, row["one"]["bias"] ** 2 - row["one"]["bias_noise"] ** 2) ** 0.5 for row in rows]
    noisy = any(row["one"]["bias"] < 2 * row["one"]["bias_noise"] for row in rows)
    text = f"bias, less its noise, {_listed(rows, biases)}; variance {_listed(rows, variances)}"
    holds = _falls(biases) and _falls(variances[::-1])
    return (None if noisy and not holds else holds), text


def gumbel_has_less_variance(results: Results) -> tuple[bool | None, str]:
    best = min(_estimators(results, "REINFORCE"), key=lambda row: row["all"]["variance_seconds"])
    rows = _estimators(results, "Gumbel-Softmax")
    ratios = [best["all"]["variance_seconds"] / row["all"]["variance_seconds"] for row in rows]
    return min(ratios) > 1, f"variance of {best['estimator']} over that of {_listed(rows, ratios)}"


def straight_through_is_noiseless(results: Results) -> tuple[bool | None, str]:
    rows = {row["bottleneck"]: row["gradient"] for row in results["gradients"]}
    if "vq" not in rows:
        return None, "no trained model"
    text = ", ".join(f"{kind} {row['variance'] / max(1e-30, row['squared_norm']):.3g}" for kind, row in rows.items())
    relative = rows["vq"]["variance"] / max(1e-30, rows["vq"]["squared_norm"])
    return relative < 1e-6, f"variance as a multiple of the squared norm: {text}"


def discrete_costs_quality(results: Results) -> tuple[bool | None, str]:
    means = {kind: mean_of(runs, "metrics", "mel_distance") for kind, runs in per_bottleneck(results).items()}
    known = {kind: value for kind, value in means.items() if value is not None}
    text = ", ".join(f"{kind} {value:.3f}" for kind, value in known.items())
    return (known.get("none") == min(known.values()) if "none" in known else None), f"mel distance: {text}"


def reinforce_is_least_stable(results: Results) -> tuple[bool | None, str]:
    runs = per_bottleneck(results)
    failed = {kind: sum(bool(run["failed"]) for run in own) for kind, own in runs.items()}
    values = {k: [r["metrics"]["mel_distance"] for r in own if not r["failed"]] for k, own in runs.items()}
    ranges = {kind: max(own) - min(own) if own else 0.0 for kind, own in values.items()}
    text = ", ".join(f"{kind} {value:.3f}" for kind, value in ranges.items())
    if len(results["conditions"]["seeds"]) < 2 or "reinforce" not in runs:
        return None, "needs several seeds"
    worst = max(runs, key=lambda kind: (failed[kind], ranges[kind]))
    return worst == "reinforce", f"range of mel distance over seeds: {text}; failed runs: {sum(failed.values())}"


def context_makes_gaussian_collapse(results: Results) -> tuple[bool | None, str]:
    return _collapses(results, "gaussian")


def vq_keeps_its_codes(results: Results) -> tuple[bool | None, str]:
    collapsed, text = _collapses(results, "vq")
    return (None if collapsed is None else not collapsed), text


def kl_of_vq_proves_nothing(results: Results) -> tuple[bool | None, str]:
    rows = [row for row in results["contexts"] if row["bottleneck"] == "vq" and not row["failed"]]
    if len(rows) < 2:
        return None, "no trained models"
    kls, gaps = [row["usage"]["kl"] for row in rows], [row["gap"]["gap"] for row in rows]
    text = f"KL {min(kls):.4g} to {max(kls):.4g} nats per frame, shuffle gap {min(gaps):.3g} to {max(gaps):.3g}"
    return max(kls) == min(kls) and max(gaps) - min(gaps) > IGNORED, text


Judge = Callable[[Results], tuple[bool | None, str]]
CLAIMS: list[tuple[str, str, Judge]] = [
    ("The score function's gradient is unbiased, whatever the baseline.", "Williams, 1992", score_function_is_unbiased),
    ("A leave-one-out baseline lowers its variance.", "Kool et al., 2019", leave_one_out_has_less_variance),
    (
        "As the temperature of a relaxed Gumbel-Softmax sample falls, bias falls and variance rises.",
        "Jang et al., 2017; Maddison et al., 2017",
        gumbel_trades_bias_for_variance,
    ),
    (
        "Gumbel-Softmax has less variance than the score function, for equal compute.",
        "Jang et al., 2017",
        gumbel_has_less_variance,
    ),
    (
        "The straight-through gradient of VQ has no sampling noise.",
        "van den Oord et al., 2017",
        straight_through_is_noiseless,
    ),
    ("Every bottleneck costs quality of the reconstruction.", "rate-distortion theory", discrete_costs_quality),
    ("REINFORCE is the least stable across seeds.", "lecture notes", reinforce_is_least_stable),
    (
        "A powerful autoregressive decoder makes a Gaussian VAE ignore its latents.",
        "Bowman et al., 2016; van den Oord et al., 2017",
        context_makes_gaussian_collapse,
    ),
    ("VQ keeps using its codes with such a decoder.", "van den Oord et al., 2017", vq_keeps_its_codes),
    ("The KL divergence of VQ is constant and says nothing of their use.", "this bench", kl_of_vq_proves_nothing),
]


def _collapses(results: Results, kind: str) -> tuple[bool | None, str]:
    """Whether decoders with context ignore the latents; None if some do, but not the one with the widest."""
    rows = [row for row in results["contexts"] if row["bottleneck"] == kind and not row["failed"]]
    if not rows:
        return None, "no trained models"
    gaps = [row["gap"]["gap"] for row in rows]
    text = ", ".join(f"{row['context']}: {gap:.3g}" for row, gap in zip(rows, gaps, strict=True))
    text = f"shuffle gap in nats per frame by context in samples: {text}"
    if max(gaps) < IGNORED:
        return None, f"{text}; never used, not even without context"
    if gaps[-1] >= IGNORED > min(gaps):
        return None, f"{text}; ignored at some contexts, but not at the widest"
    return gaps[-1] < IGNORED, text


def _estimators(results: Results, prefix: str) -> list[dict[str, Any]]:
    return [row for row in results["estimators"] if row["estimator"].startswith(prefix)]


def _listed(rows: Sequence[dict[str, Any]], values: Sequence[float]) -> str:
    names = [row["estimator"].split(", ", 1)[1].replace(", temperature", " at") for row in rows]
    return ", ".join(f"{name}: {value:.3g}" for name, value in zip(names, values, strict=True))


def _falls(values: Sequence[float]) -> bool:
    return all(a > b for a, b in pairwise(values))
