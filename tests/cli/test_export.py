"""`audiovq export`."""

from __future__ import annotations

import sys

import pytest
from transformers import AutoModel

from audiovq.models.tokenizer import AudioTokenizer


def test_the_folder_is_loaded_by_transformers_and_by_audiovq(run, model, tmp_path):
    code, out, err = run("export", model, "--format", "transformers", "--output", tmp_path / "out")
    assert (code, out, err) == (0, f"transformers model written: {tmp_path / 'out'}\n", "")
    expected = AudioTokenizer.from_pretrained(model, "cpu").weights_sha256
    assert AutoModel.from_pretrained(tmp_path / "out").audio_tokenizer.weights_sha256 == expected
    assert AudioTokenizer.from_pretrained(tmp_path / "out", "cpu").weights_sha256 == expected
    card = (tmp_path / "out" / "README.md").read_text()
    assert "import audiovq.interop.transformers" in card


def test_only_an_export_is_replaced_and_only_when_told(run, model, tmp_path):
    command = ("export", model, "--format", "transformers", "--output", tmp_path / "out")
    assert run(*command)[0] == 0
    code, _, err = run(*command)
    assert code == 2
    assert "exists already" in err
    (tmp_path / "out" / "__pycache__").mkdir()
    (tmp_path / "out" / "__pycache__" / "tokenizer.cpython-311.pyc").touch()  # As if its code had been imported.
    assert run(*command, "--force")[0] == 0
    (tmp_path / "out" / "notes.txt").write_text("mine")
    code, _, err = run(*command, "--force")
    assert code == 2
    assert "holds something else than an export" in err
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert run("export", model, "--format", "transformers", "--output", model, "--force")[0] == 2


def test_what_is_no_tokenizer_is_refused_and_leaves_nothing(run, tiny_tokenizer, tiny_prior, tmp_path):
    tiny_tokenizer("istft", "none").save_pretrained(tmp_path / "continuous")
    tiny_prior().save_pretrained(tmp_path / "prior")
    for name, message in (("continuous", "bottleneck 'none' has no codes"), ("prior", "is a prior, expected a")):
        code, _, err = run("export", tmp_path / name, "--format", "transformers", "--output", tmp_path / "out")
        assert code == 2
        assert message in err
        assert err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"continuous", "prior"}


@pytest.mark.parametrize("format", ["transformers"])
def test_without_the_extra_a_line_says_what_to_install(run, model, tmp_path, monkeypatch, format):
    for name in [name for name in sys.modules if name.startswith(f"audiovq.interop.{format}")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, format, None)
    code, _, err = run("export", model, "--format", format, "--output", tmp_path / "out")
    assert code == 2
    assert err == f"audiovq: --format {format} needs {format}: pip install 'audiovq[{format}]'\n"
