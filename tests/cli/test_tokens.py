"""`audiovq tokens`, on a set that `audiovq tokenize` made of real speech."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from audiovq.data.manifest import read_manifest
from audiovq.tokens import TokenSet
from audiovq.tokens.export import FORMATS


@pytest.fixture(scope="module")
def model(tiny_tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def data(run, model, speech_folder, tmp_path) -> Path:
    """A folder with the manifest of six utterances and their codes."""
    for speaker in ("allison", "carlo"):
        (tmp_path / "speech" / speaker).mkdir(parents=True)
        for path in sorted((speech_folder / speaker).glob("*.ogg"))[:3]:
            shutil.copy(path, tmp_path / "speech" / speaker)
    speech = ("folder", tmp_path / "speech", "--speaker-pattern", "{speaker}/", "--split-by", "utterance")
    assert run("prepare", *speech, "-o", tmp_path, "--dev", 0, "--test", 0)[0] == 0
    assert run("tokenize", model, tmp_path / "train.jsonl.gz", "-o", tmp_path / "codes")[0] == 0
    return tmp_path


def test_verify_says_what_it_checked(run, model, data):
    code, out, err = run("tokens", "verify", data / "codes")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "checked 6 utterances in 1 shard: ids, lengths, codes"
    assert out.splitlines()[-1] == f"no problems: {data / 'codes'}"
    everything = ("--input", data / "train.jsonl.gz", "--model", model, "--sample", 3)
    code, longer, err = run("tokens", "verify", data / "codes", *everything)
    assert (code, err) == (0, "")
    assert len(longer.splitlines()) == len(out.splitlines()) + 2
    assert "checked 3 utterances encoded again: " in longer


def test_verify_ends_with_a_line_for_each_problem_and_exit_code_1(run, data):
    (shard,) = (data / "codes").glob("*.parquet")
    content = bytearray(shard.read_bytes())
    content[200] ^= 1
    shard.write_bytes(bytes(content))
    code, out, err = run("tokens", "verify", data / "codes")
    assert code == 1
    lines = err.splitlines()
    assert all(line.startswith(f"audiovq: {shard}: ") for line in lines)
    assert "shard_sha256" in err
    assert out.splitlines()[-1] == f"{len(lines)} problems: {data / 'codes'}"


def test_verify_refuses_what_is_no_token_set(run, data):
    code, out, err = run("tokens", "verify", data / "speech")
    assert (code, out) == (2, "")
    assert err == f"audiovq: {data / 'speech'}: is no token data set, it has no tokenizer.json\n"


def test_stats_prints_a_table_or_json_and_draws_a_picture(run, data):
    picture = data / "stats.png"
    code, out, err = run("tokens", "stats", data / "codes", "-o", picture)
    assert (code, err) == (0, "")
    utterances = read_manifest(data / "train.jsonl.gz")
    hours = sum(utterance.duration for utterance in utterances) / 3600
    assert out.startswith(f"6 utterances, {hours:.2f} hours, ")
    assert {line.split()[0] for line in out.splitlines()[7:9]} == {"allison", "carlo"}
    assert picture.read_bytes().startswith(b"\x89PNG")
    code, out, err = run("tokens", "stats", data / "codes", "--json")
    assert json.loads(out)["hours"] == pytest.approx(hours, rel=1e-3)
    code, out, err = run("tokens", "stats", data / "codes", "-o", picture)
    assert (code, out) == (2, "")
    assert "add --force" in err
    assert run("tokens", "stats", data / "codes", "-o", picture, "--force")[0] == 0
    code, out, err = run("tokens", "stats", data / "codes", "-o", data / "stats.txt")
    assert (code, out) == (2, "")
    assert "expected the name of a picture" in err


@pytest.mark.parametrize("format", FORMATS)
def test_export_writes_every_format(run, data, format):
    output = data / "out"
    assert run("tokens", "export", data / "codes", "--format", format, "-o", output) == (
        0,
        f"6 utterances written: {output}\n",
        "",
    )
    assert json.loads((output / "export.json").read_text())["format"] == format
    code, _, err = run("tokens", "export", data / "codes", "--format", format, "-o", output)
    assert code == 2
    assert "add --force" in err
    assert run("tokens", "export", data / "codes", "--format", format, "-o", output, "--force")[0] == 0


def test_exported_codes_are_those_of_the_set(run, data):
    run("tokens", "export", data / "codes", "--format", "memmap", "-o", data / "out")
    codes = np.load(data / "out/codes.npy", mmap_mode="r")
    np.testing.assert_array_equal(codes, np.concatenate([row.codes for row in TokenSet(data / "codes")], axis=1))


def test_stats_and_export_need_no_torch(data):
    """In a process of its own, since this one has imported torch long ago."""
    code = """
import sys
from audiovq.cli import app
codes, output = sys.argv[1:]
app(["tokens", "stats", codes], standalone_mode=False)
app(["tokens", "export", codes, "--format", "jsonl", "-o", output], standalone_mode=False)
assert "torch" not in sys.modules
"""
    command = [sys.executable, "-c", code, data / "codes", data / "out"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert f"6 utterances written: {data / 'out'}" in result.stdout
