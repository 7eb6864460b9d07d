"""The `audiovq` command. Commands are thin: they parse options, import what they need and call the package.

Exit codes: 0 all went well; 1 the job ran, but something in it failed; 2 a mistake in the call or its input;
128 + N stopped by signal N, with all work saved.
"""

from __future__ import annotations

import errno
import sys
from typing import Annotated

import typer

import audiovq
from audiovq.allocator import keep_freed_memory
from audiovq.cli import evaluate, files, prepare, prior, tokenize, tokens, train
from audiovq.errors import AudioVQError, Stopped, WorkerError

app = typer.Typer(
    name="audiovq",
    help="Audio tokenizers for speech: train a VQ-VAE, tokenize data sets, decode codes back to audio.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
for group in (prepare, train, files, evaluate, tokenize, prior):
    app.add_typer(group.app)
app.add_typer(tokens.app, name="tokens")


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
