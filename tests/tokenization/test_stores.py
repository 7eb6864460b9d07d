"""Manifests, audio and token data sets in object stores: the same codes, the same promises as on a disk.

Each test runs in fsspec's memory; those marked `slow` with the S3 of moto, through s3fs, too.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import fsspec
import pytest

from audiovq.audio import AudioSource, load_audio
from audiovq.data.items import Item
from audiovq.data.manifest import write_manifest
from audiovq.data.sources import list_items, read_utterances
from audiovq.errors import AudioError, ManifestError, OutputExistsError
from audiovq.files import read_json, write_text
from audiovq.storage import RemotePath, locate
from audiovq.tokenization import commit, run
from audiovq.tokenization.run import tokenize
from audiovq.tokens import TokenSet
from audiovq.tokens.records import PLAN, SIDECARS, SUMMARY

pytestmark = [
    pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning"),  # Of botocore and moto.
]


@pytest.fixture(scope="module")
def s3_server():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def bucket(request, monkeypatch) -> RemotePath:
    """An empty bucket, in fsspec's memory unless `in_s3_too` says otherwise."""
    scheme = getattr(request, "param", "memory")
    if scheme == "s3":
        use_s3(monkeypatch, request.getfixturevalue("s3_server"))
    store = fsspec.filesystem(scheme, use_listings_cache=False)
    if store.exists("bucket"):
        store.rm("bucket", recursive=True)
    store.mkdir("bucket")
    path = locate(f"{scheme}://bucket")
    assert isinstance(path, RemotePath)
    return path


in_s3_too = pytest.mark.parametrize("bucket", ["memory", pytest.param("s3", marks=pytest.mark.slow)], indirect=True)


def use_s3(monkeypatch, address: str) -> None:
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    known = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**known, "AWS_ENDPOINT_URL": address}.items():
        monkeypatch.setenv(name, value)


def send(files: dict[str, Path | bytes], bucket: RemotePath, tmp_path: Path) -> None:
    for name, content in files.items():
        local = content
        if isinstance(content, bytes):
            local = tmp_path / "sent"
            local.write_bytes(content)
        (bucket / name).send(local)  # type: ignore[arg-type]


@pytest.fixture
def speech(bucket, six_files, tmp_path) -> RemotePath:
    """Six files and their manifest, which names them relatively."""
    local = tmp_path / "speech"
    shutil.copytree(six_files, local / "wavs")
    listed = [item.utterance() for item in list_items([local / "wavs"])]
    write_manifest(local / "data.jsonl.gz", listed)
    send({path.relative_to(local).as_posix(): path for path in local.rglob("*.*")}, bucket, tmp_path)
    return bucket


def codes_of(tokens: TokenSet) -> dict[str, list[list[int]]]:
    return {row.utt_id: row.codes.tolist() for row in tokens}


def done_of(made: run.TokenizingRun) -> tuple[int, int]:
    return made.done, made.resumed


@in_s3_too
def test_a_set_in_a_store_has_the_codes_of_one_on_disk(speech, six_files, model, tmp_path):
    local = tokenize(model, [six_files], tmp_path / "local", unit_seconds=2.0)
    made = tokenize(model, [speech / "data.jsonl.gz"], speech / "codes", unit_seconds=2.0)
    assert made.summary is not None
    assert done_of(made) == (4, 0)
    remote = TokenSet(speech / "codes")
    assert codes_of(remote) == codes_of(TokenSet(tmp_path / "local"))
    assert next(row.source for row in remote) == f"{speech}/wavs/utt0.wav"
    assert remote[3].codes.tolist() == codes_of(remote)[remote[3].utt_id]
    assert local.summary is not None
    assert made.summary.frames == local.summary.frames


@pytest.mark.parametrize("place", ["the folder", "a pattern", "a tar"])
def test_folders_patterns_and_tars_of_a_store_are_read_in_place(speech, six_files, tmp_path, place):
    given = {"the folder": speech / "wavs", "a pattern": speech / "wavs/*.wav", "a tar": speech / "all.tar"}[place]
    if place == "a tar":
        with tarfile.open(tmp_path / "all.tar", "w") as tar:
            for path in sorted(six_files.iterdir()):
                tar.add(path, path.name)
        send({"all.tar": tmp_path / "all.tar"}, speech, tmp_path)
    if place == "a pattern":
        with pytest.raises(ManifestError, match=r"utt0\.wav: expected a manifest or CutSet"):
            list(list_items([given]))
        given = speech / "da*.jsonl.gz"
    utterances, left_out = read_utterances(given)
    assert left_out == []
    assert [utterance.id for utterance in utterances] == [f"utt{number}" for number in range(6)]
    for utterance in utterances:
        wave, _ = load_audio(six_files / f"{utterance.id}.wav", 16000)
        assert utterance.source().read(16000).equal(wave)
        assert utterance.listed_source().read(16000, 50, 100).equal(wave[:, 50:150])


@in_s3_too
def test_every_kind_of_decoder_reads_from_a_store(bucket, speech_folder, tmp_path):
    import av

    ogg = min((speech_folder / "allison").glob("*.ogg"))
    wave, _ = load_audio(ogg, 16000)
    with av.open(str(tmp_path / "a.m4a"), "w") as made:  # Only FFmpeg reads it.
        stream = made.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(wave.numpy(), format="fltp", layout="mono")
        frame.sample_rate = 16000
        made.mux([*stream.encode(frame), *stream.encode(None)])
    send({"a.ogg": ogg, "a.m4a": tmp_path / "a.m4a"}, bucket, tmp_path)
    for name, local in (("a.ogg", ogg), ("a.m4a", tmp_path / "a.m4a")):
        assert load_audio(str(bucket / name))[0].equal(load_audio(local)[0])
        assert AudioSource.open(bucket / name).read(None, 999, 777).equal(AudioSource.open(local).read(None, 999, 777))


class Killed(BaseException):
    """As when a process is killed."""


@in_s3_too
def test_a_killed_run_goes_on_and_a_shard_without_its_record_counts_for_nothing(speech, model, monkeypatch):
    whole = tokenize(model, [speech / "data.jsonl.gz"], speech / "whole", unit_seconds=2.0)
    write = commit.write_json

    def fail(path, record):
        if path.name.startswith("part-00002"):
            raise Killed
        write(path, record)

    with monkeypatch.context() as patch:
        patch.setattr(commit, "write_json", fail)
        with pytest.raises(Killed):
            tokenize(model, [speech / "data.jsonl.gz"], speech / "codes", unit_seconds=2.0)
    names = [path.name for path in (speech / "codes").walk()]
    assert any(name.startswith("part-00002") and name.endswith(".parquet") for name in names)
    assert SUMMARY not in names
    made = tokenize(model, [speech / "data.jsonl.gz"], speech / "codes", unit_seconds=2.0)
    assert done_of(made) == (2, 2)
    assert made.summary == whole.summary
    again = tokenize(model, [speech / "data.jsonl.gz"], speech / "codes", unit_seconds=2.0)
    assert done_of(again) == (0, 4)


@in_s3_too
def test_a_damaged_or_lost_shard_is_made_again(speech, model):
    first = tokenize(model, [speech / "data.jsonl.gz"], speech / "codes", unit_seconds=2.0)
    shards = TokenSet(speech / "codes").shards
    write_text(shards[1], "damaged")
    shards[2].unlink()
    made = tokenize(model, [speech / "data.jsonl.gz"], speech / "codes", unit_seconds=2.0)
    assert done_of(made) == (2, 2)
    assert made.summary == first.summary


def test_parts_of_an_array_of_jobs_make_one_set(speech, model):
    given, output = [speech / "data.jsonl.gz"], speech / "codes"
    one = tokenize(model, given, output, unit_seconds=2.0, shard=(1, 2))
    assert one.summary is None
    assert one.missing == 2
    other = tokenize(model, given, output, unit_seconds=2.0, shard=(0, 2))
    assert other.summary == tokenize(model, given, speech / "whole", unit_seconds=2.0).summary


@in_s3_too
def test_force_removes_what_audiovq_wrote_and_nothing_else(speech, model):
    given, output = [speech / "data.jsonl.gz"], speech / "codes"
    tokenize(model, given, output, unit_seconds=2.0)
    with pytest.raises(OutputExistsError, match="holds the codes of another --unit-seconds"):
        tokenize(model, given, output, unit_seconds=4.0)
    write_text(output / "notes.txt", "mine")
    with pytest.raises(OutputExistsError, match=r"codes/notes\.txt: is not known to be written by audiovq"):
        tokenize(model, given, output, unit_seconds=4.0, force=True)
    assert len(TokenSet(output)) == 6
    (output / "notes.txt").unlink()
    made = tokenize(model, given, output, unit_seconds=4.0, force=True)
    assert made.summary is not None
    assert read_json(output / SIDECARS / PLAN)["unit_seconds"] == 4.0
    assert len([*(output / SIDECARS).glob("part-*.json")]) == made.done == len(TokenSet(output).shards)


def test_a_folder_of_a_store_that_holds_something_else_is_left_alone(speech, model):
    with pytest.raises(OutputExistsError, match="is not empty, and holds no token data set"):
        tokenize(model, [speech / "data.jsonl.gz"], speech / "wavs", force=True)
    assert len([*(speech / "wavs").iterdir()]) == 6


def test_audio_that_is_missing_or_damaged_is_listed_and_stops_nothing(speech, model, tmp_path, run):
    send({"wavs/utt1.wav": b"no sound"}, speech, tmp_path)
    (speech / "wavs/utt2.wav").unlink()
    code, out, err = run("tokenize", model, speech / "data.jsonl.gz", "-o", speech / "codes")
    assert code == 1
    assert "4 utterances" in out
    assert f"utt1: {speech}/wavs/utt1.wav: is no audio that libsndfile reads" in err
    assert f"utt2: {speech}/wavs/utt2.wav: cannot be read (No such file or directory)" in err
    lines = (speech / "codes/rejected.jsonl").open().read().splitlines()
    assert [json.loads(line)["utt_id"] for line in lines] == ["utt1", "utt2"]


def test_a_set_in_a_store_is_verified_exported_and_its_source_evaluated(speech, model, tmp_path, run):
    assert run("tokenize", model, speech / "data.jsonl.gz", "-o", speech / "codes")[0] == 0
    code, out, err = run("tokens", "verify", speech / "codes", "--input", speech / "data.jsonl.gz", "--model", model)
    assert (code, err) == (0, "")
    assert "no problems" in out
    code, out, err = run("decode", model, speech / "codes", "-o", tmp_path / "wavs", "--utt-ids", "utt3")
    assert (code, out, err) == (0, f"1 of 1 files written: {tmp_path}/wavs\n", "")
    assert run("tokens", "export", speech / "codes", "--format", "jsonl", "-o", tmp_path / "jsonl")[0] == 0
    code, out, err = run("evaluate", model, speech / "data.jsonl.gz", "-o", tmp_path / "page", "--limit", 1)
    assert (code, err) == (0, "")


@pytest.mark.slow
def test_a_bucket_that_does_not_answer_is_one_line(tmp_path, model, manifest, monkeypatch, run):
    use_s3(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for given, output in (("s3://bucket/data.jsonl", tmp_path / "codes"), (manifest, "s3://bucket/codes")):
        code, out, err = run("tokenize", model, given, "-o", output)
        assert (code, out) == (2, "")
        assert err.startswith("audiovq: s3://bucket/")
        assert "cannot be reached (Could not connect to the endpoint URL" in err
        assert err.count("\n") == 1


def test_a_store_that_stops_to_answer_stops_the_job_and_rejects_nothing(speech, model, monkeypatch, run):
    def fail(path, size, offset):
        raise OSError(5, "cannot be reached (gone)", str(path))

    fetch = RemotePath.fetch
    monkeypatch.setattr(RemotePath, "fetch", lambda *given: (fail if "utt4" in given[0].key else fetch)(*given))
    code, _, err = run("tokenize", model, speech / "data.jsonl.gz", "-o", speech / "codes")
    assert code == 2
    assert err == f"audiovq: {speech}/wavs/utt4.wav: cannot be reached (gone)\n"
    assert not (speech / "codes" / SUMMARY).exists()


def test_local_files_are_read_and_written_without_fsspec(six_files, model, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("a store was asked for")

    monkeypatch.setattr(fsspec, "filesystem", fail)
    made = tokenize(model, [six_files], tmp_path / "codes")
    assert made.summary is not None
    assert made.summary.utterances == 6


def test_a_remote_manifest_names_no_local_file(bucket, tmp_path, utterances):
    write_manifest(tmp_path / "data.jsonl", utterances)  # Absolute paths.
    send({"data.jsonl": tmp_path / "data.jsonl"}, bucket, tmp_path)
    with pytest.raises(ManifestError, match=r"data\.jsonl:1: path: expected a name below"):
        read_utterances(bucket / "data.jsonl")


def test_a_member_that_is_no_audio_is_listed(bucket, tmp_path, six_files):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(six_files / "utt0.wav", "good.wav")
        for name in ("bad.wav", "../out.wav"):
            member = tarfile.TarInfo(name)
            member.size = 8
            tar.addfile(member, io.BytesIO(b"no sound"))
    send({"a.tar": tmp_path / "a.tar"}, bucket, tmp_path)
    utterances, left_out = read_utterances(bucket / "a.tar")
    assert [utterance.id for utterance in utterances] == ["good"]
    assert "is no audio that libsndfile reads" in left_out[0].detail
    assert "lies outside the tar by its name" in left_out[1].detail
    with pytest.raises(AudioError, match="cannot be read"):
        Item("x", str(bucket / "none.wav")).open()
