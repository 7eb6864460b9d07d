"""CutSets of lhotse, made by lhotse, are read sample for sample as lhotse reads them."""

from __future__ import annotations

import gc
import gzip
import io
import json
import sys
import tarfile
import warnings
from dataclasses import astuple
from pathlib import Path

import lhotse
import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource as LhotseSource

from audiovq.audio import load_audio
from audiovq.data.items import Item
from audiovq.data.manifest import read_manifest
from audiovq.data.sources import list_items, read_utterances, utterances_digest
from audiovq.errors import AudioError, ConfigError, ManifestError
from audiovq.storage import locate
from audiovq.tokenization.run import tokenize
from audiovq.tokens import TokenSet

RATE = 22050


@pytest.fixture(scope="module")
def stereo(tmp_path_factory, speech_folder) -> Path:
    """Two voices, one on each channel."""
    files = [min((speech_folder / name).glob("*.ogg")) for name in ("june", "carlo")]
    voices = [load_audio(file, RATE)[0][0] for file in files]
    length = 3 * RATE
    waves = [torch.nn.functional.pad(voice, (0, max(0, length - len(voice))))[:length].numpy() for voice in voices]
    path = tmp_path_factory.mktemp("stereo") / "talk.wav"
    soundfile.write(path, np.stack(waves, 1), RATE, subtype="PCM_16")
    return path


@pytest.fixture
def cuts(stereo) -> CutSet:
    """Segments that begin and end between samples, on either channel."""
    recording = Recording.from_file(stereo)

    def cut(name: str, start: float, duration: float, channel: int) -> MonoCut:
        segment = SupervisionSegment(f"{name}-s", recording.id, 0, duration, channel, speaker=f"voice{channel}")
        return MonoCut(name, start, duration, channel, [segment], recording=recording)

    return CutSet.from_cuts([cut("a", 0.0, 0.8, 0), cut("b", 0.50003, 1.00007, 1), cut("c", 1.23456, 1.7654, 0)])


def assert_same_audio(items: list[Item], cuts: CutSet) -> None:
    assert [item.id for item in items] == [cut.id for cut in cuts]
    for item, cut in zip(items, cuts, strict=True):
        expected = torch.from_numpy(cut.load_audio())
        assert torch.equal(item.open().read(), expected), cut.id
        assert torch.equal(item.utterance().source().read(), expected), cut.id
        assert torch.equal(item.utterance().listed_source().read(None, 100, 50), expected[:, 100:150]), cut.id


@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz"])
def test_a_cut_is_its_own_samples_of_its_channel(cuts, tmp_path, name):
    cuts.to_file(tmp_path / name)
    items = list(list_items([tmp_path / name]))
    assert_same_audio(items, cuts)
    assert [item.speaker for item in items] == ["voice0", "voice1", "voice0"]
    utterances, left_out = read_utterances(tmp_path / name)
    assert [utterance.num_samples for utterance in utterances] == [cut.num_samples for cut in cuts]
    assert left_out == []


def test_cuts_of_a_shar_folder_are_read_in_their_tars(cuts, tmp_path):
    cuts.to_shar(tmp_path, fields={"recording": "flac"}, shard_size=2)
    items = list(list_items([tmp_path]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # lhotse leaves tars open.
        assert_same_audio(items, CutSet.from_cuts([*CutSet.from_shar(in_dir=tmp_path)]))
        gc.collect()
    assert items[0].name == f"tar://a.flac::{tmp_path}/recording.000000.tar"
    assert [item.speaker for item in items] == ["voice0", "voice1", "voice0"]


def test_a_shar_folder_may_lie_in_an_object_store(cuts, tmp_path):
    cuts.to_shar(tmp_path, fields={"recording": "flac"}, shard_size=2)
    folder = locate("memory://shars/cuts")
    for path in tmp_path.iterdir():
        (folder / path.name).send(path)
    assert_same_audio(list(list_items([folder])), cuts)


def test_recordings_in_memory_take_their_audio_along(cuts):
    held = CutSet.from_cuts([cut.move_to_memory() for cut in cuts])
    items = list(list_items([held]))
    assert_same_audio(items, held)
    assert items[0].name == "memory:a"
    back = Item.of_record(json.loads(json.dumps(astuple(items[0]))))
    assert torch.equal(back.open().read(), items[0].open().read())


def test_a_resampled_cut_is_read_from_its_file(cuts, tmp_path):
    cuts.resample(8000).to_file(tmp_path / "cuts.jsonl")
    assert_same_audio(list(list_items([tmp_path / "cuts.jsonl"])), cuts)


def test_all_channels_are_averaged(stereo, tmp_path):
    CutSet.from_cuts([Recording.from_file(stereo).to_cut()]).to_file(tmp_path / "cuts.jsonl")
    (item,) = list_items([tmp_path / "cuts.jsonl"])
    assert torch.equal(item.open().read(), load_audio(stereo)[0])


def test_a_run_knows_its_cuts_again_and_no_others(cuts, tmp_path):
    def digest(some: CutSet) -> str:
        some.to_file(tmp_path / "cuts.jsonl")
        return utterances_digest(tmp_path / "cuts.jsonl", read_utterances(tmp_path / "cuts.jsonl")[0])

    other = CutSet.from_cuts([cut.with_channels(1 - cut.channel).with_id(cut.id) for cut in cuts])
    assert digest(cuts) == digest(cuts) != digest(other)


def problem_of(cut, tmp_path: Path) -> str:
    CutSet.from_cuts([cut]).to_file(tmp_path / "cuts.jsonl")
    (item,) = list_items([tmp_path / "cuts.jsonl"])
    with pytest.raises(AudioError, match=item.problem and item.problem[:20]):
        item.open()
    with pytest.raises(ManifestError, match="holds no utterance that can be used"):
        read_utterances(tmp_path / "cuts.jsonl")
    return item.problem or ""


def test_what_only_lhotse_can_play_is_listed_with_a_reason(cuts, tmp_path):
    first = cuts["a"]
    assert "is changed when lhotse reads it (Speed)" in problem_of(first.perturb_speed(1.1), tmp_path)
    assert "is a MixedCut without a recording of its own" in problem_of(first.append(cuts["b"]), tmp_path)
    command = LhotseSource("command", [0, 1], "touch hacked; cat talk.wav")
    assert "commands are not run" in problem_of(with_source(first, command), tmp_path)
    elsewhere = LhotseSource("url", [0, 1], "https://example.org/a.wav")
    assert "expected a local path" in problem_of(with_source(first, elsewhere), tmp_path)
    assert "name that folder" in problem_of(with_source(first, LhotseSource("shar", [0, 1], "")), tmp_path)


def with_source(cut: MonoCut, source: LhotseSource) -> MonoCut:
    recording = lhotse.fastcopy(cut.recording, sources=[source])
    return lhotse.fastcopy(cut, recording=recording)


def test_a_cut_beyond_its_recording_is_listed(cuts, tmp_path):
    long = lhotse.fastcopy(cuts["b"], duration=2.6)
    assert problem_of(long, tmp_path) == (
        "its samples 11026 to 68356 at 22050 Hz lie outside its recording, which has 66150"
    )


def test_a_recording_that_is_shorter_than_it_was_is_refused_when_it_is_opened(cuts, tmp_path, stereo):
    wave, _ = soundfile.read(stereo)
    soundfile.write(tmp_path / "talk.wav", wave[:RATE], RATE)
    cut = with_source(cuts["c"], LhotseSource("file", [0, 1], str(tmp_path / "talk.wav")))
    CutSet.from_cuts([cut]).to_file(tmp_path / "cuts.jsonl")
    (item,) = list_items([tmp_path / "cuts.jsonl"])
    with pytest.raises(AudioError, match="holds 22050 samples, but utterance c ends at sample 66149"):
        item.open()


def test_a_cut_without_audio_in_its_tar_is_listed(cuts, tmp_path):
    cuts.to_shar(tmp_path, fields={"recording": "flac"}, shard_size=10)
    tar = tmp_path / "recording.000000.tar"
    with tarfile.open(tar) as old:
        kept = [(member, old.extractfile(member).read()) for member in old if not member.name.startswith("b.")]
    with tarfile.open(tar, "w") as new:
        for member, data in kept:
            new.addfile(member, io.BytesIO(data))
    assert [item.problem for item in list_items([tmp_path])] == [None, "has no audio in recording.000000.tar", None]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id": "../../etc/passwd"}, "cannot name a file"),
        ({"start": "soon"}, "is no cut of lhotse"),
        ({"recording": None}, "is no cut of lhotse"),
        ({"channel": {}}, "is no cut of lhotse"),
        ({"nonsense": 1}, "is no cut of lhotse"),
        (
            {"supervisions": [{"id": "s", "recording_id": "r", "start": 0, "duration": 1, "speaker": 7}]},
            "speaker: expected",
        ),
    ],
)
def test_a_malformed_cut_is_refused_with_its_line(cuts, tmp_path, change, reason):
    lines = [json.dumps(cut.to_dict()) for cut in cuts]
    lines[1] = json.dumps({**json.loads(lines[1]), **change})
    with gzip.open(tmp_path / "cuts.jsonl.gz", "wt") as file:
        file.write("\n".join(lines))
    with pytest.raises(ManifestError, match=reason) as caught:
        list(list_items([tmp_path / "cuts.jsonl.gz"]))
    assert f"{tmp_path}/cuts.jsonl.gz:2: " in str(caught.value)


def test_an_id_that_occurs_twice_is_refused(cuts, tmp_path):
    lines = [json.dumps(cut.to_dict()) for cut in cuts]
    (tmp_path / "cuts.jsonl").write_text("\n".join([*lines, lines[0]]))
    with pytest.raises(ManifestError, match="the id 'a' is listed twice"):
        list(list_items([tmp_path / "cuts.jsonl"]))


def test_without_lhotse_one_line_says_what_to_install(cuts, tmp_path, monkeypatch):
    cuts.to_file(tmp_path / "cuts.jsonl")
    monkeypatch.setitem(sys.modules, "lhotse.serialization", None)
    with pytest.raises(ConfigError, match=r"lhotse, which is not installed: pip install 'audiovq\[lhotse\]'"):
        list(list_items([tmp_path / "cuts.jsonl"]))


def test_a_manifest_is_no_cut_set(manifest, utterances):
    assert read_utterances(manifest) == (read_manifest(manifest), [])
    assert [item.id for item in list_items([manifest])] == [utterance.id for utterance in utterances]


def test_tokenize_and_evaluate_take_a_cut_set(cuts, tmp_path, model, run, tiny_tokenizer):
    cuts.to_file(tmp_path / "cuts.jsonl.gz")
    code, out, err = run("tokenize", model, tmp_path / "cuts.jsonl.gz", "-o", tmp_path / "codes")
    assert (code, err) == (0, "")
    assert "3 utterances" in out
    for row, cut in zip(TokenSet(tmp_path / "codes"), cuts, strict=True):
        expected = tiny_tokenizer().encode(torch.from_numpy(cut.load_audio())[None], RATE)
        assert (row.utt_id, row.speaker) == (cut.id, cut.supervisions[0].speaker)
        assert np.array_equal(row.codes, expected[0].numpy()), cut.id
    code, out, err = run("evaluate", model, tmp_path / "cuts.jsonl.gz", "-o", tmp_path / "page", "--examples", "0")
    assert (code, err) == (0, "")
    lines = [json.loads(line) for line in (tmp_path / "page" / "utterances.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["a", "b", "c"]


def test_tokenizing_lists_a_cut_that_cannot_be_used(cuts, tmp_path, model, run):
    CutSet.from_cuts([*cuts, cuts["b"].perturb_volume(2.0).with_id("d")]).to_file(tmp_path / "cuts.jsonl")
    for command in ("tokenize", "evaluate"):
        code, _, err = run(command, model, tmp_path / "cuts.jsonl", "-o", tmp_path / command)
        assert code == 1, err
        assert "d: " in err
        assert "is changed when lhotse reads it (Volume)" in err


def test_a_cut_set_in_memory_is_tokenized_from_python(cuts, tmp_path, model):
    held = CutSet.from_cuts([cut.move_to_memory(audio_format="wav") for cut in cuts])
    one = tokenize(model, [held], tmp_path / "held").summary
    cuts.to_file(tmp_path / "cuts.jsonl")
    other = tokenize(model, [tmp_path / "cuts.jsonl"], tmp_path / "files").summary
    assert one is not None
    assert other is not None
    assert [row.codes.tolist() for row in TokenSet(tmp_path / "held")] == [
        row.codes.tolist() for row in TokenSet(tmp_path / "files")
    ]
