"""Verdicts on trained models: experiments 9 and 10, trainings of 2 and 3, and the comparison."""

from __future__ import annotations

import math
import statistics
from typing import Any

from results import (
    ONE_SEED,
    Results,
    apart,
    decided,
    difference,
    failures,
    found,
    judged,
    mean,
    quality,
    records,
    text_of,
    why_open,
)

Finding = tuple[bool | None, str]
LITTLE = 0.02
"""Difference of STOI, or of shares of that size, that does not matter."""
SAME = 1.1
"""Factor up to which rates count as equal."""
CHEAPER = 0.95
"""Share of a rate from which on another counts as high as it."""
SOON = 0.67
"""Share of a training's time within which it has to be where another ends to be much faster."""
LOW = "constant 0.1"
"""The schedule of a low temperature."""
ABOUT_AS_WELL = 0.05
"""Difference of accuracies of probes that does not count."""
COMMONEST = "the commonest label"
WAYS = {"soft": False, "hard": True}
"""What decoders see in training: relaxed samples, or single codes."""


# --- rate and quality ------------------------------------------------------------------------------------------


def points_of(results: Results) -> list[tuple[str, float]]:
    """The rates at which all are compared: how they are measured, and bits a second."""
    return [(measure, bits) for measure, points in results["plan"]["compare"]["points"].items() for bits in points]


def compared(results: Results, measure: str, bits: float) -> dict[str, list[dict[str, Any]]]:
    """Records of each bottleneck at one rate."""
    rows = [record for record in records(results, "compare-") if "target" in record["settings"]]
    chosen = [
        r for r in rows if (r["settings"]["target"]["measure"], r["settings"]["target"]["bits"]) == (measure, bits)
    ]
    kinds = dict.fromkeys(record["settings"]["bottleneck"] for record in chosen)
    return {kind: [r for r in chosen if r["settings"]["bottleneck"] == kind] for kind in kinds}


def vq_keeps_the_most(results: Results) -> Finding:
    """Against all others at each of the rates. They are chosen on dev; where those of the test voice differ, to be
    better at the higher one proves nothing."""
    signs: list[int | None] = []
    parts = []
    for measure, bits in points_of(results):
        rows = compared(results, measure, bits)
        values = {kind: quality(own, measure, "stoi") for kind, own in rows.items()}
        rates = {kind: mean(found(own, "test", "bits_per_second", measure)) for kind, own in rows.items()}
        parts.append(
            f"STOI at {bits:g} bit/s ({measure}): "
            + ", ".join(f"{kind} {_kept(rows[kind], own, rates[kind])}" for kind, own in values.items())
        )
        if not values.get("vq"):
            return None, f"{'; '.join(parts)}; there is no vq at this rate"
        others = [kind for kind, own in values.items() if kind != "vq" and own]
        signs += [_at_equal_rates(values["vq"], values[k], rates["vq"], rates[k]) for k in others]
    text, holds = "; ".join(parts), decided(signs)
    if not signs:
        return None, f"{text}; no other reaches these rates"
    return holds, text if holds is not None else f"{text}; {why_open(signs)}, or the rates"


def _kept(rows: list[dict[str, Any]], values: list[float], rate: float | None) -> str:
    """Quality and rate, or why there are none."""
    if not values:
        return "failed" if failures(rows) else "out of reach"
    return text_of(values) + ("" if rate is None else f" ({rate:.0f} bit/s)")


def _at_equal_rates(own: list[float], other: list[float], *rates: float | None) -> int | None:
    """The sign of a difference; 0 if the better has a clearly higher rate."""
    sign = difference(own, other)
    known = [rate for rate in rates if rate]
    if not sign or len(known) < 2:
        return sign
    better, worse = known if sign == 1 else known[::-1]
    return 0 if better / worse > SAME else sign


def score_function_is_slow(results: Results) -> Finding:
    """By the trials of tuning, which have one KL weight and differ in learning rate, samples and temperatures: whether
    every `gumbel` comes soon to where the best `reinforce` ends."""
    runs = {kind: records(results, f"tune-{kind}-") for kind in ("gumbel", "reinforce")}
    known = {kind: [r["result"] for r in own if not r["result"]["failed"]] for kind, own in runs.items()}
    text = ", ".join(f"{kind} {failures(own)} of {len(own)}" for kind, own in runs.items())
    if not all(known.values()):
        return None, f"failed trainings: {text}"
    ends = {kind: [run["curves"]["valid"]["loss"][-1] for run in own] for kind, own in known.items()}
    best, shares = min(ends["reinforce"]), []
    for run in known["gumbel"]:
        valid = run["curves"]["valid"]
        reached = [step for step, loss in zip(valid["step"], valid["loss"], strict=True) if loss <= best]
        shares.append(reached[0] / run["steps"] if reached else math.inf)
    text = "validation loss at the end, in equal time: "
    text += ", ".join(f"{kind} {min(own):.3g} to {max(own):.3g} ({len(own)} trainings)" for kind, own in ends.items())
    slowest = max(shares)
    text += f"; the slowest gumbel is at the best of reinforce after {slowest:.0%} of its time" if slowest <= 1 else ""
    return slowest <= SOON, text


# --- Gumbel-Softmax --------------------------------------------------------------------------------------------


def by_schedule(results: Results, **settings: Any) -> dict[str, list[dict[str, Any]]]:
    """Records of each temperature schedule."""
    return {
        name: records(results, "schedule-", schedule=name, **settings)
        for name in results["plan"]["schedules"]["settings"]
    }


def roughness(record: dict[str, Any]) -> float | None:
    """Largest norm of the gradient among the logged steps in the second half of a training, over its median."""
    norms = record["result"].get("curves", {}).get("train", {}).get("gradient_norm", [])
    late = norms[len(norms) // 2 :]
    return max(late) / max(1e-12, statistics.median(late)) if late else None


def gradient_norms(rows: list[dict[str, Any]]) -> list[float]:
    """Median norm of the gradient in the second half of each training."""
    halves = [r["result"]["curves"]["train"].get("gradient_norm", []) for r in rows if r["result"].get("curves")]
    return [statistics.median(norms[len(norms) // 2 :]) for norms in halves if norms]


def warm(results: Results) -> str:
    """The schedule of a high temperature: the first that is not the low one; an empty name if there is none."""
    return next((name for name in by_schedule(results) if name != LOW), "")


def low_temperature_is_unstable(results: Results) -> Finding:
    """A low constant temperature against a high one, soft and hard: more failed trainings, or gradients that jump more.
    That they are longer is told; it would be so if they were as steady."""
    first, parts, signs = warm(results), [], []
    for way, hard in WAYS.items():
        rows = by_schedule(results, hard=hard)
        low, other = rows.get(LOW, []), rows.get(first, [])
        if not low or not other:
            return None, "the plan has no low temperature to compare"
        jumps = [[value for r in own if (value := roughness(r)) is not None] for own in (low, other)]
        norms = [gradient_norms(own) for own in (low, other)]
        parts += [
            f"{name} {way} {text_of(norm)} and {text_of(jump)}, {failures(own)} of {len(own)}"
            for name, norm, jump, own in zip((LOW, first), norms, jumps, (low, other), strict=True)
        ]
        signs.append(1 if failures(low) > failures(other) else difference(*jumps))
    text = "gradient norm at the logged steps of the second half, its largest value over the median, failed trainings: "
    text += "; ".join(parts)
    return judged(signs, text)


def schedule_matters(results: Results) -> Finding:
    """By an analysis of variance, since the best and the worst of several differ by chance as well."""
    values = {name: found(own, "test", "metrics", "stoi") for name, own in by_schedule(results, hard=True).items()}
    text = "STOI with hard samples: " + ", ".join(f"{name} {text_of(own)}" for name, own in values.items())
    known = [own for own in values.values() if own]
    if len(known) < 2 or min(map(len, known)) < 2:
        return None, f"{text}; {ONE_SEED}"
    gap, chance = apart(known)
    return chance < 0.05 and gap > LITTLE, f"{text}; best less worst {gap:.3f}, p = {chance:.2g} (one-way ANOVA)"


def relaxation_is_exploited(results: Results) -> Finding:
    """Whether decoders trained on relaxed samples lose when these are made hard, and more than those trained on hard
    ones, at a high temperature; at a low one samples are all but hard. What the argmax of the posterior costs is told,
    and how the gap goes over training."""
    gaps = {way: {n: gaps_of(own) for n, own in by_schedule(results, hard=h).items()} for way, h in WAYS.items()}
    text = "loss of the same samples made hard, less that of the relaxed ones, at the end: "
    text += ", ".join(f"{n} trained {way} {text_of(gap)}" for way, own in gaps.items() for n, gap in own.items() if gap)
    name = warm(results)
    rows = {way: by_schedule(results, hard=hard).get(name, []) for way, hard in WAYS.items()}
    text += f"; {name}, trained soft, {text_of(gaps_of(rows['soft'], place=0))} at the first validation; of the argmax "
    text += "of the posterior, less that: "
    text += ", ".join(f"trained {way} {text_of(gaps_of(own, 'mode'))}" for way, own in rows.items())
    soft, hard = (gaps[way].get(name, []) for way in WAYS)
    signs = [difference(soft, [0.0] * len(soft)), difference(soft, hard)]
    return judged(signs, text)


def gaps_of(rows: list[dict[str, Any]], name: str = "hardened", place: int = -1) -> list[float]:
    """What it costs the decoder of each training, at one validation, to see something else than relaxed samples."""
    valid = [record["result"].get("curves", {}).get("valid", {}) for record in rows]
    return [own[name][place] - own["relaxed"][place] for own in valid if own.get("relaxed")]


# --- two stages, and use ---------------------------------------------------------------------------------------


def two_stages_lose_nothing(results: Results) -> Finding:
    """Fails where the joint training has a clearly lower rate at about the quality, or a clearly higher quality at
    about the rate. Left open where it has both lower or both higher, which is another point of the same trade."""
    parts, signs = [], []
    for kind in results["plan"]["stages"]["bottlenecks"]:
        after, joint = (records(results, f"stages-{way}-{kind}-") for way in ("after", "joint"))
        rates = [prior_rates(own) for own in (after, joint)]
        stoi = [found(own, "test", "metrics", "stoi") for own in (after, joint)]
        perplexity = [found(own, "test", "usage", "perplexity") for own in (after, joint)]
        parts.append(
            f"{kind}: {text_of(rates[0])} bit/s afterwards, {text_of(rates[1])} jointly; STOI {text_of(stoi[0])} and "
            f"{text_of(stoi[1])}; perplexity {text_of(perplexity[0])} and {text_of(perplexity[1])}"
        )
        signs.append(_loses_nothing(rates, stoi))
    text, holds = "; ".join(parts), decided(signs)
    if holds is None:
        text += f"; {why_open(signs)}, or jointly one has less of both, or more"
    return holds, text


def _loses_nothing(rates: list[list[float]], stoi: list[list[float]]) -> int | None:
    """1 if of a pair (afterwards, jointly) the second is no better in rate or quality, -1 if it is, 0 if it is open."""
    cheaper, better = difference(rates[0], rates[1]), difference(stoi[1], stoi[0])
    if cheaper is None or better is None:
        return None
    rate = statistics.fmean(rates[1]) / statistics.fmean(rates[0])
    gain = statistics.fmean(stoi[1]) - statistics.fmean(stoi[0])
    if (cheaper == 1 and gain >= -LITTLE) or (better == 1 and rate <= 1 / CHEAPER):
        return -1
    if 1 in (cheaper, better):
        return 0
    return 1 if rate >= CHEAPER and gain <= LITTLE else 0


def prior_rates(rows: list[dict[str, Any]]) -> list[float]:
    """Bits a second of each training's codes: under its own prior or one that was trained afterwards, the better."""
    known = [[r["result"][name] for name in ("prior_after", "prior_joint") if r["result"].get(name)] for r in rows]
    return [min(bits) for bits in known if bits]


def probed(results: Results, target: str) -> dict[str, list[float]]:
    """Accuracies from the latents of each bottleneck, and the share of the commonest label."""
    kinds = ("none", "gaussian", "gumbel", "reinforce", "vq")
    rows = {kind: records(results, f"probe-{kind}-") for kind in kinds}
    values = {kind: found(own, "probes", target, "latents", "accuracy") for kind, own in rows.items()}
    chance = [v for own in rows.values() for v in found(own, "probes", target, "latents", "commonest")][:1]
    return {kind: own for kind, own in values.items() if own} | {COMMONEST: chance}


def codes_tell_words(results: Results) -> Finding:
    values = probed(results, "word")
    text = f"accuracy: {_accuracies(values)}"
    errors = found(records(results, "probe-vq-"), "probes", "word", "latents", "error")
    text += f"; standard error of a probe {max(errors):.2g}" if errors else ""
    vq, continuous, chance = values.get("vq", []), values.get("gaussian") or values.get("none", []), values[COMMONEST]
    if min(len(vq), len(continuous)) < 2:
        return None, f"{text}; {ONE_SEED if vq and continuous else 'no model of either kind at that rate'}"
    if statistics.fmean(continuous) < chance[0] + 2 * ABOUT_AS_WELL:
        return None, f"{text}; too little is told to compare"
    return statistics.fmean(vq) >= statistics.fmean(continuous) - ABOUT_AS_WELL, text


def _accuracies(values: dict[str, list[float]]) -> str:
    return ", ".join(f"{kind} {text_of(own)}" for kind, own in values.items())


def codes_tell_less_of_the_voice(results: Results) -> Finding:
    values = probed(results, "voice")
    vq, continuous = values.get("vq", []), values.get("gaussian") or values.get("none", [])
    text, sign = f"accuracy: {_accuracies(values)}", difference(continuous, vq)
    if sign == 0 and abs(statistics.fmean(continuous) - statistics.fmean(vq)) <= LITTLE:
        return False, f"{text}; that is the same"
    return judged([sign], text)


def prior_saves_bits(results: Results) -> Finding:
    parts, savings = [], []
    for kind in ("vq", "gumbel", "reinforce"):
        rows = [record for record in records(results, f"probe-{kind}-") if record["result"].get("prior")]
        bits, plain = found(rows, "prior", "test"), found(rows, "frequencies", "test")
        if rows:
            parts.append(f"{kind} {text_of(plain)} bit/s by frequencies, {text_of(bits)} under the prior")
            savings += [before - after for before, after in zip(plain, bits, strict=True)]
    if not savings:
        return None, "no model reaches the rate"
    return min(savings) > 0, "; ".join(parts)
