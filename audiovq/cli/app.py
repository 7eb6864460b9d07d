"""The `audiovq` command. Commands are thin: they parse options, import what they need and call the package.

Exit codes: 0 all went well; 1 the job ran, but something in it failed, or memory ran out; 2 a mistake in the call or
its input, or an output that cannot be written, such as on a full disk: what was done is kept, and the same command can
go on; 128 + N stopped by signal N, with all work saved.
"""

from __future__ import annotations

import re
import sys
import traceback
import warnings
from typing import Annotated, Any

import typer

import audiovq
from audiovq.allocator import keep_freed_memory
from audiovq.cli import evaluate, export, files, prepare, prior, tokenize, tokens, train
from audiovq.cli.streams import standard_streams
from audiovq.errors import AudioVQError, Stopped, WorkerError
from audiovq.text import one_line, printable, warned

app = typer.Typer(
    name="audiovq",
    help="Audio tokenizers for speech: train a VQ-VAE, tokenize data sets, decode codes back to audio.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
for group in (prepare, train, files, evaluate, tokenize, prior, export):
    app.add_typer(group.app)
app.add_typer(tokens.app, name="tokens")

UsageError: Any = typer.BadParameter.__mro__[1]
"""What is wrong with a command line; Typer does not export it."""
_OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory")
"""How PyTorch says it, whose errors for that are of several classes."""


def main() -> None:
    """Run the command line; whatever goes wrong ends in one line on stderr, unless it is a fault in audiovq itself."""
    keep_freed_memory()
    if writing := sys.modules.get("audiovq.files"):  # An earlier command's; `--help` does without it.
        writing.cleaned.clear()
    warned.clear()
    with standard_streams(), warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            code = app(standalone_mode=False) or 0
        except BaseException as error:
            code = _report(error)
        try:
            sys.stdout.flush()
        except OSError as error:
            code = code or _report(error)
        sys.exit(code)


def _report(error: BaseException) -> int:
    """Say what went wrong, and return the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, typer.Abort):
        error = error.__cause__ or KeyboardInterrupt()  # Typer makes one of every EOFError.
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, UsageError):
        return _show_usage(error)
    line, code = _explain(error)
    if line is None:
        traceback.print_exception(error)
    else:
        print(f"audiovq: {one_line(line)}", file=sys.stderr)
    return code


def _show_warning(message: Warning | str, *_: object) -> None:
    print(f"audiovq: warning: {one_line(str(message))}", file=sys.stderr)


def _show_usage(error: Any) -> int:
    error.message = "\n".join(map(printable, error.message.split("\n")))
    error.show()
    return 2


def _explain(error: BaseException) -> tuple[str | None, int]:
    """An error in a line, None for a fault in audiovq itself, and the exit code."""
    if isinstance(error, Stopped):
        return str(error), 128 + error.signal_number
    if isinstance(error, AudioVQError):
        return str(error), 1 if isinstance(error, WorkerError) else 2
    if isinstance(error, OSError):
        name = error.filename if isinstance(error.filename, str) else "input or output"
        return f"{name}: {error.strerror or error}", 2
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error))):
        return "out of memory; try shorter audio or smaller batches, or give the job more", 1
    return None, 1


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
