"""What FFmpeg decodes: whole, counted as `ffmpeg` counts, in equal pieces, and refused where it is cut."""

from __future__ import annotations

import gc
import shutil
import struct
import subprocess
import weakref
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch

from audiovq.audio import AudioSource, load_audio
from audiovq.audio.decoding import Place, once_a_place
from audiovq.audio.streams import StreamDecoder
from audiovq.errors import AudioError
from audiovq.storage import HeldFile
from audiovq.text import warned

RATE, SECONDS = 16000, 2
FILES = {
    # name: (encoder, rate, options of the encoder, options of the container, samples as ffmpeg counts them)
    "aac.m4a": ("aac", 16000, {}, {}, 32768),
    "fragmented.mp4": ("aac", 16000, {}, {"movflags": "frag_keyframe+empty_moov"}, 33792),
    "faststart.m4a": ("aac", 16000, {}, {"movflags": "faststart"}, 32768),
    "alac.m4a": ("alac", 16000, {}, {}, 32000),
    "phone.3gp": ("aac", 16000, {}, {}, 32768),
    "adts.aac": ("aac", 16000, {}, {}, 33792),
    "opus.webm": ("libopus", 48000, {}, {}, 96000),
    "opus.mka": ("libopus", 48000, {}, {}, 96000),
    "cbr.mp3": ("libmp3lame", 16000, {}, {}, 32000),
    "vbr.mp3": ("libmp3lame", 16000, {"q": "4"}, {}, 32000),
    "no xing.mp3": ("libmp3lame", 16000, {}, {"write_xing": "0"}, 33408),
    "in.wav": ("libmp3lame", 16000, {}, {}, 33408),
    "voice.amr": ("libopencore_amrnb", 8000, {}, {}, 16160),
    "flac.oga": ("flac", 16000, {}, {}, 32000),
    "wave.wv": ("wavpack", 16000, {}, {}, 32000),
    "true.tta": ("tta", 16000, {}, {}, 32000),
    "layer.mp2": ("mp2", 16000, {}, {}, 32256),
    "live.webm": ("libopus", 48000, {}, {"live": "1"}, 96000),
    "blocks.voc": ("pcm_s16le", 16000, {}, {}, 32000),
}
OPEN = {"adts.aac", "no xing.mp3", "voice.amr", "live.webm", "layer.mp2", "lengthless.flac", "piped.wav"}
"""Those that do not say how long they are."""


def speech(rate: int = RATE, seconds: float = SECONDS) -> np.ndarray:
    """A voiced signal, loud from its first sample to its last."""
    time = np.arange(round(rate * seconds)) / rate
    phase = 2 * np.pi * (120 * time + 10 * np.sin(4 * time))
    return (0.15 * sum(np.sin(k * phase) / k for k in range(1, 12))).astype(np.float32)


def encode(path: Path, encoder: str, rate: int, options: dict[str, str], container: dict[str, str]) -> Path:
    """Write `speech` with FFmpeg, in the format that the name's suffix stands for."""
    with av.open(str(path), "w", options=container) as file:
        stream = file.add_stream(encoder, rate=rate, layout="mono", options=options)
        frame = av.AudioFrame.from_ndarray(speech(rate)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        resampler = av.AudioResampler(format=stream.format, layout="mono", rate=rate)
        for given in (*resampler.resample(frame), *resampler.resample(None), None):
            file.mux(stream.encode(given))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("streams")
    return {name: encode(folder / name, *how[:-1]) for name, how in FILES.items()}


def cut(path: Path, share: float = 0.6) -> Path:
    """The first part of a file, beside it."""
    data = path.read_bytes()
    short = path.with_name(f"cut {path.name}")
    short.write_bytes(data[: int(share * len(data))])
    return short


@pytest.mark.parametrize("name", FILES)
def test_as_many_samples_are_read_as_ffmpeg_decodes(files, name):
    source = AudioSource.open(files[name])
    assert (source.sample_rate, source.num_samples) == (FILES[name][1], FILES[name][-1])
    wave = source.read()[0]
    assert len(wave) == source.num_samples
    source.check_end()
    expected = speech(source.sample_rate)
    delay = round(0.03 * source.sample_rate) + 1105  # More than any encoder's.
    scores = np.correlate(np.pad(wave.numpy(), delay), expected, "valid") / (expected @ expected)
    assert scores.max() > (0.4 if name == "voice.amr" else 0.9)  # The speech is in it, whole.


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="compares with the program")
@pytest.mark.parametrize("name", FILES)
def test_the_program_counts_the_same(files, name):
    command = ["ffmpeg", "-v", "error", "-i", files[name], "-map", "0:a:0", "-f", "f32le", "-"]
    assert len(subprocess.run(command, capture_output=True, check=True).stdout) // 4 == FILES[name][-1]


@pytest.mark.parametrize("name", FILES)
def test_every_piece_is_that_of_the_whole_to_the_bit(files, name):
    source = AudioSource.open(files[name])
    whole = source.read()
    for start in (9000, 0, 13337, source.num_samples - 777):
        assert torch.equal(source.read(None, start, 777), whole[:, start : start + 777])
    for size in (999, 16000):
        assert torch.equal(torch.cat(list(source.blocks(16000, size)), -1), source.read(16000))


def test_a_file_is_decoded_once_for_all_its_blocks(files, monkeypatch):
    source = AudioSource.open(files["aac.m4a"])
    starts = []
    restart = StreamDecoder.restart
    monkeypatch.setattr(StreamDecoder, "restart", lambda self: starts.append(self) or restart(self))
    assert sum(block.shape[-1] for block in source.blocks(8000, 500)) == source.length_at(8000)
    assert len(starts) == 1


@pytest.mark.parametrize("name", FILES)
def test_a_cut_file_is_refused(files, name):
    with pytest.raises(AudioError, match=r"cut .*: (is truncated|cannot be decoded|is no audio)") as caught:
        AudioSource.open(cut(files[name]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["aac.m4a", "opus.webm", "cbr.mp3", "no xing.mp3", "flac.oga"])
def test_a_file_that_lacks_a_little_at_its_end_is_refused(files, name):
    with pytest.raises(AudioError, match="is truncated"):
        AudioSource.open(cut(files[name], 0.99))


def test_files_one_after_the_other_are_read_to_the_last(files, tmp_path):
    mp3 = files["cbr.mp3"].read_bytes()
    (tmp_path / "two.mp3").write_bytes(mp3 + mp3)
    assert AudioSource.open(tmp_path / "two.mp3").num_samples > 2 * 32000
    soundfile.write(tmp_path / "a.opus", speech(48000), 48000, format="OGG", subtype="OPUS")
    opus = (tmp_path / "a.opus").read_bytes()
    (tmp_path / "chain.opus").write_bytes(opus + opus)
    assert AudioSource.open(tmp_path / "chain.opus").num_samples == 2 * 96000
    oga = files["flac.oga"].read_bytes()
    (tmp_path / "chain.oga").write_bytes(oga + oga)
    twice = np.tile(AudioSource.open(files["flac.oga"]).read()[0], 2)
    assert np.array_equal(AudioSource.open(tmp_path / "chain.oga").read()[0], twice)
    (tmp_path / "cut chain.opus").write_bytes(opus[: len(opus) // 2] + opus)
    with pytest.raises(AudioError):
        AudioSource.open(tmp_path / "cut chain.opus")


def test_tags_and_artwork_are_no_sound(files, tmp_path):
    data = files["no xing.mp3"].read_bytes()
    size = 60000
    tag = b"ID3\4\0\0" + bytes(size >> shift & 127 for shift in (21, 14, 7, 0))
    content = b"APIC" + bytes(size - 10 >> shift & 127 for shift in (21, 14, 7, 0)) + b"\0\0"
    content += b"\3image/png\0\3\0" + b"Xing\xff\xfb\x90\0" * 8000
    (tmp_path / "tag.mp3").write_bytes(tag + content[:size] + data + b"TAG" + bytes(125))
    assert torch.equal(load_audio(tmp_path / "tag.mp3")[0], load_audio(files["no xing.mp3"])[0])


def test_flac_without_a_length_is_the_flac_with_one(tmp_path):
    soundfile.write(tmp_path / "a.flac", speech(), RATE)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[21] &= 0xF0
    data[22:42] = bytes(20)
    (tmp_path / "b.flac").write_bytes(data)
    assert torch.equal(load_audio(tmp_path / "b.flac")[0], load_audio(tmp_path / "a.flac")[0])


def test_a_change_of_rate_is_told(tmp_path):
    for rate in (16000, 24000):
        encode(tmp_path / f"{rate}.mp3", "libmp3lame", rate, {}, {})
    (tmp_path / "both.mp3").write_bytes((tmp_path / "16000.mp3").read_bytes() + (tmp_path / "24000.mp3").read_bytes())
    with pytest.raises(AudioError, match="changes its sample rate from 16000 to 24000 Hz"):
        AudioSource.open(tmp_path / "both.mp3")


@pytest.mark.parametrize(
    "text",
    ["ffconcat version 1.0\nfile secret.wav\n", "#EXTM3U\n#EXTINF:1,\nsecret.wav\n", "v=0\nm=audio 1 RTP/AVP 0\n"],
)
def test_a_list_that_names_other_files_is_no_audio(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    soundfile.write("secret.wav", speech(), RATE)
    Path("list.wav").write_text(text)
    with pytest.raises(AudioError, match=r"list\.wav: is no audio"):
        AudioSource.open("list.wav")


def test_a_name_that_ffmpeg_would_take_for_an_address_is_a_name(files, tmp_path):
    path = tmp_path / "concat:a|b.mp3"
    shutil.copy(files["cbr.mp3"], path)
    assert AudioSource.open(path).num_samples == 32000


def test_a_video_without_sound_is_told(tmp_path):
    with av.open(str(tmp_path / "silent.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        for picture in [np.zeros((64, 64, 3), np.uint8)] * 3:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode(None))
    with pytest.raises(AudioError, match=r"silent\.mp4: holds no audio"):
        AudioSource.open(tmp_path / "silent.mp4")


def test_a_file_that_is_replaced_is_counted_again(files, tmp_path):
    path = tmp_path / "a.mp3"
    shutil.copy(files["cbr.mp3"], path)
    assert AudioSource.open(path).num_samples == 32000
    path.write_bytes(files["cbr.mp3"].read_bytes() * 2)
    assert AudioSource.open(path).num_samples > 64000


def ogg_crc(page: bytes) -> int:
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc & 0x80000000 else 0)) & 0xFFFFFFFF
    return crc


@pytest.mark.parametrize("rate", [0, 131_072_000, 2**31 - 1])
def test_an_ogg_header_with_an_impossible_rate_is_refused(tmp_path, rate):
    soundfile.write(tmp_path / "a.ogg", speech(), RATE, format="OGG", subtype="VORBIS")
    data = bytearray((tmp_path / "a.ogg").read_bytes())
    data[22:26] = bytes(4)
    struct.pack_into("<I", data, 28 + 12, rate)
    struct.pack_into("<I", data, 22, ogg_crc(bytes(data[:58])))
    (tmp_path / "a.ogg").write_bytes(data)
    with pytest.raises(AudioError, match=r"a\.ogg: (its sample rate is|is no audio|holds no audio)") as caught:
        AudioSource.open(tmp_path / "a.ogg")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["flac.oga", "opus.ogg", "vorbis.ogg"])
def test_a_damaged_page_of_an_ogg_file_is_told_and_not_left_out(files, tmp_path, name):
    """Decoders pass over it, and what is left would seem whole."""
    path = tmp_path / name
    if name == "flac.oga":
        shutil.copy(files[name], path)
    else:
        soundfile.write(path, speech(), RATE, format="OGG", subtype=path.stem.upper())
    AudioSource.open(path).check_end()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(AudioError, match=rf"{name}: is damaged: the page at byte \d+ has another checksum"):
        AudioSource.open(path)


def test_the_blocks_of_a_voc_file_leave_no_clicks(files):
    wave = AudioSource.open(files["blocks.voc"]).read()[0]
    assert torch.allclose(wave, torch.from_numpy(speech()), atol=2**-15)


@pytest.mark.parametrize("lost", [1, 100, 3000])
@pytest.mark.parametrize("name", ["live.webm", "blocks.voc"])
def test_the_last_element_of_a_file_that_was_sent_while_it_was_made_is_whole(files, tmp_path, name, lost):
    path = tmp_path / name
    path.write_bytes(files[name].read_bytes()[: -lost - 1])  # The last byte of a VOC file says only that it ends.
    with pytest.raises(AudioError, match="is truncated: "):
        AudioSource.open(path)


@pytest.mark.filterwarnings("default:.*does not say how long it is")
@pytest.mark.parametrize("name", ["lengthless.flac", "piped.wav", "plain.wav", "plain.flac", *FILES])
def test_only_of_a_file_that_does_not_say_how_long_it_is_nobody_can_tell(files, tmp_path, name, recwarn):
    path = tmp_path / name
    if name in FILES:
        shutil.copy(files[name], path)
    else:
        soundfile.write(path, speech(), RATE)
        data = bytearray(path.read_bytes())
        if name == "lengthless.flac":
            data[21:42] = bytes([data[21] & 0xF0, *bytes(20)])
        elif name == "piped.wav":
            data[4:8] = data[40:44] = b"\xff" * 4
        path.write_bytes(data)
    warned.clear()
    for _ in range(2):
        assert AudioSource.open(path).num_samples > 15000
    told = [str(warning.message) for warning in recwarn if "does not say how long it is" in str(warning.message)]
    assert len(told) == (name in OPEN)
    assert all(str(path) in message for message in told)


def test_samples_that_no_array_holds_are_told(tmp_path):
    path, data = tmp_path / "64 bit.wav", bytes(8 * 1000)
    header = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 1, 1, RATE, 8 * RATE, 8, 64)
    path.write_bytes(header + b"data" + struct.pack("<I", len(data)) + data)
    with pytest.raises(AudioError, match=r"64 bit\.wav: holds samples of format s64, convert it first"):
        AudioSource.open(path).read()


@pytest.mark.parametrize("name", ["aac.m4a", "cbr.mp3", "speech.ogg"])
def test_a_recording_in_memory_goes_with_its_last_reader(files, speech_folder, name):
    path = files[name] if name in files else min((speech_folder / "june").glob("*.ogg"))
    held = HeldFile(path.read_bytes())
    assert torch.equal(AudioSource.open(held).read(), load_audio(path)[0])
    watched = weakref.ref(held)
    del held
    gc.collect()
    assert watched() is None


def test_a_file_is_counted_once_and_a_recording_in_memory_whenever_it_is_asked_for(files):
    asked = []
    count = once_a_place(lambda place: asked.append(place.path))
    held, path = HeldFile(b"audio"), files["aac.m4a"]
    for _ in range(2):
        count(Place.of(held))
        count(Place.of(path))
    assert asked == [held, path, held]
