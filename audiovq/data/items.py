"""An utterance as its list names it, and where its audio is; all kinds of lists come to this."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from audiovq.audio.files import AudioSource
from audiovq.data.listing import cut
from audiovq.data.manifest import Utterance, check_id, safe_id
from audiovq.errors import AudioError, ManifestError
from audiovq.storage import HeldFile, locate_audio
from audiovq.text import escape


@dataclass(frozen=True, slots=True)
class Member:
    """An audio file inside a tar."""

    name: str
    first: int
    """Where in the tar its bytes start."""
    size: int


@dataclass(frozen=True, slots=True)
class Item:
    """An utterance as its list names it, and where its audio is."""

    id: str
    path: str
    """The audio file, or the tar that holds it; absolute, a URL, or a `data:` URL that holds the audio itself."""
    speaker: str | None = None
    seconds: float | None = None
    """How long it should be; None: not known without opening the file."""
    start: float = 0.0
    """Where in the file it starts, in seconds."""
    end: float | None = None
    """Where in the file it ends, in seconds; None: at its end, unless `num_samples` is given."""
    sample_rate: int | None = None
    """The file's rate in Hz, if the list tells it."""
    num_samples: int | None = None
    """Length at that rate, if the list tells it."""
    member: Member | None = None
    problem: str | None = None
    """Why it cannot be used, where its list shows that already."""
    channel: int | None = None
    """The channel of the file that is meant, counted from 0; None: the mean of all."""

    @classmethod
    def of(cls, utterance: Utterance) -> Item:
        """An utterance of a manifest."""
        return cls(
            id=utterance.id,
            path=str(utterance.path),
            speaker=utterance.speaker,
            seconds=utterance.duration,
            start=utterance.offset,
            sample_rate=utterance.sample_rate,
            num_samples=utterance.num_samples,
        )

    @classmethod
    def of_record(cls, record: Sequence[Any]) -> Item:
        """The item of what `dataclasses.astuple` made of it, as it comes back from JSON."""
        *known, member, problem, channel = record
        return cls(*known, member=Member(*member) if member else None, problem=problem, channel=channel)

    @property
    def name(self) -> str:
        """The audio file as it is named in a token data set; a file in a tar as fsspec names it."""
        if self.path.startswith("data:"):
            return f"memory:{self.id}"
        return f"tar://{self.member.name}::{self.path}" if self.member else self.path

    def open(self) -> AudioSource:
        """Open the utterance for reading.

        Raises:
            AudioError: the file cannot be used, or is not what its list says.
        """
        known = self._listed()
        if known is not None:
            return known.source()
        whole = AudioSource.open(locate_audio(self.path), span=self._span, channel=self.channel)
        return cut(whole, self.start, self.end)

    def utterance(self) -> Utterance:
        """The utterance with all that is known of it; its file is looked into if the list does not tell its length.

        Raises:
            AudioError: the file cannot be used.
        """
        known = self._listed()
        if known is not None:
            return known
        source = self.open()
        source.check_end()
        return self._of(source.sample_rate, source.num_samples, source.first / source.sample_rate)

    @property
    def _span(self) -> tuple[int, int] | None:
        return (self.member.first, self.member.size) if self.member else None

    def _listed(self) -> Utterance | None:
        """The utterance, if its list tells all of it."""
        if self.problem:
            raise AudioError(f"{self.name}: {self.problem}")
        if self.sample_rate is None or self.num_samples is None:
            return None
        return self._of(self.sample_rate, self.num_samples, self.start)

    def _of(self, sample_rate: int, num_samples: int, offset: float) -> Utterance:
        path, seconds = locate_audio(self.path), num_samples / sample_rate
        known = {"speaker": self.speaker, "span": self._span, "channel": self.channel}
        return Utterance(self.id, path, seconds, sample_rate, num_samples, offset, **known)


def named(name: str, path: str, member: Member | None = None, problem: str | None = None) -> Item:
    """The item that is called after a file; one that cannot be used if no utterance can be called so."""
    utterance_id = re.sub(r"[/\s]+", "_", name)
    try:
        check_id(utterance_id)
    except ManifestError as error:
        problem, utterance_id = problem or f"{error}; rename it", safe_id(utterance_id)
    if escape(path) != path:
        problem = "its file name is no UTF-8; rename it"
    return Item(utterance_id, escape(path), problem=problem, member=member)


def held(data: bytes) -> str:
    """The path of an item whose audio is held in memory."""
    return HeldFile(data).url()
