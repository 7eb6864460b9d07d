"""Memory that is freed stays with the process."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

FAULTS = """
import resource
from audiovq.allocator import keep_freed_memory

if {keep}:
    keep_freed_memory()
for count in (3, 20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        blocks = [b"x" * (2**22 * size) for size in (1, 4, 2, 6)]
        del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: bool) -> int:
    """Page faults of 20 rounds in which 52 MiB in four blocks are written and freed."""
    done = subprocess.run([sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_freed_memory_is_used_again_without_page_faults():
    pages = 20 * 52 * 2**20 // resource.getpagesize()
    assert faults(keep=False) > pages / 2
    assert faults(keep=True) < pages / 50


def test_other_c_libraries_are_left_as_they_are(monkeypatch):
    from audiovq.allocator import keep_freed_memory

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr("ctypes.CDLL", lambda *_: pytest.fail("asked the C library"))
    keep_freed_memory()
