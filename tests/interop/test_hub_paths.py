"""Speech and codes in data sets of the Hub, by their `hf://` paths."""

from __future__ import annotations

import tarfile

import pytest

from audiovq.data.sources import list_items
from audiovq.storage import locate
from audiovq.tokenization.run import tokenize
from audiovq.tokens import TokenSet


@pytest.fixture
def speech(hub, six_files, tmp_path) -> str:
    """A data set with six files, and a tar of them."""
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        for path in sorted(six_files.iterdir()):
            tar.add(path, path.name)
    wavs = {f"speech/wavs/{path.name}": path.read_bytes() for path in six_files.iterdir()}
    hub["datasets/somebody/data"] = {**wavs, "speech/all.tar": (tmp_path / "all.tar").read_bytes()}
    return "hf://datasets/somebody/data/speech"


@pytest.mark.parametrize("place", ["wavs", "all.tar", "*.tar"])
def test_speech_of_the_hub_is_read_in_place_and_its_codes_are_written_there(
    hub, speech, six_files, model, tmp_path, place
):
    local = tokenize(model, [six_files], tmp_path / "local", unit_seconds=2.0)
    hub["datasets/somebody/codes"] = {"README.md": b"mine"}
    output = locate("hf://datasets/somebody/codes/mini")
    made = tokenize(model, [locate(f"{speech}/{place}")], output, unit_seconds=2.0)
    assert made.summary is not None
    assert local.summary is not None
    assert (made.done, made.summary.frames) == (4, local.summary.frames)
    codes = {row.utt_id: row.codes.tolist() for row in TokenSet(output)}
    assert codes == {row.utt_id: row.codes.tolist() for row in TokenSet(tmp_path / "local")}

    lost = next(name for name in hub["datasets/somebody/codes"] if name.endswith(".parquet"))
    del hub["datasets/somebody/codes"][lost]
    again = tokenize(model, [locate(f"{speech}/{place}")], output, unit_seconds=2.0)
    assert (again.done, again.resumed, again.summary) == (1, 3, made.summary)
    tokenize(model, [locate(f"{speech}/{place}")], output, unit_seconds=3.0, force=True)
    assert hub["datasets/somebody/codes"]["README.md"] == b"mine"
    assert {row.utt_id: row.codes.tolist() for row in TokenSet(output)} == codes


def test_what_the_hub_does_not_have_is_one_line(hub, speech, run, model, tmp_path):
    for given, output, message in (
        (f"{speech}/none.tar", tmp_path / "out", "no such file or folder"),
        ("hf://datasets/somebody/none/a.tar", tmp_path / "out", "No such file or directory"),
        (f"{speech}/all.tar", "hf://datasets/somebody/none", "there is no such bucket or repository"),
    ):
        code, out, err = run("tokenize", model, given, "--output", output)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err
    assert len(list(list_items([f"{speech}/wavs"]))) == 6
