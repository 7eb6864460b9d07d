"""Figures of the report, as SVG."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Results = dict[str, Any]

COLOURS = {"none": "#868e96", "gaussian": "#1c7ed6", "gumbel": "#e8590c", "reinforce": "#9c36b5", "vq": "#2b8a3e"}
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
    makers = {"loss": loss, "schedule": schedule, "gradients": gradients, "context": context, "textbook": textbook}
    with rc_context(STYLE):
        return {name: _svg(maker(results)) for name, maker in makers.items()}


def loss(results: Results) -> Figure:
    """Validation loss; a band from the best to the worst seed."""
    figure, (axes,) = _panels(1, 1, width=7, height=3.2)
    for kind in kinds(results):
        _band(axes, results, kind, "valid", "loss")
    axes.set(xlabel="step", ylabel="validation loss (mel + STFT)")
    axes.legend(ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1))
    return figure


def schedule(results: Results) -> Figure:
    """KL divergence, temperature and perplexity during training."""
    figure, panels = _panels(1, 3, width=9, height=2.7)
    for axes, name in zip(panels, ("kl", "temperature", "perplexity"), strict=True):
        for kind in kinds(results):
            _band(axes, results, kind, "train", name)
        axes.set(xlabel="step", title={"kl": "KL divergence (nats per frame)"}.get(name, name), ylim=(0, None))
        axes.legend()
    return figure


def gradients(results: Results) -> Figure:
    """Bias of one latent's gradient, and variance for one latent and for all, of each estimator."""
    found = results["estimators"]
    names = [row["estimator"] for row in found]
    colours = [COLOURS[row["bottleneck"]["type"]] for row in found]
    figure, (bias, one, whole) = _panels(1, 3, width=10, height=0.6 + 0.28 * len(names))
    y = np.arange(len(names))[::-1]
    bias.barh(y, [row["one"]["bias"] for row in found], color=colours)
    noise = [row["one"]["bias_noise"] for row in found]
    bias.plot(noise, y, "k|", markersize=9, label="of an unbiased estimator")
    figure.legend(loc="outside lower center")
    bias.set(title="bias, one frame (relative)", yticks=y, yticklabels=names, xscale="log")
    for axes, part, title in ((one, "one", "variance, one frame"), (whole, "all", "variance, whole encoder")):
        axes.barh(y, [row[part]["variance"] for row in found], color=colours)
        axes.set(title=title, yticks=y, yticklabels=[""] * len(y), xscale="log")
    for axes in (bias, one, whole):
        axes.grid(axis="y", visible=False)
    return figure


def context(results: Results) -> Figure:
    """What latents are worth to a decoder that sees the past: NLL, shuffle gap, KL and perplexity."""
    figure, (nll, gap, kl) = _panels(1, 3, width=9, height=2.8)
    for kind in dict.fromkeys(row["bottleneck"] for row in results["contexts"]):
        rows = [row for row in results["contexts"] if row["bottleneck"] == kind and not row["failed"]]
        x = range(len(rows))
        style = {"color": COLOURS[kind], "label": kind, "marker": "o", "markersize": 4}
        nll.plot(x, [row["gap"]["true"] for row in rows], **style)
        gap.plot(x, [row["gap"]["gap"] for row in rows], **style)
        kl.plot(x, [row["usage"]["kl"] for row in rows], **style)
        for axes in (nll, gap, kl):
            axes.set(xticks=x, xticklabels=[row["context"] for row in rows], xlabel="context (samples)")
    nll.set(title="-log p(x|z), nats per frame")
    gap.set(title="shuffle gap, nats per frame", yscale="symlog")
    kl.set(title="KL divergence, nats per frame", ylim=(0, None))
    gap.legend()
    return figure


def textbook(results: Results) -> Figure:
    """The mean of each estimator, with a band of one standard deviation, and the true gradient, over p."""
    found = results["textbook"]
    figure, panels = _panels(2, 3, width=9, height=4.6, shared=True)
    for axes, (name, values) in zip(panels, found["estimators"].items(), strict=True):
        mean, deviation = np.array(values["mean"]), np.array(values["deviation"])
        axes.plot(found["p"], found["true"], "k--", label="true gradient")
        axes.plot(found["p"], mean, color="#1c7ed6", label="mean of the estimates")
        axes.fill_between(found["p"], mean - deviation, mean + deviation, color="#1c7ed6", alpha=0.2, lw=0)
        axes.set_title(name, fontsize=9)
    panels[0].legend(loc="lower right", fontsize=8)
    for axes in panels[3:]:
        axes.set(xlabel="p")
    return figure


def kinds(results: Results) -> list[str]:
    """The bottlenecks of part 1, in the order of the runs."""
    return list(dict.fromkeys(run["bottleneck"] for run in results["runs"]))


def _band(axes: Axes, results: Results, kind: str, part: str, name: str) -> None:
    """Mean over seeds of a logged quantity and its range, if the bottleneck has it."""
    curves = [run["curves"][part] for run in results["runs"] if run["bottleneck"] == kind]
    curves = [curve for curve in curves if name in curve]
    if not curves:
        return
    length = min(len(curve["step"]) for curve in curves)  # A failed run ends early.
    steps = curves[0]["step"][:length]
    values = np.array([curve[name][:length] for curve in curves])
    axes.plot(steps, values.mean(0), color=COLOURS[kind], label=kind)
    axes.fill_between(steps, values.min(0), values.max(0), color=COLOURS[kind], alpha=0.2, lw=0)


def _panels(rows: int, columns: int, width: float, height: float, shared: bool = False) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(rows, columns, sharex=shared, sharey=shared)).flat)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
