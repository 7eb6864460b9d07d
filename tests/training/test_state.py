from __future__ import annotations

import math
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from audiovq.errors import CheckpointError
from audiovq.training.state import Progress, load_state, read_run_record, save_state


def parts(width: int = 3, steps: int = 0) -> dict:
    """A model with a buffer and its optimiser, trained for some steps."""
    torch.manual_seed(width)
    model = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, 1))
    model[0].bias.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(steps):
        model(torch.randn(4, 2)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"model": model, "optimizer": optimizer}


def advance(parts: dict) -> torch.Tensor:
    x = torch.linspace(-1, 1, 8).view(4, 2)
    loss = parts["model"](x).square().mean()
    loss.backward()
    parts["optimizer"].step()
    return torch.cat([value.flatten().double() for value in parts["model"].state_dict().values()])


def test_a_loaded_state_goes_on_as_the_saved_one(tmp_path):
    saved, loaded = parts(steps=3), parts()
    record = {"config": {"training": {"steps": 9}}, "data": {}}
    save_state(tmp_path / "state", saved, Progress(3, {"loss": 0.25}), record)
    progress = load_state(tmp_path / "state", loaded)
    assert (progress.step, progress.best_loss) == (3, 0.25)
    assert read_run_record(tmp_path / "state") == record
    assert torch.equal(advance(loaded), advance(saved))
    assert not torch.equal(advance(parts()), advance(saved))


def test_a_write_that_fails_leaves_the_old_state_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "state"
    save_state(path, parts(), Progress(1), {})
    before = path.read_bytes()

    def full_disk(name, _data):
        with name.open("wb") as file:
            file.write(b"half of")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full_disk)
        with pytest.raises(OSError, match="No space left") as caught:
            save_state(path, parts(), Progress(2), {})
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


class Trap:
    """Unpickling this writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_is_refused_and_not_run(tmp_path, protocol):
    path, sprung = tmp_path / "state", tmp_path / "sprung"
    path.write_bytes(pickle.dumps(Trap(sprung), protocol))
    for read in (lambda: load_state(path, parts()), lambda: read_run_record(path)):
        with pytest.raises(CheckpointError, match=r"state: is no training state or is damaged"):
            read()
    assert not sprung.exists()
    pickle.loads(path.read_bytes())  # noqa: S301
    assert sprung.exists()  # The trap works.


def test_a_torch_file_a_truncated_and_a_missing_one_are_refused(tmp_path):
    torch.save(parts()["model"].state_dict(), tmp_path / "torch")
    save_state(tmp_path / "whole", parts(steps=1), Progress(1), {})
    whole = (tmp_path / "whole").read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-10])
    (tmp_path / "header").write_bytes(whole[:20])
    (tmp_path / "empty").write_bytes(b"")
    for name in ("torch", "cut", "header", "empty", "missing"):
        with pytest.raises(CheckpointError, match=f"{name}: is no training state or is damaged") as caught:
            load_state(tmp_path / name, parts())
        assert "\n" not in str(caught.value)


def test_tensors_that_are_no_training_state_are_refused(tmp_path):
    for metadata in (None, {"progress": "{", "format": "2"}):
        save_file({"weight": torch.ones(2)}, tmp_path / "weights", metadata)
        with pytest.raises(CheckpointError, match=r"weights: is no training state .*: it does not say its record"):
            read_run_record(tmp_path / "weights")


def test_the_state_of_another_model_is_refused_in_one_line(tmp_path):
    path = tmp_path / "state"
    save_state(path, parts(width=4, steps=1), Progress(1), {})
    with pytest.raises(CheckpointError, match="state of 'model' does not fit this run") as caught:
        load_state(path, parts(width=3))
    assert "\n" not in str(caught.value)

    save_state(path, {**parts(), "average": nn.Linear(1, 1)}, Progress(1), {})
    with pytest.raises(CheckpointError, match="holds the state of 'average', which this run does not have"):
        load_state(path, parts())
    save_state(path, parts(), Progress(1), {})
    with pytest.raises(CheckpointError, match="state of 'average' does not fit this run"):
        load_state(path, {**parts(), "average": nn.Linear(1, 1)})


def damaged(path: Path, change) -> Path:
    """A state after two steps, changed: `change` gets its tensors and metadata."""
    save_state(path, parts(steps=2), Progress(2), {"config": {}, "data": {}})
    with safe_open(path, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    change(tensors, metadata)
    save_file(tensors, path, metadata)
    return path


def drop_moments(tensors: dict, _metadata: dict) -> None:
    for name in [name for name in tensors if name.startswith("optimizer/")]:
        del tensors[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_moments, "is damaged: holds 9 of 24 tensors"),
        (lambda tensors, _: tensors.pop("optimizer/0/exp_avg"), "is damaged: holds"),
        (
            lambda tensors, _: tensors["optimizer/0/exp_avg"].fill_(math.nan),
            "exp_avg holds values that are not",
        ),
        (lambda tensors, _: tensors.update({"optimizer/99/step": tensors.pop("optimizer/0/step")}), "parameter 99"),
        (lambda tensors, _: tensors.update({"other/0": tensors.pop("optimizer/0/step")}), "the state of 'other'"),
        (lambda _, metadata: metadata.update(progress="[3]"), "its progress is no progress"),
        (lambda _, metadata: metadata.update(progress='{"step": -1}'), "its progress is no progress"),
        (lambda _, metadata: metadata.update(progress=f'{{"step": {10**30}}}'), "its progress is no progress"),
        (lambda _, metadata: metadata.update(progress='{"step": 2, "best": {}}'), "its progress is no progress"),
        (lambda _, metadata: metadata.update(format="1"), "of another version of audiovq"),
    ],
)
def test_a_state_that_is_not_whole_is_refused_in_one_line(tmp_path, change, message):
    path = damaged(tmp_path / "state", change)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_state(path, parts())
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("record", ["[]", '{"config": 3, "data": {}}', '{"config": {}}', "{"])
def test_a_damaged_record_is_refused_in_one_line(tmp_path, record):
    path = damaged(tmp_path / "state", lambda _, metadata: metadata.update(record=record))
    with pytest.raises(CheckpointError, match="damaged"):
        read_run_record(path)
