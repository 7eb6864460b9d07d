"""New speech: codes are sampled from a prior and decoded to wav files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int
from torch import Tensor

from audiovq.audio.files import AudioSource, save_audio
from audiovq.devices import derive_seed
from audiovq.errors import ConfigError, TokenError
from audiovq.files import refuse_to_overwrite
from audiovq.models.prior import CodePrior
from audiovq.models.tokenizer import AudioTokenizer
from audiovq.text import watched
from audiovq.tokens.codes_file import CodesFile, save_codes

MAX_NUM, MAX_BYTES = 1_000_000, 4 << 30
"""Utterances of a call, and bytes of memory for those that are sampled together: about six hours at 16 kHz."""
_SAMPLE = re.compile(r"sample-(\d{3}|[1-9]\d{3,})\.(wav|npz)")


@dataclass(frozen=True)
class SamplingSettings:
    """How codes are drawn; see `CodePrior.sample`."""

    seconds: float
    """Length of each utterance, with its prime."""
    speaker: str | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0


def synthesize(
    prior: CodePrior,
    tokenizer: AudioTokenizer,
    output: Path,
    num: int,
    settings: SamplingSettings,
    prime: Path | None = None,
    batch_size: int = 16,
    force: bool = False,
) -> list[Path]:
    """Sample utterances and write each to `output` as a wav and a codes file; returns the wavs.

    Each depends on the settings and its number alone, and not on `num` or `batch_size`, up to rounding. The speaker is
    told to the prior and to the decoder, whichever of them knows speakers.

    Args:
        prime: audio file that all utterances begin with and continue.
        batch_size: utterances that are sampled and decoded together; fewer where `MAX_BYTES` do not hold them.

    Raises:
        TokenError: the prior models another tokenizer's codes, or the prime is not shorter than what is asked for.
        SpeakerError: a model does not know the speaker, or has to be told one.
        ConfigError: a setting is out of range, or asks for more than `MAX_NUM` utterances or `MAX_BYTES` for one.
        AudioError: the prime cannot be read.
        OutputExistsError: a file exists and `force` is not given.
    """
    require_tokenizer(prior, tokenizer)
    prior.check_settings(settings.temperature, settings.top_k, settings.top_p)
    voices = who_speaks(prior, tokenizer, settings.speaker)
    num_samples = plan_samples(tokenizer, num, settings.seconds)
    num_frames = tokenizer.num_frames(num_samples)
    batch_size = max(1, min(batch_size, MAX_BYTES // bytes_each(tokenizer, num_samples)))
    if not force:
        refuse_existing(output, num)
    beginning = encode_prime(tokenizer, prime, prior.codes.num_codebooks, num_frames) if prime is not None else None
    wavs = [output / f"sample-{number:03d}.wav" for number in range(num)]

    weights = tokenizer.codes_sha256
    starts = range(0, num, batch_size)
    for first in watched(starts, "Sampling"):
        batch = wavs[first : first + batch_size]
        codes = prior.sample(
            len(batch),
            num_frames,
            speaker=voices.prior,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            prime=beginning,
            seed=settings.seed,
            first=first,
        )
        seeds = [derive_seed(settings.seed, "decoder", number) for number in range(first, first + len(batch))]
        waves = tokenizer.decode(codes, num_samples, speaker=voices.decoder, seed=seeds)
        for path, item, wave in zip(batch, codes, waves, strict=True):
            found = item.numpy().astype(np.uint16)
            file = CodesFile(found, num_samples, tokenizer.sample_rate, weights, tokenizer.num_codebooks)
            save_codes(path.with_suffix(".npz"), file)
            save_audio(path, wave, tokenizer.sample_rate)
    return wavs


def plan_samples(tokenizer: AudioTokenizer, num: int, seconds: float) -> int:
    """Samples of each utterance.

    Raises:
        ConfigError: there is nothing to sample, or more than fits.
    """
    asked = seconds * tokenizer.sample_rate
    if num < 1 or not 0.5 < asked < float("inf"):
        raise ConfigError(f"expected at least one utterance and some time, found {num} of {seconds:g} seconds")
    if num > MAX_NUM:
        raise ConfigError(f"num: expected at most {MAX_NUM} utterances, found {num}; another --seed gives others")
    num_samples = round(asked)
    needed = bytes_each(tokenizer, num_samples)
    if needed > MAX_BYTES:
        longest = int(seconds * MAX_BYTES / needed)
        raise ConfigError(
            f"seconds: {seconds:g} s at once need {needed / 2**30:.3g} GiB of memory, expected at most "
            f"{MAX_BYTES >> 30} GiB; ask for {longest} s or less, and for more utterances"
        )
    return num_samples


def bytes_each(tokenizer: AudioTokenizer, num_samples: int) -> int:
    """About how much memory the codes, random numbers and samples of one utterance take while it is made."""
    steps = tokenizer.num_frames(num_samples) * max(1, tokenizer.num_codebooks)
    return 12 * num_samples + 150 * steps


def refuse_existing(output: Path, num: int) -> None:
    """Raise `OutputExistsError` if one of the files exists, at the cost of what the folder holds and not of `num`."""
    for path in sorted(output.glob("sample-*")) if output.is_dir() else ():
        if (match := _SAMPLE.fullmatch(path.name)) and int(match[1]) < num:
            refuse_to_overwrite(path, force=False)


@dataclass(frozen=True)
class Voices:
    """Who speaks, as each of two models is told it."""

    prior: str | None
    decoder: str | None


def who_speaks(prior: CodePrior, tokenizer: AudioTokenizer, speaker: str | None) -> Voices:
    """The speaker for each of the models that knows speakers.

    Raises:
        SpeakerError: one of them does not know the speaker, or has to be told one, or neither knows any.
    """
    voices = Voices(
        speaker if prior.speakers or not tokenizer.speakers else None, speaker if tokenizer.speakers else None
    )
    prior.speaker_number(voices.prior)
    tokenizer.speaker_number(voices.decoder)
    return voices


def require_tokenizer(prior: CodePrior, tokenizer: AudioTokenizer) -> None:
    """Raise `TokenError` unless the prior models the tokenizer's codes."""
    if not tokenizer.made(prior.codes.weights_sha256):
        raise TokenError(
            f"the prior models the codes of another model (weights {prior.codes.weights_sha256[:12]}, this model's are "
            f"{tokenizer.codes_sha256[:12]}); use the model whose codes it was trained on"
        )


def encode_prime(
    tokenizer: AudioTokenizer, path: Path, num_codebooks: int, num_frames: int
) -> Int[Tensor, "books frames"]:
    """The codes of an audio file, in the first few codebooks, that `num_frames` frames are to begin with: those of its
    whole frames.

    The rest of its last frame is left out: its code would say that the speech breaks off.

    Raises:
        TokenError: the file is shorter than a frame, or as long as what is asked for.
        AudioError: it cannot be read.
    """
    source = AudioSource.open(path)
    frames = source.length_at(tokenizer.sample_rate) // tokenizer.hop_length
    if not frames:
        raise TokenError(f"{path}: is shorter than a frame, {1 / tokenizer.frame_rate:g} s")
    if frames >= num_frames:
        raise TokenError(
            f"{path}: the prime has {frames / tokenizer.frame_rate:.2f} s, which leaves nothing to sample of "
            f"{num_frames / tokenizer.frame_rate:.2f} s; ask for more --seconds, since the prime counts"
        )
    return tokenizer.encode_source(source, num_codebooks)[0, :, :frames]
