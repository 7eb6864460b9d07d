from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from audiovq.data.tokens import TokenSet
from audiovq.errors import OutputExistsError, TokenError
from audiovq.tokenization import plan, run, worker
from audiovq.tokenization.plan import Rejected, plan_units
from audiovq.tokenization.run import tokenize
from audiovq.tokenization.worker import batch_by_length, encode_utterances


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return tiny_tokenizer()


@pytest.fixture
def small_units(monkeypatch):
    """Three shards for the six utterances."""
    monkeypatch.setattr(plan_units, "__defaults__", (2.7,))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_codes_are_those_of_single_encoding(tokenizer, utterances, rows) -> None:
    assert [row.utt_id for row in rows] == [utterance.id for utterance in utterances]
    for row, utterance in zip(rows, utterances, strict=True):
        wave = utterance.source().read(tokenizer.sample_rate)
        np.testing.assert_array_equal(row.codes, tokenizer.encode(wave, tokenizer.sample_rate)[0].numpy())
        assert row.num_samples == wave.shape[-1]
        assert (row.speaker, row.source, row.sample_rate) == (utterance.speaker, str(utterance.path), 16000)


@pytest.mark.parametrize("batch_seconds", [0.1, 3.0, 60.0])
def test_codes_are_those_of_single_encoding_in_the_order_of_the_manifest(
    tokenizer, utterances, tmp_path, small_units, batch_seconds
):
    summary = tokenize(tokenizer, utterances, tmp_path, batch_seconds)
    rows = list(TokenSet(tmp_path))
    assert_codes_are_those_of_single_encoding(tokenizer, utterances, rows)
    assert len({code for row in rows for code in row.codes.flat}) > 3
    assert (summary.utterances, summary.rejected, summary.resumed) == (6, [], 0)
    assert summary.seconds == pytest.approx(sum(utterance.duration for utterance in utterances), abs=1e-3)
    assert summary.frames == sum(row.num_frames for row in rows)
    assert len(list(tmp_path.glob("*.parquet"))) == 3


def test_an_utterance_too_long_for_memory_has_the_same_codes(tokenizer, utterances, tmp_path, monkeypatch):
    tokenize(tokenizer, utterances, tmp_path / "whole")
    monkeypatch.setattr(worker, "CHUNK_SECONDS", 1.0)
    monkeypatch.setattr("audiovq.models.tokenizer.CHUNK_SECONDS", 1.0)
    longest = []
    original = worker._encode_long
    monkeypatch.setattr(worker, "_encode_long", lambda *given: longest.append(given[1].id) or original(*given))
    tokenize(tokenizer, utterances, tmp_path / "pieces")
    assert sorted(longest) == ["utt0", "utt2", "utt3", "utt5"]
    for whole, pieces in zip(TokenSet(tmp_path / "whole"), TokenSet(tmp_path / "pieces"), strict=True):
        np.testing.assert_array_equal(whole.codes, pieces.codes)


def test_segments_of_one_file_are_utterances_of_their_own(tokenizer, utterances, tmp_path):
    whole = utterances[0]
    half = whole.num_samples // 2
    first = replace(whole, id="first", duration=half / whole.sample_rate, num_samples=half)
    second = replace(first, id="second", offset=half / whole.sample_rate)
    tokenize(tokenizer, [second, first], tmp_path)
    assert_codes_are_those_of_single_encoding(tokenizer, [second, first], list(TokenSet(tmp_path)))


def test_a_file_that_vanishes_while_its_batch_is_encoded_shifts_no_codes(tokenizer, utterances, tmp_path, monkeypatch):
    """Codes of one utterance must never be written under another one's id."""
    copies = []
    for utterance in utterances:
        copy = tmp_path / utterance.path.name
        copy.write_bytes(utterance.path.read_bytes())
        copies.append(replace(utterance, path=copy))
    original = worker._read

    def read_and_lose(batch, sample_rate):
        signals = original(batch, sample_rate)
        copies[3].path.unlink(missing_ok=True)
        return signals

    monkeypatch.setattr(worker, "_read", read_and_lose)
    rows, rejected = encode_utterances(tokenizer, copies, 60.0)
    kept = [item for item in utterances if item.id not in {item.utt_id for item in rejected}]
    rows = [replace(row, source=str(item.path)) for row, item in zip(rows, kept, strict=True)]
    assert_codes_are_those_of_single_encoding(tokenizer, kept, rows)


def test_bad_audio_is_listed_and_stops_nothing(tokenizer, utterances, tmp_path, small_units):
    bad = tmp_path / "bad.wav"
    bad.write_text("no audio")
    given = [utterances[0], replace(utterances[1], id="bad", path=bad), utterances[2]]
    summary = tokenize(tokenizer, given, tmp_path / "tokens", unusable=[Rejected("empty", "/x/empty.wav", "is empty")])
    assert [row.utt_id for row in TokenSet(tmp_path / "tokens")] == ["utt0", "utt2"]
    listed = [json.loads(line) for line in (tmp_path / "tokens/rejected.jsonl").read_text().splitlines()]
    assert listed == summary.rejected
    assert [(item["utt_id"], item["source"]) for item in listed] == [("empty", "/x/empty.wav"), ("bad", str(bad))]
    assert "is no audio" in listed[1]["reason"]
    again = tokenize(tokenizer, given, tmp_path / "tokens")
    assert [item["utt_id"] for item in again.rejected] == ["bad"]


def test_a_unit_of_nothing_but_bad_audio_is_an_empty_shard(tokenizer, utterances, tmp_path):
    given = [replace(utterances[0], path=tmp_path / "missing.wav")]
    summary = tokenize(tokenizer, given, tmp_path / "tokens")
    assert (summary.utterances, summary.frames, len(summary.rejected)) == (0, 0, 1)
    assert list(TokenSet(tmp_path / "tokens")) == []


def damage(folder: Path, how: str) -> None:
    shard, sidecar = folder / "part-00001-of-00003.parquet", folder / "_units/part-00001-of-00003.json"
    if how == "shard missing":
        shard.unlink()
    elif how == "shard corrupt":
        shard.write_bytes(shard.read_bytes()[:-40])
    elif how == "sidecar missing":
        sidecar.unlink()
    elif how == "sidecar corrupt":
        sidecar.write_text("{")
    elif how == "killed while writing":
        shard.rename(folder / ".partial-x.parquet")
        sidecar.unlink()
        (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    "how", ["shard missing", "shard corrupt", "sidecar missing", "sidecar corrupt", "killed while writing", "nothing"]
)
def test_a_run_that_goes_on_ends_as_an_undisturbed_one(tokenizer, utterances, tmp_path, small_units, monkeypatch, how):
    first = tokenize(tokenizer, utterances, tmp_path)
    before = contents(tmp_path)
    damage(tmp_path, how)
    encoded = []
    original = run.encode_utterances
    monkeypatch.setattr(run, "encode_utterances", lambda *given: encoded.append(len(given[1])) or original(*given))
    again = tokenize(tokenizer, utterances, tmp_path)
    assert {name: data for name, data in contents(tmp_path).items() if not name.startswith(".")} == before
    assert again == replace(first, resumed=3 if how == "nothing" else 2)
    assert len(encoded) == (0 if how == "nothing" else 1)
    assert len(list(TokenSet(tmp_path))) == 6


def test_a_run_killed_in_the_middle_goes_on(tokenizer, utterances, tmp_path, small_units, monkeypatch):
    tokenize(tokenizer, utterances, tmp_path / "whole")
    original = run.commit_unit

    def killed(folder, unit, *rest):
        if unit.name.startswith("part-00002"):
            raise KeyboardInterrupt
        return original(folder, unit, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(run, "commit_unit", killed)
        with pytest.raises(KeyboardInterrupt):
            tokenize(tokenizer, utterances, tmp_path / "parts")
    assert tokenize(tokenizer, utterances, tmp_path / "parts").resumed == 2
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_another_list_or_model_is_refused_unless_forced(tokenizer, tiny_tokenizer, utterances, tmp_path, small_units):
    tokenize(tokenizer, utterances, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    other = tiny_tokenizer("transposed")
    for model, given, reason in (
        (tokenizer, utterances[:4], "another list of utterances"),
        (tokenizer, utterances[::-1], "another list of utterances"),
        (tokenizer, [replace(utterances[0], speaker="x"), *utterances[1:]], "another list of utterances"),
        (other, utterances, "codes of another model"),
    ):
        with pytest.raises(OutputExistsError, match=rf"{reason}.*--force"):
            tokenize(model, given, tmp_path)
        assert contents(tmp_path) == before
    tokenize(other, utterances[:4], tmp_path, force=True)
    rows = list(TokenSet(tmp_path))
    assert_codes_are_those_of_single_encoding(other, utterances[:4], rows)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert len(list(tmp_path.glob("*.parquet"))) == 2


def test_a_folder_of_something_else_is_refused(tokenizer, utterances, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="is not empty, and holds no token data set"):
        tokenize(tokenizer, utterances, tmp_path)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_a_model_without_codes_is_refused_before_anything_is_written(tiny_tokenizer, utterances, tmp_path):
    with pytest.raises(TokenError, match="bottleneck 'none' has no codes"):
        tokenize(tiny_tokenizer(bottleneck="none"), utterances, tmp_path / "tokens")
    assert not (tmp_path / "tokens").exists()


@pytest.mark.parametrize("seconds", [0.1, 2.0, 2.7, 5.0, 100.0])
def test_units_cut_the_list_in_its_order(utterances, seconds):
    units = plan_units(utterances, seconds)
    assert [item for unit in units for item in unit.utterances] == utterances
    for number, unit in enumerate(units):
        assert unit.name == f"part-{number:05d}-of-{len(units):05d}"
        assert len(unit.utterances) == 1 or sum(item.duration for item in unit.utterances) <= seconds
    for one, next_one in pairwise(units):
        assert sum(item.duration for item in one.utterances) + next_one.utterances[0].duration > seconds
    assert len({unit.content_hash for unit in units}) == len(units)


@pytest.mark.parametrize("seconds", [0.1, 2.7, 4.0, 100.0])
def test_batches_hold_each_utterance_once_within_the_limit(utterances, seconds):
    batches = batch_by_length(utterances, seconds)
    assert sorted(item.id for batch in batches for item in batch) == [item.id for item in utterances]
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(item.duration for item in batch) <= seconds


def test_a_folder_is_tokenized_by_its_file_names(speech_folder, tmp_path):
    (tmp_path / "sub").mkdir()
    for number, path in enumerate(sorted(speech_folder.glob("*.wav"))[:2]):
        (tmp_path / "sub" / f"{number}.wav").write_bytes(path.read_bytes())
    (tmp_path / "empty.wav").write_bytes(b"")
    utterances, unusable = plan.list_utterances(tmp_path)
    assert len(utterances) == 2
    assert all(utterance.path.is_absolute() for utterance in utterances)
    (rejected,) = unusable
    assert rejected.source == str(tmp_path / "empty.wav")
    assert "is empty" in rejected.reason
