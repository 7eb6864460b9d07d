"""Encoding audio files to codes files and back, one file each, with the folder tree kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audiovq.audio.files import AUDIO_SUFFIXES, TAR_SUFFIXES, AudioSource, find_audio_files, is_tar
from audiovq.devices import derive_seed
from audiovq.errors import AudioError, AudioVQError, OutputExistsError, SpeakerError, TokenError
from audiovq.files import refuse_to_overwrite
from audiovq.models.tokenizer import AudioTokenizer
from audiovq.text import watched
from audiovq.tokens import TOKENIZER, TokenSet, require_same_model
from audiovq.tokens.codes_file import CodesFile, load_codes, save_codes


@dataclass(frozen=True)
class FileJob:
    """One file to make of another."""

    source: Path
    target: Path


def plan_files(
    inputs: Sequence[Path], output: Path, suffix: str, find: Callable[[Path], list[Path]], force: bool
) -> list[FileJob]:
    """What is made of files and folders: `output` receives the tree below each folder, with another suffix.

    Raises:
        OutputExistsError: two inputs would become the same file, one would be overwritten, or a file exists and `force`
            is not given.
        AudioVQError: a folder cannot be read.
    """
    jobs: list[FileJob] = []
    for given in inputs:
        for source in find(given) if given.is_dir() else [given]:
            relative = source.relative_to(given) if given.is_dir() else Path(source.name)
            # A tar is only refused. It keeps its suffix here, so that it does not stand in the way of another file.
            name = relative.name if is_tar(source) else relative.stem
            jobs.append(FileJob(source, output / relative.with_name(name + suffix)))
    sources = {job.source.resolve() for job in jobs}
    planned: dict[Path, str] = {}
    for job in jobs:
        if job.target.resolve() in sources:
            raise OutputExistsError(f"{job.target}: is one of the inputs; choose another output")
        _plan(planned, job.target, str(job.source), force)
    return jobs


def plan_utterances(
    sets: Iterable[TokenSet],
    output: Path,
    force: bool,
    jobs: Iterable[FileJob] = (),
    utt_ids: Collection[str] | None = None,
) -> int:
    """How many wavs `decode_tokens` makes of token data sets, beside those of `jobs`.

    Args:
        utt_ids: of these utterances only; None: of all.

    Raises:
        OutputExistsError: as `plan_files`.
        TokenError: a shard is damaged, or there is no utterance of such an id.
    """
    planned = {job.target: str(job.source) for job in jobs}
    files = len(planned)
    for tokens in sets:
        if utt_ids is not None:
            tokens.find(utt_ids)
        for utt_id in tokens.ids if utt_ids is None else dict.fromkeys(utt_ids):
            _plan(planned, output / f"{utt_id}.wav", f"utterance {utt_id!r} of {tokens.folder}", force)
    return len(planned) - files


def _plan(planned: dict[Path, str], target: Path, source: str, force: bool) -> None:
    """Note what a file will be made of."""
    if target in planned:
        raise OutputExistsError(
            f"{target} would be made of both {planned[target]} and {source}; use two calls and two outputs"
        )
    refuse_to_overwrite(target, force)
    planned[target] = source


def encode_files(tokenizer: AudioTokenizer, jobs: Iterable[FileJob], num_codebooks: int | None = None) -> list[str]:
    """Encode each job's audio file to a codes file; returns what went wrong, a line for each file.

    Args:
        num_codebooks: how many of the model's codebooks are used, the first ones; None: all.

    Raises:
        TokenError: the model has no codes, or not so many codebooks.
    """
    tokenizer.require_codes(num_codebooks)
    weights, books = tokenizer.codes_sha256, tokenizer.num_codebooks

    def encode(job: FileJob) -> None:
        source = _open(job.source)
        codes = tokenizer.encode_source(source, num_codebooks)[0].numpy().astype(np.uint16)
        samples = source.length_at(tokenizer.sample_rate)
        save_codes(job.target, CodesFile(codes, samples, tokenizer.sample_rate, weights, books))

    return _each(jobs, encode, "Encoding")


def decode_files(tokenizer: AudioTokenizer, jobs: Iterable[FileJob], speaker: str | None = None) -> list[str]:
    """Decode each job's codes file to a wav; returns what went wrong, a line for each file.

    Raises:
        SpeakerError: the model does not know the speaker, or has to be told one.
    """
    tokenizer.speaker_number(speaker)

    def decode(job: FileJob) -> None:
        file = load_codes(job.source)
        require_same_model(file.weights_sha256, tokenizer, job.source)
        if file.sample_rate != tokenizer.sample_rate:
            raise TokenError(
                f"{job.source}: is damaged: says {file.sample_rate} Hz, its model is one of {tokenizer.sample_rate} Hz"
            )
        try:
            tokenizer.decode_to_file(file.codes, job.target, file.num_samples, speaker=speaker)
        except TokenError as error:
            raise TokenError(f"{job.source}: {error}") from error

    return _each(jobs, decode, "Decoding")


def convert_files(tokenizer: AudioTokenizer, jobs: Iterable[FileJob], speaker: str) -> list[str]:
    """Say what each job's audio file says in the voice of a speaker; returns what went wrong, a line for each file.

    Raises:
        TokenError: the model has no codes.
        SpeakerError: the model does not know the speaker.
    """
    tokenizer.require_codes()
    tokenizer.speaker_number(speaker)

    def convert(job: FileJob) -> None:
        source = _open(job.source)
        samples = source.length_at(tokenizer.sample_rate)
        tokenizer.decode_to_file(tokenizer.encode_source(source)[0], job.target, samples, speaker=speaker)

    return _each(jobs, convert, "Converting")


def decode_tokens(
    tokenizer: AudioTokenizer,
    tokens: TokenSet,
    output: Path,
    speaker: str | None = None,
    utt_ids: Collection[str] | None = None,
) -> list[str]:
    """Decode a token data set to `output`/utt_id.wav; returns what went wrong, a line for each utterance.

    Args:
        speaker: who speaks, for a model with speakers; None: the utterance's own speaker.
        utt_ids: decode these only, and read no others; None: all.

    Raises:
        TokenError: the codes are another model's, a shard is damaged, or there is no utterance of such an id.
        SpeakerError: the model does not know the speaker.
    """
    tokens.require_model(tokenizer)
    if speaker is not None:
        tokenizer.speaker_number(speaker)
    rows = tokens if utt_ids is None else (tokens[index] for index in tokens.find(utt_ids))
    failures = []
    for row in rows:
        target = output / f"{row.utt_id}.wav"
        try:
            voice = (speaker or row.speaker) if tokenizer.speakers else None
            # By its id, so that a decoder that draws draws other numbers for each utterance.
            seed = derive_seed("decode", row.utt_id)
            tokenizer.decode_to_file(row.codes, target, row.num_samples, speaker=voice, seed=seed)
        except (TokenError, SpeakerError) as error:
            failures.append(f"{row.utt_id}: {error}")
    return failures


def read_ids(given: Iterable[str]) -> list[str]:
    """Utterance ids; `@FILE` stands for those in a file, one a line."""
    ids: list[str] = []
    for item in given:
        if item.startswith("@"):
            text = Path(item[1:]).read_text(encoding="utf-8", errors="replace")
            # Not splitlines: an id may hold what Unicode, but no text file, takes for the end of a line.
            ids += [line for line in text.split("\n") if line]
        else:
            ids.append(item)
    return ids


def find_codes_files(folder: Path) -> list[Path]:
    """All codes files below a folder, sorted; see `find_audio_files`.

    Raises:
        AudioError: the folder cannot be read.
        TokenError: there are none.
    """
    found = find_audio_files(folder, {".npz"})
    if not found:
        raise TokenError(f"{folder}: holds neither codes files (*.npz) nor a token data set ({TOKENIZER})")
    return found


def find_speech(folder: Path) -> list[Path]:
    """All audio files below a folder, and tars, which are told to be none; sorted.

    Raises:
        AudioError: the folder cannot be read.
        TokenError: there are none.
    """
    found = find_audio_files(folder, AUDIO_SUFFIXES | TAR_SUFFIXES)
    if not found:
        raise TokenError(f"{folder}: holds no audio files")
    return found


def _open(path: Path) -> AudioSource:
    if is_tar(path):
        raise AudioError(f"{path}: is a tar; `audiovq tokenize` reads the audio in it")
    return AudioSource.open(path)


def _each(jobs: Iterable[FileJob], action: Callable[[FileJob], None], title: str) -> list[str]:
    failures = []
    for job in watched(list(jobs), title):
        try:
            action(job)
        except AudioVQError as error:
            failures.append(str(error))
    return failures
