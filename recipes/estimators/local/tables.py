"""Tables of the report and of the README, from results alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from judges_of_collapse import ignoring, used
from judges_of_trainings import by_schedule, compared, gradient_norms, points_of
from pictures import FIGURES
from plan import EXPERIMENTS, KINDS
from results import Results, failures, found, is_complete, quality, records, text_of
from verdicts import Verdict, verdicts

LATENTS = {
    "none": "continuous",
    "gaussian": "continuous, random",
    "gumbel": "discrete, random",
    "reinforce": "discrete, random",
    "vq": "discrete",
}
ESTIMATORS = {
    "none": "exact",
    "gaussian": "reparameterisation",
    "gumbel": "Gumbel-Softmax, straight-through",
    "reinforce": "score function, leave-one-out",
    "vq": "straight-through",
}
NOT_RUN = "not run"


@dataclass(frozen=True)
class Table:
    """Text for a table; the first column and `words` more are left-aligned, all others hold figures."""

    columns: list[str]
    rows: list[list[str]]
    words: int = 0

    def markdown(self) -> str:
        align = ["---" if i <= self.words else "---:" for i in range(len(self.columns))]
        lines = [self.columns, align, *self.rows]
        escaped = [[cell.replace("|", r"\|") for cell in line] for line in lines]
        return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def verdict_table(results: Results, experiment: str) -> Table:
    """The statements of one experiment and what became of them."""
    own = [verdict for verdict in verdicts(results) if verdict.experiment == experiment]
    return Table(["statement", "source", "tried on", "verdict", "by"], [_row(verdict) for verdict in own], words=4)


def _row(verdict: Verdict) -> list[str]:
    return [verdict.text, verdict.source, verdict.condition, f"**{verdict.verdict}**", verdict.evidence]


def overview(results: Results) -> Table:
    """All statements and verdicts, without figures."""
    rows = []
    for verdict in verdicts(results):
        number = str(EXPERIMENTS.index(verdict.experiment) + 1)
        shown = all(is_complete(results, needed) for needed in FIGURES[verdict.figure].experiments)
        figure = f"[{verdict.figure}](figures/{verdict.figure}.svg)" if shown else "-"
        command = f"`{verdict.command.rpartition('/')[2]}`"
        rows.append([number, verdict.text, f"**{verdict.verdict}**", figure, command])
    return Table(["", "statement", "verdict", "figure", "again"], rows, words=4)


def comparison(results: Results) -> Table:
    """The README's table: each bottleneck in a line, at the last rate by entropy, and samples of `gaussian` by KL."""
    columns = ["bottleneck", "latent", "gradient", "bit/s", "STOI ↑", "PESQ-WB ↑", "mel distance ↓", "shuffle gap ↑"]
    rows = []
    for kind in KINDS:
        own = rows_at_last_rate(results, kind)
        measure = "kl" if kind == "gaussian" else "entropy"
        bits = "unbounded" if kind == "none" else rate_text(own, measure) + (" (KL)" if kind == "gaussian" else "")
        figures = [text_of(quality(own, measure, name)) for name in ("stoi", "pesq_wb", "mel_distance")]
        gap = text_of(found(own, "test", "gap", "gap"))
        rows.append([f"`{kind}`", LATENTS[kind], ESTIMATORS[kind], bits, *figures, gap])
    return Table(columns, rows, words=2)


def rows_at_last_rate(results: Results, kind: str) -> list[dict[str, Any]]:
    """Records of a bottleneck at the last of the compared rates."""
    if kind == "none":
        return records(results, "compare-none")
    measure = "kl" if kind == "gaussian" else "entropy"
    return compared(results, measure, results["plan"]["compare"]["points"][measure][-1]).get(kind, [])


def rate_text(rows: Sequence[dict[str, Any]], measure: str) -> str:
    """Bits a second on the test voice, or why there are none."""
    reasons = [r["result"]["out_of_reach"] for r in rows if r["result"].get("out_of_reach")]
    return f"out of reach: {reasons[0]}" if reasons else text_of(found(rows, "test", "bits_per_second", measure))


def equal_rates(results: Results) -> Table:
    """All bottlenecks at each of the compared rates."""
    columns = ["rate", "bottleneck", "bit/s", "by KL", "STOI ↑", "ESTOI ↑", "PESQ-WB ↑", "mel distance ↓"]
    columns += ["steps", "s a step", "failed"]
    rows = []
    groups = [("none", {"none": records(results, "compare-none")}, "entropy")]
    groups += [
        (f"{bits:g} ({measure})", compared(results, measure, bits), measure) for measure, bits in points_of(results)
    ]
    for title, own, measure in groups:
        for kind, chosen in own.items():
            names = ("stoi", "estoi", "pesq_wb", "mel_distance")
            rate = "unbounded" if kind == "none" else rate_text(chosen, measure)
            if rate.startswith("out of reach"):
                rows.append([title, f"`{kind}`", rate, *["-"] * (len(columns) - 3)])
                continue
            of_kl = found(chosen, "test", "bits_per_second", "kl")
            row = [title, f"`{kind}`", rate, text_of(of_kl) if of_kl else "-"]
            row += [text_of(quality(chosen, measure, name)) for name in names]
            row += [text_of(found(chosen, "steps")[:1]), text_of(found(chosen, "made", "seconds_per_step"))]
            rows.append([*row, f"{failures(chosen)} of {len(chosen)}"])
    return Table(columns, rows, words=1)


def curve_points(results: Results) -> Table:
    """Every point of the rate-quality curves."""
    rows = []
    for record in records(results, "curve-"):
        kind, (name, value) = record["settings"]["bottleneck"], record["settings"]["moved"]
        own = [record]
        rates = [text_of(found(own, "test", "bits_per_second", measure)) for measure in ("entropy", "kl")]
        names = ("stoi", "pesq_wb", "mel_distance")
        figures = [text_of(quality(own, measure, metric)) for measure in ("entropy", "kl") for metric in names]
        shown = (figure.replace(NOT_RUN, "-") for figure in (*rates, *figures))
        rows.append([f"`{kind}`", f"`{name.rpartition('.')[2]}` {value:g}", *shown])
    columns = ["bottleneck", "setting", "bit/s by entropy", "by KL", "STOI ↑", "PESQ-WB ↑", "mel distance ↓"]
    columns += ["of samples: STOI ↑", "PESQ-WB ↑", "mel distance ↓"]
    return Table(columns, rows, words=1)


def trials(results: Results) -> Table:
    """What was tried for each bottleneck, and the objective on dev by which it was chosen."""
    rows = []
    for kind, own in results["plan"]["tuning"]["trials"].items():
        for number, overrides in enumerate(own):
            shown = ", ".join(f"`{override}`" for override in overrides) or "as they are"
            runs = records(results, f"tune-{kind}-{number}")
            values = found(runs, "dev", "objective")
            rows.append([f"`{kind}`", shown, text_of(values, 4) if values else "failed" if runs else NOT_RUN])
    return Table(["bottleneck", "settings", "objective on dev ↓"], rows, words=1)


def estimators(rows: Sequence[dict[str, Any]]) -> Table:
    """Estimators of the gradient with one set of parameters."""
    columns = [
        "estimator",
        "bias",
        "(if unbiased)",
        "cosine",
        "variance",
        "encoder: variance",
        "SNR",
        "s a draw",
        "x s",
    ]
    table = []
    for row in rows:
        one, whole = row.get("one", {}), row["all"]
        figures = [one.get(name) for name in ("bias", "bias_noise", "cosine", "variance")]
        figures += [whole[name] for name in ("variance", "snr", "seconds", "variance_seconds")]
        table.append([row["estimator"], *("-" if figure is None else f"{figure:.3g}" for figure in figures)])
    return Table(columns, table)


def contexts(results: Results) -> Table:
    """Decoders that see the past."""
    columns = ["bottleneck", "context", "remedy", "-log p(x|z)", "KL", "information", "gap: shuffled", "ignored by"]
    rows, seen = [], set()
    for record in records(results, "context-"):
        settings = record["settings"]
        key = settings["bottleneck"], settings["units"], settings["remedy"]
        if key in seen:
            continue
        seen.add(key)
        own = records(results, f"context-{key[0]}-", units=key[1], remedy=key[2])
        parts = (("gap", "true"), ("usage", "kl"), ("usage", "information"), ("gap", "gap"))
        figures = [text_of(found(own, *part)) for part in parts]
        context = record["result"]["context"]
        ignored = f"{sum(ignoring(results, key[0], key[2])[context])} of {len(own)}"
        rows.append([f"`{key[0]}`", str(context), key[2] or "-", *figures, ignored])
    return Table(columns, sorted(rows, key=lambda row: (KINDS.index(row[0].strip("`")), row[2], int(row[1]))), words=2)


def codebooks(results: Results) -> Table:
    """What keeps codes in use."""
    plan, rows = results["plan"]["codebooks"], []
    for revival, update, init in product(plan["revival"], plan["updates"], plan["inits"]):
        way = {"revival": revival, "update": update, "init": init}
        own = records(results, "codebook-", **way)
        figures = [text_of(used(results, **way)), text_of(found(own, "dev", "usage", "perplexity"))]
        figures += [text_of(found(own, "test", "metrics", "stoi"))]
        rows.append([init, update, revival, *figures])
    columns = ["start", "update", "revival", "codes that known voices use ↑", "perplexity ↑", "STOI ↑"]
    return Table(columns, rows, words=2)


def schedules(results: Results) -> Table:
    """Gumbel-Softmax by temperature schedule, trained soft and hard."""
    columns = ["schedule", "samples", "STOI ↑", "mel distance ↓", "perplexity", "gradient norm", "failed"]
    rows = []
    for hard in (False, True):
        for name, own in by_schedule(results, hard=hard).items():
            figures = [text_of(found(own, "test", "metrics", metric)) for metric in ("stoi", "mel_distance")]
            figures += [text_of(found(own, "test", "usage", "perplexity")), text_of(gradient_norms(own))]
            rows.append([name, "hard" if hard else "soft", *figures, f"{failures(own)} of {len(own)}"])
    return Table(columns, rows, words=1)


def stages(results: Results) -> Table:
    """A prior trained afterwards or jointly."""
    columns = ["bottleneck", "trained", "bit/s, own prior ↓", "bit/s, prior afterwards ↓", "STOI ↑", "mel distance ↓"]
    columns += ["perplexity", "shuffle gap ↑", "s a step"]
    rows = []
    for kind in results["plan"]["stages"]["bottlenecks"]:
        for way, title in (("after", "in two stages"), ("joint", "jointly")):
            own = records(results, f"stages-{way}-{kind}-")
            bits = ["-" if way == "after" else text_of(found(own, "prior_joint")), text_of(found(own, "prior_after"))]
            paths = (("metrics", "stoi"), ("metrics", "mel_distance"), ("usage", "perplexity"), ("gap", "gap"))
            figures = [text_of(found(own, "test", *path)) for path in paths]
            rows.append([f"`{kind}`", title, *bits, *figures, text_of(found(own, "made", "seconds_per_step"))])
    return Table(columns, rows, words=1)


def probes(results: Results) -> Table:
    """What linear probes read off, and what codes take under a prior."""
    columns = ["bottleneck", "bit/s by frequencies", "by KL", "under a prior ↓"]
    columns += [f"{target} from {source} ↑" for target in ("word", "voice") for source in ("latents", "codes")]
    columns += ["commonest word", "voice"]
    rows = []
    for kind in KINDS:
        own = records(results, f"probe-{kind}-")
        figures = [found(own, "frequencies", "test"), found(own, "bits_per_second", "kl")]
        figures.append(found(own, "prior", "test"))
        for target in ("word", "voice"):
            figures += [found(own, "probes", target, source, "accuracy") for source in ("latents", "codes")]
        figures += [found(own, "probes", target, "latents", "commonest") for target in ("word", "voice")]
        rows.append([f"`{kind}`", *(text_of(values) if values else "-" for values in figures)])
    return Table(columns, rows)


def conditions(results: Results) -> Table:
    """What the figures depend on."""
    facts = dict(results["conditions"])
    data = results["cells"].get("data", {}).get("result", {})
    for split in data:
        facts[f"{split} speech"] = f"{data[split]['minutes']:.1f} minutes of {', '.join(data[split]['speakers'])}"
    facts["seeds"] = results["plan"]["seeds"]
    made = [record["made"] for record in results["cells"].values()]
    facts["commits of the cells"] = ", ".join(sorted({str(record["commit"]) for record in made}))
    facts["processors"] = ", ".join(sorted({record["processor"] for record in made}))
    facts["cells done"] = f"{len(results['cells'])} of {len(results['planned'])}"
    planned = sum(seconds for name, seconds in results["planned"].items() if name in results["cells"])
    spent = sum(record["seconds"] for record in made)
    facts["CPU minutes of these"] = f"{spent / 60:.0f}, planned {planned / 60:.0f}"
    facts["CPU minutes of all, planned"] = f"{sum(results['planned'].values()) / 60:.0f}"
    return Table(["", "value"], [[name.replace("_", " "), str(value)] for name, value in facts.items()], words=1)
