"""Whatever an audio file holds, it is read or refused in one line, soon and in little memory."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from audiovq.audio.files import AudioSource, load_audio

SHARED = settings(settings.get_profile("fuzz"), max_examples=40)
SOUND = {
    "pcm.wav": ("WAV", "PCM_16"),
    "float.wav": ("WAV", "FLOAT"),
    "adpcm.wav": ("WAV", "IMA_ADPCM"),
    "extensible.wav": ("WAVEX", "PCM_24"),
    "a.flac": ("FLAC", "PCM_16"),
    "vorbis.ogg": ("OGG", "VORBIS"),
    "opus.ogg": ("OGG", "OPUS"),
    "a.mp3": ("MP3", "MPEG_LAYER_III"),
    "a.aiff": ("AIFF", "PCM_16"),
    "a.w64": ("W64", "PCM_16"),
    "a.caf": ("CAF", "PCM_16"),
    "a.sph": ("NIST", "PCM_16"),
    "a.au": ("AU", "ULAW"),
}
STREAMS = {
    **{"a.m4a": ("aac", 16000), "a.mka": ("aac", 16000), "a.aac": ("aac", 16000), "a.webm": ("libopus", 48000)},
    **{"a.tta": ("tta", 16000), "a.wv": ("wavpack", 16000), "a.ac3": ("ac3", 32000)},
    "a.amr": ("libopencore_amrnb", 8000),
}


@pytest.fixture(scope="module")
def files(speech_folder, tmp_path_factory) -> dict[str, bytes]:
    """A quarter of a second of real speech in many formats."""
    folder = tmp_path_factory.mktemp("audio")
    wave = load_audio(speech_folder / "allison/en-conf-invalid.ogg", 16000, duration=0.25)[0].numpy()
    for name, (form, subtype) in SOUND.items():
        soundfile.write(folder / name, wave[0], 16000, format=form, subtype=subtype)
    for name, (codec, rate) in STREAMS.items():
        with av.open(folder / name, "w") as container:
            stream = container.add_stream(codec, rate=rate, layout="mono")
            stream.codec_context.open(strict=False)
            frame = av.AudioFrame.from_ndarray((wave * 32767).astype(np.int16), format="s16", layout="mono")
            frame.sample_rate = 16000
            resampler = av.AudioResampler(stream.format, "mono", rate, stream.frame_size or None)
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(stream.encode(part))
            container.mux(stream.encode(None))
    for path in folder.iterdir():
        assert load_audio(path, 16000)[0].shape[-1] >= 3900, path
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@SHARED
@given(data=st.data())
@pytest.mark.parametrize("name", [*SOUND, *STREAMS])
def test_a_damaged_file(damaged, safely, files, tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data.draw(damaged(files[name])))
    read_all(path, safely)


def read_all(path: Path, safely) -> None:
    with safely():
        source = AudioSource.open(path)
        source.check_end()
        # A header that tells another rate makes many samples of few; nobody asks for all of them at once.
        length = source.length_at(16000)
        first = source.read(16000, 0, min(length, 16000))
        assert first.isfinite().all()
        source.read(16000, max(0, length - 100), min(length, 100))
