"""From a corpus folder to its utterances: one function a corpus, which lists files and reads texts, no audio.

What is known about an utterance but cannot be used (a text without audio, say) is listed with a reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from multiprocessing.pool import ThreadPool
from pathlib import Path

from audiovq.audio.files import AUDIO_SUFFIXES, TAR_SUFFIXES, find_audio_files, is_tar
from audiovq.data.kaldi import list_kaldi
from audiovq.data.listing import MAX_LINE, Entry, LeftOut, Listing, read_lines
from audiovq.errors import ManifestError
from audiovq.files import open_file

_NO_AUDIO = "text without audio"


def folder(root: Path, speaker_pattern: str | None = None) -> Listing:
    """Any tree of audio files; an id is the path below `root` without suffix, `_` for slashes and blanks.

    Args:
        speaker_pattern: where the speaker stands in the path below `root`, see `compile_speaker_pattern`.
            Files that it does not fit are left out. Without it, speakers are unknown.
    """
    paths = find_audio_files(root, AUDIO_SUFFIXES | TAR_SUFFIXES)
    if not paths:
        raise ManifestError(f"{root}: no audio files in it (looked for .wav, .flac and {len(AUDIO_SUFFIXES) - 2} more)")
    pattern = compile_speaker_pattern(speaker_pattern) if speaker_pattern else None
    listing = Listing([])
    for path in paths:
        relative = path.relative_to(root).as_posix()
        if is_tar(path):
            listing.left_out.append(LeftOut(relative, "a tar", "unpack it first; only tokenize reads audio in a tar"))
            continue
        match = pattern.match(relative) if pattern else None
        if pattern and not match:
            listing.left_out.append(LeftOut(relative, "path does not fit the speaker pattern", str(speaker_pattern)))
            continue
        utterance_id = re.sub(r"[/\s]+", "_", relative.removesuffix(path.suffix))
        listing.entries.append(Entry(utterance_id, path, speaker=match["speaker"] if match else None))
    return listing


def compile_speaker_pattern(pattern: str) -> re.Pattern[str]:
    """A regular expression with a group `speaker`, from a pattern for the beginning of a path.

    `{speaker}` stands for the speaker, `*` for anything but a slash: `{speaker}/` is the first folder,
    `*/{speaker}/` the second, `{speaker}_` what precedes the first underscore of a file's name.

    Raises:
        ManifestError: `{speaker}` does not stand in it once, or nothing marks where it ends.
    """
    before, found, after = pattern.partition("{speaker}")
    if not found or not after.strip("*") or "{speaker}" in after or after.startswith("*"):
        raise ManifestError(
            f"speaker pattern {pattern!r}: expected {{speaker}} once, followed by the character that "
            "ends it, as in '{speaker}/' or '*/{speaker}_'"
        )
    regex = [re.escape(part).replace(r"\*", "[^/]*") for part in (before, after)]
    return re.compile(f"{regex[0]}(?P<speaker>[^/]+?){regex[1]}")


def vctk(root: Path) -> Listing:
    """VCTK (Yamagishi et al.), release 0.92 (microphone 1 only) or 0.80.

    `txt` and `speaker-info.txt` may be missing. Audio without text (all of p315) is kept, as a tokenizer
    needs none; text without audio (some of p362) and recordings of microphone 2 alone are left out.
    """
    if (root / "wav48_silence_trimmed").is_dir():
        folder, ending = root / "wav48_silence_trimmed", "_mic1.flac"
    elif (root / "wav48").is_dir():
        folder, ending = root / "wav48", ".wav"
    else:
        raise ManifestError(
            f"{root}: is no VCTK: expected wav48_silence_trimmed/ (release 0.92) or wav48/ (0.80) in it"
        )
    files = find_audio_files(folder)
    audio = [path for path in files if path.name.endswith(ending)]
    names = {path.name.removesuffix(ending) for path in audio}
    seconds = {re.sub(r"_mic\d+$", "", path.stem) for path in files} - names
    texts = _read_texts(sorted((root / "txt").glob("*/*.txt")))
    return Listing(
        entries=[
            Entry(name := path.name.removesuffix(ending), path, path.parent.name, texts.get(name)) for path in audio
        ],
        left_out=[
            *(LeftOut(name, "no audio for microphone 1") for name in sorted(seconds)),
            *(LeftOut(name, _NO_AUDIO) for name in sorted(set(texts) - names - seconds)),
        ],
        speakers=_read_speaker_info(root / "speaker-info.txt"),
    )


def librispeech(root: Path) -> Listing:
    """LibriSpeech (Panayotov et al., 2015): SUBSET/SPEAKER/CHAPTER/*.flac, with `.trans.txt` if present.

    Subsets keep their part: train-*, dev-* and test-*.
    """
    subsets = sorted(path for path in root.iterdir() if path.is_dir() and re.match("(train|dev|test)-", path.name))
    if not subsets:
        raise ManifestError(
            f"{root}: is no LibriSpeech: expected folders such as train-clean-100 or dev-clean in it; "
            "name the folder that holds the subsets"
        )
    listing = Listing([])
    for subset in subsets:
        paths = find_audio_files(subset)
        texts: dict[str, str] = {}
        for chapter in sorted({path.parent for path in paths}):
            texts |= _read_transcripts(chapter / f"{chapter.parent.name}-{chapter.name}.trans.txt")
        split = subset.name.partition("-")[0]
        listing.entries += [
            Entry(path.stem, path, path.parent.parent.name, texts.get(path.stem), split) for path in paths
        ]
        listing.left_out += _without_audio(texts, paths)
    return listing


def ljspeech(root: Path) -> Listing:
    """LJ Speech (Ito and Johnson, 2017): wavs/*.wav and the normalised texts of metadata.csv, if present."""
    if not (root / "wavs").is_dir():
        raise ManifestError(f"{root}: is no LJ Speech: expected wavs/ and metadata.csv in it")
    paths = find_audio_files(root / "wavs")
    texts: dict[str, str] = {}
    metadata = root / "metadata.csv"
    for number, line in read_lines(metadata) if metadata.exists() else ():
        name, *columns = line.split("|")  # No csv module: quotes are part of the text.
        if not columns:
            raise ManifestError(f"{metadata}:{number}: expected 'ID|text|normalised text', found {line!r:.60}")
        texts[name] = columns[-1] or columns[0]
    entries = [Entry(path.stem, path, "LJ", texts.get(path.stem)) for path in paths]
    return Listing(entries, _without_audio(texts, paths))


def kaldi(root: Path) -> Listing:
    """A Kaldi data folder: `wav.scp` and, if present, `segments`, `utt2spk` and `text`."""
    return Listing(list_kaldi(root))


CORPORA: dict[str, Callable[..., Listing]] = {
    "folder": folder,
    "vctk": vctk,
    "librispeech": librispeech,
    "ljspeech": ljspeech,
    "kaldi": kaldi,
}


def _read_texts(paths: list[Path]) -> dict[str, str]:
    """One text a file, by the file's stem; many are read at a time, since VCTK has 44,000."""
    with ThreadPool(16) as pool:
        return dict(zip((path.stem for path in paths), pool.map(_read_text, paths), strict=True))


def _read_text(path: Path) -> str:
    with open_file(path) as file:
        data = file.read(MAX_LINE + 1)
    if len(data) > MAX_LINE:
        raise ManifestError(f"{path}: expected a text of at most {MAX_LINE} bytes, found more")
    return data.decode("utf-8-sig", "replace").strip()


def _read_transcripts(path: Path) -> dict[str, str]:
    """LibriSpeech's `ID WORDS...` lines; none if the file does not exist."""
    if not path.exists():
        return {}
    split = (line.partition(" ") for _, line in read_lines(path) if line)
    return {name: text for name, _, text in split}


def _read_speaker_info(path: Path) -> dict[str, dict[str, str | int]]:
    """VCTK's `ID AGE GENDER ACCENTS REGION COMMENTS`; the last two are free text or missing, and dropped.

    Release 0.80 leaves out the p of the speakers' names.
    """
    speakers: dict[str, dict[str, str | int]] = {}
    for _, line in read_lines(path) if path.exists() else ():
        match = re.match(r"(?P<id>\w*\d)\s+(?P<age>\d+)\s+(?P<gender>[FM])\b\s*(?P<accent>[^\s(]\S*)?", line)
        if match:
            name = f"p{match['id']}" if match["id"].isdigit() else match["id"]
            speakers[name] = {"age": int(match["age"]), "gender": match["gender"]}
            if match["accent"]:
                speakers[name]["accent"] = match["accent"]
    return speakers


def _without_audio(texts: Iterable[str], paths: Iterable[Path]) -> list[LeftOut]:
    return [LeftOut(name, _NO_AUDIO) for name in sorted(set(texts) - {path.stem for path in paths})]
