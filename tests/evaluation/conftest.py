from pathlib import Path

import pytest
import torch

from audiovq.audio.files import AudioSource
from audiovq.data.manifest import Utterance

SPEECH = Path(__file__).parents[2] / "recipes" / "mini" / "data"


class NoisyTokenizer:
    """Has the attributes of an AudioTokenizer; adds noise, and codes each frame by its level."""

    sample_rate = 16000
    hop_length = 320
    frame_rate = 50.0
    num_parameters = 1000
    weights_sha256 = "ab" * 32
    speakers = ()

    def __init__(self, num_codebooks: int = 2, noise: float = 0.003):
        self.num_codebooks = num_codebooks
        self.codebook_sizes = (64,) * num_codebooks
        self.noise = noise

    def bitrate_of(self, num_codebooks: int) -> float:
        return 300.0 * num_codebooks

    def require_codes(self, num_codebooks: int) -> None:
        assert num_codebooks <= self.num_codebooks

    def reconstruct(self, wave, sample_rate, speaker=None, seed=0, num_codebooks=None):
        assert (sample_rate, speaker) == (self.sample_rate, None)
        generator = torch.Generator().manual_seed(0)
        decoded = wave[None] + self.noise * torch.randn(wave.shape, generator=generator)
        frames = -(-wave.shape[-1] // self.hop_length)
        padded = torch.nn.functional.pad(wave, (0, frames * self.hop_length - wave.shape[-1]))
        level = padded.view(1, 1, frames, self.hop_length).abs().amax(dim=-1)
        codes = (level * 1000).long() % 64
        books = num_codebooks or self.num_codebooks
        return decoded, codes.repeat(1, books, 1) if books else None


def utterance(path: Path, **known) -> Utterance:
    source = AudioSource.open(path)
    return Utterance(
        id=known.pop("id", path.stem),
        path=path.resolve(),
        duration=source.duration,
        sample_rate=source.sample_rate,
        num_samples=source.num_samples,
        **known,
    )


@pytest.fixture(scope="session")
def utterances() -> list[Utterance]:
    """Four utterances of real speech, two to five seconds long."""
    found = (utterance(path, speaker=path.parent.name) for path in sorted(SPEECH.rglob("*.ogg")))
    return [found for found in found if 2 <= found.duration <= 5][::7][:4]


@pytest.fixture(scope="session")
def speech(utterances) -> torch.Tensor:
    """Real speech at 16 kHz, [1, T]."""
    return utterances[0].source().read(16000)


@pytest.fixture(scope="session")
def noisy_tokenizer():
    return NoisyTokenizer
