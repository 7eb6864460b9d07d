"""What holds for every tokenizer, whatever its parts are, how many codebooks it has and how far it looks ahead."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audiovq.errors import AudioError, TokenError
from audiovq.models.exact import ExactCodes
from audiovq.models.tokenizer import AudioTokenizer

HOP = 20
CLOSE = {"atol": 1e-4, "rtol": 1e-3}
OF_PULSES = {"atol": 2e-3, "rtol": 1e-3}
"""Where the decoder adds up the phase of pulses: a pitch that is rounded otherwise moves all of a voiced stretch."""
few = settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
MODELS = {
    "spectral-residual-source": (("source", "residual", "spectral"), (30, 2)),
    "spectral-vq-istft": (("istft", "vq", "spectral"), (20, 1)),
    "conv-residual-istft": (("istft", "residual", "conv"), (7, 0)),
    "conv-vq-istft": (("istft", "vq", "conv"), (0, 0)),
    "conv-vq-transposed": (("transposed", "vq", "conv"), (0, 3)),
    "conv-fsq-groups-istft": (("istft", "fsq-groups", "conv"), (7, 1)),
    "spectral-fsq-source": (("source", "fsq", "spectral"), (0, 1)),
    "spectral-fsq-residual-source": (("source", "fsq-residual", "spectral"), (30, 0)),
    "conv-vq-source": (("source", "vq", "conv"), (0, 0)),
}


@pytest.fixture(scope="module", params=MODELS)
def tokenizer(placed_tokenizer, request) -> AudioTokenizer:
    parts, look_ahead = MODELS[request.param]
    return placed_tokenizer(*parts, look_ahead=look_ahead)


@pytest.fixture(scope="module")
def numbers(tokenizer) -> list[int]:
    """Numbers of codebooks that are used: one, all but one, all."""
    return sorted({1, max(1, tokenizer.num_codebooks - 1), tokenizer.num_codebooks})


@pytest.fixture(scope="module")
def close(tokenizer) -> dict[str, float]:
    """How far sound that is computed in another way may be off."""
    return OF_PULSES if tokenizer.config.decoder.type == "source" else CLOSE


def test_codes_differ_in_every_codebook(tokenizer, mini_speech):
    """Otherwise the tests below would say little."""
    codes = tokenizer.encode(mini_speech, 16000)
    assert all(len(book.unique()) > 3 for book in codes[0])


@few
@given(length=st.integers(1, 500))
def test_frames_are_the_rounded_up_quotient_and_decoding_gives_the_length_back(tokenizer, numbers, length):
    for books in numbers:
        codes = tokenizer.encode(torch.randn(length), 16000, books)
        assert codes.shape == (1, books, math.ceil(length / HOP))
        assert tokenizer.num_frames(length) == codes.shape[-1]
        decoded, exact = tokenizer.decode(codes), tokenizer.decode(codes, num_samples=length)
        assert (decoded.shape, exact.shape) == ((1, 1, codes.shape[-1] * HOP), (1, 1, length))
        assert torch.equal(exact, decoded[..., :length])


@few
@given(lengths=st.lists(st.integers(1, 3000), min_size=2, max_size=4))
def test_padding_in_a_batch_changes_no_code(tokenizer, numbers, mini_speech, lengths):
    waves = [mini_speech[:, 5000 + i * 3000 :][:, :length] for i, length in enumerate(lengths)]
    padded = torch.stack([torch.nn.functional.pad(wave, (0, max(lengths) - wave.shape[-1])) for wave in waves])
    singles = [tokenizer.encode(wave, 16000)[0] for wave in waves]
    for books in numbers:
        for codes, single in zip(tokenizer.encode(padded, 16000, books), singles, strict=True):
            assert torch.equal(codes[:, : single.shape[-1]], single[:books])


def test_a_batch_is_decoded_as_its_items_are(tokenizer, numbers, close, mini_speech):
    codes = tokenizer.encode(mini_speech[:, : 3 * 9000].view(3, 1, 9000), 16000)
    for books in numbers:
        batch = tokenizer.decode(codes[:, :books], 8999, seed=[4, 5, 6])
        singles = [
            tokenizer.decode(item[:books], 8999, seed=[seed]) for seed, item in zip((4, 5, 6), codes, strict=True)
        ]
        torch.testing.assert_close(batch, torch.cat(singles), **close)


@pytest.mark.parametrize("frames", [5, 64, 639])
def test_chunks_give_what_the_whole_gives(tokenizer, numbers, close, mini_speech, in_chunks, frames):
    wave = mini_speech[:, 8000:20793]
    in_chunks(10_000)
    codes = tokenizer.encode(wave, 16000)
    decoded = {books: tokenizer.decode(codes[:, :books], wave.shape[-1]) for books in numbers}
    in_chunks(frames)
    for books in numbers:
        assert torch.equal(tokenizer.encode(wave, 16000, books), codes[:, :books])
        torch.testing.assert_close(tokenizer.decode(codes[:, :books], wave.shape[-1]), decoded[books], **close)


@few
@given(pieces=st.lists(st.integers(1, 150), min_size=1, max_size=8), rest=st.integers(0, HOP - 1))
def test_a_stream_gives_what_the_whole_gives(tokenizer, numbers, close, mini_speech, pieces, rest):
    wave = mini_speech[None, :, 4000 : 4000 + HOP * sum(pieces) + rest]
    sizes = [n * HOP for n in pieces] + [rest] * (rest > 0)
    expected = tokenizer.encode(wave, 16000)
    for books in numbers:
        encode, decode = tokenizer.stream_encoder(books), tokenizer.stream_decoder()
        codes = [encode(piece) for piece in wave.split(sizes, dim=-1)]
        if not rest:
            codes.append(encode(wave[..., :0], last=True))
        whole = torch.cat(codes, -1)
        assert torch.equal(whole, expected[:, :books])
        decoded = [decode(piece) for piece in codes if piece.shape[-1]] + [decode(whole[..., :0], last=True)]
        torch.testing.assert_close(torch.cat(decoded, -1), tokenizer.decode(whole), **close)


@pytest.mark.parametrize("seed", [3, [7, 8, 7]])
def test_a_streamed_batch_sounds_as_the_batch_at_once(tokenizer, close, mini_speech, seed):
    codes = tokenizer.encode(mini_speech[:, 8000 : 8000 + 3 * 2000].view(3, 1, 2000), 16000)
    decode = tokenizer.stream_decoder(seed=seed)
    pieces = codes.split([0, 1, 40, 59], -1)
    decoded = [decode(piece, last=number == len(pieces)) for number, piece in enumerate(pieces, 1)]
    torch.testing.assert_close(torch.cat(decoded, -1), tokenizer.decode(codes, seed=seed), **close)


def test_nothing_follows_the_last_piece(tokenizer):
    encode, decode = tokenizer.stream_encoder(), tokenizer.stream_decoder()
    codes = encode(torch.randn(1, 1, 3 * HOP), last=True)
    decode(codes, last=True)
    with pytest.raises(AudioError, match="the signal ended with a piece that was the last"):
        encode(torch.randn(1, 1, HOP))
    for last in (False, True):
        with pytest.raises(TokenError, match="the signal ended with a piece that was the last; start a new stream"):
            decode(codes, last)


def test_a_frame_comes_as_soon_as_the_samples_that_it_sees(tokenizer):
    encode, decode = tokenizer.stream_encoder(), tokenizer.stream_decoder()
    ahead = tokenizer.config.encoder.look_ahead
    codes = encode(torch.randn(1, 1, 10 * HOP))
    assert codes.shape[-1] == (10 * HOP - ahead) // HOP
    assert decode(codes).shape[-1] == (codes.shape[-1] - tokenizer.config.decoder.look_ahead) * HOP
    expected = (HOP + ahead + tokenizer.config.decoder.look_ahead * HOP) / 16000
    assert tokenizer.latency == pytest.approx(expected)
    assert tokenizer.describe()["latency"] == f"{1000 * expected:g} ms"


def test_codes_see_as_far_ahead_as_stated_and_no_further(tokenizer):
    ahead, frame = tokenizer.config.encoder.look_ahead, 8
    wave = torch.randn(1, 1, 20 * HOP)
    before = tokenizer.model.encode(wave)[..., frame]
    last = (frame + 1) * HOP + ahead - 1
    for position, seen in ((last, True), (last + 1, False)):
        changed = wave.clone()
        changed[..., position] += 1.0
        assert torch.equal(tokenizer.model.encode(changed)[..., frame], before) != seen


def test_the_first_codebooks_alone_are_encoded_and_decoded(tokenizer, mini_speech):
    codes = tokenizer.encode(mini_speech, 16000)
    bitrates = []
    for books in range(1, tokenizer.num_codebooks + 1):
        some = tokenizer.encode(mini_speech, 16000, books)
        assert torch.equal(some, codes[:, :books])
        assert tokenizer.decode(some).shape == tokenizer.decode(codes).shape
        bitrates.append(tokenizer.bitrate_of(books))
    assert bitrates == sorted(bitrates)
    assert bitrates[-1] == tokenizer.bitrate == 800 * sum(map(math.log2, tokenizer.codebook_sizes))
    for books in (0, tokenizer.num_codebooks + 1):
        with pytest.raises(TokenError, match=f"codebooks: expected 1.*, as many as the model has, found {books}"):
            tokenizer.encode(mini_speech, 16000, books)
    for books in (-1, tokenizer.num_codebooks + 1):
        with pytest.raises(TokenError, match=f"found {books}"):
            tokenizer.bitrate_of(books)


def test_codes_are_checked_against_the_size_of_their_own_codebook(tiny_tokenizer):
    tokenizer = tiny_tokenizer("istft", "residual")
    assert tokenizer.codebook_sizes == (32, 16, 8)
    assert tokenizer.describe()["codes"] == "32 + 16 + 8"
    codes = torch.zeros(3, 5, dtype=torch.long)
    codes[1, 2] = 16
    with pytest.raises(TokenError, match="from 0 to 15, found 0 to 16"):
        tokenizer.decode(codes)


def test_threads_change_no_code(tokenizer, numbers, mini_speech):
    codes = tokenizer.encode(mini_speech, 16000)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for books in numbers:
            assert torch.equal(tokenizer.encode(mini_speech, 16000, books), codes[:, :books])
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(params=[1, 211], ids=["all", "some"])
def settled(monkeypatch, tokenizer, request):
    """Every frame counts as a near tie, or every so many: what lies between them is not encoded again."""
    original = ExactCodes.near_ties

    def near_ties(self, latents, margin):
        forced = torch.arange(margin.shape[1]) % request.param == request.param // 2
        return original(self, latents, margin) | forced

    monkeypatch.setattr(ExactCodes, "near_ties", near_ties)


def test_codes_are_those_of_double_precision(tokenizer, numbers, mini_speech, settled, monkeypatch):
    exact = {books: tokenizer.encode(mini_speech, 16000, books) for books in numbers}
    monkeypatch.undo()
    for books in numbers:
        assert torch.equal(tokenizer.encode(mini_speech, 16000, books), exact[books])


def test_latents_are_within_the_error_that_is_allowed_for(tokenizer, mini_speech):
    wave = mini_speech[None]
    found = tokenizer.model.encode(wave)
    delay = tokenizer.model.delay
    padded = torch.nn.functional.pad(wave, (delay.samples, delay.look_ahead)).double()
    exact = tokenizer.exact._encoder(padded)[..., delay.frames :]
    error = (found - exact).norm(dim=1) / exact.norm(dim=1)
    assert error.max() < tokenizer.exact.latent_error


def test_a_release_gives_the_same_codes_and_sound(tokenizer, mini_speech, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AudioTokenizer.from_pretrained(tmp_path, "cpu")
    codes = tokenizer.encode(mini_speech, 16000)
    assert torch.equal(again.encode(mini_speech, 16000), codes)
    assert torch.equal(again.decode(codes), tokenizer.decode(codes))


def test_training_gives_every_part_a_gradient(tokenizer, tiny_config, mini_speech):
    model = AudioTokenizer(type(tokenizer.model)(tokenizer.config), tokenizer.config).model
    model.train().requires_grad_()
    wave = mini_speech[None, :, 8000 : 8000 + 100 * HOP].repeat(2, 1, 1)
    output = model(wave)
    assert output.wave.shape == wave.shape
    (output.prediction.square().mean() + output.bottleneck.loss).backward()
    for part in ("encoder", "decoder"):
        assert any(weight.grad is not None and weight.grad.any() for weight in getattr(model, part).parameters()), part
