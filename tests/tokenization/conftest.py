from __future__ import annotations

import multiprocessing
from types import SimpleNamespace

import pytest

from audiovq.tokenization import engines


@pytest.fixture
def quick_start(monkeypatch):
    """Processes of `tokenize` are forks of one that has imported PyTorch, instead of importing it each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([engines.__name__, "audiovq.tokenization.worker"])
    monkeypatch.setattr(engines, "multiprocessing", SimpleNamespace(get_context=lambda _: context))
