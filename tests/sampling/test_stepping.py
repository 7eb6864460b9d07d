"""The fast steps give what the readable one and the whole network give; the plain one stands in with a warning."""

from __future__ import annotations

import sys

import numba
import pytest
import torch

from audiovq.config import WaveNetConfig
from audiovq.nn.wavenet import WaveNet
from audiovq.sampling import kernels
from audiovq.sampling.base import sample
from audiovq.sampling.cached import CachedWaveNet
from audiovq.sampling.compiled import CompiledWaveNet
from audiovq.sampling.graphs import GraphWaveNet
from audiovq.sampling.stepping import fastest_stepper
from audiovq.text import warned

LOCAL, SPEAKER, HOLD = 5, 4, 3
FAST = [CompiledWaveNet, GraphWaveNet]


def build(streams: int = 1, classes: int = 12, conditions: str = "both", **options) -> WaveNet:
    torch.manual_seed(0)
    config = WaveNetConfig(**{"layers": 4, "cycle": 3, "residual_channels": 6, "skip_channels": 9, **options})
    local = LOCAL if conditions in ("local", "both") else 0
    speaker = SPEAKER if conditions in ("speaker", "both") else 0
    return WaveNet(config, streams, classes, local, speaker).eval()


def inputs(network: WaveNet, batch: int, frames: int) -> tuple[torch.Tensor, ...]:
    classes = torch.randint(network.classes, (batch, network.streams, frames * HOLD))
    local = torch.randn(batch, LOCAL, frames) if network.local is not None else None
    return classes, local, torch.randn(batch, SPEAKER) if network.globals is not None else None


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("stepper", FAST)
@pytest.mark.parametrize(
    ("batch", "options"),
    [
        (1, {}),
        (2, {"conditions": "local"}),
        (3, {"conditions": "speaker", "kernel_size": 3}),
        (4, {"conditions": "none", "streams": 3}),
        (5, {"kernel_size": 4, "streams": 2, "layers": 2}),
        (7, {"residual_channels": 64, "skip_channels": 128, "classes": 256}),
        (1, {"residual_channels": 70, "skip_channels": 1, "classes": 2, "streams": 5}),
        (2, {"layers": 1, "cycle": 1, "residual_channels": 1}),
    ],
)
def test_a_fast_step_gives_the_logits_of_the_readable_one_and_of_the_whole(stepper, batch, options):
    network = build(**options)
    frames = -(-2 * network.receptive_field // HOLD) + 2  # Ring buffers go round at least twice.
    classes, local, speaker = inputs(network, batch, frames)
    whole = network(classes, local, speaker)
    conditions = network.conditions(local, speaker)
    fast, readable = stepper(network, batch), CachedWaveNet(network, batch)
    previous = fast.start()
    assert torch.equal(previous, readable.start())
    for t in range(classes.shape[-1]):
        condition = None if conditions is None else conditions[..., min(t // HOLD, conditions.shape[-1] - 1)]
        logits = fast.step(previous, condition)
        torch.testing.assert_close(logits, whole[..., t], atol=1e-5, rtol=0)
        torch.testing.assert_close(logits, readable.step(previous, condition), atol=1e-5, rtol=0)
        previous = classes[..., t]


@pytest.mark.parametrize("stepper", FAST)
@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        *({}, {"temperature": 0.0}, {"temperature": 0.7}, {"top_k": 1}, {"top_k": 5}, {"top_k": 99}),
        *({"top_p": 0.0}, {"top_p": 0.8}, {"temperature": 1.3, "top_k": 6, "top_p": 0.7}),
    ],
)
def test_the_same_numbers_draw_the_same(stepper, streams, options):
    network = build(streams)
    for parameter in network.head[-1].parameters():
        parameter.data *= 8  # Some classes are likelier than others.
    condition = torch.randn(3, 4, 12)
    uniforms = torch.rand(3, streams, 60)
    fast, readable = stepper(network, 3), CachedWaveNet(network, 3)
    drawn = fast.generate(fast.start(), uniforms, condition, **options)
    assert torch.equal(drawn, readable.generate(readable.start(), uniforms, condition, **options))
    assert drawn.unique().numel() > 1


@pytest.mark.parametrize("stepper", FAST)
def test_pieces_and_single_steps_go_on_where_the_last_one_ended(stepper):
    network = build(2)
    condition, uniforms = torch.randn(1, 4, 12), torch.rand(1, 2, 50)
    whole = stepper(network, 2)
    expected = whole.generate(whole.start(), uniforms, condition)
    pieces = stepper(network, 2)
    previous, drawn = pieces.start(), []
    for numbers in uniforms.split([20, 1, 29], -1):
        if numbers.shape[-1] == 1:
            drawn.append(sample(pieces.step(previous, condition), numbers[..., 0])[..., None])
        else:
            drawn.append(pieces.generate(previous, numbers, condition))
        previous = drawn[-1][..., -1]
    assert torch.equal(torch.cat(drawn, -1), expected)


def test_an_item_is_the_same_alone_and_in_a_batch_to_the_bit(two_threads):
    network = build(2, residual_channels=33, skip_channels=65)
    conditions, classes = torch.randn(9, 4, 66), torch.randint(12, (9, 2, 30))
    together = CompiledWaveNet(network, 9)
    alone = [CompiledWaveNet(network, 1) for _ in range(9)]
    for previous in classes.unbind(-1):
        logits = together.step(previous, conditions)
        for item, stepper in enumerate(alone):
            part = slice(item, item + 1)
            assert torch.equal(stepper.step(previous[part], conditions[part]), logits[part]), item


def test_threads_draw_what_one_draws(two_threads):
    network = build()
    conditions, uniforms = torch.randn(5, 4, 12), torch.rand(5, 1, 40)
    several = CompiledWaveNet(network, 5)
    drawn = several.generate(several.start(), uniforms, conditions)
    torch.set_num_threads(1)
    one = CompiledWaveNet(network, 5)
    assert torch.equal(one.generate(one.start(), uniforms, conditions), drawn)


def test_gated_units_hold_far_from_zero():
    network = build(conditions="speaker", layers=1, residual_channels=60)
    condition = torch.linspace(-300, 300, 120)[torch.randperm(120)].view(1, 1, -1)
    fast, readable = CompiledWaveNet(network, 1), CachedWaveNet(network, 1)
    expected = readable.step(readable.start(), condition)
    torch.testing.assert_close(fast.step(fast.start(), condition), expected, atol=1e-5, rtol=0)


def test_what_the_kernels_could_not_read_is_refused():
    stepper = CompiledWaveNet(build(), 2)
    for classes in ([[0], [13]], [[0], [-1]], [[0], [0], [0]]):
        with pytest.raises(ValueError, match=r"expected classes \(2, 1\) from 0 to 12, found"):
            stepper.step(torch.tensor(classes))


def test_kernels_compile_where_no_folder_can_keep_the_result(monkeypatch):
    def njit(cache=False, **options):
        if cache:
            raise RuntimeError("no locator available")
        return numba.njit(**options)

    monkeypatch.setattr(kernels, "njit", njit)
    doubled = kernels.compiled(lambda x: 2 * x)
    assert doubled(3) == 6
    assert doubled.signatures


# --- which one is taken ----------------------------------------------------------------------------------------------


@pytest.fixture
def unwarned():
    """As in a process that has not warned yet."""
    warned.clear()
    yield
    warned.clear()


def test_on_the_cpu_the_compiled_step_is_taken():
    assert isinstance(fastest_stepper(build(), 2), CompiledWaveNet)


def test_another_number_format_falls_back_with_one_warning(unwarned):
    network = build().double()
    with pytest.warns(RuntimeWarning, match=r"sampling is slow.*torch\.float64 on cpu") as caught:
        steppers = [fastest_stepper(network, 2) for _ in range(3)]
    assert len(caught) == 1
    assert all(isinstance(stepper, CachedWaveNet) for stepper in steppers)


def test_without_numba_it_falls_back_with_a_warning(unwarned, monkeypatch):
    monkeypatch.setitem(sys.modules, "audiovq.sampling.compiled", None)
    with pytest.warns(RuntimeWarning, match=r"sampling is slow.*audiovq\.sampling\.compiled"):
        assert isinstance(fastest_stepper(build(), 1), CachedWaveNet)


def test_where_the_step_does_not_compile_it_falls_back_with_a_warning(unwarned, monkeypatch):
    def fail(*_):
        raise ValueError("no such instruction\nand much more")

    monkeypatch.setattr("audiovq.sampling.kernels.generate", fail)
    with pytest.warns(RuntimeWarning, match=r"\(ValueError: no such instruction\)"):
        stepper = fastest_stepper(build(), 1)
    assert isinstance(stepper, CachedWaveNet)
    fastest_stepper(build(), 1)  # A second warning would be an error.
