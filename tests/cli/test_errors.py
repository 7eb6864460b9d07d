"""Bad input: one line on standard error that names it, an exit code that is not 0, and nothing half-written."""

from __future__ import annotations

import errno
import io
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiovq.errors import AudioVQError
from audiovq.tokens.codes_file import load_codes

COMMANDS = ("encode", "tokenize")


@pytest.fixture(scope="module")
def model(tiny_tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_tokenizer().save_pretrained(folder)
    return folder


def assert_one_line(err: str, *parts: object) -> None:
    assert err.startswith("audiovq: ")
    assert err.count("\n") == 1
    for part in parts:
        assert str(part) in err


def noise(seconds: float = 0.5, rate: int = 16000, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, (round(seconds * rate), channels))


def truncated(path: Path) -> None:
    soundfile.write(path, noise(), 16000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def not_finite(path: Path, value: float) -> None:
    samples = noise()
    samples[4000] = value
    soundfile.write(path, samples, 16000, subtype="FLOAT")


BAD_AUDIO = {
    "empty.wav": lambda path: path.write_bytes(b""),
    "truncated.wav": truncated,
    "truncated.flac": truncated,
    "header.wav": lambda path: soundfile.write(path, np.zeros(0), 16000),
    "text.wav": lambda path: path.write_text("this is text\n" * 100),
    "nan.wav": lambda path: not_finite(path, np.nan),
    "infinite.wav": lambda path: not_finite(path, np.inf),
    "missing.wav": lambda path: None,
}


@pytest.mark.parametrize("name", BAD_AUDIO)
def test_audio_that_cannot_be_used(run, model, tmp_path, name):
    bad = tmp_path / "speech" / name
    bad.parent.mkdir()
    BAD_AUDIO[name](bad)
    code, out, err = run("encode", model, bad, "-o", tmp_path / "codes")
    assert (code, out) == (1, f"0 of 1 files written: {tmp_path / 'codes'}\n")
    assert_one_line(err, bad)
    assert not list(tmp_path.rglob("*.npz"))
    assert not list(tmp_path.rglob(".partial*"))

    if bad.exists():
        soundfile.write(bad.parent / "good.wav", noise(), 16000)
        code, out, err = run("tokenize", model, bad.parent, "-o", tmp_path / "tokens")
        assert code == 1
        assert out.startswith("1 utterances")
        assert_one_line(err, bad.stem, bad)
        assert not list(tmp_path.rglob(".partial*"))


GOOD_AUDIO = {
    "silence": (np.zeros((8000, 1)), 16000, 8000),
    "one sample": (np.full((1, 1), 0.5), 16000, 1),
    "one sample at a high rate": (np.full((1, 1), 0.5), 192000, 1),
    "three channels": (noise(channels=3), 16000, 8000),
    "192 kHz": (noise(rate=192000), 192000, 8000),
    "8 kHz": (noise(rate=8000), 8000, 8000),
}


@pytest.mark.parametrize("name", GOOD_AUDIO)
def test_unusual_audio_that_works(run, model, tmp_path, name):
    samples, rate, length = GOOD_AUDIO[name]
    source = tmp_path / "a.wav"
    soundfile.write(source, samples, rate)
    assert run("encode", model, source, "-o", tmp_path / "codes")[::2] == (0, "")
    assert load_codes(tmp_path / "codes/a.npz").num_samples == length
    assert run("decode", model, tmp_path / "codes", "-o", tmp_path / "wavs")[::2] == (0, "")
    decoded, rate = soundfile.read(tmp_path / "wavs/a.wav")
    assert (len(decoded), rate) == (length, 16000)


def test_folders_without_anything_to_use(run, model, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for command, message in (
        ("encode", "holds no audio files"),
        ("tokenize", "holds no utterances"),
        ("decode", "holds neither codes files"),
    ):
        code, out, err = run(command, model, empty, "-o", tmp_path / "output")
        assert (code, out) == (2, "")
        assert_one_line(err, empty, message)
    assert not (tmp_path / "output").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_without_permission(run, model, tmp_path, command):
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0)
    code, _, err = run(command, model, folder, "-o", tmp_path / "output")
    folder.chmod(0o700)
    assert code == 2
    assert_one_line(err, folder, "Permission denied")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_cannot_be_listed(run, model, tmp_path, monkeypatch, command):
    folder = tmp_path / "closed"
    folder.mkdir()
    original = os.scandir

    def scandir(path="."):
        if Path(path) == folder:
            raise PermissionError(13, os.strerror(13), str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    code, _, err = run(command, model, folder, "-o", tmp_path / "output")
    assert code == 2
    assert_one_line(err, folder, "Permission denied")
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("command", [*COMMANDS, "decode"])
def test_a_path_through_a_file(run, model, tmp_path, command):
    (tmp_path / "file").write_text("")
    code, _, err = run(command, model, tmp_path / "file/below", "-o", tmp_path / "output")
    assert code in (1, 2)
    reason = "no such file or folder" if command == "tokenize" else "Not a directory"
    assert_one_line(err, tmp_path / "file/below", reason)
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_is_a_file(run, model, tmp_path, command):
    soundfile.write(tmp_path / "a.wav", noise(), 16000)
    manifest_or_file = tmp_path if command == "tokenize" else tmp_path / "a.wav"
    (tmp_path / "output").write_text("mine")
    code, _, err = run(command, model, manifest_or_file, "-o", tmp_path / "output")
    assert code == 2
    assert_one_line(err, tmp_path / "output")
    assert (tmp_path / "output").read_text() == "mine"


class Trap:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def no_model(folder: Path) -> None:
    (folder / "config.json").unlink()


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Trap(folder / "sprung")))


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def other_format(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 7'))


def other_shape(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"codebook_size": 32', '"codebook_size": 64'))


BAD_MODELS = {
    "no such folder": (shutil.rmtree, "no such model folder"),
    "no config": (no_model, "is no model folder, it has no config.json"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "cannot be read (No such file"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "cannot be read as JSON"),
    "pickle": (pickled, "pickled checkpoints are not loaded"),
    "truncated": (cut_weights, "is no safetensors file or is damaged"),
    "of another version": (other_format, "expected format_version 1, found 7"),
    "of another shape": (other_shape, "weights do not fit the config"),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_a_model_that_cannot_be_used(run, model, tmp_path, name):
    spoil, message = BAD_MODELS[name]
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    spoil(folder)
    soundfile.write(tmp_path / "a.wav", noise(), 16000)
    for arguments in (
        ("info", folder),
        ("encode", folder, tmp_path / "a.wav", "-o", tmp_path / "output"),
        ("tokenize", folder, tmp_path, "-o", tmp_path / "output"),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert_one_line(err, folder, message)
    assert not (tmp_path / "output").exists()
    assert not list(tmp_path.rglob("sprung"))


def test_an_unknown_device(run, model, tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(), 16000)
    code, _, err = run("encode", model, tmp_path / "a.wav", "-o", tmp_path / "codes", "--device", "abacus")
    assert code == 2
    assert_one_line(err, "device 'abacus' cannot be used")


def test_a_model_without_codes(run, tiny_tokenizer, tmp_path):
    tiny_tokenizer(bottleneck="none").save_pretrained(tmp_path / "model")
    soundfile.write(tmp_path / "a.wav", noise(), 16000)
    soundfile.write(tmp_path / "b.wav", noise(), 16000)
    assert run("info", tmp_path / "model")[0] == 0
    for command, given in (("encode", [tmp_path / "a.wav", tmp_path / "b.wav"]), ("tokenize", [tmp_path])):
        code, out, err = run(command, tmp_path / "model", *given, "-o", tmp_path / "output")
        assert (code, out) == (2, "")
        assert_one_line(err, "bottleneck 'none' has no codes")
    assert not (tmp_path / "output").exists()


@pytest.mark.filterwarnings("default:.*does not say how long it is")
def test_a_warning_is_one_line_on_stderr(run, model, tmp_path):
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, noise(), 16000)
        data = bytearray((tmp_path / name).read_bytes())
        data[4:8] = data[40:44] = b"\xff" * 4  # As a program writes it to a pipe.
        (tmp_path / name).write_bytes(data)
    code, _, err = run("encode", model, tmp_path, "-o", tmp_path / "codes")
    assert code == 0
    (line,) = err.splitlines()
    assert line.startswith(f"audiovq: warning: {tmp_path / 'a.wav'}: does not say how long it is; ")


def test_an_endless_name_is_cut_where_it_is_shown(run, model, tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(), 16000)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "a.wav", "x" * 5000 + ".wav")
    code, _, err = run("tokenize", model, tmp_path / "a.tar", "-o", tmp_path / "codes")
    assert code == 1
    (line,) = err.splitlines()
    assert line.endswith("rename it")
    assert len(line) < 1100


@pytest.mark.parametrize("option", ["--batch-seconds", "--max-seconds", "--unit-seconds"])
@pytest.mark.parametrize("value", ["inf", "nan", "-1"])
def test_times_that_no_plan_can_hold_are_usage_errors(run, model, tmp_path, option, value):
    code, _, err = run("tokenize", model, tmp_path, "-o", tmp_path / "codes", option, value)
    assert code == 2
    assert f"Invalid value for '{option}'" in err
    assert not (tmp_path / "codes").exists()


@pytest.mark.parametrize("shard", ["9" * 5000 + "/2", "0/" + "9" * 5000, "\u0661/\u0662", "3/2", "0/0", "-1/2"])
def test_a_part_that_there_cannot_be_is_a_usage_error(run, model, tmp_path, shard):
    code, _, err = run("tokenize", model, tmp_path, "-o", tmp_path / "codes", "--shard", shard)
    assert code == 2
    assert "expected I/N with I from 0 to N - 1" in " ".join(err.split())
    assert len(err) < 1000


def test_a_wrong_option_is_a_usage_error(run, model, tmp_path):
    code, out, err = run("encode", model, tmp_path, "--outptu", "x")
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert "--outptu" in err


# --- the machine, and what is shown ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EACCES, errno.EROFS])
def test_errors_of_the_system_name_the_output_and_leave_nothing(run, model, tmp_path, monkeypatch, number):
    soundfile.write(tmp_path / "a.wav", noise(), 16000)

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("numpy.savez_compressed", fail)
    code, _, err = run("encode", model, tmp_path / "a.wav", "-o", tmp_path / "codes")
    assert code == 2
    assert_one_line(err, tmp_path / "codes/a.npz", os.strerror(number))
    assert not list(tmp_path.rglob(".partial*"))
    assert not list(tmp_path.rglob("*.npz"))


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (MemoryError(), 1, "audiovq: out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "audiovq: out of memory"),
        (KeyboardInterrupt(), 130, ""),
        (AudioVQError("a\x1b[2Jb"), 2, "audiovq: a\\x1b[2Jb"),
        (ZeroDivisionError("a bug"), 1, "Traceback"),
        (EOFError("a bug"), 1, "Traceback"),
    ],
)
def test_every_error_has_its_exit_code(run, tmp_path, monkeypatch, error, code, shown):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("audiovq.models.release.locate", fail)
    found, out, err = run("info", tmp_path)
    assert (found, out) == (code, "")
    assert shown in err
    assert ("Traceback" in err) == (shown == "Traceback")


class Pipe(io.StringIO):
    """A stream that nobody reads, or whose disk is full."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize(("number", "code"), [(errno.EPIPE, 0), (errno.ENOSPC, 2)])
def test_a_reader_who_leaves_stops_nothing(run, model, tmp_path, monkeypatch, number, code):
    soundfile.write(tmp_path / "a.wav", noise(), 16000)
    monkeypatch.setattr("sys.stdout", Pipe(number))
    found, _, err = run("encode", model, tmp_path / "a.wav", "-o", tmp_path / "codes")
    assert found == code
    assert (tmp_path / "codes/a.npz").exists()
    assert err.count("\n") == code // 2


def test_what_a_killed_run_left_goes_when_a_command_writes_there(run, model, tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(), 16000)
    (tmp_path / "codes/.partial-gone/new").mkdir(parents=True)
    (tmp_path / "codes/.partial-gone.npz").write_text("half")
    (tmp_path / "codes/.partial-mine").mkdir()
    (tmp_path / "codes/.partial-mine/thesis.tex").write_text("years of work")
    assert run("encode", model, tmp_path / "a.wav", "-o", tmp_path / "codes")[0] == 0
    assert sorted(path.name for path in (tmp_path / "codes").iterdir()) == [".partial-mine", "a.npz"]
