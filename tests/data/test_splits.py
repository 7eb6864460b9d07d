from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiovq.data.manifest import Utterance
from audiovq.data.splits import assign_splits, choose_split_by, split_names
from audiovq.errors import ManifestError

names = st.sets(st.text(max_size=8), max_size=300)
fractions = st.sampled_from([0.0, 0.001, 0.05, 0.1, 0.3])


def utterance(name: str, speaker: str | None = None, split: str | None = None) -> Utterance:
    return Utterance(name, Path("/a.wav"), 1.0, 16000, 16000, speaker=speaker, split=split)


@given(names, fractions, fractions)
def test_counts_are_exact_and_every_name_has_one_split(chosen, dev, test):
    splits = split_names(chosen, dev, test)
    assert set(splits) == chosen
    count, sizes = len(chosen), Counter(splits.values())
    assert set(sizes) <= {"train", "dev", "test"}
    assert sizes["train"] >= min(count, 1)
    for split, fraction in (("dev", dev), ("test", test)):
        if fraction == 0:
            assert sizes[split] == 0
        elif count >= 3:
            assert sizes[split] == max(1, round(fraction * count))


@given(names)
def test_the_order_of_the_names_does_not_matter(chosen):
    assert split_names(sorted(chosen), 0.1, 0.1) == split_names(sorted(chosen, reverse=True), 0.1, 0.1)


def test_the_split_is_the_same_in_every_version():
    splits = split_names([f"p{i}" for i in range(225, 245)], 0.1, 0.1)
    assert {name: split for name, split in splits.items() if split != "train"} == {
        "p239": "test",
        "p229": "test",
        "p238": "dev",
        "p243": "dev",
    }


@given(names, names)
def test_more_names_move_none_between_dev_and_test(old, new):
    before, after = split_names(old, 0.2, 0.2), split_names(old | new, 0.2, 0.2)
    assert not [name for name in old if {before[name], after[name]} == {"dev", "test"}]


def test_more_names_move_few_of_the_old_ones():
    before = split_names([f"u{i}" for i in range(10_000)], 0.05, 0.05)
    after = split_names([f"u{i}" for i in range(11_000)], 0.05, 0.05)
    assert sum(before[name] != after[name] for name in before) < 100


@pytest.mark.parametrize(
    ("count", "dev", "test", "sizes"),
    [
        (0, 0.05, 0.05, {}),
        (1, 0.05, 0.05, {"train": 1}),
        (2, 0.05, 0.05, {"train": 1, "dev": 1}),
        (2, 0.0, 0.05, {"train": 1, "test": 1}),
        (3, 0.05, 0.05, {"train": 1, "dev": 1, "test": 1}),
        (3, 0.8, 0.1, {"train": 1, "dev": 1, "test": 1}),
        (100, 0.05, 0.05, {"train": 90, "dev": 5, "test": 5}),
        (100, 0.0, 0.0, {"train": 100}),
    ],
)
def test_small_sets_keep_training_data_first_then_dev_then_test(count, dev, test, sizes):
    assert Counter(split_names([str(i) for i in range(count)], dev, test).values()) == sizes


def test_by_speaker_the_splits_share_no_speaker():
    items = [utterance(f"{i}", f"s{i % 20}") for i in range(200)]
    divided = assign_splits(items, "speaker", 0.1, 0.2)
    assert [item.id for item in divided] == [item.id for item in items]
    speakers = {split: {item.speaker for item in divided if item.split == split} for split in ("train", "dev", "test")}
    assert {split: len(found) for split, found in speakers.items()} == {"train": 14, "dev": 2, "test": 4}
    assert len(set.union(*speakers.values())) == 20


def test_by_speaker_an_utterance_without_one_is_named():
    with pytest.raises(ManifestError, match="cannot split by speaker: utterance 'b' has none"):
        assign_splits([utterance("a", "s"), utterance("b")], "speaker", 0.1, 0.1)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("train dev test", {"train": 30, "dev": 30, "test": 30}),
        ("train", {"train": 26, "dev": 2, "test": 2}),
        ("train test", {"train": 28, "dev": 2, "test": 30}),
        ("dev test", {"dev": 30, "test": 30}),
    ],
)
def test_a_corpus_keeps_its_own_parts_and_gets_the_missing_ones_from_train(own, expected):
    items = [utterance(f"{split}{i}", split=split) for split in own.split() for i in range(30)]
    divided = assign_splits(items, "utterance", 0.05, 0.05)
    assert Counter(item.split for item in divided) == expected
    assert all(item.id.startswith(("train", str(item.split))) for item in divided)


@pytest.mark.parametrize(
    ("speakers", "expected"),
    [
        (["a", "b", "c"], "speaker"),
        (["a", "b"], "utterance"),
        (["a", "b", "c", None], "utterance"),
        ([None, None, None], "utterance"),
    ],
)
def test_the_default_is_by_speaker_if_three_are_known(speakers, expected):
    assert choose_split_by([utterance(str(i), speaker) for i, speaker in enumerate(speakers)]) == expected
