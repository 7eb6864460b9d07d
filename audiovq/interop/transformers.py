"""audiovq's tokenizers as codecs of transformers, beside Mimi, DAC and EnCodec.

Importing this module registers them, so that `AutoModel.from_pretrained` and `AutoFeatureExtractor.from_pretrained`
load what `audiovq export --format transformers` wrote. Where no import can be added, `trust_remote_code=True` does the
same: the only code in such a folder is that import.

The folder stays a model of audiovq as well: `AudioTokenizer.from_pretrained` and all commands read it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioTokenization, AutoProcessor
from transformers.utils import logging

from audiovq.files import write_text
from audiovq.interop.codec import AudioVQModel
from audiovq.interop.codec_config import AudioVQConfig
from audiovq.interop.features import AudioVQFeatureExtractor
from audiovq.interop.folder import exported_model
from audiovq.models import release
from audiovq.models.tokenizer import AudioTokenizer

__all__ = ["AudioVQConfig", "AudioVQFeatureExtractor", "AudioVQModel", "export_transformers"]

TAGS = "audio, speech, tokenizer, codec, vq-vae, transformers"
EXAMPLE = """import audiovq.interop.transformers  # registers the model
from transformers import AutoFeatureExtractor, AutoModel

codec = AutoModel.from_pretrained("path/to/this/folder")
extractor = AutoFeatureExtractor.from_pretrained("path/to/this/folder")
wave, sample_rate = audiovq.load_audio("speech.wav", codec.config.sampling_rate)
inputs = extractor(wave[0].numpy(), sampling_rate=sample_rate, return_tensors="pt")
codes = codec.encode(**inputs).audio_codes
decoded = codec.decode(codes, inputs["padding_mask"]{speaker}).audio_values"""
"""What a model card shows in Python."""

AutoConfig.register(AudioVQConfig.model_type, AudioVQConfig, exist_ok=True)
for auto in (AutoModel, AutoModelForAudioTokenization):
    auto.register(AudioVQConfig, AudioVQModel, exist_ok=True)
for auto in (AutoFeatureExtractor, AutoProcessor):
    auto.register(AudioVQConfig, AudioVQFeatureExtractor, exist_ok=True)


def export_transformers(tokenizer: AudioTokenizer, output: str | Path, force: bool = False) -> None:
    """Write a folder that `AutoModel` and `AutoFeatureExtractor` load, with a model card.

    Args:
        force: replace an earlier export.

    Raises:
        ExportError: the model has no codes.
        OutputExistsError: `output` is not empty and `force` is not given, or it holds something else than an export.
    """
    speaker = f', speaker="{tokenizer.speakers[0]}"' if tokenizer.speakers else ""
    card = release.model_card("Audio tokenizer", TAGS, tokenizer.describe(), EXAMPLE.format(speaker=speaker))
    with exported_model(tokenizer, "transformers", output, force) as folder, _no_progress_bars():
        AudioVQModel.of(tokenizer).save_pretrained(folder)
        write_text(folder / release.CARD, card)


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    before = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            logging.enable_progress_bar()
