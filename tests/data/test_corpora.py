from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiovq.data.corpora import compile_speaker_pattern, folder, librispeech, ljspeech, vctk
from audiovq.data.listing import Entry, LeftOut, open_entries
from audiovq.errors import AudioError, ManifestError

NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, 1600)


def write_files(root: Path, *names: str) -> Path:
    """A tree of audio files with 0.1 s of noise each."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / name, NOISE, 16000)
    return root


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def ids(entries: list[Entry]) -> list[str]:
    return [entry.id for entry in entries]


# --- folder -----------------------------------------------------------------------------------------------


def test_folder_takes_every_audio_file_and_nothing_else(tmp_path):
    write_files(tmp_path, "x.wav", "a/b c/y.FLAC", "a/z.ogg", ".hidden/h.wav", "a/.h.wav")
    write_text(tmp_path / "a/readme.txt", "no audio")
    listing = folder(tmp_path)
    assert ids(listing.entries) == ["a_b_c_y", "a_z", "x"]
    assert [entry.path for entry in listing.entries] == [tmp_path / n for n in ("a/b c/y.FLAC", "a/z.ogg", "x.wav")]
    assert {entry.speaker for entry in listing.entries} == {None}
    assert not listing.left_out


@pytest.mark.parametrize(
    ("pattern", "path", "speaker"),
    [
        ("{speaker}/", "s1/a/b.wav", "s1"),
        ("{speaker}/", "b.wav", None),
        ("*/{speaker}/", "train/s1/b.wav", "s1"),
        ("*/{speaker}/", "train/x/s1/b.wav", "x"),
        ("*/{speaker}/", "s1/b.wav", None),
        ("{speaker}_", "p225_001_mic1.wav", "p225"),
        ("*/{speaker}-", "a/s1-2-3.wav", "s1"),
        ("wav.*/{speaker}/", "wav.48/s1/b.wav", "s1"),
        ("wav.*/{speaker}/", "wavx48/s1/b.wav", None),
        ("{speaker}.wav", "s1.wav", "s1"),
        ("{speaker}_*/", "s1_en/b.wav", "s1"),
    ],
)
def test_speaker_patterns(pattern, path, speaker):
    match = compile_speaker_pattern(pattern).match(path)
    assert (match["speaker"] if match else None) == speaker


@pytest.mark.parametrize(
    "pattern", ["", "*/", "{speaker}", "*/{speaker}", "{speaker}*", "{speaker}*/", "{speaker}/{speaker}/"]
)
def test_speaker_patterns_without_an_end_are_refused(pattern):
    with pytest.raises(ManifestError, match=r"expected \{speaker\} once, followed by the character that ends it"):
        compile_speaker_pattern(pattern)


def test_folder_leaves_out_what_does_not_fit_the_speaker_pattern(tmp_path):
    listing = folder(write_files(tmp_path, "s1/a.wav", "b.wav"), "{speaker}/")
    assert [(entry.id, entry.speaker) for entry in listing.entries] == [("s1_a", "s1")]
    assert listing.left_out == [LeftOut("b.wav", "path does not fit the speaker pattern", "{speaker}/")]


def test_folder_without_audio_says_what_was_looked_for(tmp_path):
    write_text(tmp_path / "a.txt", "")
    with pytest.raises(ManifestError, match=r"no audio files in it \(looked for .*\.wav"):
        folder(tmp_path)


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(AudioError, match="none: is not a folder"):
        folder(tmp_path / "none")


# --- VCTK -------------------------------------------------------------------------------------------------


@pytest.fixture
def vctk_092(tmp_path) -> Path:
    """The traps: p280 and p315 lack microphone 2, p315 lacks texts, p362 lacks audio; s5 is a speaker too."""
    wavs = "wav48_silence_trimmed"
    write_files(tmp_path, *(f"{wavs}/p225/p225_00{i}_mic{m}.flac" for i in (1, 2) for m in (1, 2)))
    write_files(tmp_path, f"{wavs}/p280/p280_001_mic1.flac", f"{wavs}/p315/p315_001_mic1.flac")
    write_files(tmp_path, f"{wavs}/p362/p362_001_mic1.flac", f"{wavs}/p362/p362_002_mic2.flac")
    write_files(tmp_path, f"{wavs}/s5/s5_001_mic1.flac", f"{wavs}/s5/s5_001_mic2.flac")
    write_text(tmp_path / wavs / "log.txt", "speaker p225")
    for name in ("p225_001", "p225_002", "p280_001", "p362_001", "p362_002", "p362_003", "s5_001"):
        write_text(tmp_path / "txt" / name.partition("_")[0] / f"{name}.txt", f"Text of {name}.\n")
    write_text(
        tmp_path / "speaker-info.txt",
        "ID  AGE  GENDER  ACCENTS  REGION COMMENTS \n"
        "p225  23  F    English    Southern  England\n"
        "p280  25  F    Unknown    France (mic2 files unavailable)\n"
        "p315  18  M    American    New England (Text and mic2 files unavailable)\n"
        "p362  29  F    American\n"
        "p376  22  M    Indian\n"
        "\n"
        "s5  24  M  (no accent)\n",
    )
    return tmp_path


def test_vctk_092_takes_microphone_1_only(vctk_092):
    entries = vctk(vctk_092).entries
    assert ids(entries) == ["p225_001", "p225_002", "p280_001", "p315_001", "p362_001", "s5_001"]
    assert all(entry.path.name == f"{entry.id}_mic1.flac" for entry in entries)
    assert [entry.speaker for entry in entries] == ["p225", "p225", "p280", "p315", "p362", "s5"]


def test_vctk_092_keeps_audio_without_text_and_lists_the_rest(vctk_092):
    listing = vctk(vctk_092)
    texts = {entry.id: entry.text for entry in listing.entries}
    assert texts.pop("p315_001") is None
    assert texts == {name: f"Text of {name}." for name in texts}
    assert listing.left_out == [
        LeftOut("p362_002", "no audio for microphone 1"),
        LeftOut("p362_003", "text without audio"),
    ]


def test_vctk_speaker_info_is_read_in_spite_of_its_irregular_columns(vctk_092):
    assert vctk(vctk_092).speakers == {
        "p225": {"age": 23, "gender": "F", "accent": "English"},
        "p280": {"age": 25, "gender": "F", "accent": "Unknown"},
        "p315": {"age": 18, "gender": "M", "accent": "American"},
        "p362": {"age": 29, "gender": "F", "accent": "American"},
        "p376": {"age": 22, "gender": "M", "accent": "Indian"},
        "s5": {"age": 24, "gender": "M"},
    }


def test_vctk_080(tmp_path):
    write_files(tmp_path, "wav48/p225/p225_001.wav", "wav48/p376/p376_001.wav")
    write_text(tmp_path / "wav48/p376/p376_295.raw", "no header")
    for name in ("p225_001", "p376_001", "p376_295"):
        write_text(tmp_path / "txt" / name[:4] / f"{name}.txt", name)
    write_text(
        tmp_path / "speaker-info.txt",
        "ID  AGE  GENDER  ACCENTS  REGION\n225  23  F    English    Southern  England\n",
    )
    listing = vctk(tmp_path)
    assert [(entry.id, entry.speaker, entry.text) for entry in listing.entries] == [
        ("p225_001", "p225", "p225_001"),
        ("p376_001", "p376", "p376_001"),
    ]
    assert listing.left_out == [LeftOut("p376_295", "text without audio")]
    assert listing.speakers == {"p225": {"age": 23, "gender": "F", "accent": "English"}}


def test_vctk_works_with_audio_alone(tmp_path):
    listing = vctk(write_files(tmp_path, "wav48_silence_trimmed/p225/p225_001_mic1.flac"))
    assert [(entry.id, entry.text) for entry in listing.entries] == [("p225_001", None)]
    assert (listing.left_out, listing.speakers) == ([], {})


# --- LibriSpeech and LJ Speech ----------------------------------------------------------------------------


def test_librispeech_keeps_subsets_apart_and_finds_transcripts(tmp_path):
    names = [
        "train-clean-100/19/198/19-198-0000",
        "dev-clean/84/121123/84-121123-0000",
        "test-other/61/7/61-7-0000",
    ]
    write_files(tmp_path, *(f"{name}.flac" for name in names), "train-clean-100/19/199/19-199-0000.flac")
    write_text(
        tmp_path / "train-clean-100/19/198/19-198.trans.txt",
        "19-198-0000 NORTHANGER ABBEY\n19-198-0001 GONE\n",
    )
    listing = librispeech(tmp_path)
    assert {entry.id: (entry.speaker, entry.text, entry.split) for entry in listing.entries} == {
        "19-198-0000": ("19", "NORTHANGER ABBEY", "train"),
        "19-199-0000": ("19", None, "train"),
        "84-121123-0000": ("84", None, "dev"),
        "61-7-0000": ("61", None, "test"),
    }
    assert listing.left_out == [LeftOut("19-198-0001", "text without audio")]


def test_ljspeech_takes_the_normalised_text_with_its_quotes(tmp_path):
    write_files(tmp_path, *(f"wavs/LJ001-000{i}.wav" for i in (1, 2, 3)))
    write_text(
        tmp_path / "metadata.csv",
        'LJ001-0001|In 1440, "he|In fourteen forty, "he\nLJ001-0002|one column|\nLJ001-0004|gone|gone\n',
    )
    listing = ljspeech(tmp_path)
    assert [(entry.id, entry.speaker, entry.text) for entry in listing.entries] == [
        ("LJ001-0001", "LJ", 'In fourteen forty, "he'),
        ("LJ001-0002", "LJ", "one column"),
        ("LJ001-0003", "LJ", None),
    ]
    assert listing.left_out == [LeftOut("LJ001-0004", "text without audio")]


def test_ljspeech_metadata_of_another_form_is_named_with_its_line(tmp_path):
    write_files(tmp_path, "wavs/a.wav")
    write_text(tmp_path / "metadata.csv", "a|b|c\na,b,c\n")
    with pytest.raises(ManifestError, match=r"metadata\.csv:2: expected 'ID\|text\|normalised text', found 'a,b,c'"):
        ljspeech(tmp_path)


@pytest.mark.parametrize(
    ("corpus", "expected"),
    [
        (vctk, r"is no VCTK: expected wav48_silence_trimmed/"),
        (librispeech, "is no LibriSpeech: expected folders such as train-clean-100"),
        (ljspeech, "is no LJ Speech: expected wavs/"),
    ],
)
def test_another_folder_is_refused_with_what_was_expected(tmp_path, corpus, expected):
    with pytest.raises(ManifestError, match=expected):
        corpus(write_files(tmp_path, "a/b.wav"))


# --- opening audio files ----------------------------------------------------------------------------------


def test_formats_rates_and_channels_are_read_from_the_files(tmp_path):
    soundfile.write(tmp_path / "a.wav", NOISE, 8000, subtype="PCM_U8")
    soundfile.write(tmp_path / "b.wav", np.stack([NOISE] * 3, axis=1), 192000)
    soundfile.write(tmp_path / "c.flac", NOISE[:1], 16000)
    utterances, left_out = open_entries(folder(tmp_path).entries)
    assert [(item.id, item.sample_rate, item.num_samples) for item in utterances] == [
        ("a", 8000, 1600),
        ("b", 192000, 1600),
        ("c", 16000, 1),
    ]
    assert [item.duration * item.sample_rate for item in utterances] == [1600, 1600, 1]
    assert not left_out


def test_bad_audio_is_left_out_with_its_reason_and_the_rest_keeps_its_order(tmp_path):
    write_files(tmp_path, *(f"{i:03}.flac" for i in range(60)), "cut.wav")
    flac, wav = (tmp_path / "000.flac").read_bytes(), (tmp_path / "cut.wav").read_bytes()
    (tmp_path / "010.flac").write_bytes(b"")
    (tmp_path / "020.flac").write_bytes(flac[: len(flac) // 2])
    (tmp_path / "030.flac").write_bytes(b"this is text")
    (tmp_path / "cut.wav").write_bytes(wav[:-100])
    soundfile.write(tmp_path / "none.wav", NOISE[:0], 16000)
    reasons = {
        "010": "is empty",
        "020": "is the file damaged?",
        "030": "is no audio",
        "cut": "is truncated: 100 bytes",
        "none": "holds no samples",
    }

    utterances, left_out = open_entries(folder(tmp_path).entries)
    assert [item.id for item in utterances] == [f"{i:03}" for i in range(60) if f"{i:03}" not in reasons]
    assert [item.item for item in left_out] == list(reasons)
    for item in left_out:
        assert item.reason == "unusable audio"
        assert reasons[item.item] in item.detail
        assert str(tmp_path / item.item) in item.detail


def test_file_names_that_cannot_be_ids_are_left_out(tmp_path):
    write_files(tmp_path, "good.wav", "a\\b.wav", f"{'x' * 150}/{'y' * 150}.wav", "a\x01b.wav")
    (tmp_path / "good.wav").rename(os.fsdecode(bytes(tmp_path) + b"/gr\xfc\xdfe.wav"))
    utterances, left_out = open_entries(folder(tmp_path).entries)
    assert not utterances
    assert len(left_out) == 4
    assert {item.reason for item in left_out} == {"unusable file name"}
