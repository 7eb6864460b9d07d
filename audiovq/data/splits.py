"""Division of utterances into train, dev and test.

A speaker or utterance is ranked by a hash of its name, so that the split depends on nothing but the names:
the lowest ranks are test, the highest dev, those between train. New utterances therefore move few of the old
ones, only across the two borders with train, and never one from dev to test or back.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Literal

from audiovq.data.manifest import Utterance
from audiovq.errors import ManifestError

SPLITS = ("train", "dev", "test")
SplitBy = Literal["speaker", "utterance"]

_SALT = "audiovq split 1:"


def choose_split_by(utterances: Sequence[Utterance]) -> SplitBy:
    """By speaker if every utterance has one and there are at least three, otherwise by utterance."""
    speakers = {utterance.speaker for utterance in utterances}
    return "speaker" if None not in speakers and len(speakers) >= len(SPLITS) else "utterance"


def assign_splits(utterances: Sequence[Utterance], by: SplitBy, dev: float, test: float) -> list[Utterance]:
    """Give every utterance a split.

    A split that the corpus itself defines is kept. Utterances without one are divided, and so are the
    corpus's own training utterances where it has no dev or no test part.

    Args:
        by: "speaker" makes the three splits share no speaker; fractions then count speakers.
        dev: fraction of the divided utterances (or speakers) for dev, 0 for none.
        test: the same for test.

    Raises:
        ManifestError: division by speaker, and an utterance has none.
    """
    given = {utterance.split for utterance in utterances}
    pool = [utterance for utterance in utterances if utterance.split in (None, "train")]
    for utterance in pool:
        if by == "speaker" and utterance.speaker is None:
            raise ManifestError(f"cannot split by speaker: utterance {utterance.id!r} has none; split by utterance")
    names = split_names(
        {_unit(utterance, by) for utterance in pool},
        dev=0.0 if "dev" in given else dev,
        test=0.0 if "test" in given else test,
    )
    return [
        replace(utterance, split=names[_unit(utterance, by)]) if utterance.split in (None, "train") else utterance
        for utterance in utterances
    ]


def split_names(names: Collection[str], dev: float, test: float) -> dict[str, str]:
    """Map every name to "train", "dev" or "test", a pure function of the names and the fractions.

    dev gets round(dev * n) names and test round(test * n), each at least one as long as train keeps one; of
    two names, one is dev. A fraction of 0 asks for none.
    """
    ranked = sorted(names, key=lambda name: blake2b((_SALT + name).encode(), digest_size=8).digest())
    count = len(ranked)
    spare_for_test = int(test > 0 and count >= len(SPLITS))
    num_dev = _share(dev, count, count - 1 - spare_for_test)
    num_test = _share(test, count, count - 1 - num_dev)
    splits = ["test"] * num_test + ["train"] * (count - num_test - num_dev) + ["dev"] * num_dev
    return dict(zip(ranked, splits, strict=True))


def _share(fraction: float, count: int, most: int) -> int:
    return max(0, min(max(1, round(count * fraction)), most)) if fraction > 0 else 0


def _unit(utterance: Utterance, by: SplitBy) -> str:
    return utterance.speaker or "" if by == "speaker" else utterance.id
