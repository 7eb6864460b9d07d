"""Manifests: the list of a data set's utterances, as JSON lines.

One utterance a line, in a `.jsonl` or `.jsonl.gz` file::

    {"id": "p225_001", "path": "wavs/p225_001.wav", "offset": 0.0, "duration": 2.05, "sample_rate": 48000,
     "num_samples": 98400, "speaker": "p225", "text": "Please call Stella.", "split": "train"}

A relative `path` starts at the manifest's own folder, in an object store too; it may be a URL (see `audiovq.storage`).
`offset`, `speaker`, `text` and `split` are optional.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import Any

from audiovq.audio.decoding import Span
from audiovq.audio.files import AudioSource
from audiovq.errors import AudioError, ConfigError, ManifestError
from audiovq.files import atomic_path, open_file
from audiovq.storage import AnyPath, Location, below, locate
from audiovq.text import escape

_NUMBER, _INTEGER, _TEXT, _TEXT_OR_NULL = (int, float), (int,), (str,), (str, type(None))
_TYPES: dict[str, tuple[type, ...]] = {
    "id": _TEXT,
    "path": _TEXT,
    "offset": _NUMBER,
    "duration": _NUMBER,
    "sample_rate": _INTEGER,
    "num_samples": _INTEGER,
    "speaker": _TEXT_OR_NULL,
    "text": _TEXT_OR_NULL,
    "split": _TEXT_OR_NULL,
}
_TYPE_NAMES = {
    _NUMBER: "a number",
    _INTEGER: "an integer",
    _TEXT: "a string",
    _TEXT_OR_NULL: "a string or null",
}
_REQUIRED = ("id", "path", "duration", "sample_rate", "num_samples")

_MAX_ID_BYTES = 200  # A file name has 255, of which suffixes and prefixes take a few.
_UNSAFE = re.compile(r"^\.|[/\\\x00-\x1f\x7f-\x9f\u2028\u2029]")
_MAX_LINE = 2**20  # Bytes of an utterance; a text of twenty hours.
_MAX_BLANK = 2**16  # Lines; a small compressed file can hold billions of them.
_MAX_SAMPLES = 2**53  # Up to here a float counts single samples.


@dataclass(frozen=True, slots=True)
class Utterance:
    """A stretch of speech in an audio file, and what is known about it.

    Raises:
        ManifestError: a value is out of range, or the id is unsafe (see `check_id`).
    """

    id: str
    """Unique in a manifest; names the files that are made from the utterance."""
    path: Location
    """The audio file, absolute, or the tar that holds it."""
    duration: float
    """Length of the utterance in seconds: num_samples / sample_rate."""
    sample_rate: int
    """The audio file's rate in Hz."""
    num_samples: int
    """Length of the utterance in samples, at the file's rate."""
    offset: float = 0.0
    """Where in the file the utterance starts, in seconds."""
    speaker: str | None = None
    text: str | None = None
    split: str | None = None
    """train, dev or test."""
    span: Span | None = None
    """Where the audio lies within `path`, as in a tar; None: it is the whole file. Not a field of manifests."""
    channel: int | None = None
    """The channel that is meant, counted from 0; None: the mean of all. Not a field of manifests."""

    def __post_init__(self) -> None:
        check_id(self.id)
        if not self.path.is_absolute():
            raise ManifestError(f"path: expected an absolute path, found {str(self.path)!r}")
        _encode("path", str(self.path))
        _check_range("sample_rate", self.sample_rate, 1, 2**31)
        _check_range("num_samples", self.num_samples, 1, _MAX_SAMPLES)
        _check_range("duration", self.duration, 0, _MAX_SAMPLES)
        _check_range("offset", self.offset, 0, _MAX_SAMPLES)
        if round(self.duration * self.sample_rate) != self.num_samples:
            raise ManifestError(
                f"duration: {self.duration} s at {self.sample_rate} Hz are "
                f"{round(self.duration * self.sample_rate)} samples, but num_samples is {self.num_samples}"
            )

    def listed_source(self) -> AudioSource:
        """The utterance as it is listed; its file is opened, and compared with the list, when it is read."""
        first = round(self.offset * self.sample_rate)
        return AudioSource(self.path, self.sample_rate, first, self.num_samples, span=self.span, channel=self.channel)

    def source(self) -> AudioSource:
        """Open the utterance for reading, after a look whether its file is still the one that was listed.

        Raises:
            AudioError: the file cannot be used, or its rate or length no longer fits.
        """
        whole = AudioSource.open(self.path, span=self.span, channel=self.channel)
        if whole.sample_rate != self.sample_rate:
            raise AudioError(
                f"{self.path}: its sample rate is {whole.sample_rate} Hz, the manifest's {self.sample_rate}; "
                "has the file been replaced? Prepare the data again"
            )
        first = round(self.offset * self.sample_rate)
        if first + self.num_samples > whole.num_samples:
            raise AudioError(
                f"{self.path}: holds {whole.num_samples} samples, but utterance {self.id} ends at sample "
                f"{first + self.num_samples}; has the file been replaced? Prepare the data again"
            )
        return replace(whole, first=first, num_samples=self.num_samples)


def check_id(utterance_id: str) -> None:
    """Refuse an utterance id that is no safe file name on every system.

    An id is 1 to 200 bytes of UTF-8 without slashes, backslashes, control characters and separators of lines, and
    does not start with a dot (which also rules out `..`).

    Raises:
        ManifestError: the id is unsafe.
    """
    size = len(_encode("id", utterance_id))
    if not 1 <= size <= _MAX_ID_BYTES:
        raise ManifestError(f"id: expected 1 to {_MAX_ID_BYTES} bytes, found {size} in {utterance_id[:40]!r}")
    if _UNSAFE.search(utterance_id):
        raise ManifestError(
            f"id: {utterance_id!r} cannot name a file: slashes, backslashes, control characters, separators of "
            "lines and a leading dot are not allowed"
        )


def safe_id(name: str) -> str:
    """A safe id that resembles `name`, which cannot be one; under it, what cannot be used is listed."""
    text = _UNSAFE.sub("_", escape(name)).encode()[: _MAX_ID_BYTES - 20].decode(errors="ignore")
    digest = blake2b(escape(name).encode(), digest_size=4).hexdigest()
    return f"{text}~{digest}"


def read_manifest(path: str | AnyPath) -> list[Utterance]:
    """Read a manifest (`.jsonl`, or compressed as `.jsonl.gz`).

    Raises:
        ManifestError: the file cannot be read or holds nothing, or a line is wrong; names file, line, field.
    """
    return list(iterate_manifest(path))


def iterate_manifest(path: str | AnyPath) -> Iterator[Utterance]:
    """The utterances of a manifest, one in memory at a time; raises as `read_manifest`, when it comes to the line."""
    return (utterance for utterance, _ in _read(locate(path)))


def _read(path: AnyPath) -> Iterator[tuple[Utterance, str]]:
    """The utterances of a manifest, and their files as it names them."""
    folder = path.resolve().parent
    seen: dict[str, int] = {}
    for number, line in numbered_lines(path):
        try:
            utterance, name = _parse(line, folder)
        except ManifestError as error:
            raise ManifestError(f"{path}:{number}: {error}") from error
        if utterance.id in seen:
            raise ManifestError(f"{path}:{number}: id: {utterance.id!r} stands in line {seen[utterance.id]} already")
        seen[utterance.id] = number
        yield utterance, name
    if not seen:
        raise ManifestError(f"{path}: holds no utterances")


def manifest_digest(path: str | AnyPath) -> str:
    """SHA-256 of what a manifest's utterances are: ids, files as it names them, places in them, rates and speakers.

    Texts and splits do not count, nor does where the manifest lies. Raises as `read_manifest`.
    """
    digest = hashlib.sha256()
    for utterance, name in _read(locate(path)):
        known = [utterance.id, name, utterance.sample_rate, utterance.num_samples, utterance.speaker]
        digest.update((json.dumps([*known, float(utterance.offset)]) + "\n").encode())
    return digest.hexdigest()


def write_manifest(path: str | Path, utterances: Iterable[Utterance], folder: Path | None = None) -> None:
    """Write a manifest, compressed if the name ends in `.gz`; the same utterances give the same bytes.

    Audio files below the manifest's folder are named relative to it, so that the two can be moved together.

    Args:
        folder: where the manifest is going to lie; None: where it is written.

    Raises:
        ManifestError: there are no utterances, two share an id, or a text or path is not valid Unicode.
    """
    path = Path(path)
    home = os.path.join(os.path.abspath(folder or path.parent), "")  # noqa: PTH100, PTH118 (no symlinks resolved, trailing slash)
    lines: list[bytes] = []
    seen: set[str] = set()
    for utterance in utterances:
        if utterance.id in seen:
            raise ManifestError(f"{path}: cannot be written: two utterances have the id {utterance.id!r}")
        if utterance.span is not None or utterance.channel is not None:
            raise ManifestError(f"{path}: cannot be written: utterance {utterance.id} is no segment of a whole file")
        seen.add(utterance.id)
        lines.append(_encode(f"{path}: cannot be written: utterance {utterance.id}", _format(utterance, home)))
    if not lines:
        raise ManifestError(f"{path}: cannot be written: there are no utterances")
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        if path.suffix == ".gz":
            # Without name and time, so that the bytes depend on the utterances alone.
            with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as compressed:
                compressed.writelines(lines)
        else:
            file.writelines(lines)


def numbered_lines(path: AnyPath, longest: int = _MAX_LINE) -> Iterator[tuple[int, bytes]]:
    """The lines of a file, `.gz` or not, that are not blank, numbered from 1.

    Raises:
        ManifestError: the file cannot be read, or a line is longer than `longest` bytes.
    """
    try:
        with open_file(path) as raw, gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw as file:
            blank = 0
            for number in count(1):
                line = file.readline(longest + 1)
                if not line:
                    return
                if len(line) > longest:
                    raise ManifestError(f"{path}:{number}: is longer than {longest} bytes; is it a manifest?")
                blank += line.isspace()
                if blank > _MAX_BLANK:
                    raise ManifestError(f"{path}:{number}: is blank, as {_MAX_BLANK} lines before; is it a manifest?")
                if not line.isspace():
                    yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ManifestError(f"{path}: is damaged or no gzip file ({error})") from error
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror})") from error


def _parse(line: bytes, folder: AnyPath) -> tuple[Utterance, str]:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ManifestError(f"is not valid JSON ({error.msg}, column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"is not valid JSON ({error})") from error
    if not isinstance(record, dict):
        raise ManifestError(f"expected a JSON object, found {type(record).__name__}")
    for name, value in record.items():
        if name not in _TYPES:
            close = difflib.get_close_matches(name[:60], _TYPES, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(_TYPES)}"
            raise ManifestError(f"{escape(name[:60])}: unknown field; {hint}")
        if type(value) not in _TYPES[name]:
            raise ManifestError(f"{name}: expected {_TYPE_NAMES[_TYPES[name]]}, found {value!r:.60}")
        if isinstance(value, str):
            _encode(name, value)
    for name in _REQUIRED:
        if name not in record:
            raise ManifestError(f"{name}: is missing")
    if not record["path"] or "\0" in record["path"]:
        raise ManifestError(f"path: expected the name of a file, found {record['path']!r:.60}")
    try:
        return Utterance(**{**record, "path": below(folder, record["path"])}), record["path"]
    except (ConfigError, ValueError) as error:
        raise ManifestError(f"path: {error}") from error


def _format(utterance: Utterance, folder: str) -> str:
    """An utterance as a line; `folder` ends in a slash."""
    record = {name: getattr(utterance, name) for name in _TYPES}
    record["path"] = str(utterance.path).removeprefix(folder)
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def _encode(name: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # Half of a surrogate pair: a file name that is not UTF-8, or a JSON escape.
        raise ManifestError(f"{name}: {text!r:.200} is not valid Unicode") from None


def _check_range(name: str, value: Any, low: float, high: float) -> None:
    if not low <= value < high:  # Also refuses NaN.
        raise ManifestError(f"{name}: expected a value from {low} to below {high}, found {value!r:.60}")
