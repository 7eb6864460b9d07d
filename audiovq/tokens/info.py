"""`tokenizer.json`: which model the codes of a token data set belong to."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from audiovq.errors import TokenError
from audiovq.files import write_json
from audiovq.storage import AnyPath, locate
from audiovq.tokens.records import Count, Positive, Sha256, read_record

if TYPE_CHECKING:
    from audiovq.models.tokenizer import AudioTokenizer

FORMAT_VERSION = 1
TOKENIZER = "tokenizer.json"
CodebookSize = Annotated[int, Field(gt=0, le=2**16)]


@dataclass(frozen=True)
class TokenizerInfo:
    """Which model codes belong to, and what their numbers mean."""

    weights_sha256: Sha256
    """`AudioTokenizer.codes_sha256` of the model."""
    sample_rate: Positive
    """Rate in Hz of the waveforms that were encoded; `num_samples` counts at this rate."""
    hop_length: Positive
    frame_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    num_codebooks: Positive
    """Of the set: the first ones of the model's."""
    codebook_size: CodebookSize
    """Of the largest of them."""
    model: dict[str, Any]
    """The model's config."""
    codebook_sizes: list[CodebookSize] = field(default_factory=list)
    """Of each of them; if it is not told, as in sets of earlier versions, they are all as large."""
    model_codebooks: Count = 0
    """Codebooks of the model; 0: not told, which are those of the set."""

    def __post_init__(self) -> None:
        # A frozen dataclass is filled in thus.
        object.__setattr__(self, "codebook_sizes", self.codebook_sizes or [self.codebook_size] * self.num_codebooks)
        object.__setattr__(self, "model_codebooks", self.model_codebooks or self.num_codebooks)
        if len(self.codebook_sizes) != self.num_codebooks or self.model_codebooks < self.num_codebooks:
            raise ValueError(
                f"{self.num_codebooks} codebooks have {len(self.codebook_sizes)} sizes, the model has "
                f"{self.model_codebooks} codebooks"
            )

    @property
    def chosen_codebooks(self) -> int | None:
        """Codebooks of the set if they are not all of the model's, else None."""
        return None if self.num_codebooks == self.model_codebooks else self.num_codebooks

    @property
    def bitrate(self) -> float:
        """Nominal bits a second of the set's codebooks."""
        return self.frame_rate * sum(map(math.log2, self.codebook_sizes))

    @classmethod
    def of(cls, tokenizer: AudioTokenizer, num_codebooks: int | None = None) -> TokenizerInfo:
        """What a set of the first few codebooks says, None: of all.

        Raises:
            TokenError: the model has no codes, or not so many codebooks.
        """
        tokenizer.require_codes(num_codebooks)
        sizes = list(tokenizer.codebook_sizes[:num_codebooks])
        return cls(
            weights_sha256=tokenizer.codes_sha256,
            sample_rate=tokenizer.sample_rate,
            hop_length=tokenizer.hop_length,
            frame_rate=tokenizer.frame_rate,
            num_codebooks=len(sizes),
            codebook_size=max(sizes),
            model=tokenizer.config.model_dump(mode="json"),
            codebook_sizes=sizes,
            model_codebooks=tokenizer.num_codebooks,
        )


def write_tokenizer_info(folder: str | AnyPath, info: TokenizerInfo) -> None:
    """Write `tokenizer.json`."""
    write_json(locate(folder) / TOKENIZER, {"format_version": FORMAT_VERSION, **asdict(info)})


def read_tokenizer_info(folder: str | AnyPath) -> TokenizerInfo:
    """Read `tokenizer.json`.

    Raises:
        TokenError: it is missing, damaged or of another format version.
    """
    path = locate(folder) / TOKENIZER
    if not path.exists():
        raise TokenError(f"{folder}: is no token data set, it has no {TOKENIZER}")
    found = read_record(path, _Version).format_version
    if found != FORMAT_VERSION:
        raise TokenError(f"{path}: expected format_version {FORMAT_VERSION}, found {found}")
    return read_record(path, TokenizerInfo)


@dataclass(frozen=True)
class _Version:
    format_version: int


def require_same_model(weights_sha256: str, tokenizer: AudioTokenizer, source: str | AnyPath) -> None:
    """Raise `TokenError` unless the codes of `source`, which names weights by their SHA-256, are the tokenizer's."""
    if not tokenizer.made(weights_sha256):
        raise TokenError(
            f"{source}: holds codes of another model (weights {weights_sha256[:12]}, "
            f"this model's are {tokenizer.codes_sha256[:12]}); use the model that made them"
        )


def set_digest(shards: Iterable[tuple[str, str]]) -> str:
    """SHA-256 of a set, from names (without suffix) and SHA-256 of its shards: `sha256sum *.parquet | sha256sum`."""
    lines = sorted(f"{name}.parquet\0{sha256}" for name, sha256 in shards)
    text = "".join("{1}  {0}\n".format(*line.split("\0")) for line in lines)
    return hashlib.sha256(text.encode()).hexdigest()
