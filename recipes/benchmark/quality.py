#!/usr/bin/env python
"""Quality against bitrate: models beside Codec 2, Opus and Speex, on the same utterances.

    python recipes/benchmark/quality.py test.jsonl.gz --model speech-16k --codebooks 1,2,3,6 --output exp/quality

Prints Markdown and writes it with all figures and a picture. See README.md for what the columns mean.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from classical import CODECS, RATE, Run
from codec import commit, cpu_name
from figures import COLUMNS, difference, difference_table, draw, figure, quality_table
from listening import Example, listening_page

from audiovq.audio.resampling import resample
from audiovq.batching import evenly_spread
from audiovq.data.manifest import Utterance, read_manifest
from audiovq.errors import AudioError, AudioVQError, ConfigError
from audiovq.evaluation.judges import Judges, load_judges
from audiovq.evaluation.metrics import METRICS, Metric, MetricError, measure, weight_of
from audiovq.files import write_json, write_text
from audiovq.text import watched

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class System:
    """A model or codec in one setting, and what was measured of it."""

    family: str
    """Systems of a family are one line in the picture."""
    name: str
    run: Run
    bits: float = 0.0
    seconds: float = 0.0
    results: dict[str, list[float | MetricError]] = field(default_factory=dict)
    """Of each clip, by metric."""

    @property
    def kbps(self) -> float:
        """Mean bitrate in kbit/s."""
        return self.bits / self.seconds / 1000

    def measure(self, clip: Tensor, metrics: Mapping[str, Metric]) -> Tensor:
        """Pass a clip through the system, and compare; returns what came out."""
        decoded, bits = self.run(clip)
        self.bits, self.seconds = self.bits + bits, self.seconds + clip.shape[-1] / RATE
        for name, result in measure(clip, decoded, RATE, metrics).items():
            self.results.setdefault(name, []).append(result)
        return decoded


# --- systems -------------------------------------------------------------------------------------------------


def model_systems(name: str, codebooks: Sequence[int], device: str) -> list[System]:
    """A model with each of these numbers of codebooks that it has; with all of them if it has none of these.

    Its bits are the nominal ones.
    """
    from audiovq.models.tokenizer import AudioTokenizer

    tokenizer = AudioTokenizer.from_pretrained(name, device)
    tokenizer.require_codes()

    def system(count: int) -> System:
        def run(clip: Tensor) -> tuple[Tensor, float]:
            decoded = tokenizer.decode(tokenizer.encode(clip, RATE, count))[0].cpu()
            bits = tokenizer.bitrate_of(count) * clip.shape[-1] / RATE
            return resample(decoded, tokenizer.sample_rate, RATE)[:, : clip.shape[-1]], bits

        return System(name, f"{name}, {count} of {tokenizer.num_codebooks} codebooks", run)

    return [system(count) for count in codebooks if count <= tokenizer.num_codebooks] or [
        system(tokenizer.num_codebooks)
    ]


def codec_systems() -> tuple[list[System], list[str]]:
    """The codecs that can run, and a word about each other."""
    systems, notes = [], []
    for codec in CODECS:
        if missing := codec.missing():
            notes.append(f"{codec.name} is left out: {missing}")
        else:
            systems += [System(codec.name, f"{codec.name} {name}", run) for name, run in codec.settings.items()]
    return systems, notes


def named(systems: Sequence[System], name: str) -> System:
    """The system of this name."""
    for system in systems:
        if system.name == name:
            return system
    raise ConfigError(f"no system is called {name!r}; there are {', '.join(repr(system.name) for system in systems)}")


def measure_all(
    systems: Sequence[System],
    utterances: Sequence[Utterance],
    seconds: float,
    metrics: Mapping[str, Metric],
    examples: int,
) -> tuple[list[str], list[str], list[Example]]:
    """Measure all systems on each clip in turn.

    Returns the clips' ids, what cannot be read, with the reason, and so many clips, evenly spread, to listen to.
    """
    clips, rejected, heard = [], [], []
    kept = {id(utterance) for utterance in evenly_spread(utterances, examples)}
    for utterance in watched(utterances, "Clips"):
        try:
            clip = utterance.source().read(RATE)[:, : round(seconds * RATE)]
        except AudioError as error:
            rejected.append(f"{utterance.id}: {error}")
            continue
        clips.append(utterance.id)
        waves = {system.name: system.measure(clip, metrics) for system in systems}
        if id(utterance) in kept:
            heard.append(Example(utterance, waves))
    if not clips:
        raise AudioError(f"none of the {len(utterances)} clips can be read" + "".join(f"; {x}" for x in rejected[:1]))
    return clips, rejected, heard


def summarize(systems: Sequence[System], base: System | None) -> list[dict[str, Any]]:
    """All figures of every system, as plain data."""
    return [
        {
            "family": system.family,
            "system": system.name,
            "kbps": system.kbps,
            "metrics": {name: figure(results) for name, results in system.results.items()},
            "differences": {
                name: difference(results, base.results[name]) for name, results in system.results.items() if base
            },
            "clips": {
                name: [None if isinstance(result, MetricError) else result for result in results]
                for name, results in system.results.items()
            },
        }
        for system in systems
    ]


def failures(systems: Sequence[System]) -> list[str]:
    """Which metrics have no value for which system, and why."""
    return [
        f"{COLUMNS[name][0]} of {system.name} has no value for {count} clip{'s' * (count > 1)}: {reason}"
        for system in systems
        for name, results in system.results.items()
        for reason, count in Counter(str(result) for result in results if isinstance(result, MetricError)).items()
    ]


def conditions(manifests: Sequence[Path], clips: int, seconds: float, judges: Judges) -> list[str]:
    """What the figures depend on."""
    query = ["dpkg-query", "--show", *(codec.package for codec in CODECS)]
    found = subprocess.run(query, capture_output=True, text=True, check=False).stdout if shutil.which(query[0]) else ""
    versions = {name: version(name) for name in ("audiovq", "torch", "pesq", "pystoi")}
    versions |= dict(line.split("\t") for line in found.splitlines())
    return [
        f"command: `{shlex.join(['python', *sys.argv])}`",
        f"commit {commit()}, on {cpu_name()}",
        f"versions: {', '.join(f'{name} {number}' for name, number in versions.items() if number)}",
        f"speech: {clips} clips of {', '.join(path.name for path in manifests)}, {seconds / 60:.1f} minutes",
        *judges.lines(),
    ]


# --- command line --------------------------------------------------------------------------------------------

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def quality(
    manifests: Annotated[list[Path], typer.Argument(metavar="MANIFEST...", help="Manifests of the utterances.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Folder for quality.md, quality.json, quality.png and index.html."
        ),
    ],
    model: Annotated[list[str] | None, typer.Option(metavar="MODEL", help="A model; may be given again.")] = None,
    codebooks: Annotated[
        str, typer.Option(metavar="N,N,...", help="Codebooks that models are tried with.  [default: all]")
    ] = "",
    reference: Annotated[
        str | None, typer.Option(metavar="SYSTEM", help="Name of a row; the others are compared with it clip by clip.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Clips of each manifest, evenly spread.")] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Most of a clip that is used.")] = 20.0,
    examples: Annotated[int, typer.Option(min=0, help="Clips on the page to listen to, evenly spread.")] = 4,
    judges: Annotated[str, typer.Option(metavar="NAMES", help="Judges of audiovq evaluate.")] = "wer,speaker,mos",
    wer_model: Annotated[
        Path | None, typer.Option(metavar="DIR", envvar="AUDIOVQ_WER_MODEL", help="Folder of a faster-whisper model.")
    ] = None,
    wer_language: Annotated[str | None, typer.Option(metavar="CODE", help="Language of the speech.")] = None,
    device: Annotated[str, typer.Option(help="Where models compute.")] = "auto",
) -> None:
    """Quality against bitrate: models beside Codec 2, Opus and Speex, on the same utterances."""
    try:
        counts = list(dict.fromkeys(int(count) for count in codebooks.split(",") if count))
    except ValueError as error:
        raise typer.BadParameter(f"expected numbers, such as 1,2,3, found {codebooks!r}") from error
    try:
        panel = load_judges(filter(None, judges.split(",")), wer_model, wer_language)
        known = {**METRICS, **panel.metrics}
        metrics = {name: known[name] for name in COLUMNS if name in known}
        systems = [System("original", "original", lambda clip: (clip, 16.0 * clip.shape[-1]))]
        systems += [system for name in dict.fromkeys(model or ()) for system in model_systems(name, counts, device)]
        codecs, notes = codec_systems()
        systems += codecs
        base = named(systems, reference) if reference else None
        utterances = [utterance for path in manifests for utterance in evenly_spread(read_manifest(path), limit)]
        clips, rejected, heard = measure_all(systems, utterances, seconds, metrics, examples)
    except (AudioVQError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    facts = conditions(manifests, len(clips), systems[0].seconds, panel)
    notes += failures(systems) + [f"rejected {line}" for line in rejected]
    rows = summarize(systems, base)
    tables = [quality_table(rows, metrics), *([difference_table(rows, metrics, base.name)] if base else [])]
    text = "\n\n".join(["\n".join(f"- {line}" for line in facts + notes), *tables])
    typer.echo(text)
    draw(rows, metrics, [codec.name for codec in CODECS], output / "quality.png")
    write_text(output / "quality.md", text + "\n")
    write_text(output / "index.html", listening_page(rows, metrics, heard, facts + notes, RATE))
    plain = [
        {**row, **{k: {m: f._asdict() for m, f in row[k].items()} for k in ("metrics", "differences")}} for row in rows
    ]
    words = [
        None if isinstance(found, MetricError) else weight_of(found) for found in systems[0].results.get("wer", ())
    ]
    record = {"conditions": facts, "notes": notes, "clips": clips, "words": words, "systems": plain}
    write_json(output / "quality.json", record)
    if rejected:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
