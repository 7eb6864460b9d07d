"""Reading and writing: every format and rate, pieces against the whole, and files that are damaged."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import resource
import socket
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audiovq.audio.files import AudioSource, AudioWriter, find_audio_files, load_audio, save_audio
from audiovq.audio.resampling import Resampler, resample
from audiovq.audio.signal import log_mel, mu_law_decode, mu_law_encode
from audiovq.errors import AudioError

RATES = [8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 96000, 192000]
FORMATS = {
    # name: (format, subtype, tolerance)
    "8 bit.wav": ("WAV", "PCM_U8", 1 / 120),
    "16 bit.wav": ("WAV", "PCM_16", 1 / 32000),
    "24 bit.wav": ("WAV", "PCM_24", 1e-6),
    "32 bit.wav": ("WAV", "PCM_32", 1e-6),
    "float.wav": ("WAV", "FLOAT", 0),
    "double.wav": ("WAV", "DOUBLE", 0),
    "16 bit.flac": ("FLAC", "PCM_16", 1 / 32000),
    "24 bit.flac": ("FLAC", "PCM_24", 1e-6),
    "a.aiff": ("AIFF", "PCM_16", 1 / 32000),
    "vorbis.ogg": ("OGG", "VORBIS", 0.05),
    "opus.opus": ("OGG", "OPUS", 0.05),
    "a.mp3": ("MP3", "MPEG_LAYER_III", 0.05),
}


def tone(rate: int, seconds: float = 0.5, frequency: float = 500.0) -> np.ndarray:
    """A sine of amplitude 0.5 that fades in and out, so that codecs and filters have no edges to smear."""
    time = np.arange(round(rate * seconds)) / rate
    return (0.5 * np.sin(2 * np.pi * frequency * time) * np.sin(np.pi * time / seconds) ** 2).astype(np.float32)


@pytest.fixture
def write(tmp_path):
    def make(name: str = "a.wav", samples: np.ndarray | None = None, rate: int = 16000, **settings) -> Path:
        path = tmp_path / name
        soundfile.write(path, tone(rate) if samples is None else samples, rate, **settings)
        return path

    return make


@pytest.fixture(scope="module")
def opus_path(speech_folder) -> Path:
    return speech_folder / "allison" / "en-conf-invalid.ogg"


# --- formats -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read(write, name):
    kind, subtype, tolerance = FORMATS[name]
    wave, rate = load_audio(write(name, rate=16000, format=kind, subtype=subtype))
    assert rate == 16000
    assert wave.shape == (1, 8000)
    assert wave.dtype == torch.float32
    np.testing.assert_allclose(wave[0], tone(16000), atol=tolerance)


@pytest.mark.parametrize("rate", RATES)
def test_every_rate_is_read(write, rate):
    wave, found = load_audio(write(rate=rate, subtype="FLOAT"))
    assert found == rate
    assert torch.equal(wave[0], torch.from_numpy(tone(rate)))


@pytest.mark.parametrize("channels", [1, 2, 3, 8])
def test_channels_are_averaged(write, channels):
    samples = np.random.default_rng(0).uniform(-1, 1, (1000, channels)).astype(np.float32)
    path = write(samples=samples, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(path)[0][0], samples.mean(1), atol=1e-6)


def test_silence_and_a_single_sample_are_signals(write):
    assert load_audio(write(samples=np.zeros(100)))[0].abs().max() == 0
    for rate in (None, 8000, 44100, 192000):
        wave, found = load_audio(write("one.wav", np.array([0.5])), rate)
        assert wave.shape == (1, math.ceil((rate or 16000) / 16000))
        assert found == (rate or 16000)


# --- pieces --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def noise_paths(tmp_path_factory) -> dict[int, Path]:
    """White noise at every rate, the hardest signal for a filter that lacks context."""
    folder = tmp_path_factory.mktemp("noise")
    for rate in RATES:
        samples = np.random.default_rng(rate).uniform(-1, 1, round(1.3 * rate) + 7).astype(np.float32)
        soundfile.write(folder / f"{rate}.wav", samples, rate, subtype="FLOAT")
    return {rate: folder / f"{rate}.wav" for rate in RATES}


@settings(max_examples=200)
@given(data=st.data(), rate=st.sampled_from(RATES), target=st.sampled_from(RATES))
def test_a_piece_is_that_of_the_whole_at_any_rate(noise_paths, data, rate, target):
    source = AudioSource.open(noise_paths[rate])
    whole = resample(source.read(), rate, target)
    assert source.length_at(target) == whole.shape[-1] == math.ceil(source.num_samples * target / rate)
    start = data.draw(st.integers(0, whole.shape[-1] - 1))
    count = data.draw(st.integers(1, min(3000, whole.shape[-1] - start)))
    piece = source.read(target, start, count)
    assert torch.equal(piece, whole[:, start : start + count])


@settings(max_examples=30)
@given(
    rate=st.sampled_from([8000, 16000, 44100, 48000]),
    target=st.sampled_from([8000, 16000, 24000, 44100]),
    size=st.integers(50, 5000),
)
def test_blocks_put_together_are_the_whole(noise_paths, rate, target, size):
    source = AudioSource.open(noise_paths[rate])
    blocks = list(source.blocks(target, size))
    assert {block.shape[-1] for block in blocks[:-1]} <= {size}
    assert torch.equal(torch.cat(blocks, -1), source.read(target))


@pytest.mark.parametrize("size", [500, 7000, 16000, 20000])
def test_a_file_that_is_read_in_blocks_is_resampled_once(noise_paths, monkeypatch, size):
    lengths = []
    blocks = Resampler.blocks
    monkeypatch.setattr(Resampler, "blocks", lambda *given: lengths.append(len(found := blocks(*given))) or found)
    source = AudioSource.open(noise_paths[48000])
    assert sum(block.shape[-1] for block in source.blocks(16000, size)) == source.length_at(16000)
    assert sum(lengths) - source.length_at(16000) in range(Resampler.of(48000, 16000).target)


@settings(max_examples=30)
@given(data=st.data(), rate=st.sampled_from([16000, 24000]))
def test_a_piece_of_opus_is_exactly_that_of_the_whole(opus_path, data, rate):
    source = AudioSource.open(opus_path)
    whole = source.read(rate)
    start = data.draw(st.integers(0, whole.shape[-1] - 1))
    count = data.draw(st.integers(1, min(3000, whole.shape[-1] - start)))
    assert torch.equal(source.read(rate, start, count), whole[:, start : start + count])


@pytest.mark.parametrize("rate", [16000, 24000])
@pytest.mark.parametrize("size", [333, 1999, 16000])
def test_blocks_of_opus_are_exactly_the_whole(opus_path, rate, size):
    source = AudioSource.open(opus_path)
    assert torch.equal(torch.cat(list(source.blocks(rate, size)), -1), source.read(rate))


@pytest.mark.parametrize("name", ["vorbis.ogg", "a.mp3", "16 bit.flac"])
def test_pieces_of_other_compressed_formats_are_those_of_the_whole(tmp_path, mini_speech, name):
    kind, subtype, _ = FORMATS[name]
    soundfile.write(tmp_path / name, mini_speech[0].numpy(), 16000, format=kind, subtype=subtype)
    source = AudioSource.open(tmp_path / name)
    whole = source.read()
    for start in range(0, 30000, 2711):
        torch.testing.assert_close(source.read(None, start, 999), whole[:, start : start + 999], atol=1e-6, rtol=0)
    for size in (999, 1152, 16001):
        assert torch.equal(torch.cat(list(source.blocks(16000, size)), -1), whole)


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_blocks_of_a_tone_in_mp3_are_the_tone(tmp_path, rate):
    tone = 0.5 * np.sin(np.arange(2 * rate) * 0.2)
    soundfile.write(tmp_path / "a.mp3", tone, rate)
    source = AudioSource.open(tmp_path / "a.mp3")
    found = torch.cat(list(source.blocks(rate, 999)), -1)
    assert torch.equal(found, source.read())
    assert np.abs(found[0].numpy()[: len(tone)] - tone)[2000:-2000].max() < 0.05


def test_a_segment_is_a_signal_of_its_own(write):
    path = write(rate=44100, subtype="FLOAT")
    segment = AudioSource.open(path, offset=0.1, duration=0.2)
    assert (segment.first, segment.num_samples, segment.duration) == (4410, 8820, 0.2)
    assert torch.equal(segment.read(), load_audio(path)[0][:, 4410 : 4410 + 8820])
    alone = resample(segment.read(), 44100, 16000)
    torch.testing.assert_close(segment.read(16000), alone)
    torch.testing.assert_close(load_audio(path, 16000, 0.1, 0.2)[0], alone)
    torch.testing.assert_close(segment.read(16000, 1000, 500), alone[:, 1000:1500], atol=2e-6, rtol=0)


@pytest.mark.parametrize(("offset", "duration"), [(0.5, None), (0.4, 0.2), (-0.1, 0.2), (0.1, 0.0), (2.0, None)])
def test_a_segment_outside_the_file_is_refused(write, offset, duration):
    with pytest.raises(AudioError, match=r"a\.wav: segment of .* lies outside the file's 8000 samples"):
        AudioSource.open(write(), offset, duration)


@pytest.mark.parametrize(("start", "count"), [(-1, 5), (0, 0), (7999, 2), (8000, 1), (5, -1)])
def test_a_piece_outside_the_signal_is_refused(write, start, count):
    with pytest.raises(AudioError, match=r"a\.wav: samples .* asked for, the signal has 8000"):
        AudioSource.open(write()).read(None, start, count)


# --- spectrograms and mu-law ----------------------------------------------------------------------------------


def test_the_log_mel_spectrogram_is_librosas(mini_speech):
    mel = librosa.feature.melspectrogram(
        y=mini_speech[0].numpy(), sr=16000, n_fft=1024, hop_length=256, n_mels=80, power=1.0, pad_mode="constant"
    )
    np.testing.assert_allclose(log_mel(mini_speech, 16000)[0], np.log(np.maximum(mel, 1e-5)), atol=2e-3)


# --- files that cannot be used -------------------------------------------------------------------------------


def bad_files(write, folder: Path) -> dict[str, Path]:
    def cut(path: Path, share: float) -> Path:
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        return path

    def text(name: str, content: str) -> Path:
        (folder / name).write_text(content)
        return folder / name

    (folder / "folder.wav").mkdir()
    (folder / "link.wav").symlink_to(folder / "nowhere.wav")
    (folder / "loop.wav").symlink_to(folder / "loop.wav")
    header = write("header.wav").read_bytes()[:44]
    (folder / "header.wav").write_bytes(header)
    return {
        "empty": text("empty.wav", ""),
        "text": text("text.wav", "this is no audio\n" * 100),
        "raw": text("headerless.raw", "0123456789"),
        "only a header": folder / "header.wav",
        "no samples": write("none.wav", np.zeros(0)),
        "truncated wav": cut(write("truncated.wav"), 0.5),
        "truncated aiff": cut(write("truncated.aiff"), 0.5),
        "truncated flac": cut(write("truncated.flac"), 0.5),
        "truncated mp3": cut(write("truncated.mp3", np.random.default_rng(0).uniform(-0.5, 0.5, 32000)), 0.5),
        "wav cut in its header": cut(write("stump.wav"), 0.001),
        "NaN": write("nan.wav", np.array([0.0, math.nan, 0.0]), subtype="FLOAT"),
        "infinite": write("inf.wav", np.array([0.0, math.inf, 0.0]), subtype="FLOAT"),
        "folder": folder / "folder.wav",
        "missing": folder / "missing.wav",
        "missing folder": folder / "no" / "such" / "folder" / "a.wav",
        "below a file": write("file.wav") / "a.wav",
        "dangling link": folder / "link.wav",
        "endless link": folder / "loop.wav",
    }


def test_every_bad_file_is_one_clear_line_that_names_it(write, tmp_path, capfd):
    files = bad_files(write, tmp_path)
    for kind, path in files.items():
        with pytest.raises(AudioError) as caught:
            load_audio(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: "), kind
        assert "\n" not in message, kind


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("empty", "is empty"),
        ("text", "is no audio"),
        ("no samples", "holds no samples"),
        ("truncated wav", "is truncated"),
        ("truncated aiff", "is truncated"),
        ("truncated flac", "is the file damaged"),
        ("NaN", "holds NaN"),
        ("folder", "is a folder"),
        ("missing", "No such file"),
    ],
)
def test_the_line_says_what_is_wrong(write, tmp_path, kind, words):
    with pytest.raises(AudioError, match=words):
        load_audio(bad_files(write, tmp_path)[kind])


def test_a_file_without_permission(write, monkeypatch):
    path = write()

    def refuse(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)  # file modes do not stop the superuser, who may run this
    with pytest.raises(AudioError, match=r"a\.wav: cannot be read \(Permission denied\)"):
        load_audio(path)


def test_a_wav_written_to_a_pipe_promises_too_much_and_is_read(write):
    path = write()
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    assert load_audio(path)[0].shape == (1, 8000)


KINDS = [
    *(("WAV", kind) for kind in ("PCM_16", "PCM_24", "FLOAT", "ULAW", "IMA_ADPCM", "MS_ADPCM", "GSM610", "G721_32")),
    *(("WAVEX", "PCM_16"), ("RF64", "PCM_16"), ("RF64", "FLOAT"), ("W64", "PCM_16"), ("W64", "GSM610")),
    *(("AIFF", "PCM_16"), ("AIFF", "ULAW"), ("CAF", "PCM_16"), ("CAF", "ALAC_16"), ("AU", "PCM_16"), ("AU", "ULAW")),
    *(("NIST", "PCM_16"), ("NIST", "ULAW"), ("FLAC", "PCM_16"), ("VOC", "PCM_16"), ("AVR", "PCM_16")),
    *(("SVX", "PCM_16"), ("WVE", "ALAW"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")),
]


@pytest.mark.parametrize(("kind", "subtype"), KINDS)
def test_each_format_is_read_whole_in_equal_pieces_and_refused_when_cut(tmp_path, kind, subtype):
    path = tmp_path / "sound"
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 24007) * np.sin(np.arange(24007) / 40)
    soundfile.write(path, samples, 8000, format=kind, subtype=subtype)
    source = AudioSource.open(path)
    source.check_end()
    whole = source.read()
    assert 24007 <= whole.shape[-1] == source.num_samples < 24007 + 500
    for start in (12000, 100, 23000, 0):
        assert torch.equal(source.read(None, start, 900), whole[:, start : start + 900])
    assert torch.equal(torch.cat(list(source.blocks(8000, 999)), -1), whole)
    data = path.read_bytes()
    path.write_bytes(data[: int(0.6 * len(data))])

    def read() -> None:
        AudioSource.open(path).check_end()

    with pytest.raises(AudioError, match=r"sound: (is truncated|cannot be decoded|is no audio)"):
        read()


@pytest.mark.parametrize("name", ["pipe.wav", "pipe.mp3", "socket.wav"])
def test_what_would_wait_for_a_writer_is_never_opened(tmp_path, name):
    if name.startswith("pipe"):
        os.mkfifo(tmp_path / name)
    else:
        with socket.socket(socket.AF_UNIX) as waiting:
            waiting.bind(str(tmp_path / name))
    with pytest.raises(AudioError, match=rf"{name}: is a pipe, socket or device"):
        AudioSource.open(tmp_path / name)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("name", ["x" * 300 + ".wav", "a\0b.wav", "\ud800.wav", "a" * 5000])
def test_a_name_that_no_file_can_have_is_the_names_fault(tmp_path, name):
    with pytest.raises(AudioError, match="cannot be read") as caught:
        AudioSource.open(tmp_path / name)
    assert "\0" not in str(caught.value)
    str(caught.value).encode()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO])
@pytest.mark.parametrize("name", ["a.wav", "a.mp3"])
def test_a_failure_of_the_machine_says_nothing_about_the_file(write, monkeypatch, name, number):
    path = write(name)

    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            AudioSource.open(path)
    assert caught.value.filename == str(path)
    source = AudioSource.open(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", fail)
        with pytest.raises(OSError, match=os.strerror(number)):
            source.read()


def test_a_piece_is_read_with_one_opening_of_its_file(write, monkeypatch):
    paths = [write("a.wav"), write("a.flac")]
    opened = []
    open_file = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest, **known: opened.append(path) or open_file(path, *rest, **known))
    for path in paths:
        AudioSource(path, 16000, 0, 8000).read(8000, 100, 50)
    assert opened == paths


@pytest.mark.parametrize(("rate", "seconds"), [(99, 1), (2_000_000, 0.001)])
def test_a_rate_that_no_audio_has_is_refused(write, rate, seconds):
    with pytest.raises(AudioError, match=rf"a\.wav: its sample rate is {rate} Hz"):
        AudioSource.open(write(samples=np.zeros(10), rate=rate))


def test_too_many_channels_are_refused(write):
    with pytest.raises(AudioError, match=r"a\.wav: has 300 channels"):
        AudioSource.open(write(samples=np.zeros((10, 300))))


def test_a_header_that_promises_more_than_its_bytes_can_hold_is_refused(write):
    path = write("a.flac")
    data = bytearray(path.read_bytes())
    data[21] |= 0x0F
    data[22:26] = b"\xff" * 4
    path.write_bytes(data)
    with pytest.raises(AudioError, match=r"a\.flac: its header promises 68719476735 samples"):
        AudioSource.open(path)


@pytest.mark.parametrize("rate", [0, -16000])
def test_audio_is_not_read_at_no_rate(write, rate):
    with pytest.raises(AudioError, match=r"a\.wav: expected a positive sample rate"):
        load_audio(write(), rate)


def test_the_end_of_a_file_can_be_checked_without_reading_it(write, tmp_path):
    AudioSource.open(write("whole.flac")).check_end()
    with pytest.raises(AudioError, match=r"truncated\.flac"):
        AudioSource.open(bad_files(write, tmp_path)["truncated flac"]).check_end()


# --- writing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "deep/er/a.wav"])
def test_what_is_written_is_read_back(tmp_path, mini_speech, name):
    save_audio(tmp_path / name, mini_speech, 16000)
    wave, rate = load_audio(tmp_path / name)
    assert rate == 16000
    assert soundfile.info(tmp_path / name).subtype == "PCM_16"
    torch.testing.assert_close(wave, mini_speech, atol=1.1 / 32768, rtol=1e-4)


def test_samples_beyond_one_are_clipped_and_do_not_wrap(tmp_path):
    save_audio(tmp_path / "a.wav", torch.tensor([[-3.0, -1.0, 0.0, 1.0, 3.0]]), 16000)
    expected = torch.tensor([[-1.0, -1.0, 0.0, 1.0, 1.0]])
    torch.testing.assert_close(load_audio(tmp_path / "a.wav")[0], expected, atol=1 / 32000, rtol=0)


def test_pieces_written_are_the_whole_written(tmp_path, mini_speech):
    save_audio(tmp_path / "whole.flac", mini_speech, 16000)
    with AudioWriter(tmp_path / "pieces.flac", 16000) as file:
        for piece in mini_speech.split([1, 999, 16000, 15000], dim=-1):
            file.write(piece)
    assert torch.equal(load_audio(tmp_path / "pieces.flac")[0], load_audio(tmp_path / "whole.flac")[0])


def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, mini_speech):
    path = tmp_path / "a.wav"
    save_audio(path, mini_speech, 16000)
    before = path.read_bytes()

    def write_and_fail() -> None:
        with AudioWriter(path, 16000) as file:
            file.write(mini_speech)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_fail()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]


@pytest.mark.parametrize(("name", "rate"), [("a.xyz", 16000), ("a", 16000), ("a.mp3", 96000)])
def test_formats_that_cannot_be_written(tmp_path, name, rate):
    with pytest.raises(AudioError, match=f"{name}: cannot be written at {rate} Hz"):
        save_audio(tmp_path / name, torch.zeros(1, 10), rate)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(10,), (2, 10), (1, 1, 10)])
def test_only_mono_is_written(tmp_path, shape):
    with pytest.raises(AudioError, match=r"shape \[1, T\]"):
        save_audio(tmp_path / "a.wav", torch.zeros(shape), 16000)


# --- folders -------------------------------------------------------------------------------------------------


def test_audio_files_are_found_by_suffix_and_sorted(tmp_path):
    for name in ("b/2.WAV", "b/1.flac", "a/x.ogg", ".hidden/a.wav", "a/.x.wav", "a/notes.txt", "c.mp3"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    found = [str(path.relative_to(tmp_path)) for path in find_audio_files(tmp_path)]
    assert found == ["a/x.ogg", "b/1.flac", "b/2.WAV", "c.mp3"]


def test_audio_is_found_under_every_suffix_that_corpora_use(tmp_path):
    suffixes = "sph wv1 wv2 nist aifc m4a mp4 aac webm mka amr 3gp gsm wma rf64 spx".split()  # noqa: SIM905
    names = [f"{number:02}.{suffix}" for number, suffix in enumerate(suffixes)]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "q.wav").symlink_to("nowhere.wav")
    assert [path.name for path in find_audio_files(tmp_path)] == [*names, "q.wav"]


@pytest.mark.parametrize("backwards", [False, True])
def test_of_a_folder_and_a_link_to_it_the_first_by_name_is_searched_in_whatever_order_they_lie(
    tmp_path, monkeypatch, backwards
):
    (tmp_path / "b").mkdir()
    (tmp_path / "b/1.wav").touch()
    for link in "ac":
        (tmp_path / link).symlink_to(tmp_path / "b")
    scandir = os.scandir

    class InOrder(contextlib.AbstractContextManager):
        def __init__(self, path):
            self.found = sorted(scandir(path), key=lambda entry: entry.name, reverse=not backwards)

        def __next__(self):
            if not self.found:
                raise StopIteration
            return self.found.pop()

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", InOrder)
    assert find_audio_files(tmp_path) == [tmp_path / "a/1.wav"]


def test_a_folder_that_cannot_be_searched_stands_among_the_files(tmp_path, monkeypatch):
    for name in ("a/1.wav", "b/1.wav", "c/1.wav"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    scandir = os.scandir

    def refuse(path, number=errno.EACCES):
        if Path(path).name == "b":
            raise OSError(number, os.strerror(number), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = find_audio_files(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in found] == ["a/1.wav", "b", "c/1.wav"]
    with pytest.raises(AudioError, match=r"/b: cannot be read \(Permission denied\)"):
        AudioSource.open(found[1])
    monkeypatch.setattr(os, "scandir", lambda path: refuse(path, errno.EMFILE))
    with pytest.raises(OSError, match="Too many open files"):
        find_audio_files(tmp_path)


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(AudioError, match="nowhere: is not a folder"):
        find_audio_files(tmp_path / "nowhere")


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3", ".aiff"])
@pytest.mark.parametrize("share", [0, 0.001, 0.5, 1])
def test_a_full_disk_is_one_error_and_leaves_no_file(tmp_path, suffix, share):
    path = tmp_path / f"a{suffix}"
    wave = torch.rand(1, 16000) - 0.5

    def write() -> None:
        with AudioWriter(path, 16000) as file:
            for _ in range(5):
                file.write(wave)

    write()
    size = path.stat().st_size
    path.unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(0, int(size * share) - 1), hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []


# --- mu-law --------------------------------------------------------------------------------------------------


def test_mu_law_keeps_samples_to_within_half_a_class():
    wave = torch.linspace(-1.2, 1.2, 100001)
    classes = mu_law_encode(wave)
    assert classes.unique().tolist() == list(range(256))
    assert (classes.diff() >= 0).all()
    companded = (x := mu_law_decode(classes)).sign() * (255 * x.abs()).log1p() / np.log(256)
    exact = wave.clamp(-1, 1)
    exact = exact.sign() * (255 * exact.abs()).log1p() / np.log(256)
    assert (companded - exact).abs().max() <= 1 / 255 + 1e-6


def test_every_mu_law_class_is_that_of_its_own_amplitude():
    classes = torch.arange(256)
    assert torch.equal(mu_law_encode(mu_law_decode(classes)), classes)
    assert mu_law_encode(torch.zeros(1)).item() == 128


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_one_channel_of_several_is_read_alone(tmp_path, speech_folder, suffix):
    voices = [load_audio(min((speech_folder / name).glob("*.ogg")), 16000)[0][0, :16000] for name in ("june", "carlo")]
    path = tmp_path / f"talk{suffix}"
    soundfile.write(path, torch.stack(voices, 1).numpy(), 16000)
    both = [AudioSource.open(path, channel=channel) for channel in (0, 1)]
    waves = [source.read() for source in both]
    for wave, voice, other in zip(waves, voices, reversed(voices), strict=True):
        heard = [torch.corrcoef(torch.stack([wave[0, 2000:12000], one[2000:12000]]))[0, 1] for one in (voice, other)]
        assert heard[0] > 0.5 > abs(heard[1])
    torch.testing.assert_close(sum(waves) / 2, load_audio(path)[0])
    for source, wave in zip(both, waves, strict=True):
        assert torch.equal(source.read(None, 700, 900), wave[:, 700:1600])
        assert torch.equal(torch.cat(list(source.blocks(16000, 999)), dim=-1), wave)
    with pytest.raises(AudioError, match=r"has 2 channels, number 2 \(from 0 on\) is asked for"):
        AudioSource.open(path, channel=2)
