"""What every property of hostile input needs: a clock, a measure of memory, and ways to damage good input."""

from __future__ import annotations

import contextlib
import signal
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from hypothesis import strategies as st

from audiovq.errors import AudioVQError

SECONDS, MEGABYTES = 5, 64
"""What reading one small damaged file may take."""


@contextlib.contextmanager
def ends_well() -> Iterator[None]:
    """The block ends without an error or with one that is written for the user, in time and within bounds of memory."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    message = ""
    signal.alarm(SECONDS)
    tracemalloc.start()
    try:
        yield
    except AudioVQError as error:
        message = str(error)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert "\n" not in message, f"more than a line: {message}"
    assert len(message) < 3000, f"a line that nobody reads: {message[:200]}"
    assert peak < MEGABYTES << 20, f"took {peak >> 20} MiB"


@pytest.fixture(scope="session")
def safely() -> Callable[[], contextlib.AbstractContextManager[None]]:
    return ends_well


@st.composite
def _damage(draw: st.DrawFn, good: bytes) -> bytes:
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        # Headers decide most; so they are hit as often as all the rest.
        end = draw(st.sampled_from([min(64, len(data)), min(1024, len(data)), len(data)]))
        place = draw(st.integers(0, max(end - 1, 0)))
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


@pytest.fixture(scope="session")
def damaged() -> Callable[[bytes], st.SearchStrategy[bytes]]:
    """Bytes of a good file, of which a few are changed, lost or new."""
    return _damage
