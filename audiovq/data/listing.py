"""What a corpus folder lists, and the opening of its audio files."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from multiprocessing.pool import ThreadPool
from pathlib import Path

from audiovq.audio.files import AudioSource
from audiovq.data.manifest import Utterance, check_id
from audiovq.errors import AudioError, ManifestError
from audiovq.files import open_file
from audiovq.text import watched

_THREADS = 16  # Opening a file is waiting, most of all on network file systems.
MAX_LINE = 2**20  # Characters; a text of twenty hours.
_OVERSHOOT = 0.5  # Seconds by which a segment may end after its file, as in Kaldi's extract-segments.


@dataclass(frozen=True, slots=True)
class Entry:
    """An utterance as its corpus lists it, before its audio file has been opened."""

    id: str
    path: Path
    speaker: str | None = None
    text: str | None = None
    split: str | None = None
    start: float = 0.0
    """Start of the segment in seconds."""
    end: float | None = None
    """End of the segment in seconds; None: the end of the file."""

    def open(self) -> Utterance:
        """Look into the audio file.

        Raises:
            AudioError: the file cannot be used, or the segment lies outside it.
            ManifestError: id or path cannot stand in a manifest.
        """
        check_id(self.id)
        whole = AudioSource.open(self.path)
        whole.check_end()
        source = cut(whole, self.start, self.end)
        return Utterance(
            id=self.id,
            path=self.path,
            offset=source.first / source.sample_rate,
            duration=source.duration,
            sample_rate=source.sample_rate,
            num_samples=source.num_samples,
            speaker=self.speaker,
            text=self.text,
            split=self.split,
        )


def cut(whole: AudioSource, start: float, end: float | None) -> AudioSource:
    """The segment of a file from `start` to `end` in seconds; None: to the end of the file.

    Raises:
        AudioError: the segment lies outside the file.
    """
    rate, total = whole.sample_rate, whole.num_samples
    first = round(start * rate)
    last = total if end is None else round(end * rate)
    if total < last <= total + _OVERSHOOT * rate:
        last = total
    if not 0 <= first < last <= total:
        shown = "its end" if end is None else f"{end} s"
        raise AudioError(f"{whole.path}: segment from {start} s to {shown} lies outside its {total / rate:.3f} s")
    return replace(whole, first=first, num_samples=last - first)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something in a corpus that does not become an utterance."""

    item: str
    """Utterance id or file."""
    reason: str
    """The kind of reason, by which the summary counts."""
    detail: str = ""


@dataclass
class Listing:
    """What a corpus folder holds."""

    entries: list[Entry]
    left_out: list[LeftOut] = field(default_factory=list)
    speakers: dict[str, dict[str, str | int]] = field(default_factory=dict)
    """What the corpus tells about its speakers, such as age and gender."""


def open_entries(entries: Sequence[Entry]) -> tuple[list[Utterance], list[LeftOut]]:
    """Open the audio files of all entries, many at a time; what cannot be used is left out."""
    utterances: list[Utterance] = []
    left_out: list[LeftOut] = []
    with ThreadPool(_THREADS) as pool:
        results = pool.imap(_open, entries, chunksize=16)
        for result in watched(results, "Reading audio headers", len(entries)):
            if isinstance(result, Utterance):
                utterances.append(result)
            else:
                left_out.append(result)
    return utterances, left_out


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 text file, numbered from 1, without line ends and surrounding blanks.

    Raises:
        ManifestError: the file cannot be read, or a line is too long.
    """
    try:
        # A byte order mark is no part of the first word.
        with io.TextIOWrapper(open_file(path), encoding="utf-8-sig") as file:
            for number in count(1):
                line = file.readline(MAX_LINE + 1)
                if not line:
                    return
                if len(line) > MAX_LINE:
                    raise ManifestError(f"{path}:{number}: is longer than {MAX_LINE} characters; is it a table?")
                yield number, line.strip(" \t\r\n")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror})") from error


def _open(entry: Entry) -> Utterance | LeftOut:
    try:
        return entry.open()
    except AudioError as error:
        return LeftOut(entry.id, "unusable audio", str(error))
    except ManifestError as error:
        return LeftOut(entry.id, "unusable file name", str(error))
