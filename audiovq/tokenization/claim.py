"""Whose a folder is: one model, one list of utterances and one plan, for all processes that write into it.

The first process lays down `tokenizer.json` and the plan; the others read them. While a process works it holds a lock
that all of its job share, so that nobody starts the folder anew under it. Where a file system has no locks, nothing is
locked, and only `--force` while another run writes can do harm; an object store is such a file system. Processes that
begin there at the same time lay down the same plan.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict
from typing import IO

from audiovq.errors import OutputExistsError, TokenError
from audiovq.files import remove_stale_partials, sha256_of, write_text
from audiovq.storage import AnyPath, RemotePath
from audiovq.tokenization.plan import TokenizingRequest, Unit
from audiovq.tokens.info import TOKENIZER, TokenizerInfo, read_tokenizer_info, write_tokenizer_info
from audiovq.tokens.records import (
    PLAN,
    REJECTED,
    SIDECARS,
    SUMMARY,
    PlanCounts,
    PlanRecord,
    SetSummary,
    Sidecar,
    read_record,
    read_rejected,
)
from audiovq.tokens.shards import open_shard

BEGIN, WRITE = ".begin.lock", ".write.lock"


@contextmanager
def claim(
    folder: AnyPath, request: TokenizingRequest, info: TokenizerInfo, force: bool = False
) -> Iterator[list[Unit]]:
    """Make a folder the place of a request's codes, or find that it is; gives the units of its plan.

    Args:
        force: remove another token data set that the folder holds, as soon as the new one can begin.

    Raises:
        OutputExistsError: it holds something else, and `force` is not given or does not help.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / SIDECARS).is_dir():
        raise OutputExistsError(
            f"{folder}: is not empty, and holds no token data set that was begun; choose another --output"
        )
    (folder / SIDECARS).mkdir(parents=True, exist_ok=True)
    with _lock_file(folder, WRITE) as ours:
        with _lock_file(folder, BEGIN) as beginning:
            _lock(beginning, fcntl.LOCK_EX)
            units = _begin(folder, request, info, force, ours)
            _lock(ours, fcntl.LOCK_SH)
        remove_stale_partials(folder)
        remove_stale_partials(folder / SIDECARS)
        yield units


@contextmanager
def writing(folder: AnyPath) -> Iterator[None]:
    """Keep others from starting a set anew while a worker writes into it, even when `claim`'s process has gone."""
    (folder / SIDECARS).mkdir(parents=True, exist_ok=True)
    with _lock_file(folder, WRITE) as ours:
        _lock(ours, fcntl.LOCK_SH)
        yield


def _begin(
    folder: AnyPath, request: TokenizingRequest, info: TokenizerInfo, force: bool, ours: IO[str] | None
) -> list[Unit]:
    try:
        plan = read_record(folder / SIDECARS / PLAN, PlanRecord)
    except TokenError:
        plan = None  # There is none, or it is damaged: the same is made again.
    problem = _other_model(folder, plan, info) or _other_request(plan, request)
    _refuse(folder, problem, force)
    units = None
    if plan is not None and problem is None:
        with suppress(TokenError):
            units = request.units(plan)
    if units is None:
        # All that the new set needs has been read before anything of an old one is removed.
        plan = request.plan()
        units = request.units(plan)
        problem = problem or _other_units(folder, units)
        _refuse(folder, problem, force)
        if problem is not None:
            _remove_set(folder, ours)
        write_text(folder / SIDECARS / PLAN, json.dumps(asdict(plan)) + "\n")
    with suppress(TokenError):
        if read_tokenizer_info(folder) == info:
            return units
    write_tokenizer_info(folder, info)
    return units


def _lock_file(folder: AnyPath, name: str) -> AbstractContextManager[IO[str] | None]:
    """A file that can be locked; None in an object store, which has no locks."""
    return nullcontext() if isinstance(folder, RemotePath) else (folder / SIDECARS / name).open("a")


def _lock(file: IO[str] | None, how: int) -> None:
    if file is None:
        return
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        raise  # What LOCK_NB says when another process holds the lock.
    except OSError:
        pass  # There are no locks on this file system.


# --- what a folder holds -------------------------------------------------------------------------------------


def _refuse(folder: AnyPath, problem: str | None, force: bool) -> None:
    if problem is not None and not force:
        raise OutputExistsError(f"{folder}: holds {problem}; choose another --output, or add --force to start anew")


def _other_model(folder: AnyPath, plan: PlanRecord | None, info: TokenizerInfo) -> str | None:
    """What is wrong if the folder holds codes of another model, or of another number of codebooks.

    If some of its files are damaged, those that are whole tell it.
    """
    named = {(plan.weights_sha256, plan.num_codebooks)} if plan else set()
    with suppress(TokenError):
        found = read_tokenizer_info(folder)
        named.add((found.weights_sha256, found.chosen_codebooks))
    if not named:
        named = {(sidecar.weights_sha256, sidecar.num_codebooks) for sidecar in _sidecars(folder).values()}
    for other, books in named - {(info.weights_sha256, info.chosen_codebooks)}:
        if other == info.weights_sha256:
            return f"the codes of another --codebooks, {books or 'all'}"
        return f"codes of another model (weights {other[:12]}, this model's are {info.weights_sha256[:12]})"
    return None


def _other_request(plan: PlanRecord | None, request: TokenizingRequest) -> str | None:
    if plan is None:
        return None
    if plan.inputs_sha256 != request.inputs_sha256:
        return "the codes of another list of utterances"
    for name in ("max_seconds", "unit_seconds"):
        if getattr(plan, name) != getattr(request, name):
            return f"the codes of another --{name.replace('_', '-')}, {getattr(plan, name)}"
    return None


def _other_units(folder: AnyPath, units: list[Unit]) -> str | None:
    """What is wrong if there are shards that a plan, made because there is none, does not name."""
    planned = {unit.name: unit.content_hash for unit in units}
    sidecars = _sidecars(folder)
    strays = {path.stem for path in folder.glob("[!.]*.parquet")} - planned.keys()
    if strays or any(planned.get(name) != sidecar.unit_sha256 for name, sidecar in sidecars.items()):
        return f"shards of another list of utterances or of an older version, and no whole {SIDECARS}/{PLAN}"
    return None


def _sidecars(folder: AnyPath) -> dict[str, Sidecar]:
    """The sidecars that are whole, by the names of their shards."""
    found = {}
    for path in (folder / SIDECARS).glob("part-*.json"):
        with suppress(TokenError):
            found[path.stem] = read_record(path, Sidecar)
    return found


# --- starting anew -------------------------------------------------------------------------------------------


def _remove_set(folder: AnyPath, ours: IO[str] | None) -> None:
    """Remove the token data set that a folder holds, if it holds nothing else and nobody writes into it."""
    try:
        _lock(ours, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputExistsError(f"{folder}: another run is writing into it; wait until it has ended") from None
    remove_stale_partials(folder)
    remove_stale_partials(folder / SIDECARS)
    sidecars = _sidecars(folder)
    found = [path for path in folder.iterdir() if path.name != SIDECARS]
    found += [path for path in (folder / SIDECARS).iterdir() if path.name not in (BEGIN, WRITE)]
    for path in found:
        if not _is_ours(path, sidecars):
            raise OutputExistsError(
                f"{path}: is not known to be written by audiovq, so that --force removes nothing; "
                "move it away or choose another --output"
            )
    # Shards first: what proves that they are ours is there as long as they are.
    for path in sorted(found, key=lambda path: (path.suffix != ".parquet", path.name == TOKENIZER)):
        path.unlink()


def _is_ours(path: AnyPath, sidecars: dict[str, Sidecar]) -> bool:
    """Whether audiovq wrote a file of a token data set, by what is in it."""
    if path.suffix == ".parquet" and path.stem in sidecars:
        return _reads(open_shard, path) or sha256_of(path) == sidecars[path.stem].shard_sha256
    if path.parent.name == SIDECARS:
        return path.stem in sidecars or (path.name == PLAN and _reads(read_record, path, PlanCounts))
    return (
        (path.name == TOKENIZER and _reads(read_tokenizer_info, path.parent))
        or (path.name == SUMMARY and _reads(read_record, path, SetSummary))
        or (path.name == REJECTED and _reads(read_rejected, path.parent))
    )


def _reads(read: Callable[..., object], *given: object) -> bool:
    try:
        read(*given)
    except TokenError:
        return False
    return True
