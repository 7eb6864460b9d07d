"""Parquet shards of codes: their columns, writing them, and reading one row group at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from audiovq.errors import ManifestError, TokenError
from audiovq.files import atomic_path, open_file
from audiovq.storage import AnyPath, RemotePath
from audiovq.text import reason_of

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import UInt16

    from audiovq.tokens.info import TokenizerInfo

GROUP_CODES = 2**16
"""Codes in a row group, about. It is the least that is read for one row: half a millisecond, 128 KiB."""


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


def write_shard(path: str | AnyPath, rows: Sequence[TokenRow]) -> None:
    """Write one Parquet shard, atomically; equal rows give equal bytes."""
    import pyarrow.parquet as pq

    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as file,
        pq.ParquetWriter(file, schema(), compression="zstd", write_page_checksum=True) as writer,
    ):
        for group in _groups(rows):
            writer.write_table(_table(group))


def write_hub_shard(path: Path, rows: Sequence[TokenRow], info: TokenizerInfo) -> None:
    """Write a shard of a data set for the Hub (see `audiovq.tokens.export`), which names the model in its metadata."""
    import pyarrow.parquet as pq

    kind = np.int16 if info.codebook_size <= 2**15 else np.int32
    table = _hub_table(rows, kind).replace_schema_metadata({"weights_sha256": info.weights_sha256})
    with path.open("wb") as file, pq.ParquetWriter(file, table.schema, compression="zstd") as writer:
        first = 0
        for group in _groups(rows):
            writer.write_table(table.slice(first, len(group)))
            first += len(group)


def _hub_table(rows: Sequence[TokenRow], kind: type[np.generic]) -> Any:
    import pyarrow as pa

    return pa.table(
        {
            "utt_id": _texts([row.utt_id for row in rows]),
            "speaker_id": _texts([row.speaker for row in rows]),
            "n_frames": _numbers([row.num_frames for row in rows], np.int32),
            "k_codebooks": _numbers([len(row.codes) for row in rows], np.int32),
            "codes": _code_lists(rows, kind),
            "sample_rate": _numbers([row.sample_rate for row in rows], np.int32),
            "num_samples": _numbers([row.num_samples for row in rows], np.int64),
            "source": _texts([row.source for row in rows]),
        }
    )


def _groups(rows: Sequence[TokenRow]) -> Iterator[Sequence[TokenRow]]:
    """Consecutive rows of at most `GROUP_CODES` codes together, or a single longer one."""
    first, size = 0, 0
    for number, row in enumerate(rows):
        size += row.codes.size
        if size > GROUP_CODES and number > first:
            yield rows[first:number]
            first, size = number, row.codes.size
    if rows:
        yield rows[first:]


def _table(rows: Sequence[TokenRow]) -> Any:
    """Rows as columns, made from their buffers: `pyarrow.array` would import pandas, which nothing here needs."""
    import pyarrow as pa

    columns = [
        _texts([row.utt_id for row in rows]),
        _texts([row.speaker for row in rows]),
        _numbers([row.sample_rate for row in rows], np.int32),
        _numbers([row.num_samples for row in rows], np.int64),
        _numbers([row.num_frames for row in rows], np.int64),
        _code_lists(rows, np.uint16),
        _texts([row.source for row in rows]),
    ]
    return pa.Table.from_arrays(columns, schema=schema())


def _code_lists(rows: Sequence[TokenRow], kind: type[np.generic]) -> Any:
    """The codes of rows as lists of lists [Q][F]."""
    codes = _numbers(np.concatenate([row.codes.ravel() for row in rows]), kind)
    books = _lists(np.repeat([row.num_frames for row in rows], [len(row.codes) for row in rows]), codes)
    return _lists([len(row.codes) for row in rows], books)


def _numbers(values: Any, dtype: type[np.generic]) -> Any:
    import pyarrow as pa

    numbers = np.ascontiguousarray(values, dtype)
    return pa.Array.from_buffers(pa.from_numpy_dtype(numbers.dtype), len(numbers), [None, pa.py_buffer(numbers)])


def _lists(lengths: Any, items: Any) -> Any:
    """Lists of so many of the items each."""
    import pyarrow as pa

    return pa.ListArray.from_arrays(_numbers(np.cumsum([0, *lengths]), np.int32), items)


def _texts(values: Sequence[str | None]) -> Any:
    import pyarrow as pa

    encoded = [(value or "").encode() for value in values]
    present = np.packbits([value is not None for value in values], bitorder="little")
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    return pa.StringArray.from_buffers(
        len(values), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)), pa.py_buffer(present)
    )


def open_shard(path: AnyPath) -> Any:
    """A shard as a `pyarrow.parquet.ParquetFile`; only its footer is read.

    Raises:
        TokenError: it is damaged or another kind of table.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(_arrow_file(path), page_checksum_verification=True)
        found = ", ".join(f"{field.name} {field.type}" for field in file.schema_arrow)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from error
    if not file.schema_arrow.equals(schema()):
        raise TokenError(f"{path}: is no token shard: expected columns {', '.join(schema().names)}, found {found}")
    return file


def _arrow_file(path: AnyPath) -> Any:
    import pyarrow as pa

    file = open_file(path)
    if isinstance(path, RemotePath):
        return pa.PythonFile(file, "r")
    file.close()  # Opened to see that it is one: Arrow would wait for a pipe.
    return pa.OSFile(os.fsencode(path))  # As bytes: Arrow takes a name for UTF-8 otherwise.


def read_columns(file: Any, path: AnyPath, names: Sequence[str], group: int | None = None) -> Any:
    """Some columns of a shard, or of one row group of it, as a `pyarrow.Table`; the others are not read.

    Raises:
        TokenError: the shard is damaged.
    """
    import pyarrow as pa

    try:
        # Without Arrow's threads: a row group is small, and a forked process has none of them.
        if group is None:
            table = file.read(columns=list(names), use_threads=False)
        else:
            table = file.read_row_group(group, columns=list(names), use_threads=False)
        table.validate(full=True)  # Text that is no UTF-8 would be found only when a row is taken.
        return table
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: AnyPath, error: Exception) -> TokenError:
    return TokenError(f"{path}: is no token shard or is damaged ({reason_of(error)})")


class RowGroup:
    """The rows of one row group, decoded; each is checked when it is taken.

    Codes are cut out of Arrow's buffers: there is no Python object for each code, as `to_pylist` would make.
    """

    def __init__(self, file: Any, path: AnyPath, group: int, num_codebooks: int):
        self.path, self.num_codebooks = path, num_codebooks
        table = read_columns(file, path, schema().names, group).combine_chunks()
        self._columns = {name: table.column(name) for name in schema().names if name != "codes"}
        self._length = table.num_rows
        if self._length:
            books = table.column("codes").chunk(0)
            counts = {name: column.null_count for name, column in self._columns.items() if name != "speaker"}
            counts["codes"] = books.null_count + books.values.null_count + books.values.values.null_count
            if nulls := [name for name, count in counts.items() if count]:
                raise TokenError(f"{path}: row group {group} holds nulls in {', '.join(nulls)}")
            self._book_offsets = books.offsets.to_numpy()
            self._frame_offsets = books.values.offsets.to_numpy()
            self._values = books.values.values.to_numpy()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> TokenRow:
        """Row number `index` of the group.

        Raises:
            TokenError: its codes are not [num_codebooks, num_frames], or its id is no safe file name.
        """
        from audiovq.data.manifest import check_id

        if not 0 <= index < self._length:
            raise IndexError(index)
        row = {name: column[index].as_py() for name, column in self._columns.items()}
        try:
            check_id(row["utt_id"])
            codes = self._codes(index, row.pop("num_frames"))
        except (ManifestError, ValueError) as error:
            raise TokenError(f"{self.path}: utterance {row['utt_id']!r}: {error}") from error
        return TokenRow(codes=codes, **row)

    def _codes(self, index: int, num_frames: int) -> np.ndarray:
        first, last = self._book_offsets[index : index + 2]
        offsets = self._frame_offsets[first : last + 1]
        found = np.diff(offsets)
        if len(found) != self.num_codebooks or (found != num_frames).any():
            lengths = " and ".join(map(str, found)) or "no"
            raise ValueError(
                f"expected codes [Q, F] of {self.num_codebooks} codebooks and {num_frames} frames, "
                f"found {len(found)} codebooks of {lengths} frames"
            )
        # A copy, so that a row that is kept does not keep its whole group in memory.
        return self._values[offsets[0] : offsets[-1]].reshape(self.num_codebooks, num_frames).copy()
