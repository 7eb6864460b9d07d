"""The report, in Markdown and as one HTML page, from results.json alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
from figures import figures
from markupsafe import Markup, escape
from sections import sections

from audiovq.evaluation.pictures import data_uri
from audiovq.files import write_text

Results = dict[str, Any]
TITLE = "What a discrete bottleneck buys"


def read_results(path: Path) -> Results:
    return json.loads(path.read_text(encoding="utf-8"))


def write_report(exp: Path) -> None:
    """Write `report.md`, `report.html` and `figures/` beside `results.json`."""
    results = read_results(exp / "results.json")
    pictures = figures(results)
    for name, svg in pictures.items():
        write_text(exp / "figures" / f"{name}.svg", svg)
    write_text(exp / "report.md", markdown(results, with_figures=True))
    write_text(exp / "report.html", page(results, pictures))


def markdown(results: Results, with_figures: bool) -> str:
    """The report in Markdown; figures are links to `figures/`."""
    return _template("report.md.j2", autoescape=False).render(
        title=TITLE, sections=sections(results), with_figures=with_figures
    )


def page(results: Results, pictures: dict[str, str]) -> str:
    """The report as one HTML page that needs no other file."""
    uris = {name: data_uri(svg.encode(), "image/svg+xml") for name, svg in pictures.items()}
    return _template("report.html.j2", autoescape=True).render(title=TITLE, sections=sections(results), pictures=uris)


def _template(name: str, autoescape: bool) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["code"] = _code
    return environment.get_template(name)


def _code(text: str) -> Markup:
    """Text in which backticks mark code, as HTML."""
    parts = [escape(part) for part in text.split("`")]
    return Markup("").join(Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(parts))
