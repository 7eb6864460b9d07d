"""A token data set on disk: read from end to end, by row number, by utterance id or by column."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from audiovq.errors import TokenError
from audiovq.storage import AnyPath, locate
from audiovq.text import warn_once
from audiovq.tokens.info import TOKENIZER, read_tokenizer_info, require_same_model
from audiovq.tokens.records import PLAN, SIDECARS, SUMMARY, PlanCounts, SetSummary, Sidecar, read_record
from audiovq.tokens.shards import RowGroup, TokenRow, open_shard, read_columns

if TYPE_CHECKING:
    from jaxtyping import Int64

    from audiovq.models.tokenizer import AudioTokenizer

OPEN_SHARDS = 32
"""Shards that are kept open for random access; each holds its footer in memory."""
KEPT_GROUPS = 4
"""Decoded row groups that are kept for random access, which makes neighbouring rows cheap."""


class TokenSet:
    """A token data set on disk or in an object store: a folder of Parquet shards with `tokenizer.json`.

        tokens = TokenSet("exp/codes")
        len(tokens), tokens[5].codes  # random access: uint16 [Q, F]
        for row in tokens: ...  # all rows, a row group in memory at a time
        tokens.lengths, tokens.ids, tokens.speakers  # read from their columns alone

    Rows are in the order of the shards' names and then of the rows in them. Nothing but footers is read before it is
    asked for, and memory does not grow with the number of rows that were read. A set may be sent to other processes:
    it takes no open files along.

    Raises:
        TokenError: the folder is none, or a file in it is damaged.
    """

    def __init__(self, folder: str | AnyPath):
        self.folder = locate(folder)
        self.info = read_tokenizer_info(self.folder)
        # Not the hidden files that a killed run leaves.
        self.shards = sorted(self.folder.glob("[!.]*.parquet"))
        if not self.shards:
            raise TokenError(f"{self.folder}: holds no token shards (*.parquet); tokenize some audio into it first")
        self._files: OrderedDict[int, Any] = OrderedDict()
        self._decoded: OrderedDict[int, RowGroup] = OrderedDict()

        self._warn_of_missing()

    def _warn_of_missing(self) -> None:
        """Warn if the set has fewer shards than its summary counts or, without one, its plan names."""
        with suppress(TokenError):  # A set of before there were plans, or a damaged one, does not tell.
            if (self.folder / SUMMARY).exists():
                planned = read_record(self.folder / SUMMARY, SetSummary).shards
            else:
                planned = read_record(self.folder / SIDECARS / PLAN, PlanCounts).units
            if len(self.shards) < planned:
                warn_once(
                    f"missing shards of {self.folder}",
                    f"{self.folder}: {len(self.shards)} of {planned} shards are there; tokenize again for the others",
                )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_files": OrderedDict(), "_decoded": OrderedDict()}

    def require_model(self, tokenizer: AudioTokenizer) -> None:
        """Raise `TokenError` unless all codes are the tokenizer's."""
        require_same_model(self.info.weights_sha256, tokenizer, self.folder)
        self.require_one_model()

    def require_one_model(self) -> None:
        """Raise `TokenError` if a shard's sidecar names another model than `tokenizer.json`."""
        for shard in self.shards:
            sidecar = self.folder / SIDECARS / f"{shard.stem}.json"
            with suppress(TokenError):  # Without sidecars, or with damaged ones, nothing tells.
                other = read_record(sidecar, Sidecar).weights_sha256
                if other != self.info.weights_sha256:
                    break
        else:
            return
        raise TokenError(
            f"{shard}: holds codes of another model (weights {other[:12]}, {TOKENIZER} names "
            f"{self.info.weights_sha256[:12]}); tokenize again"
        )

    def __len__(self) -> int:
        """Utterances in all shards, from their footers."""
        return int(self._row_ends[-1]) if len(self._row_ends) else 0

    def __getitem__(self, index: int) -> TokenRow:
        """Row number `index`, counted from 0, or from the end if negative.

        Raises:
            IndexError: there is no such row.
            TokenError: its shard is damaged, its codes have another shape than the model's, or its id is no safe
                file name.
        """
        row = index + len(self) if index < 0 else index
        if not 0 <= row < len(self):
            raise IndexError(f"{self.folder}: no row {index}, there are {len(self)}")
        group = int(np.searchsorted(self._row_ends, row, side="right"))
        rows = _cached(self._decoded, group, KEPT_GROUPS, self._read_group)
        return rows[row - int(self._row_ends[group]) + len(rows)]

    def __iter__(self) -> Iterator[TokenRow]:
        """All rows; raises `TokenError` as for a single one."""
        for number in range(len(self.shards)):
            yield from self.rows_of(number)

    def rows_of(self, shard: int) -> Iterator[TokenRow]:
        """The rows of shard number `shard`; raises `TokenError` as for a single one."""
        path = self.shards[shard]
        file = open_shard(path)
        for group in range(file.num_row_groups):
            rows = RowGroup(file, path, group, self.info.num_codebooks)
            yield from (rows[index] for index in range(len(rows)))

    def find(self, utt_ids: Collection[str]) -> list[int]:
        """The numbers of the rows with these ids, in the order of the set.

        Raises:
            TokenError: there is none with one of the ids.
        """
        missing, found = set(utt_ids), []
        for number, utt_id in enumerate(self._cells("utt_id")):
            if utt_id in missing:
                missing.remove(utt_id)
                found.append(number)
        if missing:
            more = f" (nor {len(missing) - 1} others that were asked for)" if len(missing) > 1 else ""
            raise TokenError(f"{self.folder}: holds no utterance {min(missing)!r}{more}")
        return found

    def _cells(self, name: str) -> Iterator[Any]:
        """The values of one column, a shard in memory at a time."""
        for shard in self.shards:
            yield from read_columns(open_shard(shard), shard, [name]).column(name).to_pylist()

    def column(self, name: str) -> Any:
        """One column of all rows, as a `pyarrow.ChunkedArray`; no other column is read."""
        import pyarrow as pa

        return pa.concat_tables(read_columns(open_shard(shard), shard, [name]) for shard in self.shards).column(name)

    @cached_property
    def lengths(self) -> Int64[np.ndarray, " rows"]:
        """Frames of each row."""
        return self.column("num_frames").to_numpy()

    @property
    def ids(self) -> list[str]:
        """Utterance id of each row."""
        return self.column("utt_id").to_pylist()

    @property
    def speakers(self) -> list[str | None]:
        """Speaker of each row, None where unknown."""
        return self.column("speaker").to_pylist()

    @cached_property
    def _groups(self) -> Int64[np.ndarray, "groups 3"]:
        """Shard number, row group in it and number of rows of every row group, from the footers."""
        found = [
            (number, group, metadata.row_group(group).num_rows)
            for number, shard in enumerate(self.shards)
            for metadata in [open_shard(shard).metadata]
            for group in range(metadata.num_row_groups)
        ]
        return np.array(found, dtype=np.int64).reshape(-1, 3)

    @cached_property
    def _row_ends(self) -> Int64[np.ndarray, " groups"]:
        return np.cumsum(self._groups[:, 2])

    def _read_group(self, group: int) -> RowGroup:
        shard, number, _ = map(int, self._groups[group])
        path = self.shards[shard]
        file = _cached(self._files, shard, OPEN_SHARDS, lambda _: open_shard(path))
        return RowGroup(file, path, number, self.info.num_codebooks)


Value = TypeVar("Value")


def _cached(cache: OrderedDict[int, Value], key: int, size: int, make: Callable[[int], Value]) -> Value:
    """The value of a key, made if it is not among the last `size` that were asked for."""
    if key not in cache:
        while len(cache) >= size:
            cache.popitem(last=False)
        cache[key] = make(key)
    cache.move_to_end(key)
    return cache[key]


def code_counts(tokens: TokenSet, row: TokenRow) -> Int64[np.ndarray, "books codes"]:
    """How often each code occurs in a row of a token data set: [Q, K], with zeros where a codebook has fewer than K.

    Raises:
        TokenError: the row holds a code outside its codebook.
    """
    sizes = tokens.info.codebook_sizes
    for size, highest in zip(sizes, row.codes.max(axis=1, initial=0), strict=True):
        if highest >= size:
            raise TokenError(
                f"{tokens.folder}: utterance {row.utt_id!r} holds code {highest}, the codebook has {size}; "
                "`audiovq tokens verify` lists all such utterances"
            )
    return np.stack([np.bincount(book, minlength=max(sizes)) for book in row.codes])
