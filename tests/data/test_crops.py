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
from audiovq.config import AugmentationConfig
from audiovq.data.crops import CropSampler
from audiovq.data.manifest import Utterance
from audiovq.errors import AudioError, ConfigError


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
    batches = [sampler.batch(index).wave for index in range(4)]
    assert batches[0].shape == (8, 1, 400)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 (what the sampler must not use)
    again = CropSampler(utterances, 16000, 400, 8, seed=3)
    for index in (2, 0, 3, 1):
        assert torch.equal(again.batch(index).wave, batches[index])
    assert not torch.equal(batches[0], batches[1])
    assert not torch.equal(CropSampler(utterances, 16000, 400, 8, seed=4).batch(0).wave, batches[0])


@pytest.mark.parametrize("rate", [8000, 16000, 22050])
def test_crops_are_slices_of_the_whole_resampled_signal(tmp_path, rate):
    utterances = [make(tmp_path, "a", 4000, rate), make(tmp_path, "b", 3000, rate)]
    wholes = [utterance.source().read(16000) for utterance in utterances]
    crops = torch.cat([CropSampler(utterances, 16000, 500, 16, seed=0).batch(index).wave for index in range(2)])
    for crop in crops:
        errors = [
            (whole[0].unfold(0, 500, 1) - crop).abs().amax(dim=1).min() for whole in wholes if whole.shape[-1] >= 500
        ]
        assert min(errors) < 1e-5


def test_every_second_of_audio_is_equally_likely(tmp_path):
    utterances = [make(tmp_path, "short", 1000), make(tmp_path, "long", 5000)]
    wholes = [utterance.source().read() for utterance in utterances]
    sampler = CropSampler(utterances, 16000, 8, 50, seed=1)
    starts = [[position(crop, whole) for whole in wholes] for index in range(24) for crop in sampler.batch(index).wave]
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
        crops = CropSampler([utterance], 16000, 400, 2, seed=0).batch(0).wave
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
        deadline = time.monotonic() + 10
        while len(started) <= taken and time.monotonic() < deadline:
            time.sleep(0.01)
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
    speakers = [utterances[number].speaker for number in sampler.batch(3).numbers]
    assert set(speakers) == {"x", None}
    for crop, speaker in zip(sampler.batch(3).wave, speakers, strict=True):
        assert position(crop, wholes[speaker]) is not None


# --- several manifests, memory, augmentation ---------------------------------------------------------------------


def test_utterances_are_drawn_by_their_weights(tmp_path):
    utterances = [make(tmp_path, "a", 5000), make(tmp_path, "b", 7000)]
    sampler = CropSampler(utterances, 16000, 400, 500, seed=3, weights=[3.0, 1.0])
    numbers = sampler.batch(0).numbers
    assert numbers.count(0) / 500 == pytest.approx(0.75, abs=0.06)


@pytest.mark.parametrize("rate", [16000, 22050])
def test_crops_from_memory_are_those_from_the_files_but_for_16_bits(tmp_path, rate):
    utterances = [make(tmp_path, "a", 5000, rate=rate), make(tmp_path, "b", 300, rate=rate)]
    from_files = CropSampler(utterances, 16000, 400, 8, seed=3)
    from_memory = CropSampler(utterances, 16000, 400, 8, seed=3)
    from_memory.keep_in_memory(0.1, threads=2)
    for index in range(3):
        one, other = from_files.batch(index), from_memory.batch(index)
        assert one.starts == other.starts
        torch.testing.assert_close(one.wave.clamp(-1, 1), other.wave, atol=1 / 32767, rtol=0)


def test_speech_that_does_not_fit_into_the_memory_that_is_given_is_refused(tmp_path):
    sampler = CropSampler([make(tmp_path, "a", 5000)], 16000, 400, 8, seed=3)
    with pytest.raises(ConfigError, match=r"data\.memory_gib: the training speech needs .* found 1e-06; set it to"):
        sampler.keep_in_memory(1e-6, threads=1)


def test_gain_and_sign_are_random_and_functions_of_the_index(tmp_path):
    utterances = [make(tmp_path, "a", 5000)]
    settings = AugmentationConfig(gain=(-12, -6), flip=True)
    plain = CropSampler(utterances, 16000, 400, 64, seed=3).batch(2).wave
    changed = CropSampler(utterances, 16000, 400, 64, seed=3, augmentation=settings).batch(2).wave
    factors = (changed * plain).sum(-1) / plain.square().sum(-1)
    torch.testing.assert_close(changed, factors[..., None] * plain, atol=1e-5, rtol=1e-4)
    assert 10 ** (-12 / 20) <= factors.abs().min() < factors.abs().max() <= 10 ** (-6 / 20) + 1e-6
    assert 15 < int((factors < 0).sum()) < 49
    again = CropSampler(utterances, 16000, 400, 64, seed=3, augmentation=settings).batch(2).wave
    assert torch.equal(changed, again)


def test_what_a_gain_would_clip_is_quieter_instead(tmp_path):
    utterances = [make(tmp_path, "a", 5000)]
    settings = AugmentationConfig(gain=(60, 60))
    wave = CropSampler(utterances, 16000, 400, 8, seed=3, augmentation=settings).batch(0).wave
    torch.testing.assert_close(wave.abs().amax(-1), torch.ones(8, 1))


def test_crops_of_all_speeds_are_equally_long_where_rate_times_speed_is_no_whole_number(tmp_path):
    utterance = make(tmp_path, "long", 4000, 1010)
    settings = AugmentationConfig(speeds=[1, 0.95])
    crops = CropSampler([utterance], 1010, 3030, 4, seed=0, augmentation=settings).batch(0)
    assert {*crops.speeds} == {1, 0.95}
    assert crops.wave.shape == (4, 1, 3030)


@pytest.mark.parametrize(("speed", "samples"), [(0.9, 14401), (1.1, 17601), (1, 16000)])
def test_crops_of_earlier_runs_are_taken_from_as_many_samples(tmp_path, speed, samples):
    sampler = CropSampler([make(tmp_path, "a", 20000)], 16000, 16000, 1, seed=0)
    assert sampler._needed(speed) == samples


@pytest.mark.parametrize("speed", [0.8, 1.25])
def test_a_faster_crop_is_higher_and_tells_where_it_was_taken(tmp_path, speed):
    """A tone at 1 kHz comes out `speed` times as high."""
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(32000) / 16000)
    soundfile.write(tmp_path / "tone.wav", tone, 16000)
    utterance = Utterance("tone", tmp_path / "tone.wav", 2.0, 16000, 32000)
    sampler = CropSampler([utterance], 16000, 8000, 4, seed=0, augmentation=AugmentationConfig(speeds=[speed]))
    crops = sampler.batch(0)
    assert crops.wave.shape == (4, 1, 8000)
    assert crops.speeds == [speed] * 4
    spectrum = torch.fft.rfft(crops.wave[0, 0] * torch.hann_window(8000)).abs()
    assert int(spectrum.argmax()) * 2 == pytest.approx(1000 * speed, abs=2)
    (seconds, *_) = crops.seconds(np.array([0, 8000]), 16000)
    assert seconds.tolist() == pytest.approx([crops.starts[0] / 16000, crops.starts[0] / 16000 + 0.5 * speed])
