"""Verdicts on trained models: experiments 5 to 10, the schedules of 3, and the comparison."""

from __future__ import annotations

import math
import statistics
from typing import Any

from results import Results, difference, failures, found, mean, records, text_of

Finding = tuple[bool | None, str]
IGNORED = 0.5
"""Shuffle gap in nats per frame below which a decoder counts as ignoring its latents."""
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
    told, parts = [], []
    for measure, bits in points_of(results):
        rows = compared(results, measure, bits)
        if measure == "kl":  # A quantizer's KL is log K whatever it does; its rate is the entropy of its codes.
            rows = compared(results, "entropy", bits) | {"gaussian": rows["gaussian"]}
        values = {kind: found(own, "test", "metrics", "stoi") for kind, own in rows.items()}
        parts.append(
            f"STOI at {bits:g} bit/s ({measure}): "
            + ", ".join(f"{k} {text_of(v) if v else 'out of reach'}" for k, v in values.items())
        )
        others = [own for kind, own in values.items() if kind != "vq" and own]
        signs = [difference(values.get("vq", []), own) for own in others]
        told += signs
    text = "; ".join(parts)
    if not told or None in told:
        return None, f"{text}; {ONE_SEED if told else 'no other reaches these rates'}"
    if min(told) == -1:  # type: ignore[type-var]
        return False, text
    return (True if min(told) == 1 else None), text if min(told) == 1 else f"{text}; seeds differ by as much"  # type: ignore[type-var]


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


def roughness(record: dict[str, Any]) -> float | None:
    """Largest norm of the gradient in the second half of a training, over its median."""
    norms = record["result"].get("curves", {}).get("train", {}).get("gradient_norm", [])
    late = norms[len(norms) // 2 :]
    return max(late) / max(1e-12, statistics.median(late)) if late else None


def gradient_norms(rows: list[dict[str, Any]]) -> list[float]:
    """Median norm of the gradient in the second half of each training."""
    halves = [r["result"]["curves"]["train"].get("gradient_norm", []) for r in rows if r["result"].get("curves")]
    return [statistics.median(norms[len(norms) // 2 :]) for norms in halves if norms]


def low_temperature_is_unstable(results: Results) -> Finding:
    rows = by_schedule(results)
    low = [own for name, own in rows.items() if name == "constant 0.1"]
    others = {name: own for name, own in rows.items() if name != "constant 0.1"}
    if not low or not others:
        return None, "the plan has no low temperature to compare"
    norms = {name: gradient_norms(own) for name, own in rows.items()}
    text = "gradient norm in the second half, and failed runs: "
    text += ", ".join(f"{name} {text_of(norms[name])}, {failures(own)} of {len(own)}" for name, own in rows.items())
    if failures(low[0]) > max(map(failures, others.values())):
        return True, text
    signs = [difference(norms["constant 0.1"], norms[name]) for name in others]
    if None in signs:
        return None, f"{text}; {ONE_SEED}"
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
    gaps: dict[str, list[float]] = {}
    for hard in (False, True):
        for record in records(results, "schedule-", hard=hard):
            valid = record["result"].get("curves", {}).get("valid", {})
            if "relaxed" in valid:
                way = "hard" if hard else "soft"
                gaps.setdefault(way, []).append(valid["hardened"][-1] - valid["relaxed"][-1])
    text = "loss of the same samples made hard, less that of the relaxed ones, at the end: "
    text += ", ".join(f"trained {way} {text_of(own)}" for way, own in gaps.items())
    if len(gaps) < 2:
        return None, text
    sign = difference(gaps["soft"], [0.0] * len(gaps["soft"]))
    if sign is None:
        return None, f"{text}; {ONE_SEED}"
    return sign == 1 and difference(gaps["soft"], gaps["hard"]) == 1, text


# --- collapse --------------------------------------------------------------------------------------------------


def gaps_by_context(results: Results, kind: str, remedy: str | None = None) -> dict[int, list[float]]:
    """Shuffle gaps of all seeds, by context in samples."""
    rows = records(results, f"context-{kind}-", remedy=remedy)
    contexts = sorted({record["result"]["context"] for record in rows})
    return {c: found([r for r in rows if r["result"]["context"] == c], "gap", "gap") for c in contexts}


def collapses_at(results: Results, kind: str) -> int | None:
    """The smallest context from which on no seed's decoder uses the latents."""
    gaps = gaps_by_context(results, kind)
    ignored = [context for context, values in gaps.items() if values and max(values) < IGNORED]
    return next((c for c in ignored if all(other in ignored for other in gaps if other >= c)), None)


def told(results: Results, kind: str) -> str:
    """Shuffle gaps in words."""
    parts = (f"{context}: {text_of(values)}" for context, values in gaps_by_context(results, kind).items())
    return f"{kind} {', '.join(parts)}"


def variational(results: Results) -> list[str]:
    return [kind for kind in results["plan"]["context"]["bottlenecks"] if kind != "vq"]


def used_without_context(results: Results, kinds: list[str]) -> list[str]:
    """Bottlenecks that all seeds use where the decoder knows nothing else: only these can be seen to collapse."""
    without = {kind: next(iter(gaps_by_context(results, kind).values()), []) for kind in kinds}
    return [kind for kind, gaps in without.items() if gaps and min(gaps) >= IGNORED]


BRIEF = "not used even without context: trained too briefly to tell"


def context_makes_collapse(results: Results) -> Finding:
    """Holds if some bottleneck that is used without context is ignored with the widest, by all seeds."""
    kinds = variational(results)
    text = "shuffle gap in nats per frame by context in samples: " + "; ".join(told(results, kind) for kind in kinds)
    used = used_without_context(results, kinds)
    if not used:
        return None, f"{text}; {BRIEF}"
    gone = {kind: collapses_at(results, kind) for kind in used}
    places = ", ".join(f"{kind} {'never' if place is None else place}" for kind, place in gone.items())
    return any(place is not None for place in gone.values()), f"{text}; ignored from this context on: {places}"


def gaussian_collapses_first(results: Results) -> Finding:
    kinds = variational(results)
    places = {kind: collapses_at(results, kind) for kind in kinds}
    text = "ignored by all seeds from this context on: "
    text += ", ".join(f"{kind} {'never' if place is None else place}" for kind, place in places.items())
    if unused := sorted({*kinds} - {*used_without_context(results, kinds)}):
        return None, f"{text}; {', '.join(unused)} {BRIEF}"
    gaussian, *others = (math.inf if places[kind] is None else places[kind] for kind in kinds)
    if gaussian == math.inf and min(others) == math.inf:
        return None, f"{text}; nothing collapses, so that nothing is first"
    return gaussian < min(others), text


def remedies_help(results: Results) -> Finding:
    units, parts, signs = results["plan"]["context"]["remedy_units"], [], []
    for kind in variational(results):
        for context in units:
            plain = records(results, f"context-{kind}-", units=context, remedy=None)
            before = found(plain, "usage", "information")
            parts.append(f"{kind} {text_of(before)}")
            for remedy in results["plan"]["context"]["remedies"]:
                after = found(
                    records(results, f"context-{kind}-", units=context, remedy=remedy), "usage", "information"
                )
                parts.append(f"with {remedy} {text_of(after)}")
                signs.append(difference(after, before))
    text = "information in nats per frame: " + ", ".join(parts)
    if None in signs or not signs:
        return None, f"{text}; {ONE_SEED}"
    return -1 not in signs and 1 in signs, text


def vq_does_not_collapse(results: Results) -> Finding:
    text = f"shuffle gap in nats per frame by context in samples: {told(results, 'vq')}"
    if not used_without_context(results, ["vq"]):
        return None, f"{text}; {BRIEF}"
    return min(value for own in gaps_by_context(results, "vq").values() for value in own) >= IGNORED, text


# --- codebooks -------------------------------------------------------------------------------------------------


def used(results: Results, **settings: Any) -> list[float]:
    """Share of the codes that occur on the test voice."""
    size = results["plan"]["codebooks"]["codebook_size"]
    return [count / size for count in found(records(results, "codebook-", **settings), "test", "usage", "codes_used")]


def codes_die(results: Results) -> Finding:
    inits = results["plan"]["codebooks"]["inits"]
    shares = {init: used(results, revival="without", update="gradient", init=init) for init in inits}
    text = "share of the codes that are used, codebook loss without revival: "
    text += ", ".join(f"start {init} {text_of(own)}" for init, own in shares.items())
    known = [value for own in shares.values() for value in own]
    return (None, text) if not known else (min(known) < 0.5, text)


def codes_are_kept(results: Results) -> Finding:
    plan = results["plan"]["codebooks"]
    worst = {"revival": "without", "update": "gradient", "init": plan["inits"][-1]}
    before = used(results, **worst)
    changes = {
        "revival": {**worst, "revival": "with"},
        "moving averages": {**worst, "update": "ema"},
        "start from k-means": {**worst, "init": plan["inits"][0]},
    }
    changes = {name: own for name, own in changes.items() if own != worst}
    after = {name: used(results, **own) for name, own in changes.items()}
    text = f"share of the codes that are used: {text_of(before)} with none of them, alone "
    text += ", ".join(f"{name} {text_of(own)}" for name, own in after.items())
    signs = [difference(own, before) for own in after.values()]
    return (None, f"{text}; {ONE_SEED}") if None in signs else (all(sign == 1 for sign in signs), text)


def by_beta(results: Results, *path: str) -> dict[float, list[float]]:
    """A figure of all seeds, by the weight of the commitment loss."""
    return {b: found(records(results, "commitment-", beta=b), *path) for b in results["plan"]["commitment"]["betas"]}


def commitment_does_not_matter(results: Results) -> Finding:
    values = {b: own for b, own in by_beta(results, "test", "metrics", "stoi").items() if b >= 0.1 and own}
    text = "STOI by weight: " + ", ".join(f"{beta:g} {text_of(own)}" for beta, own in values.items())
    if len(values) < 2:
        return None, f"{text}; fewer than two weights"
    means = [statistics.fmean(own) for own in values.values()]
    return max(means) - min(means) <= LITTLE, f"{text}; best less worst {max(means) - min(means):.3f}"


def late(records: list[dict[str, Any]], name: str) -> list[float]:
    """Mean of a logged quantity over the second half of each training."""
    logged = [record["result"].get("curves", {}).get("train", {}).get(name, []) for record in records]
    return [statistics.fmean(own[len(own) // 2 :]) for own in logged if own]


def commitment_holds_the_encoder(results: Results) -> Finding:
    parts, signs = [], []
    for name, title in (("switched", "frames whose code a step changes"), ("drift", "movement of latents by a step")):
        values = {
            beta: late(records(results, "commitment-", beta=beta), name)
            for beta in results["plan"]["commitment"]["betas"]
        }
        parts.append(f"{title}: " + ", ".join(f"{beta:g} {text_of(own)}" for beta, own in values.items()))
        usual = values.get(0.25, [])
        signs.append(difference(values.get(0.0, []), usual))
    text = "; ".join(parts)
    return (None, f"{text}; {ONE_SEED}") if None in signs else (all(sign == 1 for sign in signs), text)


def codebook_loss_is_kmeans(results: Results) -> Finding:
    rows = records(results, "kmeans-")
    ends: dict[str, list[float]] = {}
    for record in rows:
        for name, errors in record["result"]["errors"].items():
            ends.setdefault(name, []).append(errors[-1])
    apart = max(found(rows, "step_difference"))
    text = "error over variance at the end: " + ", ".join(f"{name} {text_of(own)}" for name, own in ends.items())
    text += f"; a step of gradient with rate N / (2 n_k) is Lloyd's to {apart:.1g} of it"
    lloyd = mean(ends["Lloyd"]) or 0.0
    worst = max(mean(own) or 0.0 for name, own in ends.items() if name != "codebook loss, Adam")
    return apart < 1e-3 and worst < 1.1 * lloyd, text


# --- two stages, and use ---------------------------------------------------------------------------------------


def two_stages_lose_nothing(results: Results) -> Finding:
    """Fails where the joint training has a lower rate at no lower quality, or a higher quality at no higher rate."""
    parts, better, seeds = [], False, True
    for kind in results["plan"]["stages"]["bottlenecks"]:
        after, joint = (records(results, f"stages-{way}-{kind}-") for way in ("after", "joint"))
        rates = [found(after, "prior_after"), found(joint, "prior_joint")]
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
        bits, plain = found(rows, "prior", "test"), found(rows, "bits_per_second", "entropy")
        if rows:
            parts.append(f"{kind} {text_of(plain)} bit/s by frequencies, {text_of(bits)} under the prior")
            savings += [before - after for before, after in zip(plain, bits, strict=True)]
    if not savings:
        return None, "no model reaches the rate"
    return min(savings) > 0, "; ".join(parts)
