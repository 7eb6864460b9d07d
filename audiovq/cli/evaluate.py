"""`audiovq evaluate`, `info` and `models`: what a model is, and how good."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from audiovq.cli.options import Codebooks, Device, Model, fail_if, say

app = typer.Typer(rich_markup_mode=None)

WerModel = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        envvar="AUDIOVQ_WER_MODEL",
        help="Folder of the faster-whisper model that the judge wer hears with.",
    ),
]
WerLanguage = Annotated[
    str | None,
    typer.Option(metavar="CODE", help="Language of the speech, such as en.  [default: what is heard in each original]"),
]


@app.command("evaluate")
def evaluate_command(
    model: Model,
    manifest: Annotated[
        str,
        typer.Argument(
            metavar="INPUT", help="The utterances: a manifest, or whatever else `audiovq tokenize` takes as an input."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder for metrics.json, utterances.jsonl and the page index.html.",
        ),
    ],
    examples: Annotated[
        int, typer.Option(min=0, help="Utterances on the page to look at and listen to, evenly spread.")
    ] = 8,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use this many utterances, evenly spread.  [default: all]")
    ] = None,
    codebooks: Codebooks = None,
    judges: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Who hears the reconstructions, too: some of mos,wer,speaker,pitch.  [default: none]",
        ),
    ] = "",
    wer_model: WerModel = None,
    wer_language: WerLanguage = None,
    device: Device = "auto",
    force: Annotated[bool, typer.Option("--force", help="Overwrite an earlier evaluation.")] = False,
) -> None:
    """Measure a model, and make a listening page.

    Reports metrics of its reconstructions and the use of its codes. Audio that cannot be used, and a judge that
    cannot run, is listed in the report, and the exit code is 1.
    """
    from audiovq.batching import evenly_spread
    from audiovq.data.sources import read_utterances
    from audiovq.evaluation.evaluate import evaluate
    from audiovq.evaluation.judges import known_judges, load_judges
    from audiovq.evaluation.report import check_report_folder, format_table, write_report
    from audiovq.models.tokenizer import AudioTokenizer
    from audiovq.storage import locate

    check_report_folder(output, force)
    names = known_judges(filter(None, judges.split(",")))
    found, left_out = read_utterances(locate(manifest))
    utterances = evenly_spread(found, limit)
    tokenizer = AudioTokenizer.from_pretrained(model, device)
    panel = load_judges(names, wer_model, wer_language)
    evaluation = evaluate(tokenizer, utterances, model, manifest, examples, judges=panel, num_codebooks=codebooks)
    evaluation.rejected.update((item.item, item.detail) for item in left_out)
    check_report_folder(output, force)  # Once more: another evaluation may have come meanwhile.
    page = write_report(evaluation, output)
    say(*format_table(evaluation).split("\n"))
    say(f"page: {page}")
    for utterance, reason in evaluation.rejected.items():
        say(f"rejected {utterance}: {reason}", err=True)
    if evaluation.rejected or panel.unable:
        raise typer.Exit(1)


@app.command()
def info(
    model: Model,
) -> None:
    """Describe a tokenizer (rates, codes, bitrate, size) or a prior."""
    from audiovq.models import release
    from audiovq.models.prior import CodePrior
    from audiovq.models.tokenizer import AudioTokenizer

    kind = CodePrior if release.kind_of(release.locate(model)) == "prior" else AudioTokenizer
    for name, value in kind.from_pretrained(model, "cpu").describe().items():
        say(f"{name:<16} {value}")


@app.command()
def models() -> None:
    """List the models that come with audiovq, and how good each was found to be."""
    from audiovq.models.pretrained import pretrained_models

    shipped = pretrained_models()
    fail_if([] if shipped else ["no models came with this installation"])
    for found in shipped:
        config = found.config
        say(
            f"{found.name}: {config.sample_rate / 1000:g} kHz, {config.frame_rate:g} frames/s, "
            f"{found.num_parameters / 1e6:.1f} M parameters, {found.num_bytes / 1e6:.1f} MB"
        )
        names = list(found.rates[0].metrics) if found.rates else []
        say("  ".join(["  codebooks  kbit/s", *names]))
        for rate in found.rates:
            figures = [f"{rate.metrics[name]:>{len(name)}.3g}" for name in names]
            say("  ".join([f"  {rate.codebooks:>9}  {rate.bitrate / 1000:>6g}", *figures]))
        say(*(f"  {line}" for line in found.conditions))
        if found.prior is not None and found.prior.codes is not None:
            count = found.prior.codes.num_codebooks
            first = "first codebook" if count == 1 else f"first {count} codebooks"
            say(f"  with a prior over its {first}: audiovq sample {found.name} --output DIR")
