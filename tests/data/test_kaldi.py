from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiovq.data.kaldi import list_kaldi
from audiovq.data.listing import open_entries
from audiovq.data.manifest import Utterance
from audiovq.errors import AudioError, ManifestError

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


def read_kaldi(folder: Path) -> list[Utterance]:
    """The utterances, their audio opened."""
    return [entry.open() for entry in list_kaldi(folder)]


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
    with pytest.raises(AudioError, match="lies outside"):
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
