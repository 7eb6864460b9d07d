"""Exports are read back by the libraries that they are for, and compared with the Parquet codes."""

from __future__ import annotations

import gc
import json
import warnings
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import datasets
import kaldiio
import numpy as np
import pytest
import webdataset
from lhotse import CutSet, MonoCut

from audiovq.errors import OutputExistsError, TokenError
from audiovq.tokens import TokenizerInfo, TokenRow, TokenSet, write_shard, write_tokenizer_info
from audiovq.tokens.export import FORMATS, export_tokens
from audiovq.tokens.exported import READERS, ExportedTokens

IDS = ["p1_b", "p1_a.1", "é%2E", "B", "a", "p1_a.2", "z"]


def write_set(folder: Path, books: int, ids: list[str], size: int = 2**16) -> TokenSet:
    """Three shards, the second of them empty."""
    random = np.random.default_rng(books)
    rows = []
    for number, name in enumerate(ids):
        codes = random.integers(0, size, (books, 5 * number + 1)).astype(np.uint16)
        speaker = None if number % 3 == 0 else "s1"
        rows.append(TokenRow(name, speaker, 16000, 320 * codes.shape[1] - number, codes, f"/speech/{name}.wav"))
    write_tokenizer_info(folder, TokenizerInfo("ab" * 32, 16000, 320, 50.0, books, size, {"sample_rate": 16000}))
    for number, part in enumerate((rows[:3], [], rows[3:])):
        write_shard(folder / f"part-{number:05d}-of-00003.parquet", part)
    return TokenSet(folder)


@pytest.fixture(params=[1, 3], ids=["one codebook", "three codebooks"])
def tokens(request, tmp_path) -> TokenSet:
    return write_set(tmp_path / "codes", request.param, IDS)


def about(row: TokenRow) -> dict:
    """Everything but the codes, as the exports hold it."""
    return {name: value for name, value in asdict(row).items() if name != "codes"} | {"num_frames": row.num_frames}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_memmap_is_one_array_that_numpy_maps(tokens, tmp_path):
    export_tokens(tokens, "memmap", tmp_path / "out")
    codes = np.load(tmp_path / "out/codes.npy", mmap_mode="r")
    assert isinstance(codes, np.memmap)
    assert codes.dtype == np.uint16
    offsets = np.load(tmp_path / "out/offsets.npy")
    lines = [json.loads(line) for line in (tmp_path / "out/utterances.jsonl").read_text("utf-8").splitlines()]
    assert lines == [about(row) for row in tokens]
    assert codes.shape == (tokens.info.num_codebooks, offsets[-1])
    for row, (start, stop) in zip(tokens, pairwise(offsets), strict=True):
        np.testing.assert_array_equal(codes[:, start:stop], row.codes)
    assert names(tmp_path / "out") == ["codes.npy", "export.json", "offsets.npy", "utterances.jsonl"]


def test_jsonl_has_a_line_for_each_utterance(tokens, tmp_path):
    export_tokens(tokens, "jsonl", tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out/codes.jsonl").read_text("utf-8").splitlines()]
    assert lines == [about(row) | {"codes": row.codes.tolist()} for row in tokens]


def read_tars(tars: list[str]) -> list[dict]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its files to the garbage collector.
        samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode())
        gc.collect()
    return samples


def test_webdataset_is_read_by_webdataset(tokens, tmp_path):
    export_tokens(tokens, "webdataset", tmp_path / "out")
    tars = sorted(map(str, (tmp_path / "out").glob("*.tar")))
    assert [Path(tar).name for tar in tars] == ["part-00000-of-00003.tar", "part-00002-of-00003.tar"]
    samples = read_tars(tars)
    assert [unquote(sample["__key__"]) for sample in samples] == IDS
    for sample, row in zip(samples, tokens, strict=True):
        assert sample["json"] == about(row)
        assert sample["npy"].dtype == np.uint16
        np.testing.assert_array_equal(sample["npy"], row.codes)


def test_kaldi_archives_are_read_by_kaldiio(tokens, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export_tokens(tokens, "kaldi", "out")
    monkeypatch.chdir("/")
    sizes = [line.split() for line in (tmp_path / "out/utt2num_frames").read_text("utf-8").splitlines()]
    assert [name for name, _ in sizes] == sorted(IDS, key=str.encode)
    assert dict(sizes) == {row.utt_id: str(row.num_frames) for row in tokens}
    for book in range(tokens.info.num_codebooks):
        by_id = kaldiio.load_scp(str(tmp_path / f"out/codebook{book}.scp"))
        assert list(by_id) == sorted(IDS, key=str.encode)
        archive = list(kaldiio.load_ark(str(tmp_path / f"out/codebook{book}.ark")))
        assert [name for name, _ in archive] == IDS
        for row, (_, values) in zip(tokens, archive, strict=True):
            assert values.dtype == np.int32
            np.testing.assert_array_equal(values, row.codes[book])
            np.testing.assert_array_equal(by_id[row.utt_id], row.codes[book])


def read_shar(folder: Path) -> list[tuple[MonoCut, np.ndarray]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # lhotse leaves its files to the garbage collector, too.
        cuts = list(CutSet.from_shar(in_dir=folder))
        gc.collect()
    return [(cut, cut.load_codes()) for cut in cuts]


def test_cuts_are_read_by_lhotse_with_their_codes(tokens, tmp_path):
    export_tokens(tokens, "lhotse", tmp_path / "out")
    assert files(tmp_path / "out") == [
        *("export.json", "shar/codes.000000.tar", "shar/codes.000001.tar"),
        *("shar/cuts.000000.jsonl.gz", "shar/cuts.000001.jsonl.gz"),
    ]
    for (cut, codes), row in zip(read_shar(tmp_path / "out/shar"), tokens, strict=True):
        assert (cut.id, cut.supervisions[0].speaker) == (row.utt_id, row.speaker)
        assert (codes.dtype, codes.shape) == (np.uint16, row.codes.T.shape)
        np.testing.assert_array_equal(codes.T, row.codes)
        assert cut.supervisions[0].duration == row.num_samples / row.sample_rate
        assert {name: cut.custom[name] for name in about(row)} == about(row)
        assert (cut.codes.frame_shift, cut.codes.num_frames) == (0.02, row.num_frames)


def test_a_part_of_a_cut_loads_its_own_frames(tokens, tmp_path):
    export_tokens(tokens, "lhotse", tmp_path / "out")
    cut, _ = read_shar(tmp_path / "out/shar")[-1]
    part = cut.truncate(offset=0.04, duration=0.1)
    np.testing.assert_array_equal(part.load_codes().T, tokens[len(tokens) - 1].codes[:, 2:7])


@pytest.mark.parametrize(("size", "kind"), [(2**15, "int16"), (2**16, "int32")])
def test_datasets_reads_parquet_of_the_hub(tmp_path, monkeypatch, size, kind):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    tokens = write_set(tmp_path / "codes", 3, IDS, size)
    export_tokens(tokens, "datasets", tmp_path / "out")
    for found in (
        datasets.load_dataset(str(tmp_path / "out"), split="train"),
        datasets.load_dataset("parquet", data_files=f"{tmp_path}/out/*.parquet", split="train"),
    ):
        assert found.features["codes"].feature.feature.dtype == kind
        for line, row in zip(found, tokens, strict=True):
            assert isinstance(line, dict)
            np.testing.assert_array_equal(line["codes"], row.codes)
            assert (line["utt_id"], line["speaker_id"]) == (row.utt_id, row.speaker)
            assert (line["k_codebooks"], line["n_frames"]) == row.codes.shape
            assert (line["sample_rate"], line["num_samples"]) == (16000, row.num_samples)


@pytest.mark.parametrize("format", READERS)
def test_an_export_is_read_back_bit_for_bit(tokens, tmp_path, format):
    export_tokens(tokens, format, tmp_path / "out")
    exported = ExportedTokens(tmp_path / "out")
    assert (exported.info, exported.format, len(exported)) == (tokens.info, format, len(tokens))
    for row, expected in zip(exported, tokens, strict=True):
        assert row.codes.dtype == np.uint16
        np.testing.assert_array_equal(row.codes, expected.codes)
        assert about(row) == about(expected)


def test_a_format_that_is_none_is_named(tokens, tmp_path):
    export_tokens(tokens, "kaldi", tmp_path / "out")
    record = json.loads((tmp_path / "out/export.json").read_text())
    (tmp_path / "out/export.json").write_text(json.dumps({**record, "format": "onnx"}))
    with pytest.raises(TokenError, match="is of format 'onnx'; those that can be read are memmap"):
        ExportedTokens(tmp_path / "out")


def test_an_archive_that_goes_on_after_the_last_utterance_is_damaged(tokens, tmp_path):
    export_tokens(tokens, "kaldi", tmp_path / "out")
    with (tmp_path / "out/codebook0.ark").open("ab") as file:
        file.write(b"more")
    with pytest.raises(TokenError, match="is damaged"):
        list(ExportedTokens(tmp_path / "out"))


@pytest.mark.parametrize("format", ["lhotse", "datasets"])
def test_codes_of_another_model_among_the_others_are_refused(tokens, tmp_path, format, tiny_tokenizer):
    export_tokens(tokens, format, tmp_path / "out")
    other = write_set(tmp_path / "other", tokens.info.num_codebooks, IDS)
    write_tokenizer_info(other.folder, replace(tokens.info, weights_sha256="cd" * 32))
    export_tokens(TokenSet(other.folder), format, tmp_path / "more")
    for name in files(tmp_path / "out"):
        if "000001" in name or "00001-of" in name:
            (tmp_path / "out" / name).write_bytes((tmp_path / "more" / name).read_bytes())
    with pytest.raises(TokenError, match=r"has codes of another model \(weights cdcdcdcdcdcd, export\.json names abab"):
        list(ExportedTokens(tmp_path / "out"))
    with pytest.raises(TokenError, match="holds codes of another model"):
        ExportedTokens(tmp_path / "out").require_model(tiny_tokenizer())


def read(folder: Path) -> tuple[str, list[TokenRow]]:
    """What is wrong with an export, and its rows."""
    try:
        return "", list(ExportedTokens(folder))
    except TokenError as error:
        return str(error), []


@pytest.mark.parametrize("format", READERS)
def test_a_damaged_or_shortened_export_is_an_error_in_one_line_or_still_right(tokens, tmp_path, format):
    export_tokens(tokens, format, tmp_path / "out")
    for name in files(tmp_path / "out"):
        if name.endswith(("export.json", "README.md", ".scp", "utt2num_frames")):
            continue  # Not read, or by others.
        path = tmp_path / "out" / name
        whole = path.read_bytes()
        for damaged in (b"", whole[: len(whole) // 2], whole[:20] + bytes(60) + whole[80:], None):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            problem, rows = read(tmp_path / "out")
            assert problem.startswith(str(tmp_path / "out")) or (damaged and not problem)
            assert "\n" not in problem
            for row, expected in zip(rows, tokens, strict=True) if not problem else ():
                np.testing.assert_array_equal(row.codes, expected.codes)  # A tar is whole without its last zeros.
        path.write_bytes(whole)
    assert len(list(ExportedTokens(tmp_path / "out"))) == len(tokens)


@pytest.mark.parametrize(
    "change", [{"utt_id": "../x"}, {"codes": [[2**16]]}, {"sample_rate": 8000}, {"num_samples": 0}]
)
def test_an_export_that_was_changed_is_refused(tmp_path, change):
    export_tokens(write_set(tmp_path / "codes", 1, ["a"]), "jsonl", tmp_path / "out")
    path = tmp_path / "out/codes.jsonl"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(TokenError, match="is damaged"):
        list(ExportedTokens(tmp_path / "out"))


@pytest.mark.parametrize("name", ["a b", "a\u3000b", " a"])
def test_ids_that_kaldi_cannot_hold_are_refused(tmp_path, name):
    tokens = write_set(tmp_path / "codes", 1, ["a", name])
    with pytest.raises(TokenError, match="Kaldi's ids hold no white space"):
        export_tokens(tokens, "kaldi", tmp_path / "out")
    assert names(tmp_path) == ["codes"]


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_names_its_tokenizer_and_the_same_codes_give_the_same_bytes(tokens, tmp_path, format):
    for name in ("out", "again"):
        export_tokens(tokens, format, tmp_path / name)
    record = json.loads((tmp_path / "out/export.json").read_text())
    assert record["tokenizer"] == asdict(tokens.info)
    assert (record["format"], record["utterances"]) == (format, len(IDS))
    assert record["frames"] == sum(row.num_frames for row in tokens)
    for name in files(tmp_path / "out"):
        first, second = (tmp_path / "out" / name).read_bytes(), (tmp_path / "again" / name).read_bytes()
        assert first == second.replace(b"/again/", b"/out/")


def test_only_an_earlier_export_is_replaced_and_only_with_force(tokens, tmp_path):
    output = tmp_path / "out"
    export_tokens(tokens, "webdataset", output)
    with pytest.raises(OutputExistsError, match="add --force"):
        export_tokens(tokens, "jsonl", output)
    export_tokens(tokens, "jsonl", output, force=True)
    assert names(output) == ["codes.jsonl", "export.json"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    mixed = tmp_path / "mixed"
    export_tokens(tokens, "jsonl", mixed)
    (mixed / "notes.txt").write_text("mine")
    named = tmp_path / "named"
    named.mkdir()
    (named / "export.json").write_text("of another program")
    for precious in (other, mixed, named, tokens.folder, tmp_path):
        before = names(precious)
        with pytest.raises(OutputExistsError, match="holds something else than an export"):
            export_tokens(tokens, "jsonl", precious, force=True)
        assert names(precious) == before


def test_an_export_that_came_meanwhile_stays(tokens, tmp_path, monkeypatch):
    output, write = tmp_path / "out", FORMATS["kaldi"]

    def write_late(*arguments) -> None:
        export_tokens(tokens, "jsonl", output)
        write(*arguments)

    monkeypatch.setitem(FORMATS, "kaldi", write_late)
    with pytest.raises(OutputExistsError, match="add --force"):
        export_tokens(tokens, "kaldi", output)
    assert names(output) == ["codes.jsonl", "export.json"]
    assert names(tmp_path) == ["codes", "out"]


def test_a_set_without_utterances_is_refused(tmp_path):
    with pytest.raises(TokenError, match="holds no utterances"):
        export_tokens(write_set(tmp_path / "codes", 1, []), "memmap", tmp_path / "out")
    assert names(tmp_path) == ["codes"]


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_that_fails_leaves_what_was_there(tokens, tmp_path, format, monkeypatch):
    export_tokens(tokens, "jsonl", tmp_path / "out")
    before = (tmp_path / "out/codes.jsonl").read_bytes()
    shard = tokens.shards[2]
    table = shard.read_bytes()
    shard.write_bytes(table[:100] + bytes(100) + table[200:])
    with pytest.raises(TokenError, match=r"part-00002-of-00003\.parquet"):
        export_tokens(TokenSet(tokens.folder), format, tmp_path / "out", force=True)
    assert names(tmp_path) == ["codes", "out"]
    assert (tmp_path / "out/codes.jsonl").read_bytes() == before
