"""Pictures for the report, as small as they get: paletted PNG for what is a raster, SVG paths for curves."""

from __future__ import annotations

import base64
import colorsys
import io
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, Int64
    from torch import Tensor

MEL_FFT, MEL_BINS = 1024, 80
"""FFT size in samples and bins of the mel pictures; the hop is a quarter of the FFT size."""
MEL_RANGE = 8.0
"""Range of natural-log magnitudes from the loudest point down to the darkest colour: 8 is 69 dB."""

_GOLDEN = (5**0.5 - 1) / 2


def mel_images(*waves: Float[Tensor, "1 time"], sample_rate: int) -> list[str]:
    """Log-mel spectrograms of waveforms [1, T], one pixel a bin and frame, as data URIs.

    All share one colour scale, that of the first.
    """
    import matplotlib

    from audiovq.audio.signal import log_mel

    mels = [log_mel(wave.nan_to_num(), sample_rate, MEL_FFT, MEL_BINS)[0].numpy() for wave in waves]
    top = mels[0].max()
    palette = (matplotlib.colormaps["magma"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
    levels = [np.clip((mel - top) / MEL_RANGE + 1, 0, 1) * 255 for mel in mels]
    return [_png(level[::-1].astype(np.uint8), palette) for level in levels]


def code_strip(codes: Int64[Tensor, "books frames"]) -> str:
    """One row a codebook, one pixel a frame, as a data URI; a code has the same colour wherever it occurs."""
    shades = np.floor(codes.numpy() * _GOLDEN % 1 * 256).astype(np.uint8)
    # Neighbouring hues differ in lightness too, so that more codes can be told apart.
    looks = [(0.45, 0.75), (0.7, 0.6), (0.58, 0.45)]
    colours = [colorsys.hls_to_rgb(i / 256, *looks[i % 3]) for i in range(256)]
    return _png(shades, (np.array(colours) * 255).round().astype(np.uint8))


def histogram_path(counts: Int64[np.ndarray, " codes"], points: int = 256) -> str:
    """SVG path of log(1 + count), sorted, in a box of 100 by 100 whose top is the largest count."""
    heights = np.log1p(np.sort(counts)[::-1]) / np.log1p(max(counts.max(), 1)) * 100
    if len(heights) > points:
        heights = heights[np.linspace(0, len(heights) - 1, points).round().astype(int)]
    x = np.linspace(0, 100, len(heights) + 1)
    steps = [f"V{100 - y:.2f}H{right:.2f}" for y, right in zip(heights, x[1:], strict=True)]
    return "M0 100" + "".join(steps) + "V100Z"


def data_uri(content: bytes, media_type: str) -> str:
    """Content as an address that holds it."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _png(indices: np.ndarray, palette: np.ndarray) -> str:
    """A picture [height, width] of uint8 indices into a palette [256, 3]."""
    from PIL import Image

    picture = Image.fromarray(indices)
    picture.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return data_uri(buffer.getvalue(), "image/png")
