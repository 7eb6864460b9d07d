"""Released models: saved, loaded, damaged, and on a Hub that is never asked."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from audiovq.errors import CheckpointError
from audiovq.models.tokenizer import AudioTokenizer


@pytest.fixture
def release(tokenizer, tmp_path) -> Path:
    """A folder with a released model."""
    tokenizer.save_pretrained(tmp_path / "release")
    return tmp_path / "release"


def refuses(folder: Path, message: str) -> None:
    """Loading gives one line that matches `message`."""
    with pytest.raises(CheckpointError, match=message) as caught:
        AudioTokenizer.from_pretrained(folder, "cpu")
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("bottleneck", ["vq", "vq-plain", "vq-ema", "none"])
@pytest.mark.parametrize("decoder", ["transposed", "istft"])
def test_a_model_comes_back_as_it_was_saved(tiny_tokenizer, tmp_path, mini_speech, decoder, bottleneck):
    tokenizer = tiny_tokenizer(decoder, bottleneck)
    tokenizer.save_pretrained(tmp_path)
    loaded = AudioTokenizer.from_pretrained(tmp_path, "cpu")
    assert loaded.config == tokenizer.config
    wave, codes = tokenizer.reconstruct(mini_speech, 16000)
    wave2, codes2 = loaded.reconstruct(mini_speech, 16000)
    assert torch.equal(wave, wave2)
    assert codes2 is None if codes is None else torch.equal(codes, codes2)
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_the_hash_of_a_model_is_that_of_its_file(release, tokenizer):
    on_disk = hashlib.sha256((release / "model.safetensors").read_bytes()).hexdigest()
    assert tokenizer.weights_sha256 == on_disk
    assert AudioTokenizer.from_pretrained(release, "cpu").weights_sha256 == on_disk
    assert on_disk in (release / "README.md").read_text()


def test_a_release_is_three_files_and_saving_again_changes_none(release):
    before = {path.name: path.read_bytes() for path in release.iterdir()}
    assert before.keys() == {"model.safetensors", "config.json", "README.md"}
    AudioTokenizer.from_pretrained(release, "cpu").save_pretrained(release)
    assert {path.name: path.read_bytes() for path in release.iterdir()} == before


def test_the_model_card_names_rates_and_codes(release):
    card = (release / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: audiovq\n")
    for fact in AudioTokenizer.from_pretrained(release, "cpu").describe().values():
        assert fact in card


def test_a_save_that_fails_leaves_the_old_release(release, tokenizer, monkeypatch):
    before = {path.name: path.read_bytes() for path in release.iterdir()}

    def fail(weights):
        raise OSError("disk full")

    monkeypatch.setattr("audiovq.models.release.save", fail)
    with pytest.raises(OSError, match="disk full"):
        tokenizer.save_pretrained(release)
    assert {path.name: path.read_bytes() for path in release.iterdir()} == before


# --- damaged or foreign --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file(release, name):
    (release / name).unlink()
    refuses(release, name)


@pytest.mark.parametrize("version", [None, 0, 2, "1"])
def test_another_format_version(release, version):
    edit_config(release, format_version=version)
    refuses(release, f"expected format_version 1, found {version}")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\ufeff{}", '"text"'])
def test_a_config_that_is_none(release, text):
    (release / "config.json").write_text(text, encoding="utf-8")
    refuses(release, "config.json")


def test_a_config_with_an_unknown_setting(release):
    config = json.loads((release / "config.json").read_text())
    config["model"]["latent_dims"] = 3
    edit_config(release, model=config["model"])
    refuses(release, "latent_dims: unknown key; did you mean 'latent_dim'")


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, -1])
def test_truncated_weights(release, kept):
    path = release / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    refuses(release, "is no safetensors file or is damaged")


class Bomb:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("writer", [pickle.dumps, "torch"])
def test_a_pickle_in_place_of_the_weights_is_never_executed(release, tmp_path, writer):
    trace, path = tmp_path / "executed", release / "model.safetensors"
    if writer == "torch":
        torch.save({"weight": Bomb(trace)}, path)
    else:
        path.write_bytes(writer(Bomb(trace)))
        pickle.loads(path.read_bytes())  # noqa: S301 (shows that it would have gone off)
        assert trace.exists()
        trace.unlink()
    refuses(release, "pickled checkpoints are not loaded")
    assert not trace.exists()


def test_weights_of_another_model(release, tokenizer, tiny_tokenizer, tmp_path):
    other = tiny_tokenizer("transposed" if tokenizer.config.decoder.type == "istft" else "istft")
    other.save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").replace(release / "model.safetensors")
    refuses(release, r"weights do not fit the config: decoder\..* is missing, .* and \d+ more")


def test_weights_of_another_size(release):
    config = json.loads((release / "config.json").read_text())
    config["model"]["bottleneck"]["codebook_size"] = 64
    edit_config(release, model=config["model"])
    refuses(release, r"bottleneck.codebook is \[32, 4\] instead of \[64, 4\]")


def test_a_file_in_place_of_the_folder(release):
    with pytest.raises(CheckpointError, match=r"config\.json: expected the folder of a model, found a file"):
        AudioTokenizer.from_pretrained(release / "config.json", "cpu")


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "/a/b/nowhere", "a/b/c", "~/x"])
def test_a_folder_that_does_not_exist_is_not_looked_for_on_the_hub(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: pytest.fail("asked the Hub"))
    with pytest.raises(CheckpointError, match="no such model folder"):
        AudioTokenizer.from_pretrained(name, "cpu")


# --- the Hub -------------------------------------------------------------------------------------------------


def test_a_hub_id_is_downloaded_without_other_files(release, monkeypatch, tokenizer):
    calls = []

    def download(repo_id, revision, allow_patterns):
        calls.append((repo_id, revision, sorted(allow_patterns)))
        return str(release)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    loaded = AudioTokenizer.from_pretrained("some/tokenizer", "cpu", revision="v1")
    assert calls == [("some/tokenizer", "v1", ["README.md", "config.json", "model.safetensors"])]
    assert loaded.weights_sha256 == tokenizer.weights_sha256


@pytest.mark.parametrize(
    "error", [LocalEntryNotFoundError("offline:\nno connection"), ConnectionError("refused"), OSError()]
)
def test_without_a_hub_there_is_one_clear_line(monkeypatch, error):
    def download(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(
        CheckpointError, match="some/tokenizer: no such model folder, and the Hugging Face Hub"
    ) as caught:
        AudioTokenizer.from_pretrained("some/tokenizer", "cpu")
    assert "\n" not in str(caught.value)


def test_push_uploads_a_whole_release(tokenizer, monkeypatch):
    uploaded = {}

    class FakeApi:
        def create_repo(self, repo_id, private, exist_ok):
            uploaded["repository"] = (repo_id, private, exist_ok)

        def upload_folder(self, repo_id, folder_path, commit_message):
            uploaded["files"] = sorted(path.name for path in Path(folder_path).iterdir())
            uploaded["hash"] = AudioTokenizer.from_pretrained(folder_path, "cpu").weights_sha256
            return huggingface_hub.CommitInfo(
                "https://huggingface.co/some/tokenizer/commit/1", "message", "description", "1"
            )

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    assert tokenizer.push_to_hub("some/tokenizer", private=True) == "https://huggingface.co/some/tokenizer/commit/1"
    assert uploaded == {
        "repository": ("some/tokenizer", True, True),
        "files": ["README.md", "config.json", "model.safetensors"],
        "hash": tokenizer.weights_sha256,
    }


# --- hostile or broken, but well formed -------------------------------------------------------------------------


def rewrite(folder: Path, change) -> None:
    """Write the weights again with one tensor changed; `change` gets the first floating-point one."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = next(name for name, tensor in weights.items() if tensor.is_floating_point())
    save_file({**weights, name: change(weights[name])}, path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(release, tokenizer, tmp_path, value):
    rewrite(release, lambda tensor: tensor.clone().index_fill_(0, torch.tensor(0), value))
    refuses(release, "tensor '.*' holds NaN or infinite values")
    broken = copy.deepcopy(tokenizer)
    next(broken.model.parameters()).fill_(value)
    with pytest.raises(CheckpointError, match="holds NaN or infinite values"):
        broken.save_pretrained(tmp_path / "broken")
    assert not (tmp_path / "broken").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_disk_becomes_the_network_s_own(release, tokenizer, dtype):
    path = release / "model.safetensors"
    halves = {name: t.to(dtype) if t.is_floating_point() else t for name, t in load_file(path).items()}
    save_file(halves, path)
    loaded = AudioTokenizer.from_pretrained(release, "cpu").model.state_dict()
    for name, tensor in tokenizer.model.state_dict().items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], halves[name].to(tensor.dtype))


def test_other_number_formats_are_refused(release):
    rewrite(release, lambda tensor: tensor.double())
    refuses(release, "instead of F32")


@pytest.mark.parametrize(("key", "value"), [("latent_dim", 2**20), ("sample_rate", 0), ("sample_rate", 10**9)])
def test_a_config_that_asks_for_more_than_the_file_holds(release, key, value):
    config = json.loads((release / "config.json").read_text())
    edit_config(release, model={**config["model"], key: value})
    refuses(release, "weights do not fit the config|sample_rate")


@pytest.mark.parametrize("layers", [1000, 10**7])
def test_a_config_of_very_many_layers_is_refused_before_they_are_built(release, layers):
    config = json.loads((release / "config.json").read_text())
    config["model"]["decoder"] = {"type": "istft", "dim": 12, "layers": layers, "subframes": 2}
    edit_config(release, model=config["model"])
    refuses(release, r"asks for more than \d+ tensors|decoder.layers")


ENDLESS = [
    ("bottleneck", {"type": "fsq", "levels": [2] * 10**5}, "bottleneck.levels"),
    ("bottleneck", {"type": "residual", "num_codebooks": 2, "codebook_size": [8] * 10**5}, "bottleneck.codebook_size"),
    ("encoder", {"channels": [1], "strides": [2] * 10**5, "dilations": [[]]}, "encoder.strides"),
    ("encoder", {"channels": [1], "strides": [], "dilations": [[1] * 10**5]}, "encoder.dilations"),
    ("encoder", {"channels": [1], "strides": [], "dilations": [[2**20]]}, "encoder.dilations"),
    ("encoder", {"type": "spectral", "bands": 20_000}, "encoder.bands"),
    ("encoder", {"type": "spectral", "window": 2**20}, "encoder.window"),
    ("decoder", {"type": "istft", "look_ahead": 10**6}, "decoder.look_ahead"),
]
"""Settings that no tensor of a file contradicts, or that take memory and time before any is looked at."""


@pytest.mark.parametrize(("part", "settings", "name"), ENDLESS, ids=[name for _, _, name in ENDLESS])
def test_settings_without_measure_are_refused_by_name(release, part, settings, name):
    config = json.loads((release / "config.json").read_text())
    edit_config(release, model={**config["model"], part: settings})
    refuses(release, name)


def test_a_config_of_many_megabytes_is_refused_unread(release):
    with (release / "config.json").open("ab") as file:
        file.truncate(2**23)
    refuses(release, "config.json: cannot be read as JSON .expected at most")


@pytest.mark.parametrize("text", ["[" * 10**6, '{"a": 1, "a": 2}', '{"a": NaN}', "9" * 5000, '{"format_version": []}'])
def test_json_that_is_strange(release, text):
    (release / "config.json").write_text(text)
    refuses(release, "config.json")


def test_to_load_a_model_takes_no_compiler(tiny_tokenizer, tiny_prior, tmp_path):
    """PyTorch's would be imported to tell shapes, for longer than the rest takes. In a process of its own."""
    tiny_tokenizer("wavenet", "residual").save_pretrained(tmp_path / "wavenet")
    tiny_prior(2, sizes=[7, 5]).save_pretrained(tmp_path / "prior")
    code = f"""
import sys
from audiovq.models.prior import CodePrior
from audiovq.models.tokenizer import AudioTokenizer
for model in ("speech-16k", {str(tmp_path / "wavenet")!r}):
    AudioTokenizer.from_pretrained(model, "cpu")
CodePrior.from_pretrained({str(tmp_path / "prior")!r}, "cpu")
assert not {{"torch._dynamo", "sympy"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
