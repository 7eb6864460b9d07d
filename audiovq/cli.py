"""The `audiovq` command. Commands are thin: they parse options, import what they need and call the package.

Exit codes: 0 all went well; 1 the job ran, but something in it failed; 2 a mistake in the call or its input;
128 + N stopped by signal N, with all work saved.
"""

from __future__ import annotations

import errno
import os
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

import audiovq
from audiovq import cli_prior, cli_tokenize, cli_tokens
from audiovq.allocator import keep_freed_memory
from audiovq.errors import AudioVQError, Stopped, TokenError, WorkerError

app = typer.Typer(
    name="audiovq",
    help="Audio tokenizers for speech: train a VQ-VAE, tokenize data sets, decode codes back to audio.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
app.add_typer(cli_tokenize.app)
app.add_typer(cli_prior.app)
app.add_typer(cli_tokens.app, name="tokens")


Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Model folder, or organisation/name on the Hugging Face Hub.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, ...; auto takes an accelerator if there is one.")]


def main() -> None:
    """Run the command line; a user's mistake ends in one line on stderr and exit code 2."""
    keep_freed_memory()
    try:
        app()
    except AudioVQError as error:
        print(f"audiovq: {error}", file=sys.stderr)
        if isinstance(error, Stopped):
            sys.exit(128 + error.signal_number)
        sys.exit(1 if isinstance(error, WorkerError) else 2)
    except OSError as error:
        # Such as a full disk or an output that may not be written. Anything without a file is a bug: show it whole.
        if error.filename is None and error.errno != errno.ENOSPC:
            raise
        print(f"audiovq: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        sys.exit(2)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(audiovq.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


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


@app.command()
def prepare(
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
    from audiovq.data.prepare import prepare, print_summary

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
    print_summary(summary, output)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file with the settings of the run.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run; a run in it is resumed.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, as training.steps=1000.")
    ] = None,
    device: Device = "auto",
    force: Annotated[bool, typer.Option("--force", help="Start anew: remove the run that the folder holds.")] = False,
) -> None:
    """Train a tokenizer, or resume its training."""
    from audiovq.config import load_config

    experiment = load_config(config, overrides or [])

    from audiovq.training.autoencoder import train_autoencoder
    from audiovq.training.folder import start_anew

    if force:
        start_anew(output)
    progress = train_autoencoder(experiment, output, device)
    if os.environ.get("RANK", "0") == "0":  # Set by launchers of several processes.
        typer.echo(f"{progress.step} steps done, best validation loss {progress.best_loss:.4f}: {output / 'release'}")


@app.command()
def encode(
    model: Model,
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT...", help="Audio files, or folders of them.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the codes; folder trees are kept.")
    ],
    device: Device = "auto",
    force: Annotated[bool, typer.Option("--force", help="Overwrite codes files.")] = False,
) -> None:
    """Encode audio files to codes, one .npz file each.

    For a whole data set, `audiovq tokenize` is faster and writes one table.
    """
    from audiovq.models.tokenizer import AudioTokenizer
    from audiovq.tokenization.files import encode_files, find_speech, plan_files

    jobs = plan_files(inputs, output, ".npz", find_speech, force)
    _report_files(encode_files(AudioTokenizer.from_pretrained(model, device), jobs), len(jobs), output)


@app.command()
def decode(
    model: Model,
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="CODES...", help="Codes files (.npz), folders of them, or token data sets."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the wavs; folder trees are kept.")
    ],
    speaker: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="For a model with speakers: who speaks.  [default: in a token data set, the utterance's own]",
        ),
    ] = None,
    utt_ids: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID",
            help="Decode this utterance of a token data set; may be given many times. @FILE: the ids in a file, one "
            "a line.  [default: all]",
        ),
    ] = None,
    device: Device = "auto",
    force: Annotated[bool, typer.Option("--force", help="Overwrite wavs.")] = False,
) -> None:
    """Decode codes to wav files."""
    from audiovq.data.tokens import TOKENIZER, TokenSet
    from audiovq.models.tokenizer import AudioTokenizer
    from audiovq.tokenization.files import decode_files, decode_tokens, find_codes_files, plan_files, read_ids

    sets = [TokenSet(path) for path in inputs if (path / TOKENIZER).exists()]
    files = [path for path in inputs if not (path / TOKENIZER).exists()]
    wanted = read_ids(utt_ids) if utt_ids else None
    if wanted is not None and (files or len(sets) != 1):
        raise TokenError("--utt-ids chooses from one token data set; name just one, and no codes files")
    jobs = plan_files(files, output, ".wav", find_codes_files, force)
    tokenizer = AudioTokenizer.from_pretrained(model, device)
    failures = decode_files(tokenizer, jobs, speaker) if jobs else []
    total = len(jobs)
    for tokens in sets:
        failures += decode_tokens(tokenizer, tokens, output, force, speaker, wanted)
        total += len(tokens) if wanted is None else len(set(wanted))
    _report_files(failures, total, output)


@app.command()
def convert(
    model: Model,
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT...", help="Audio files, or folders of them.")],
    speaker: Annotated[str, typer.Option(metavar="ID", help="Whose voice to speak in, one of the model's speakers.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the wavs; folder trees are kept.")
    ],
    device: Device = "auto",
    force: Annotated[bool, typer.Option("--force", help="Overwrite wavs.")] = False,
) -> None:
    """Say the same in another voice.

    Encodes audio files and decodes them as another speaker, with a model whose decoder is told who speaks.
    """
    from audiovq.models.tokenizer import AudioTokenizer
    from audiovq.tokenization.files import convert_files, find_speech, plan_files

    jobs = plan_files(inputs, output, ".wav", find_speech, force)
    _report_files(convert_files(AudioTokenizer.from_pretrained(model, device), jobs, speaker), len(jobs), output)


@app.command()
def evaluate(
    model: Model,
    manifest: Annotated[
        Path, typer.Argument(metavar="MANIFEST", help="Manifest of the utterances, .jsonl or .jsonl.gz.")
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
    device: Device = "auto",
    force: Annotated[bool, typer.Option("--force", help="Overwrite an earlier evaluation.")] = False,
) -> None:
    """Measure a model, and make a listening page.

    Reports metrics of its reconstructions and the use of its codes. Audio that cannot be used is listed in the
    report, and the exit code is 1.
    """
    from audiovq.data.dataset import evenly_spread
    from audiovq.data.manifest import read_manifest
    from audiovq.evaluation.evaluate import evaluate
    from audiovq.evaluation.report import format_table, write_report
    from audiovq.files import refuse_to_overwrite
    from audiovq.models.tokenizer import AudioTokenizer

    refuse_to_overwrite(output, force)
    utterances = evenly_spread(read_manifest(manifest), limit)
    tokenizer = AudioTokenizer.from_pretrained(model, device)
    evaluation = evaluate(tokenizer, utterances, model, str(manifest), examples)
    page = write_report(evaluation, output)
    typer.echo(format_table(evaluation))
    typer.echo(f"page: {page}")
    for utterance, reason in evaluation.rejected.items():
        typer.echo(f"rejected {utterance}: {reason}", err=True)
    if evaluation.rejected:
        raise typer.Exit(1)


@app.command()
def info(
    model: Model,
) -> None:
    """Describe a tokenizer (rates, codes, bitrate, size) or a prior."""
    from audiovq.models import release
    from audiovq.models.code_prior import CodePrior
    from audiovq.models.tokenizer import AudioTokenizer

    kind = CodePrior if release.kind_of(release.locate(model)) == "prior" else AudioTokenizer
    for name, value in kind.from_pretrained(model, "cpu").describe().items():
        typer.echo(f"{name:<16} {value}")


def _report_files(failures: list[str], total: int, output: Path) -> None:
    typer.echo(f"{total - len(failures)} of {total} files written: {output}")
    _fail_if(failures)


def _fail_if(failures: list[str]) -> None:
    """Print what went wrong and leave with exit code 1, if anything did."""
    for failure in failures:
        typer.echo(f"audiovq: {failure}", err=True)
    if failures:
        raise typer.Exit(1)
