from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiovq.data.kaldi import list_kaldi, read_kaldi, write_kaldi
from audiovq.data.listing import open_entries
from audiovq.data.manifest import Utterance
from audiovq.errors import ManifestError

RATE = 22050


@pytest.fixture
def audio(tmp_path) -> Path:
    """A file of three seconds."""
    path = tmp_path / "audio dir" / "a  b.wav"
    path.parent.mkdir()
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 3 * RATE), RATE)
    return path


def segment(name: str, path: Path, first: int, count: int, **known) -> Utterance:
    return Utterance(name, path, count / RATE, RATE, count, offset=first / RATE, **known)


def write_files(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_text(content)
    return folder


@pytest.mark.parametrize("text", [None, "Please call Stella."])
def test_what_is_written_is_read_back(tmp_path, audio, text):
    other = audio.with_name("b.wav")
    other.write_bytes(audio.read_bytes())
    utterances = [
        segment("s1-1", audio, 0, 3 * RATE, speaker="s1", text=text),
        segment("s1-2", audio, 12347, 1001, speaker="s1"),
        segment("s2-1", other, 3 * RATE - 1, 1),
    ]
    write_kaldi(tmp_path / "kaldi", reversed(utterances))
    assert read_kaldi(tmp_path / "kaldi") == utterances
    assert (tmp_path / "kaldi/text").exists() == (text is not None)


def test_files_are_sorted_as_kaldi_wants_them(tmp_path, audio):
    names = ["a-1", "a", "B", "ü", "a1", "Z", "a_1"]
    known = {"speaker": "s", "text": "hello"}
    write_kaldi(tmp_path / "kaldi", [segment(name, audio, i, 100, **known) for i, name in enumerate(names)])
    for file in ("wav.scp", "segments", "utt2spk", "text"):
        keys = [line.split()[0] for line in (tmp_path / "kaldi" / file).read_text().splitlines()]
        wanted = subprocess.run(
            ["sort"], input="\n".join(keys), text=True, env={"LC_ALL": "C"}, capture_output=True, check=True
        )
        assert keys == wanted.stdout.split()
    assert len(keys) == len(names)


def test_a_stale_text_file_does_not_survive(tmp_path, audio):
    write_kaldi(tmp_path / "kaldi", [segment("a", audio, 0, 100, text="old")])
    write_kaldi(tmp_path / "kaldi", [segment("b", audio, 0, 100)])
    assert [item.id for item in read_kaldi(tmp_path / "kaldi")] == ["b"]


def test_without_segments_an_utterance_is_a_whole_file(tmp_path, audio):
    folder = write_files(tmp_path / "k", wav_scp=f"u1  {audio}\r\n", utt2spk="u1\ts1\n", text="u1  a\u00a0b  c \n")
    assert read_kaldi(folder) == [segment("u1", audio, 0, 3 * RATE, speaker="s1", text="a\u00a0b  c")]


def test_files_are_looked_up_from_the_current_folder(tmp_path, audio, monkeypatch):
    monkeypatch.chdir(audio.parent)
    folder = write_files(tmp_path / "k", wav_scp=f"u1 {audio.name}\n")
    assert [item.path for item in read_kaldi(folder)] == [audio]


@pytest.mark.parametrize(("end", "seconds"), [("-1", 2.5), ("3.4", 2.5), ("3", 2.5), ("2.75", 2.25)])
def test_segments_may_end_with_their_file_or_a_little_later(tmp_path, audio, end, seconds):
    folder = write_files(tmp_path / "k", wav_scp=f"r {audio}\n", segments=f"u r 0.5 {end}\n")
    (item,) = read_kaldi(folder)
    assert item.offset == 0.5
    assert item.duration == pytest.approx(seconds, abs=1 / RATE)
    assert item.source().num_samples == item.num_samples


@pytest.mark.parametrize(("start", "end"), [("1", "3.6"), ("3.1", "-1"), ("1", "1.00001")])
def test_segments_outside_their_file_are_refused(tmp_path, audio, start, end):
    folder = write_files(tmp_path / "k", wav_scp=f"r {audio}\n", segments=f"u r {start} {end}\n")
    with pytest.raises(ManifestError, match=r"1 utterances cannot be used, the first of them u: .* lies outside"):
        read_kaldi(folder)


def test_a_pipe_is_refused_and_not_run(tmp_path):
    victim = tmp_path / "victim"
    folder = write_files(tmp_path / "k", wav_scp=f"ok a.wav\nu1 touch {victim}; cat a.wav |\n")
    with pytest.raises(ManifestError, match=r"wav\.scp:2: 'u1' is a pipe, and commands are not run"):
        read_kaldi(folder)
    assert not victim.exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"wav\.scp: cannot be read \(No such file"),
        ({"wav_scp": "a a.wav\n\nb b.wav\n"}, r"wav\.scp:2: is empty"),
        ({"wav_scp": "a\n"}, r"wav\.scp:1: expected 'RECORDING FILE', found 'a' alone"),
        ({"wav_scp": "a a.wav\nb b.wav\na c.wav\n"}, r"wav\.scp:3: 'a' stands in line 1 already"),
        ({"segments": "u a 0\n"}, r"segments:1: expected 'UTTERANCE RECORDING START END'"),
        ({"segments": "u a 0 1 2\n"}, r"segments:1: expected 'UTTERANCE RECORDING START END'"),
        ({"segments": "u a 0 x\n"}, r"segments:1: expected 'UTTERANCE RECORDING START END'"),
        ({"segments": "u a 0 1\nv c 0 1\n"}, r"segments:2: recording 'c' is missing in wav\.scp"),
        ({"segments": "u a 1 1\n"}, r"segments:1: expected 0 <= START < END, found 1 and 1"),
        ({"segments": "u a -1 1\n"}, r"segments:1: expected 0 <= START < END"),
        ({"segments": "u a nan -1\n"}, r"segments:1: expected 0 <= START < END"),
        ({"segments": "u a 0 inf\n"}, r"segments:1: expected 0 <= START < END"),
        ({"utt2spk": "a s\nb s\nc s\n"}, r"utt2spk:3: utterance 'c' is missing in wav\.scp"),
        ({"utt2spk": "a s\n"}, r"wav\.scp:2: utterance 'b' is missing in utt2spk"),
        ({"utt2spk": "a s\nb\n"}, r"utt2spk:2: expected 'UTTERANCE SPEAKER', found 'b '"),
        ({"utt2spk": "a s\nb s t\n"}, r"utt2spk:2: expected 'UTTERANCE SPEAKER', found 'b s t'"),
        ({"text": "a hello\n"}, r"wav\.scp:2: utterance 'b' is missing in text"),
        ({"segments": "u a 0 1\n", "text": "a hello\n"}, r"text:1: utterance 'a' is missing in segments"),
    ],
)
def test_a_malformed_folder_is_named_with_file_and_line(tmp_path, files, message):
    good = {"wav_scp": "a a.wav\nb b.wav\n"} if files else {}
    with pytest.raises(ManifestError, match=message):
        list_kaldi(write_files(tmp_path / "k", **{**good, **files}))


def test_text_that_is_not_utf8_is_named(tmp_path):
    folder = write_files(tmp_path / "k", wav_scp="a a.wav\n")
    (folder / "text").write_bytes(b"a gr\xfc\xdfe\n")
    with pytest.raises(ManifestError, match="text: is not UTF-8"):
        list_kaldi(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "a b"}, "id: 'a b' cannot stand in a Kaldi file"),
        ({"speaker": "John Doe"}, "speaker: 'John Doe' cannot stand in a Kaldi file"),
        ({"path": Path("/audio/run me |")}, "Kaldi cannot read a file named"),
        ({"path": Path("/audio/a\nb.wav")}, "Kaldi cannot read a file named"),
    ],
)
def test_what_kaldi_would_misread_is_not_written(tmp_path, audio, change, message):
    with pytest.raises(ManifestError, match=message):
        write_kaldi(tmp_path / "kaldi", [replace(segment("a", audio, 0, 100), **change)])
    assert not (tmp_path / "kaldi").exists()


def test_a_byte_order_mark_is_no_part_of_an_id(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 16000)
    tables = {"wav.scp": f"rec1 {tmp_path / 'a.wav'}\r\n", "utt2spk": "rec1 s1\r\n", "text": "rec1 hello\r\n"}
    for name, content in tables.items():
        (tmp_path / name).write_text(content, encoding="utf-8-sig", newline="")
    (item,) = read_kaldi(tmp_path)
    assert (item.id, item.speaker, item.text) == ("rec1", "s1", "hello")


def test_a_path_with_a_nul_is_listed_and_the_others_go_on(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 16000)
    (tmp_path / "wav.scp").write_text(f"a {tmp_path / 'a.wav'}\nb /x\0y.wav\n")
    utterances, left_out = open_entries(list_kaldi(tmp_path))
    assert [item.id for item in utterances] == ["a"]
    assert [(item.item, item.reason) for item in left_out] == [("b", "unusable audio")]


def test_an_endless_line_is_refused(tmp_path):
    (tmp_path / "wav.scp").write_text("a " + "x" * 2**21)
    with pytest.raises(ManifestError, match=r"wav\.scp:1: is longer than 1048576 characters"):
        list_kaldi(tmp_path)
