"""Without PyAV: what libsndfile reads is read and checked as ever, of the rest a line says what to install."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path

import av
import pytest
import soundfile
import torch

from audiovq.audio import AudioSource, load_audio
from audiovq.errors import AudioError
from audiovq.tokens import TokenSet

OWN = {
    "pcm.wav": {"format": "WAV", "subtype": "PCM_16"},
    "lossless.flac": {"format": "FLAC", "subtype": "PCM_16"},
    "vorbis.ogg": {"format": "OGG", "subtype": "VORBIS"},
    "voice.opus": {"format": "OGG", "subtype": "OPUS"},
    "layer 3.mp3": {"format": "MP3", "subtype": "MPEG_LAYER_III"},
    "apple.aiff": {"format": "AIFF", "subtype": "PCM_16"},
    "nist.sph": {"format": "NIST", "subtype": "PCM_16"},
}
"""Formats that libsndfile reads."""
INSTALL = "FFmpeg, which reads more, is not installed: pip install 'audiovq[media]'"


@pytest.fixture
def without_media(monkeypatch) -> None:
    """As if PyAV were not there, neither to be imported nor in the list of what is installed."""
    monkeypatch.setitem(sys.modules, "av", None)
    found = metadata.Distribution.from_name

    def from_name(name: str) -> metadata.Distribution:
        if name == "av":
            raise metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(metadata.Distribution, "from_name", from_name)


@pytest.fixture
def files(tmp_path, mini_speech) -> Path:
    """Real speech in each of these formats, and in two of FFmpeg's."""
    folder = tmp_path / "speech"
    folder.mkdir()
    for name, settings in OWN.items():
        soundfile.write(folder / name, mini_speech[0].numpy(), 16000, **settings)
    for name, encoder in (("phone.m4a", "aac"), ("browser.webm", "libopus")):
        with av.open(str(folder / name), "w") as file:
            stream = file.add_stream(encoder, rate=48000, layout="mono")
            frame = av.AudioFrame.from_ndarray(mini_speech.numpy(), format="fltp", layout="mono")
            frame.sample_rate = 16000
            resampler = av.AudioResampler(stream.format, "mono", 48000, stream.frame_size or None)
            for part in (*resampler.resample(frame), *resampler.resample(None), None):
                file.mux(stream.encode(part))
    return folder


def failure(path: Path) -> str:
    with pytest.raises(AudioError) as caught:
        AudioSource.open(path).check_end()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", OWN)
def test_the_formats_of_libsndfile_give_the_same_samples(files, name, request):
    expected = load_audio(files / name)[0]
    request.getfixturevalue("without_media")
    assert torch.equal(load_audio(files / name)[0], expected)
    assert torch.equal(
        AudioSource.open(files / name).read(8000, 999, 777), load_audio(files / name, 8000)[0][:, 999:1776]
    )


@pytest.mark.parametrize("share", [0.6, 0.99])
@pytest.mark.parametrize("name", OWN)
def test_a_cut_file_is_refused_for_the_same_reason(files, name, share, request):
    data = (files / name).read_bytes()
    (files / name).write_bytes(data[: int(share * len(data))])
    expected = failure(files / name)
    request.getfixturevalue("without_media")
    assert failure(files / name) == expected
    assert "not installed" not in expected


def test_other_formats_name_what_to_install(files, without_media):
    (files / "text.wav").write_text("this is no audio\n" * 100)
    (files / "chain.opus").write_bytes((files / "voice.opus").read_bytes() * 2)
    (files / "chain.mp3").write_bytes((files / "layer 3.mp3").read_bytes() * 2)
    for name in ("phone.m4a", "browser.webm", "text.wav", "chain.opus", "chain.mp3"):
        line = failure(files / name)
        assert line.startswith(f"{files / name}: is no audio that libsndfile reads (")
        assert line.endswith(INSTALL)


def test_a_cut_container_is_told_before_what_reads_it(files, without_media):
    for name in ("phone.m4a", "browser.webm"):
        (files / name).write_bytes((files / name).read_bytes()[:-100])
        assert "is truncated: " in failure(files / name)


def test_prepare_lists_what_it_cannot_read(files, tmp_path, run, without_media):
    assert run("prepare", "folder", files, "-o", tmp_path / "data")[0] == 0
    left_out = [json.loads(line) for line in (tmp_path / "data/left_out.jsonl").read_text().splitlines()]
    assert {line["item"] for line in left_out} == {"phone", "browser"}
    assert all(line["detail"].endswith(INSTALL) for line in left_out)


def test_tokenize_encodes_what_it_can_read(files, tiny_tokenizer, tmp_path, run, without_media):
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    code, _, err = run("tokenize", tmp_path / "model", files, "-o", tmp_path / "codes", "--device", "cpu")
    assert (code, err.count(INSTALL)) == (1, 2)
    assert {row.utt_id for row in TokenSet(tmp_path / "codes")} == {Path(name).stem.replace(" ", "_") for name in OWN}
    sidecar = json.loads(next((tmp_path / "codes").rglob("part-*.json")).read_text())
    assert "soundfile" in sidecar["versions"]
    assert "av" not in sidecar["versions"]
