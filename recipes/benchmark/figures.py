"""Means with intervals, and their tables and picture, for the benchmark of quality."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from codec import table

from audiovq.evaluation.metrics import Metric, MetricError, Weighted, weight_of

COLUMNS = {
    "pesq_wb": ("PESQ-WB", 2),
    "stoi": ("STOI", 2),
    "estoi": ("ESTOI", 2),
    "mel_distance": ("mel distance", 2),
    "wer": ("WER %", 0),
    "speaker": ("speaker", 2),
    "pitch": ("F0 frame error %", 0),
    "mos": ("MOS", 2),
}
"""Metrics, their titles and their decimals in the table."""
TICKS = (0.5, 1, 2, 4, 8)
"""Bitrates in kbit/s that the picture names."""
RESAMPLES = 5000
"""Of the bootstrap."""


class Figure(NamedTuple):
    """Mean over clips, by their weights, and its 95% interval; all None without a value, the interval for one."""

    mean: float | None = None
    low: float | None = None
    high: float | None = None

    def text(self, decimals: int, sign: str = "") -> str:
        if self.mean is None:
            return "failed"
        mean = f"{self.mean:{sign}.{decimals}f}"
        return mean if self.low is None or self.high is None else f"{mean} ± {(self.high - self.low) / 2:.{decimals}f}"


def figure(results: Sequence[float | MetricError]) -> Figure:
    """The mean of those that are numbers; the interval by the bootstrap over clips (percentiles)."""
    from scipy.stats import bootstrap

    found = [result for result in results if not isinstance(result, MetricError)]
    if not found:
        return Figure()

    def mean(values: np.ndarray, weights: np.ndarray, axis: int = -1) -> np.ndarray:
        return (values * weights).sum(axis) / weights.sum(axis)

    data = np.array(found, dtype=float), np.array([weight_of(result) for result in found])
    if len(found) == 1:
        return Figure(found[0])
    settings = {"n_resamples": RESAMPLES, "method": "percentile", "random_state": np.random.default_rng(0)}
    interval = bootstrap(data, mean, paired=True, vectorized=True, **settings).confidence_interval
    return Figure(float(mean(*data)), float(interval.low), float(interval.high))


def difference(own: Sequence[float | MetricError], other: Sequence[float | MetricError]) -> Figure:
    """How much the first results are above the second, clip by clip."""
    pairs = zip(own, other, strict=True)
    numbers = [(a, b) for a, b in pairs if not isinstance(a, MetricError) and not isinstance(b, MetricError)]
    return figure([Weighted(a - b, weight_of(a)) for a, b in numbers])


def heading(name: str, metric: Metric) -> str:
    """Name of a metric and where better is."""
    return f"{COLUMNS[name][0]} {'↑' if metric.higher_is_better else '↓'}"


def quality_table(rows: Sequence[dict[str, Any]], metrics: Mapping[str, Metric]) -> str:
    """Every system's bitrate and means."""
    columns = {"system": "{system}", "kbit/s": "{kbps:.3g}"}
    columns |= {heading(name, metric): f"{{{name}}}" for name, metric in metrics.items()}
    texts = [{**row, **{name: row["metrics"][name].text(COLUMNS[name][1]) for name in metrics}} for row in rows]
    return table(columns, texts)


def difference_table(rows: Sequence[dict[str, Any]], metrics: Mapping[str, Metric], base: str) -> str:
    """Every other system's distance from one; bold if the interval leaves out 0."""

    def text(name: str, found: Figure) -> str:
        plain = found.text(metrics[name].decimals, "+")
        sure = found.low is not None and found.high is not None and not found.low <= 0 <= found.high
        return f"**{plain}**" if sure else plain

    columns = {f"less {base}": "{system}"}
    columns |= {heading(name, metric): f"{{{name}}}" for name, metric in metrics.items()}
    others = [row for row in rows if row["system"] not in ("original", base)]
    return table(columns, [{**row, **{k: text(k, row["differences"][k]) for k in metrics}} for row in others])


def draw(rows: Sequence[dict[str, Any]], metrics: Mapping[str, Metric], classical: Collection[str], path: Path) -> None:
    """Quality against bitrate, a panel a metric, a line a family: models solid, classical codecs dashed."""
    from matplotlib.figure import Figure as Drawing

    coded = sorted((row for row in rows if row["family"] != "original"), key=lambda row: row["kbps"])
    families = dict.fromkeys(row["family"] for row in rows if row in coded)
    height = -(-(len(metrics) + 1) // 4)  # The last panel is the legend.
    drawing = Drawing(figsize=(12.5, 2.8 * height), layout="constrained")
    panels = list(drawing.subplots(height, 4, squeeze=False).flat)
    for panel, (name, metric) in zip(panels, metrics.items(), strict=False):
        for number, family in enumerate(families):
            points = [(row["kbps"], *row["metrics"][name]) for row in coded if row["family"] == family]
            kbps, mean, low, high = np.array(points, dtype=float).T
            looks = {"fmt": "s--"} if family in classical else {"fmt": "o-", "linewidth": 2.5, "zorder": 3}
            panel.errorbar(
                *(kbps, mean, (mean - low, high - mean)),
                **{"label": family, "color": f"C{number}", "markersize": 4, "elinewidth": 0.8, "capsize": 2, **looks},
            )
        originals = [row["metrics"][name].mean for row in rows if row["family"] == "original"]
        if name == "mos" and originals[0] is not None:
            panel.axhline(originals[0], color="0.5", linestyle=":", label="original")
        panel.set(title=heading(name, metric), xscale="log")
        panel.minorticks_off()
        panel.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(metrics) :]:
        panel.axis("off")
    legend = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    panels[len(metrics)].legend(legend.values(), legend.keys(), loc="center left", frameon=False)
    drawing.supxlabel("kbit/s", fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=110)
