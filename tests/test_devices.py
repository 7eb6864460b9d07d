"""Devices, number formats and seeds."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audiovq.devices import choose_device, derive_seed, full_float32, seed_everything
from audiovq.errors import ConfigError


def test_the_cpu_is_always_there():
    assert choose_device("cpu") == torch.device("cpu")
    assert isinstance(choose_device("auto"), torch.device)


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "", "cpu:x", "meta"])
def test_a_device_that_is_not_there_is_one_clear_line(name):
    with pytest.raises(ConfigError, match=f"device '{name}' cannot be used .*; try --device cpu") as caught:
        choose_device(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("found", "chosen"), [("mps", "cpu"), ("cuda", "cuda"), (None, "cpu")])
def test_auto_is_an_accelerator_that_has_double_precision(monkeypatch, found, chosen):
    accelerator = found and torch.device(found)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: accelerator)
    assert choose_device() == torch.device(chosen)
    with full_float32():
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("name", ["mps", "mps:0"])
def test_a_device_without_double_precision_is_refused_with_the_reason(name):
    with pytest.raises(ConfigError, match=f"device '{name}' cannot be used .*no double precision.*; try --device cpu"):
        choose_device(name)


def test_full_float32_turns_off_faster_formats_and_puts_them_back():
    torch.set_float32_matmul_precision("medium")
    try:
        a = torch.randn(64, 64)
        with torch.autocast("cpu", torch.bfloat16):
            with full_float32():
                assert torch.get_float32_matmul_precision() == "highest"
                assert not torch.is_autocast_enabled("cpu")
                assert (a @ a).dtype == torch.float32
            assert (a @ a).dtype == torch.bfloat16
        assert torch.get_float32_matmul_precision() == "medium"
        with pytest.raises(ZeroDivisionError), full_float32():
            raise ZeroDivisionError
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("value", [True, False])
def test_full_float32_leaves_other_choices_of_the_user_alone(monkeypatch, value):
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "deterministic", value)
    monkeypatch.setattr(cudnn, "benchmark", value)
    with full_float32():
        assert cudnn.deterministic is value
        assert cudnn.benchmark is value
        assert not cudnn.allow_tf32


def test_equal_parts_give_equal_random_numbers():
    def numbers(*parts):
        seed_everything(*parts)
        return torch.randn(4)

    assert torch.equal(numbers(1, "step", 2), numbers(1, "step", 2))
    assert not torch.equal(numbers(1, "step", 2), numbers(1, "step", 3))
    assert not torch.equal(numbers(1, "step", 2), numbers(2, "step", 1))


@given(st.lists(st.integers() | st.sampled_from(["step", "crop", "model"]), max_size=5))
def test_seeds_fit_every_generator(parts):
    assert 0 <= derive_seed(*parts) < 2**63


def test_seeds_are_the_same_in_every_process_and_version():
    assert derive_seed(1, "step", 2) == 1089025170099642527
    assert derive_seed(0, "decoder", 0) == 3337229380774751454


def test_neighbouring_seeds_do_not_collide():
    assert len({derive_seed(seed, step) for seed in range(30) for step in range(300)}) == 9000


def test_a_thread_that_leaves_full_float32_leaves_it_to_those_that_are_still_inside():
    """Two threads: the first one in is the first one out."""
    torch.set_float32_matmul_precision("medium")
    entered, left, found = threading.Event(), threading.Event(), []

    def second():
        with full_float32():
            entered.set()
            left.wait(10)
            found.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))

    try:
        thread = threading.Thread(target=second)
        with full_float32():
            thread.start()
            assert entered.wait(10)
        left.set()
        thread.join()
        assert found == [("highest", False)]
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
