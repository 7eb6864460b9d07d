"""Listening pages: one HTML file each that needs nothing else, neither files beside it nor a network."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import audiovq
from audiovq.evaluation.pictures import MEL_FFT, data_uri, mel_images
from audiovq.text import escape

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def render(template: str, folder: Path | None = None, **values: Any) -> str:
    """A page from a template of this package, or of another folder, which may extend this package's `base.html.j2`."""
    import jinja2

    ours = jinja2.PackageLoader("audiovq.evaluation", ".")
    environment = jinja2.Environment(
        loader=ours if folder is None else jinja2.ChoiceLoader([ours, jinja2.FileSystemLoader(folder)]),
        autoescape=True,  # Ids, texts and paths are the user's.
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Half of a surrogate pair, as names that are not UTF-8 have it, cannot be written.
    return escape(environment.get_template(template).render(version=audiovq.__version__, **values))


def signals(waves: Mapping[str, Float[Tensor, "1 time"]], sample_rate: int) -> list[dict[str, str]]:
    """Players and pictures of equally long waveforms by their names, on the colour scale of the first."""
    images = mel_images(*waves.values(), sample_rate=sample_rate)
    return [
        {"name": name, "audio": flac(wave, sample_rate), "mel": image}
        for (name, wave), image in zip(waves.items(), images, strict=True)
    ]


def timeline(num_samples: int, sample_rate: int) -> dict[str, Any]:
    """Where the pictures of a signal lie, and ticks below them, in percent of its length: all align."""
    hop = MEL_FFT // 4
    seconds = num_samples / sample_rate
    return {
        "seconds": seconds,
        # Frame i of a spectrogram is centred on sample i * hop; a code frame begins there.
        "mel_left": -50 * hop / num_samples,
        "mel_width": 100 * (num_samples // hop + 1) * hop / num_samples,
        "ticks": ticks(seconds),
    }


def ticks(seconds: float, most: int = 6) -> list[tuple[float, str]]:
    """Round times within a signal: place in percent and label in seconds."""
    step = next((step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5) if seconds / step <= most), 5)
    return [(100 * i * step / seconds, f"{i * step:g}") for i in range(int(seconds / step) + 1)]


def flac(wave: Float[Tensor, "1 time"], sample_rate: int) -> str:
    """A waveform as 16-bit FLAC in a data URI."""
    import soundfile

    buffer = io.BytesIO()
    samples = wave.nan_to_num().clamp(-1, 1)[0].numpy()
    soundfile.write(buffer, samples, sample_rate, format="FLAC", subtype="PCM_16")
    return data_uri(buffer.getvalue(), "audio/flac")
