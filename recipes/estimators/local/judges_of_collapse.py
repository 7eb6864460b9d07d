"""Verdicts on collapse and on codebooks: experiments 5 to 8."""

from __future__ import annotations

import math
import statistics
from typing import Any

from cell_list import NORMALISED
from judges_of_trainings import LITTLE, Finding
from results import (
    ONE_SEED,
    SEEDS_DIFFER,
    Results,
    apart,
    difference,
    failures,
    found,
    judged,
    mean,
    records,
    text_of,
)

IGNORED, SHARE = 0.5, 0.01
"""A decoder counts as ignoring its latents if shuffling them costs less than so many nats per frame, or less than this
share of what it costs without context."""
BRIEF = "not used even without context: trained too briefly to tell"


def gaps_by_context(results: Results, kind: str, remedy: str | None = None) -> dict[int, list[float]]:
    """Shuffle gaps of all seeds, by context in samples."""
    rows = records(results, f"context-{kind}-", remedy=remedy)
    contexts = sorted({record["result"]["context"] for record in rows})
    return {c: found([r for r in rows if r["result"]["context"] == c], "gap", "gap") for c in contexts}


def least_used(results: Results, kind: str) -> float:
    """The gap below which latents count as ignored, in nats per frame."""
    without = next(iter(gaps_by_context(results, kind).values()), [])
    return max(IGNORED, SHARE * (mean(without) or 0.0))


def ignoring(results: Results, kind: str, remedy: str | None = None) -> dict[int, list[bool]]:
    """Whether each seed's decoder ignores its latents, by context in samples."""
    least = least_used(results, kind)
    return {c: [gap < least for gap in own] for c, own in gaps_by_context(results, kind, remedy).items()}


def failed(results: Results, *ways: tuple[str, str | None]) -> str:
    """The trainings of which all seeds failed, so that nothing is known of them, in words; empty if there are none."""
    lost = [
        f"{kind}{f' with {remedy}' if remedy else ''} at context {context}"
        for kind, remedy in ways
        for context, own in gaps_by_context(results, kind, remedy).items()
        if not own
    ]
    return f"all trainings failed of {', '.join(lost)}" if lost else ""


def mostly(seeds: list[bool]) -> bool:
    """Whether it is so with more than half of the seeds."""
    return 2 * sum(seeds) > len(seeds)


def collapses_at(results: Results, kind: str, remedy: str | None = None) -> int | None:
    """The smallest context from which on the decoders of most seeds ignore the latents."""
    gone = {context: mostly(own) for context, own in ignoring(results, kind, remedy).items()}
    return next((c for c in gone if all(own for other, own in gone.items() if other >= c)), None)


def told(results: Results, kind: str, remedy: str | None = None) -> str:
    """Shuffle gaps in words, and by how many seeds latents are ignored."""
    ignored = ignoring(results, kind, remedy)
    parts = (
        f"{context}: {text_of(values)} (ignored by {sum(ignored[context])} of {len(values)})"
        for context, values in gaps_by_context(results, kind, remedy).items()
    )
    title = f"{kind}{f' with {remedy}' if remedy else ''}"
    return f"{title} {', '.join(parts)}, as it is below {least_used(results, kind):.2g}"


def variational(results: Results) -> list[str]:
    return [kind for kind in results["plan"]["context"]["bottlenecks"] if kind != "vq"]


def used_without_context(results: Results, kind: str, remedy: str | None = None) -> bool:
    """Whether most seeds use latents where the decoder knows nothing else: only then can they be seen to collapse."""
    without = next(iter(ignoring(results, kind, remedy).values()), [])
    return bool(without) and mostly([not ignored for ignored in without])


def context_makes_collapse(results: Results) -> Finding:
    """Holds if most seeds of some bottleneck use latents without context, and ignore them from some context on."""
    kinds = variational(results)
    text = "shuffle gap in nats per frame by context in samples: " + "; ".join(told(results, kind) for kind in kinds)
    if len(results["plan"]["seeds"]) < 2:
        return None, f"{text}; {ONE_SEED}"
    used = [kind for kind in kinds if used_without_context(results, kind)]
    if not used:
        return None, f"{text}; {BRIEF}"
    gone = {kind: collapses_at(results, kind) for kind in used}
    if any(place is not None for place in gone.values()):
        return True, f"{text}; ignored from this context on: {_places(gone)}"
    lost = failed(results, *((kind, None) for kind in used))
    return (None if lost else False), f"{text}; {lost or 'never ignored by most seeds from some context on'}"


def _places(places: dict[str, int | None]) -> str:
    return ", ".join(f"{name} {'never' if place is None else place}" for name, place in places.items())


def gaussian_collapses_first(results: Results) -> Finding:
    """On equal terms: of the Gaussian with the batch normalisation that the categorical bottlenecks have built in."""
    own = f"gaussian with {NORMALISED}"
    ways = {"gaussian": ("gaussian", None), own: ("gaussian", NORMALISED)}
    ways |= {kind: (kind, None) for kind in variational(results) if kind != "gaussian"}
    places = {name: collapses_at(results, *way) for name, way in ways.items()}
    text = f"ignored by most seeds from this context on: {_places(places)}"
    unused = [name for name, way in ways.items() if not used_without_context(results, *way)]
    text += f"; {', '.join(unused)} {BRIEF}" if unused else ""
    ranks = {name: math.inf if place is None else place for name, place in places.items() if name not in unused}
    ranks.pop("gaussian", None)
    rivals = [rank for name, rank in ranks.items() if name != own]
    if len(results["plan"]["seeds"]) < 2:
        return None, f"{text}; {ONE_SEED}"
    if own not in ranks or not rivals:
        return None, text
    if lost := failed(results, *ways.values()):
        return None, f"{text}; {lost}"
    if ranks[own] == min(rivals):
        same = "with batch normalisation nothing collapses, so that nothing is first"
        return None, f"{text}; {same if ranks[own] == math.inf else 'the contexts are too far apart to tell'}"
    return ranks[own] < min(rivals), text


def remedy_helps(results: Results, remedy: str) -> Finding:
    """Holds if most seeds use their latents with a remedy wherever most ignore them without it, and nowhere ignore them
    because of it."""
    parts, outcomes = [], []
    for kind in variational(results):
        before, after = (gaps_by_context(results, kind, each) for each in (None, remedy))
        without, treated = (ignoring(results, kind, each) for each in (None, remedy))
        for context in after:
            parts.append(
                f"{kind}, context {context}: {text_of(before[context])} without (ignored by {sum(without[context])} of "
                f"{len(without[context])}), {text_of(after[context])} with (by {sum(treated[context])})"
            )
            if mostly(without[context]):
                outcomes.append(mostly([not ignored for ignored in treated[context]]))
            elif mostly(treated[context]):
                outcomes.append(False)
    text = "shuffle gap in nats per frame: " + "; ".join(parts)
    if not parts:
        return None, "the plan does not try it"
    if len(results["plan"]["seeds"]) < 2:
        return None, f"{text}; {ONE_SEED}"
    if not outcomes:
        return None, f"{text}; nothing is ignored by most seeds, so that there is nothing to help"
    return all(outcomes), text


def warm_up_helps(results: Results) -> Finding:
    return remedy_helps(results, "warm-up")


def free_bits_help(results: Results) -> Finding:
    return remedy_helps(results, "free bits")


def normalisation_helps(results: Results) -> Finding:
    return remedy_helps(results, NORMALISED)


def vq_does_not_collapse(results: Results) -> Finding:
    """Without batch normalisation, as it is, and with it, which `gumbel` and `reinforce` have, where it was tried."""
    ways = [way for way in (None, NORMALISED) if gaps_by_context(results, "vq", way)]
    text = "shuffle gap in nats per frame by context in samples: " + "; ".join(told(results, "vq", w) for w in ways)
    if len(results["plan"]["seeds"]) < 2:
        return None, f"{text}; {ONE_SEED}"
    known = [way for way in ways if used_without_context(results, "vq", way)]
    if any(any(seeds) for way in known for seeds in ignoring(results, "vq", way).values()):
        return False, text
    if known != ways:
        return None, f"{text}; {BRIEF}"
    lost = failed(results, *(("vq", way) for way in ways))
    return (None, f"{text}; {lost}") if lost else (True, text)


# --- codebooks -------------------------------------------------------------------------------------------------


def used(results: Results, **settings: Any) -> list[float]:
    """Share of the codes that occur in speech of the voices of the training: an unseen voice leaves out more."""
    size = results["plan"]["codebooks"]["codebook_size"]
    return [count / size for count in found(records(results, "codebook-", **settings), "dev", "usage", "codes_used")]


def codes_die(results: Results) -> Finding:
    """Holds if from some start all seeds use less than half of the codes."""
    inits = results["plan"]["codebooks"]["inits"]
    shares = {init: used(results, revival="without", update="gradient", init=init) for init in inits}
    text = "share of the codes that known voices use, codebook loss without revival: "
    text += ", ".join(f"start {init} {text_of(own)}" for init, own in shares.items())
    known = [own for own in shares.values() if own]
    if len(results["plan"]["seeds"]) < 2 or not known:
        return None, f"{text}; {ONE_SEED}"
    return any(max(own) < 0.5 for own in known), text


def codes_are_kept(results: Results) -> Finding:
    """Each remedy alone, from a start that needs one."""
    inits = results["plan"]["codebooks"]["inits"]
    worst = {"revival": "without", "update": "gradient", "init": inits[-1]}
    before = used(results, **worst)
    changes = {"revival": {**worst, "revival": "with"}, "moving averages": {**worst, "update": "ema"}}
    changes |= {f"start {init}": {**worst, "init": init} for init in inits[:-1]}
    after = {name: used(results, **own) for name, own in changes.items()}
    text = f"share of the codes that known voices use: {text_of(before)} with none of them (start {inits[-1]}), alone "
    text += ", ".join(f"{name} {text_of(own)}" for name, own in after.items())
    signs = [_gain(own, before) for own in after.values()]
    return judged(signs, text)


def _gain(after: list[float], before: list[float]) -> int | None:
    """The sign of a difference of shares; -1 for a gain that does not matter."""
    sign = difference(after, before)
    return -1 if sign is not None and statistics.fmean(after) - statistics.fmean(before) <= LITTLE else sign


def by_beta(results: Results, *path: str) -> dict[float, list[float]]:
    """A figure of all seeds, by the weight of the commitment loss."""
    return {b: found(records(results, "commitment-", beta=b), *path) for b in results["plan"]["commitment"]["betas"]}


def commitment_does_not_matter(results: Results) -> Finding:
    """Fails where a training does, or where STOI differs by what matters and chance does not explain."""
    values = {b: own for b, own in by_beta(results, "test", "metrics", "stoi").items() if b >= 0.1}
    text = "STOI by weight: " + ", ".join(f"{beta:g} {text_of(own)}" for beta, own in values.items())
    if lost := sum(failures(records(results, "commitment-", beta=beta)) for beta in values):
        return False, f"{text}; {lost} trainings failed"
    if len(values) < 2 or min(map(len, values.values())) < 2:
        return None, f"{text}; {ONE_SEED}"
    gap, chance = apart([*values.values()])
    text += f"; best less worst {gap:.3f}"
    if gap <= LITTLE:
        return True, text
    return (False, f"{text}, p = {chance:.2g} (one-way ANOVA)") if chance < 0.05 else (None, f"{text}; {SEEDS_DIFFER}")


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
    return judged(signs, "; ".join(parts))


def codebook_loss_is_kmeans(results: Results) -> Finding:
    """By the error that each way ends with, over that of Lloyd's iterations from the same start: of the worst seed."""
    rows = records(results, "kmeans-")
    errors = [record["result"]["errors"] for record in rows]
    ends = {name: [own[name][-1] for own in errors] for name in errors[0]}
    apart = max(found(rows, "step_difference"))
    text = f"error over variance: {text_of([own['Lloyd'][0] for own in errors])} at the start, at the end "
    text += ", ".join(f"{name} {text_of(own)}" for name, own in ends.items())
    worst = max(value / lloyd for own in ends.values() for value, lloyd in zip(own, ends["Lloyd"], strict=True))
    text += f"; at most {worst:.2f} times Lloyd's; a step of gradient with rate N / (2 n_k) is Lloyd's to {apart:.1g} "
    return apart < 1e-3 and worst < 1.1, f"{text}of it"
