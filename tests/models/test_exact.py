"""Codes that do not depend on rounding: not on the batch, the pieces or the threads."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from audiovq.audio.files import load_audio
from audiovq.models.exact import SAFETY, ExactCodes

HOP = 20


@pytest.fixture
def speech(speech_folder) -> torch.Tensor:
    """Eight seconds of real speech: [1, T], in whole frames."""
    waves = [load_audio(path)[0] for path in sorted((speech_folder / "june").glob("*.ogg"))[:8]]
    return torch.cat(waves, -1)[:, : 8 * 16000]


@pytest.fixture(params=["vq", "vq-plain"])
def undecided(tiny_tokenizer, speech, request):
    """A tokenizer whose codes stand in pairs with latents of the speech half way between, to within rounding."""
    tokenizer = tiny_tokenizer("istft", request.param)
    bottleneck = tokenizer.model.bottleneck
    latents = tokenizer.model.encode(speech[None])
    features = bottleneck.project_in(latents.mT)
    if bottleneck.config.normalize:
        features = bottleneck.batch_norm.by_averages(features.mT).mT
    features = features[0, ::400][:16]
    with torch.no_grad():
        offset = 0.1 * features.norm(dim=-1, keepdim=True) * F.normalize(torch.randn_like(features), dim=-1)
        offset = offset - features * (offset * features).sum(-1, keepdim=True) / features.square().sum(-1, keepdim=True)
        bottleneck.codebook.copy_(torch.cat([features + offset, features - offset]))
    return tokenizer


def encode_in_many_ways(tokenizer, speech):
    """The codes of the speech: whole, in a padded batch, in pieces, and with two threads."""
    whole = tokenizer.encode(speech, 16000)
    shorter = F.pad(speech[:, : 3 * 16000 + 7], (0, speech.shape[-1] - 3 * 16000 - 7))
    batch = tokenizer.encode(torch.stack([shorter, speech, speech.roll(500)]), 16000)[1:2]
    ways = {"whole": whole, "batch": batch}
    for frames in (1, 7, 160, 1000):
        stream = tokenizer.stream_encoder()
        pieces = speech[None, :, : max(frames * HOP * 50, 1)].split(frames * HOP, -1)
        ways[f"pieces of {frames}"] = torch.cat([stream(piece) for piece in pieces], -1)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    ways["threads"] = tokenizer.encode(speech, 16000)
    torch.set_num_threads(threads)
    return whole, ways


def test_near_ties_come_out_the_same_however_the_signal_comes(undecided, speech):
    whole, ways = encode_in_many_ways(undecided, speech)
    for name, codes in ways.items():
        assert torch.equal(codes, whole[..., : codes.shape[-1]]), name


def test_rounding_would_decide_them_otherwise(undecided, speech, monkeypatch):
    """The test above can fail."""
    monkeypatch.setattr(ExactCodes, "settle", lambda *_: None)
    monkeypatch.setattr("audiovq.bottlenecks.choice.SCORE_ERROR", 0)
    whole, ways = encode_in_many_ways(undecided, speech)
    assert not all(torch.equal(codes, whole[..., : codes.shape[-1]]) for codes in ways.values())


def test_they_are_settled_as_double_precision_would_have_it(undecided, speech):
    exact = undecided.exact
    expected, _ = exact._bottleneck.encode(exact._encoder(speech[None].double()))
    assert torch.equal(undecided.encode(speech, 16000), expected)


def test_few_frames_of_speech_are_near_ties(tokenizer, speech):
    latents = tokenizer.model.encode(speech[None])
    near_ties = tokenizer.exact.near_ties(latents, tokenizer.model.bottleneck.encode(latents)[1])
    assert near_ties.float().mean() < 0.005


def test_latents_are_within_the_error_that_is_allowed_for(tokenizer, speech):
    latents = tokenizer.model.encode(speech[None])
    exact = tokenizer.exact._encoder(speech[None].double())
    error = (latents - exact).norm(dim=1) / exact.norm(dim=1)
    assert error.max() < tokenizer.exact.latent_error
    assert error.max() > tokenizer.exact.latent_error / SAFETY / 10


def test_a_signal_that_is_one_tie_is_settled_at_once(tiny_tokenizer, monkeypatch):
    """And not a receptive field for each of its frames: a recording may stand still for long."""
    tokenizer = tiny_tokenizer()
    still = torch.full((200 * HOP,), 0.1)
    with torch.no_grad():
        tokenizer.model.bottleneck.codebook[:] = tokenizer.model.bottleneck.codebook[0]
    lengths = []
    encoder = tokenizer.exact._encoder
    monkeypatch.setattr(
        encoder, "rest", lambda x, *given, rest=encoder.rest: (lengths.append(x.shape[1]), rest(x, *given))[1]
    )
    assert tokenizer.encode(still, 16000).unique().tolist() == [0]
    assert len(lengths) == 1


def test_the_receptive_field_is_what_a_frame_depends_on(tokenizer):
    encoder = tokenizer.model.encoder.double()
    try:
        frames = 60
        wave = torch.randn(1, 1, frames * HOP, dtype=torch.float64, requires_grad=True)
        encoder(wave)[0, :, -1].sum().backward()
        seen = wave.grad[0, 0].nonzero().flatten()
        assert seen.max() == frames * HOP - 1
        assert frames * HOP - seen.min() == encoder.receptive_field
    finally:
        encoder.float()
