"""Figures of experiments 1 to 4."""

from __future__ import annotations

from typing import Any

import numpy as np
from drawing import COLOURS, band, panels
from judges_of_gradients import rows_of
from judges_of_trainings import WAYS, by_schedule
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from results import Results, records


def gaussian(results: Results) -> Figure:
    figure, (bias, variance) = panels(1, 2, width=9, height=2.8)
    _estimators(bias, variance, rows_of(results, "gaussian"), COLOURS["gaussian"])
    return figure


def _estimators(bias: Axes, variance: Axes, rows: list[dict[str, Any]], colour: str) -> None:
    y = np.arange(len(rows))[::-1]
    bias.barh(y, [row["one"]["bias"] for row in rows], color=colour)
    bias.plot([row["one"]["bias_noise"] for row in rows], y, "k|", markersize=9, label="if unbiased")
    bias.set(title="bias, relative", yticks=y, yticklabels=[row["estimator"] for row in rows], xscale="log")
    bias.legend(fontsize=7)
    variance.barh(y, [row["all"]["variance"] for row in rows], color=colour)
    variance.set(title="variance, whole encoder", yticks=y, yticklabels=[""] * len(y), xscale="log")


def samples(results: Results) -> Figure:
    figure, (one, whole, learning) = panels(1, 3, width=10, height=3)
    rows = rows_of(results, "reinforce")
    for baseline, marker in (("none", "x"), ("moving_average", "^"), ("leave_one_out", "o")):
        own = [row for row in rows if row["bottleneck"]["baseline"] == baseline]
        for axes, part in ((one, "one"), (whole, "all")):
            x = [row["bottleneck"]["samples"] for row in own]
            values, label = [row[part]["variance"] for row in own], baseline.replace("_", " ")
            axes.plot(x, values, color=COLOURS["reinforce"], marker=marker, label=label)
    ticks = sorted({row["bottleneck"]["samples"] for row in rows})
    for axes in (one, whole):
        axes.set(xscale="log", yscale="log", xlabel="samples S")
        axes.set_xticks(ticks, ticks)
        axes.minorticks_off()
    one.set(title="variance, one frame")
    whole.set(title="variance, whole encoder")
    one.legend(fontsize=7)
    for kind in ("gumbel", "reinforce"):
        for number, record in enumerate(records(results, f"tune-{kind}-")):
            valid = record["result"].get("curves", {}).get("valid", {})
            share = np.array(valid.get("step", [])) / record["result"]["steps"]
            label = kind if number == 0 else None
            learning.plot(share, valid.get("loss", []), "o-", color=COLOURS[kind], markersize=3, lw=0.8, label=label)
    learning.set(title="validation loss", xlabel="share of the training time")
    learning.legend(loc="lower left")
    return figure


def textbook(results: Results) -> Figure:
    figure, all_axes = panels(2, 4, width=11, height=4.6, shared=True)
    known = results["cells"]["textbook"]["result"]
    for axes, (name, values) in zip(all_axes, known["estimators"].items(), strict=True):
        mean, deviation = np.array(values["mean"]), np.array(values["deviation"])
        axes.plot(known["p"], values.get("true", known["true"]), "k--", label="true gradient")
        axes.plot(known["p"], mean, color="#1c7ed6", label="mean of the estimates")
        axes.fill_between(known["p"], mean - deviation, mean + deviation, color="#1c7ed6", alpha=0.2, lw=0)
        axes.set_title(name.replace("temperature", "t ="), fontsize=8)
    all_axes[0].legend(loc="lower right", fontsize=8)
    for axes in all_axes[4:]:
        axes.set(xlabel="p")
    return figure


def temperatures(results: Results) -> Figure:
    figure, (bias, variance) = panels(1, 2, width=7, height=2.8)
    for hard, style in ((False, "o-"), (True, "s--")):
        rows = [row for row in rows_of(results, "gumbel")[1:] if row["bottleneck"]["hard"] == hard]
        x = [row["bottleneck"]["end_temperature"] for row in rows]
        label = "straight-through" if hard else "relaxed"
        bias.plot(x, [row["one"]["bias"] for row in rows], style, color=COLOURS["gumbel"], label=label)
        bias.plot(x, [row["one"]["bias_noise"] for row in rows], ":", color="black")
        variance.plot(x, [row["all"]["variance"] for row in rows], style, color=COLOURS["gumbel"], label=label)
    variance.axhline(rows_of(results, "gumbel")[0]["all"]["variance"], color=COLOURS["reinforce"], label="REINFORCE")
    bias.set(title="bias, relative (dots: if unbiased)", xlabel="temperature", xscale="log", yscale="log")
    variance.set(title="variance, whole encoder", xlabel="temperature", xscale="log", yscale="log")
    variance.legend(fontsize=7)
    return figure


def schedules(results: Results) -> Figure:
    figure, all_axes = panels(1, 3, width=10, height=2.8)
    shown = ("train", "temperature"), ("train", "gradient_norm"), ("valid", "loss")
    for (way, hard), style in zip(WAYS.items(), ("--", "-"), strict=True):
        for number, (name, rows) in enumerate(by_schedule(results, hard=hard).items()):
            for axes, (part, key) in zip(all_axes, shown, strict=True):
                band(axes, rows, part, key, f"C{number}", f"{name}, {way}", style=style)
    for axes, title in zip(all_axes, ("temperature", "gradient norm", "validation loss"), strict=True):
        axes.set(title=title, xlabel="step")
    all_axes[1].set(yscale="log")
    all_axes[2].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def relaxation(results: Results) -> Figure:
    figure, all_axes = panels(1, 2, width=8, height=2.8, shared=True)
    for axes, hard in zip(all_axes, (False, True), strict=True):
        for number, (name, rows) in enumerate(by_schedule(results, hard=hard).items()):
            band(axes, rows, "valid", "hardened", f"C{number}", name, minus="relaxed")
            band(axes, rows, "valid", "mode", f"C{number}", "", minus="relaxed", style="--")
        axes.axhline(0, color="black", lw=0.8)
        axes.set(title=f"trained {'hard' if hard else 'soft'}", xlabel="step")
    all_axes[0].set(ylabel="loss of codes less loss relaxed")
    all_axes[1].legend(fontsize=7)
    return figure


def straight(results: Results) -> Figure:
    figure, (bias, cosine) = panels(1, 2, width=7, height=2.8)
    rows = rows_of(results, "vq")[1:]
    x = [row["temperature"] for row in rows]
    for axes, name in ((bias, "bias"), (cosine, "cosine")):
        axes.plot(x, [row["one"][name] for row in rows], "o-", color=COLOURS["vq"], label="stochastic VQ")
        axes.plot(x, [row["deterministic"][name] for row in rows], "s--", color="black", label="VQ")
        axes.set(title=f"{name} to the exact gradient", xlabel="temperature of the stochastic VQ", xscale="log")
    bias.set(yscale="log")
    cosine.legend(fontsize=7)
    return figure
