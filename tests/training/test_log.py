from __future__ import annotations

import io
import json
import resource
import sys

import numpy as np
import pytest
import soundfile
import torch
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from audiovq.training import log as log_module
from audiovq.training.log import RunLog, Terminal


def read_board(folder):
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    return board


def picture_of(event) -> np.ndarray:
    """Brightness [height, width] of a logged picture."""
    return imread(io.BytesIO(event.encoded_image_string))[..., :3].mean(axis=-1)


def write(folder, first_step: int, steps) -> None:
    log = RunLog(folder, first_step)
    for step in steps:
        log.scalars(step, "train", {"loss": 1 / step, "perplexity": 2.0})


def test_metrics_are_one_json_object_a_line_and_are_there_at_once(tmp_path):
    log = RunLog(tmp_path / "run")
    log.scalars(1, "train", {"loss": 0.1 + 0.2})
    log.scalars(1, "valid", {"loss": 2.0, "dead_codes": 3})
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "part": "train", "loss": 0.1 + 0.2},
        {"step": 1, "part": "valid", "loss": 2.0, "dead_codes": 3},
    ]


def test_a_resumed_log_drops_later_and_broken_lines_and_keeps_the_rest(tmp_path):
    write(tmp_path, 0, range(1, 6))
    metrics = tmp_path / "metrics.jsonl"
    kept = metrics.read_text().splitlines(keepends=True)[:3]
    metrics.write_text(metrics.read_text() + '{"step": 2, "part": "tr')
    write(tmp_path, 3, [])
    assert metrics.read_text() == "".join(kept)
    write(tmp_path, 3, [4])
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == [1, 2, 3, 4]


def test_tensorboard_shows_steps_of_a_resumed_run_once(tmp_path):
    write(tmp_path, 0, range(1, 6))
    write(tmp_path, 3, range(4, 8))
    scalars = read_board(tmp_path).Scalars("train/loss")
    assert [event.step for event in scalars] == [1, 2, 3, 4, 5, 6, 7]
    assert [event.value for event in scalars] == pytest.approx([1 / step for step in range(1, 8)])


def test_tensorboard_holds_audio_with_its_picture_and_the_histogram(tmp_path):
    wave = torch.sin(torch.arange(4000) * 0.3)[None] * 1.5
    log = RunLog(tmp_path)
    log.audio(7, "u1/original", wave, 8000)
    log.code_histogram(7, torch.tensor([0, 6, 2, 4]))
    board = read_board(tmp_path)

    (audio,) = board.Audio("audio/u1/original")
    samples, rate = soundfile.read(io.BytesIO(audio.encoded_audio_string))
    assert (audio.step, rate) == (7, 8000)
    np.testing.assert_allclose(samples, wave[0].clamp(-1, 1).numpy(), atol=1e-4)

    (mel,) = board.Images("mel/u1/original")
    rows = picture_of(mel).mean(axis=1)
    assert len(rows) == 80
    assert rows.argmax() > 60  # A low tone, so near the lower edge.
    (histogram,) = board.Images("codes/histogram")
    dark = (picture_of(histogram) < 0.5).reshape(100, 4, 128).all(axis=2).mean(axis=0)
    np.testing.assert_allclose(dark, [1, 4 / 6, 2 / 6, 0], atol=0.011)


def test_without_tensorboard_metrics_are_logged_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(log_module, "find_spec", lambda _: None)
    log = RunLog(tmp_path)
    log.scalars(1, "train", {"loss": 0.5})
    log.audio(1, "u1/original", torch.zeros(1, 4000), 8000)
    log.code_histogram(1, torch.tensor([0, 6]))
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "part": "train", "loss": 0.5}
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


class Screen(io.StringIO):
    def __init__(self, is_tty: bool):
        super().__init__()
        self.isatty = lambda: is_tty


def show(monkeypatch, is_tty: bool, enabled: bool = True) -> str:
    screen = Screen(is_tty)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal(total=10, done=4, enabled=enabled)
    terminal.train(6, 0.5, audio_seconds=1.0)
    terminal.advance(6)
    terminal.valid(6, {"loss": 0.25})
    terminal.close()
    return screen.getvalue()


def test_a_terminal_shows_a_bar_and_anything_else_plain_lines(monkeypatch):
    assert "\x1b[" in show(monkeypatch, is_tty=True)
    plain = show(monkeypatch, is_tty=False)
    assert "\x1b" not in plain
    train, valid = plain.splitlines()
    assert train.startswith("step 6/10  loss 0.500, ")
    assert train.endswith(" left")
    assert valid == "step 6/10  valid: loss 0.25"


@pytest.mark.parametrize("is_tty", [True, False])
def test_processes_but_the_first_are_silent(monkeypatch, is_tty):
    assert show(monkeypatch, is_tty, enabled=False) == ""


def test_a_disk_that_is_full_is_one_error_with_a_name_and_no_half_line(tmp_path):
    log = RunLog(tmp_path)
    log.scalars(1, "train", {"loss": 1.0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = log.path.read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            log.scalars(2, "train", {"loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(log.path)
    assert log.path.read_bytes() == before
