"""What every property of hostile input needs: a clock, a measure of memory, and ways to damage good input."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from audiovq.errors import AudioVQError

SECONDS, MEGABYTES = 5, 256
"""What reading one small damaged file may take."""

settings.register_profile(
    "fuzz",
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@contextlib.contextmanager
def ends_well() -> Iterator[None]:
    """The block ends without an error or with one that is written for the user, in time and within bounds of memory."""

    rung = []

    def ring(*_: object) -> None:
        rung.append(True)  # What is read may take the error for one of the system's.
        raise TimeoutError(f"took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    message = ""
    signal.alarm(SECONDS)
    held = _memory()
    try:
        yield
    except AudioVQError as error:
        message = str(error)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    taken = _memory(peak=True) - held
    assert not rung, f"took more than {SECONDS} s"
    assert "\n" not in message, f"more than a line: {message}"
    assert len(message) < 3000, f"a line that nobody reads: {message[:200]}"
    assert taken < MEGABYTES, f"took {taken} MiB"


def _memory(peak: bool = False) -> int:
    """MiB of this process, that of libraries in C with it; or the most that there were since this was last asked."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    found = re.search(r"VmHWM:\s+(\d+)" if peak else r"VmRSS:\s+(\d+)", status.read_text())
    if not peak:
        Path("/proc/self/clear_refs").write_text("5")
    return int(found[1]) >> 10 if found else 0


@pytest.fixture(scope="session")
def safely() -> Callable[[], contextlib.AbstractContextManager[None]]:
    return ends_well


@st.composite
def _damage(draw: st.DrawFn, good: bytes) -> bytes:
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        # Headers and footers decide most; so they are hit as often as all the rest.
        size = len(data)
        first, end = draw(st.sampled_from([(0, min(64, size)), (0, min(1024, size)), (max(0, size - 512), size)]))
        first, end = draw(st.sampled_from([(first, end), (0, size)]))
        place = draw(st.integers(first, max(end - 1, first)))
        kind = draw(st.sampled_from(["set", "cut", "insert", "remove", "repeat"]))
        if kind == "set":
            new = draw(
                st.sampled_from([b"\0", b"\xff", b"\x7f", b"\xff\xff\xff\xff", b"\0\0\0\0"])
                | st.binary(min_size=1, max_size=4)
            )
            data[place : place + len(new)] = new
        elif kind == "cut":
            del data[place:]
        elif kind == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "remove":
            del data[place : place + draw(st.integers(1, 16))]
        else:
            data[place:place] = data[place : place + 64]
    return bytes(data)


def _plain() -> st.SearchStrategy[Any]:
    text = st.text(st.characters(), max_size=8)
    leaf = st.none() | st.booleans() | st.integers() | st.floats() | text
    return st.recursive(
        leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3), max_leaves=8
    )


@pytest.fixture(scope="session")
def plain() -> st.SearchStrategy[Any]:
    """Whatever JSON can say."""
    return _plain()


@pytest.fixture(scope="session")
def damaged() -> Callable[[bytes], st.SearchStrategy[bytes]]:
    """Bytes of a good file, of which a few are changed, lost or new."""
    return _damage
