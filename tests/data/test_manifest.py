from __future__ import annotations

import gzip
import json
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audiovq.data.manifest import Utterance, check_id, read_manifest, write_manifest
from audiovq.errors import AudioError, ManifestError

GOOD = {"id": "a", "path": "a.wav", "duration": 0.5, "sample_rate": 16000, "num_samples": 8000}


def utterance(name: str = "a", **changes) -> Utterance:
    fields = {"path": Path("/audio/a.wav"), "duration": 0.5, "sample_rate": 16000, "num_samples": 8000}
    return Utterance(id=name, **{**fields, **changes})


def write_lines(path: Path, *records: dict | str) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


ids = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc"], exclude_characters="/\\"), min_size=1, max_size=40
)
utterances = st.builds(
    lambda name, rate, first, count, speaker, text, split, file: Utterance(
        id=name,
        path=Path(f"/audio/{file}.wav"),
        duration=count / rate,
        sample_rate=rate,
        num_samples=count,
        offset=first / rate,
        speaker=speaker,
        text=text,
        split=split,
    ),
    ids.filter(lambda name: not name.startswith(".")),
    st.sampled_from([8000, 11025, 16000, 22050, 44100, 48000, 192000]),
    st.integers(0, 10**10),
    st.integers(1, 10**10),
    st.none() | st.text(st.characters(codec="utf-8")),
    st.none() | st.text(st.characters(codec="utf-8")),
    st.sampled_from([None, "train", "dev", "test"]),
    st.integers(0, 5),
)


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(written=st.lists(utterances, min_size=1, max_size=5, unique_by=lambda item: item.id))
def test_what_is_written_is_read_back(tmp_path, suffix, written):
    path = tmp_path / f"manifest.{suffix}"
    write_manifest(path, written)
    assert read_manifest(path) == written


def test_a_segment_starts_and_ends_at_exactly_the_listed_samples(tmp_path):
    samples = np.random.default_rng(0).integers(-30000, 30000, 44100).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", samples, 44100)
    first, count = 12347, 9871
    item = utterance(
        path=tmp_path / "a.wav",
        sample_rate=44100,
        offset=first / 44100,
        duration=count / 44100,
        num_samples=count,
    )
    write_manifest(tmp_path / "m.jsonl", [item])
    wave = read_manifest(tmp_path / "m.jsonl")[0].source().read()
    np.testing.assert_array_equal(wave[0].numpy() * 32768, samples[first : first + count])


def test_paths_are_relative_below_the_manifest_and_absolute_elsewhere(tmp_path):
    inside, outside = tmp_path / "data/wavs/a.wav", tmp_path / "other/b.wav"
    path = tmp_path / "data/m.jsonl"
    write_manifest(path, [utterance("a", path=inside), utterance("b", path=outside)])
    assert [json.loads(line)["path"] for line in path.read_text().splitlines()] == [
        "wavs/a.wav",
        str(outside),
    ]

    moved = tmp_path / "moved"
    path.parent.rename(moved)
    assert [item.path for item in read_manifest(moved / "m.jsonl")] == [moved / "wavs/a.wav", outside]


def test_a_manifest_named_relative_to_the_current_folder_gives_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "m.jsonl", GOOD)
    assert read_manifest("m.jsonl")[0].path == tmp_path / "a.wav"


def test_compressed_manifests_depend_on_their_utterances_alone(tmp_path, monkeypatch):
    write_manifest(tmp_path / "first.jsonl.gz", [utterance()])
    monkeypatch.setattr(time, "time", lambda: 2e9)
    write_manifest(tmp_path / "second.jsonl.gz", [utterance()])
    assert (tmp_path / "first.jsonl.gz").read_bytes() == (tmp_path / "second.jsonl.gz").read_bytes()


def test_optional_fields_and_blank_lines(tmp_path):
    item, *rest = read_manifest(write_lines(tmp_path / "m.jsonl", GOOD, ""))
    assert not rest
    assert (item.offset, item.speaker, item.text, item.split) == (0.0, None, None, None)


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ('{"id": "b", ', "is not valid JSON"),
        ("[" * 100000, "is not valid JSON"),
        ("[1, 2]", "expected a JSON object, found list"),
        (dict(GOOD, id="b", sampel_rate=1), "sampel_rate: unknown field; did you mean 'sample_rate'"),
        (dict(GOOD, id="b", zzz=1), "zzz: unknown field; known are id, path"),
        ({key: value for key, value in GOOD.items() if key != "duration"}, "duration: is missing"),
        (dict(GOOD, id=3), "id: expected a string, found 3"),
        (dict(GOOD, id=None), "id: expected a string"),
        (dict(GOOD, id="b", num_samples=8000.0), "num_samples: expected an integer"),
        (dict(GOOD, id="b", num_samples=True), "num_samples: expected an integer"),
        (dict(GOOD, id="b", num_samples=0, duration=0), "num_samples: expected a value from 1"),
        (dict(GOOD, id="b", sample_rate=-16000), "sample_rate: expected a value from 1"),
        (dict(GOOD, id="b", sample_rate=10**400), "sample_rate: expected a value from 1"),
        (dict(GOOD, id="b", duration="1"), "duration: expected a number"),
        (dict(GOOD, id="b", duration=-0.5), "duration: expected a value from 0"),
        (dict(GOOD, id="b", duration=0.6), "duration: 0.6 s at 16000 Hz are 9600 samples"),
        (dict(GOOD, id="b", offset=-1), "offset: expected a value from 0"),
        (dict(GOOD, id="b", offset=float("nan")), "offset: expected a value from 0"),
        (dict(GOOD, id="b", offset=float("inf")), "offset: expected a value from 0"),
        (dict(GOOD, id="b", offset=10**400), "offset: expected a value from 0"),
        (dict(GOOD, id="b", speaker=7), "speaker: expected a string or null"),
        (dict(GOOD, id="b", path=""), "path: expected the name of a file"),
        (dict(GOOD, id="b", path="a\0.wav"), "path: expected the name of a file"),
        (dict(GOOD, id="b", path="\ud800.wav"), "path: .* not valid Unicode"),
        (dict(GOOD, id="b", speaker="\ud800"), "speaker: .* not valid Unicode"),
        (dict(GOOD, id="b", text="a \udcff"), "text: .* not valid Unicode"),
        (dict(GOOD, id="b", text="x" * 2**20), "is longer than 1048576 bytes"),
        (dict(GOOD, id="b", **{"x" * 2000: 1}), "x{60}: unknown field"),
        (dict(GOOD, id="b", path="\0" * 2000), "path: expected the name of a file"),
        (dict(GOOD, id="b\u2028"), "id: .* cannot name a file"),
        (dict(GOOD, id="../b"), "id: '../b' cannot name a file"),
        (dict(GOOD, id="a"), "id: 'a' stands in line 1 already"),
    ],
)
def test_a_wrong_line_is_named_with_its_field(tmp_path, line, field):
    path = write_lines(tmp_path / "m.jsonl", GOOD, "", line)
    with pytest.raises(ManifestError, match=rf"m\.jsonl:3: {field}") as caught:
        read_manifest(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 300


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.jsonl", b"", "holds no utterances"),
        ("m.jsonl", b"\n \n", "holds no utterances"),
        ("m.jsonl", b"\xff\xfe\xfd", "m.jsonl:1: is not valid JSON"),
        ("m.jsonl.gz", b'{"id": "a"}', "is damaged or no gzip file"),
        ("m.jsonl.gz", gzip.compress(json.dumps(GOOD).encode())[:-12], "is damaged or no gzip file"),
        (
            "m.jsonl.gz",
            gzip.compress(json.dumps(GOOD).encode())[:15] + b"xxxxxxxxxxxxxxxxxxx",
            "is damaged or no gzip",
        ),
    ],
)
def test_a_file_that_is_no_manifest_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ManifestError, match=message) as caught:
        read_manifest(tmp_path / name)
    assert name in str(caught.value)


def test_one_endless_line_does_not_fill_the_memory(tmp_path):
    with gzip.open(tmp_path / "m.jsonl.gz", "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(b" " * 2**20)
    tracemalloc.start()
    with pytest.raises(ManifestError, match=r"m\.jsonl\.gz:1: is longer than 1048576 bytes"):
        read_manifest(tmp_path / "m.jsonl.gz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_blank_lines_without_end_are_refused(tmp_path):
    with gzip.open(tmp_path / "m.jsonl.gz", "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(b"\n" * 2**20)
    with pytest.raises(ManifestError, match=r"m\.jsonl\.gz:65537: is blank, as 65536 lines before"):
        read_manifest(tmp_path / "m.jsonl.gz")


def test_a_byte_order_mark_is_no_part_of_a_manifest(tmp_path):
    (tmp_path / "m.jsonl").write_text(json.dumps(GOOD) + "\n", encoding="utf-8-sig")
    assert read_manifest(tmp_path / "m.jsonl")[0].id == "a"


def test_only_a_line_feed_ends_a_line(tmp_path):
    text = "one\u2028two\u2029three\x85four"
    write_manifest(tmp_path / "m.jsonl", [utterance("a", text=text), utterance("b")])
    assert [item.text for item in read_manifest(tmp_path / "m.jsonl")] == [text, None]


def test_a_missing_manifest_or_a_folder_in_its_place_is_named(tmp_path):
    with pytest.raises(ManifestError, match=r"none\.jsonl: cannot be read \(No such file"):
        read_manifest(tmp_path / "none.jsonl")
    with pytest.raises(ManifestError, match=r"cannot be read \(Is a directory"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["p225_001", "a b", "ü-日本", "a..b", "x" * 200])
def test_ids_that_can_name_a_file_are_kept(name):
    check_id(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "a/b",
        "/a",
        "..\\a",
        "a\nb",
        "a\0",
        "\x7f",
        "\x85",
        "a\u2028b",
        "a\u2029b",
        "x" * 201,
        "ü" * 101,
        "\ud800",
    ],
)
def test_ids_that_cannot_name_a_file_are_refused(name):
    with pytest.raises(ManifestError, match=r"^id: "):
        check_id(name)
    with pytest.raises(ManifestError, match=r"^id: "):
        utterance(name)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "there are no utterances"),
        ([utterance("a"), utterance("a")], "two utterances have the id 'a'"),
        ([utterance("a", text="\ud800")], "utterance a: .* not valid Unicode"),
    ],
)
def test_nothing_is_written_that_could_not_be_read(tmp_path, items, message):
    with pytest.raises(ManifestError, match=message):
        write_manifest(tmp_path / "m.jsonl", items)
    assert not list(tmp_path.iterdir())


def test_a_relative_path_is_refused():
    with pytest.raises(ManifestError, match="path: expected an absolute path"):
        utterance(path=Path("a.wav"))


@pytest.mark.parametrize(
    ("rate", "count", "message"),
    [
        (8000, 8000, "its sample rate is 8000 Hz, the manifest's 16000"),
        (16000, 7999, "holds 7999 samples, but utt"),
    ],
)
def test_a_file_that_was_replaced_is_noticed(tmp_path, rate, count, message):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(8000), 16000)
    item = utterance(path=path)
    assert item.source().num_samples == 8000
    soundfile.write(path, np.zeros(count), rate)
    with pytest.raises(AudioError, match=message):
        item.source()


def test_a_missing_audio_file_is_an_audio_error(tmp_path):
    with pytest.raises(AudioError, match=r"gone\.wav: cannot be read"):
        utterance(path=tmp_path / "gone.wav").source()


def test_100000_utterances_fit_easily(tmp_path):
    path = tmp_path / "m.jsonl.gz"
    write_manifest(
        path,
        (
            utterance(f"p{i}", path=tmp_path / f"wavs/p{i}.wav", speaker=f"s{i % 100}", text="Please call Stella.")
            for i in range(100_000)
        ),
    )
    start = time.perf_counter()
    items = read_manifest(path)
    seconds = time.perf_counter() - start
    assert len(items) == 100_000
    assert seconds < 20  # About 2 s on a free machine.
    del items

    # tracemalloc slows the reading down, so that a tenth stands for the whole.
    write_manifest(path, (replace(utterance(f"p{i}"), path=tmp_path / f"wavs/p{i}.wav") for i in range(10_000)))
    tracemalloc.start()
    items = read_manifest(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(items) == 10_000
    assert peak < 15e6
