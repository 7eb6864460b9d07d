"""A pipe may have no writer, and a device no end: of all that is found in folders or named in files, none is opened."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from audiovq.data.corpora import vctk
from audiovq.data.listing import read_lines
from audiovq.data.manifest import read_manifest
from audiovq.errors import AudioVQError
from audiovq.files import open_file, read_json, sha256_of
from audiovq.tokens.codes_file import load_codes
from audiovq.tokens.info import read_tokenizer_info
from audiovq.tokens.records import read_rejected
from audiovq.tokens.shards import open_shard
from audiovq.training.folder import check_own
from audiovq.training.state import is_state, read_run_record

READERS: dict[str, Callable[[Path], object]] = {
    "any": open_file,
    "a.json": read_json,
    "a.sha256": sha256_of,
    "a.npz": load_codes,
    "tokenizer.json": lambda path: read_tokenizer_info(path.parent),
    "rejected.jsonl": lambda path: read_rejected(path.parent),
    "part-0.parquet": open_shard,
    "wav.scp": lambda path: [*read_lines(path)],
    "train.jsonl": read_manifest,
    "train.jsonl.gz": read_manifest,
    "txt/p1/p1_001.txt": lambda path: vctk(path.parents[2]),
    "state": is_state,
    "state.safetensors": read_run_record,
    "config.yaml": lambda path: check_own(path.parent, force=True),
    "metrics.jsonl": lambda path: check_own(path.parent, force=True),
}


def _never_ends(*_: object) -> None:
    raise AssertionError("reading did not end")


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("name", READERS)
def test_what_has_no_end_is_refused_at_once(tmp_path, name, kind):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "wav48").mkdir()
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    before = signal.signal(signal.SIGALRM, _never_ends)
    signal.alarm(5)
    try:
        with pytest.raises((AudioVQError, OSError), match=r"Is a pipe, socket or device|is no file of an audiovq run"):
            READERS[name](path)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_folder_is_named_as_one(tmp_path):
    with pytest.raises(IsADirectoryError):
        open_file(tmp_path)
