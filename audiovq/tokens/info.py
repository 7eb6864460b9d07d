"""`tokenizer.json`: which model the codes of a token data set belong to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiovq.errors import TokenError
from audiovq.files import write_json

if TYPE_CHECKING:
    from audiovq.models.tokenizer import AudioTokenizer

FORMAT_VERSION = 1
TOKENIZER = "tokenizer.json"
PLAN = "plan.json"
SIDECARS = "_units"
"""Folder of the sidecars; readers of Parquet folders pass over names with an underscore."""
REJECTED = "rejected.jsonl"
SUMMARY = "summary.json"


@dataclass(frozen=True)
class TokenizerInfo:
    """Which model codes belong to, and what their numbers mean."""

    weights_sha256: str
    sample_rate: int
    """Rate in Hz of the waveforms that were encoded; `num_samples` counts at this rate."""
    hop_length: int
    frame_rate: float
    num_codebooks: int
    codebook_size: int
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
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data.pop("format_version")
        if version != FORMAT_VERSION:
            raise TokenError(f"{path}: expected format_version {FORMAT_VERSION}, found {version}")
        return TokenizerInfo(**data)
    except FileNotFoundError as error:
        raise TokenError(f"{folder}: is no token data set, it has no {TOKENIZER}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TokenError(f"{path}: is damaged ({error})") from error


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
