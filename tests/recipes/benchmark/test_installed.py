"""The measurement of what an installed audiovq takes."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[3] / "recipes" / "benchmark"


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARK))
    yield import_module("installed")
    for name in ("installed", "codec"):
        sys.modules.pop(name, None)


def test_what_is_required_is_followed_to_its_end_and_extras_come_on_top(installed):
    base = installed.required("audiovq")
    assert {"audiovq", "torch", "sympy", "mpmath", "huggingface-hub"} <= base  # sympy is PyTorch's, mpmath sympy's
    assert "pytest" not in base
    assert installed.required("audiovq", ["dev"]) >= base | {"pytest", "pluggy"}


def test_a_package_has_the_bytes_of_its_files(installed):
    import jinja2

    folder = Path(jinja2.__file__).parent
    sources = sum(file.stat().st_size for file in folder.rglob("*.py"))
    everything = sum(
        file.stat().st_size
        for place in (folder, *folder.parent.glob("jinja2-*.dist-info"))
        for file in place.rglob("*")
        if file.is_file()
    )
    assert sources < installed.bytes_of("jinja2") <= everything


def test_parts_are_parts_of_the_whole_and_the_package_holds_its_model(installed):
    sizes = installed.sizes(["media"])
    whole = sizes["audiovq and all that it requires"]
    assert whole > sizes["audiovq"] + sizes["PyTorch"] + sizes["CUDA"] > sizes["PyTorch"] > 100
    assert sizes["audiovq"] > 10
    assert 0 < sizes["audiovq[media] adds"] < whole


def test_processor_time_is_that_of_the_command(installed):
    idle = installed.processor_seconds([sys.executable, "-c", "import time; time.sleep(0.6)"], 1)
    busy = installed.processor_seconds([sys.executable, "-c", "import time\nwhile time.process_time() < 0.6: pass"], 1)
    assert idle < 0.5 < busy
