"""The feature extractor: what it pads, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from audiovq import text
from audiovq.errors import AudioError
from audiovq.interop.transformers import AudioVQFeatureExtractor

EXTRACTOR = AudioVQFeatureExtractor(sampling_rate=16000, hop_length=320)
LONG, SHORT = np.linspace(-1, 1, 7), np.linspace(0, 1, 4, dtype=np.float32)


def test_waveforms_are_padded_on_the_right_and_the_mask_says_where():
    batch = EXTRACTOR([LONG, SHORT], sampling_rate=16000, return_tensors="np")
    assert batch["input_values"].shape == (2, 1, 7)
    assert batch["input_values"].dtype == np.float32
    assert np.array_equal(batch["input_values"][1, 0], [*SHORT, 0, 0, 0])
    assert batch["padding_mask"].tolist() == [[1] * 7, [1] * 4 + [0] * 3]


@pytest.mark.parametrize("wave", [SHORT, SHORT.tolist(), [SHORT.tolist()], (SHORT,)])
def test_one_waveform_is_a_batch_of_one(wave):
    batch = EXTRACTOR(wave, sampling_rate=16000, return_tensors="pt")
    assert batch["input_values"].shape == (1, 1, 4)
    assert batch["padding_mask"].tolist() == [[1, 1, 1, 1]]


def test_cut_and_padded_to_a_length():
    batch = EXTRACTOR(
        [LONG, SHORT], padding="max_length", max_length=5, truncation=True, return_tensors="np", sampling_rate=16000
    )
    assert batch["input_values"].shape == (2, 1, 5)
    assert batch["padding_mask"].sum(-1).tolist() == [5, 4]


def test_without_padding_lengths_stay_and_there_is_no_mask():
    batch = EXTRACTOR([LONG, SHORT], padding=False, sampling_rate=16000)
    assert [wave.shape for wave in batch["input_values"]] == [(1, 7), (1, 4)]
    assert "padding_mask" not in batch


def test_another_rate_is_refused_and_none_is_warned_of():
    with pytest.raises(AudioError, match="expected 16000 Hz, as the model has, found 24000; resample"):
        EXTRACTOR(SHORT, sampling_rate=24000)
    text.warned.clear()
    with pytest.warns(RuntimeWarning, match="taken to have 16000 Hz"):
        EXTRACTOR(SHORT)


WRONG = {
    "16 bits": (np.zeros(4, np.int16), "floating-point samples in .*, found int16"),
    "stereo": (np.zeros((2, 4)), r"expected mono samples \[T\], found shape \[2, 4\]"),
    "empty": ([SHORT, np.zeros(0)], "waveform 1: expected mono samples"),
    "not finite": ([SHORT, np.full(3, np.nan)], "waveform 1: holds NaN"),
}


@pytest.mark.parametrize(("wave", "message"), WRONG.values(), ids=WRONG)
def test_what_is_no_waveform_is_refused_in_one_line(wave, message):
    with pytest.raises(AudioError, match=message) as caught:
        EXTRACTOR(wave, sampling_rate=16000)
    assert "\n" not in str(caught.value)


def test_saved_and_loaded_it_is_the_same(tmp_path):
    other = AudioVQFeatureExtractor(sampling_rate=8000, hop_length=80)
    other.save_pretrained(tmp_path)
    assert AudioVQFeatureExtractor.from_pretrained(tmp_path).to_dict() == other.to_dict()
