"""Verdicts on trained models: experiments 9 and 10, trainings of 2 and 3, and the comparison."""

from __future__ import annotations

import statistics
from typing import Any

from results import Results, difference, failures, found, quality, records, text_of

Finding = tuple[bool | None, str]
ONE_SEED = "one seed does not show how much seeds differ"
LITTLE = 0.02
"""Difference of STOI, or of shares of that size, that does not matter."""


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
    points = results["plan"]["compare"]["points"]
    signs: list[int | None] = []
    parts = []
    for bits in points["entropy"]:
        values = {kind: quality(own, "entropy", "stoi") for kind, own in compared(results, "entropy", bits).items()}
        if bits in points.get("kl", []):  # Without codes; a quantizer's own KL is log K whatever it does.
            values["gaussian"] = quality(compared(results, "kl", bits)["gaussian"], "kl", "stoi")
        parts.append(
            f"STOI at {bits:g} bit/s: "
            + ", ".join(f"{k} {text_of(v) if v else 'out of reach'}" for k, v in values.items())
        )
        others = [own for kind, own in values.items() if kind != "vq" and own]
        signs += [difference(values.get("vq", []), own) for own in others]
    text, known = "; ".join(parts), [sign for sign in signs if sign is not None]
    if not signs or len(known) < len(signs):
        return None, f"{text}; {ONE_SEED if signs else 'no other reaches these rates'}"
    if min(known) == 0:
        return None, f"{text}; seeds differ by as much"
    return min(known) == 1, text


def score_function_is_slow(results: Results) -> Finding:
    losses = {}
    for kind in ("gumbel", "reinforce"):
        (record,) = records(results, f"base-{kind}")
        if record["result"]["failed"]:
            return True, f"{kind}: {record['result']['failed']}"
        losses[kind] = (record["result"]["curves"]["valid"]["loss"], record["result"]["steps"])
    (fast, steps), (slow, fewer) = losses["gumbel"], losses["reinforce"]
    share = next((n for n, loss in enumerate(fast, start=1) if loss <= slow[-1]), len(fast) + 1) / len(fast)
    text = f"in equal time gumbel makes {steps} steps to a validation loss of {fast[-1]:.3g}, reinforce {fewer} to "
    text += f"{slow[-1]:.3g}, where gumbel is after {share:.0%} of its time" if share <= 1 else f"{slow[-1]:.3g}"
    return share <= 0.67, text


# --- Gumbel-Softmax --------------------------------------------------------------------------------------------


def by_schedule(results: Results, **settings: Any) -> dict[str, list[dict[str, Any]]]:
    """Records of each temperature schedule."""
    return {
        name: records(results, "schedule-", schedule=name, **settings)
        for name in results["plan"]["schedules"]["settings"]
    }


def end_temperature(rows: list[dict[str, Any]]) -> float | None:
    """The temperature that the trainings of a schedule end with."""
    logged = [r["result"].get("curves", {}).get("train", {}).get("temperature", []) for r in rows]
    return next((temperatures[-1] for temperatures in logged if temperatures), None)


def gradient_norms(rows: list[dict[str, Any]]) -> list[float]:
    """Median norm of the gradient in the second half of each training."""
    halves = [r["result"]["curves"]["train"].get("gradient_norm", []) for r in rows if r["result"].get("curves")]
    return [statistics.median(norms[len(norms) // 2 :]) for norms in halves if norms]


WAYS = {"soft": False, "hard": True}
"""What the decoder sees in training: relaxed samples, or single codes."""
LOW = "constant 0.1"
"""The schedule that is low from the start."""


def low_temperature_is_unstable(results: Results) -> Finding:
    """Against schedules that end high: more failed runs or, soft and hard, larger gradients."""
    parts, signs, more_fail = [], [], False
    for way, hard in WAYS.items():
        rows = by_schedule(results, hard=hard)
        norms = {name: gradient_norms(own) for name, own in rows.items()}
        told = (f"{name} {text_of(norms[name])}, {failures(own)} of {len(own)}" for name, own in rows.items())
        parts.append(f"{way}: {', '.join(told)}")
        ends = {name: end for name, own in rows.items() if (end := end_temperature(own)) is not None}
        high = [name for name, end in ends.items() if LOW in ends and end > 2 * ends[LOW]]
        signs += [difference(norms[LOW], norms[name]) for name in high]
        more_fail |= bool(high) and failures(rows[LOW]) > max(failures(rows[name]) for name in high)
    text = f"gradient norm in the second half, and failed runs, {'; '.join(parts)}"
    if more_fail:
        return True, text
    if not signs or None in signs:
        return None, f"{text}; {ONE_SEED if signs else 'the plan has no low temperature to compare'}"
    return all(sign == 1 for sign in signs), text


def schedule_matters(results: Results) -> Finding:
    values = {name: found(own, "test", "metrics", "stoi") for name, own in by_schedule(results, hard=True).items()}
    text = "STOI with hard samples: " + ", ".join(f"{name} {text_of(own)}" for name, own in values.items())
    known = [own for own in values.values() if own]
    if len(known) < 2 or min(map(len, known)) < 2:
        return None, f"{text}; {ONE_SEED}"
    best, worst = max(known, key=statistics.fmean), min(known, key=statistics.fmean)
    apart = statistics.fmean(best) - statistics.fmean(worst)
    return difference(best, worst) == 1 and apart > LITTLE, f"{text}; best less worst {apart:.3f}"


def relaxation_is_exploited(results: Results) -> Finding:
    """By the schedule that ends highest: at a low temperature samples are all but hard; there is little to exploit."""
    gaps = {(name, way): relaxation_gaps(own) for way, name, own in ways_of_schedules(results)}
    text = "loss of the same samples made hard, less that of the relaxed ones, at the end: "
    text += ", ".join(f"{name} trained {way} {text_of(own)}" for (name, way), own in gaps.items())
    ends = {name: end_temperature(own) or 0.0 for _, name, own in ways_of_schedules(results)}
    highest = max(ends, key=lambda name: ends[name])
    soft, hard = gaps[highest, "soft"], gaps[highest, "hard"]
    above, apart = difference(soft, [0.0] * len(soft)), difference(soft, hard)
    if above is None or apart is None:
        return None, f"{text}; {ONE_SEED}"
    return above == apart == 1, text


def ways_of_schedules(results: Results) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Soft or hard, the schedule's name, and the records of all seeds."""
    return [(way, name, own) for way, hard in WAYS.items() for name, own in by_schedule(results, hard=hard).items()]


def relaxation_gaps(rows: list[dict[str, Any]]) -> list[float]:
    """What hardening the same samples costs at the end of each training."""
    valid = [record["result"].get("curves", {}).get("valid", {}) for record in rows]
    return [own["hardened"][-1] - own["relaxed"][-1] for own in valid if own.get("relaxed")]


# --- two stages, and use ---------------------------------------------------------------------------------------


def two_stages_lose_nothing(results: Results) -> Finding:
    """Fails where the joint training has a lower rate at no lower quality, or a higher quality at no higher rate."""
    parts, better, seeds = [], False, True
    for kind in results["plan"]["stages"]["bottlenecks"]:
        after, joint = (records(results, f"stages-{way}-{kind}-") for way in ("after", "joint"))
        rates = [prior_rates(own) for own in (after, joint)]
        stoi = [found(own, "test", "metrics", "stoi") for own in (after, joint)]
        perplexity = [found(own, "test", "usage", "perplexity") for own in (after, joint)]
        parts.append(
            f"{kind}: {text_of(rates[0])} bit/s afterwards, {text_of(rates[1])} jointly; STOI {text_of(stoi[0])} and "
            f"{text_of(stoi[1])}; perplexity {text_of(perplexity[0])} and {text_of(perplexity[1])}"
        )
        rate_sign, stoi_sign = difference(rates[1], rates[0]), difference(stoi[1], stoi[0])
        if rate_sign is None or stoi_sign is None:
            seeds = False
        elif (rate_sign, stoi_sign) in ((-1, 0), (-1, 1), (0, 1)):
            better = True
    text = "; ".join(parts)
    return (not better, text) if seeds else (None, f"{text}; {ONE_SEED}")


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
    return {kind: own for kind, own in values.items() if own} | {"the commonest label": chance}


def codes_tell_words(results: Results) -> Finding:
    values = probed(results, "word")
    text = "accuracy: " + ", ".join(f"{kind} {text_of(own)}" for kind, own in values.items())
    vq, continuous = values.get("vq", []), values.get("gaussian") or values.get("none", [])
    if min(len(vq), len(continuous)) < 2:
        return None, f"{text}; {ONE_SEED if vq and continuous else 'no model of either kind at that rate'}"
    return statistics.fmean(vq) >= statistics.fmean(continuous) - 0.05, text


def codes_tell_less_of_the_voice(results: Results) -> Finding:
    values = probed(results, "voice")
    text = "accuracy: " + ", ".join(f"{kind} {text_of(own)}" for kind, own in values.items())
    sign = difference(values.get("vq", []), values.get("gaussian") or values.get("none", []))
    return (None, f"{text}; {ONE_SEED}") if sign is None else (sign == -1, text)


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
