"""What figures share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = {"none": "#868e96", "gaussian": "#1c7ed6", "gumbel": "#e8590c", "reinforce": "#9c36b5", "vq": "#2b8a3e"}


def band(
    axes: Axes, rows: Sequence[dict[str, Any]], part: str, name: str, colour: str, label: str,
    minus: str | None = None, style: str = "-",
) -> None:  # fmt: skip
    """Mean over trainings of a logged quantity and its range."""
    curves = [record["result"].get("curves", {}).get(part, {}) for record in rows]
    curves = [curve for curve in curves if name in curve]
    if not curves:
        return
    length = min(len(curve["step"]) for curve in curves)  # A failed run ends early.
    values = np.array([curve[name][:length] for curve in curves])
    if minus is not None:
        values = values - np.array([curve[minus][:length] for curve in curves])
    axes.plot(curves[0]["step"][:length], values.mean(0), style, color=colour, label=label)
    axes.fill_between(curves[0]["step"][:length], values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)


def panels(rows: int, columns: int, width: float, height: float, shared: bool = False) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(rows, columns, sharex=shared, sharey=shared)).flat)
