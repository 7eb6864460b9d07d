"""What can be tokenized: manifests, folders, Kaldi data folders, tars."""

from __future__ import annotations

import errno
import gzip
import io
import os
import tarfile
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audiovq.audio.files import load_audio
from audiovq.data.items import Item
from audiovq.data.sources import list_items, with_seconds
from audiovq.errors import AudioError, ManifestError

COMPRESSED = "a compressed tar cannot be read in place, unpack it to a plain one"


def write(path: Path, seconds: float = 0.3, rate: int = 16000, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(str(path))).uniform(-0.5, 0.5, round(seconds * rate))
    soundfile.write(path, noise, rate, **options)
    return path


def make_tar(path: Path, members: Mapping[str, Path | bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else content.read_bytes()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def names(*inputs: Path) -> list[str]:
    return [item.id for item in list_items(list(inputs))]


def test_a_manifest_lists_what_it_says(utterances, manifest):
    items = list(list_items([manifest]))
    assert [(item.id, item.path, item.speaker) for item in items] == [
        (utterance.id, str(utterance.path), utterance.speaker) for utterance in utterances
    ]
    for item, utterance in zip(items, utterances, strict=True):
        assert item.seconds == utterance.duration
        assert torch.equal(item.open().read(16000), utterance.source().read(16000))


def test_a_file_that_is_no_longer_what_the_manifest_says_is_refused_when_it_is_opened(tmp_path, utterances):
    write(tmp_path / "a.wav", 0.5)
    (item,) = list_items([tmp_path])
    listed = Item("a", item.path, seconds=0.7, sample_rate=16000, num_samples=11200)
    with pytest.raises(AudioError, match="has the file been replaced"):
        listed.open()


def test_a_folder_is_listed_by_relative_names_with_its_tars(tmp_path):
    write(tmp_path / "b" / "two words.flac")
    write(tmp_path / "a.wav", 0.25)
    inside = write(tmp_path / "elsewhere" / "x.wav", 0.1)
    make_tar(tmp_path / "c.tar", {"june/first.wav": inside})
    inside.unlink()
    (tmp_path / ".hidden.wav").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no audio")
    items = list(with_seconds(list_items([tmp_path])))
    assert [(item.id, item.seconds) for item in items] == [("a", 0.25), ("b_two_words", 0.3), ("june_first", 0.1)]


def test_kaldi_folders_are_listed_with_their_segments(tmp_path):
    wav = write(tmp_path / "wavs" / "long.wav", 2.0)
    data = tmp_path / "kaldi"
    data.mkdir()
    (data / "wav.scp").write_text(f"rec {wav}\n")
    (data / "segments").write_text("utt-1 rec 0.5 1.0\nutt-2 rec 1.0 2.0\n")
    (data / "utt2spk").write_text("utt-1 june\nutt-2 carlo\n")
    whole, _ = load_audio(wav)
    for given in (data, data / "wav.scp"):
        items = list(list_items([given]))
        assert [(item.id, item.speaker, item.seconds) for item in items] == [
            ("utt-1", "june", 0.5),
            ("utt-2", "carlo", 1.0),
        ]
        assert torch.equal(items[0].open().read(), whole[:, 8000:16000])
        assert torch.equal(items[1].open().read(), whole[:, 16000:])


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_audio_in_a_tar_is_read_in_place(tmp_path, name):
    first, second = write(tmp_path / "first" / name, 0.3), write(tmp_path / "second" / name, 0.7, 44100)
    suffix = first.suffix
    members = {f"k1{suffix}": first, "k1.json": b"{}", f"dir/k2{suffix}": second, f"k3{suffix}": b"no audio"}
    tar = make_tar(tmp_path / "speech.tar", members)
    items = list(list_items([tar]))
    assert [item.id for item in items] == ["k1", "dir_k2", "k3"]
    assert items[1].name == f"tar://dir/k2{suffix}::{tar}"
    for item, path in zip(items, (first, second), strict=False):
        assert torch.equal(item.open().read(16000), load_audio(path, 16000)[0])
        blocks = list(item.open().blocks(16000, 999))
        assert torch.equal(torch.cat(blocks, -1), load_audio(path, 16000)[0])
    with pytest.raises(AudioError, match="is no audio that libsndfile reads"):
        items[2].open()


def test_a_truncated_or_empty_member_of_a_tar_is_told(tmp_path):
    wav = write(tmp_path / "a.wav", 1.0)
    tar = make_tar(tmp_path / "speech.tar", {"cut.wav": wav.read_bytes()[:8000], "empty.wav": b"", "good.wav": wav})
    cut, empty, good = list_items([tar])
    with pytest.raises(AudioError, match="is truncated"):
        cut.open()
    with pytest.raises(AudioError, match="is empty"):
        empty.open()
    assert torch.equal(good.open().read(), load_audio(wav)[0])


def test_inputs_are_listed_one_after_the_other_and_patterns_are_expanded(tmp_path, manifest):
    one, two = write(tmp_path / "x" / "one.wav"), write(tmp_path / "y" / "two.wav")
    make_tar(tmp_path / "shard-1.tar", {"t1.wav": one})
    make_tar(tmp_path / "shard-0.tar", {"t0.wav": two})
    assert names(tmp_path / "y", tmp_path / "x", tmp_path / "shard-*.tar") == ["two", "one", "t0", "t1"]
    assert names(manifest, tmp_path / "x")[-1] == "one"


def test_two_files_under_one_id_are_refused(tmp_path):
    one, two = write(tmp_path / "x" / "a.wav"), write(tmp_path / "y" / "a.flac")
    with pytest.raises(ManifestError, match=rf"{two} and {one} would share the id 'a'"):
        names(tmp_path / "x", tmp_path / "y")
    write(tmp_path / "x" / "a.flac")
    with pytest.raises(ManifestError, match="would share the id 'a'"):
        names(tmp_path / "x")


def test_an_utterance_that_is_listed_twice_is_refused(tmp_path, manifest):
    write(tmp_path / "x" / "a.wav")
    with pytest.raises(ManifestError, match=r"a\.wav: the id 'a' is listed twice"):
        names(tmp_path / "x", tmp_path / "x")
    lines = manifest.read_text()
    manifest.write_text(lines + lines.splitlines()[2] + "\n")
    with pytest.raises(ManifestError, match=r"data\.jsonl:7: id: 'utt2' stands in line 3 already"):
        names(manifest)


@pytest.mark.parametrize("bad", ["../up", "a/b", "..", ".hidden", "", "a\\b"])
def test_unsafe_ids_are_refused(manifest, bad):
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join([*lines[:3], lines[3].replace('"utt3"', repr(bad).replace("'", '"'))]) + "\n")
    with pytest.raises(ManifestError, match=r"data\.jsonl:4: id: "):
        names(manifest)


@pytest.mark.parametrize("name", ["../a.wav", "/abs/a.wav", "x/../../a.wav"])
def test_a_tar_cannot_name_files_outside(tmp_path, name):
    tar = make_tar(tmp_path / "speech.tar", {name: b"x"})
    (found,) = problems(tar).values()
    assert found == f"tar://{name}::{tar}: lies outside the tar by its name; rename it"


def problems(folder: Path) -> dict[str, str]:
    """Why each item of a folder or tar cannot be used, by its id; those that can are left out."""
    found = {}
    for item in list_items([folder]):
        try:
            item.open()
        except AudioError as error:
            found[item.id] = str(error)
    text = "".join(found.values())
    assert "\n" not in text
    assert text.encode().decode() == text
    return found


def test_names_that_are_no_ids_are_listed_and_the_others_go_on(tmp_path):
    write(tmp_path / "good.wav")
    for name in (b"b\xff.wav", b"d\xfe/a.wav", b"back\\slash.wav", b"x" * 120 + b"/" + b"y" * 120 + b".wav"):
        path = tmp_path / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((tmp_path / "good.wav").read_bytes())
    found = problems(tmp_path)
    assert len(found) == 4
    assert "good" not in found
    reasons = " ".join(found.values())
    assert reasons.count("rename it") == 4
    assert "b\\udcff.wav" in reasons
    for item in list_items([tmp_path]):
        (item.id + item.path).encode()


def test_links_and_holes_in_a_tar_are_listed_and_the_others_go_on(tmp_path):
    wav = write(tmp_path / "a.wav").read_bytes()
    with tarfile.open(tmp_path / "speech.tar", "w") as tar:
        for name, kind in {"s.wav": tarfile.SYMTYPE, "h.wav": tarfile.LNKTYPE, "f.wav": tarfile.FIFOTYPE}.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "good.wav"
            tar.addfile(member)
        for name in ("good.wav", "b\udcff.wav"):
            member = tarfile.TarInfo(name)
            member.size = len(wav)
            tar.addfile(member, io.BytesIO(wav))
        folder = tarfile.TarInfo("folder.wav")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    found = problems(tmp_path / "speech.tar")
    assert {name.partition("~")[0] for name in found} == {"s", "h", "f", "b_udcff"}
    assert "is a link in the tar, to 'good.wav'" in found["s"]
    assert "is no plain file" in found["f"]


def raw_header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    """A tar header with any bytes for the size."""
    info = tarfile.TarInfo(name)
    data = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    data[124:136], data[156:157] = size, kind
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


NEGATIVE = b"\xff" * 11 + b"\x00"
HUGE = b"\x80" + b"\0" * 3 + b"\x7f" + b"\xff" * 7


@pytest.mark.parametrize(
    "content",
    [
        raw_header("a.wav", NEGATIVE),
        raw_header("a.txt", NEGATIVE),
        raw_header("long", NEGATIVE, b"L"),
        raw_header("long", HUGE, b"L"),
        raw_header("long", HUGE, b"x"),
        raw_header("a.txt", HUGE),
        raw_header("long", b"00000000002\0", b"L") * 600,
    ],
)
def test_a_tar_with_impossible_headers_is_one_error(tmp_path, content):
    (tmp_path / "bad.tar").write_bytes(content + bytes(10240))
    tracemalloc.start()
    (found,) = problems(tmp_path / "bad.tar").values()
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    assert found.startswith(f"{tmp_path / 'bad.tar'}: is no tar or is damaged (")


@pytest.mark.parametrize("map_text", ["1\n0\n10\n", "99999\n", "x" * 600])
def test_a_sparse_member_of_a_tar_is_told(tmp_path, map_text):
    with tarfile.open(tmp_path / "sparse.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("a.wav")
        data = map_text.encode().ljust(1024, b"\0")
        member.size = len(data)
        member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a.wav"}
        tar.addfile(member, io.BytesIO(data))
    (found,) = problems(tmp_path / "sparse.tar").values()
    assert "is no plain file in the tar" in found or "is no tar or is damaged" in found


def test_a_pipe_in_the_place_of_a_tar_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    (found,) = problems(tmp_path).values()
    assert found == f"{tmp_path / 'a.tar'}: is no tar or is damaged (it is a folder, pipe or device); {COMPRESSED}"


def good_tar(path: Path, count: int = 3) -> bytes:
    wav = write(path.with_suffix(".wav"), 0.1)
    data = make_tar(path, {f"{path.stem}-{number}.wav": wav for number in range(count)}).read_bytes()
    wav.unlink()
    path.unlink()
    return data


@pytest.mark.parametrize(
    ("damage", "reason", "listed"),
    [
        (lambda data: data[:4096] + b"x" * 512 + data[4608:], "something that is no member begins in the MiB from", 1),
        (lambda data: data[:5000], "unexpected end of data", 2),
        (lambda data: data[:4096], "its end is missing", 1),
        (lambda data: data[:4096] + raw_header("a.txt", NEGATIVE) + data[4608:], "a member has -", 1),
        (lambda data: data + data, "something that is no member begins in the MiB from", 3),
        (lambda data: data[:4300], "its end is missing", 1),
    ],
)
def test_of_a_damaged_tar_the_sound_part_and_the_damage_are_listed_and_the_others_go_on(
    tmp_path, damage, reason, listed
):
    (tmp_path / "a.tar").write_bytes(damage(good_tar(tmp_path / "a.tar")))
    (tmp_path / "b.tar").write_bytes(good_tar(tmp_path / "b.tar"))
    items = list(list_items([tmp_path]))
    assert [item.id for item in items if "~" not in item.id] == [
        *(f"a-{number}" for number in range(listed)),
        *(f"b-{number}" for number in range(3)),
    ]
    (told,) = [problem for utt_id, problem in problems(tmp_path).items() if "~" in utt_id]
    assert told.startswith(f"{tmp_path / 'a.tar'}: is no tar or is damaged (")
    assert reason in told


@pytest.mark.parametrize("name", ["a.tar.gz", "a.TGZ", "a.tar.zst", "a.TAR"])
def test_a_tar_that_cannot_be_read_in_place_is_listed(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(good_tar(tmp_path / "x.tar")))
    (found,) = problems(tmp_path).values()
    assert found.endswith(COMPRESSED)


def test_two_damaged_tars_of_one_name_are_two(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.tar").write_bytes(b"no tar")
    assert len(problems(tmp_path)) == 2


def test_a_link_to_a_tar_that_is_gone_is_listed(tmp_path):
    (tmp_path / "a.tar").symlink_to("nowhere")
    expected = [f"{tmp_path / 'a.tar'}: cannot be read (No such file or directory)"]
    assert list(problems(tmp_path).values()) == expected
    make_tar(tmp_path / "b.tar", {"x.wav": write(tmp_path / "x.wav")})
    listed = list(list_items([tmp_path / "*.tar"]))
    assert [item.problem for item in listed if item.problem] == [expected[0].partition(": ")[2]]
    assert [item.id for item in listed if not item.problem] == ["x"]


def test_a_failure_of_the_machine_is_no_damage_of_a_tar(tmp_path, monkeypatch):
    (tmp_path / "a.tar").write_bytes(good_tar(tmp_path / "a.tar"))

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("audiovq.data.tars._Headers.read", fail)
    with pytest.raises(OSError, match="Input/output error"):
        names(tmp_path)


def test_a_failure_of_the_machine_is_no_length(tmp_path, monkeypatch):
    write(tmp_path / "a.wav")
    (item,) = list_items([tmp_path])

    def fail(*args, **kwargs):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(OSError, match="Too many open files"):
        list(with_seconds([item]))


def test_inputs_that_cannot_be_used(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "none.jsonl").write_text("")
    for name in ("gone", "gone.tar", "gone.jsonl"):
        (tmp_path / name).symlink_to("nowhere")
    for name, message in {
        "gone": "no such file or folder",
        "gone.tar": "no such file or folder",
        "gone.jsonl": "no such file or folder",
        "gone*": "expected a manifest",
        "empty": "holds no utterances",
        "missing": "no such file or folder",
        "missing-*.tar": "no such file or folder",
        "notes.txt": "expected a manifest",
        "none.jsonl": "holds no utterances",
    }.items():
        with pytest.raises(ManifestError, match=message):
            names(tmp_path / name)


def test_a_file_that_cannot_be_opened_is_listed_for_later(tmp_path):
    (tmp_path / "bad.wav").write_text("no audio")
    (item,) = with_seconds(list_items([tmp_path]))
    assert (item.id, item.seconds) == ("bad", 0.0)
