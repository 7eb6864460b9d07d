"""Whatever a codes file, a token data set or a training state holds, it is read or refused in one line."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from audiovq.data.sources import list_items
from audiovq.tokenization.claim import claim
from audiovq.tokenization.plan import TokenizingRequest
from audiovq.tokenization.run import tokenize
from audiovq.tokens import TokenSet, code_counts, read_tokenizer_info
from audiovq.tokens.codes_file import CodesFile, load_codes, save_codes
from audiovq.tokens.shards import schema
from audiovq.tokens.statistics import format_statistics, measure_tokens
from audiovq.tokens.verify import verify_tokens
from audiovq.training.folder import check_own
from audiovq.training.state import Progress, is_state, load_state, read_run_record, save_state

SHARED = settings.get_profile("fuzz")
FEWER = settings(SHARED, max_examples=25)


# --- codes files ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def codes_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("codes") / "good.npz"
    codes = np.random.default_rng(0).integers(1024, size=(2, 40)).astype(np.uint16)
    save_codes(path, CodesFile(codes, 12800, 16000, "ab" * 32))
    return path


@SHARED
@given(data=st.data())
def test_a_damaged_codes_file(damaged, safely, codes_file, data):
    path = codes_file.with_name("bad.npz")
    path.write_bytes(data.draw(damaged(codes_file.read_bytes())))
    with safely():
        load_codes(path)


@SHARED
@given(data=st.data())
@pytest.mark.parametrize("name", ["codes", "num_samples", "sample_rate", "weights_sha256"])
def test_a_codes_file_of_damaged_arrays(damaged, safely, codes_file, name, data):
    path = codes_file.with_name("bad.npz")
    with zipfile.ZipFile(codes_file) as good, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bad:
        for member in good.namelist():
            content = good.read(member)
            bad.writestr(member, data.draw(damaged(content)) if member == f"{name}.npy" else content)
    with safely():
        load_codes(path)


# --- token data sets -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good_set(model, six_files, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    shutil.copytree(six_files, folder / "speech")
    (folder / "speech/bad.wav").write_text("no audio")
    tokenize(model, [folder / "speech"], folder / "good", unit_seconds=4, device="cpu")
    return folder / "good"


@pytest.fixture
def token_set(good_set, tmp_path) -> Path:
    return shutil.copytree(good_set, tmp_path / "set")


FILES = ["part-00000-of-00002.parquet", "tokenizer.json", "summary.json", "rejected.jsonl"]
FILES += ["_units/plan.json", "_units/part-00000-of-00002.json"]


def read_all(folder: Path, good: Path, safely) -> None:
    """All that reads a token data set, but for encoding."""
    items = list(list_items([good.parent / "speech"]))
    info = read_tokenizer_info(good)
    with safely():
        tokens = TokenSet(folder)
        _ = tokens.ids, tokens.speakers, tokens.lengths, tokens.find([])
        tokens.require_one_model()
        for row in tokens:
            code_counts(tokens, row)
    with safely():
        tokens = TokenSet(folder)
        problems = verify_tokens(tokens, items).problems
        assert all("\n" not in problem for problem in problems)
    with safely():
        format_statistics(measure_tokens(TokenSet(folder)))
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        copy = shutil.copytree(folder, Path(name) / "set")
        for limit, force in ((None, False), (1.0, True)):
            with safely(), claim(copy, TokenizingRequest(items, info.weights_sha256, limit, 4), info, force):
                pass


@pytest.mark.filterwarnings("ignore:.* shards are there")
@FEWER
@given(data=st.data())
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_of_a_token_set(damaged, safely, good_set, token_set, name, data):
    (token_set / name).write_bytes(data.draw(damaged((good_set / name).read_bytes())))
    read_all(token_set, good_set, safely)


@pytest.mark.filterwarnings("ignore:.* shards are there")
@FEWER
@given(data=st.data())
@pytest.mark.parametrize("name", FILES[1:])
def test_a_file_of_a_token_set_with_other_values(plain, safely, good_set, token_set, name, data):
    text = (good_set / name).read_text()
    record = json.loads(text.splitlines()[0] if name == "rejected.jsonl" else text)
    key = data.draw(st.sampled_from([*record]))
    record[key] = data.draw(plain | st.sampled_from([0, -1, 2**31, 2**63, 2**64, 1e300, [], [0], [2**62] * 4]))
    (token_set / name).write_text(json.dumps(record if data.draw(st.booleans()) else record[key]))
    read_all(token_set, good_set, safely)


TEXTS = st.none() | st.text(max_size=8) | st.sampled_from(["..", "a/b", "x" * 300, "utt0"])
BOOKS = st.lists(st.none() | st.lists(st.none() | st.integers(0, 2**16 - 1), max_size=3), max_size=2)
ROW = st.fixed_dictionaries(
    {
        "utt_id": TEXTS,
        "speaker": TEXTS,
        "sample_rate": st.none() | st.sampled_from([16000, 0, -1, 2**31 - 1]),
        "num_samples": st.none() | st.sampled_from([40, 0, -1, 2**63 - 1]),
        "num_frames": st.none() | st.sampled_from([2, 0, -1, 2**63 - 1, -(2**63)]),
        "codes": st.none() | BOOKS,
        "source": TEXTS,
    }
)


@FEWER
@given(rows=st.lists(ROW, max_size=3))
def test_a_shard_of_any_rows(safely, good_set, token_set, rows):
    pq.write_table(pa.Table.from_pylist(rows, schema=schema()), token_set / FILES[0])
    read_all(token_set, good_set, safely)


def test_a_tokenizer_that_asks_for_too_much(safely, good_set, token_set):
    record = asdict(read_tokenizer_info(good_set)) | {"format_version": 1, "num_codebooks": 2**40}
    (token_set / "tokenizer.json").write_text(json.dumps(record))
    read_all(token_set, good_set, safely)


# --- training states -----------------------------------------------------------------------------------------


def parts() -> dict:
    torch.manual_seed(0)
    model = nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return {"model": model, "optimizer": optimizer}


@pytest.fixture
def state(tmp_path) -> Path:
    record = {"config": {"training": {"steps": 9}}, "data": {"train": "ab"}}
    save_state(tmp_path / "state.safetensors", parts(), Progress(3, {"loss": 0.5}), record)
    return tmp_path / "state.safetensors"


def read_state(path: Path, safely) -> None:
    with safely():
        load_state(path, parts())
    for read in (read_run_record, is_state):
        with safely():
            read(path)
    with safely():
        check_own(path.parent, force=True)


@SHARED
@given(data=st.data())
def test_a_damaged_training_state(damaged, safely, state, data):
    good = state.read_bytes()
    bad = state.with_name("bad")
    bad.mkdir(exist_ok=True)
    (bad / state.name).write_bytes(data.draw(damaged(good)))
    read_state(bad / state.name, safely)


@SHARED
@given(data=st.data(), key=st.sampled_from(["format", "tensors", "progress", "record", "more"]))
def test_a_training_state_that_says_something_else(plain, safely, state, key, data):
    with safe_open(state, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    value = data.draw(plain)
    odd = st.sampled_from(["", "{", "[" * 100_000, "9" * 5000, "1e999", "NaN", '{"step": 1e3}', '{"step": true}'])
    metadata[key] = data.draw(st.just(json.dumps(value)) | odd)
    bad = state.with_name("bad")
    bad.mkdir(exist_ok=True)
    save_file(tensors, bad / state.name, metadata)
    read_state(bad / state.name, safely)


SHAPES = st.lists(st.integers(0, 3), max_size=3)
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool, torch.uint8, torch.bfloat16])


@SHARED
@given(data=st.data())
def test_a_training_state_of_other_tensors(safely, state, data):
    with safe_open(state, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    name = data.draw(st.sampled_from([*tensors]))
    tensor = torch.ones(data.draw(SHAPES), dtype=data.draw(DTYPES))
    names = [name, "model/bias", "optimizer/x/step", "optimizer/0", "optimizer/-1/step", "/", ""]
    other = data.draw(st.sampled_from(names))
    del tensors[name]
    tensors[other] = tensor
    bad = state.with_name("bad")
    bad.mkdir(exist_ok=True)
    save_file(tensors, bad / state.name, metadata)
    read_state(bad / state.name, safely)
