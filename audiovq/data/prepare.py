"""From a corpus folder to manifests for training, validation and test, with a summary."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from audiovq.data.corpora import CORPORA
from audiovq.data.listing import Entry, LeftOut, Listing, open_entries
from audiovq.data.manifest import Utterance, write_manifest
from audiovq.data.splits import SPLITS, SplitBy, assign_splits, choose_split_by
from audiovq.errors import ConfigError, ManifestError, OutputExistsError
from audiovq.files import partial_folder, read_json, refuse_to_overwrite, sha256_of, write_json, write_text
from audiovq.text import escape

_SUMMARY = "summary.json"
_FILES = [_SUMMARY, "left_out.jsonl", *(f"{split}.jsonl.gz" for split in SPLITS)]


def prepare(
    corpus: str,
    folder: str | Path,
    output: str | Path,
    *,
    speaker_pattern: str | None = None,
    split_by: SplitBy | None = None,
    dev: float = 0.05,
    test: float = 0.05,
    min_seconds: float = 0.0,
    max_seconds: float | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Write `train`, `dev` and `test.jsonl.gz`, `left_out.jsonl` and, last, `summary.json` to `output`.

    Audio that cannot be used is left out with its reason. A split without utterances gets no file, nor does
    `left_out.jsonl` exist when nothing was.

    Args:
        corpus: one of `CORPORA`.
        speaker_pattern: for "folder" alone, see `compile_speaker_pattern`.
        split_by: None means by speaker if at least three are known, otherwise by utterance.
        dev, test: fractions of speakers or utterances, where the corpus has no such part of its own.
        min_seconds, max_seconds: utterances that are shorter or longer are left out.
        force: overwrite the files of an earlier run.

    Returns:
        The content of `summary.json`.

    Raises:
        ManifestError: the folder is not this corpus, cannot be read or holds no usable audio.
        ConfigError: options that do not fit.
        OutputExistsError: `output` holds prepared data, and `force` is not set; or it holds such files of others.
    """
    folder, output = Path(folder).absolute(), Path(output)
    _check_options(corpus, speaker_pattern, dev, test)
    _check_output(output, force)
    listing = _list_corpus(corpus, folder, speaker_pattern)
    entries, repeated = _drop_repeated(listing.entries)
    utterances, unusable = open_entries(entries)
    utterances, unfit = _filter_by_length(utterances, min_seconds, max_seconds)
    left_out = [*listing.left_out, *repeated, *unusable, *unfit]
    if not utterances:
        raise ManifestError(f"{folder}: no usable audio. {_most_frequent(left_out)}")
    split_by = split_by or choose_split_by(utterances)
    utterances = assign_splits(utterances, split_by, dev, test)
    known = {utterance.speaker for utterance in utterances}
    summary = {
        "corpus": corpus,
        "folder": escape(str(folder)),
        "split_by": split_by,
        "splits": {split: _statistics(part) for split in SPLITS if (part := _part(utterances, split))},
        "sample_rates": _count(utterance.sample_rate for utterance in utterances),
        "left_out": _count(item.reason for item in left_out),
        "speakers": {name: info for name, info in listing.speakers.items() if name in known},
    }
    return _write(output, utterances, left_out, summary, force)


def _check_output(output: Path, force: bool) -> None:
    """Refuse to overwrite; with `force`, what no earlier run noted in its summary, or somebody has changed since."""
    for name in _FILES:
        refuse_to_overwrite(output / name, force)
    found = [name for name in _FILES if os.path.lexists(output / name)]
    try:
        written = read_json(output / _SUMMARY)["files"] if found else {}
        own = all(sha256_of(output / name) == written[name] for name in found if name != _SUMMARY)
    except (OSError, ValueError, KeyError, TypeError):
        own = False
    if not own:
        raise OutputExistsError(
            f"{output}: {', '.join(found)} may not all be what prepare has written there; "
            "move them away or choose another output"
        )


def _check_options(corpus: str, speaker_pattern: str | None, dev: float, test: float) -> None:
    if corpus not in CORPORA:
        raise ConfigError(f"corpus {corpus!r}: expected one of {', '.join(CORPORA)}")
    if speaker_pattern is not None and corpus != "folder":
        raise ConfigError(f"a speaker pattern is for 'folder' alone; {corpus} names its speakers itself")
    if not (dev >= 0 and test >= 0 and dev + test < 1):
        raise ConfigError(f"fractions dev {dev} and test {test}: expected no negative ones, and a sum below 1")


def _list_corpus(corpus: str, folder: Path, speaker_pattern: str | None) -> Listing:
    if not folder.is_dir():
        raise ManifestError(f"{folder}: is not a folder")
    options = {"speaker_pattern": speaker_pattern} if speaker_pattern is not None else {}
    try:
        return CORPORA[corpus](folder, **options)
    except OSError as error:
        raise ManifestError(f"{error.filename}: cannot be read ({error.strerror})") from error


def _drop_repeated(entries: Iterable[Entry]) -> tuple[list[Entry], list[LeftOut]]:
    kept: dict[str, Entry] = {}
    repeated = []
    for entry in entries:
        first = kept.setdefault(entry.id, entry)
        if first is not entry:
            repeated.append(LeftOut(entry.id, "id occurs twice", f"{entry.path}, after {first.path}"))
    return list(kept.values()), repeated


def _filter_by_length(
    utterances: Sequence[Utterance], min_seconds: float, max_seconds: float | None
) -> tuple[list[Utterance], list[LeftOut]]:
    kept, left_out = [], []
    for utterance in utterances:
        if utterance.duration < min_seconds:
            reason = f"shorter than {min_seconds:g} s"
        elif max_seconds is not None and utterance.duration > max_seconds:
            reason = f"longer than {max_seconds:g} s"
        else:
            kept.append(utterance)
            continue
        left_out.append(LeftOut(utterance.id, reason, f"{utterance.duration:.3f} s"))
    return kept, left_out


def _part(utterances: Iterable[Utterance], split: str) -> list[Utterance]:
    return [utterance for utterance in utterances if utterance.split == split]


def _statistics(utterances: Sequence[Utterance]) -> dict[str, int | float]:
    return {
        "utterances": len(utterances),
        "speakers": len({utterance.speaker for utterance in utterances} - {None}),
        "hours": round(sum(utterance.duration for utterance in utterances) / 3600, 4),
    }


def _count(values: Iterable[Any]) -> dict[str, int]:
    """Value -> how often it occurs, most frequent first."""
    return {str(value): count for value, count in Counter(values).most_common()}


def _most_frequent(left_out: Sequence[LeftOut]) -> str:
    if not left_out:
        return "Nothing was found in it"
    (reason, count), *_ = Counter(item.reason for item in left_out).most_common(1)
    example = next(item for item in left_out if item.reason == reason)
    return f"{len(left_out)} left out, {count} of them: {reason}, such as {example.detail or example.item}"


def _write(
    output: Path, utterances: list[Utterance], left_out: list[LeftOut], summary: dict[str, Any], force: bool
) -> dict[str, Any]:
    """Write all files, then put them in their places; the summary, which tells what belongs to it, comes last."""
    with partial_folder(output) as new:
        for split in summary["splits"]:
            write_manifest(new / f"{split}.jsonl.gz", _part(utterances, split), folder=output)
        if left_out:
            lines = (json.dumps({key: escape(value) for key, value in asdict(item).items()}) for item in left_out)
            write_text(new / "left_out.jsonl", "".join(line + "\n" for line in lines))
        written = sorted(path.name for path in new.iterdir())
        summary = {**summary, "files": {name: sha256_of(new / name) for name in written}}
        write_json(new / _SUMMARY, summary)
        _check_output(output, force)  # Once more: another run may have come meanwhile.
        for name in _FILES:  # The summary of an earlier run goes first.
            (output / name).unlink(missing_ok=True)
        for name in [*written, _SUMMARY]:
            (new / name).rename(output / name)
    return summary
