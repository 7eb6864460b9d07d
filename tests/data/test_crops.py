from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audiovq.batching import evenly_spread, read_ahead
from audiovq.data.crops import CropSampler
from audiovq.data.manifest import Utterance
from audiovq.errors import AudioError


def make(folder: Path, name: str, samples: int, rate: int = 16000) -> Utterance:
    """An utterance of noise that is different in each file, so that every crop shows where it is from."""
    wave = np.random.default_rng(len(name) + samples).uniform(-0.9, 0.9, samples)
    soundfile.write(folder / f"{name}.wav", wave, rate, subtype="FLOAT")
    return Utterance(name, folder / f"{name}.wav", samples / rate, rate, samples)


def position(crop: torch.Tensor, whole: torch.Tensor) -> int | None:
    """Where a crop [1, t] is in a signal [1, T]."""
    if whole.shape[-1] < crop.shape[-1]:
        return None
    windows = whole[0].unfold(0, crop.shape[-1], 1)
    (found,) = torch.nonzero((windows == crop).all(dim=1), as_tuple=True)
    return int(found[0]) if len(found) else None


def test_a_batch_depends_on_seed_and_index_alone(tmp_path):
    utterances = [make(tmp_path, "a", 5000), make(tmp_path, "b", 7000)]
    sampler = CropSampler(utterances, 16000, 400, 8, seed=3)
    batches = [sampler.batch(index) for index in range(4)]
    assert batches[0].shape == (8, 1, 400)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 (what the sampler must not use)
    again = CropSampler(utterances, 16000, 400, 8, seed=3)
    for index in (2, 0, 3, 1):
        assert torch.equal(again.batch(index), batches[index])
    assert not torch.equal(batches[0], batches[1])
    assert not torch.equal(CropSampler(utterances, 16000, 400, 8, seed=4).batch(0), batches[0])


@pytest.mark.parametrize("rate", [8000, 16000, 22050])
def test_crops_are_slices_of_the_whole_resampled_signal(tmp_path, rate):
    utterances = [make(tmp_path, "a", 4000, rate), make(tmp_path, "b", 3000, rate)]
    wholes = [utterance.source().read(16000) for utterance in utterances]
    crops = torch.cat([CropSampler(utterances, 16000, 500, 16, seed=0).batch(index) for index in range(2)])
    for crop in crops:
        errors = [
            (whole[0].unfold(0, 500, 1) - crop).abs().amax(dim=1).min() for whole in wholes if whole.shape[-1] >= 500
        ]
        assert min(errors) < 1e-5


def test_every_second_of_audio_is_equally_likely(tmp_path):
    utterances = [make(tmp_path, "short", 1000), make(tmp_path, "long", 5000)]
    wholes = [utterance.source().read() for utterance in utterances]
    sampler = CropSampler(utterances, 16000, 8, 50, seed=1)
    starts = [[position(crop, whole) for whole in wholes] for index in range(24) for crop in sampler.batch(index)]
    short = [first for first, _ in starts if first is not None]
    long = [second for _, second in starts if second is not None]
    assert len(short) + len(long) == 1200
    # Binomial(1200, 1/6): 200 with a standard deviation of 13.
    assert abs(len(short) - 200) < 4 * 13
    # Ten parts of the long one, expected equally often: chi-square with 9 degrees of freedom, 99.9 % quantile 27.9.
    observed = np.histogram(long, bins=10, range=(0, 5000 - 8))[0]
    expected = len(long) / 10
    assert ((observed - expected) ** 2 / expected).sum() < 27.9
    assert min(long) < 100
    assert max(long) > 4892


def test_an_utterance_as_long_as_a_crop_or_shorter_is_followed_by_silence(tmp_path):
    for samples in (1, 399, 400):
        utterance = make(tmp_path, f"n{samples}", samples)
        crops = CropSampler([utterance], 16000, 400, 2, seed=0).batch(0)
        whole = utterance.source().read(16000)
        for crop in crops:
            assert torch.equal(crop[:, :samples], whole)
            assert not crop[:, samples:].any()


@pytest.mark.parametrize("rate", [16000, 48000])
def test_only_the_crop_is_read_from_a_long_file(tmp_path, monkeypatch, rate):
    utterance = make(tmp_path, "long", 20 * rate, rate)
    read = 0
    original = soundfile.SoundFile.read

    def counting(file, frames=-1, *arguments, **options):
        nonlocal read
        samples = original(file, frames, *arguments, **options)
        read += len(samples)
        return samples

    monkeypatch.setattr(soundfile.SoundFile, "read", counting)
    CropSampler([utterance], 16000, 16000, 10, seed=0).batch(0)
    # At another rate a crop is resampled in the whole blocks of half a second that it lies in.
    assert 10 * rate <= read < (1.05 if rate == 16000 else 1.8) * 10 * rate


def test_a_crop_opens_its_file_once(tmp_path, monkeypatch):
    utterance = make(tmp_path, "a", 5000)
    opened = []
    open_file = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest, **known: opened.append(path) or open_file(path, *rest, **known))
    CropSampler([utterance], 16000, 400, 8, seed=0).batch(0)
    assert opened == 8 * [utterance.path]


def test_a_file_that_was_replaced_is_an_error_that_names_it(tmp_path):
    utterance = make(tmp_path, "a", 5000)
    make(tmp_path, "a", 2000)
    with pytest.raises(AudioError, match=r"a\.wav: holds 2000 samples, .* has the file been replaced"):
        CropSampler([utterance], 16000, 400, 1, seed=0).batch(0)


def test_read_ahead_is_map_in_order():
    def slow_first(number: int) -> int:
        time.sleep(0.02 if number == 0 else 0)
        return number * number

    for threads in (1, 3):
        assert list(read_ahead(slow_first, range(20), threads)) == [number * number for number in range(20)]
    assert list(read_ahead(slow_first, [], 2)) == []


def test_read_ahead_is_bounded_and_runs_ahead():
    started = []

    def note(number: int) -> int:
        started.append(number)
        return number

    results = read_ahead(note, count(), 3)
    assert started == []  # Nothing is read before the first batch is asked for.
    for taken in range(1, 6):
        assert next(results) == taken - 1
        time.sleep(0.05)
        assert taken < len(started) <= taken + 2 * 3
    results.close()
    after = len(started)
    time.sleep(0.05)
    assert len(started) == after


def test_read_ahead_raises_an_error_at_its_place_and_ends_its_threads():
    def fail_at_three(number: int) -> int:
        if number == 3:
            raise AudioError("number 3")
        return number

    before = threading.active_count()
    results = read_ahead(fail_at_three, count(), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(AudioError, match="number 3"):
        next(results)
    assert threading.active_count() == before


@pytest.mark.parametrize(("length", "wanted"), [(10, 3), (7, 7), (3, 10), (100, 1)])
def test_evenly_spread_keeps_order_and_covers_the_list(tmp_path, length, wanted):
    utterances = [Utterance(f"u{number:03d}", tmp_path / "x.wav", 1.0, 8000, 8000) for number in range(length)]
    chosen = evenly_spread(utterances, wanted)
    places = [utterances.index(utterance) for utterance in chosen]
    assert len(places) == min(length, wanted)
    assert places == sorted(set(places))
    assert places[0] == 0
    gaps = np.diff([*places, length])
    assert gaps.max() - gaps.min() <= 1


def test_speakers_are_those_of_the_crops(tmp_path):
    utterances = [replace(make(tmp_path, name, 3000), speaker=speaker) for name, speaker in (("a", "x"), ("bb", None))]
    wholes = {utterance.speaker: utterance.source().read(16000) for utterance in utterances}
    sampler = CropSampler(utterances, 16000, 400, 12, seed=0)
    speakers = sampler.speakers(3)
    assert set(speakers) == {"x", None}
    for crop, speaker in zip(sampler.batch(3), speakers, strict=True):
        assert position(crop, wholes[speaker]) is not None
