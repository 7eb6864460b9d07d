"""Text that is safe to show: names that others chose reach a terminal as letters, never as commands to it."""

from __future__ import annotations

import reprlib
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 3, 60, 60, 40


def printable(text: str) -> str:
    r"""Text in one line in which a reader sees all there is.

    Control characters, line separators, marks that turn the direction of writing and halves of surrogate pairs are
    shown as `\x1b`, `\u2028`, `\u202e`, `\udcff`. What is shown already is left as it is: twice is once.
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def escape(text: str) -> str:
    r"""Text as UTF-8 can hold it; half of a surrogate pair, as bytes that are no UTF-8 give it, becomes `\udcff`."""
    return text.encode("utf-8", "backslashreplace").decode()


def shown(value: Any) -> str:
    """A value for a message, as Python writes it, cut to a length that a line can hold."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python refuses to write out integers of thousands of digits.
        return f"{type(value).__name__} with too many digits"
