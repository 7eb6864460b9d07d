from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from audiovq.errors import CheckpointError
from audiovq.training import state
from audiovq.training.state import Progress, load_state, read_config_of_state, save_state


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
    save_state(tmp_path / "state", saved, Progress(3, 0.25), {"training": {"steps": 9}})
    progress = load_state(tmp_path / "state", loaded)
    assert vars(progress) == {"step": 3, "best_loss": 0.25}
    assert read_config_of_state(tmp_path / "state") == {"training": {"steps": 9}}
    assert torch.equal(advance(loaded), advance(saved))
    assert not torch.equal(advance(parts()), advance(saved))


def test_a_write_that_fails_leaves_the_old_state_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "state"
    save_state(path, parts(), Progress(1), {})
    before = path.read_bytes()

    def full_disk(_tensors, name, _metadata):
        Path(name).write_bytes(b"half of")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_state(path, parts(), Progress(2), {})
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
    for read in (lambda: load_state(path, parts()), lambda: read_config_of_state(path)):
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
    for metadata in (None, {"progress": "{", "config": ""}):
        save_file({"weight": torch.ones(2)}, tmp_path / "weights", metadata)
        with pytest.raises(CheckpointError, match="weights: is no training state: it does not say its config"):
            read_config_of_state(tmp_path / "weights")


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
