"""On a GPU: the codes of the CPU, its sound to within rounding, and streams that give what the whole gives."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from audiovq.audio import load_audio
from audiovq.models.tokenizer import AudioTokenizer

pytestmark = pytest.mark.cuda

KINDS = {
    "speech-16k": (),
    "istft, vq": ("istft", "vq"),
    "transposed, residual": ("transposed", "residual"),
    "istft, fsq, looking ahead": ("istft", "fsq-residual", "conv", (30, 2)),
    "source, spectral": ("source-free", "fsq-groups", "spectral"),
}
MOST_DIFFERENT = 0.001
"""Share of the frames that may have other codes: those that are ties in double precision."""
LEAST_SNR = 20.0
"""Decibels by which sound is louder than what differs in it: a pitch that is rounded otherwise shifts its pulses."""


@pytest.fixture(scope="module", params=KINDS)
def devices(request, placed_tokenizer, gpu) -> tuple[AudioTokenizer, AudioTokenizer]:
    """A tokenizer on the CPU, and the same on the GPU."""
    parts = KINDS[request.param]
    if not parts:
        return tuple(AudioTokenizer.from_pretrained("speech-16k", device) for device in ("cpu", gpu))
    cpu = placed_tokenizer(*parts[:3], **({"look_ahead": parts[3]} if len(parts) > 3 else {}))
    return cpu, AudioTokenizer(copy.deepcopy(cpu.model), cpu.config, gpu)


@pytest.fixture(scope="module")
def speech(speech_folder) -> list[Tensor]:
    """Real speech of four voices, of eight lengths: [T] each."""
    paths = [path for voice in sorted(speech_folder.iterdir()) for path in sorted(voice.glob("*.ogg"))[:2]]
    assert len(paths) == 8
    waves = [load_audio(path, 16000)[0][0] for path in paths]
    return [wave[: 20000 + 1777 * number] for number, wave in enumerate(waves)]


def padded(waves: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)[:, None]


def assert_same_codes(found: list[Tensor], expected: list[Tensor]) -> None:
    assert [codes.shape for codes in found] == [codes.shape for codes in expected]
    differ = sum(int((a != b).any(0).sum()) for a, b in zip(found, expected, strict=True))
    frames = sum(codes.shape[-1] for codes in expected)
    assert differ <= MOST_DIFFERENT * frames, f"{differ} of {frames} frames have other codes"


def assert_sounds_alike(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert expected.square().mean() > 0
    noise = (found - expected).square().mean().clamp(min=1e-20)
    assert 10 * (expected.square().mean() / noise).log10() > LEAST_SNR


def test_codes_are_those_of_the_cpu_alone_in_a_batch_and_of_the_first_codebooks(devices, speech):
    cpu, gpu = devices
    expected = [cpu.encode(wave, 16000)[0] for wave in speech]
    assert_same_codes([gpu.encode(wave, 16000)[0] for wave in speech], expected)
    for books in (cpu.num_codebooks, 1):
        batch = gpu.encode(padded(speech), 16000, books)
        assert batch.device.type == "cpu"
        assert_same_codes(
            [codes[:, : gpu.num_frames(len(wave))] for codes, wave in zip(batch, speech, strict=True)],
            [codes[:books] for codes in expected],
        )


def test_codes_sound_as_on_the_cpu(devices, speech):
    cpu, gpu = devices
    codes = cpu.encode(padded(speech), 16000)
    for books in (cpu.num_codebooks, 1):
        expected = cpu.decode(codes[:, :books], seed=3)
        assert_sounds_alike(gpu.decode(codes[:, :books], seed=3), expected)


def test_a_stream_gives_the_codes_and_the_sound_of_the_whole(devices, speech):
    tokenizer, wave = devices[1], speech[-1]
    whole = tokenizer.encode(wave, 16000)
    encode, decode = tokenizer.stream_encoder(), tokenizer.stream_decoder(seed=3)
    step = max(tokenizer.hop_length, 1600 // tokenizer.hop_length * tokenizer.hop_length)
    pieces = wave[None, None].split(step, -1)
    codes = [encode(piece, last=number == len(pieces)) for number, piece in enumerate(pieces, 1)]
    assert_same_codes([torch.cat(codes, -1)[0]], [whole[0]])
    sound = [decode(piece, last=number == len(codes)) for number, piece in enumerate(codes, 1)]
    assert_sounds_alike(torch.cat(sound, -1), tokenizer.decode(whole, seed=3))
