"""The feature extractor of transformers for audiovq's models: waveforms into a padded batch."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import BatchFeature, SequenceFeatureExtractor

from audiovq.errors import AudioError
from audiovq.interop.remote_code import InPackage, auto_map
from audiovq.text import warn_once


class AudioVQFeatureExtractor(InPackage, SequenceFeatureExtractor):
    """Checks waveforms and pads them on the right, as the models' `encode` takes them.

    Args:
        sampling_rate: rate in Hz of the waveforms that the model works on.
        hop_length: samples a frame.
    """

    model_input_names = ["input_values", "padding_mask"]  # noqa: RUF012 (transformers reads it from the class)

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: int = 16000,
        padding_value: float = 0.0,
        hop_length: int = 320,
        **kwargs: Any,
    ):
        kwargs = {"auto_map": auto_map("AutoFeatureExtractor"), **kwargs}
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.hop_length = hop_length

    def __call__(
        self,
        raw_audio: Any,
        padding: bool | str = True,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        sampling_rate: int | None = None,
    ) -> BatchFeature:
        """`input_values` [B, 1, T] and, when padded, `padding_mask` [B, T]: 1 for samples, 0 behind them.

        Args:
            raw_audio: a waveform [T] in [-1, 1], or a list of them.
            padding: `True`: to the longest; `"max_length"`: to `max_length` samples; `False`: not at all, a list.
            truncation: cut waveforms after `max_length` samples.
            return_tensors: `"pt"` or `"np"`.
            sampling_rate: rate of the waveforms; has to be the model's.

        Raises:
            AudioError: the rate is another, or a waveform is empty, not mono, no floating-point numbers or not finite.
        """
        self._check_rate(sampling_rate)
        batched = isinstance(raw_audio, list | tuple) and len(raw_audio) > 0 and np.ndim(raw_audio[0]) > 0
        waves = [_checked(wave, number) for number, wave in enumerate(raw_audio if batched else [raw_audio])]
        padded = self.pad(
            BatchFeature({"input_values": waves}),
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            return_attention_mask=bool(padding),
        )
        features = {"input_values": [np.asarray(wave)[None] for wave in padded["input_values"]]}
        if padding:
            features["padding_mask"] = padded["attention_mask"]
        return BatchFeature(features, tensor_type=return_tensors)

    def _check_rate(self, sampling_rate: int | None) -> None:
        if sampling_rate is None:
            warn_once(
                "sampling_rate", f"sampling_rate was not given; the waveforms are taken to have {self.sampling_rate} Hz"
            )
        elif sampling_rate != self.sampling_rate:
            raise AudioError(
                f"sampling_rate: expected {self.sampling_rate} Hz, as the model has, found {sampling_rate}; resample "
                f"the audio, as datasets.Audio(sampling_rate={self.sampling_rate}) and audiovq.load_audio do"
            )


def _checked(wave: Any, number: int) -> np.ndarray:
    wave = np.asarray(wave)
    if wave.ndim != 1 or not wave.size:
        raise AudioError(f"waveform {number}: expected mono samples [T], found shape {list(wave.shape)}")
    if not np.issubdtype(wave.dtype, np.floating):
        raise AudioError(f"waveform {number}: expected floating-point samples in [-1, 1], found {wave.dtype}")
    if not np.isfinite(wave).all():
        raise AudioError(f"waveform {number}: holds NaN or infinite samples")
    return wave.astype(np.float32)
