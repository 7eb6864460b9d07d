"""Token data sets of the first few codebooks of a model: the same codes by every way, told by all records."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from audiovq.errors import OutputExistsError, TokenError, WorkerError
from audiovq.models.tokenizer import AudioTokenizer
from audiovq.tokenization.engines import run_ray
from audiovq.tokenization.files import decode_tokens
from audiovq.tokenization.plan import Unit
from audiovq.tokenization.run import tokenize
from audiovq.tokenization.worker import EncodingSettings, TokenizingJob
from audiovq.tokens import TokenizerInfo, TokenSet, read_tokenizer_info
from audiovq.tokens.export import export_tokens
from audiovq.tokens.statistics import format_statistics, measure_tokens, statistics_record
from audiovq.tokens.verify import verify_tokens

UNIT = 2.7
"""Seconds in a unit: three shards for the six utterances."""
SIZES = (32, 16, 8)


@pytest.fixture(scope="module")
def tokenizer(placed_tokenizer) -> AudioTokenizer:
    tokenizer = placed_tokenizer("istft", "residual")
    assert tokenizer.codebook_sizes == SIZES
    return tokenizer


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("residual") / "model"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def make(model, manifest, tmp_path) -> Callable[..., Path]:
    """Tokenize the six utterances with so many codebooks."""

    def make(num_codebooks: int | None, name: str = "codes", **options) -> Path:
        tokenize(model, [manifest], tmp_path / name, num_codebooks=num_codebooks, unit_seconds=UNIT, **options)
        return tmp_path / name

    return make


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_rows_hold_the_first_codebooks_and_the_records_say_how_many(make, tokenizer, utterances):
    folder = make(2)
    for row, utterance in zip(TokenSet(folder), utterances, strict=True):
        expected = tokenizer.encode(utterance.source().read(16000), 16000)[0, :2]
        np.testing.assert_array_equal(row.codes, expected.numpy())
    info = read_tokenizer_info(folder)
    assert info == TokenizerInfo.of(tokenizer, 2)
    assert (info.num_codebooks, info.model_codebooks, info.codebook_sizes) == (2, 3, [32, 16])
    assert info.bitrate == tokenizer.bitrate_of(2) == 800 * (5 + 4)
    records = [json.loads(path.read_text()) for path in (folder / "_units").glob("*.json")]
    assert [record["num_codebooks"] for record in records] == [2] * 4  # The plan, and a sidecar for each shard.


def test_every_way_to_tokenize_gives_the_same_set(make):
    expected = contents(make(2, "alone"))
    assert contents(make(2, "in pieces", batch_seconds=0.3)) == expected
    for part in (1, 0):
        parts = make(2, "parts", shard=(part, 2))
    assert contents(parts) == expected


@pytest.mark.slow
def test_processes_give_the_same_set(make, quick_start):
    assert contents(make(2, "processes", processes=2)) == contents(make(2, "alone"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own.
def test_ray_gives_the_same_set_goes_on_and_tells_what_failed(make, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    for name, value in {"USAGE_STATS_ENABLED": "0", "AUTH_MODE": "disabled", "worker_niceness": "0"}.items():
        monkeypatch.setenv(f"RAY_{name}", value)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    expected = contents(make(2, "alone"))
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False, object_store_memory=100 * 2**20)
    try:
        folder = make(2, "ray", engine="ray")
        assert contents(folder) == expected
        sorted(folder.glob("*.parquet"))[1].unlink()
        assert contents(make(2, "ray", engine="ray")) == expected
        assert ray.data.read_parquet(str(folder)).count() == len(TokenSet(folder))  # Other files are passed over.
        (tmp_path / "no model").mkdir()
        job = TokenizingJob(str(tmp_path / "no model"), "0" * 64, tmp_path / "x", EncodingSettings(), "cpu")
        with pytest.raises(WorkerError, match=r"a Ray actor failed \(.*is no model folder"):
            list(run_ray(job, [Unit("part", [])], None))
    finally:
        ray.shutdown()


def test_all_codebooks_are_all_of_them_whether_they_are_counted_or_not(make):
    assert contents(make(3, "counted")) == contents(make(None, "all"))


@pytest.mark.parametrize("lost", [(), ("_units/plan.json",), ("_units/plan.json", "tokenizer.json")])
@pytest.mark.parametrize(("first", "second"), [(2, None), (None, 2), (2, 1)])
def test_a_set_of_another_number_of_codebooks_is_refused_unless_forced(make, first, second, lost):
    folder = make(first)
    for name in lost:
        (folder / name).unlink()
    before = contents(folder)
    with pytest.raises(OutputExistsError, match=rf"holds the codes of another --codebooks, {first or 'all'};.*--force"):
        make(second)
    assert contents(folder) == before
    make(second, force=True)
    assert contents(folder) == contents(make(second, "anew"))


def test_the_same_command_goes_on(make):
    folder = make(2)
    expected = contents(folder)
    sorted(folder.glob("*.parquet"))[1].unlink()
    for name in ("_units/plan.json", "tokenizer.json"):
        (folder / name).unlink()
    assert contents(make(2)) == expected


def test_a_shard_of_another_number_of_codebooks_is_made_again(make):
    """Here one that was copied from another set of the same utterances, with its sidecar."""
    folder, other = make(2), make(3, "other")
    expected = contents(folder)
    for name in ("part-00001-of-00003.parquet", "_units/part-00001-of-00003.json"):
        (folder / name).write_bytes((other / name).read_bytes())
    assert contents(make(2)) == expected


@pytest.mark.parametrize(
    ("bottleneck", "number", "message"),
    [
        ("residual", 4, "codebooks: expected 1 to 3, as many as the model has, found 4"),
        ("residual", 0, "codebooks: expected 1 to 3, as many as the model has, found 0"),
        ("vq", 2, "codebooks: expected 1, as many as the model has, found 2"),
        ("none", 1, "bottleneck 'none' has no codes"),
    ],
)
def test_numbers_that_the_model_does_not_have_are_refused_before_anything_is_written(
    tiny_tokenizer, manifest, tmp_path, bottleneck, number, message
):
    tiny_tokenizer(bottleneck=bottleneck).save_pretrained(tmp_path / "model")
    with pytest.raises(TokenError, match=message):
        tokenize(tmp_path / "model", [manifest], tmp_path / "tokens", num_codebooks=number)
    assert not (tmp_path / "tokens").exists()


def as_earlier(folder: Path) -> None:
    """Take out of the records what earlier versions did not say."""
    for path in [folder / "tokenizer.json", *(folder / "_units").glob("*.json")]:
        record = json.loads(path.read_text())
        for name in ("num_codebooks",) * (path.name != "tokenizer.json") + ("codebook_sizes", "model_codebooks"):
            record.pop(name, None)
        path.write_text(json.dumps(record))


def test_sets_of_earlier_versions_are_read_checked_and_gone_on_with(model, placed_tokenizer, manifest, tmp_path):
    tokenizer = placed_tokenizer("istft", "vq")
    tokenizer.save_pretrained(tmp_path / "model")
    folder = tmp_path / "codes"
    tokenize(tmp_path / "model", [manifest], folder, unit_seconds=UNIT)
    rows = list(TokenSet(folder))
    as_earlier(folder)
    tokens = TokenSet(folder)
    assert all(np.array_equal(row.codes, old.codes) for row, old in zip(tokens, rows, strict=True))
    assert (tokens.info.codebook_sizes, tokens.info.model_codebooks, tokens.info.chosen_codebooks) == ([32], 1, None)
    assert verify_tokens(tokens, None, tokenizer, 2).problems == []
    run = tokenize(tmp_path / "model", [manifest], folder, unit_seconds=UNIT)
    assert (run.done, run.resumed) == (0, 3)


@pytest.mark.parametrize("wrong", [{"codebook_sizes": [32]}, {"model_codebooks": 1}, {"codebook_sizes": [32, 0]}])
def test_a_record_that_contradicts_itself_is_refused(make, wrong):
    folder = make(2)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **wrong}))
    with pytest.raises(TokenError, match=r"tokenizer\.json: is damaged"):
        TokenSet(folder)


# --- what is made of them ------------------------------------------------------------------------------------


def test_verify_encodes_again_with_as_many_codebooks(make, tokenizer):
    folder = make(2)
    result = verify_tokens(TokenSet(folder), None, tokenizer, sample=3)
    assert result.problems == []
    assert "3 utterances encoded again" in result.checked[-1]


@pytest.mark.parametrize(
    ("name", "wrong", "problem"),
    [
        ("tokenizer.json", {"codebook_sizes": [32, 32]}, r"says codebook_sizes \[32, 32\], expected \[32, 16\]"),
        ("tokenizer.json", {"model_codebooks": 4}, "says model_codebooks 4, expected 3"),
        ("_units/part-00001-of-00003.json", {"num_codebooks": None}, "num_codebooks is 2, but .* says None"),
    ],
)
def test_verify_finds_records_that_say_something_else(make, tokenizer, name, wrong, problem):
    folder = make(2)
    record = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**record, **wrong}))
    found = verify_tokens(TokenSet(folder), None, tokenizer).problems
    assert len([line for line in found if re.search(problem, line)]) == 1


def test_a_code_is_compared_with_the_size_of_its_own_codebook(write_tokens, tmp_path):
    codes = {("good", None): np.array([[31], [15]]), ("bad", None): np.array([[31], [16]])}
    folder = write_tokens(tmp_path, codes, 32, sizes=[32, 16])
    (problem,) = [line for line in verify_tokens(TokenSet(folder)).problems if "utterance" in line]
    assert problem.endswith("utterance 'bad': expected codes from 0 to 15, found 16")
    with pytest.raises(TokenError, match="utterance 'bad' holds code 16, the codebook has 16"):
        measure_tokens(TokenSet(folder))


def test_statistics_are_those_of_each_codebook_with_its_size(make):
    folder = make(2)
    statistics = measure_tokens(TokenSet(folder))
    record = statistics_record(statistics)
    assert (len(record["codebooks"]), record["model_codebooks"], record["nominal_bitrate"]) == (2, 3, 800 * 9)
    together = np.concatenate([row.codes for row in TokenSet(folder)], axis=1)
    for book, found, size in zip(together, record["codebooks"], SIZES, strict=False):
        used = len(np.unique(book))
        assert (found["size"], found["used"], found["dead"]) == (size, used, size - used)
        assert 1 <= found["perplexity"] <= used
    text = format_statistics(statistics)
    assert "bitrate 7200 bit/s with 2 of the model's 3 codebooks" in text
    assert f"{record['codebooks'][1]['used']} of 16" in text


@pytest.mark.parametrize("format", ["memmap", "jsonl", "kaldi", "webdataset"])
def test_exports_hold_as_many_codebooks_and_say_so(make, tmp_path, format):
    tokens = TokenSet(make(2))
    export_tokens(tokens, format, tmp_path / "out")
    told = json.loads((tmp_path / "out/export.json").read_text())["tokenizer"]
    assert (told["num_codebooks"], told["model_codebooks"], told["codebook_sizes"]) == (2, 3, [32, 16])
    if format == "memmap":
        expected = np.concatenate([row.codes for row in tokens], axis=1)
        np.testing.assert_array_equal(np.load(tmp_path / "out/codes.npy"), expected)
    if format == "kaldi":
        assert len(list((tmp_path / "out").glob("*.ark"))) == 2


def test_they_are_decoded_by_the_same_model(make, tokenizer, tmp_path):
    import soundfile

    tokens = TokenSet(make(2))
    assert decode_tokens(tokenizer, tokens, tmp_path / "wavs") == []
    row = tokens[0]
    wave, _ = soundfile.read(tmp_path / f"wavs/{row.utt_id}.wav")
    expected = tokenizer.decode(row.codes, row.num_samples)[0, 0].clamp(-1, 1)
    torch.testing.assert_close(torch.from_numpy(wave).float(), expected, atol=1e-4, rtol=0)
