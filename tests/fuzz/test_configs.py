"""Whatever a config, an override or a release holds, it is read or refused in one line, soon and in little memory."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from audiovq.config import AutoencoderConfig, ExperimentConfig, load_config, parse_config
from audiovq.errors import AudioVQError
from audiovq.models.tokenizer import AudioTokenizer

CONFIG = (Path(__file__).parents[2] / "recipes/mini/conf/mini.yaml").read_bytes()
SHARED = settings.get_profile("fuzz")
ODD = st.sampled_from(
    ["0x_", "2001-99-99", "!!int a", "!!timestamp x", "1:30", "&a [*a]", "<<: 1", "{1: 2}", "[" * 3000, "9" * 5000]  # noqa: RUF005
    + [
        "0x" + "f" * 5000,
        ".nan",
        "-.inf",
        "1e999",
        '"\\ud800"',
        '"\\0"',
        "? [a]",
        "--- 1\n--- 2",
        "%TAG",
        "\udcff",
        "a: a",
    ]
)


def keys_of(schema: dict) -> list[str]:
    return [f"{a}.{b}" for a, section in schema.items() if isinstance(section, dict) for b in section] + list(schema)


KEYS = st.sampled_from(keys_of(yaml.safe_load(CONFIG))) | st.text(st.characters(), max_size=12)


@SHARED
@given(data=st.data())
def test_a_damaged_config(damaged, safely, tmp_path, data):
    path = tmp_path / "conf.yaml"
    path.write_bytes(data.draw(damaged(CONFIG)))
    with safely():
        load_config(path)


@SHARED
@given(key=KEYS, value=ODD | st.text(st.characters(), max_size=20))
def test_an_override(safely, tmp_path, key, value):
    path = tmp_path / "conf.yaml"
    path.write_bytes(CONFIG)
    with safely():
        load_config(path, [f"{key}={value}"])


@SHARED
@given(key=st.sampled_from(keys_of(yaml.safe_load(CONFIG))), data=st.data())
def test_plain_data_of_another_kind(safely, plain, key, data):
    record = yaml.safe_load(CONFIG)
    *parents, last = key.split(".")
    section = record
    for parent in parents:
        section = section[parent]
    section[last] = data.draw(plain)
    with safely():
        parse_config(record, ExperimentConfig, "config")


def test_aliases_that_unfold_without_end_are_refused(safely, tmp_path):
    names = "abcdefghi"
    laughs = "a: &a [1, 1]\n" + "".join(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in itertools.pairwise(names)
    )
    (tmp_path / "conf.yaml").write_text(laughs)
    with safely(), pytest.raises(AudioVQError, match="aliases are not allowed"):
        load_config(tmp_path / "conf.yaml")


@pytest.fixture
def release(tiny_tokenizer, tmp_path) -> Path:
    tiny_tokenizer().save_pretrained(tmp_path / "release")
    AudioTokenizer.from_pretrained(tmp_path / "release", "cpu")  # What it imports is not counted.
    return tmp_path / "release"


@SHARED
@given(data=st.data())
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_file_of_a_release(damaged, safely, release, name, data):
    good = (release / name).read_bytes()
    try:
        (release / name).write_bytes(data.draw(damaged(good)))
        with safely():
            AudioTokenizer.from_pretrained(release, "cpu")
    finally:
        (release / name).write_bytes(good)


NUMBERS = st.sampled_from([0, -1, 1, 2, 1000, 10**6, 2**31, 2**63, 10**30, 1e300, True, None, [], {}, "1", [[10**9]]])


@SHARED
@given(data=st.data())
def test_a_release_whose_config_asks_for_something_else(safely, release, data):
    path = release / "config.json"
    good = path.read_text()
    record = json.loads(good)
    key = data.draw(st.sampled_from(keys_of(record["model"])))
    *parents, last = key.split(".")
    section = record["model"]
    for parent in parents:
        section = section[parent]
    section[last] = data.draw(NUMBERS | st.lists(NUMBERS, max_size=4))
    try:
        path.write_text(json.dumps(record))
        with safely():
            AudioTokenizer.from_pretrained(release, "cpu")
    finally:
        path.write_text(good)


@SHARED
@given(data=st.data())
def test_a_config_that_is_anything_at_all(safely, plain, data):
    with safely():
        parse_config(data.draw(plain), AutoencoderConfig, "config.json")
