"""Finding a speaker among those that a model knows."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from audiovq.errors import SpeakerError

SHOWN = 10
"""Speakers that a message names."""


def speaker_number(name: str | None, known: Sequence[str]) -> int:
    """The number of a speaker among those that a model knows.

    Raises:
        SpeakerError: there is none of that name, or no name; the message has the nearest one, or the first known.
    """
    if name is None:
        raise SpeakerError(f"the model has to be told who speaks; known are {name_some(known)}")
    if not known:
        raise SpeakerError(f"the model knows no speakers and cannot speak as {name!r}")
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {name_some(known)}"
        raise SpeakerError(f"unknown speaker {name!r}; {hint}")
    return known.index(name)


def name_some(known: Sequence[str]) -> str:
    """The names of a few speakers, and how many more there are."""
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return ", ".join(known[:SHOWN]) + more
