"""Verdicts on collapse and on codebooks: experiments 5 to 8."""

from __future__ import annotations

import math
import statistics
from typing import Any

from judges_of_trainings import LITTLE, ONE_SEED, Finding
from results import Results, difference, found, mean, records, text_of

IGNORED = 0.5
"""Shuffle gap in nats per frame below which a decoder counts as ignoring its latents."""
BRIEF = "not used even without context: trained too briefly to tell"


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


def context_makes_collapse(results: Results) -> Finding:
    """Holds if some bottleneck that is used without context is ignored with the widest, by all seeds."""
    kinds = variational(results)
    text = "shuffle gap in nats per frame by context in samples: " + "; ".join(told(results, kind) for kind in kinds)
    used = used_without_context(results, kinds)
    if len(results["plan"]["seeds"]) < 2:
        return None, f"{text}; {ONE_SEED}"
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
    ranks = {kind: math.inf if place is None else place for kind, place in places.items()}
    gaussian, first = ranks.pop("gaussian"), min(ranks.values())
    if gaussian == first == math.inf:
        return None, f"{text}; nothing collapses, so that nothing is first"
    return gaussian < first, text


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
    if len(results["plan"]["seeds"]) < 2:
        return None, f"{text}; {ONE_SEED}"
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
    if len(results["plan"]["seeds"]) < 2 or not known:
        return None, f"{text}; {ONE_SEED}"
    return min(known) < 0.5, text


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
    """By the codes that a step changes and the spread that latents come to; how far a step moves them is told, too."""
    titles = {"switched": "frames whose code a step changes", "spread": "spread of the latents"}
    titles["drift"] = "movement of latents by a step, over their spread"
    betas, parts, signs = results["plan"]["commitment"]["betas"], [], []
    for name, title in titles.items():
        values = {beta: late(records(results, "commitment-", beta=beta), name) for beta in betas}
        parts.append(f"{title}: " + ", ".join(f"{beta:g} {text_of(own)}" for beta, own in values.items()))
        if name != "drift":
            signs.append(difference(values.get(0.0, []), values.get(0.25, [])))
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
