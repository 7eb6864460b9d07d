"""What is left when a run is killed, two runs meet, or the disk is full: nothing that was committed is lost."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiovq.audio.files import load_audio
from audiovq.data.sources import list_items, with_seconds
from audiovq.errors import WorkerError
from audiovq.files import atomic_path, remove_stale_partials
from audiovq.tokenization import engines
from audiovq.tokenization.plan import plan_units
from audiovq.tokenization.run import tokenize
from audiovq.tokenization.worker import EncodingSettings, TokenizingJob
from audiovq.tokens import TokenSet
from audiovq.tokens.records import Sidecar, read_record
from audiovq.tokens.verify import verify_tokens

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]
UNIT = 1.0
KILLS = 24


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> Path:
    """Eighty cuts of real speech, about a third of a second each, and one file that is none."""
    folder = tmp_path_factory.mktemp("faults") / "speech"
    folder.mkdir()
    wave, _ = load_audio(sorted((Path(__file__).parents[2] / "recipes/mini/data/june").glob("*.ogg"))[0])
    lengths = np.random.default_rng(0).integers(2000, 9000, 80)
    for number, length in enumerate(lengths):
        start = number * 400 % (wave.shape[-1] - 9000)
        soundfile.write(folder / f"{number:02d}.wav", wave[0, start : start + length].numpy(), 16000)
    (folder / "bad.wav").write_text("no audio")
    return folder


@pytest.fixture(scope="module")
def undisturbed(speech, model, tmp_path_factory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("undisturbed") / "codes"
    tokenize(model, [speech], output, unit_seconds=UNIT)
    return contents(output)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shards(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if name.endswith(".parquet") and name[0] != "."}


def fork(function: Callable[[], object]) -> int:
    """Start a function in a process of its own, which has all modules already; its process number."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        function()
        code = 0
    finally:
        os._exit(code)


def wait_for(child: int) -> int:
    """Exit code, or minus the number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_runs_that_are_killed_at_random_moments_end_as_an_undisturbed_one(speech, model, undisturbed, tmp_path):
    moments = random.Random(0)
    begin = time.monotonic()
    assert wait_for(fork(lambda: tokenize(model, [speech], tmp_path / "timed", unit_seconds=UNIT))) == 0
    duration = time.monotonic() - begin
    kills = committed = rounds = 0
    while kills < KILLS:
        rounds += 1
        output = tmp_path / f"codes-{rounds}"
        finished = False
        while not finished:
            before = shards(output)
            child = fork(lambda output=output: tokenize(model, [speech], output, unit_seconds=UNIT))
            time.sleep(moments.uniform(0, 0.8 * duration))
            os.kill(child, signal.SIGKILL)
            finished = wait_for(child) == 0
            kills += not finished
            after = shards(output)
            assert before.items() <= after.items()  # Nothing that was committed is lost, or written anew.
            committed += len(after) > len(before)
        assert contents(output) == undisturbed
    assert committed >= rounds


def test_two_runs_that_meet_leave_one_valid_set(speech, model, undisturbed, tmp_path):
    children = [fork(lambda: tokenize(model, [speech], tmp_path / "codes", unit_seconds=UNIT)) for _ in range(3)]
    assert [wait_for(child) for child in children] == [0, 0, 0]
    assert contents(tmp_path / "codes") == undisturbed
    assert verify_tokens(TokenSet(tmp_path / "codes"), list_items([speech])).problems == []


def test_a_worker_that_is_killed_is_told_and_the_next_run_goes_on(
    speech, model, undisturbed, tmp_path, monkeypatch, quick_start
):
    started = []
    original = engines._start
    monkeypatch.setattr(engines, "_start", lambda *given: started.append(original(*given)) or started[-1])
    output = tmp_path / "codes"
    tokenizer_info = json.loads(undisturbed["tokenizer.json"])
    job = TokenizingJob(str(model), tokenizer_info["weights_sha256"], output, EncodingSettings(), "cpu")
    records = engines.run_processes(job, plan_units(with_seconds(list_items([speech])), UNIT), 2)
    first = next(records)
    os.kill(started[1].process.pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match=r"a worker was killed by SIGKILL .*what was done is kept"):
        list(records)
    assert not started[0].process.is_alive()
    kept = shards(output)
    assert len(kept) >= 1
    assert first.shard_sha256 in {read_record(path, Sidecar).shard_sha256 for path in output.glob("_units/part*")}
    assert kept.items() <= undisturbed.items()


def test_workers_end_with_the_process_that_started_them(speech, model, tmp_path, monkeypatch):
    """SIGKILL of that process: nobody can tell them."""
    pids = tmp_path / "pids"

    def run() -> None:
        original = engines._start

        def start(*given):
            worker = original(*given)
            with pids.open("a") as file:
                file.write(f"{worker.process.pid}\n")
            return worker

        engines._start = start
        tokenize(model, [speech], tmp_path / "codes", processes=2, unit_seconds=UNIT)

    child = fork(run)
    while not shards(tmp_path / "codes") and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    assert wait_for(child) == -signal.SIGKILL
    workers = [int(line) for line in pids.read_text().split()]
    assert len(workers) == 2
    end = time.monotonic() + 60
    while any(is_running(pid) for pid in workers):
        assert time.monotonic() < end
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Not so of one that has ended and that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("call", [1, 4, 9, 20])
def test_a_full_disk_ends_the_run_and_the_next_one_goes_on(
    run, speech, model, undisturbed, tmp_path, monkeypatch, call
):
    calls = 0
    original = os.fsync

    def fsync(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(handle)

    arguments = ("tokenize", model, speech, "-o", tmp_path / "codes", "--unit-seconds", UNIT)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("audiovq: ")
    assert "No space left on device" in err
    assert err.count("\n") == 1
    assert shards(tmp_path / "codes").items() <= undisturbed.items()
    assert run(*arguments)[0] == 1  # One of the files is no audio.
    assert contents(tmp_path / "codes") == undisturbed


def test_only_partial_files_whose_writers_are_gone_are_removed(tmp_path):
    (tmp_path / ".partial-old.parquet").write_text("left by a run that was killed")
    (tmp_path / "whole.parquet").write_text("mine")
    with atomic_path(tmp_path / "new.parquet") as partial:
        partial.write_text("under way")
        assert wait_for(fork(lambda: remove_stale_partials(tmp_path))) == 0
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([partial.name, "whole.parquet"])
    assert (tmp_path / "new.parquet").read_text() == "under way"


def test_a_writer_that_was_killed_leaves_what_can_be_removed(tmp_path):
    def write() -> None:
        with atomic_path(tmp_path / "new.parquet"):
            os.kill(os.getpid(), signal.SIGKILL)

    assert wait_for(fork(write)) == -signal.SIGKILL
    assert [path.name[:9] for path in tmp_path.iterdir()] == [".partial-"]
    remove_stale_partials(tmp_path)
    assert list(tmp_path.iterdir()) == []
