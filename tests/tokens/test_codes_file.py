from __future__ import annotations

import io
import pickle
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiovq.errors import TokenError
from audiovq.tokens.codes_file import CodesFile, load_codes, save_codes

HASH = "ab" * 32
CODES = CodesFile(np.arange(12, dtype=np.uint16).reshape(2, 6), 1900, 16000, HASH)


def test_a_codes_file_returns_as_it_was_written(tmp_path):
    save_codes(tmp_path / "a.npz", CODES)
    read = load_codes(tmp_path / "a.npz")
    np.testing.assert_array_equal(read.codes, CODES.codes)
    assert replace(read, codes=CODES.codes) == CODES
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


class Trap:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickled_objects_are_refused_and_not_run(tmp_path):
    sprung = tmp_path / "sprung"
    known = {"num_samples": 1, "sample_rate": 1, "weights_sha256": HASH}
    np.savez(tmp_path / "array.npz", codes=np.array([[Trap(sprung)]], dtype=object), **known)
    np.savez(tmp_path / "field.npz", codes=CODES.codes, **{**known, "num_samples": np.array(Trap(sprung))})
    (tmp_path / "bare.npz").write_bytes(pickle.dumps(Trap(sprung)))
    for name in ("array", "field", "bare"):
        with pytest.raises(TokenError, match=rf"{name}\.npz: is no codes file of `audiovq encode`, or is damaged"):
            load_codes(tmp_path / f"{name}.npz")
    assert not sprung.exists()
    np.load(tmp_path / "array.npz", allow_pickle=True)["codes"]
    assert sprung.exists()  # The trap works.


def test_files_that_hold_something_else_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    known = {"num_samples": 1, "sample_rate": 1, "weights_sha256": HASH}
    for codes in (CODES.codes.astype(np.int64), CODES.codes[0], CODES.codes.astype(np.float32)):
        np.savez(path, codes=codes, **known)
        with pytest.raises(TokenError, match=r"a\.npz: expected codes uint16 \[Q, F\], found "):
            load_codes(path)
    np.savez(path, codes=CODES.codes)
    with pytest.raises(TokenError, match="is no codes file"):
        load_codes(path)
    np.savez(path, codes=CODES.codes, **{**known, "num_samples": [1, 2]})
    with pytest.raises(TokenError, match="is no codes file"):
        load_codes(path)
    with path.open("wb") as file:
        np.save(file, CODES.codes)
    with pytest.raises(TokenError, match="is no codes file"):
        load_codes(path)
    for content in (b"", b"text", b"PK\x03\x04"):
        path.write_bytes(content)
        with pytest.raises(TokenError, match="is no codes file"):
            load_codes(path)
    with pytest.raises(TokenError, match=r"missing\.npz: cannot be read \(No such file"):
        load_codes(tmp_path / "missing.npz")
    with pytest.raises(TokenError, match="cannot be read"):
        load_codes(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"num_samples": value} for value in (-1, 0, np.nan, 1.5, True, [1])),
        *({"sample_rate": value} for value in (-1, 0, np.inf)),
        {"weights_sha256": 7},
    ],
)
def test_fields_that_mean_nothing_are_refused(tmp_path, wrong):
    good = {"codes": CODES.codes, "num_samples": 1, "sample_rate": 1, "weights_sha256": HASH}
    np.savez(tmp_path / "a.npz", **{**good, **wrong})
    with pytest.raises(TokenError, match="is no codes file"):
        load_codes(tmp_path / "a.npz")


def pack(path: Path, codes: bytes, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("codes.npy", codes)
        for name, value in (("num_samples", 1), ("sample_rate", 1), ("weights_sha256", HASH)):
            file = io.BytesIO()
            np.save(file, np.array(value))
            archive.writestr(f"{name}.npy", file.getvalue())
    return path


def header(shape: tuple[int, ...], descr: str = "<u2") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": descr})
    return file.getvalue()


def test_hostile_archives_are_refused_before_memory_is_taken(tmp_path):
    for number, (content, method) in enumerate(
        [
            (b"text", zipfile.ZIP_STORED),
            (header((1, 6)) + bytes(12), zipfile.ZIP_LZMA),
            (header((1, 6)) + bytes(12), zipfile.ZIP_BZIP2),
            (header((1, 10**12)), zipfile.ZIP_DEFLATED),
            (header((-1, -6)) + bytes(11), zipfile.ZIP_DEFLATED),
            (header((1, 2**27)) + bytes(2**28), zipfile.ZIP_DEFLATED),
            (header((1, 1), "|O") + bytes(8), zipfile.ZIP_DEFLATED),
        ]
    ):
        path = pack(tmp_path / f"{number}.npz", content, method)
        tracemalloc.start()
        with pytest.raises(TokenError, match="is no codes file") as error:
            load_codes(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()
        assert "\n" not in str(error.value)


def test_an_encrypted_archive_is_refused(tmp_path):
    content = bytearray(pack(tmp_path / "a.npz", header((1, 6)) + bytes(12)).read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + offset] |= 1
    (tmp_path / "a.npz").write_bytes(bytes(content))
    with pytest.raises(TokenError, match="is no codes file"):
        load_codes(tmp_path / "a.npz")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_codes_file_is_an_error_in_one_line_or_still_right(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    path = folder / "a.npz"
    save_codes(path, CODES)
    content = bytearray(path.read_bytes())
    where = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[where:]
    else:
        content[where] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    problem = ""
    try:
        read = load_codes(path)
    except TokenError as error:
        problem = str(error)
    else:
        np.testing.assert_array_equal(read.codes, CODES.codes)
        assert replace(read, codes=CODES.codes) == CODES
    assert "\n" not in problem


def test_the_model_s_number_of_codebooks_is_told_and_may_be_missing(tmp_path):
    save_codes(tmp_path / "a.npz", replace(CODES, model_codebooks=6))
    assert load_codes(tmp_path / "a.npz").model_codebooks == 6
    save_codes(tmp_path / "b.npz", CODES)
    assert load_codes(tmp_path / "b.npz").model_codebooks is None
    save_codes(tmp_path / "c.npz", replace(CODES, model_codebooks=1))
    with pytest.raises(TokenError, match=r"c\.npz: is no codes file .*2 codebooks of a model that has 1"):
        load_codes(tmp_path / "c.npz")
