"""Lengths and causality of whole networks, by changing single samples and by gradients."""

from __future__ import annotations

import pytest
import torch

from audiovq.models.autoencoder import Autoencoder
from audiovq.nn.stream import Stream

HOP = 20


@pytest.fixture(params=["transposed", "istft"])
def autoencoder(request, tiny_tokenizer) -> Autoencoder:
    return tiny_tokenizer(request.param, "none").model


def test_a_frame_depends_on_nothing_after_its_last_sample(autoencoder):
    frames = 6
    wave = torch.randn(1, 1, frames * HOP)
    before = autoencoder.encode(wave)
    for position in range(frames * HOP):
        changed = wave.clone()
        changed[..., position] += 1.0
        same = (autoencoder.encode(changed) == before).all(dim=1)[0]
        assert same[: position // HOP].all(), position
        assert not same[position // HOP], f"sample {position} is not seen by its own frame"


def test_a_sample_depends_on_no_frame_after_its_own(autoencoder):
    frames = 6
    latents = torch.randn(1, 8, frames)
    before = autoencoder.decode(latents)[0, 0]
    for position in range(frames):
        changed = latents.clone()
        changed[..., position] += 1.0
        same = autoencoder.decode(changed)[0, 0] == before
        assert same[: position * HOP].all(), position
        assert not same[position * HOP : (position + 1) * HOP].all()


def test_gradients_flow_to_earlier_samples_only(autoencoder):
    wave = torch.randn(1, 1, 8 * HOP, requires_grad=True)
    for frame in range(8):
        (gradient,) = torch.autograd.grad(autoencoder.encode(wave)[..., frame].square().sum(), wave)
        reached = gradient[0, 0].nonzero()
        assert reached.max() == (frame + 1) * HOP - 1


def test_gradients_flow_to_earlier_frames_only(autoencoder):
    latents = torch.randn(1, 8, 8, requires_grad=True)
    for sample in (0, HOP - 1, HOP, 5 * HOP + 3, 8 * HOP - 1):
        (gradient,) = torch.autograd.grad(autoencoder.decode(latents)[0, 0, sample].square(), latents)
        reached = gradient.abs().sum((0, 1)).nonzero()
        assert len(reached) == 0 or reached.max() <= sample // HOP


@pytest.mark.parametrize("length", [1, HOP - 1, HOP, HOP + 1, 7 * HOP])
def test_the_reconstruction_is_as_long_as_the_input(autoencoder, length):
    assert autoencoder.encode(torch.randn(2, 1, length)).shape == (2, 8, -(-length // HOP))
    assert autoencoder(torch.randn(2, 1, length)).wave.shape == (2, 1, length)


def test_without_bottleneck_the_latents_pass_unchanged(autoencoder):
    wave = torch.randn(2, 1, 100)
    output = autoencoder(wave)
    assert torch.equal(output.bottleneck.latents, autoencoder.encode(wave))
    assert output.bottleneck.codes is None
    assert output.bottleneck.loss == 0
    assert torch.equal(autoencoder.bottleneck.surrogate_loss(output.bottleneck, torch.ones(2)), torch.tensor(0.0))


@pytest.mark.parametrize("decoder", ["transposed", "istft"])
@pytest.mark.parametrize("bottleneck", ["vq", "vq-plain"])
def test_every_weight_learns(tiny_config, decoder, bottleneck):
    model = Autoencoder(tiny_config(decoder, bottleneck))
    output = model.train()(torch.randn(4, 1, 400))
    (output.wave.square().mean() + output.bottleneck.loss).backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []


def test_under_autocast_the_bottleneck_and_the_waveform_stay_in_float32(tiny_config):
    model = Autoencoder(tiny_config("istft", "vq")).train()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(torch.randn(2, 1, 200))
        assert model.encode(torch.randn(2, 1, 200)).dtype == torch.bfloat16
    assert output.wave.dtype == output.bottleneck.loss.dtype == torch.float32


def test_pieces_of_any_length_through_streams_give_what_the_whole_gives(autoencoder, mini_speech):
    wave = mini_speech[None, :, : 60 * HOP]
    down, up = Stream(), Stream()
    latents = [autoencoder.encoder(piece, down) for piece in wave.split([n * HOP for n in (1, 7, 2, 50)], dim=-1)]
    torch.testing.assert_close(torch.cat(latents, -1), autoencoder.encode(wave), atol=1e-5, rtol=1e-5)
    decoded = torch.cat([autoencoder.decoder(piece, up) for piece in latents], -1)
    torch.testing.assert_close(decoded, autoencoder.decode(autoencoder.encode(wave)), atol=1e-4, rtol=1e-4)
