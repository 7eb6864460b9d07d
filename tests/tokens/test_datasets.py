from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from audiovq.errors import TokenError
from audiovq.tokens import (
    PackedWindows,
    TokenDataset,
    TokenizerInfo,
    TokenRow,
    TokenSet,
    pad_rows,
    shards,
    write_shard,
    write_tokenizer_info,
)

K, BOOKS = 50, 2


def write_set(folder: Path, lengths: list[int], rows_in_shard: int = 3) -> dict[str, np.ndarray]:
    """A set with utterances of these lengths; no code occurs twice in a codebook, as long as there are few."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer_info(folder, TokenizerInfo("ab" * 32, 16000, 320, 50.0, BOOKS, K, {}))
    ends = np.cumsum(lengths)
    stream = np.stack([np.arange(ends[-1]) % K, np.arange(ends[-1])[::-1] % K]).astype(np.uint16)
    codes = dict(zip([f"utt{i}" for i in range(len(lengths))], np.split(stream, ends[:-1], axis=1), strict=True))
    rows = [TokenRow(name, None, 16000, 320 * found.shape[1], found, "a.wav") for name, found in codes.items()]
    for number, first in enumerate(range(0, len(rows), rows_in_shard)):
        write_shard(folder / f"part-{number:05d}.parquet", rows[first : first + rows_in_shard])
    return codes


@pytest.fixture
def codes(tmp_path, monkeypatch) -> dict[str, np.ndarray]:
    """What the set in `tmp_path` holds."""
    monkeypatch.setattr(shards, "GROUP_CODES", 20)
    return write_set(tmp_path, [4, 9, 1, 30, 2, 2, 5, 12])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # So it says on a single CPU.
@pytest.mark.parametrize("context", [None, "fork", "spawn"])
def test_a_loader_gives_every_utterance_once_in_padded_batches(tmp_path, codes, context):
    dataset = TokenDataset(tmp_path)
    assert dataset[5].utt_id == "utt5"  # Files are open before the workers start.
    workers = {"num_workers": 2, "multiprocessing_context": context} if context else {}
    generator = torch.Generator().manual_seed(1)
    loader = DataLoader(dataset, batch_size=3, shuffle=True, generator=generator, collate_fn=pad_rows, **workers)
    seen = []
    for batch in loader:
        assert batch.codes.dtype == torch.int64
        assert batch.codes.shape == (len(batch.rows), BOOKS, int(batch.lengths.max()))
        for row, item, length in zip(batch.rows, batch.codes, batch.lengths, strict=True):
            np.testing.assert_array_equal(item[:, :length].numpy(), codes[row.utt_id])
            assert not item[:, length:].any()
            seen.append(row.utt_id)
    assert sorted(seen) == sorted(codes)
    assert seen != list(codes)


def joined(windows: PackedWindows) -> np.ndarray:
    return torch.cat([windows[index] for index in range(len(windows))], dim=-1).numpy()


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 60), st.sampled_from([None, K, K + 7]))
def test_windows_hold_the_stream_of_utterances_without_gaps(tmp_path_factory, lengths, length, separator):
    folder = tmp_path_factory.mktemp("set")
    codes = write_set(folder, lengths)
    mark = np.full((BOOKS, 0 if separator is None else 1), separator or 0)
    stream = np.concatenate([part for found in codes.values() for part in (mark, found)], axis=1)
    if stream.shape[1] < length:
        with pytest.raises(TokenError, match=rf"holds {stream.shape[1]} frames, fewer than one window of {length}"):
            PackedWindows(TokenSet(folder), length, separator)
        return
    windows = PackedWindows(TokenSet(folder), length, separator)
    assert len(windows) == stream.shape[1] // length
    assert all(window.shape == (BOOKS, length) and window.dtype == torch.int64 for window in windows)
    np.testing.assert_array_equal(joined(windows), stream[:, : len(windows) * length])
    with pytest.raises(IndexError):
        windows[len(windows)]


def utterances_of(windows: PackedWindows) -> list[tuple[int, ...]]:
    """First codebook of each utterance, in the order of the windows."""
    stream = joined(windows)[0]
    return [tuple(part[1:].tolist()) for part in np.split(stream, np.flatnonzero(stream == K))[1:]]


def test_each_epoch_has_an_order_of_its_own_and_every_utterance_once(tmp_path, codes):
    windows = PackedWindows(TokenSet(tmp_path), 1, separator=K, seed=3)  # One frame: nothing is left over.
    every = sorted(tuple(found[0].tolist()) for found in codes.values())
    orders = []
    for epoch in range(4):
        windows.set_epoch(epoch)
        orders.append(utterances_of(windows))
        assert sorted(orders[-1]) == every
    assert len({tuple(order) for order in orders}) == 4
    again = PackedWindows(TokenSet(tmp_path), 1, separator=K, seed=3)
    again.set_epoch(2)
    assert utterances_of(again) == orders[2]
    assert utterances_of(PackedWindows(TokenSet(tmp_path), 1, separator=K, seed=4)) != orders[0]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # So it says on a single CPU.
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_that_outlive_an_epoch_see_the_next_one(tmp_path, codes, context):
    windows = PackedWindows(TokenSet(tmp_path), 7, separator=K, seed=0)
    loader = DataLoader(
        windows, batch_size=2, num_workers=2, persistent_workers=True, multiprocessing_context=context, drop_last=False
    )
    for epoch in (0, 1, 2):
        windows.set_epoch(epoch)
        loaded = torch.cat(list(loader))
        torch.testing.assert_close(loaded, torch.stack([windows[index] for index in range(len(windows))]))


def test_a_separator_that_is_a_code_is_refused(tmp_path, codes):
    with pytest.raises(TokenError, match="separator 49 is a code; take one from 50 on"):
        PackedWindows(TokenSet(tmp_path), 4, separator=K - 1)
