"""What AudioTokenizer takes and gives: waveforms, codes and files in every form, and errors. See `test_codec`, too."""

from __future__ import annotations

import math
import os
import signal
import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audiovq.audio.files import AudioSource, AudioWriter, load_audio, save_audio
from audiovq.audio.resampling import resample
from audiovq.errors import AudioError, TokenError
from audiovq.models import tokenizer as tokenizer_module

HOP = 20
CLOSE = {"atol": 1e-5, "rtol": 1e-4}
few = settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_an_hour_of_frames_is_not_needed_to_know_the_rates(tokenizer):
    assert (tokenizer.sample_rate, tokenizer.hop_length, tokenizer.frame_rate) == (16000, 20, 800.0)
    assert (tokenizer.num_codebooks, tokenizer.codebook_size, tokenizer.bitrate) == (1, 32, 800 * 5)
    assert tokenizer.num_parameters == sum(p.numel() for p in tokenizer.model.parameters())


# --- the same codes, however the signal arrives --------------------------------------------------------------


@few
@given(frames=st.lists(st.integers(1, 100), min_size=2, max_size=4))
def test_decoding_in_a_batch_changes_no_sample_of_an_item(tokenizer, frames):
    codes = [torch.randint(0, 32, (1, n)) for n in frames]
    padded = torch.stack([torch.nn.functional.pad(c, (0, max(frames) - c.shape[-1])) for c in codes])
    for item, wave in zip(codes, tokenizer.decode(padded), strict=True):
        single = tokenizer.decode(item)
        torch.testing.assert_close(wave[None, :, : single.shape[-1]], single, **CLOSE)


def test_the_network_is_given_signals_of_few_lengths(tokenizer, mini_speech, monkeypatch):
    assert tokenizer.exact.latent_error > 0  # It has encoded its probe.
    lengths = []
    encoder = tokenizer.model.encoder
    forward = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda *given: lengths.append(given[0].shape[-1]) or forward(*given))
    monkeypatch.setattr(tokenizer_module, "CHUNK_SECONDS", 0.75)
    for samples in (1, 4000, 4001, 11999, 12001, 31000):
        codes = tokenizer.encode(mini_speech[:, :samples], 16000)
        assert codes.shape[-1] == tokenizer.num_frames(samples)
    assert lengths == [5120, 5120, 5120, 10240, 5120, 10240, 5120, 10240, 10240, 10240, 5120]
    assert tokenizer.encode(mini_speech.expand(3, 1, -1)[..., :9000], 16000).shape == (3, 1, 450)
    assert lengths[-3:] == [5120] * 3


def test_a_stream_ends_with_a_piece_that_is_no_whole_frames(tokenizer):
    stream = tokenizer.stream_encoder()
    stream(torch.randn(1, 1, 2 * HOP))
    stream(torch.randn(1, 1, HOP + 1))
    with pytest.raises(AudioError, match="multiple of 20 samples"):
        stream(torch.randn(1, 1, HOP))


@pytest.mark.parametrize("name", ["speech.wav", "speech.flac", "speech.ogg"])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_a_file_in_chunks_has_the_codes_of_its_signal(tokenizer, mini_speech, in_chunks, tmp_path, name, rate):
    save_audio(tmp_path / name, resample(mini_speech, 16000, rate), rate)
    in_chunks(10_000)
    codes = tokenizer.encode(*load_audio(tmp_path / name))
    in_chunks(77)
    assert torch.equal(tokenizer.encode_source(AudioSource.open(tmp_path / name)), codes)


def test_an_opus_file_in_chunks_has_the_codes_of_its_signal(tokenizer, in_chunks, speech_folder):
    path = speech_folder / "allison" / "en-conf-invalid.ogg"
    in_chunks(10_000)
    codes = tokenizer.encode(*load_audio(path))
    in_chunks(77)
    assert torch.equal(tokenizer.encode_source(AudioSource.open(path)), codes)


def test_decoding_to_a_file_in_chunks_writes_what_decode_gives(tokenizer, in_chunks, tmp_path, monkeypatch):
    sizes, write = [], AudioWriter.write
    monkeypatch.setattr(AudioWriter, "write", lambda file, wave: sizes.append(wave.shape[-1]) or write(file, wave))
    codes = torch.randint(0, 32, (1, 200))
    wave = tokenizer.decode(codes, 3990)[0]
    in_chunks(33)
    tokenizer.decode_to_file(codes, tmp_path / "a.wav", 3990)
    assert sum(sizes) == 3990
    assert max(sizes) == 33 * tokenizer.hop_length
    written, rate = load_audio(tmp_path / "a.wav")
    assert rate == 16000
    torch.testing.assert_close(written, wave.clamp(-1, 1), atol=1.1 / 32768, rtol=1e-4)


def test_codes_do_not_depend_on_autocast_or_on_training_mode_of_the_caller(tokenizer, mini_speech):
    codes = tokenizer.encode(mini_speech, 16000)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.encode(mini_speech, 16000), codes)
        assert tokenizer.decode(codes).dtype == torch.float32


# --- input and output ----------------------------------------------------------------------------------------


def test_shapes_and_kinds_of_waveforms_that_mean_the_same(tokenizer, mini_speech):
    codes = tokenizer.encode(mini_speech, 16000)
    kinds = [mini_speech[0], mini_speech[None], mini_speech.numpy(), mini_speech[0].numpy(), mini_speech.double()]
    for kind in kinds:
        assert torch.equal(tokenizer.encode(kind, 16000), codes)
    assert tokenizer.encode(mini_speech.repeat(3, 1)[:, None], 16000).shape == (3, *codes.shape[1:])


def test_shapes_and_kinds_of_codes_that_mean_the_same(tokenizer):
    codes = torch.randint(0, 32, (1, 1, 12))
    wave = tokenizer.decode(codes)
    for kind in (codes[0], codes.numpy(), codes[0].numpy().astype(np.uint16), codes.int()):
        assert torch.equal(tokenizer.decode(kind), wave)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_other_rates_are_resampled_first(tokenizer, rate):
    wave = 0.1 * torch.randn(1, rate // 4)
    codes = tokenizer.encode(wave, rate)
    assert codes.shape[-1] == tokenizer.num_frames(4000 if rate != 22050 else math.ceil(5512 * 16000 / 22050))
    assert torch.equal(codes, tokenizer.encode(resample(wave, rate, 16000), 16000))


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (torch.zeros(0), "empty"),
        (torch.zeros(0, 1, 100), "empty"),
        (torch.tensor([0.0, math.nan]), "NaN"),
        (torch.tensor([0.0, math.inf]), "NaN or infinite"),
        (torch.zeros(2, 100), r"found \[2, 100\]"),
        (torch.zeros(1, 2, 100), r"found \[1, 2, 100\]"),
        (torch.zeros(1, 1, 1, 100), r"found \[1, 1, 1, 100\]"),
        (torch.tensor(0.0), r"found \[\]"),
        (torch.zeros(100, dtype=torch.int16), "int16"),
        (np.zeros(100, dtype=np.int16), "int16"),
    ],
)
def test_waveforms_that_cannot_be_encoded(tokenizer, wave, message):
    with pytest.raises(AudioError, match=message) as caught:
        tokenizer.encode(wave, 16000)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (torch.full((1, 1, 2 * HOP), math.nan), "NaN"),
        (torch.zeros(1, 2, 2 * HOP), r"found \[1, 2, 40\]"),
        (torch.zeros(1, 2 * HOP), r"found \[1, 40\]"),
        (torch.zeros(1, 1, 2 * HOP).short(), "int16"),
        (torch.zeros(3, 1, 2 * HOP), "one of 1 signals, found a piece of 3"),
    ],
)
def test_pieces_that_cannot_be_encoded_are_refused_and_the_stream_goes_on_without_them(tokenizer, piece, message):
    wave = torch.randn(1, 1, 6 * HOP)
    stream = tokenizer.stream_encoder()
    first = stream(wave[..., : 2 * HOP])
    with pytest.raises(AudioError, match=message):
        stream(piece)
    codes = torch.cat([first, stream(wave[..., 2 * HOP :], last=True)], -1)
    assert torch.equal(codes, tokenizer.encode(wave, 16000))


@pytest.mark.parametrize("rate", [0, -16000])
def test_rates_that_are_no_rates(tokenizer, rate):
    with pytest.raises(AudioError, match="rates are positive"):
        tokenizer.encode(torch.zeros(100), rate)


@pytest.mark.parametrize(
    ("codes", "num_samples", "message"),
    [
        (torch.tensor([[32, 0]]), None, "from 0 to 31, found 0 to 32"),
        (torch.tensor([[-1, 0]]), None, "found -1 to 0"),
        (torch.zeros(2, 5, dtype=torch.long), None, r"shape \[B, 1, F\], found \[1, 2, 5\]"),
        (torch.zeros(5, dtype=torch.long), None, r"found \[5\]"),
        (torch.zeros(1, 1, 0, dtype=torch.long), None, r"found \[1, 1, 0\]"),
        (torch.zeros(1, 5), None, "integers, found torch.float32"),
        (torch.zeros(1, 5, dtype=torch.bool), None, "integers, found torch.bool"),
        (torch.zeros(1, 5, dtype=torch.long), 101, "101 samples are 6 frames, found 5"),
        (torch.zeros(1, 5, dtype=torch.long), 80, "80 samples are 4 frames, found 5"),
        (torch.zeros(1, 5, dtype=torch.long), 0, "0 samples are 0 frames"),
    ],
)
def test_codes_that_cannot_be_decoded(tokenizer, codes, num_samples, message):
    with pytest.raises(TokenError, match=message):
        tokenizer.decode(codes, num_samples)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.full((1, 1, 3), 32), "from 0 to 31, found 32 to 32"),
        (torch.zeros(1, 2, 3).long(), r"shape \[B, 1, F\], found \[1, 2, 3\]"),
        (torch.zeros(1, 3).long(), r"found \[1, 3\]"),
        (torch.zeros(1, 1, 3), "integers, found torch.float32"),
    ],
)
def test_codes_that_cannot_be_decoded_as_a_stream(tokenizer, codes, message):
    with pytest.raises(TokenError, match=message):
        tokenizer.stream_decoder()(codes)


def test_a_stream_is_decoded_as_many_signals_as_it_began_with(tokenizer):
    stream, codes = tokenizer.stream_decoder(), torch.zeros(2, 1, 5, dtype=torch.long)
    stream(codes)
    with pytest.raises(TokenError, match="one of 2 signals, found codes of 1"):
        stream(codes[:1])


# --- reconstruct ---------------------------------------------------------------------------------------------


def test_reconstruct_is_encode_then_decode(tokenizer, mini_speech):
    wave, codes = tokenizer.reconstruct(mini_speech[:, :-3], 16000)
    assert torch.equal(codes, tokenizer.encode(mini_speech[:, :-3], 16000))
    assert torch.equal(wave, tokenizer.decode(codes, mini_speech.shape[-1] - 3))


@pytest.mark.parametrize("decoder", ["transposed", "istft"])
def test_a_model_without_codes_reconstructs_in_chunks_too(tiny_tokenizer, mini_speech, monkeypatch, decoder):
    tokenizer = tiny_tokenizer(decoder, "none")
    monkeypatch.setattr(tokenizer_module, "CHUNK_SECONDS", 77 / tokenizer.frame_rate)
    wave, codes = tokenizer.reconstruct(mini_speech[:, :-3], 16000)
    assert codes is None
    with torch.no_grad():
        torch.testing.assert_close(wave, tokenizer.model(mini_speech[None, :, :-3]).wave, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_forked_process_does_not_wait_for_threads_that_it_has_not(tokenizer, mini_speech):
    threads, numbers = torch.get_num_threads(), torch.zeros(10**6)
    torch.set_num_threads(2)
    numbers.exp()  # In both threads.
    codes = tokenizer.encode(mini_speech, 16000)
    child = os.fork()
    if not child:
        numbers.exp()
        os._exit(0 if torch.equal(tokenizer.encode(mini_speech, 16000), codes) else 1)
    torch.set_num_threads(threads)
    deadline, ended = time.monotonic() + 60, (0, 0)
    while not ended[0] and time.monotonic() < deadline:
        time.sleep(0.02)
        ended = os.waitpid(child, os.WNOHANG)
    if not ended[0]:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended == (child, 0)


def test_seeds_are_as_many_as_items(tokenizer):
    with pytest.raises(TokenError, match="expected 2 seeds, one for each item, found 1"):
        tokenizer.decode(torch.zeros(2, 1, 5).long(), seed=[1])
    stream = tokenizer.stream_decoder(seed=[1])
    with pytest.raises(TokenError, match="expected 2 seeds, one for each item, found 1"):
        stream(torch.zeros(2, 1, 5).long())
    assert stream(torch.zeros(1, 1, 5).long()).shape == (1, 1, 5 * HOP)


def test_a_model_without_codes_says_so(tiny_tokenizer):
    tokenizer = tiny_tokenizer("istft", "none")
    assert (tokenizer.num_codebooks, tokenizer.codebook_size, tokenizer.bitrate) == (0, 0, 0)
    for call in (lambda: tokenizer.encode(torch.zeros(100), 16000), lambda: tokenizer.decode(torch.zeros(1, 5).long())):
        with pytest.raises(TokenError, match="'none' has no codes"):
            call()
    with pytest.raises(NotImplementedError, match="continuous: has no codes"):
        tokenizer.model.bottleneck.encode(torch.zeros(1, 8, 3))
