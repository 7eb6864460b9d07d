"""Units of work: balanced, the same wherever they are planned, and cheap to plan."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiovq.data.items import Item, Member
from audiovq.errors import TokenError
from audiovq.tokenization.plan import LONGEST, SHORTEST, TokenizingRequest, Unit, inputs_sha256, own_units, plan_units


def make_items(seconds: list[float]) -> list[Item]:
    return [Item(f"utt{number}", f"/speech/{number}.wav", seconds=value) for number, value in enumerate(seconds)]


lengths = st.lists(st.floats(0.05, 30), min_size=1, max_size=200)


@given(seconds=lengths, unit_seconds=st.floats(1, 200))
def test_units_hold_every_utterance_once_in_order_and_about_equally_much_audio(seconds, unit_seconds):
    items = make_items(seconds)
    units = plan_units(items, unit_seconds)
    assert [item for unit in units for item in unit.items] == items
    assert [unit.name for unit in units] == [f"part-{i:05d}-of-{len(units):05d}" for i in range(len(units))]
    share = sum(seconds) / max(1, round(sum(seconds) / unit_seconds))
    assert all(unit.seconds <= share + max(seconds) for unit in units)
    assert len({unit.content_hash for unit in units}) == len(units)


@pytest.mark.parametrize(("hours", "count"), [(0.01, 1), (2, 24), (64 * 0.5, 64), (64 * 3, 192)])
def test_units_are_a_64th_of_the_whole_but_neither_short_nor_long(hours, count):
    units = plan_units(make_items([10.0] * round(hours * 360)))
    assert len(units) == count
    assert all(unit.seconds <= LONGEST + 10 for unit in units)
    assert count == 1 or all(unit.seconds >= SHORTEST - 10 for unit in units)


def test_audio_of_unknown_length_is_planned_too():
    units = plan_units(make_items([0.0, 0.0, 0.0]))
    assert [len(unit.items) for unit in units] == [3]


@given(seconds=lengths, parts=st.integers(1, 9))
def test_parts_of_several_processes_are_the_whole(seconds, parts):
    units = plan_units(make_items(seconds), 20.0)
    owned = [unit.name for part in range(parts) for unit in own_units(units, (part, parts))]
    assert sorted(owned) == [unit.name for unit in units]
    assert list(own_units(units, None)) == units


@pytest.mark.parametrize(
    "change",
    [
        {"path": "/speech/other.wav"},
        {"speaker": "june"},
        {"start": 0.5},
        {"end": 0.7},
        {"num_samples": 3},
        {"member": Member("a.wav", 512, 99)},
        {"id": "other"},
    ],
)
def test_a_unit_of_anything_else_has_another_hash(change):
    items = make_items([1.0, 2.0])
    assert Unit("part", items).content_hash == Unit("other name", list(items)).content_hash
    assert Unit("part", [items[0], replace(items[1], **change)]).content_hash != Unit("part", items).content_hash


def test_a_unit_is_sent_as_text():
    items = [*make_items([1.5, 2.0]), Item("c", "/x.tar", "june", 1.0, 0.25, 1.25, 16000, 9, Member("c.wav", 512, 7))]
    unit = Unit("part-00000-of-00001", items)
    assert Unit.from_json(unit.name, unit.to_json()) == unit


def test_a_length_that_was_measured_is_no_part_of_identity():
    listed = [replace(item, seconds=None) for item in make_items([1.0, 2.0, 3.0])]
    assert inputs_sha256(listed) == inputs_sha256(make_items([1.0, 0.0, 7.0]))
    assert inputs_sha256(listed) != inputs_sha256(listed[::-1])


def test_units_on_disk_are_those_that_were_planned(tmp_path):
    items = [*make_items([1.0, 2.0]), Item("missing", "/missing.wav"), *make_items([3.0, 1.5])]
    request = TokenizingRequest(items, "ab" * 32, None, 2.0)
    plan = request.plan()
    assert (plan.utterances, plan.seconds) == (5, [0.0])
    units = request.units(plan)
    assert len(units) == plan.units > 2
    assert [item.id for unit in units for item in unit.items] == [item.id for item in items]
    for wrong in ({"sizes": [5]}, {"seconds": [1.0]}, {"plan_sha256": "0" * 64}):
        with pytest.raises(TokenError, match="does not fit its own hash"):
            request.units(replace(plan, **wrong))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to tell the peak of memory")
def test_a_hundred_thousand_utterances_are_planned_in_ten_seconds_and_300_megabytes(tmp_path):
    """In a process of its own, by what the kernel counted since it began: ru_maxrss begins with that of its parent."""
    manifest = tmp_path / "data.jsonl"
    with manifest.open("w") as file:
        for number in range(100_000):
            record = {
                "id": f"speaker{number % 100}-utterance{number:06d}",
                "path": f"wavs/{number % 100}/{number:06d}.flac",
            }
            length = {"duration": (number % 50 + 1) / 10, "sample_rate": 16000, "num_samples": (number % 50 + 1) * 1600}
            file.write(json.dumps({**record, **length, "speaker": f"speaker{number % 100}"}) + "\n")
    program = f"""
import json, sys, time
start = time.process_time()
from dataclasses import asdict
from pathlib import Path
from audiovq.data.sources import list_items
from audiovq.tokenization.plan import TokenizingRequest
from audiovq.tokens.records import PlanRecord, parse_record
request = TokenizingRequest(list(list_items([Path({str(manifest)!r})])), "ab" * 32)
plan = parse_record(json.dumps(asdict(request.plan())), PlanRecord, "plan")
hashes = [unit.content_hash for unit in request.units(plan)]
seconds = time.process_time() - start  # Of the processor, which others may use, too.
peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([plan.utterances, len(hashes), seconds, peak, "torch" in sys.modules]))
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout
    utterances, units, seconds, peak, torch_loaded = json.loads(out)
    assert (utterances, units, torch_loaded) == (100_000, 71, False)
    assert seconds < 10
    assert peak < 300e6, peak
