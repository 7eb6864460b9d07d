"""Figures of the report, as SVG; one whose cells are not done is left out."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from cell_list import NORMALISED
from drawing import COLOURS, band, panels
from figures_of_gradients import gaussian, relaxation, samples, schedules, straight, temperatures, textbook
from judges_of_collapse import IGNORED, by_beta, gaps_by_context, late, used
from judges_of_trainings import compared, prior_rates, probed
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from results import Results, found, is_complete, quality, records

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "audiovq",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


def figures(results: Results) -> dict[str, str]:
    """All figures by name, as SVG documents; the same results give the same bytes."""
    with rc_context(STYLE):
        return {
            name: _svg(picture.draw(results))
            for name, picture in FIGURES.items()
            if all(is_complete(results, experiment) for experiment in picture.experiments)
        }


def rates(results: Results) -> Figure:
    values = results["plan"]["curves"]["values"]
    labels = {"entropy": "bit/s by entropy of codes", "kl": "bit/s by KL, of samples"}
    titles = {"stoi": "STOI", "pesq_wb": "PESQ-WB", "mel_distance": "mel distance"}
    figure, all_axes = panels(len(values), len(titles), width=10, height=3.1 * len(values))
    for axes, (measure, name) in zip(all_axes, product(values, titles), strict=True):
        for kind, grid in values[measure].items():
            _curve(axes, results, measure, kind, name, *grid)
        plain = found(records(results, "compare-none"), "test", "metrics", name)
        if plain:
            axes.axhspan(min(plain), max(plain), color=COLOURS["none"], alpha=0.4, label="none")
        axes.set(title=titles[name], xlabel=labels[measure])
    for axes in all_axes[:: len(titles)]:
        axes.legend()
    return figure


def _curve(axes: Axes, results: Results, measure: str, kind: str, name: str, moved: str) -> None:
    """A metric against the rate as one setting moves it, and at each of the compared rates that is in reach."""
    rows = records(results, f"curve-{kind}-")
    rows = [r for r in rows if r["settings"]["moved"][0] == moved and not r["result"]["failed"]]
    line = [(_rate(r, measure), *own) for r in rows if (own := quality([r], measure, name))]
    axes.plot(*zip(*line, strict=True), color=COLOURS[kind], marker="o", markersize=3, label=kind) if line else None
    for bits in results["plan"]["compare"]["points"][measure]:
        at = [r for r in compared(results, measure, bits).get(kind, []) if "test" in r["result"]]
        _bar(axes, [_rate(r, measure) for r in at], quality(at, measure, name), COLOURS[kind])


def _rate(record: dict[str, Any], measure: str) -> float:
    return max(1.0, record["result"]["test"]["bits_per_second"][measure])


def _bar(axes: Axes, rates: Sequence[float], values: Sequence[float], colour: str) -> None:
    """Mean of seeds, with bars from the least to the largest."""
    if not values:
        return
    x, y = float(np.mean(rates)), float(np.mean(values))
    error = [[y - min(values)], [max(values) - y]], [[x - min(rates)], [max(rates) - x]]
    axes.errorbar([x], [y], yerr=error[0], xerr=error[1], color=colour, marker="s", markersize=6, capsize=3)


def kl(results: Results) -> Figure:
    plan = results["plan"]["context"]
    kinds = [kind for kind in plan["bottlenecks"] if kind != "vq"]
    figure, all_axes = panels(1, len(kinds), width=10, height=2.8)
    for axes, kind in zip(all_axes, kinds, strict=True):
        for number, units in enumerate(plan["units"]):
            rows = records(results, f"context-{kind}-", units=units, remedy=None)
            band(axes, rows, "train", "kl", f"C{number}", f"context {rows[0]['result']['context']}")
        for remedy, style in zip([NORMALISED, *plan["remedies"]], ("-.", "--", ":"), strict=False):
            rows = records(results, f"context-{kind}-", units=plan["remedy_units"][-1], remedy=remedy)
            label = f"{remedy}, {rows[0]['result']['context']}" if rows else remedy
            band(axes, rows, "train", "kl", "black", label, style=style)
        axes.set(title=f"{kind}: KL, nats per frame", xlabel="step", yscale="symlog")
    all_axes[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def collapse(results: Results) -> Figure:
    figure, (axes,) = panels(1, 1, width=6, height=3.2)
    plan = results["plan"]["context"]
    ways = [(kind, None) for kind in plan["bottlenecks"]] + [(kind, NORMALISED) for kind in plan["normalized"]]
    for kind, remedy in ways:
        gaps = gaps_by_context(results, kind, remedy)
        known = [(place, own) for place, own in enumerate(gaps.values()) if own]
        x, values = [place for place, _ in known], [own for _, own in known]
        label, style = (f"{kind}, {remedy}", "o--") if remedy else (kind, "o-")
        axes.plot(x, [np.mean(own) for own in values], style, color=COLOURS[kind], markersize=4, label=label)
        axes.fill_between(x, [min(v) for v in values], [max(v) for v in values], color=COLOURS[kind], alpha=0.2, lw=0)
        axes.set(xticks=range(len(gaps)), xticklabels=list(gaps))
    axes.axhline(IGNORED, color="black", lw=0.8, ls=":")
    axes.set(xlabel="context (samples)", ylabel="shuffle gap, nats per frame", yscale="symlog", ylim=(-1, None))
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def codebooks(results: Results) -> Figure:
    plan = results["plan"]["codebooks"]
    figure, (axes, course) = panels(1, 2, width=10, height=3)
    ways = [(r, u, i) for r in plan["revival"] for u in plan["updates"] for i in plan["inits"]]
    for y, (revival, update, init) in enumerate(ways):
        values = used(results, revival=revival, update=update, init=init)
        axes.barh(y, np.mean(values) if values else 0, color=COLOURS["vq"], alpha=1 if revival == "with" else 0.5)
        axes.plot(values, [y] * len(values), "k.", markersize=4)
    names = [f"{u}, {i}, {'revived' if r == 'with' else 'not revived'}" for r, u, i in ways]
    axes.set(yticks=range(len(ways)), yticklabels=names, xlabel="share of the codes that are used", xlim=(0, 1))
    for number, init in enumerate(plan["inits"]):
        for revival, style in (("without", "-"), ("with", "--")):
            rows = records(results, "codebook-", revival=revival, update=plan["updates"][0], init=init)
            label = f"{init}, {'' if revival == 'with' else 'not '}revived"
            band(course, rows, "train", "perplexity", f"C{number}", label, style=style)
    course.set(title=f"perplexity over training ({plan['updates'][0]})", xlabel="step", yscale="log")
    course.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def commitment(results: Results) -> Figure:
    figure, all_axes = panels(1, 4, width=11, height=2.6)
    betas = results["plan"]["commitment"]["betas"]
    stoi = by_beta(results, "test", "metrics", "stoi")
    rows = {beta: records(results, "commitment-", beta=beta) for beta in betas}
    titles = {"switched": "codes switched by a step", "spread": "spread of latents", "drift": "drift by a step"}
    parts = {"STOI": stoi, **{title: {b: late(rows[b], name) for b in betas} for name, title in titles.items()}}
    for axes, (title, values) in zip(all_axes, parts.items(), strict=True):
        for place, beta in enumerate(betas):
            axes.plot([place] * len(values[beta]), values[beta], "o", color=COLOURS["vq"], markersize=4)
        axes.set(title=title, xlabel="weight", xticks=range(len(betas)), xticklabels=[f"{b:g}" for b in betas])
    return figure


def kmeans(results: Results) -> Figure:
    figure, (axes,) = panels(1, 1, width=6, height=3)
    rows = records(results, "kmeans-")
    for number, name in enumerate(rows[0]["result"]["errors"]):
        values = np.array([record["result"]["errors"][name] for record in rows])
        x = range(values.shape[1])
        axes.plot(x, values.mean(0), color=f"C{number}", label=name)
        axes.fill_between(x, values.min(0), values.max(0), color=f"C{number}", alpha=0.2, lw=0)
    axes.set(xlabel="passes over the latents", ylabel="error over variance", yscale="log")
    axes.legend(fontsize=8)
    return figure


def stages(results: Results) -> Figure:
    figure, (axes,) = panels(1, 1, width=5, height=3)
    for kind in results["plan"]["stages"]["bottlenecks"]:
        for way, marker in (("after", "o"), ("joint", "s")):
            rows = [r for r in records(results, f"stages-{way}-{kind}-") if not r["result"]["failed"]]
            x = prior_rates(rows)
            y = found(rows, "test", "metrics", "stoi")
            axes.plot(
                x,
                y,
                marker,
                color=COLOURS[kind],
                label=f"{kind}, prior {'afterwards' if way == 'after' else 'jointly'}",
            )
    axes.set(xlabel="bit/s under the better prior", ylabel="STOI")
    axes.legend(fontsize=7)
    return figure


def probes(results: Results) -> Figure:
    figure, all_axes = panels(1, 2, width=8, height=2.6)
    for axes, target in zip(all_axes, ("word", "voice"), strict=True):
        values = {kind: own for kind, own in probed(results, target).items() if own}
        for place, (kind, own) in enumerate(values.items()):
            axes.barh(place, np.mean(own), color=COLOURS.get(kind, "black"), alpha=0.7)
            axes.plot(own, [place] * len(own), "k.", markersize=4)
        axes.set(title=f"{target}: accuracy", yticks=range(len(values)), yticklabels=list(values), xlim=(0, 1))
    return figure


class Picture(NamedTuple):
    """A figure of the report."""

    caption: str
    experiments: tuple[str, ...]
    """What has to be done before it can be drawn."""
    draw: Callable[[Results], Figure]


FIGURES: dict[str, Picture] = {
    "rates": Picture(
        "Quality against rate on an unseen voice. Above: the rate is moved by the number of codes. Below: by the KL "
        "weight, and by the number of codes of vq. Lines: one seed over the grid, in its order. Squares: means of all "
        "seeds at the compared rates, bars from the worst to the best seed. Where STOI is below 0.5, PESQ has no "
        "speech to judge.",
        ("rate-quality",),
        rates,
    ),
    "gaussian": Picture("Estimators of the gradient of one Gaussian.", ("reparameterisation",), gaussian),
    "samples": Picture(
        "REINFORCE: variance against samples, and the trials of tuning, of equal time, beside those of Gumbel-Softmax.",
        ("score-function",),
        samples,
    ),
    "textbook": Picture(
        "z = 2p (first) against z ~ Bernoulli(p), gradient of E[(z - 2)²] with respect to the logit of p: mean of "
        "20,000 estimates, band of one standard deviation.",
        ("score-function",),
        textbook,
    ),
    "temperatures": Picture(
        "Gumbel-Softmax: bias and variance against temperature.", ("gumbel-softmax",), temperatures
    ),
    "schedules": Picture(
        "Temperature schedules, trained on hard samples (lines) and soft ones (dashed); bands from the least to the "
        "largest seed.",
        ("gumbel-softmax",),
        schedules,
    ),
    "relaxation": Picture(
        "What codes cost a decoder that could see relaxed samples, over training. Lines: the same samples made hard; "
        "dashed: the argmax of the posterior.",
        ("gumbel-softmax",),
        relaxation,
    ),
    "straight": Picture(
        "Straight-through against the exact gradient of a stochastic VQ.", ("straight-through",), straight
    ),
    "kl": Picture(
        "KL divergence over training under decoders of growing context; bands over seeds. Black: remedies.",
        ("posterior-collapse",),
        kl,
    ),
    "collapse": Picture(
        "What latents are worth to a decoder that sees so many samples of the past; bands over seeds. Below the dotted "
        "line, or a hundredth of what they are worth without context, they count as ignored.",
        ("posterior-collapse", "codebook-collapse"),
        collapse,
    ),
    "codebooks": Picture(
        "Codes in use by known voices; dots are seeds. Perplexity is of the moving averages of training, which start "
        "from equal use.",
        ("codebook-collapse",),
        codebooks,
    ),
    "commitment": Picture("The weight of the commitment loss; dots are seeds.", ("commitment",), commitment),
    "kmeans": Picture("Ways to fit a codebook to the same latents; bands over seeds.", ("k-means",), kmeans),
    "stages": Picture("A prior trained afterwards or jointly; marks are seeds.", ("two-stages",), stages),
    "probes": Picture("Linear probes on frozen latents; dots are seeds.", ("representations",), probes),
}
"""All figures by name."""


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
