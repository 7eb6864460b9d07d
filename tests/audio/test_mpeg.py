"""MP3s that libsndfile reads are those of which it leaves nothing out, and then FFmpeg reads the same."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch

from audiovq.audio import AudioSource, load_audio
from audiovq.audio.decoding import Place
from audiovq.audio.sound import NotReadError, SoundDecoder
from audiovq.audio.streams import StreamDecoder
from audiovq.errors import AudioError

KINDS = {
    # name: (encoder, rate, channels, options of the encoder, options of the container)
    **{f"{rate}.mp3": ("libmp3lame", rate, 1, {}, {}) for rate in (8000, 11025, 16000, 22050, 32000, 48000)},
    "stereo.mp3": ("libmp3lame", 44100, 2, {"b": "96k"}, {}),
    "vbr.mp3": ("libmp3lame", 44100, 2, {"q": "5"}, {}),
    "no reservoir.mp3": ("libmp3lame", 24000, 1, {"reservoir": "0"}, {}),
    "untagged.mp3": ("libmp3lame", 16000, 1, {}, {"write_xing": "0"}),
    "untagged vbr.mp3": ("libmp3lame", 44100, 2, {"q": "2"}, {"write_xing": "0"}),
    "layer.mp2": ("mp2", 16000, 1, {}, {}),
}


@pytest.fixture(scope="module")
def files(speech_folder, tmp_path_factory) -> dict[str, Path]:
    """Two seconds of real speech and one of silence, in each kind."""
    folder = tmp_path_factory.mktemp("mpeg")
    for name, (encoder, rate, channels, options, container) in KINDS.items():
        voice = load_audio(speech_folder / "allison/en-conf-invalid.ogg", rate, duration=2.0)[0][0].numpy()
        wave = np.concatenate([voice, np.zeros(rate, np.float32)])
        waves = np.stack([wave, np.roll(wave, 300) / 2])[:channels]
        layout = "stereo" if channels == 2 else "mono"
        with av.open(str(folder / name), "w", options=container) as file:
            stream = file.add_stream(encoder, rate=rate, layout=layout, options=options)
            frame = av.AudioFrame.from_ndarray(waves, format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
            resampler = av.AudioResampler(format=stream.format, layout=layout, rate=rate)
            for given in (*resampler.resample(frame), *resampler.resample(None), None):
                file.mux(stream.encode(given))
    return {name: folder / name for name in KINDS}


def id3(size: int) -> bytes:
    """A tag that holds what looks like frames."""
    content = (b"APIC" + b"\xff\xfb\x90\0Xing" * 1000)[:size].ljust(size, b"\0")
    return b"ID3\4\0\0" + bytes(size >> shift & 127 for shift in (21, 14, 7, 0)) + content


def frames_of(path: Path) -> list[bytes]:
    """The frames of an MP3, as FFmpeg finds them."""
    with av.open(str(path)) as file:
        return [bytes(packet) for packet in file.demux() if packet.size]


def refusal(path: Path, kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        SoundDecoder(Place.of(path))
    return str(caught.value)


@pytest.mark.parametrize("name", KINDS)
def test_libsndfile_and_ffmpeg_read_the_same(files, name):
    place = Place.of(files[name])
    decoders = SoundDecoder(place), StreamDecoder(place)
    waves = [decoder.read(10**7) for decoder in decoders]
    assert [decoder.length for decoder in decoders] == [len(wave) for wave in waves]
    assert [(decoder.sample_rate, decoder.channels) for decoder in decoders] == [KINDS[name][1:3]] * 2
    np.testing.assert_allclose(*waves, atol=4e-5)
    assert np.abs(waves[0]).max() > 0.1
    for decoder in decoders:
        decoder.close()


def test_tags_before_and_after_are_no_sound(files, tmp_path):
    data = files["16000.mp3"].read_bytes()
    ape = b"APETAGEX" + bytes(4) + (50 + 32).to_bytes(4, "little") + bytes(16 + 50) + b"APETAGEX" + bytes(24)
    (tmp_path / "tagged.mp3").write_bytes(id3(60000) + id3(100) + data + ape + b"TAG" + bytes(125))
    expected = load_audio(files["16000.mp3"])[0]
    decoder = SoundDecoder(Place.of(tmp_path / "tagged.mp3"))
    assert np.array_equal(decoder.read(10**7), expected[0].numpy())
    decoder.close()
    assert torch.equal(load_audio(tmp_path / "tagged.mp3")[0], expected)


def test_what_libsndfile_would_leave_out_is_left_to_ffmpeg(files, tmp_path, capfd):
    tagged, plain = files["16000.mp3"].read_bytes(), files["untagged.mp3"].read_bytes()
    frames = frames_of(files["untagged.mp3"])
    odd = {
        "two files": tagged + tagged,
        "a tag between": plain + b"TAG" + bytes(125) + plain,
        "another rate": files["8000.mp3"].read_bytes() + plain,
        "more channels": files["32000.mp3"].read_bytes() + files["stereo.mp3"].read_bytes(),
        "bytes between": b"".join(frames[:30]) + b"\x55" * 100 + b"".join(frames[30:]),
        "bytes after": plain + b"no tag",
        "no frames": id3(1000),
        "AAC": b"\xff\xf1\x60\x40\x20\x7f\xfc" + bytes(250),
    }
    for name, data in odd.items():
        (tmp_path / f"{name}.mp3").write_bytes(data)
        assert "MPEG audio of one kind" in refusal(tmp_path / f"{name}.mp3", NotReadError)
    promise = bytearray(tagged)
    place = tagged.index(b"Xing") if b"Xing" in tagged else tagged.index(b"Info")
    promise[place + 8 : place + 12] = (10).to_bytes(4, "big")
    (tmp_path / "promise.mp3").write_bytes(promise)
    assert "and promises 10" in refusal(tmp_path / "promise.mp3", NotReadError)
    assert AudioSource.open(tmp_path / "two files.mp3").num_samples > 2 * 48000
    assert capfd.readouterr().err == ""  # libsndfile's decoder complains there of what it meets.


@pytest.mark.parametrize("lost", [1, 100, 3000])
@pytest.mark.parametrize("name", KINDS)
def test_a_cut_file_is_refused_by_its_headers(files, tmp_path, name, lost):
    path = tmp_path / name
    path.write_bytes(files[name].read_bytes()[:-lost])
    assert "is truncated: " in refusal(path, AudioError)


def test_a_file_that_is_cut_between_two_frames_is_refused_if_it_says_how_many_there_are(files, tmp_path):
    frames = frames_of(files["16000.mp3"])
    data = files["16000.mp3"].read_bytes()
    (tmp_path / "a.mp3").write_bytes(data[: -sum(map(len, frames[-3:]))])
    assert f"is truncated: 3 of its {len(frames)} frames are missing" in refusal(tmp_path / "a.mp3", AudioError)


@pytest.mark.parametrize("name", ["16000.mp3", "stereo.mp3"])
def test_a_frame_that_no_decoder_understands_is_told(files, tmp_path, name):
    frame = frames_of(files[name])[20]
    data = files[name].read_bytes()
    broken = bytearray(frame)
    broken[4:36] = b"\xff" * 32
    (tmp_path / name).write_bytes(data.replace(frame, bytes(broken)))
    place = data.index(frame)
    assert f"cannot be decoded (the frame at byte {place} has no meaning)" in refusal(tmp_path / name, AudioError)
    with pytest.raises(AudioError, match="cannot be decoded"):
        StreamDecoder(Place.of(tmp_path / name)).check_end()


def test_an_mp3_is_not_decoded_to_be_counted(files, monkeypatch):
    monkeypatch.setattr(SoundDecoder, "read", lambda *_: pytest.fail("was decoded"))
    for name in ("16000.mp3", "untagged.mp3"):
        assert AudioSource.open(files[name]).num_samples >= 48000


def test_what_soundfile_writes_is_as_long_as_what_it_was_given(tmp_path):
    for length in (1, 575, 576, 577, 30000):
        soundfile.write(tmp_path / "a.mp3", np.zeros(length), 16000)
        assert AudioSource.open(tmp_path / "a.mp3").num_samples == length
