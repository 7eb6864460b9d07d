"""Recipes, run as scripts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

Bash = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def bash(tmp_path_factory) -> Iterator[Bash]:
    """Run a script in an environment where `audiovq` is the one under test, and needs no time to start."""
    folder = tmp_path_factory.mktemp("programs")
    environment = {**os.environ, "PATH": os.pathsep.join([str(folder), os.environ["PATH"]]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("commands.py")), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as server:

        @cache
        def wait_until_it_is_ready() -> None:
            assert server.stdout.readline() == b"ready\n"

        def bash(*command: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
            wait_until_it_is_ready()
            return subprocess.run(
                ["bash", *map(str, command)], capture_output=True, text=True, env=environment, cwd=cwd, check=False
            )

        yield bash
        server.stdin.close()
