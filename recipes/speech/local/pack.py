"""Pack a trained model as it comes with audiovq: half precision on disk, the card that somebody wrote into the target
folder, and what `recipes/benchmark/quality.py` measured of the packed model.

usage: pack.py RELEASE OUTPUT                  a tokenizer, or a prior, alone
       pack.py --quality JSON OUTPUT [README]  the quality of the model in OUTPUT, measured under its name, in its card
                                               and, beside codecs, in a table of README
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from audiovq.files import write_json, write_text
from audiovq.models.pretrained import QUALITY
from audiovq.models.prior import CodePrior
from audiovq.models.release import CARD, kind_of
from audiovq.models.tokenizer import AudioTokenizer

NAMES = {"pesq_wb": "PESQ-WB", "stoi": "STOI", "estoi": "ESTOI", "wer": "WER %", "speaker": "speaker", "mos": "MOS"}
"""What metrics are called in tables."""
BEGIN, END = "<!-- quality -->", "<!-- end of quality -->"
"""Marks of a card, between which the figures stand."""
WRITTEN_BY_AUDIOVQ = "\nTrained with audiovq "
"""Stands in cards that nobody wrote."""


def pack(source: str, output: Path) -> None:
    """Write the model in half precision; a card that somebody wrote into the target folder stays."""
    card = output / CARD
    written = card.read_text(encoding="utf-8") if card.exists() else None
    kind = CodePrior if kind_of(Path(source)) == "prior" else AudioTokenizer
    kind.from_pretrained(source, "cpu").save_pretrained(output, half=True)
    if written is not None and WRITTEN_BY_AUDIOVQ not in written:
        write_text(card, written)


def quality(measured: dict[str, Any], output: Path) -> None:
    """Keep the means of the model's rows, and put them into its card: between the marks, or at the end."""
    tokenizer = AudioTokenizer.from_pretrained(output, "cpu")
    rows = [row for row in measured["systems"] if row["family"] in (output.name, str(output))]
    if not rows:
        raise SystemExit(f"pack.py: nothing was measured of {output}; give quality.py its --model as it is given here")
    rates = []
    for row in sorted(rows, key=lambda row: row["kbps"]):
        counts = range(1, tokenizer.num_codebooks + 1)
        books = min(counts, key=lambda count: abs(tokenizer.bitrate_of(count) - 1000 * row["kbps"]))
        found = {NAMES[name]: figure["mean"] for name, figure in row["metrics"].items() if name in NAMES}
        metrics = {name: round(mean, 3) for name, mean in found.items() if mean is not None}
        rates.append({"codebooks": books, "bitrate": tokenizer.bitrate_of(books), "metrics": metrics})
    card = (output / CARD).read_text(encoding="utf-8")
    if BEGIN not in card:
        card += f"\n## Quality\n\n{BEGIN}\n{END}\n"
    lines = ["| codebooks | kbit/s | " + " | ".join(rates[0]["metrics"]) + " |"]
    lines += ["|---:" * (2 + len(rates[0]["metrics"])) + "|"]
    for rate in rates:
        figures = [f"{value:.3g}" for value in rate["metrics"].values()]
        lines.append(f"| {rate['codebooks']} | {rate['bitrate'] / 1000:g} | " + " | ".join(figures) + " |")
    table = "\n".join([*lines, "", *(f"- {line}" for line in measured["conditions"])])
    write_text(output / CARD, marked(card, BEGIN, END, f"{table}\n"))
    write_json(output / QUALITY, {"rates": rates, "conditions": measured["conditions"]})


def overview(measured: dict[str, Any], name: str) -> str:
    """A table of a model at each of its bitrates beside codecs, as the README shows it."""
    rows = [row for row in measured["systems"] if row["family"] in ("original", name, "Codec 2", "Opus")]
    lines = ["| | kbit/s | PESQ-WB ↑ | STOI ↑ | ESTOI ↑ | WER % ↓ | speaker ↑ | MOS ↑ |", "|---|" + 7 * "---:|"]
    for row in rows:
        title = row["system"]
        if row["family"] == name:
            books = row["system"].removeprefix(f"{name}, ").partition(" ")[0]
            title = f"**`{name}`**, {books} codebook{'s' * (books != '1')}"
        means = [f"{row['metrics'][metric]['mean']:.{0 if metric == 'wer' else 2}f}" for metric in NAMES]
        lines.append(f"| {title} | {row['kbps']:.3g} | {' | '.join(means)} |")
    return "\n".join(lines)


def marked(text: str, begin: str, end: str, inner: str) -> str:
    """A text with other lines between two marks."""
    before, found, rest = text.partition(f"{begin}\n")
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"pack.py: expected the marks {begin} and {end}")
    return before + found + inner + closed + after


if __name__ == "__main__":
    if sys.argv[1] == "--quality":
        measured, output = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")), Path(sys.argv[3])
        quality(measured, output)
        for page in map(Path, sys.argv[4:]):
            table = f"\n{overview(measured, output.name)}\n\n"
            text = page.read_text(encoding="utf-8")
            write_text(page, marked(text, "<!-- quality: begin -->", "<!-- quality: end -->", table))
    else:
        pack(sys.argv[1], Path(sys.argv[2]))
