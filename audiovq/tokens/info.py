"""`tokenizer.json`: which model the codes of a token data set belong to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from audiovq.errors import TokenError
from audiovq.files import write_json
from audiovq.tokens.records import Positive, Sha256, read_record

if TYPE_CHECKING:
    from audiovq.models.tokenizer import AudioTokenizer

FORMAT_VERSION = 1
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class TokenizerInfo:
    """Which model codes belong to, and what their numbers mean."""

    weights_sha256: Sha256
    sample_rate: Positive
    """Rate in Hz of the waveforms that were encoded; `num_samples` counts at this rate."""
    hop_length: Positive
    frame_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    num_codebooks: Positive
    """Of the set."""
    codebook_size: Annotated[int, Field(gt=0, le=2**16)]
    model: dict[str, Any]
    """The model's config."""

    @classmethod
    def of(cls, tokenizer: AudioTokenizer) -> TokenizerInfo:
        return cls(
            weights_sha256=tokenizer.weights_sha256,
            sample_rate=tokenizer.sample_rate,
            hop_length=tokenizer.hop_length,
            frame_rate=tokenizer.frame_rate,
            num_codebooks=tokenizer.num_codebooks,
            codebook_size=tokenizer.codebook_size,
            model=tokenizer.config.model_dump(mode="json"),
        )


def write_tokenizer_info(folder: str | Path, info: TokenizerInfo) -> None:
    """Write `tokenizer.json`."""
    write_json(Path(folder) / TOKENIZER, {"format_version": FORMAT_VERSION, **asdict(info)})


def read_tokenizer_info(folder: str | Path) -> TokenizerInfo:
    """Read `tokenizer.json`.

    Raises:
        TokenError: it is missing, damaged or of another format version.
    """
    path = Path(folder) / TOKENIZER
    if not path.exists():
        raise TokenError(f"{folder}: is no token data set, it has no {TOKENIZER}")
    found = read_record(path, _Version).format_version
    if found != FORMAT_VERSION:
        raise TokenError(f"{path}: expected format_version {FORMAT_VERSION}, found {found}")
    return read_record(path, TokenizerInfo)


@dataclass(frozen=True)
class _Version:
    format_version: int


def require_same_model(weights_sha256: str, tokenizer: AudioTokenizer, source: str | Path) -> None:
    """Raise `TokenError` unless the codes of `source`, with the weights' SHA-256 that it names, are the tokenizer's."""
    expected = tokenizer.weights_sha256
    if weights_sha256 != expected:
        raise TokenError(
            f"{source}: holds codes of another model (weights {weights_sha256[:12]}, "
            f"this model's are {expected[:12]}); use the model that made them"
        )


def set_digest(shards: Iterable[tuple[str, str]]) -> str:
    """SHA-256 of a set, from names (without suffix) and SHA-256 of its shards: `sha256sum *.parquet | sha256sum`."""
    lines = sorted(f"{name}.parquet\0{sha256}" for name, sha256 in shards)
    text = "".join("{1}  {0}\n".format(*line.split("\0")) for line in lines)
    return hashlib.sha256(text.encode()).hexdigest()
