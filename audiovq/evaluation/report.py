"""Writing an evaluation down: figures for programs, a table for the terminal, a page to see and listen to."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import audiovq
from audiovq.errors import OutputExistsError
from audiovq.evaluation.evaluate import Evaluation, Example, Scores
from audiovq.evaluation.metrics import MetricError, MetricSummary, Weighted
from audiovq.evaluation.pages import render, signals, timeline
from audiovq.evaluation.pictures import code_strip, histogram_path
from audiovq.files import read_json, refuse_to_overwrite, write_json, write_text

FORMAT_VERSION = 1
METRICS_FILE, UTTERANCES_FILE, PAGE_FILE = "metrics.json", "utterances.jsonl", "index.html"
EXAMPLE_SECONDS = 15
"""Examples on the page are cut to this length."""
DECIMALS = 6
"""Decimals in the files: beyond them pystoi's values depend on its random generator."""


@dataclass(frozen=True)
class Row:
    """A line of the table of metrics, as text."""

    title: str
    unit: str
    higher_is_better: bool
    model: str
    noise: str
    """Empty for what a judge says."""
    count: str
    reasons: dict[str, int]


def table(evaluation: Evaluation) -> list[Row]:
    """Every metric with its interval; one that failed on all utterances shows as failed."""
    summaries, noise = evaluation.summaries(), evaluation.noise_summaries()
    return [
        Row(
            title=metric.title,
            unit=metric.unit,
            higher_is_better=metric.higher_is_better,
            model=_format(summaries[name], metric.decimals),
            noise=_format(noise[name], metric.decimals) if name in noise else "",
            count=str(summaries[name].n) + (f", {failed} failed" if (failed := summaries[name].failed) else ""),
            reasons=summaries[name].reasons,
        )
        for name, metric in evaluation.metrics.items()
    ]


def format_table(evaluation: Evaluation) -> str:
    """The table of metrics and the use of the codes as lines of text."""
    lines, rows = [("", "model", "mean-spectrum noise", "n")], table(evaluation)
    for row in rows:
        title = f"{row.title} ({row.unit})" if row.unit else row.title
        lines.append((title, row.model, row.noise, row.count))
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    text = ["  ".join(cells).rstrip() for cells in padded]
    for row in rows:
        text += [f"{row.title} failed {count}x: {reason}" for reason, count in row.reasons.items()]
    text += evaluation.judges.lines()
    if evaluation.codes is not None:
        codes, model = evaluation.codes, evaluation.model
        number, of_model = model["num_codebooks"], model["model_codebooks"]
        chosen = f" with {number} of the model's {of_model} codebooks" if number < of_model else ""
        text.append(
            f"bitrate {codes.nominal_bitrate:.0f} bit/s{chosen}, empirical {codes.empirical_bitrate:.0f} bit/s; "
            f"{codes.frames} frames"
        )
        for book, (size, used) in enumerate(zip(codes.sizes, codes.used, strict=True)):
            perplexity, dead = codes.perplexity[book], codes.dead[book]
            text.append(f"codebook {book}: {used} of {size} codes used, {dead} dead, perplexity {perplexity:.1f}")
    return "\n".join(text)


def check_report_folder(folder: str | Path, force: bool) -> None:
    """Raise `OutputExistsError` if a folder is not empty; with `force`, if what would be overwritten is no report."""
    folder = Path(folder)
    refuse_to_overwrite(folder, force and (folder.is_dir() or not folder.exists()))
    held = [name for name in (METRICS_FILE, UTTERANCES_FILE, PAGE_FILE) if (folder / name).exists()]
    try:
        own = not held or "audiovq_version" in read_json(folder / METRICS_FILE)
    except (OSError, ValueError, TypeError):
        own = False
    if not own:
        raise OutputExistsError(
            f"{folder}: {', '.join(held)} may not be what evaluate has written there; move it away or choose another "
            "--output"
        )


def write_report(evaluation: Evaluation, folder: str | Path) -> Path:
    """Write `metrics.json`, `utterances.jsonl` and the page `index.html`; returns the path of the page."""
    folder = Path(folder)
    write_json(folder / METRICS_FILE, metrics_record(evaluation))  # First: by it a report is known.
    lines = [json.dumps(_utterance_record(scores)) for scores in evaluation.scores]
    write_text(folder / UTTERANCES_FILE, "".join(line + "\n" for line in lines))
    write_text(folder / PAGE_FILE, render_page(evaluation))
    return folder / PAGE_FILE


def metrics_record(evaluation: Evaluation) -> dict[str, Any]:
    """The content of metrics.json."""
    return _rounded(
        {
            "format_version": FORMAT_VERSION,
            "audiovq_version": audiovq.__version__,
            "model": evaluation.model,
            "data": {
                "name": evaluation.data,
                "utterances": len(evaluation.scores),
                "seconds": evaluation.seconds,
                "rejected": [{"id": name, "reason": reason} for name, reason in evaluation.rejected.items()],
            },
            "metrics": {name: asdict(summary) for name, summary in evaluation.summaries().items()},
            "mean_spectrum_noise": {name: asdict(summary) for name, summary in evaluation.noise_summaries().items()},
            "judges": {
                **{name: {"model": model} for name, model in evaluation.judges.models.items()},
                **{name: {"cannot_run": reason} for name, reason in evaluation.judges.unable.items()},
            },
            "codes": None if evaluation.codes is None else asdict(evaluation.codes),
        }
    )


def render_page(evaluation: Evaluation) -> str:
    """The listening page."""
    return render(
        "page.html.j2",
        evaluation=evaluation,
        rows=table(evaluation),
        histograms=[histogram_path(counts) for counts in _books(evaluation)],
        examples=[_example_view(example, evaluation) for example in evaluation.examples],
    )


def _books(evaluation: Evaluation) -> list[Any]:
    return [] if evaluation.code_counts is None else list(evaluation.code_counts)


def _format(summary: MetricSummary, decimals: int) -> str:
    if summary.mean is None:
        return "failed"
    text = f"{summary.mean:.{decimals}f}"
    return text if summary.ci95 is None else f"{text} ± {summary.ci95[1] - summary.mean:.{decimals}f}"


def _utterance_record(scores: Scores) -> dict[str, Any]:
    def record(results: dict[str, float | MetricError]) -> dict[str, Any]:
        failures = {name: str(result) for name, result in results.items() if isinstance(result, MetricError)}
        values = {name: None if name in failures else result for name, result in results.items()}
        weights = {name: result.weight for name, result in results.items() if isinstance(result, Weighted)}
        return {"metrics": values, "failures": failures, **({"weights": weights} if weights else {})}

    return _rounded(
        {
            "id": scores.utterance.id,
            "seconds": scores.seconds,
            **record(scores.model),
            "mean_spectrum_noise": record(scores.noise),
        }
    )


def _rounded(data: Any) -> Any:
    """Plain data with every float rounded."""
    if isinstance(data, float):
        return round(data, DECIMALS)
    if isinstance(data, dict):
        return {key: _rounded(value) for key, value in data.items()}
    return [_rounded(value) for value in data] if isinstance(data, list | tuple) else data


def _example_view(example: Example, evaluation: Evaluation) -> dict[str, Any]:
    """What the template needs of an example."""
    rate, hop = evaluation.model["sample_rate"], evaluation.model["hop_length"]
    original, decoded = (wave[:, : EXAMPLE_SECONDS * rate] for wave in (example.original, example.decoded))
    length = original.shape[-1]
    codes = None if example.codes is None else example.codes[:, : -(-length // hop)]
    return {
        "utterance": example.scores.utterance,
        "cut": length < example.original.shape[-1],
        "timeline": timeline(length, rate),
        "values": [
            (metric.title, metric.unit, _format(_single(example.scores.model[name]), metric.decimals))
            for name, metric in evaluation.metrics.items()
        ],
        "signals": signals({"Original": original, "Decoded": decoded}, rate),
        "strip": None if codes is None else code_strip(codes),
        "strip_width": 0 if codes is None else 100 * codes.shape[-1] * hop / length,
        "books": 0 if codes is None else len(codes),
    }


def _single(result: float | MetricError) -> MetricSummary:
    failed = isinstance(result, MetricError)
    return MetricSummary(None if failed else result, None, int(not failed), int(failed), {})
