"""Whatever a manifest, a Kaldi folder or a tar holds, it is listed or refused in one line, and its audio likewise."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiovq.data.kaldi import list_kaldi
from audiovq.data.manifest import manifest_digest, read_manifest
from audiovq.data.sources import list_items, with_seconds
from audiovq.errors import AudioError

SHARED = settings.get_profile("fuzz")
# Without line ends: messages hold names as they are, and what shows or writes messages escapes them.
NAMES = st.text(st.characters(exclude_characters="\r\n"), max_size=12) | st.sampled_from(
    ["../a.wav", "/a.wav", "a.wav", "a.wav/", "b" * 120]
)


def look(given: Path) -> None:
    """What `tokenize` does with an input before and while it encodes."""
    for item in with_seconds(list_items([given])):
        try:
            item.open().read(16000)
        except AudioError as error:
            assert "\n" not in str(error)  # noqa: PT017


def look_at_manifest(path: Path, safely) -> None:
    for read in (read_manifest, manifest_digest, look):
        with safely():
            read(path)


@SHARED
@given(data=st.data())
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize("inside", [True, False])
def test_a_damaged_manifest(damaged, safely, manifest, suffix, inside, data):
    good = manifest.read_bytes()
    pack = gzip.compress if suffix == ".jsonl.gz" else bytes
    path = manifest.with_name(f"bad{suffix}")
    path.write_bytes(pack(data.draw(damaged(good))) if inside else data.draw(damaged(pack(good))))
    look_at_manifest(path, safely)


@SHARED
@given(data=st.data())
def test_a_manifest_of_other_values(plain, safely, manifest, data):
    record = json.loads(manifest.read_text().splitlines()[0])
    key = data.draw(st.sampled_from([*record, "type", "more"]))
    numbers = st.sampled_from([0, -1, 1, 1e300, 2**31, 2**53, 10**400, 0.5, "", "\0", "\ud800"])
    record[key] = data.draw(plain | numbers)
    bad = manifest.with_name("bad.jsonl")
    bad.write_text(data.draw(st.sampled_from([json.dumps(record), json.dumps(record[key])])))
    look_at_manifest(bad, safely)


@pytest.mark.parametrize("kind", [[], {}, None, 1, ["MonoCut"]])
def test_a_manifest_whose_type_is_that_of_no_cut(safely, manifest, kind):
    record = json.loads(manifest.read_text().splitlines()[0])
    bad = manifest.with_name("bad.jsonl")
    bad.write_text(json.dumps({**record, "type": kind}))
    look_at_manifest(bad, safely)


def test_a_manifest_that_unfolds_without_end(safely, tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(bytes(1 << 29), 9))
    with safely():
        read_manifest(tmp_path / "a.jsonl.gz")


@SHARED
@given(data=st.data())
@pytest.mark.parametrize("name", ["wav.scp", "segments", "utt2spk", "text"])
def test_a_damaged_kaldi_folder(damaged, safely, six_files, tmp_path, name, data):
    wavs = sorted(six_files.glob("*.wav"))
    tables = {
        "wav.scp": "".join(f"r{number} {path}\n" for number, path in enumerate(wavs)),
        "segments": "u0 r0 0.1 0.4\nu1 r0 0.5 -1\nu2 r1 0 0.25\n",
        "utt2spk": "u0 a\nu1 a\nu2 b\n",
        "text": "u0 one\nu1 two words\nu2 three\n",
    }
    for table, text in tables.items():
        (tmp_path / table).write_bytes(text.encode())
    (tmp_path / name).write_bytes(data.draw(damaged(tables[name].encode())))
    with safely():
        list_kaldi(tmp_path)
    with safely():
        look(tmp_path)


def make_tar(names: list[str], content: bytes, form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


@SHARED
@given(data=st.data())
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_damaged_tar(damaged, safely, six_files, tmp_path, form, data):
    wav = (six_files / "utt1.wav").read_bytes()
    names = ["a.wav", "b/c.wav", f"{'x' * 90}.wav" if form == tarfile.USTAR_FORMAT else f"{'x' * 150}.wav"]
    (tmp_path / "a.tar").write_bytes(data.draw(damaged(make_tar(names, wav, form))))
    with safely():
        look(tmp_path / "a.tar")


FIELDS = {"name": (0, 100), "size": (124, 136), "checksum": (148, 156), "type": (156, 157), "magic": (257, 265)}


@SHARED
@given(data=st.data(), field=st.sampled_from([name for name in FIELDS if name != "checksum"]), number=st.integers(0, 2))
def test_a_tar_whose_checksums_are_right(safely, six_files, tmp_path, data, field, number):
    wav = (six_files / "utt1.wav").read_bytes()
    block = 512 * (1 + -(-len(wav) // 512))
    tar = bytearray(make_tar(["a.wav", "b.wav", "c.wav"], wav))
    first, last = FIELDS[field]
    sizes = [b"\xff" * 12, b"\x80" + b"\x7f" * 11, b"77777777777\0"]
    odd = st.sampled_from([*sizes, b"x", b"g", b"L", b"K", b"S", b"5", b"2"])
    value = data.draw(odd | st.binary(min_size=1, max_size=last - first))[: last - first]
    header = bytearray(tar[number * block : number * block + 512])
    header[first : first + len(value)] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    tar[number * block : number * block + 512] = header
    (tmp_path / "a.tar").write_bytes(tar)
    with safely():
        look(tmp_path / "a.tar")


@SHARED
@given(names=st.lists(NAMES, min_size=1, max_size=4))
def test_a_tar_of_any_names(safely, six_files, tmp_path, names):
    wav = (six_files / "utt1.wav").read_bytes()
    (tmp_path / "a.tar").write_bytes(make_tar([f"{name}.wav" for name in names], wav))
    with safely():
        look(tmp_path / "a.tar")
