"""Names of files here and in object stores, and what can be asked of the latter."""

from __future__ import annotations

import pickle
from pathlib import Path

import fsspec
import pytest

from audiovq.errors import ConfigError
from audiovq.files import atomic_path, open_file, read_json, sha256_of, write_json, write_text
from audiovq.storage import BLOCK, HeldFile, RemotePath, below, locate, locate_audio


@pytest.fixture
def bucket():
    """An empty folder of fsspec's memory."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    yield locate("memory://bucket")
    store.store.clear()


@pytest.mark.parametrize("name", ["a.wav", "/a/b.wav", "a:b/c.wav", "C://", "data:x", "s3:/bucket/a"])
def test_what_is_no_url_is_a_local_path(name):
    assert locate(name) == Path(name)


def test_a_file_url_is_a_local_path():
    assert locate("file:///speech/a.wav") == Path("/speech/a.wav")


@pytest.mark.parametrize("name", ["s3://bucket/a/b.wav", "gs://bucket", "hf://datasets/org/name/a.tar", "memory://a"])
def test_a_url_is_a_path_in_its_store(name):
    path = locate(name)
    assert isinstance(path, RemotePath)
    assert str(path) == str(locate(path)) == name
    assert pickle.loads(pickle.dumps(path)) == path  # noqa: S301 (made here)


def test_a_url_has_the_parts_of_a_path():
    path = locate("s3://bucket/speech//a.b.wav/")
    assert isinstance(path, RemotePath)
    assert (str(path), path.name, path.stem, path.suffix) == ("s3://bucket/speech/a.b.wav", "a.b.wav", "a.b", ".wav")
    assert path.parent / "c.wav" == locate("s3://bucket/speech/c.wav")


@pytest.mark.parametrize(
    "name", ["http://example.org/a.wav", "ssh://host/a", "simplecache://x", "s3://", "s3:///", "s3://../a", "s3://a\0b"]
)
def test_other_urls_are_refused_in_one_line(name):
    with pytest.raises(ConfigError, match="expected a local path, or a bucket and a key after s3://, gs://") as caught:
        locate(name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["../../../x.wav", "/etc/passwd", "a/../../../x"])
def test_a_remote_list_names_nothing_outside_its_bucket(name):
    with pytest.raises(ValueError, match="expected a name below s3://bucket/lists"):
        below(locate("s3://bucket/lists"), name)


def test_a_list_may_name_urls_and_what_lies_beside_it():
    assert below(locate("s3://bucket/lists"), "../wavs/a.wav") == locate("s3://bucket/wavs/a.wav")
    assert below(Path("/lists"), "s3://bucket/a.wav") == locate("s3://bucket/a.wav")
    assert below(Path("/lists"), "/wavs/a.wav") == Path("/wavs/a.wav")


def test_a_recording_in_memory_is_known_by_its_url():
    held = HeldFile(bytes(range(256)))
    assert locate_audio(held.url()) == held
    assert held.fetch(3, 254) == b"\xfe\xff"
    assert str(held) == "a recording of 256 bytes in memory"
    with pytest.raises(ConfigError, match="is no base64"):
        locate_audio("data:;base64,?")


def test_files_of_a_store_are_written_whole_and_read_back(bucket):
    write_text(bucket / "a/b.txt", "größer")
    write_json(bucket / "a/c.json", {"x": [1, 2]})
    assert open_file(bucket / "a/b.txt").read().decode() == "größer"
    assert read_json(bucket / "a/c.json") == {"x": [1, 2]}
    assert sorted((bucket / "a").glob("*.json")) == [bucket / "a/c.json"]
    assert sorted(bucket.iterdir()) == [bucket / "a"]
    assert bucket.walk() == [bucket / "a/b.txt", bucket / "a/c.json"]
    assert (bucket / "a").is_dir() and not (bucket / "a").is_file()  # noqa: PT018
    assert (bucket / "a/b.txt").is_file() and not (bucket / "a/b.txt").is_dir()  # noqa: PT018
    assert (bucket / "*/*.json").matching() == [bucket / "a/c.json"]
    (bucket / "a/b.txt").unlink()
    assert not (bucket / "a/b.txt").exists()
    (bucket / "a/b.txt").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        (bucket / "a/b.txt").unlink()
    assert [*(bucket / "nothing").iterdir()] == []


def test_what_fails_while_it_is_made_is_never_sent(bucket):
    write_text(bucket / "a.txt", "old")
    with pytest.raises(FileNotFoundError), atomic_path(bucket / "a.txt") as temporary:
        temporary.rename(temporary.with_name("lost"))
    assert open_file(bucket / "a.txt").read() == b"old"
    assert [*bucket.iterdir()] == [bucket / "a.txt"]


def test_a_long_file_is_read_in_blocks_from_anywhere(bucket, tmp_path):
    data = bytes(i * i % 251 for i in range(2**12)) * (2 * BLOCK // 2**12) + b"end"
    (tmp_path / "long").write_bytes(data)
    (bucket / "long").send(tmp_path / "long")
    with open_file(bucket / "long") as file:
        assert file.seek(BLOCK - 5) == BLOCK - 5
        assert file.read(10) == data[BLOCK - 5 : BLOCK + 5]
        file.seek(-3, 2)
        assert file.read() == b"end"
    assert sha256_of(bucket / "long") == sha256_of(tmp_path / "long")


def test_what_is_missing_is_an_error_that_names_it(bucket):
    for act in (open_file, lambda path: path.look()):
        with pytest.raises(FileNotFoundError) as caught:
            act(bucket / "none.json")
        assert caught.value.filename == "memory://bucket/none.json"
    write_text(bucket / "a/b.txt", "")
    with pytest.raises(IsADirectoryError):
        open_file(bucket / "a")


def test_a_store_whose_package_is_missing_says_what_to_install(monkeypatch):
    def fail(scheme, **_):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", fail)
    with pytest.raises(ConfigError) as caught:
        locate("s3://bucket/a").exists()
    assert str(caught.value) == "s3://bucket/a: Install s3fs to access S3: pip install 'audiovq[cloud]'"


def test_a_bucket_that_is_not_there_is_told_from_a_file_that_is_not(monkeypatch, bucket, tmp_path):
    (tmp_path / "file").write_text("12345")

    def refuse(self, *_, **__):
        raise FileNotFoundError("The specified bucket does not exist")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "put_file", refuse)
    with pytest.raises(FileNotFoundError, match="there is no such bucket or repository") as caught:
        (bucket / "file").send(tmp_path / "file")
    assert caught.value.filename == "memory://bucket/file"


@pytest.mark.parametrize("error", [ValueError("no\nregion"), TimeoutError("slow"), RuntimeError()])
def test_whatever_a_store_raises_names_the_url_in_one_line(monkeypatch, error):
    def fail(scheme, **_):
        raise error

    monkeypatch.setattr(fsspec, "filesystem", fail)
    with pytest.raises(OSError, match="cannot be reached") as caught:
        locate("s3://bucket/a").exists()
    assert caught.value.filename == "s3://bucket/a"
    assert "\n" not in (caught.value.strerror or "")


@pytest.mark.parametrize("command", ["encode MODEL SPEECH", "prepare folder SPEECH", "evaluate MODEL MANIFEST"])
def test_what_is_written_to_disk_alone_makes_no_folder_that_is_called_as_a_url(
    tmp_path, monkeypatch, run, model, six_files, manifest, command
):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    names = {"MODEL": model, "SPEECH": six_files, "MANIFEST": manifest}
    code, out, err = run(*(names.get(word, word) for word in command.split()), "-o", "s3://bucket/out")
    assert (code, out) == (2, "")
    assert "expected a local path; only `audiovq tokenize` writes to object stores" in err
    assert sorted(tmp_path.iterdir()) == before
