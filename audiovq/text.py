"""What reaches a terminal: names that others chose, as letters and never as commands to it, and how far a job is."""

from __future__ import annotations

import reprlib
import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 3, 60, 60, 40


T = TypeVar("T")
LONGEST_LINE = 1000
"""Characters of a message."""
warned: set[str] = set()
"""Kinds of warnings that this process, or the command that it runs, has given."""


def printable(text: str) -> str:
    r"""Text in one line in which a reader sees all there is.

    Control characters, line separators, marks that turn the direction of writing and halves of surrogate pairs are
    shown as `\x1b`, `\u2028`, `\u202e`, `\udcff`. What is shown already is left as it is: twice is once.
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def one_line(text: str) -> str:
    """A message as it is shown: `printable`, and without its middle if it is longer than anybody reads."""
    shown = printable(text)
    return shown if len(shown) <= LONGEST_LINE else f"{shown[: LONGEST_LINE // 2]} ... {shown[-LONGEST_LINE // 2 :]}"


def reason_of(error: BaseException) -> str:
    """What a library says went wrong, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def name_sizes(sizes: Sequence[int]) -> str:
    """The sizes of codebooks in words, such as `4 x 1024`."""
    if len(set(sizes)) == 1:
        return f"{len(sizes)} x {sizes[0]}"
    return " + ".join(map(str, sizes)) or "none"


def escape(text: str) -> str:
    r"""Text as UTF-8 can hold it; half of a surrogate pair, as bytes that are no UTF-8 give it, becomes `\udcff`."""
    return text.encode("utf-8", "backslashreplace").decode()


def watched(items: Iterable[T], title: str, total: int | None = None) -> Iterable[T]:
    """Items one after another; on a terminal a bar shows how many of them, `total` or all there are, are done."""
    from rich.console import Console
    from rich.progress import track

    hidden = not sys.stderr.isatty()
    return track(items, title, total, console=Console(stderr=True), transient=True, disable=hidden)


def warn_once(kind: str, message: str) -> None:
    """Warn, unless this has been told of something of the same kind."""
    if kind not in warned:
        warned.add(kind)
        warnings.warn(message, RuntimeWarning, stacklevel=3)


def shown(value: Any) -> str:
    """A value for a message, as Python writes it, cut to a length that a line can hold."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python refuses to write out integers of thousands of digits.
        return f"{type(value).__name__} with too many digits"
