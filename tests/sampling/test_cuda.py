"""The CUDA graph of a WaveNet's step gives what the readable step gives on the same GPU."""

from __future__ import annotations

import pytest
import torch

from audiovq.config import WaveNetConfig
from audiovq.devices import full_float32
from audiovq.models import prior as prior_module
from audiovq.models import wavenet_decoder
from audiovq.models.prior import CodePrior
from audiovq.models.tokenizer import AudioTokenizer
from audiovq.nn.wavenet import WaveNet
from audiovq.sampling.cached import CachedWaveNet
from audiovq.sampling.graphs import GraphWaveNet
from audiovq.sampling.stepping import fastest_stepper
from audiovq.text import warned

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize(
    ("batch", "streams", "options"),
    [
        (1, 1, {}),
        (5, 3, {"kernel_size": 3}),
        (16, 1, {"residual_channels": 64, "skip_channels": 128, "layers": 8, "cycle": 4}),
    ],
)
def test_a_replayed_step_gives_the_logits_and_draws_of_the_readable_one(batch, streams, options, gpu):
    """Twice around the ring buffers, and under conditions that change."""
    settings = {"layers": 4, "cycle": 3, "residual_channels": 6, "skip_channels": 9, **options}
    network = WaveNet(WaveNetConfig(**settings), streams, 12, 5).eval().to(gpu)
    steps = 2 * network.receptive_field + 3
    classes = torch.randint(12, (steps, batch, streams), device=gpu)
    conditions = network.conditions(torch.randn(batch, 5, steps, device=gpu), None)
    with full_float32():
        fast, readable = fastest_stepper(network, batch), CachedWaveNet(network, batch)
        assert isinstance(fast, GraphWaveNet)
        previous = fast.start()
        assert torch.equal(previous, readable.start())
        for t in range(steps):
            condition = conditions[..., t] if t % 2 else None
            logits = fast.step(previous, condition)
            torch.testing.assert_close(logits, readable.step(previous, condition), atol=1e-4, rtol=0)
            previous = classes[t]
        uniforms = torch.rand(batch, streams, 40)
        drawn = fast.generate(previous, uniforms, conditions[..., 0], 0.9, 8, 0.95)
        assert torch.equal(drawn, readable.generate(previous, uniforms, conditions[..., 0], 0.9, 8, 0.95))


@pytest.mark.parametrize("pattern", ["delay", "flatten"])
def test_a_prior_samples_by_the_graph_what_it_samples_without(tiny_prior, pattern, gpu, monkeypatch):
    speakers = {"speaker_dim": 3, "speakers": ["carlo", "june"]}
    prior = tiny_prior(3, 7, sizes=[7, 4, 2], pattern=pattern, **speakers)
    prior = CodePrior(prior.network, prior.config, gpu)
    prime = torch.tensor([[1, 2, 3], [3, 2, 1], [0, 1, 0]])
    drawn = prior.sample(4, 40, speaker="june", prime=prime, seed=5)
    assert not [reason for reason in warned if "CUDA" in reason or "graph" in reason]
    monkeypatch.setattr(prior_module, "fastest_stepper", CachedWaveNet)
    assert torch.equal(drawn, prior.sample(4, 40, speaker="june", prime=prime, seed=5))
    assert not torch.equal(drawn, prior.sample(4, 40, speaker="june", prime=prime, seed=6))


def test_a_wavenet_decoder_speaks_by_the_graph_as_without(tiny_tokenizer, gpu, monkeypatch):
    tokenizer = tiny_tokenizer("wavenet")
    tokenizer = AudioTokenizer(tokenizer.model, tokenizer.config, gpu)
    codes = torch.randint(32, (2, 1, 12))
    sound = tokenizer.decode(codes, speaker="june", seed=5)
    monkeypatch.setattr(wavenet_decoder, "fastest_stepper", CachedWaveNet)
    torch.testing.assert_close(sound, tokenizer.decode(codes, speaker="june", seed=5), atol=0, rtol=0)
