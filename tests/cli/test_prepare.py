from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiovq.cli.prepare import Corpus
from audiovq.data import prepare
from audiovq.data.corpora import CORPORA
from audiovq.data.manifest import read_manifest
from audiovq.files import remove_stale_partials, write_json

SPLITS = ("train", "dev", "test")


def make_corpus(root: Path, speakers: int, utterances: int, seconds: float = 0.1) -> Path:
    for speaker in range(speakers):
        for number in range(utterances):
            path = root / f"s{speaker}" / f"{number}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, np.zeros(round(seconds * 8000)), 8000)
    return root


def read_splits(data: Path) -> dict[str, list]:
    return {split: read_manifest(path) for split in SPLITS if (path := data / f"{split}.jsonl.gz").exists()}


def test_writes_disjoint_manifests_and_a_summary(tmp_path, run):
    corpus, data = make_corpus(tmp_path / "corpus", speakers=5, utterances=4), tmp_path / "data"
    soundfile.write(corpus / "s0/0.wav", np.zeros(1600), 16000)
    code, out, err = run("prepare", "folder", corpus, "-o", data, "--speaker-pattern", "{speaker}/")
    assert (code, err) == (0, "")

    splits = read_splits(data)
    assert {split: len(items) for split, items in splits.items()} == {"train": 12, "dev": 4, "test": 4}
    assert all(item.split == split for split, items in splits.items() for item in items)
    assert len({item.speaker for items in splits.values() for item in items}) == 5
    assert sum(len({item.speaker for item in items}) for items in splits.values()) == 5

    summary = json.loads((data / "summary.json").read_text())
    assert summary["split_by"] == "speaker"
    assert summary["sample_rates"] == {"8000": 19, "16000": 1}
    assert summary["splits"]["train"] == {"utterances": 12, "speakers": 3, "hours": round(1.2 / 3600, 4)}
    assert summary["left_out"] == {}
    assert not (data / "left_out.jsonl").exists()
    assert [line.split()[:3] for line in out.splitlines()[1:4]] == [
        ["train", "12", "3"],
        ["dev", "4", "1"],
        ["test", "4", "1"],
    ]
    assert "8000 Hz (19), 16000 Hz (1)" in out


def test_the_same_corpus_gives_the_same_bytes(tmp_path, run):
    corpus = make_corpus(tmp_path / "corpus", speakers=3, utterances=3)
    for data in ("one", "two"):
        assert run("prepare", "folder", corpus, "-o", tmp_path / data)[0] == 0
    assert (tmp_path / "one/train.jsonl.gz").read_bytes() == (tmp_path / "two/train.jsonl.gz").read_bytes()


def test_what_is_left_out_is_counted_and_listed(tmp_path, run):
    corpus, data = make_corpus(tmp_path / "corpus", speakers=1, utterances=6), tmp_path / "data"
    (corpus / "s0/5.wav").write_bytes(b"text")
    soundfile.write(corpus / "s0/4.wav", np.zeros(100), 8000)
    soundfile.write(corpus / "s0/3.wav", np.zeros(8000), 8000)
    soundfile.write(corpus / "s0/2.flac", np.zeros(800), 8000)
    code, out, _ = run("prepare", "folder", corpus, "-o", data, "--min-seconds", 0.05, "--max-seconds", 0.5)
    assert code == 0
    assert sum(map(len, read_splits(data).values())) == 3
    counts = {"id occurs twice": 1, "unusable audio": 1, "shorter than 0.05 s": 1, "longer than 0.5 s": 1}
    assert json.loads((data / "summary.json").read_text())["left_out"] == counts
    lines = [json.loads(line) for line in (data / "left_out.jsonl").read_text().splitlines()]
    assert [(line["item"], line["reason"]) for line in lines] == [
        ("s0_2", "id occurs twice"),
        ("s0_5", "unusable audio"),
        ("s0_3", "longer than 0.5 s"),
        ("s0_4", "shorter than 0.05 s"),
    ]
    assert all(f"1 {reason}" in out for reason in counts)


@pytest.mark.parametrize(("count", "written"), [(1, ["train"]), (2, ["train", "dev"]), (3, ["train", "dev", "test"])])
def test_a_tiny_corpus_gets_the_splits_it_can_fill_and_hears_about_the_others(tmp_path, run, count, written):
    data = tmp_path / "data"
    code, out, _ = run("prepare", "folder", make_corpus(tmp_path / "corpus", speakers=1, utterances=count), "-o", data)
    assert code == 0
    assert list(read_splits(data)) == written
    assert list(json.loads((data / "summary.json").read_text())["splits"]) == written
    for split in SPLITS:
        assert (f"no {split}.jsonl.gz" in out) == (split not in written)
    assert ("data.valid" in out) == ("dev" not in written)


def test_librispeech_keeps_its_own_splits(tmp_path, run):
    for name in (
        "train-clean-100/1/1/1-1-1",
        "dev-clean/2/1/2-1-1",
        "dev-other/3/1/3-1-1",
        "test-clean/4/1/4-1-1",
    ):
        path = tmp_path / "corpus" / f"{name}.flac"
        path.parent.mkdir(parents=True)
        soundfile.write(path, np.zeros(800), 16000)
    assert run("prepare", "librispeech", tmp_path / "corpus", "-o", tmp_path / "data")[0] == 0
    found = {split: [item.id for item in items] for split, items in read_splits(tmp_path / "data").items()}
    assert found == {"train": ["1-1-1"], "dev": ["2-1-1", "3-1-1"], "test": ["4-1-1"]}


def test_vctk_summary_knows_the_speakers_that_are_kept(tmp_path, run):
    for speaker in ("p225", "p226", "p227"):
        path = tmp_path / f"corpus/wav48/{speaker}/{speaker}_001.wav"
        path.parent.mkdir(parents=True)
        soundfile.write(path, np.zeros(800), 48000)
    (tmp_path / "corpus/speaker-info.txt").write_text("ID AGE GENDER\n225 23 F English\n300 23 F American\n")
    assert run("prepare", "vctk", tmp_path / "corpus", "-o", tmp_path / "data")[0] == 0
    summary = json.loads((tmp_path / "data/summary.json").read_text())
    assert summary["speakers"] == {"p225": {"age": 23, "gender": "F", "accent": "English"}}
    assert [values["speakers"] for values in summary["splits"].values()] == [1, 1, 1]


def test_kaldi_folders_are_prepared_with_their_segments(tmp_path, run):
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 8000)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/wav.scp").write_text(f"r {tmp_path / 'a.wav'}\n")
    (tmp_path / "corpus/segments").write_text("u1 r 0 0.25\nu2 r 0.25 0.5\nu3 r 0.5 1\nu4 r 0.5 2\n")
    assert run("prepare", "kaldi", tmp_path / "corpus", "-o", tmp_path / "data")[0] == 0
    items = [item for part in read_splits(tmp_path / "data").values() for item in part]
    assert {item.id: (item.offset, item.duration) for item in items} == {
        "u1": (0, 0.25),
        "u2": (0.25, 0.25),
        "u3": (0.5, 0.5),
    }
    assert json.loads((tmp_path / "data/left_out.jsonl").read_text())["item"] == "u4"


def test_an_earlier_run_is_kept_without_force_and_wholly_replaced_with_it(tmp_path, run):
    large = make_corpus(tmp_path / "large", speakers=1, utterances=3)
    small = make_corpus(tmp_path / "small", speakers=1, utterances=1)
    (large / "bad.wav").write_bytes(b"")
    data = tmp_path / "data"
    assert run("prepare", "folder", large, "-o", data)[0] == 0
    before = {path.name: path.read_bytes() for path in data.iterdir()}
    assert set(before) == {
        "train.jsonl.gz",
        "dev.jsonl.gz",
        "test.jsonl.gz",
        "left_out.jsonl",
        "summary.json",
    }

    code, _, err = run("prepare", "folder", small, "-o", data)
    assert code == 2
    assert "exists already" in err
    assert {path.name: path.read_bytes() for path in data.iterdir()} == before

    assert run("prepare", "folder", small, "-o", data, "--force")[0] == 0
    assert {path.name for path in data.iterdir()} == {"train.jsonl.gz", "summary.json"}


def test_a_run_that_came_meanwhile_stays(tmp_path, run, monkeypatch):
    corpus, data = make_corpus(tmp_path / "corpus", speakers=1, utterances=3), tmp_path / "data"
    look = prepare.open_entries

    def look_late(entries):
        monkeypatch.setattr(prepare, "open_entries", look)
        assert run("prepare", "folder", corpus, "-o", data, "--dev", "0")[0] == 0
        return look(entries)

    monkeypatch.setattr(prepare, "open_entries", look_late)
    code, _, err = run("prepare", "folder", corpus, "-o", data)
    assert (code, "exists already" in err) == (2, True)
    assert {path.name for path in data.iterdir()} == {"train.jsonl.gz", "test.jsonl.gz", "summary.json"}


def test_what_a_killed_run_left_goes_and_what_another_run_writes_stays(tmp_path, run, monkeypatch):
    corpus = make_corpus(tmp_path / "corpus", speakers=1, utterances=1)
    data, left = tmp_path / "data", tmp_path / "left"

    def keep(path, content):
        """What is there when a run is killed before it writes its summary."""
        remove_stale_partials(data)  # As another run does that comes meanwhile.
        shutil.copytree(data, left)
        write_json(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("audiovq.data.prepare.write_json", keep)
        assert run("prepare", "folder", corpus, "-o", data)[0] == 0
    assert [path.name for path in left.rglob("*.gz")] == ["train.jsonl.gz"]
    assert run("prepare", "folder", corpus, "-o", left)[0] == 0
    for folder in (data, left):
        assert {path.name for path in folder.iterdir()} == {"train.jsonl.gz", "summary.json"}


def test_a_second_recording_of_one_name_in_vctk_is_listed(tmp_path, run):
    for folder in ("p225", "p226"):
        path = tmp_path / "VCTK/wav48" / folder / "p225_001.wav"
        path.parent.mkdir(parents=True)
        soundfile.write(path, np.zeros(800), 8000)
    assert run("prepare", "vctk", tmp_path / "VCTK", "-o", tmp_path / "data")[0] == 0
    (listed,) = map(json.loads, (tmp_path / "data/left_out.jsonl").read_text().splitlines())
    assert (listed["item"], listed["reason"]) == ("p225_001", "id occurs twice")
    assert listed["detail"].startswith(str(path))


def test_force_removes_only_what_prepare_has_written(tmp_path, run):
    corpus, data = make_corpus(tmp_path / "corpus", speakers=1, utterances=3), tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl.gz").write_bytes(b"mine")
    code, _, err = run("prepare", "folder", corpus, "-o", data, "--force")
    assert (code, err.count("\n")) == (2, 1)
    assert "train.jsonl.gz may not all be what prepare has written" in err
    assert (data / "train.jsonl.gz").read_bytes() == b"mine"

    (data / "train.jsonl.gz").unlink()
    (data / "notes.txt").write_text("mine")
    assert run("prepare", "folder", corpus, "-o", data)[0] == 0
    (data / "dev.jsonl.gz").write_bytes(b"edited")
    assert run("prepare", "folder", corpus, "-o", data, "--force")[0] == 2
    assert (data / "dev.jsonl.gz").read_bytes() == b"edited"

    (data / "dev.jsonl.gz").unlink()
    assert run("prepare", "folder", corpus, "-o", data, "--force")[0] == 0
    assert set(read_splits(data)) == set(SPLITS)
    assert (data / "notes.txt").read_text() == "mine"


def test_a_failure_while_writing_leaves_nothing_half(tmp_path, run, monkeypatch):
    corpus, data = make_corpus(tmp_path / "corpus", speakers=1, utterances=3), tmp_path / "data"
    assert run("prepare", "folder", corpus, "-o", data)[0] == 0
    before = {path.name: path.read_bytes() for path in data.iterdir()}

    def fail(*_):
        raise OSError(28, "No space left on device", "summary.json")

    monkeypatch.setattr("audiovq.data.prepare.write_json", fail)
    assert run("prepare", "folder", corpus, "-o", data, "--force", "--min-seconds", 0.01)[0] == 2
    assert {path.name: path.read_bytes() for path in data.iterdir()} == before


def test_manifests_name_audio_below_them_relatively(tmp_path, run):
    corpus = make_corpus(tmp_path / "data" / "wavs", speakers=1, utterances=3)
    assert run("prepare", "folder", corpus, "-o", tmp_path / "data")[0] == 0
    text = gzip.decompress((tmp_path / "data" / "train.jsonl.gz").read_bytes()).decode()
    assert json.loads(text)["path"].startswith("wavs/s0/")


def test_links_tars_and_names_that_no_manifest_can_hold_are_listed(tmp_path, run):
    corpus, data = make_corpus(tmp_path / "corpus", speakers=1, utterances=3), tmp_path / "data"
    (corpus / "gone.wav").symlink_to("nowhere.wav")
    (corpus / "speech.tar").touch()
    os.mkfifo(corpus / "pipe.wav")
    (corpus / "voice.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(500))
    Path(os.fsdecode(os.fsencode(corpus) + b"/b\xff.wav")).write_bytes((corpus / "s0/0.wav").read_bytes())
    assert run("prepare", "folder", corpus, "-o", data)[0] == 0
    lines = [json.loads(line) for line in (data / "left_out.jsonl").read_text().split("\n") if line]
    assert {line["item"]: line["reason"] for line in lines} == {
        "gone": "unusable audio",
        "pipe": "unusable audio",
        "voice": "unusable audio",
        "speech.tar": "a tar",
        "b\\udcff": "unusable file name",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["folder", "none"], "none: is not a folder"),
        (["folder", "corpus/s0/0.wav"], "0.wav: is not a folder"),
        (["folder", "empty"], "no audio files in it"),
        (["folder", "bad"], "no usable audio. 2 left out, 2 of them: unusable audio, such as"),
        (
            ["folder", "corpus", "--min-seconds", "5"],
            "no usable audio. 4 left out, 4 of them: shorter than 5 s",
        ),
        (["folder", "corpus", "--speaker-pattern", "x/{speaker}/"], "path does not fit the speaker pattern"),
        (["folder", "corpus", "--speaker-pattern", "{speaker}"], "followed by the character that ends it"),
        (["folder", "corpus", "--split-by", "speaker"], "utterance 's0_0' has none; split by utterance"),
        (["folder", "corpus", "--dev", "0.5", "--test", "0.5"], "a sum below 1"),
        (["vctk", "corpus"], "is no VCTK"),
        (["vctk", "corpus", "--speaker-pattern", "{speaker}/"], "a speaker pattern is for 'folder' alone"),
        (["kaldi", "corpus"], "wav.scp: cannot be read"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(tmp_path, run, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    make_corpus(tmp_path / "corpus", speakers=1, utterances=4)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    for name in ("a.wav", "b.flac"):
        (tmp_path / "bad" / name).write_bytes(b"text")
    code, out, err = run("prepare", *arguments, "-o", "data")
    assert (code, out) == (2, "")
    assert err.startswith("audiovq: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "data").exists()


def test_a_folder_that_cannot_be_listed_is_one_line(tmp_path, run, monkeypatch):
    (tmp_path / "corpus").mkdir()

    def deny(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", deny)
    code, _, err = run("prepare", "librispeech", tmp_path / "corpus", "-o", tmp_path / "data" / "new")
    assert (code, err) == (2, f"audiovq: {tmp_path / 'corpus'}: cannot be read (Permission denied)\n")


def test_torch_is_not_needed(tmp_path):
    """In a process of its own, since this one has imported torch long ago."""
    code = """
import sys
from audiovq.cli import app
app(["prepare", "folder", *sys.argv[1:]], standalone_mode=False)
assert "torch" not in sys.modules
"""
    command = [sys.executable, "-c", code, make_corpus(tmp_path / "corpus", 1, 3), "-o", tmp_path / "data"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data/train.jsonl.gz").exists()


def test_the_command_line_offers_every_corpus():
    assert [corpus.value for corpus in Corpus] == list(CORPORA)


def test_names_reach_the_terminal_as_letters(tmp_path, run):
    data = tmp_path / "da\x1b[31mta\n"
    corpus = make_corpus(tmp_path / "corpus", speakers=1, utterances=2)
    (corpus / "s0/1.wav").write_bytes(b"text")
    code, out, err = run("prepare", "folder", corpus, "-o", data)
    assert (code, err) == (0, "")
    assert f"left out, listed in {tmp_path}/da\\x1b[31mta\\n/left_out.jsonl:\n" in out
    assert "\x1b" not in out
