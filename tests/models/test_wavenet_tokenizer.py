"""AudioTokenizer with a WaveNet decoder: what it draws depends on codes, speaker and seed alone."""

from __future__ import annotations

import pytest
import torch

from audiovq.audio.files import load_audio
from audiovq.audio.signal import MU_LAW_CLASSES, mu_law_decode
from audiovq.errors import SpeakerError, TokenError
from audiovq.models import tokenizer as tokenizer_module
from audiovq.models.autoencoder import Autoencoder
from audiovq.models.tokenizer import AudioTokenizer

HOP = 20


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer) -> AudioTokenizer:
    return tiny_tokenizer("wavenet")


def codes(batch: int = 1, frames: int = 12) -> torch.Tensor:
    return torch.randint(0, 32, (batch, 1, frames))


def test_the_waveform_has_the_length_asked_for_and_the_amplitudes_of_mu_law(tokenizer):
    given = codes(2)
    wave = tokenizer.decode(given, speaker="june")
    assert (wave.shape, wave.dtype) == ((2, 1, 12 * HOP), torch.float32)
    assert torch.isin(wave, mu_law_decode(torch.arange(MU_LAW_CLASSES))).all()
    assert torch.equal(tokenizer.decode(given, 231, speaker="june"), wave[..., :231])


def test_codes_speaker_and_seed_decide(tokenizer):
    given = codes()
    wave = tokenizer.decode(given, speaker="june")
    torch.manual_seed(1)
    assert torch.equal(tokenizer.decode(given, speaker="june", seed=0), wave)
    assert not torch.equal(tokenizer.decode(given, speaker="june", seed=1), wave)
    assert not torch.equal(tokenizer.decode(given, speaker="allison"), wave)
    assert not torch.equal(tokenizer.decode((given + 1) % 32, speaker="june"), wave)


def test_an_item_is_the_same_alone_and_in_a_batch(tokenizer):
    given, seeds = codes(3), [7, 8, 7]
    together = tokenizer.decode(given, speaker="june", seed=seeds)
    assert len({tuple(wave.flatten().tolist()) for wave in together}) == 3
    for item in range(3):
        assert torch.equal(
            tokenizer.decode(given[item], speaker="june", seed=seeds[item : item + 1])[0], together[item]
        )
    # Padding behind an item changes nothing of it.
    shorter = tokenizer.decode(given[:, :, :5], speaker="june", seed=seeds)
    assert torch.equal(shorter, together[..., : 5 * HOP])


def test_items_of_a_batch_draw_their_own_random_numbers(tokenizer):
    first, second = tokenizer.decode(codes().repeat(2, 1, 1), speaker="june")
    assert not torch.equal(first, second)


@pytest.mark.parametrize("frames", [1, 5, 11])
def test_chunks_files_and_streams_give_what_the_whole_gives(tokenizer, tmp_path, monkeypatch, frames):
    given = codes()
    wave = tokenizer.decode(given, 235, speaker="june", seed=3)
    stream = tokenizer.stream_decoder(speaker="june", seed=3)
    pieces = [stream(piece) for piece in given.split([2, 9, 1], -1)]
    assert torch.equal(torch.cat(pieces, -1)[..., :235], wave)

    monkeypatch.setattr(tokenizer_module, "CHUNK_SECONDS", frames / tokenizer.frame_rate)
    assert torch.equal(tokenizer.decode(given, 235, speaker="june", seed=3), wave)
    tokenizer.decode_to_file(given[0], tmp_path / "a.wav", 235, speaker="june", seed=3)
    written, rate = load_audio(tmp_path / "a.wav")
    assert rate == 16000
    torch.testing.assert_close(written, wave[0], atol=1.1 / 32768, rtol=0)


@pytest.mark.parametrize("seed", [3, [7, 8, 7]])
def test_a_streamed_batch_is_drawn_as_the_batch_at_once(tokenizer, seed):
    given = codes(3)
    stream = tokenizer.stream_decoder(speaker="june", seed=seed)
    pieces = [stream(piece) for piece in given.split([2, 9, 1], -1)]
    assert torch.equal(torch.cat(pieces, -1), tokenizer.decode(given, speaker="june", seed=seed))


def test_reconstruct_is_encode_then_decode(tokenizer, mini_speech):
    wave = mini_speech[:, 8000:8207]
    decoded, found = tokenizer.reconstruct(wave, 16000, speaker="allison", seed=2)
    assert torch.equal(found, tokenizer.encode(wave, 16000))
    assert torch.equal(decoded, tokenizer.decode(found, 207, speaker="allison", seed=2))


def test_a_model_without_codes_reconstructs_in_chunks_too(tiny_tokenizer, mini_speech, monkeypatch):
    tokenizer = tiny_tokenizer("wavenet", "none")
    wave = mini_speech[:, 8000:8207]
    whole, found = tokenizer.reconstruct(wave, 16000, speaker="june")
    assert (found, whole.shape) == (None, (1, 1, 207))
    monkeypatch.setattr(tokenizer_module, "CHUNK_SECONDS", 100 / tokenizer.frame_rate)
    assert torch.equal(tokenizer.reconstruct(wave, 16000, speaker="june")[0], whole)


def test_a_release_keeps_the_speakers_and_tells_them(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AudioTokenizer.from_pretrained(tmp_path, "cpu")
    assert again.speakers == ["allison", "june"]
    assert again.describe()["speakers"] == "allison, june"
    assert 'tokenizer.decode(codes, speaker="allison")' in (tmp_path / "README.md").read_text()
    given = codes()
    assert torch.equal(again.decode(given, speaker="june"), tokenizer.decode(given, speaker="june"))


def test_many_speakers_are_told_in_short(tiny_config):
    config = tiny_config("wavenet")
    names = [f"p{number}" for number in range(225, 335)]
    config = config.model_copy(update={"decoder": config.decoder.model_copy(update={"speakers": names})})
    tokenizer = AudioTokenizer(Autoencoder(config), config)
    assert tokenizer.describe()["speakers"].endswith("p233, p234 and 100 more")
    with pytest.raises(SpeakerError, match=r"unknown speaker 'zzz'; known are p225, .* and 100 more$"):
        tokenizer.decode(codes(), speaker="zzz")


@pytest.mark.parametrize(
    ("speaker", "message"),
    [
        (None, "has to be told who speaks; known are allison, june"),
        ("jun", "unknown speaker 'jun'; did you mean 'june'?"),
        ("", "unknown speaker ''; known are allison, june"),
    ],
)
def test_a_speaker_that_is_missing_or_unknown(tokenizer, mini_speech, tmp_path, speaker, message):
    wave = mini_speech[:, :100]
    for call in (
        lambda: tokenizer.decode(codes(), speaker=speaker),
        lambda: tokenizer.decode_to_file(codes()[0], tmp_path / "a.wav", speaker=speaker),
        lambda: tokenizer.reconstruct(wave, 16000, speaker=speaker),
        lambda: tokenizer.stream_decoder(speaker=speaker),
    ):
        with pytest.raises(SpeakerError) as caught:
            call()
        assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_speakers_cannot_speak_as_somebody(tiny_tokenizer):
    tokenizer = tiny_tokenizer("istft")
    assert tokenizer.speakers == []
    assert "speakers" not in tokenizer.describe()
    with pytest.raises(SpeakerError, match="the model knows no speakers and cannot speak as 'june'"):
        tokenizer.decode(codes(), speaker="june")


def test_codes_are_checked_as_ever(tokenizer):
    with pytest.raises(TokenError, match="from 0 to 31, found 0 to 32"):
        tokenizer.decode(torch.tensor([[0, 32]]), speaker="june")
