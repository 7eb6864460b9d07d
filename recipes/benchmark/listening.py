"""The listening page of the benchmark of quality: each clip as every system gives it back, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from figures import COLUMNS, heading

from audiovq.evaluation.metrics import Metric
from audiovq.evaluation.pages import render, signals, timeline

if TYPE_CHECKING:
    from torch import Tensor

    from audiovq.data.manifest import Utterance


class Example(NamedTuple):
    """A clip to listen to."""

    utterance: Utterance
    waves: dict[str, Tensor]
    """What each system gives back [1, T], by its name."""


def listening_page(
    rows: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Metric],
    examples: Sequence[Example],
    facts: Sequence[str],
    sample_rate: int,
) -> str:
    """A page with the table of all systems and players for the examples."""
    return render(
        "listening.html.j2",
        Path(__file__).parent,
        headings=[heading(name, metric) for name, metric in metrics.items()],
        rows=[
            (row["system"], f"{row['kbps']:.3g}", [row["metrics"][name].text(COLUMNS[name][1]) for name in metrics])
            for row in rows
        ],
        examples=[
            {
                "utterance": example.utterance,
                "timeline": timeline(next(iter(example.waves.values())).shape[-1], sample_rate),
                "signals": signals(example.waves, sample_rate),
            }
            for example in examples
        ],
        facts=facts,
    )
