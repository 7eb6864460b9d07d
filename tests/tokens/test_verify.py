from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audiovq.data.items import Item
from audiovq.data.manifest import Utterance, write_manifest
from audiovq.data.sources import list_items
from audiovq.errors import TokenError
from audiovq.files import sha256_of
from audiovq.models.tokenizer import AudioTokenizer
from audiovq.tokenization.run import tokenize
from audiovq.tokens import TokenRow, TokenSet, write_shard
from audiovq.tokens.info import set_digest
from audiovq.tokens.records import SetSummary, Sidecar, read_record
from audiovq.tokens.verify import Verification, verify_tokens


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return tiny_tokenizer()


@pytest.fixture
def folder(model, manifest, tmp_path, tmp_path_factory) -> Path:
    """A token data set of the six utterances, made once and copied for each test."""
    original = tmp_path_factory.getbasetemp() / "verified"
    if not original.exists():
        tokenize(model, [manifest], original)
    return Path(shutil.copytree(original, tmp_path / "codes"))


def verify(folder: Path, utterances: Iterable[Utterance] | None = None, *given, **named) -> Verification:
    items = None if utterances is None else map(Item.of, utterances)
    return verify_tokens(TokenSet(folder), items, *given, **named)


def problems(folder: Path, *given, **named) -> list[str]:
    return verify(folder, *given, **named).problems


def rewrite(folder: Path, change: Callable[[list[TokenRow]], list[TokenRow]]) -> Path:
    """Change the rows of the shard, and its sidecar and the summary with them."""
    (shard,) = folder.glob("*.parquet")
    rows = change(list(TokenSet(folder)))
    write_shard(shard, rows)
    sidecar = folder / "_units" / f"{shard.stem}.json"
    record = json.loads(sidecar.read_text())
    record |= {
        "shard_sha256": sha256_of(shard),
        "utterances": len(rows),
        "frames": sum(row.num_frames for row in rows),
    }
    sidecar.write_text(json.dumps(record))
    digest = set_digest([(shard.stem, record["shard_sha256"])])
    (folder / "summary.json").write_text(json.dumps(asdict(SetSummary.of([read_record(sidecar, Sidecar)], digest))))
    return shard


def test_a_good_set_has_no_problems_and_says_what_was_checked(tokenizer, utterances, folder):
    result = verify(folder, utterances, tokenizer, sample=4)
    assert result.problems == []
    frames = [row.num_frames for row in TokenSet(folder)]
    rows, sidecars, digest, listed, audio = result.checked
    assert rows == "6 utterances in 1 shard: ids, lengths, codes"
    assert sidecars.startswith("1 sidecar: SHA-256")
    assert digest == f"digest {json.loads((folder / 'summary.json').read_text())['digest']}"
    assert listed == "6 utterances of the input: 6 in the set, 0 rejected"
    assert audio.startswith("4 utterances encoded again: ")
    assert min(frames) * 4 < int(audio.split()[4]) < sum(frames)
    assert len(verify(folder).checked) == 3


def test_a_changed_shard_is_not_what_its_sidecar_says(folder, utterances):
    (shard,) = folder.glob("*.parquet")
    rows = list(TokenSet(folder))
    write_shard(shard, rows[1:])
    found = problems(folder, utterances)
    assert [line.split(" is ")[0] for line in found[:3]] == [
        f"{shard}: shard_sha256",
        f"{shard}: utterances",
        f"{shard}: frames",
    ]
    assert found[1:] == [
        f"{shard}: utterances is 5, but {shard.stem}.json says 6",
        f"{shard}: frames is {sum(row.num_frames for row in rows[1:])}, "
        f"but {shard.stem}.json says {sum(row.num_frames for row in rows)}",
        "utt0: was to be tokenized, but has neither codes nor been rejected",
    ]


def test_a_summary_of_other_shards_is_a_problem(folder):
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "digest": "0" * 64}))
    (problem,) = problems(folder)
    assert problem.startswith(f"{folder / 'summary.json'}: says that digest is 0000")


def test_a_summary_that_is_missing_is_a_problem_once_all_shards_are_there(folder):
    (folder / "summary.json").unlink()
    (problem,) = problems(folder)
    assert problem == f"{folder / 'summary.json'}: is missing, but all planned shards are there; tokenize again"


def test_the_list_of_the_rejected_is_that_of_the_sidecars(six_files, model, tmp_path):
    speech, folder = Path(shutil.copytree(six_files, tmp_path / "speech")), tmp_path / "codes"
    (speech / "bad.wav").write_text("no audio")
    tokenize(model, [speech], folder, device="cpu")
    assert problems(folder) == []
    path = folder / "rejected.jsonl"
    told = path.read_text()
    path.write_text(told + told.replace('"bad"', '"another"'))
    assert problems(folder) == [f"{path}: lists 'another', unlike the sidecars; tokenize again"]
    path.unlink()
    assert problems(folder) == [f"{path}: does not list 'bad', unlike the sidecars; tokenize again"]
    path.write_text("half")
    (problem,) = problems(folder)
    assert problem.startswith(f"{path}:1: is damaged")


def test_damaged_rows_are_listed_and_the_others_checked(folder, tokenizer):
    def change(rows: list[TokenRow]) -> list[TokenRow]:
        return [
            replace(rows[0], codes=rows[0].codes + np.uint16(32)),
            replace(rows[1], num_samples=rows[1].num_samples + 20),
            replace(rows[2], sample_rate=8000),
            replace(rows[3], utt_id="../up"),
            replace(rows[4], codes=np.repeat(rows[4].codes, 2, axis=0)),
            rows[5],
            rows[5],
        ]

    frames = TokenSet(folder)[1].num_frames
    shard = rewrite(folder, change)
    found = [line.removeprefix(f"{shard}: ") for line in problems(folder)]
    assert found[0].startswith("utterance 'utt0': expected codes from 0 to 31, found ")
    assert found[1].startswith(f"utterance 'utt1': expected {frames + 1} frames, for ")
    assert found[2] == "utterance 'utt2': expected a sample rate of 16000 Hz, found 8000"
    assert found[3].startswith("utterance '../up': id: ")
    assert found[4].startswith("utterance 'utt4': expected codes [Q, F] of 1 codebooks")
    assert found[5] == "utterance 'utt5': its id occurs a second time"
    assert len(found) == 8  # Two rows that cannot be read are missing from what the sidecar counts.


def test_shards_and_sidecars_come_in_pairs(folder):
    (shard,) = folder.glob("*.parquet")
    shutil.copy(shard, folder / "stray.parquet")
    (sidecar,) = folder.glob("_units/part*.json")
    shutil.copy(sidecar, folder / "_units/lost.json")
    plan = folder / "_units/plan.json"
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "units": 4}))
    found = [line for line in problems(folder) if "a second time" not in line]
    assert found == [
        f"{folder / 'lost.parquet'}: is missing, but {folder / '_units/lost.json'} is there; tokenize again",
        f"{folder / 'stray.parquet'}: has no sidecar _units/stray.json; tokenize again",
        f"{folder}: 2 of 4 planned shards are there; tokenize again",
    ]
    sidecar.write_text("half")
    plan.unlink()
    found = [line for line in problems(folder) if "cannot be read" in line]
    assert any(line.startswith(f"{plan}: ") for line in found)
    shutil.rmtree(folder / "_units")
    (folder / "stray.parquet").unlink()
    assert problems(folder) == [
        f"{folder / '_units'}: is missing; whether shards are as they were written cannot be told"
    ]


def test_a_shard_that_cannot_be_read_is_one_problem_of_many(folder):
    (shard,) = folder.glob("*.parquet")
    whole = shard.read_bytes()
    (folder / "a.parquet").write_bytes(whole[:500])
    (folder / "b.parquet").write_bytes(whole[:50] + bytes(50) + whole[100:])
    os.mkfifo(folder / "c.parquet")  # Nobody writes into it.
    found = problems(folder)
    for name in ("a", "b", "c"):
        assert any(line.startswith(f"{folder / name}.parquet: is no token shard or is damaged") for line in found)
    assert all("\n" not in line for line in found)


def test_ids_are_compared_with_the_manifest_and_the_rejected(folder, utterances):
    (folder / "rejected.jsonl").write_text(
        "".join(json.dumps({"utt_id": name, "source": "a.wav", "reason": "bad"}) + "\n" for name in ("bad", "utt3"))
    )
    bad, new = replace(utterances[0], id="bad"), replace(utterances[0], id="new")
    longer = replace(utterances[2], num_samples=utterances[2].num_samples * 2, duration=utterances[2].duration * 2)
    found = problems(folder, [bad, new, *utterances[1:2], longer, *utterances[3:]])
    samples = TokenSet(folder)[2].num_samples
    assert found == [
        f"{folder / 'rejected.jsonl'}: lists 'bad', unlike the sidecars; tokenize again",
        "new: was to be tokenized, but has neither codes nor been rejected",
        f"utt2: by the manifest it has {2 * samples} samples at 16000 Hz, its codes are those of {samples}",
        "utt0: has codes, but was not to be tokenized",
        "utt3: has codes, but is listed in rejected.jsonl too",
    ]


def test_codes_that_are_not_those_of_the_audio_are_found(folder, tokenizer):
    rewrite(folder, lambda rows: [*rows[:3], replace(rows[3], codes=(rows[3].codes + 1) % 32), *rows[4:]])
    frames = TokenSet(folder)[3].num_frames
    assert problems(folder, None, tokenizer, sample=6) == [
        f"utt3: encoded again, {frames} of {frames} frames are different"
    ]


def test_audio_that_is_gone_or_another_is_a_problem_of_its_utterance(folder, tokenizer, utterances):
    gone, other = {"source": "/gone.wav"}, {"source": str(utterances[2].path)}
    rewrite(folder, lambda rows: [replace(rows[0], **gone), replace(rows[1], **other), *rows[2:]])
    found = problems(folder, None, tokenizer)
    assert found[0].startswith("utt0: cannot be encoded again: /gone.wav: ")
    assert found[1].startswith(f"utt1: cannot be encoded again: {utterances[2].path}: has ")
    assert found[1].endswith("name the input that says which")
    assert len(found) == 2


def test_a_part_of_a_file_is_encoded_again_with_its_manifest(tokenizer, model, utterances, tmp_path):
    whole = utterances[0]
    half = whole.num_samples // 2
    part: Utterance = replace(
        whole, id="part", duration=half / whole.sample_rate, num_samples=half, offset=half / whole.sample_rate
    )
    write_manifest(tmp_path / "part.jsonl", [part])
    tokenize(model, [tmp_path / "part.jsonl"], tmp_path / "codes")
    assert problems(tmp_path / "codes", [part], tokenizer) == []
    assert "name the input" in problems(tmp_path / "codes", None, tokenizer)[0]


def test_audio_in_a_tar_is_encoded_again_with_the_tar(tokenizer, model, six_files, tmp_path):
    with tarfile.open(tmp_path / "speech.tar", "w") as tar:
        for path in sorted(six_files.glob("*.wav")):
            tar.add(path, path.name)
    tokenize(model, [tmp_path / "speech.tar"], tmp_path / "codes")
    tokens = TokenSet(tmp_path / "codes")
    assert verify_tokens(tokens, list_items([tmp_path / "speech.tar"]), tokenizer).problems == []
    assert "is in a tar; name that as the input" in verify_tokens(tokens, None, tokenizer).problems[0]


def named_by_all_weights(info: dict[str, Any], tokenizer: AudioTokenizer) -> None:
    info["weights_sha256"] = tokenizer.weights_sha256


def of_another_decoder(info: dict[str, Any], _: AudioTokenizer) -> None:
    info["model"]["decoder"] = {"type": "later"}


def of_before_a_setting_had_a_name(info: dict[str, Any], _: AudioTokenizer) -> None:
    del info["model"]["encoder"]["type"], info["model"]["encoder"]["look_ahead"]


@pytest.mark.parametrize("older", [named_by_all_weights, of_another_decoder, of_before_a_setting_had_a_name])
def test_sets_that_readers_accept_have_no_problems_and_can_be_resumed(folder, tokenizer, model, manifest, older):
    info = json.loads((folder / "tokenizer.json").read_text())
    assert info["weights_sha256"] == tokenizer.codes_sha256
    older(info, tokenizer)
    (folder / "tokenizer.json").write_text(json.dumps(info))
    for path in folder.glob("_units/*.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "weights_sha256": info["weights_sha256"]}))
    assert problems(folder, None, tokenizer) == []

    (shard,) = folder.glob("*.parquet")
    shard.unlink()
    assert tokenize(model, [manifest], folder, device="cpu").done == 1
    assert problems(folder, None, tokenizer) == []
    TokenSet(folder).require_model(tokenizer)


@pytest.mark.parametrize(("part", "change"), [("encoder", {"look_ahead": 1}), ("bottleneck", {"codebook_size": 64})])
def test_a_config_of_other_codes_is_a_problem(folder, tokenizer, part, change):
    info = json.loads((folder / "tokenizer.json").read_text())
    info["model"][part] |= change
    (folder / "tokenizer.json").write_text(json.dumps(info))
    assert problems(folder, None, tokenizer) == [
        f"{folder / 'tokenizer.json'}: says another config than the model's; tokenize again"
    ]


def test_another_model_is_refused(folder, tiny_tokenizer):
    with pytest.raises(TokenError, match="codes of another model"):
        problems(folder, None, tiny_tokenizer("transposed"))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *(("tokenizer.json", wrong) for wrong in ({"codebook_size": 65536}, {"frame_rate": 1.0}, {"model": {}})),
        *(("summary.json", wrong) for wrong in ({"utterances": 7}, {"frames": 1}, {"seconds": 1.0}, {"rejected": 2})),
        *(("_units/plan.json", wrong) for wrong in ({"units": 2}, {"utterances": 5})),
        *(("_units/part-00000-of-00001.json", wrong) for wrong in ({"weights_sha256": "0" * 64}, {"frames": 2})),
    ],
)
def test_records_that_say_something_else_are_found(folder, tokenizer, name, wrong):
    record = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**record, **wrong}))
    found = problems(folder, None, tokenizer)
    assert len(found) == 1
    assert name.rpartition("/")[2] in found[0] or "planned shards" in found[0]


@pytest.mark.parametrize("summed", [True, False])
def test_whoever_opens_a_set_that_lacks_shards_is_warned_once(model, manifest, tmp_path, summed):
    tokenize(model, [manifest], tmp_path / "codes", unit_seconds=4, device="cpu")
    first, *others = sorted((tmp_path / "codes").glob("*.parquet"))
    first.unlink()
    if not summed:
        (tmp_path / "codes/summary.json").unlink()
    told = rf"codes: {len(others)} of {len(others) + 1} shards are there; tokenize again for the others"
    with pytest.warns(RuntimeWarning, match=told) as found:
        first, second = (TokenSet(tmp_path / "codes") for _ in range(2))
    assert len(found) == 1
    assert first.ids == second.ids
