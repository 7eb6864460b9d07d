"""Pitch tracks: right on tones, kept beside the manifest, told at any time."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
import soundfile

from audiovq.audio import AudioSource
from audiovq.data import pitch
from audiovq.data.kept import identity_of
from audiovq.data.manifest import Utterance, write_manifest
from audiovq.data.pitch import PERIOD, RATE, PitchTracks, pitch_tracks, track_pyin, track_swift
from audiovq.errors import ConfigError


def tone(f0: float, seconds: float) -> np.ndarray:
    """A tone with harmonics, as a voice has them."""
    t = np.arange(round(seconds * RATE)) / RATE
    return (0.1 * sum(np.cos(2 * np.pi * k * f0 * t) / k for k in range(1, 15))).astype(np.float32)


@pytest.mark.parametrize("track", [track_pyin, track_swift])
def test_trackers_find_the_pitch_of_a_tone_and_none_of_noise(track):
    noise = 0.02 * np.random.default_rng(0).standard_normal(RATE // 2).astype(np.float32)
    wave = np.concatenate([noise, tone(180.0, 1.0), noise])
    found = track(wave)
    assert abs(len(found) - len(wave) / PERIOD) <= 2
    voiced = found[40:85]  # 0.64 s to 1.36 s.
    assert (voiced > 0).mean() > 0.9
    np.testing.assert_allclose(voiced[voiced > 0], 180.0, rtol=0.02)
    assert (found[3:25] > 0).mean() < 0.3


@pytest.fixture
def listed(tmp_path):
    """A manifest of two tones."""
    utterances = []
    for name, f0 in (("low", 110.0), ("high", 220.0)):
        soundfile.write(tmp_path / f"{name}.wav", tone(f0, 0.8), RATE)
        source = AudioSource.open(tmp_path / f"{name}.wav")
        utterances.append(Utterance(name, tmp_path / f"{name}.wav", source.duration, RATE, source.num_samples))
    write_manifest(tmp_path / "train.jsonl.gz", utterances)
    return tmp_path / "train.jsonl.gz", utterances


def test_tracks_are_kept_beside_the_manifest_and_made_anew_when_it_changes(listed, monkeypatch, capsys):
    manifest, utterances = listed
    tracks = pitch_tracks(manifest, utterances, "swift", processes=1)
    times = np.array([0.3, 0.5])
    np.testing.assert_allclose(tracks.at(np.array([0]), times[None])[0], 110.0, rtol=0.02)
    np.testing.assert_allclose(tracks.at(np.array([1]), times[None])[0], 220.0, rtol=0.02)
    assert (manifest.parent / "train.pitch-swift.npz").exists()
    assert re.search(
        r"pitch by swift of 0\.00 hours in \d+ s, \d+ x real time: .*train\.pitch-swift\.npz", capsys.readouterr().err
    )

    calls = []
    monkeypatch.setattr(
        pitch, "_track_all", lambda given, *_: calls.append(len(given)) or [np.ones(5, np.float32)] * len(given)
    )
    again = pitch_tracks(manifest, utterances, "swift")
    assert np.array_equal(again.values, tracks.values)
    assert not calls
    pitch_tracks(manifest, utterances[:1], "swift")
    (manifest.parent / "train.pitch-swift.npz").write_bytes(b"damaged")
    pitch_tracks(manifest, utterances, "swift")
    assert calls == [1, 2]


def test_each_core_tracks_where_a_system_does_not_tell_which_a_process_may_use(listed, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")  # As on macOS.
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    processes = []
    monkeypatch.setattr(
        pitch, "_track_all", lambda given, _, count: processes.append(count) or [np.ones(5, np.float32)] * len(given)
    )
    pitch_tracks(*listed, "swift")
    assert processes == [3]


def test_a_tracker_that_is_missing_is_named(listed, monkeypatch):
    monkeypatch.setattr(pitch, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"^pitch tracker 'swift' is not installed: pip install 'audiovq\[pitch\]'"):
        pitch_tracks(*listed, "swift")


def test_what_a_tracker_found_is_read_where_it_is_not_installed(listed, monkeypatch):
    manifest, utterances = listed
    values = np.array([100.0], np.float32)
    identity = identity_of(utterances)
    ends = np.arange(1, len(utterances) + 1)
    np.savez(manifest.parent / "train.pitch-swift.npz", values=values.repeat(len(ends)), ends=ends, identity=identity)
    monkeypatch.setattr(pitch, "find_spec", lambda _: None)
    for tracker in (None, "swift"):
        assert pitch_tracks(manifest, utterances, tracker).values.tolist() == [100.0] * len(ends)


def test_of_a_damaged_file_nothing_is_read_or_tracks_of_the_right_form(tmp_path):
    path, values = tmp_path / "pitch.npz", np.linspace(50, 600, 6, dtype=np.float32)
    np.savez_compressed(path, values=values, ends=np.array([2, 6]), identity=np.str_("of two"))
    whole, results = path.read_bytes(), set()
    for place in range(len(whole)):
        for change in (0x01, 0x15, 0xFF):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ change]) + whole[place + 1 :])
            found = pitch._read(path, "of two", 2)
            results.add(found is None)
            assert found is None or np.array_equal(found.values, values)
    assert results == {True, False}


def test_between_two_values_the_logarithm_is_interpolated_and_beside_silence_the_nearer_counts():
    tracks = PitchTracks(np.array([50, 100, 200, 0, 0, 300], np.float32), np.array([1, 6]))
    period = PERIOD / RATE
    (found,) = tracks.at(np.array([1]), period * np.array([[-0.1, 0.0, 0.5, 1.4, 1.6, 3.0, 3.6, 4.0, 5.0, 6.0]]))
    expected = [0, 100, 100 * 2**0.5, 200, 0, 0, 300, 300, 300, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
