from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiovq.errors import TokenError
from audiovq.tokens import (
    TokenizerInfo,
    TokenRow,
    TokenSet,
    read_tokenizer_info,
    schema,
    shards,
    write_shard,
    write_tokenizer_info,
)
from audiovq.tokens import token_set as token_set_module

HASH = "ab" * 32
INFO = TokenizerInfo(HASH, 16000, 320, 50.0, 2, 1024, {"sample_rate": 16000})


def rows(count: int = 3, books: int = 2) -> list[TokenRow]:
    random = np.random.default_rng(count)
    return [
        TokenRow(
            utt_id=f"utt {number} ä",
            speaker=None if number % 2 else "s",
            sample_rate=16000,
            num_samples=320 * (number + 1) - number,
            codes=random.integers(0, 65536, (books, number + 1)).astype(np.uint16),
            source=f"/speech/{number}.wav",
        )
        for number in range(count)
    ]


def token_set(folder: Path, *shards: list[TokenRow]) -> TokenSet:
    write_tokenizer_info(folder, INFO)
    for number, shard in enumerate(shards):
        write_shard(folder / f"part-{number}.parquet", shard)
    return TokenSet(folder)


def as_plain(row: TokenRow) -> dict:
    return {**vars(row), "codes": row.codes.tolist()}


def test_rows_return_in_order_as_they_were_written(tmp_path):
    written = rows(5)
    tokens = token_set(tmp_path, written[:2], [], written[2:])
    assert len(tokens) == 5
    read = list(tokens)
    assert [as_plain(row) for row in read] == [as_plain(row) for row in written]
    assert all(row.codes.dtype == np.uint16 for row in read)
    assert [row.num_frames for row in read] == [1, 2, 3, 4, 5]


@pytest.fixture
def small_groups(monkeypatch):
    """Row groups of a few rows."""
    monkeypatch.setattr(shards, "GROUP_CODES", 20)


@pytest.mark.parametrize("kept", [1, 4])
def test_rows_columns_and_ids_are_read_at_random(tmp_path, small_groups, monkeypatch, kept):
    monkeypatch.setattr(token_set_module, "OPEN_SHARDS", kept)
    monkeypatch.setattr(token_set_module, "KEPT_GROUPS", kept)
    written = rows(12)
    tokens = token_set(tmp_path, written[:5], [], written[5:])
    for index in [7, 0, 11, 4, 5, *range(11, -1, -1), -1, -12, *np.arange(12)]:
        assert as_plain(tokens[index]) == as_plain(written[index])
    assert len(tokens._decoded) <= kept
    assert len(tokens._files) <= kept
    for index in (12, -13):
        with pytest.raises(IndexError, match=f"no row {index}, there are 12"):
            tokens[index]
    assert tokens.lengths.tolist() == list(range(1, 13))
    assert tokens.ids == [row.utt_id for row in written]
    assert tokens.speakers == [row.speaker for row in written]
    assert tokens.column("num_samples").to_pylist() == [row.num_samples for row in written]


def test_a_row_group_holds_a_bounded_number_of_codes_or_one_row(tmp_path, small_groups):
    tokens = token_set(tmp_path, rows(14))  # 2 codebooks of 1, 2, 3, ... frames
    metadata = pq.ParquetFile(tokens.shards[0]).metadata
    counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    assert counts == [4, *[1] * 10]  # 2 + 4 + 6 + 8 codes, then 10, 12, ...
    assert sum(counts) == len(tokens) == 14


def test_a_row_is_read_without_the_other_row_groups(tmp_path, small_groups, monkeypatch):
    tokens = token_set(tmp_path, rows(14), rows(14))
    tokens[3]  # Reads the footers too.
    read = []
    original = shards.read_columns
    monkeypatch.setattr(shards, "read_columns", lambda *given: read.append(given[-1]) or original(*given))
    for index in (20, 18, 2, 19, 20, 15):
        assert as_plain(tokens[index]) == as_plain(rows(14)[index % 14])
    assert read == [3, 1, 2, 0]


def test_rows_are_found_by_id_in_the_order_of_the_set(tmp_path):
    written = rows(9)
    tokens = token_set(tmp_path, written[:4], written[4:])
    assert tokens.find([written[7].utt_id, written[0].utt_id, written[5].utt_id]) == [0, 5, 7]
    assert tokens.find([]) == []
    with pytest.raises(TokenError, match=r"holds no utterance 'utt 1'$"):
        tokens.find([written[3].utt_id, "utt 1"])
    with pytest.raises(TokenError, match=r"holds no utterance 'x' \(nor 1 others that were asked for\)"):
        tokens.find(["y", written[3].utt_id, "x"])


def test_a_set_that_was_read_from_takes_no_codes_to_other_processes(tmp_path):
    tokens = token_set(tmp_path, rows(40))
    fresh = pickle.dumps(TokenSet(tmp_path))
    tokens[3], len(tokens)
    assert len(pickle.dumps(tokens)) < len(fresh) + 2000
    assert as_plain(pickle.loads(pickle.dumps(tokens))[17]) == as_plain(rows(40)[17])  # noqa: S301


def test_rows_are_written_without_what_imports_pandas(tmp_path, monkeypatch):
    monkeypatch.setattr("pyarrow.array", lambda *_: pytest.fail("pyarrow.array imports pandas"))
    write_shard(tmp_path / "part-0.parquet", rows(9))
    monkeypatch.undo()
    token_set(tmp_path)
    assert [as_plain(row) for row in TokenSet(tmp_path)] == [as_plain(row) for row in rows(9)]


def test_equal_rows_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_shard(tmp_path / name, rows())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_shards_are_plain_parquet_for_any_reader(tmp_path):
    written = rows(4)
    tokens = token_set(tmp_path, written[:1], written[1:])
    table = pyarrow.dataset.dataset([str(shard) for shard in tokens.shards], format="parquet").to_table()
    assert {field.name: str(field.type) for field in table.schema} == {
        "utt_id": "string",
        "speaker": "string",
        "sample_rate": "int32",
        "num_samples": "int64",
        "num_frames": "int64",
        "codes": "list<element: list<element: uint16>>",
        "source": "string",
    }
    found = table.to_pylist()
    assert [row["codes"] for row in found] == [row.codes.tolist() for row in written]
    assert [row["num_frames"] for row in found] == [1, 2, 3, 4]


def test_what_a_killed_run_leaves_is_passed_over(tmp_path):
    token_set(tmp_path, rows(2))
    write_shard(tmp_path / ".partial-x.parquet", rows(3))
    (tmp_path / ".partial-y.parquet").write_bytes(b"half")
    assert len(TokenSet(tmp_path)) == 2


def test_another_model_is_refused(tmp_path, tiny_tokenizer):
    tokens, model = token_set(tmp_path, rows()), tiny_tokenizer()
    expected = rf"codes of another model \(weights abababababab, this model's are {model.codes_sha256[:12]}\)"
    with pytest.raises(TokenError, match=expected):
        tokens.require_model(model)


@pytest.mark.parametrize("named_by", ["codes_sha256", "weights_sha256"])
def test_a_model_is_known_by_what_its_codes_depend_on_or_as_earlier_by_all_weights(tmp_path, tiny_tokenizer, named_by):
    model = tiny_tokenizer()
    write_tokenizer_info(tmp_path, replace(INFO, weights_sha256=getattr(model, named_by)))
    write_shard(tmp_path / "part.parquet", rows())
    TokenSet(tmp_path).require_model(model)


@pytest.mark.parametrize("bad_id", ["../up", "/etc/x", "a/b", "a\\b", "..", ".hidden", "", "x" * 300, "nul\0", "\n"])
def test_an_unsafe_id_is_refused_on_reading(tmp_path, bad_id):
    tokens = token_set(tmp_path, [replace(rows(1)[0], utt_id=bad_id)])
    with pytest.raises(TokenError, match=r"part-0\.parquet: utterance ") as caught:
        list(tokens)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "codes",
    [
        *([], [[1, 2]], [[1, 2]] * 3, [[1, 2], [3]], [[1, 2], []]),
        *([[1, 2, 3], [1, 2, 3]], [[1, 2, 3], [1]]),
    ],
)
def test_codes_of_another_shape_are_refused(tmp_path, codes):
    token_set(tmp_path, rows(1))
    row = {**as_plain(rows(1)[0]), "num_frames": 2, "codes": codes}
    pq.write_table(pa.Table.from_pylist([row], schema=schema()), tmp_path / "part-0.parquet")
    with pytest.raises(TokenError, match=r"part-0\.parquet: utterance 'utt 0 ä': expected codes \[Q, F\] of 2 "):
        list(TokenSet(tmp_path))


@pytest.mark.parametrize(
    "nulls",
    [
        *({name: None} for name in schema().names if name != "speaker"),
        *({"codes": [[1], None]}, {"codes": [[1], [None]]}),
    ],
)
def test_nulls_are_refused_but_for_the_speaker(tmp_path, nulls):
    token_set(tmp_path, rows(1))
    row = {**as_plain(rows(1)[0]), "num_frames": 1, "speaker": None, **nulls}
    pq.write_table(pa.Table.from_pylist([row], schema=schema()), tmp_path / "part-0.parquet")
    with pytest.raises(TokenError, match=rf"part-0\.parquet: row group 0 holds nulls in {next(iter(nulls))}$"):
        list(TokenSet(tmp_path))


def test_a_damaged_shard_is_refused_with_its_name(tmp_path):
    tokens = token_set(tmp_path, rows(300))
    (shard,) = tokens.shards
    whole = shard.read_bytes()
    middle = bytearray(whole)
    middle[200:260] = bytes(60)
    for damaged in (b"", b"PAR1", whole[: len(whole) // 2], bytes(middle), b"text" * 100):
        shard.write_bytes(damaged)
        with pytest.raises(TokenError, match=r"part-0\.parquet: ") as caught:
            list(TokenSet(tmp_path))
        assert "\n" not in str(caught.value)
    shard.write_bytes(b"")
    with pytest.raises(TokenError, match=r"part-0\.parquet"):
        _ = len(TokenSet(tmp_path))


@settings(max_examples=200)
@given(st.data())
def test_a_shard_with_a_wrong_byte_is_an_error_in_one_line_or_still_right(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "fuzz-shard"
    folder.mkdir(exist_ok=True)
    (shard,) = token_set(folder, rows(20)).shards
    content = bytearray(shard.read_bytes())
    where = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[where:]
    else:
        content[where] = data.draw(st.integers(0, 255))
    shard.write_bytes(bytes(content))
    problem = ""
    try:
        found = [as_plain(row) for row in TokenSet(folder)]
    except TokenError as error:
        problem = str(error)
    else:
        assert found == [as_plain(row) for row in rows(20)]
    assert "\n" not in problem


def test_another_kind_of_table_is_refused(tmp_path):
    token_set(tmp_path, rows(1))
    for table in ({"x": [1]}, {**{name: ["1"] for name in schema().names}}):
        pq.write_table(pa.table(table), tmp_path / "part-0.parquet")
        with pytest.raises(TokenError, match=r"part-0\.parquet: is no token shard: expected columns utt_id, "):
            list(TokenSet(tmp_path))


def test_folders_that_are_no_token_set_are_refused(tmp_path):
    with pytest.raises(TokenError, match=r"is no token data set, it has no tokenizer\.json"):
        TokenSet(tmp_path)
    write_tokenizer_info(tmp_path, INFO)
    assert read_tokenizer_info(tmp_path) == INFO
    with pytest.raises(TokenError, match="holds no token shards"):
        TokenSet(tmp_path)
    good = json.loads((tmp_path / "tokenizer.json").read_text())
    for damaged in (
        "",
        "[]",
        "{}",
        "null",
        *(json.dumps({**good, **wrong}) for wrong in ({"sample_rate": 0}, {"hop_length": -1}, {"model": 1})),
        '"text"',
    ):
        (tmp_path / "tokenizer.json").write_text(damaged)
        with pytest.raises(TokenError, match=r"tokenizer\.json: is damaged"):
            read_tokenizer_info(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({**good, "format_version": 2}))
    with pytest.raises(TokenError, match="expected format_version 1, found 2"):
        read_tokenizer_info(tmp_path)
