"""Classical speech codecs, by their command-line tools, as the benchmark of quality runs them."""

from __future__ import annotations

import io
import math
import shlex
import shutil
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from audiovq.audio.resampling import resample
from audiovq.errors import AudioVQError

if TYPE_CHECKING:
    from torch import Tensor

RATE = 16000
"""Rate in Hz of the speech that goes in and comes out."""

STEP = RATE // 1000
"""Samples of a ms."""

Run = Callable[["Tensor"], tuple["Tensor", float]]
"""What a codec does: speech [1, T] at `RATE` to what it makes of it, as long, and the bits in between."""


class Codec(NamedTuple):
    """A family of codecs."""

    name: str
    tool: str
    package: str
    """Debian's, that holds the tool."""
    settings: dict[str, Run]
    in_ogg: bool = False
    """Whether its bits are counted in an Ogg file."""

    def missing(self) -> str | None:
        """What it needs and is not installed, for people."""
        if not shutil.which(self.tool):
            return f"{self.tool} is not installed (Debian package {self.package})"
        if self.in_ogg and not find_spec("av"):
            return "PyAV is not installed (pip install 'audiovq[media]')"
        return None


def codec2_run(mode: str) -> Run:
    """Codec 2, at 8 kHz."""
    rate, frame, longest_delay = 8000, 0.04, 0.04

    def run(speech: Tensor) -> tuple[Tensor, float]:
        from torch.nn.functional import pad

        narrow = resample(speech, RATE, rate)
        # It drops what fills no frame, and its delay would cost the end.
        frames = math.ceil((narrow.shape[-1] / rate + longest_delay) / frame)
        narrow = pad(narrow, (0, round(frames * frame * rate) - narrow.shape[-1]))
        bits = pipe(["c2enc", mode, "-", "-", "--bitperchar"], pcm(narrow))
        decoded = samples(pipe(["c2dec", mode, "-", "-", "--bitperchar"], bits))
        return align(speech, resample(decoded, rate, RATE)), len(bits) / (frames * frame) * speech.shape[-1] / RATE

    return run


def ogg_run(encoder: list[str], decoder: list[str]) -> Run:
    """A codec in Ogg; its bits are those of the packets, without what Ogg adds."""

    def run(speech: Tensor) -> tuple[Tensor, float]:
        import av

        file = pipe(encoder, pcm(speech))
        with av.open(io.BytesIO(file)) as container:
            size = sum(packet.size for packet in container.demux())
        return align(speech, samples(pipe(decoder, file))), 8.0 * size

    return run


def opus_run(kbps: int) -> Run:
    """Opus with a target bitrate, which it does not keep to."""
    raw = ["--raw", "--raw-rate", str(RATE), "--raw-chan", "1"]
    encoder = ["opusenc", "--quiet", *raw, "--speech", "--bitrate", str(kbps), "-", "-"]
    return ogg_run(encoder, ["opusdec", "--quiet", "--rate", str(RATE), "-", "-"])


def speex_run(quality: int) -> Run:
    """Wideband Speex."""
    return ogg_run(["speexenc", "-w", "--quality", str(quality), "-", "-"], ["speexdec", "-", "-"])


def align(speech: Tensor, decoded: Tensor) -> Tensor:
    """The decoded signal without its delay, and as long as the speech.

    Codecs delay by less than 0.1 s, not always alike, and some keep no phases: this finds the delay in ms at which the
    spectrograms correlate best.
    """
    import torch

    def spectrogram(wave: Tensor) -> Tensor:
        window = torch.hann_window(512)
        spectra = torch.stft(wave[0], 512, STEP, window=window, pad_mode="constant", return_complex=True)
        logs = (spectra[:200].abs() + 1e-3).log()  # Up to 6 kHz.
        return logs - logs.mean(-1, keepdim=True)

    first, second = spectrogram(speech), spectrogram(decoded)
    size = first.shape[-1] + second.shape[-1]
    products = torch.fft.rfft(second, size) * torch.fft.rfft(first, size).conj()
    delay = int(torch.fft.irfft(products.sum(0), size)[:100].argmax())
    moved = decoded[:, delay * STEP :][:, : speech.shape[-1]]
    return torch.nn.functional.pad(moved, (0, speech.shape[-1] - moved.shape[-1]))


def pipe(command: list[str], data: bytes) -> bytes:
    """What a tool makes of its standard input."""
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    if done.returncode:
        raise AudioVQError(f"{shlex.join(command)} failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def pcm(wave: Tensor) -> bytes:
    """A waveform [1, T] as 16-bit samples."""
    return (wave[0].clamp(-1, 1) * 32767).round().numpy().astype("<i2").tobytes()


def samples(data: bytes) -> Tensor:
    """16-bit samples as a waveform [1, T]."""
    import torch

    return torch.from_numpy(np.frombuffer(data, "<i2").astype(np.float32) / 32768)[None]


CODECS = (
    Codec(
        *("Codec 2", "c2enc", "codec2"),
        {mode: codec2_run(mode) for mode in ("700C", "1200", "2400", "3200")},
    ),
    Codec("Opus", "opusenc", "opus-tools", {f"{kbps}k": opus_run(kbps) for kbps in (6, 8)}, in_ogg=True),
    Codec("Speex", "speexenc", "speex", {f"quality {quality}": speex_run(quality) for quality in (0, 1)}, in_ogg=True),
)
