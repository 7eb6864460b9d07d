"""`audiovq encode`, `decode`, `tokenize` and `info`, from files to files."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

import audiovq
from audiovq.audio.files import AudioSource
from audiovq.models.tokenizer import AudioTokenizer
from audiovq.tokens import TokenSet
from audiovq.tokens.codes_file import load_codes
from audiovq.tokens.shards import RowGroup

SPEECH = sorted((Path(__file__).parents[2] / "recipes" / "mini" / "data" / "allison").glob("*.ogg"))


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def other_model(tiny_tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("other")
    tiny_tokenizer("transposed").save_pretrained(folder)
    return folder


def write_speech(path: Path, samples: int, rate: int = 16000, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, AudioSource.open(SPEECH[number]).read(rate)[0, :samples].numpy(), rate)
    return path


@pytest.fixture
def tree(tmp_path) -> Path:
    """Speech in a tree of folders, at two rates, of lengths that are no whole frames."""
    folder = tmp_path / "speech"
    write_speech(folder / "one.wav", 9999)
    write_speech(folder / "a/two.flac", 8001, 8000, 1)
    write_speech(folder / "a/b/two.wav", 321, 16000, 2)
    (folder / "a/notes.txt").write_text("no audio, and passed over")
    return folder


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_encode_and_decode_keep_the_tree_and_the_lengths(run, model, tokenizer, tree, tmp_path):
    codes, wavs = tmp_path / "codes", tmp_path / "wavs"
    assert run("encode", model, tree, "-o", codes) == (0, f"3 of 3 files written: {codes}\n", "")
    assert files_below(codes) == {"one.npz", "a/two.npz", "a/b/two.npz"}
    for name in ("one.wav", "a/two.flac", "a/b/two.wav"):
        wave = AudioSource.open(tree / name).read(16000)
        found = load_codes((codes / name).with_suffix(".npz"))
        np.testing.assert_array_equal(found.codes, tokenizer.encode(wave, 16000)[0].numpy())
        assert (found.num_samples, found.sample_rate) == (wave.shape[-1], 16000)

    assert run("decode", model, codes, "-o", wavs) == (0, f"3 of 3 files written: {wavs}\n", "")
    assert files_below(wavs) == {"one.wav", "a/two.wav", "a/b/two.wav"}
    for name, samples in (("one", 9999), ("a/two", 16002), ("a/b/two", 321)):
        decoded, rate = soundfile.read(wavs / f"{name}.wav")
        assert (len(decoded), rate) == (samples, 16000)
        expected = tokenizer.decode(load_codes(codes / f"{name}.npz").codes, samples)[0, 0].clamp(-1, 1)
        np.testing.assert_allclose(decoded, expected.numpy(), atol=1.01 / 32768)


def test_tokenize_then_decode_writes_one_wav_an_utterance(run, model, tree, tmp_path):
    tokens, wavs = tmp_path / "tokens", tmp_path / "wavs"
    code, out, err = run("tokenize", model, tree, "-o", tokens)
    assert (code, err) == (0, "")
    assert out.startswith("3 utterances, 0.00 hours, ")
    assert run("decode", model, tokens, "-o", wavs) == (0, f"3 of 3 files written: {wavs}\n", "")
    lengths = {row.utt_id: row.num_samples for row in TokenSet(tokens)}
    assert sorted(lengths.values()) == [321, 9999, 16002]
    assert {path.stem: soundfile.info(path).frames for path in wavs.iterdir()} == lengths
    whole = "".join(out.splitlines(keepends=True)[:2])
    assert run("tokenize", model, tree, "-o", tokens) == (0, whole, "")


def test_a_token_set_and_codes_files_decode_in_one_call(run, model, tree, tmp_path):
    run("tokenize", model, tree / "a", "-o", tmp_path / "tokens")
    run("encode", model, tree / "one.wav", "-o", tmp_path / "codes")
    code, out, _ = run("decode", model, tmp_path / "tokens", tmp_path / "codes/one.npz", "-o", tmp_path / "wavs")
    assert (code, out) == (0, f"3 of 3 files written: {tmp_path / 'wavs'}\n")
    assert len(files_below(tmp_path / "wavs")) == 3


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_existing_files_are_overwritten_only_with_force(run, model, tree, tmp_path, command):
    if command == "decode":
        run("encode", model, tree, "-o", tmp_path / "codes")
    given, old = (tree, "two.npz") if command == "encode" else (tmp_path / "codes", "two.wav")
    output = tmp_path / "output"
    (output / "a").mkdir(parents=True)
    (output / "a" / old).write_text("old")
    code, out, err = run(command, model, given, "-o", output)
    assert (code, out) == (2, "")
    assert err == (
        f"audiovq: {output / 'a' / old} exists already; choose another output or add --force to overwrite it\n"
    )
    assert files_below(output) == {f"a/{old}"}
    assert (output / "a" / old).read_text() == "old"

    code, _, err = run(command, model, given, "-o", output, "--force")
    assert (code, err) == (0, "")
    assert (output / "a" / old).read_bytes() != b"old"
    assert len(files_below(output)) == 3


def test_a_token_set_is_decoded_over_existing_files_only_with_force(run, model, tree, tmp_path):
    run("tokenize", model, tree, "-o", tmp_path / "tokens")
    run("decode", model, tmp_path / "tokens", "-o", tmp_path / "wavs")
    run("encode", model, tree / "one.wav", "-o", tmp_path / "codes/other")
    # Nothing is decoded of other inputs either.
    code, _, err = run("decode", model, tmp_path / "codes", tmp_path / "tokens", "-o", tmp_path / "wavs")
    assert code == 2
    assert "exists already" in err
    assert not (tmp_path / "wavs/other").exists()
    assert run("decode", model, tmp_path / "tokens", "-o", tmp_path / "wavs", "--force")[0] == 0


def test_chosen_utterances_are_decoded_and_no_others_read(run, model, tree, tmp_path, monkeypatch):
    monkeypatch.setattr("audiovq.tokens.shards.GROUP_CODES", 1)  # A row group for each utterance.
    tokens, wavs = tmp_path / "tokens", tmp_path / "wavs"
    run("tokenize", model, tree, "-o", tokens)
    run("decode", model, tokens, "-o", tmp_path / "all")
    names = TokenSet(tokens).ids
    assert len(names) == 3
    read = []
    original = RowGroup.__init__
    monkeypatch.setattr(RowGroup, "__init__", lambda *given: read.append(given[3]) or original(*given))
    code, out, err = run("decode", model, tokens, "-o", wavs, "--utt-ids", names[2])
    assert (code, out, err) == (0, f"1 of 1 files written: {wavs}\n", "")
    assert read == [2]
    (tmp_path / "ids").write_text(f"{names[0]}\n{names[1]}\n")
    assert run("decode", model, tokens, "-o", wavs, "--utt-ids", f"@{tmp_path / 'ids'}")[0] == 0
    for name in names:
        assert (wavs / f"{name}.wav").read_bytes() == (tmp_path / "all" / f"{name}.wav").read_bytes()


def test_unknown_utterances_are_refused_before_any_is_decoded(run, model, tree, tmp_path):
    tokens, wavs = tmp_path / "tokens", tmp_path / "wavs"
    run("tokenize", model, tree, "-o", tokens)
    known = ("--utt-ids", TokenSet(tokens).ids[0])
    assert run("decode", model, tokens, "-o", wavs, *known, "--utt-ids", "x") == (
        2,
        "",
        f"audiovq: {tokens}: holds no utterance 'x'\n",
    )
    code, _, err = run("decode", model, tokens, tokens, "-o", wavs, *known)
    assert (code, err) == (2, "audiovq: --utt-ids chooses from one token data set; name just one, and no codes files\n")
    code, _, err = run("decode", model, tokens, "-o", wavs, "--utt-ids", "@/missing")
    assert (code, err) == (2, "audiovq: /missing: No such file or directory\n")
    assert not wavs.exists()


def test_inputs_that_would_become_the_same_file_are_refused(run, model, tmp_path):
    folder = tmp_path / "speech"
    write_speech(folder / "a.wav", 4000)
    write_speech(folder / "a.flac", 3000)
    write_speech(tmp_path / "elsewhere/a.wav", 2000)
    for given in ([folder], [folder / "a.wav", tmp_path / "elsewhere/a.wav"]):
        code, out, err = run("encode", model, *given, "-o", tmp_path / "codes", "--force")
        assert (code, out) == (2, "")
        assert err.startswith(f"audiovq: {tmp_path / 'codes/a.npz'} would be made of both ")
        assert err.count("\n") == 1
    assert not (tmp_path / "codes").exists()


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_utterances_that_would_become_the_same_wav_are_refused_before_the_model_is_loaded(
    run, model, tree, tmp_path, monkeypatch, force
):
    for name in ("a", "b"):
        write_speech(tmp_path / name / "same.wav", 2000)
        run("tokenize", model, tmp_path / name, "-o", tmp_path / f"set {name}")
    run("encode", model, tmp_path / "a", "-o", tmp_path / "codes")
    monkeypatch.setattr(AudioTokenizer, "from_pretrained", lambda *_: pytest.fail("the model is loaded"))
    target, whole = tmp_path / "wavs/same.wav", tmp_path / "set b"
    for other, source in (
        ("set a", f"utterance 'same' of {tmp_path / 'set a'}"),
        ("codes", tmp_path / "codes/same.npz"),
    ):
        code, out, err = run("decode", model, tmp_path / other, whole, "-o", tmp_path / "wavs", *force)
        both = f"{source} and utterance 'same' of {whole}"
        assert (code, out) == (2, "")
        assert err == f"audiovq: {target} would be made of both {both}; use two calls and two outputs\n"


def test_codes_of_another_model_are_refused(run, model, other_model, tree, tmp_path):
    run("encode", model, tree / "one.wav", "-o", tmp_path / "codes")
    run("tokenize", model, tree, "-o", tmp_path / "tokens")
    for given, expected in ((tmp_path / "codes", 1), (tmp_path / "tokens", 2)):
        code, _, err = run("decode", other_model, given, "-o", tmp_path / "wavs")
        assert code == expected
        assert err.startswith("audiovq: ")
        assert "holds codes of another model" in err
        assert err.count("\n") == 1
    code, _, err = run("tokenize", other_model, tree, "-o", tmp_path / "tokens")
    assert code == 2
    assert "holds codes of another model" in err
    assert "--force" in err
    assert not (tmp_path / "wavs").exists()


def test_codes_are_decoded_by_a_model_that_differs_in_its_decoder_alone(run, model, tree, tmp_path):
    tuned = AudioTokenizer.from_pretrained(model, "cpu")
    for weight in tuned.model.decoder.parameters():
        weight.mul_(1.01)
    tuned.save_pretrained(tmp_path / "tuned")
    run("encode", model, tree / "one.wav", "-o", tmp_path / "codes")
    run("tokenize", model, tree, "-o", tmp_path / "tokens")
    for given in ("codes", "tokens"):
        code, _, err = run("decode", tmp_path / "tuned", tmp_path / given, "-o", tmp_path / "wavs" / given)
        assert (code, err) == (0, "")
    assert run("tokens", "verify", tmp_path / "tokens", "--input", tree, "--model", tmp_path / "tuned")[0] == 0
    expected, _ = tuned.reconstruct(*audiovq.load_audio(tree / "one.wav"))
    found, _ = audiovq.load_audio(tmp_path / "wavs/codes/one.wav")
    assert (found - expected[0]).abs().max() < 1e-3


def test_codes_files_are_found_as_audio_files_are(run, model, tree, tmp_path, monkeypatch):
    codes = tmp_path / "codes"
    run("encode", model, tree / "one.wav", "-o", codes)
    for name in (".partial-x/new", "closed", "elsewhere"):
        (codes / name).mkdir(parents=True)
        shutil.copy(codes / "one.npz", codes / name / "other.npz")
    (codes / "elsewhere").rename(tmp_path / "elsewhere")
    (codes / "linked").symlink_to(tmp_path / "elsewhere")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    code, out, err = run("decode", model, codes, "-o", tmp_path / "wavs")
    assert (code, out) == (1, f"2 of 3 files written: {tmp_path / 'wavs'}\n")
    assert err.startswith(f"audiovq: {codes / 'closed'}: ")
    assert files_below(tmp_path / "wavs") == {"one.wav", "linked/other.wav"}


def test_codes_out_of_range_and_wrong_lengths_are_refused(run, model, tree, tmp_path):
    run("encode", model, tree / "one.wav", "-o", tmp_path / "codes")
    with np.load(tmp_path / "codes/one.npz") as arrays:
        good = dict(arrays)
    high = {**good, "codes": np.full_like(good["codes"], 32)}
    np.savez(tmp_path / "codes/high.npz", **high)
    np.savez(tmp_path / "codes/long.npz", **{**good, "num_samples": good["num_samples"] + 320})
    np.savez(tmp_path / "codes/books.npz", **{**good, "codes": np.repeat(good["codes"], 2, axis=0)})
    np.savez(tmp_path / "codes/rate.npz", **{**good, "sample_rate": 44100})
    code, out, err = run("decode", model, tmp_path / "codes", "-o", tmp_path / "wavs")
    assert code == 1
    assert out == f"1 of 5 files written: {tmp_path / 'wavs'}\n"
    lines = err.splitlines()
    assert len(lines) == 4
    for name, line in zip(("books", "high", "long", "rate"), lines, strict=True):
        assert line.startswith(f"audiovq: {tmp_path / 'codes' / name}.npz: ")
    assert files_below(tmp_path / "wavs") == {"one.wav"}


def test_one_bad_file_does_not_stop_the_others(run, model, tree, tmp_path):
    (tree / "bad.wav").write_text("no audio")
    code, out, err = run("encode", model, tree, "-o", tmp_path / "codes")
    assert (code, out) == (1, f"3 of 4 files written: {tmp_path / 'codes'}\n")
    assert err.startswith(f"audiovq: {tree / 'bad.wav'}: is no audio")
    assert err.count("\n") == 1
    assert len(files_below(tmp_path / "codes")) == 3

    code, out, err = run("tokenize", model, tree, "-o", tmp_path / "tokens")
    assert code == 1
    assert out.startswith("3 utterances")
    assert err.startswith("audiovq: bad: ")
    assert err.count("\n") == 1
    (listed,) = [json.loads(line) for line in (tmp_path / "tokens/rejected.jsonl").read_text().splitlines()]
    assert listed["source"] == str(tree / "bad.wav")


def test_a_shard_cannot_name_a_file_outside_the_output(run, model, tree, tmp_path):
    import pyarrow.parquet as pq

    run("tokenize", model, tree, "-o", tmp_path / "tokens")
    (shard,) = (tmp_path / "tokens").glob("*.parquet")
    table = pq.read_table(shard)
    ids = table.column("utt_id").to_pylist()
    for bad in ("../outside", str(tmp_path / "outside")):
        pq.write_table(table.set_column(0, "utt_id", [[bad, *ids[1:]]]), shard)
        code, _, err = run("decode", model, tmp_path / "tokens", "-o", tmp_path / "deep/wavs")
        assert code == 2
        assert err.startswith(f"audiovq: {shard}: utterance ")
        assert err.count("\n") == 1
    assert not list(tmp_path.rglob("outside*"))


def test_info_describes_the_model(run, model, tokenizer):
    code, out, err = run("info", model)
    assert (code, err) == (0, "")
    values = dict(
        line.split(maxsplit=1)
        for line in out.replace("sample rate", "rate").replace("codes sha256", "sha256").splitlines()
    )
    assert values["rate"] == "16000 Hz"
    assert values["codes"] == "1 x 32"
    assert values["sha256"] == tokenizer.codes_sha256
    assert tokenizer.weights_sha256 in out
    assert f"{tokenizer.bitrate:g} bit/s" in out


def test_an_interrupt_ends_with_its_exit_code_and_no_traceback(run, model, tree, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("audiovq.tokenization.files.save_codes", interrupted)
    code, _, err = run("encode", model, tree, "-o", tmp_path / "codes")
    assert code == 130
    assert "Traceback" not in err
    assert not list(tmp_path.rglob(".partial*"))


def test_a_full_disk_is_one_line(run, model, tree, tmp_path, monkeypatch):
    def full(_path, **_arrays):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(np, "savez_compressed", full)
    code, _, err = run("encode", model, tree, "-o", tmp_path / "codes")
    assert code == 2
    assert re.fullmatch(r"audiovq: .*/codes/a/b/two\.npz: No space left on device\n", err)
    assert files_below(tmp_path / "codes") == set()


@pytest.mark.parametrize("command", ["encode", "convert"])
def test_a_tar_in_a_folder_is_told_and_tokenize_reads_it(run, model, tiny_tokenizer, tree, tmp_path, command):
    if command == "convert":
        model, speaker = tmp_path / "voices", ("--speaker", "june")
        tiny_tokenizer("wavenet").save_pretrained(model)
    else:
        speaker = ()
    with tarfile.open(tree / "one.tar", "w") as tar:
        tar.add(tree / "one.wav", "inside.wav")
    for name in ("a/two.flac", "a/b/two.wav"):
        (tree / name).unlink()
    told = f"audiovq: {tree / 'one.tar'}: is a tar; `audiovq tokenize` reads the audio in it\n"
    for given in (tree, tree / "one.tar"):
        files = 2 if given == tree else 1
        output = tmp_path / f"of {given.name}"
        code, out, err = run(command, model, given, "-o", output, *speaker)
        assert (code, out, err) == (1, f"{files - 1} of {files} files written: {output}\n", told)
    code, out, err = run("tokenize", model, tree, "-o", tmp_path / "tokens")
    assert (code, err) == (0, "")
    assert sorted(TokenSet(tmp_path / "tokens").ids) == ["inside", "one"]


def test_tars_that_cannot_be_read_stop_nothing_and_are_rejected(run, model, tree, tmp_path):
    (tree / "damaged.tar").write_bytes(b"no tar")
    with tarfile.open(tree / "up.tar", "w") as tar:
        tar.add(tree / "one.wav", "../up.wav")
    code, out, err = run("tokenize", model, tree, "-o", tmp_path / "tokens")
    assert code == 1
    assert out.startswith("3 utterances")
    assert err.count("\n") == 2
    assert f"{tree / 'damaged.tar'}: is no tar or is damaged" in err
    assert f"tar://../up.wav::{tree / 'up.tar'}: lies outside the tar by its name" in err
    assert run("tokens", "verify", tmp_path / "tokens", "--input", tree)[0] == 0


def test_each_process_of_torchrun_does_its_part(run, model, tree, tmp_path, monkeypatch):
    tokens, arguments = tmp_path / "tokens", ("--unit-seconds", 0.3, "--device", "cpu")
    run("tokenize", model, tree, "-o", tmp_path / "alone", *arguments)
    shards = {path.name: path.read_bytes() for path in (tmp_path / "alone").glob("*.parquet")}
    assert len(shards) > 2
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        code, out, err = run("tokenize", model, tree, "-o", tokens, *arguments)
        assert (code, err) == (0, "")
        assert ("still missing" in out) == (rank == 1)
        if rank == 1:
            assert {path.name for path in tokens.glob("*.parquet")} == set(sorted(shards)[1::2])
    assert {path.name: path.read_bytes() for path in tokens.glob("*.parquet")} == shards
    assert "would remove what the other parts have done" in run("tokenize", model, tree, "-o", tokens, "--force")[2]
    assert run("tokenize", model, tree, "-o", tmp_path / "named", "--shard", "0/1", *arguments)[0] == 0
    assert (tmp_path / "named/summary.json").exists()
