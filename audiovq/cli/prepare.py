"""`audiovq prepare`: a corpus into manifests."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from audiovq.cli.options import say

app = typer.Typer(rich_markup_mode=None)


class Corpus(str, Enum):
    """The corpora of `audiovq.data.corpora`, named here so that help is printed without importing them."""

    folder = "folder"
    vctk = "vctk"
    librispeech = "librispeech"
    ljspeech = "ljspeech"
    kaldi = "kaldi"


class SplitBy(str, Enum):
    speaker = "speaker"
    utterance = "utterance"


@app.command("prepare")
def prepare_command(
    corpus: Annotated[Corpus, typer.Argument(help="Layout of the corpus; 'folder' is any tree of audio files.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the corpus.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DATA", help="Folder for the manifests.")],
    speaker_pattern: Annotated[
        str | None,
        typer.Option(
            help="For 'folder': beginning of the paths below DIR, with {speaker} where the speaker is and "
            "* for anything but a slash. '{speaker}/': the first folder; '*/{speaker}/': the second; "
            "'{speaker}_': a file's name up to the first underscore.  [default: speakers are unknown]"
        ),
    ] = None,
    split_by: Annotated[
        SplitBy | None,
        typer.Option(
            help="What is divided into train, dev and test: whole speakers (the splits share none) or single "
            "utterances.  [default: speaker, if all are known and there are at least three, else utterance]"
        ),
    ] = None,
    dev: Annotated[
        float,
        typer.Option(min=0, max=1, help="Fraction for dev, unless the corpus has its own (librispeech)."),
    ] = 0.05,
    test: Annotated[
        float,
        typer.Option(min=0, max=1, help="Fraction for test, unless the corpus has its own (librispeech)."),
    ] = 0.05,
    min_seconds: Annotated[float, typer.Option(min=0, help="Leave out shorter utterances.")] = 0.0,
    max_seconds: Annotated[
        float | None, typer.Option(min=0, help="Leave out longer utterances.  [default: no limit]")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the manifests of an earlier run.")] = False,
) -> None:
    """List a corpus in manifests.

    Writes train.jsonl.gz, dev.jsonl.gz, test.jsonl.gz and summary.json. Audio that cannot be used is left
    out; left_out.jsonl says why.
    """
    from audiovq.data.prepare import prepare

    summary = prepare(
        corpus.value,
        folder,
        output,
        speaker_pattern=speaker_pattern,
        split_by=split_by.value if split_by else None,
        dev=dev,
        test=test,
        min_seconds=min_seconds,
        max_seconds=max_seconds,
        force=force,
    )
    _print(summary, output)


def _print(summary: dict[str, Any], output: Path) -> None:
    say(f"{'split':<6}{'utterances':>12}{'speakers':>10}{'hours':>9}")
    for split, found in summary["splits"].items():
        say(f"{split:<6}{found['utterances']:>12}{found['speakers'] or 'unknown':>10}{found['hours']:>9.2f}")
    say("sample rates: " + ", ".join(f"{rate} Hz ({count})" for rate, count in summary["sample_rates"].items()))
    say(f"split by {summary['split_by']}; manifests are in {output}")
    for split in ("train", "dev", "test"):
        if split not in summary["splits"]:
            say(f"no {split}.jsonl.gz: nothing is left for it, split by {summary['split_by']}")
    if "train" in summary["splits"] and "dev" not in summary["splits"]:
        say("to train all the same, let data.valid name train.jsonl.gz")
    if summary["left_out"]:
        say(f"left out, listed in {output / 'left_out.jsonl'}:")
        say(*(f"  {count} {reason}" for reason, count in summary["left_out"].items()))
