"""Files appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path

import pytest

from audiovq.errors import OutputExistsError
from audiovq.files import (
    atomic_folder,
    atomic_path,
    refuse_to_overwrite,
    remove_stale_partials,
    write_json,
    write_text,
)


def test_a_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "deep" / "er" / "a.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.parent == path.parent  # a rename across file systems would not be atomic
        assert temporary.suffix == ".txt"
    assert path.read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_after_an_error_the_old_file_stands(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_and_fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write_and_fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, type(tmp_path).replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr(type(tmp_path), "replace", lambda a, b: (events.append("rename"), replace(a, b))[1])
    write_text(tmp_path / "a.txt", "text")
    assert events == ["fsync", "rename", "fsync"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_are_those_of_any_new_file(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "a.txt", "text")
        with atomic_folder(tmp_path / "folder") as folder:
            (folder / "deep").mkdir()
            (folder / "deep/b.txt").touch(0o600)  # As of a library that means it too well.
    finally:
        os.umask(before)
    for name in ("a.txt", "folder/deep/b.txt"):
        assert (tmp_path / name).stat().st_mode & 0o777 == mode


def test_json_keeps_order_and_letters_and_refuses_what_json_has_not(tmp_path):
    write_json(tmp_path / "a.json", {"b": "Łódź", "a": [1, 2.5, None]})
    assert (tmp_path / "a.json").read_text(encoding="utf-8").index("Łódź") > 0
    assert list(json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))) == ["b", "a"]
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", float("nan"))
    assert not (tmp_path / "b.json").exists()


def test_output_is_overwritten_only_by_force(tmp_path):
    file, folder = tmp_path / "a.txt", tmp_path / "folder"
    file.touch()
    folder.mkdir()
    for free in (tmp_path / "new", folder):
        refuse_to_overwrite(free, force=False)
    (folder / "x").touch()
    for occupied in (file, folder):
        refuse_to_overwrite(occupied, force=True)
        with pytest.raises(OutputExistsError, match=f"{occupied} exists already; .* --force"):
            refuse_to_overwrite(occupied, force=False)


def test_a_folder_takes_its_place_whole(tmp_path):
    for number in (1, 2):
        with atomic_folder(tmp_path / "a/b") as folder:
            (folder / "deep").mkdir()
            (folder / f"deep/{number}.txt").write_text("x")
            (folder / f"{number}.txt").write_text("x")
            assert (tmp_path / "a/b").exists() == (number == 2)
        found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
        assert found == {f"a/b/{number}.txt", f"a/b/deep/{number}.txt"}


def test_a_folder_that_fails_leaves_the_old_one(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/old.txt").write_text("old")
    with contextlib.suppress(KeyboardInterrupt), atomic_folder(tmp_path / "a") as folder:
        (folder / "new.txt").write_text("half")
        raise KeyboardInterrupt
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["a", "a/old.txt"]


def test_a_link_to_a_folder_stays_and_what_it_names_is_replaced(tmp_path):
    (tmp_path / "disk/a").mkdir(parents=True)
    (tmp_path / "disk/a/old.txt").write_text("old")
    (tmp_path / "link").symlink_to("disk/a")
    with atomic_folder(tmp_path / "link") as folder:
        assert folder.parent.parent == tmp_path / "disk"  # A rename across file systems would not be atomic.
        (folder / "new.txt").write_text("new")
    assert (tmp_path / "link").readlink() == Path("disk/a")
    assert [path.name for path in (tmp_path / "disk/a").iterdir()] == ["new.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/old.txt").write_text("old")
    rename = Path.rename

    def refuse(path, target):
        if path.name == "new":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="Input/output error") as caught, atomic_folder(tmp_path / "a") as folder:
        (folder / "new.txt").write_text("new")
    assert caught.value.filename == str(tmp_path / "a")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["a", "a/old.txt"]


def test_a_folder_under_way_is_locked_and_one_whose_writer_is_gone_goes_back(tmp_path):
    with atomic_folder(tmp_path / "a") as folder:
        (folder / "new.txt").write_text("new")
        remove_stale_partials(tmp_path)
        assert (folder / "new.txt").exists()
    # As a writer that was killed leaves them: between the two renames, and after them.
    for name, other in (("b", "b"), ("c", "a")):
        left = tmp_path / f".partial-{name}"
        (left / "new").mkdir(parents=True)
        (left / "old" / other).mkdir(parents=True)
        (left / "old" / other / "old.txt").write_text("old")
    (tmp_path / ".partial-mine/else").mkdir(parents=True)
    remove_stale_partials(tmp_path)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir())
    assert files == ["a/new.txt", "b/old.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".partial-mine", "a", "b"]


def test_what_a_killed_run_left_is_no_output(tmp_path):
    (tmp_path / ".partial-abc.json").touch()
    refuse_to_overwrite(tmp_path, force=False)
    (tmp_path / "metrics.json").touch()
    with pytest.raises(OutputExistsError):
        refuse_to_overwrite(tmp_path, force=False)
