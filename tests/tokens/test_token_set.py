"""Other libraries read a token data set as it is, whatever else lies beside its shards."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pandas
import polars
import pyarrow.parquet
import pytest

from audiovq.tokens import TokenizerInfo, TokenRow, TokenSet, write_shard, write_tokenizer_info


@pytest.fixture
def tokens(tmp_path) -> TokenSet:
    """Two shards, with all that `audiovq tokenize` leaves beside them."""
    folder = tmp_path / "codes"
    random = np.random.default_rng(0)
    rows = [
        TokenRow(f"utt{i}", None if i % 2 else "s", 16000, 320 * (i + 1), codes, f"/speech/{i}.wav")
        for i, codes in ((i, random.integers(0, 2**16, (2, i + 1)).astype(np.uint16)) for i in range(7))
    ]
    write_tokenizer_info(folder, TokenizerInfo("ab" * 32, 16000, 320, 50.0, 2, 2**16, {}))
    for number, part in enumerate((rows[:3], rows[3:])):
        write_shard(folder / f"part-{number:05d}-of-00002.parquet", part)
    (folder / "rejected.jsonl").write_text('{"utt_id": "bad"}\n')
    (folder / "_units").mkdir()
    (folder / "_units/part-00000-of-00002.json").write_text("{}\n")
    (folder / ".partial-x.parquet").write_bytes(b"half")
    return TokenSet(folder)


def read_by_datasets(tokens: TokenSet, tmp_path: Path) -> list[dict]:
    pattern = f"{tokens.folder}/*.parquet"
    return list(datasets.load_dataset("parquet", data_files=pattern, split="train", cache_dir=str(tmp_path / "cache")))


def read_by_pandas(tokens: TokenSet, _: Path) -> list[dict]:
    return pandas.read_parquet(tokens.shards).to_dict("records")


def read_by_polars(tokens: TokenSet, _: Path) -> list[dict]:
    return polars.read_parquet(tokens.shards).to_dicts()


def read_by_pyarrow(tokens: TokenSet, _: Path) -> list[dict]:
    return pyarrow.parquet.read_table(tokens.shards).to_pylist()


@pytest.mark.parametrize("read", [read_by_datasets, read_by_pandas, read_by_polars, read_by_pyarrow])
def test_rows_are_those_of_the_set(tokens, tmp_path, read):
    found = read(tokens, tmp_path)
    assert len(found) == len(tokens) == 7
    for row, other in zip(tokens, found, strict=True):
        np.testing.assert_array_equal(np.stack(list(other["codes"])), row.codes)
        speaker = None if pandas.isna(other["speaker"]) else other["speaker"]
        assert (other["utt_id"], speaker, other["source"]) == (row.utt_id, row.speaker, row.source)
        assert [other[name] for name in ("sample_rate", "num_samples", "num_frames")] == [
            row.sample_rate,
            row.num_samples,
            row.num_frames,
        ]
