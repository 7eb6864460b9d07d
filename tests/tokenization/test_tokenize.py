"""Tokenizing data sets: the same codes whichever way they are computed."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audiovq.audio.files import AudioSource, load_audio
from audiovq.audio.resampling import resample
from audiovq.batching import batch_by_length
from audiovq.data.items import Item
from audiovq.data.manifest import write_manifest
from audiovq.data.sources import list_items
from audiovq.errors import CheckpointError, ConfigError, ManifestError, OutputExistsError, TokenError
from audiovq.models.tokenizer import AudioTokenizer
from audiovq.tokenization import engines, worker
from audiovq.tokenization.claim import writing
from audiovq.tokenization.plan import Unit
from audiovq.tokenization.run import tokenize
from audiovq.tokenization.worker import EncodingSettings, encode_units
from audiovq.tokens import TokenSet

UNIT = 2.7
"""Seconds in a unit: three shards for the six utterances."""


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return tiny_tokenizer()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def digest(folder: Path) -> str:
    return json.loads((folder / "summary.json").read_text())["digest"]


def assert_codes_are_those_of_single_encoding(tokenizer, utterances, rows) -> None:
    assert [row.utt_id for row in rows] == [utterance.id for utterance in utterances]
    for row, utterance in zip(rows, utterances, strict=True):
        wave = utterance.source().read(tokenizer.sample_rate)
        np.testing.assert_array_equal(row.codes, tokenizer.encode(wave, tokenizer.sample_rate)[0].numpy())
        assert row.num_samples == wave.shape[-1]
        assert (row.speaker, row.source, row.sample_rate) == (utterance.speaker, str(utterance.path), 16000)


# --- the codes -----------------------------------------------------------------------------------------------

RATES = [8000, 16000, 22050, 44100, 48000]
FORMATS = {"wav": {"subtype": "PCM_16"}, "flac": {}, "ogg": {}, "mp3": {}}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """520 utterances of real speech: five rates, four formats, one and two channels, 0.05 s to 62 s."""
    folder = tmp_path_factory.mktemp("corpus")
    speech = Path(__file__).parents[2] / "recipes" / "mini" / "data"
    voices = {voice: sorted((speech / voice).glob("*.ogg")) for voice in ("allison", "carlo", "june")}
    waves = {voice: torch.cat([load_audio(path)[0] for path in paths[:40]], -1) for voice, paths in voices.items()}
    at_rates = {(voice, rate): resample(wave, 16000, rate) for voice, wave in waves.items() for rate in RATES}
    random = np.random.default_rng(0)
    for number in range(520):
        voice, rate = list(waves)[number % 3], RATES[number % 5]
        suffix = list(FORMATS)[number % 4]
        wave = at_rates[voice, rate][0]
        seconds = {0: 62.0, 1: 25.0, 2: 0.05}.get(number, 0.05 + random.exponential(0.6))
        start = random.integers(0, max(1, len(wave) - round(seconds * rate)))
        samples = wave[start : start + round(seconds * rate)].numpy()
        path = folder / voice / f"{number:03d}.{suffix}"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, samples if number % 7 else np.stack([samples, samples], -1), rate, **FORMATS[suffix])
    return folder


@pytest.fixture(scope="module")
def reference(corpus, model, tmp_path_factory) -> Path:
    """The corpus, tokenized by one process."""
    output = tmp_path_factory.mktemp("reference") / "codes"
    tokenize(model, [corpus], output, unit_seconds=60.0)
    return output


@pytest.mark.slow
def test_codes_are_those_of_encoding_each_file_by_itself(corpus, reference, tokenizer):
    rows = {row.utt_id: row for row in TokenSet(reference)}
    items = list(list_items([corpus]))
    assert len(rows) == len(items) == 520
    assert len({code for row in rows.values() for code in row.codes.flat}) > 16
    for item in items:
        wave, rate = load_audio(item.path)
        codes = tokenizer.encode(wave, rate)[0].numpy()
        np.testing.assert_array_equal(rows[item.id].codes, codes, err_msg=item.path)


@pytest.mark.slow
def test_every_way_to_tokenize_gives_the_same_set(corpus, reference, model, tmp_path, quick_start):
    tokenize(model, [corpus], tmp_path / "small batches", batch_seconds=4.0, unit_seconds=60.0)
    tokenize(model, [corpus], tmp_path / "processes", processes=2, unit_seconds=60.0)
    for part in (2, 0, 1):
        run = tokenize(model, [corpus], tmp_path / "parts", shard=(part, 3), unit_seconds=60.0)
        assert (run.summary is not None) == (part == 1)
    tokenize(model, [corpus], tmp_path / "resumed", shard=(1, 2), unit_seconds=60.0)
    resumed = tokenize(model, [corpus], tmp_path / "resumed", unit_seconds=60.0)
    assert min(resumed.resumed, resumed.done) > 1
    expected = contents(reference)
    for way in ("small batches", "processes", "parts", "resumed"):
        assert contents(tmp_path / way) == expected, way


@pytest.mark.parametrize("batch_seconds", [0.1, 3.0, 60.0])
def test_codes_stand_in_the_order_of_the_manifest(tokenizer, model, utterances, manifest, tmp_path, batch_seconds):
    run = tokenize(model, [manifest], tmp_path / "codes", batch_seconds=batch_seconds, unit_seconds=UNIT)
    rows = list(TokenSet(tmp_path / "codes"))
    assert_codes_are_those_of_single_encoding(tokenizer, utterances, rows)
    assert (run.done, run.resumed, run.missing, run.rejected) == (3, 0, 0, [])
    assert run.summary is not None
    assert (run.summary.utterances, run.summary.rejected, run.summary.shards) == (6, 0, 3)
    assert run.summary.seconds == pytest.approx(sum(utterance.duration for utterance in utterances), abs=1e-3)
    assert run.summary.frames == sum(row.num_frames for row in rows)
    assert run.seconds == run.summary.seconds
    assert len(list((tmp_path / "codes").glob("*.parquet"))) == 3


def test_threads_of_other_callers_are_as_they_were(model, manifest, tmp_path):
    torch.set_num_threads(2)
    tokenize(model, [manifest], tmp_path / "codes")
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


@pytest.mark.parametrize(("batch_seconds", "longest"), [(1.0, 1.0), (None, 0.5)])
def test_an_utterance_longer_than_a_batch_is_read_piece_by_piece(
    tokenizer, utterances, monkeypatch, batch_seconds, longest
):
    monkeypatch.setattr("audiovq.models.tokenizer.CHUNK_SECONDS", 0.5)
    sizes = []
    original = AudioSource.blocks
    monkeypatch.setattr(AudioSource, "blocks", lambda *given: sizes.append(given[2]) or original(*given))
    items = [Item.of(utterance) for utterance in utterances]
    (encoded,) = encode_units(tokenizer, [Unit("part", items)], EncodingSettings(batch_seconds))
    assert sizes == [10240] * sum(utterance.duration > longest for utterance in utterances)
    assert_codes_are_those_of_single_encoding(tokenizer, utterances, encoded.rows)


def test_segments_of_one_file_are_utterances_of_their_own(tokenizer, model, utterances, tmp_path):
    whole = utterances[0]
    half = whole.num_samples // 2
    first = replace(whole, id="first", duration=half / whole.sample_rate, num_samples=half)
    second = replace(first, id="second", offset=half / whole.sample_rate)
    write_manifest(tmp_path / "halves.jsonl", [second, first])
    tokenize(model, [tmp_path / "halves.jsonl"], tmp_path / "codes")
    assert_codes_are_those_of_single_encoding(tokenizer, [second, first], list(TokenSet(tmp_path / "codes")))


@pytest.mark.parametrize("seconds", [0.1, 2.7, 4.0, 100.0])
def test_batches_hold_each_utterance_once_within_the_limit(utterances, seconds):
    batches = batch_by_length([Item.of(utterance) for utterance in utterances], lambda item: item.seconds, seconds)
    assert sorted(item.id for batch in batches for item in batch) == [item.id for item in utterances]
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(item.seconds or 0 for item in batch) <= seconds


# --- bad audio -----------------------------------------------------------------------------------------------


def make_bad_audio(folder: Path, good: Path) -> dict[str, str]:
    """A bad file of every kind, and what is said about it."""
    folder.mkdir()
    content = good.read_bytes()
    (folder / "empty.wav").write_bytes(b"")
    (folder / "truncated.wav").write_bytes(content[: len(content) // 2])
    (folder / "text.wav").write_text("no audio")
    soundfile.write(folder / "header.wav", np.zeros(0), 16000)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16000)
    for name, value in (("nan", np.nan), ("infinite", np.inf)):
        soundfile.write(
            folder / f"{name}.wav", np.where(np.arange(16000) == 9000, value, noise), 16000, subtype="FLOAT"
        )
    soundfile.write(folder / "long.flac", noise.repeat(10), 16000)
    soundfile.write(folder / "cut.flac", noise, 16000)
    (folder / "cut.flac").write_bytes((folder / "cut.flac").read_bytes()[:9000])
    return {
        "cut": "cut.flac: ",
        "empty": "is empty (0 bytes)",
        "header": "holds no samples",
        "infinite": "holds NaN or infinite samples",
        "long": "is 10.000 s long, more than the limit of 5 s",
        "nan": "holds NaN or infinite samples",
        "text": "is no audio that libsndfile reads",
        "truncated": "is truncated",
    }


@pytest.mark.parametrize("batch_seconds", [0.5, 60.0])  # In pieces, and at once.
def test_bad_audio_is_listed_with_a_reason_and_stops_nothing(
    tokenizer, model, utterances, six_files, manifest, tmp_path, batch_seconds
):
    reasons = make_bad_audio(tmp_path / "bad", six_files / "utt0.wav")
    inputs, output = [tmp_path / "bad", manifest], tmp_path / "codes"
    run = tokenize(model, inputs, output, max_seconds=5.0, batch_seconds=batch_seconds)
    assert_codes_are_those_of_single_encoding(tokenizer, utterances, list(TokenSet(output)))
    listed = [json.loads(line) for line in (output / "rejected.jsonl").read_text().splitlines()]
    assert {item["utt_id"]: item["source"] for item in listed} == {
        name: str(next((tmp_path / "bad").glob(f"{name}.*"))) for name in reasons
    }
    for item in listed:
        assert reasons[item["utt_id"]] in item["reason"]
        assert item["shard"] == "part-00000-of-00001.parquet"
    assert [asdict(item) | {"shard": "part-00000-of-00001.parquet"} for item in run.rejected] == listed
    again = tokenize(model, inputs, output, max_seconds=5.0, batch_seconds=batch_seconds)
    assert (again.rejected, again.done) == (run.rejected, 0)


def test_a_unit_of_nothing_but_bad_audio_is_an_empty_shard(model, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "bad.wav").write_text("no audio")
    run = tokenize(model, [tmp_path / "bad"], tmp_path / "codes")
    assert run.summary is not None
    assert (run.summary.utterances, run.summary.frames, run.summary.rejected) == (0, 0, 1)
    assert list(TokenSet(tmp_path / "codes")) == []


def test_a_file_that_vanishes_while_its_batch_is_encoded_shifts_no_codes(tokenizer, utterances, tmp_path, monkeypatch):
    """Codes of one utterance must never be written under another one's id."""
    copies = []
    for utterance in utterances:
        copy = tmp_path / utterance.path.name
        copy.write_bytes(utterance.path.read_bytes())
        copies.append(replace(utterance, path=copy))
    original = worker._read_one

    def read_and_lose(*given):
        copies[3].path.unlink(missing_ok=True)
        return original(*given)

    monkeypatch.setattr(worker, "_read_one", read_and_lose)
    (encoded,) = encode_units(tokenizer, [Unit("part", [Item.of(copy) for copy in copies])], EncodingSettings())
    assert [item.utt_id for item in encoded.rejected] == ["utt3"]
    kept = [item for item in utterances if item.id != "utt3"]
    rows = [replace(row, source=str(item.path)) for row, item in zip(encoded.rows, kept, strict=True)]
    assert_codes_are_those_of_single_encoding(tokenizer, kept, rows)


# --- going on ------------------------------------------------------------------------------------------------


def damage(folder: Path, how: str) -> None:
    shard, sidecar = folder / "part-00001-of-00003.parquet", folder / "_units/part-00001-of-00003.json"
    if how == "shard missing":
        shard.unlink()
    elif how == "shard corrupt":
        shard.write_bytes(shard.read_bytes()[:-40])
    elif how == "a bit of the shard flipped":
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(bytes(content))
    elif how == "sidecar missing":
        sidecar.unlink()
    elif how == "sidecar corrupt":
        sidecar.write_text("{")
    elif how == "sidecar of another unit":
        sidecar.write_bytes((folder / "_units/part-00000-of-00003.json").read_bytes())
    elif how == "killed while writing":
        shard.rename(folder / ".partial-x.parquet")
        sidecar.rename(folder / "_units" / ".partial-y.json")
        (folder / "tokenizer.json").unlink()
        (folder / "summary.json").unlink()


@pytest.mark.parametrize(
    "how",
    [
        "shard missing",
        "shard corrupt",
        "a bit of the shard flipped",
        "sidecar missing",
        "sidecar corrupt",
        "sidecar of another unit",
        "killed while writing",
        "nothing",
    ],
)
def test_a_run_that_goes_on_ends_as_an_undisturbed_one(model, manifest, tmp_path, how):
    output = tmp_path / "codes"
    first = tokenize(model, [manifest], output, unit_seconds=UNIT)
    before = contents(output)
    damage(output, how)
    again = tokenize(model, [manifest], output, unit_seconds=UNIT)
    assert contents(output) == before  # Nor is a partial file left.
    assert again.summary == first.summary
    assert (again.done, again.resumed) == ((0, 3) if how == "nothing" else (1, 2))


def test_another_list_or_model_or_limit_is_refused_unless_forced(tiny_tokenizer, model, utterances, manifest, tmp_path):
    output = tmp_path / "codes"
    tokenize(model, [manifest], output, unit_seconds=UNIT)
    (output / "notes.txt").write_text("mine")
    before = contents(output)
    other = tiny_tokenizer("transposed")
    other.save_pretrained(tmp_path / "other")
    lists = {
        "fewer": utterances[:4],
        "turned": utterances[::-1],
        "x": [replace(utterances[0], speaker="x"), *utterances[1:]],
    }
    for name, given in lists.items():
        write_manifest(tmp_path / f"{name}.jsonl", given)
        with pytest.raises(OutputExistsError, match=r"another list of utterances.*--force"):
            tokenize(model, [tmp_path / f"{name}.jsonl"], output, unit_seconds=UNIT)
    with pytest.raises(OutputExistsError, match=r"codes of another model.*--force"):
        tokenize(tmp_path / "other", [manifest], output, unit_seconds=UNIT)
    with pytest.raises(OutputExistsError, match=r"another --max-seconds, None.*--force"):
        tokenize(model, [manifest], output, unit_seconds=UNIT, max_seconds=3.0)
    assert contents(output) == before
    with pytest.raises(OutputExistsError, match=r"another --unit-seconds, 2\.7.*--force"):
        tokenize(model, [manifest], output)
    fewer = [tmp_path / "fewer.jsonl"]
    with pytest.raises(OutputExistsError, match=r"notes\.txt: is not known to be written by audiovq"):
        tokenize(tmp_path / "other", fewer, output, unit_seconds=UNIT, force=True)
    assert contents(output) == before
    (output / "notes.txt").unlink()
    tokenize(tmp_path / "other", fewer, output, unit_seconds=UNIT, force=True)
    assert_codes_are_those_of_single_encoding(other, utterances[:4], list(TokenSet(output)))
    assert len(list(output.glob("*.parquet"))) == 2


@pytest.mark.parametrize("name", ["sales.parquet", "part-00001-of-00003.parquet", "summary.json", "_units/mine.json"])
def test_force_removes_nothing_if_a_file_is_not_known_to_be_ours(model, utterances, manifest, tmp_path, name):
    output = tmp_path / "codes"
    tokenize(model, [manifest], output, unit_seconds=UNIT)
    (output / name).write_text("precious")
    before = contents(output)
    write_manifest(tmp_path / "fewer.jsonl", utterances[:4])
    with pytest.raises(OutputExistsError, match="is not known to be written by audiovq"):
        tokenize(model, [tmp_path / "fewer.jsonl"], output, unit_seconds=UNIT, force=True)
    assert contents(output) == before


def test_force_removes_nothing_before_the_new_run_can_begin(model, manifest, tmp_path):
    output = tmp_path / "codes"
    tokenize(model, [manifest], output, unit_seconds=UNIT)
    before = contents(output)
    with pytest.raises(ManifestError):
        tokenize(model, [tmp_path / "gone.jsonl"], output, force=True)
    with pytest.raises(CheckpointError):
        tokenize(tmp_path, [manifest], output, force=True)
    assert contents(output) == before


def test_force_waits_for_no_other_run_and_harms_none(model, utterances, manifest, tmp_path):
    output = tmp_path / "codes"
    tokenize(model, [manifest], output, unit_seconds=UNIT)
    before = contents(output)
    write_manifest(tmp_path / "fewer.jsonl", utterances[:4])
    with writing(output), pytest.raises(OutputExistsError, match="another run is writing into it"):
        tokenize(model, [tmp_path / "fewer.jsonl"], output, unit_seconds=UNIT, force=True)
    assert contents(output) == before
    with writing(output):  # A run of the same job goes on beside it.
        assert tokenize(model, [manifest], output, unit_seconds=UNIT).resumed == 3


def test_codes_of_another_model_never_count(tiny_tokenizer, model, manifest, tmp_path):
    """Here shards of two models in one folder, with a tokenizer.json that names one of them."""
    output = tmp_path / "codes"
    tokenize(model, [manifest], output, unit_seconds=UNIT)
    expected = contents(output)
    tiny_tokenizer("transposed").save_pretrained(tmp_path / "other")
    tokenize(tmp_path / "other", [manifest], tmp_path / "others", unit_seconds=UNIT)
    for name in ("part-00001-of-00003.parquet", "_units/part-00001-of-00003.json"):
        (output / name).write_bytes((tmp_path / "others" / name).read_bytes())
    with pytest.raises(TokenError, match=r"part-00001-of-00003\.parquet: holds codes of another model"):
        TokenSet(output).require_model(AudioTokenizer.from_pretrained(model, "cpu"))
    assert tokenize(model, [manifest], output, unit_seconds=UNIT).done == 1
    assert contents(output) == expected


def test_a_file_that_was_repaired_is_tokenized_by_the_same_command(tokenizer, model, six_files, tmp_path):
    folder, output = tmp_path / "speech", tmp_path / "codes"
    folder.mkdir()
    for path in six_files.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "utt3.wav").write_text("broken")
    first = tokenize(model, [folder], output, unit_seconds=UNIT)
    assert [item.utt_id for item in first.rejected] == ["utt3"]
    (folder / "utt3.wav").write_bytes((six_files / "utt3.wav").read_bytes())
    assert tokenize(model, [folder], output, unit_seconds=UNIT).done == 0
    again = tokenize(model, [folder], output, unit_seconds=UNIT, retry_rejected=True)
    assert (again.done, again.rejected) == (1, [])
    assert not (output / "rejected.jsonl").exists()
    row = next(row for row in TokenSet(output) if row.utt_id == "utt3")
    wave, rate = load_audio(six_files / "utt3.wav")
    np.testing.assert_array_equal(row.codes, tokenizer.encode(wave, rate)[0].numpy())


def test_audio_files_are_opened_for_their_lengths_once(model, six_files, tmp_path, monkeypatch):
    tokenize(model, [six_files], tmp_path / "codes", shard=(0, 2), unit_seconds=UNIT)
    monkeypatch.setattr("audiovq.tokenization.plan.with_seconds", None)
    assert tokenize(model, [six_files], tmp_path / "codes", shard=(1, 2), unit_seconds=UNIT).missing == 0


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"[" * 10**5, b'{"units": -1}', b"\xff"])
@pytest.mark.parametrize("name", ["_units/plan.json", "tokenizer.json", "_units/part-00001-of-00003.json"])
def test_a_damaged_record_is_repaired(model, six_files, tmp_path, name, content):
    output = tmp_path / "codes"
    tokenize(model, [six_files], output, unit_seconds=UNIT)
    before = contents(output)
    (output / name).write_bytes(content)
    tokenize(model, [six_files], output, unit_seconds=UNIT)
    assert contents(output) == before


def test_without_a_plan_the_shards_of_another_list_stay(model, utterances, manifest, tmp_path):
    output = tmp_path / "codes"
    tokenize(model, [manifest], output, unit_seconds=UNIT)
    (output / "_units/plan.json").write_text("damaged")
    before = contents(output)
    write_manifest(tmp_path / "turned.jsonl", utterances[::-1])
    with pytest.raises(OutputExistsError, match="shards of another list of utterances"):
        tokenize(model, [tmp_path / "turned.jsonl"], output, unit_seconds=UNIT)
    assert contents(output) == before


def test_names_that_are_not_utf8_are_rejected_or_written(model, six_files, tmp_path):
    folder, output = tmp_path / os.fsdecode(b"speech\xff"), tmp_path / os.fsdecode(b"codes\xff")
    folder.mkdir()
    (folder / "a.wav").write_bytes((six_files / "utt0.wav").read_bytes())
    run = tokenize(model, [folder, six_files], output)
    (rejected,) = run.rejected
    assert rejected.utt_id.startswith("a")
    assert rejected.reason.endswith("its file name is no UTF-8; rename it")
    assert len(list(TokenSet(output))) == 6
    assert tokenize(model, [folder, six_files], output).done == 0


def test_a_folder_of_something_else_is_refused(model, manifest, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="is not empty, and holds no token data set"):
        tokenize(model, [manifest], tmp_path / "mine")
    assert contents(tmp_path / "mine") == {"notes.txt": b"mine"}


def test_a_model_without_codes_is_refused_before_anything_is_written(tiny_tokenizer, manifest, tmp_path):
    tiny_tokenizer(bottleneck="none").save_pretrained(tmp_path / "model")
    with pytest.raises(TokenError, match="bottleneck 'none' has no codes"):
        tokenize(tmp_path / "model", [manifest], tmp_path / "tokens")
    assert not (tmp_path / "tokens").exists()


# --- launchers -----------------------------------------------------------------------------------------------


def test_a_part_says_what_is_missing_and_the_last_one_sums_up(model, manifest, tmp_path):
    output = tmp_path / "codes"
    first = tokenize(model, [manifest], output, shard=(0, 2), unit_seconds=UNIT)
    assert (first.done, first.missing, first.summary) == (2, 1, None)
    assert not (output / "summary.json").exists()
    last = tokenize(model, [manifest], output, shard=(1, 2), unit_seconds=UNIT)
    assert (last.done, last.missing) == (1, 0)
    tokenize(model, [manifest], tmp_path / "whole", unit_seconds=UNIT)
    assert contents(output) == contents(tmp_path / "whole")


def test_each_of_several_accelerators_has_a_process_unless_told_otherwise(model, manifest, tmp_path, monkeypatch):
    started = []

    def run_processes(job, units, processes):
        started.append(processes)
        return worker.work(job, AudioTokenizer.from_pretrained(model, "cpu"), units)

    monkeypatch.setattr(engines, "accelerators", lambda device: 2)
    monkeypatch.setattr(engines, "run_processes", run_processes)
    tokenize(model, [manifest], tmp_path / "codes", unit_seconds=4.0)
    tokenize(model, [manifest], tmp_path / "alone", unit_seconds=4.0, processes=1)
    assert started == [2]
    assert digest(tmp_path / "codes") == digest(tmp_path / "alone")


def test_more_processes_than_units_are_none_too_many(model, manifest, tmp_path, quick_start):
    run = tokenize(model, [manifest], tmp_path / "codes", processes=4, unit_seconds=4.0)
    assert (run.done, run.missing) == (2, 0)
    tokenize(model, [manifest], tmp_path / "alone", unit_seconds=4.0)
    assert digest(tmp_path / "codes") == digest(tmp_path / "alone")


def test_an_error_in_a_worker_process_is_told_as_in_this_one(tiny_tokenizer, model, manifest, tmp_path, quick_start):
    """Here a model that was changed after the job had begun."""
    tiny_tokenizer("transposed").save_pretrained(tmp_path / "model")
    given = worker.TokenizingJob(str(tmp_path / "model"), "0" * 64, tmp_path / "codes", EncodingSettings(), "cpu")
    with pytest.raises(TokenError, match="has changed since the job began"):
        list(engines.run_processes(given, [Unit("part", [])], 1))


def test_devices_are_shared_out(monkeypatch):
    assert engines.accelerators("cpu") == 0
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    assert [engines.accelerators(name) for name in ("auto", "cuda", "cuda:1", "cpu")] == [4, 4, 0, 0]
    assert [engines.device_of("auto", number) for number in range(5)] == [
        "cuda:0",
        "cuda:1",
        "cuda:2",
        "cuda:3",
        "cuda:0",
    ]
    assert engines.device_of("cuda:1", 3) == "cuda:1"


def test_ray_is_asked_for_when_it_is_missing(model, manifest, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'audiovq\[ray\]'"):
        tokenize(model, [manifest], tmp_path / "codes", engine="ray")
