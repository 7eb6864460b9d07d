"""Codes on disk: Parquet token data sets, and single `.npz` files.

A token data set is a folder of Parquet shards, one row an utterance, with a `tokenizer.json` beside them that says
which model the codes belong to. Every reader refuses the codes of another model.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from audiovq.errors import TokenError
from audiovq.files import atomic_path, write_json

if TYPE_CHECKING:
    from jaxtyping import UInt16

    from audiovq.models.tokenizer import AudioTokenizer

FORMAT_VERSION = 1
TOKENIZER = "tokenizer.json"


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


@dataclass(frozen=True)
class TokenRow:
    """The codes of one utterance."""

    utt_id: str
    speaker: str | None
    sample_rate: int
    """The model's, in Hz."""
    num_samples: int
    """Length of the utterance at that rate."""
    codes: UInt16[np.ndarray, "books frames"]
    source: str
    """The audio file."""

    @property
    def num_frames(self) -> int:
        return self.codes.shape[1]


# --- token data sets -----------------------------------------------------------------------------------------


def schema() -> Any:
    """The columns of a shard."""
    import pyarrow as pa

    return pa.schema(
        [
            ("utt_id", pa.string()),
            ("speaker", pa.string()),
            ("sample_rate", pa.int32()),
            ("num_samples", pa.int64()),
            ("num_frames", pa.int64()),
            ("codes", pa.list_(pa.list_(pa.uint16()))),
            ("source", pa.string()),
        ]
    )


def write_shard(path: str | Path, rows: Sequence[TokenRow]) -> None:
    """Write one Parquet shard, atomically; equal rows give equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "utt_id": [row.utt_id for row in rows],
        "speaker": [row.speaker for row in rows],
        "sample_rate": [row.sample_rate for row in rows],
        "num_samples": [row.num_samples for row in rows],
        "num_frames": [row.num_frames for row in rows],
        "codes": [list(row.codes) for row in rows],
        "source": [row.source for row in rows],
    }
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns, schema=schema()), temporary, compression="zstd")


class TokenSet:
    """A token data set on disk, read a batch of rows at a time.

    Raises:
        TokenError: the folder is none, or a file in it is damaged.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.info = read_tokenizer_info(self.folder)
        # Not the hidden files that a killed run leaves.
        self.shards = sorted(self.folder.glob("[!.]*.parquet"))
        if not self.shards:
            raise TokenError(f"{self.folder}: holds no token shards (*.parquet); tokenize some audio into it first")

    def require_model(self, tokenizer: AudioTokenizer) -> None:
        """Raise `TokenError` unless the codes are the tokenizer's."""
        require_same_model(self.info.weights_sha256, tokenizer, self.folder)

    @property
    def num_rows(self) -> int:
        """Utterances in all shards, from their footers."""
        return sum(_open_shard(shard).metadata.num_rows for shard in self.shards)

    def __iter__(self) -> Iterator[TokenRow]:
        """All rows, shard by shard; ids are checked to be safe file names."""
        for shard in self.shards:
            for batch in _batches(shard):
                for row in batch.to_pylist():
                    yield _row(row, shard)


def _open_shard(shard: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(shard)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(shard, error) from error
    if not file.schema_arrow.equals(schema()):
        found = ", ".join(f"{field.name} {field.type}" for field in file.schema_arrow)
        raise TokenError(f"{shard}: is no token shard: expected columns {', '.join(schema().names)}, found {found}")
    return file


def _batches(shard: Path) -> Iterator[Any]:
    import pyarrow as pa

    file = _open_shard(shard)
    try:
        yield from file.iter_batches(batch_size=256)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(shard, error) from error


def _damaged(shard: Path, error: Exception) -> TokenError:
    return TokenError(f"{shard}: is no token shard or is damaged ({' '.join(str(error).split())})")


def _row(row: dict[str, Any], shard: Path) -> TokenRow:
    from audiovq.data.manifest import check_id
    from audiovq.errors import ManifestError

    try:
        check_id(row["utt_id"])
        codes = np.array(row["codes"], dtype=np.uint16)
        if codes.ndim != 2 or codes.shape[1] != row["num_frames"]:
            raise ValueError(f"expected {row['num_frames']} frames of codes [Q, F], found shape {list(codes.shape)}")
    except (ManifestError, ValueError, TypeError, AttributeError) as error:
        raise TokenError(f"{shard}: utterance {row['utt_id']!r}: {error}") from error
    return TokenRow(row["utt_id"], row["speaker"], row["sample_rate"], row["num_samples"], codes, row["source"])


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
    """Raise `TokenError` unless codes from `source` belong to the tokenizer."""
    expected = tokenizer.weights_sha256
    if weights_sha256 != expected:
        raise TokenError(
            f"{source}: holds codes of another model (weights {weights_sha256[:12]}, "
            f"this model's are {expected[:12]}); use the model that made them"
        )


# --- single files --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CodesFile:
    """The codes of one audio file, as `audiovq encode` writes them."""

    codes: UInt16[np.ndarray, "books frames"]
    num_samples: int
    """Length of the audio at the model's rate."""
    sample_rate: int
    """The model's, in Hz."""
    weights_sha256: str
    """Of the model that made the codes."""


def save_codes(path: str | Path, file: CodesFile) -> None:
    """Write a compressed `.npz` file without pickled objects, atomically."""
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        np.savez_compressed(
            handle,
            codes=file.codes,
            num_samples=np.int64(file.num_samples),
            sample_rate=np.int64(file.sample_rate),
            weights_sha256=np.str_(file.weights_sha256),
        )


def load_codes(path: str | Path) -> CodesFile:
    """Read what `save_codes` wrote; pickled objects are refused.

    Raises:
        TokenError: the file is missing, damaged, or holds something else.
    """
    path = Path(path)
    try:
        # NumPy leaves a damaged file open if it opens the path itself.
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as arrays:
            codes = arrays["codes"]
            file = CodesFile(
                codes, int(arrays["num_samples"]), int(arrays["sample_rate"]), str(arrays["weights_sha256"])
            )
    except OSError as error:
        raise TokenError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise TokenError(f"{path}: is no codes file of `audiovq encode`, or is damaged ({error})") from error
    if codes.ndim != 2 or codes.dtype != np.uint16:
        raise TokenError(f"{path}: expected codes uint16 [Q, F], found {codes.dtype} {list(codes.shape)}")
    return file
