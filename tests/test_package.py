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


def test_without_extras_all_that_does_not_need_one_is_there():
    """In a process of its own, for which the extras are not installed."""
    code = """
import importlib, pkgutil, sys
for name in ("av", "datasets", "distillmos", "encodec", "fastapi", "faster_whisper", "gcsfs", "jiwer", "lhotse", "onnx",
             "onnxruntime", "onnxscript", "ray", "resemblyzer", "s3fs", "swift_f0", "tensorboard", "torchmetrics",
             "transformers", "webdataset"):
    sys.modules[name] = None  # Which makes its import fail.
import audiovq
for module in pkgutil.walk_packages(audiovq.__path__, "audiovq."):
    try:
        module.name == "audiovq.__main__" or importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        print(module.name, error.name.partition(".")[0])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    transformers = ("codec", "codec_config", "features", "transformers")
    assert dict(line.split() for line in result.stdout.splitlines()) == {
        "audiovq.audio.streams": "av",
        "audiovq.training.board": "tensorboard",
        "audiovq.interop.onnx": "onnx",
        "audiovq.interop.web": "onnx",
        **{f"audiovq.interop.{name}": "transformers" for name in transformers},
    }


def test_the_package_can_be_run():
    """As `accelerate launch` does it."""
    command = [sys.executable, "-m", "audiovq", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert audiovq.__version__ in done.stdout


def test_commands_keep_memory_that_is_freed(run, monkeypatch):
    asked = []
    monkeypatch.setattr(sys.modules["audiovq.cli.app"], "keep_freed_memory", lambda: asked.append(True))
    assert run("models")[0] == 0
    assert asked == [True]


@pytest.mark.parametrize("name", audiovq.__all__)
def test_public_names_are_there_and_listed(name):
    assert getattr(audiovq, name).__name__ == name
    assert name in dir(audiovq)
    assert getattr(audiovq, name).__doc__


def test_other_names_are_no_attributes():
    with pytest.raises(AttributeError, match="module 'audiovq' has no attribute 'Tokenizer'"):
        _ = audiovq.Tokenizer
