"""Kaldi data folders: `wav.scp`, `segments`, `utt2spk` and `text` (https://kaldi-asr.org/doc/data_prep.html).

Only files are read: a `wav.scp` entry that is a pipe (`sph2pipe ... |`) is refused, never run.
"""

from __future__ import annotations

import re
from pathlib import Path

from audiovq.data.listing import Entry, read_lines
from audiovq.errors import ManifestError

_BLANKS = re.compile(r"[ \t\r\n]+")  # Kaldi knows no others; a no-break space may stand in a text.

Table = dict[str, tuple[str, int]]
"""Key -> the rest of its line, and the line's number."""


def list_kaldi(folder: str | Path) -> list[Entry]:
    """Read the tables of a Kaldi data folder; no audio file is opened.

    As in Kaldi, a relative file in `wav.scp` starts at the current folder, a segment that ends at -1 goes up
    to the end of its recording, and an utterance that is its own speaker has an unknown one.

    Raises:
        ManifestError: a file is malformed, an entry is a pipe, or an utterance or recording stands in one
            file and is missing in another; names file and line.
    """
    folder = Path(folder)
    recordings = _read_recordings(folder / "wav.scp")
    if (folder / "segments").exists():
        segments = _read_segments(folder / "segments", recordings)
        listed_in = folder / "segments"
    else:
        segments = {name: Entry(name, path) for name, path in recordings.items()}
        listed_in = folder / "wav.scp"
    speakers = _read_labels(folder / "utt2spk", segments, listed_in)
    texts = _read_labels(folder / "text", segments, listed_in)
    return [
        Entry(
            id=name,
            path=entry.path,
            speaker=speakers.get(name) if speakers.get(name) != name else None,
            text=texts.get(name) or None,
            start=entry.start,
            end=entry.end,
        )
        for name, entry in segments.items()
    ]


def _read_table(path: Path) -> Table:
    table: Table = {}
    for number, line in read_lines(path):
        if not line:
            raise ManifestError(f"{path}:{number}: is empty")
        key, *rest = _BLANKS.split(line, maxsplit=1)
        if key in table:
            raise ManifestError(f"{path}:{number}: {key!r:.120} stands in line {table[key][1]} already")
        table[key] = (rest[0] if rest else "", number)
    return table


def _read_recordings(path: Path) -> dict[str, Path]:
    recordings = {}
    for name, (file, number) in _read_table(path).items():
        if not file:
            raise ManifestError(f"{path}:{number}: expected 'RECORDING FILE', found {name!r:.120} alone")
        if file.endswith("|"):
            raise ManifestError(
                f"{path}:{number}: {name!r:.120} is a pipe, and commands are not run; write its output to "
                "audio files and name these"
            )
        recordings[name] = Path(file).absolute()
    return recordings


def _read_segments(path: Path, recordings: dict[str, Path]) -> dict[str, Entry]:
    segments = {}
    for name, (rest, number) in _read_table(path).items():
        try:
            recording, start_text, end_text = _BLANKS.split(rest)
            start, end = float(start_text), float(end_text)
        except ValueError:
            raise ManifestError(
                f"{path}:{number}: expected 'UTTERANCE RECORDING START END' in seconds, found {f'{name} {rest}'!r:.120}"
            ) from None
        if recording not in recordings:
            raise ManifestError(f"{path}:{number}: recording {recording!r:.120} is missing in wav.scp")
        if not (0 <= start < end < float("inf") or (0 <= start < float("inf") and end == -1)):
            raise ManifestError(
                f"{path}:{number}: expected 0 <= START < END, found {start_text:.20} and {end_text:.20}"
            )
        segments[name] = Entry(name, recordings[recording], start=start, end=None if end == -1 else end)
    return segments


def _read_labels(path: Path, segments: dict[str, Entry], listed_in: Path) -> dict[str, str]:
    """Speakers or texts; empty if the file does not exist, otherwise exactly the utterances of `segments`."""
    if not path.exists():
        return {}
    table = _read_table(path)
    for name, (label, number) in table.items():
        if name not in segments:
            raise ManifestError(f"{path}:{number}: utterance {name!r:.120} is missing in {listed_in.name}")
        if path.name == "utt2spk" and (not label or _BLANKS.search(label)):
            raise ManifestError(f"{path}:{number}: expected 'UTTERANCE SPEAKER', found {f'{name} {label}'!r:.120}")
    for number, name in enumerate(segments, start=1):
        if name not in table:
            raise ManifestError(f"{listed_in}:{number}: utterance {name!r:.120} is missing in {path.name}")
    return {name: label for name, (label, _) in table.items()}
