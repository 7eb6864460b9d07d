"""The speech of the bench: voices that are trained on, some of their utterances to choose settings by, and voices
that nobody has heard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cell_list import Cell
from cells import Bench
from torch import Tensor

from audiovq.batching import evenly_spread
from audiovq.config import load_config
from audiovq.data.manifest import Utterance, read_manifest, write_manifest
from audiovq.data.pitch import pitch_tracks
from audiovq.data.prepare import prepare
from audiovq.data.splits import split_names
from audiovq.errors import ManifestError

SPLITS = ("train", "dev", "test")


def prepare_data(bench: Bench, cell: Cell) -> dict[str, Any]:
    """Write the manifests and, once for all trainings, the pitch of the training speech."""
    listed, unseen = bench.exp / "data/listed", {*cell.settings["unseen"]}
    prepare(
        "folder", bench.speech, listed, speaker_pattern="{speaker}/", split_by="utterance", dev=0, test=0, force=True
    )
    found = read_manifest(listed / "train.jsonl.gz")
    known = [utterance for utterance in found if utterance.speaker not in unseen]
    if missing := unseen - {utterance.speaker for utterance in found}:
        raise ManifestError(f"{bench.speech}: has no folder of the unseen voice {sorted(missing)[0]}; change the plan")
    splits = split_names({utterance.id for utterance in known}, dev=cell.settings["dev"], test=0.0)
    parts = {split: [u for u in known if splits[u.id] == split] for split in ("train", "dev")}
    parts["test"] = [utterance for utterance in found if utterance.speaker in unseen]
    for split, utterances in parts.items():
        if not utterances:
            raise ManifestError(f"{bench.speech}: leaves no speech for {split}; change the plan's dev or unseen")
        write_manifest(bench.manifest(split), [replace(u, split=split) for u in utterances])
    config = load_config(bench.config)
    if config.decoder.type == "source":
        pitch_tracks(bench.manifest("train"), read_manifest(bench.manifest("train")), config.data.pitch)
    return {split: summary(utterances) for split, utterances in parts.items()}


def summary(utterances: Sequence[Utterance]) -> dict[str, Any]:
    """How much speech it is, and whose."""
    minutes = sum(utterance.duration for utterance in utterances) / 60
    return {"utterances": len(utterances), "minutes": minutes, "speakers": sorted({str(u.speaker) for u in utterances})}


def read_waves(bench: Bench, split: str, count: int, seconds: float, hop_length: int) -> list[Tensor]:
    """The first seconds of utterances that are evenly spread over a split, in whole frames: each [1, 1, T]."""
    rate, waves = load_config(bench.config).sample_rate, []
    for utterance in evenly_spread(read_manifest(bench.manifest(split)), count):
        source = utterance.source()
        length = min(source.length_at(rate), math.ceil(seconds * rate))
        wave = source.read(rate, 0, length)[None]
        waves.append(wave[..., : length // hop_length * hop_length])
    return waves


def relative_path(bench: Bench, utterance: Utterance) -> str:
    """Path of an utterance's file below the folder of speech."""
    return Path(str(utterance.path)).relative_to(bench.speech).as_posix()


def whole(utterance: Utterance, rate: int) -> Tensor:
    """An utterance: [1, 1, T]."""
    return torch.as_tensor(utterance.source().read(rate))[None]
