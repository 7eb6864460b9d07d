"""Standard output and error of a command, whatever they are: closed, broken pipes, full disks, narrow encodings."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any


class Output:
    """A text stream whose reader may leave: what nobody reads is dropped, and the work goes on.

    Args:
        name: how an error calls the stream when it cannot be written to for another reason. None: there is none.
    """

    def __init__(self, stream: Any, name: str | None = None):
        self._stream, self._name = stream, name

    def write(self, text: str) -> int:
        with self._watched():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._watched():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # What the stream still holds goes nowhere, lest Python tries once more when it ends.
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123 (no path)
                os.dup2(nowhere.fileno(), self._stream.fileno())
            if self._name and not isinstance(error, BrokenPipeError):
                error.filename = self._name
                raise


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Both streams can be written to while the block runs, and take any text."""
    _open_closed_ones()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Output(sys.stdout, "standard output"), Output(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _open_closed_ones() -> None:
    """Let the null device stand for streams that the caller has closed, lest files take their numbers."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # Takes the lowest free number, which is this one.
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: PTH123, SIM115
        elif number and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
