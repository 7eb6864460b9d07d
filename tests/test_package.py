"""The package's front door."""

from __future__ import annotations

import subprocess
import sys

import pytest

import audiovq


def test_import_and_help_need_no_torch():
    """In a process of its own, since this one has imported torch long ago."""
    code = """
import sys
import audiovq, audiovq.cli
from audiovq.config import load_config
try:
    audiovq.cli.app(["--help"])
except SystemExit as end:
    assert end.code == 0
heavy = {"torch", "torchaudio", "librosa", "scipy", "numpy", "pyarrow", "matplotlib", "transformers"} & set(sys.modules)
assert not heavy, heavy
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert "prepare" in result.stdout


@pytest.mark.parametrize("name", audiovq.__all__)
def test_public_names_are_there_and_listed(name):
    assert getattr(audiovq, name).__name__ == name
    assert name in dir(audiovq)
    assert getattr(audiovq, name).__doc__


def test_other_names_are_no_attributes():
    with pytest.raises(AttributeError, match="module 'audiovq' has no attribute 'Tokenizer'"):
        _ = audiovq.Tokenizer
