"""The report, in Markdown and as one HTML page, from results alone."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import tables
from judges_of_gradients import rows_of
from markupsafe import Markup, escape
from pictures import FIGURES, figures
from plan import EXPERIMENTS
from results import Results, is_complete
from tables import Table

from audiovq.evaluation.pictures import data_uri
from audiovq.files import write_text

TITLE = "What a discrete bottleneck buys"
LEAD = (
    "Five bottlenecks in the same autoencoder, on the same speech, and what is said of them. Verdicts are computed "
    "from the figures, and hold for this bench, not for all models and data."
)
TITLES = {
    "reparameterisation": "Reparameterised gradients",
    "score-function": "Score-function gradients",
    "gumbel-softmax": "Gumbel-Softmax",
    "straight-through": "Straight-through",
    "posterior-collapse": "Posterior collapse",
    "codebook-collapse": "VQ: codes that are ignored, codes that are not used",
    "commitment": "The commitment loss",
    "k-means": "The codebook loss and k-means",
    "two-stages": "Two stages or one",
    "representations": "Codes in use",
    "rate-quality": "Equal rate and equal training time",
}
ABOUT = {
    "reparameterisation": (
        "Bias: of the gradient with respect to one frame's latent when one dimension of it is drawn, relative to the "
        "exact gradient, which is integrated numerically. Variance: trace of the covariance of that gradient. Encoder: "
        "of the whole encoder's gradient when all frames and dimensions are drawn."
    ),
    "score-function": (
        "Bias, cosine and variance: of the gradient with respect to one frame's latent, against the sum over all "
        "codes; an unbiased estimator shows the bias of the next column. Encoder: of all weights, when all frames are "
        "drawn. x s: that variance times the seconds of a draw, the variance of what a second of compute gives."
    ),
    "gumbel-softmax": "All with the parameters of one trained `gumbel`; the schedules are trainings of their own.",
    "straight-through": (
        "The stochastic VQ draws its code by a softmax over squared distances. Its temperature is in units of the mean "
        "squared distance to the nearest code; as it falls the stochastic VQ becomes VQ, whose cost has no gradient."
    ),
    "posterior-collapse": (
        "Gap: what the likelihood of a frame loses in nats when the decoder gets the latents of another stretch of "
        "speech; below 0.5, or a hundredth of what it is without context, they count as ignored. Information: under "
        "the aggregate posterior (Hoffman & Johnson, 2016). `gumbel` and `reinforce` have batch normalisation "
        "built in; `gaussian` and `vq` are tried without and with it. All make as many steps; what is ignored after "
        "these might be used after more."
    ),
    "codebook-collapse": (
        "The KL divergence of `vq` to a uniform prior is log K by construction and proves nothing; the gap does. Codes "
        "are counted in utterances of known voices that were not trained on: another voice leaves out more."
    ),
    "commitment": (
        "Switched: frames of a batch whose code is another after the step. Drift: how far their latents moved, over "
        "their spread."
    ),
    "k-means": "All start from the same codebook and see the same latents.",
    "two-stages": (
        "Jointly: the cross-entropy of the codes under the prior is part of the loss; the prior learns the codes, and "
        "the encoder to choose likely ones. Afterwards: the same prior, trained for the codes of a finished "
        "autoencoder, with or without a prior in its loss. The verdict takes the better prior of each. One weight of "
        "the cross-entropy was tried; a joint training makes as many steps, and takes longer for it."
    ),
    "representations": (
        "Multinomial logistic regression on the mean of frozen latents over a word, or over a second for voices. Words "
        "and their times are those that a recogniser heard (`words.json`). They are told from words of the same voice "
        "alone, since each voice has its own. Of `gaussian` the mean is read, which tells more than the samples that "
        "have its rate. Frequencies: what codes take by how often each occurs in the training speech of the prior."
    ),
    "rate-quality": (
        "Settings are those of the best trial on dev. What moves the rate, number of codes or KL weight, is "
        "interpolated between neighbours on each bottleneck's own curve, by its rate on dev; that of the test voice, "
        "which is shown, is another. Out of reach: the curve does not come to that rate. At a rate by entropy, speech "
        "is decoded from the most likely codes; at one by KL divergence from samples of the posterior, which is what "
        "that many bits can tell: a mean takes more."
    ),
}


@dataclass(frozen=True)
class Section:
    """Parts in the order in which they are shown; text may hold `code` between backticks."""

    name: str
    title: str
    text: list[str]
    tables: list[Table] = field(default_factory=list)
    figures: list[tuple[str, str]] = field(default_factory=list)
    """Name and caption of each figure."""


def sections(results: Results) -> list[Section]:
    """The whole report."""
    first = Section("overview", "Verdicts", [LEAD], [tables.overview(results)])
    last = Section("conditions", "Conditions", ["Made by `recipes/estimators/run.sh`."], [tables.conditions(results)])
    order = ("rate-quality", *(name for name in EXPERIMENTS if name != "rate-quality"))
    return [first, *(section_of(results, name) for name in order), last]


def section_of(results: Results, experiment: str) -> Section:
    """One experiment: its statements, tables, figures, and the command that repeats it."""
    number, done = EXPERIMENTS.index(experiment) + 1, is_complete(results, experiment)
    title = f"{number}. {TITLES[experiment]}" if experiment != "rate-quality" else TITLES[experiment]
    text = [ABOUT[experiment], f"Alone: `recipes/estimators/run.sh --only {experiment}`"]
    found = [tables.verdict_table(results, experiment)]
    if done:
        found += details(results, experiment)
    else:
        left = [name for name in results["experiments"][experiment] if name not in results["cells"]]
        text.append(f"Not run: {len(left)} of {len(results['experiments'][experiment])} cells are left.")
    shown = [
        (name, picture.caption)
        for name, picture in FIGURES.items()
        if experiment == picture.experiments[0] and all(is_complete(results, each) for each in picture.experiments)
    ]
    return Section(experiment, title, text, found, shown)


def details(results: Results, experiment: str) -> list[Table]:
    """The tables of an experiment that is done."""
    if experiment == "rate-quality":
        return [tables.equal_rates(results), tables.curve_points(results), tables.trials(results)]
    kinds = {"reparameterisation": "gaussian", "score-function": "reinforce", "gumbel-softmax": "gumbel"}
    kinds["straight-through"] = "vq"
    made = [tables.estimators(rows_of(results, kinds[experiment]))] if experiment in kinds else []
    others = {
        "gumbel-softmax": tables.schedules,
        "posterior-collapse": tables.contexts,
        "codebook-collapse": tables.codebooks,
        "two-stages": tables.stages,
        "representations": tables.probes,
    }
    return [*made, others[experiment](results)] if experiment in others else made


def write_report(results: Results, folder: Path) -> None:
    """Write `report.md`, `report.html` and `figures/` to a folder."""
    pictures = figures(results)
    for name, svg in pictures.items():
        write_text(folder / "figures" / f"{name}.svg", svg)
    write_text(folder / "report.md", markdown(results, with_figures=True))
    write_text(folder / "report.html", page(results, pictures))


def markdown(results: Results, with_figures: bool) -> str:
    """The report in Markdown; figures are links to `figures/`."""
    parts = [f"# {TITLE}"]
    for section in sections(results):
        parts += [f"## {section.title}", *section.text, *(table.markdown() for table in section.tables)]
        if with_figures:
            parts += [f"![{caption}](figures/{name}.svg)" for name, caption in section.figures]
    return "\n\n".join(parts) + "\n"


def page(results: Results, pictures: dict[str, str]) -> str:
    """The report as one HTML page that needs no other file."""
    uris = {name: data_uri(svg.encode(), "image/svg+xml") for name, svg in pictures.items()}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["marked"] = _marked
    return environment.get_template("report.html.j2").render(title=TITLE, sections=sections(results), pictures=uris)


def _marked(text: str) -> Markup:
    """Text as HTML in which backticks mark code and double asterisks what is strong; links to figures lead to these."""
    html = str(escape(text))
    for pattern, made in MARKS:
        html = re.sub(pattern, made, html)
    return Markup(html)


MARKS = (
    (r"`([^`]+)`", r"<code>\1</code>"),
    (r"\*\*([^*]+)\*\*", r"<strong>\1</strong>"),
    (r"\[([^\]]+)\]\(figures/(\w+)\.svg\)", r'<a href="#figure-\2">\1</a>'),
)
