"""Audio files, resampling and spectrograms."""

from __future__ import annotations

from audiovq.audio.files import AudioSource, AudioWriter, find_audio_files, load_audio, save_audio

__all__ = ["AudioSource", "AudioWriter", "find_audio_files", "load_audio", "save_audio"]
