from __future__ import annotations

from collections.abc import Callable

import pytest

from audiovq.models import tokenizer as tokenizer_module


@pytest.fixture
def in_chunks(monkeypatch, tokenizer) -> Callable[[int], None]:
    """Sets how many frames are encoded and decoded at a time."""

    def choose(frames: int) -> None:
        monkeypatch.setattr(tokenizer_module, "CHUNK_SECONDS", frames / tokenizer.frame_rate)
        monkeypatch.setattr(tokenizer_module, "LENGTH_SECONDS", 1 / tokenizer.frame_rate)

    return choose
