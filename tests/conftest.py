"""Shape checks for the whole test run, and what many tests share: a little real speech, tiny models."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hypothesis import register_random, settings
from jaxtyping import install_import_hook

# Before anything below audiovq is imported: from here on every annotated shape and dtype is checked at each call.
# Not AudioTokenizer, which has errors of its own for wrong input.
install_import_hook(
    [
        "audiovq.nn",
        "audiovq.bottlenecks",
        "audiovq.losses",
        "audiovq.models.autoencoder",
        "audiovq.models.wavenet_decoder",
        "audiovq.models.prior",
    ],
    "beartype.beartype",
)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import soundfile  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

from audiovq import cli  # noqa: E402
from audiovq.audio import AudioSource, load_audio  # noqa: E402
from audiovq.config import AutoencoderConfig, CodesConfig, PriorConfig  # noqa: E402
from audiovq.data.manifest import Utterance, write_manifest  # noqa: E402
from audiovq.devices import seed_everything  # noqa: E402
from audiovq.models.autoencoder import Autoencoder  # noqa: E402
from audiovq.models.prior import CodePrior, PriorNetwork  # noqa: E402
from audiovq.models.tokenizer import AudioTokenizer  # noqa: E402
from audiovq.tokens import TokenizerInfo, TokenRow, write_shard, write_tokenizer_info  # noqa: E402

torch.set_num_threads(1)  # The models are tiny; threads would only wait for each other.
settings.register_profile("audiovq", deadline=None, derandomize=True)
settings.load_profile("audiovq")


class TorchRandom:
    """PyTorch's random numbers as Hypothesis wants them, so that a failing example fails again."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


TORCH_RANDOM = TorchRandom()  # Hypothesis itself keeps only a weak reference.
register_random(TORCH_RANDOM)

SPEECH = Path(__file__).parents[1] / "recipes" / "mini" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests that need a GPU where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(scope="session")
def gpu() -> str:
    """The device of tests that are marked `cuda`."""
    return "cuda"


ENCODERS = {
    "conv": {"channels": [4, 6, 8], "strides": [4, 5], "dilations": [[], [1], [1, 3]]},
    "spectral": {
        **{"type": "spectral", "hop_length": 20, "spectra": 2, "window": 32, "bands": 6, "low_bins": 4},
        **{"dim": 8, "layers": 2, "kernel_size": 3},
    },
}
DECODERS = {
    "transposed": {"type": "transposed", "channels": [8, 6, 4], "dilations": [[1, 3], [1], []]},
    "istft": {"type": "istft", "dim": 12, "layers": 2, "kernel_size": 3, "subframes": 2, "overlap": 4},
    "source": {"type": "source", "dim": 12, "layers": 2, "kernel_size": 3, "subframes": 2, "overlap": 3},
    "source-free": {
        **{"type": "source", "dim": 12, "layers": 2, "kernel_size": 3, "subframes": 2, "overlap": 3},
        "free_spectrum": True,
    },
    "wavenet": {
        **{"type": "wavenet", "layers": 3, "cycle": 3, "residual_channels": 8, "skip_channels": 8},
        **{"condition_channels": 6, "speaker_dim": 3, "speakers": ["allison", "june"]},
    },
}
BOTTLENECKS = {
    "vq": {"type": "vq", "codebook_size": 32, "code_dim": 4},
    "vq-plain": {"type": "vq", "codebook_size": 32, "code_dim": None, "normalize": False},
    "vq-ema": {"type": "vq", "codebook_size": 32, "update": "ema"},
    "residual": {"type": "residual", "num_codebooks": 3, "codebook_size": [32, 16, 8], "code_dim": 4},
    "fsq": {"type": "fsq", "levels": [5, 4, 3]},
    "fsq-groups": {"type": "fsq", "levels": [5, 4, 3], "num_codebooks": 2},
    "fsq-residual": {"type": "fsq", "levels": [8, 5], "num_codebooks": 3, "structure": "residual"},
    "none": {"type": "none"},
}


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Each test draws the same random numbers whatever ran before it."""
    seed_everything(0)


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., AutoencoderConfig]:
    """A model of a few thousand weights and 20 samples a frame, by the names of its parts and their look-ahead."""

    def make(
        decoder: str = "istft", bottleneck: str = "vq", encoder: str = "conv", look_ahead: tuple[int, int] = (0, 0)
    ) -> AutoencoderConfig:
        ahead = {"look_ahead": look_ahead[1]} if decoder != "wavenet" else {}
        return AutoencoderConfig.model_validate(
            {
                "sample_rate": 16000,
                "latent_dim": 8,
                "encoder": {**ENCODERS[encoder], "look_ahead": look_ahead[0]},
                "bottleneck": BOTTLENECKS[bottleneck],
                "decoder": {**DECODERS[decoder], **ahead},
            }
        )

    return make


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_config) -> Callable[..., AudioTokenizer]:
    """A tokenizer with random weights, by the names of its parts and their look-ahead."""

    def make(*parts: str, **settings) -> AudioTokenizer:
        seed_everything("tiny tokenizer")
        config = tiny_config(*parts, **settings)
        model = Autoencoder(config)
        for layer in model.modules():
            # Without this, biases drown the signal in an untrained network: all codes would be the same or ties.
            if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d) and layer.bias is not None:
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)
        for name, layer in model.bottleneck.named_modules():
            if name.endswith("project_in") and isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)
        return AudioTokenizer(model, config)

    return make


@pytest.fixture(scope="session")
def placed_tokenizer(tiny_tokenizer, mini_speech) -> Callable[..., AudioTokenizer]:
    """The same with codebooks that have been placed on speech, and statistics of it."""

    def make(*parts: str, **settings) -> AudioTokenizer:
        tokenizer = tiny_tokenizer(*parts, **settings)
        bottleneck = tokenizer.model.bottleneck.train()
        for _ in range(20):
            bottleneck(tokenizer.model.encode(mini_speech[None]))
        bottleneck.eval()
        return tokenizer

    return make


@pytest.fixture(scope="session", params=["transposed", "istft"])
def tokenizer(request, tiny_tokenizer) -> AudioTokenizer:
    """A tiny tokenizer with each of the decoders in turn that give a whole waveform at once."""
    return tiny_tokenizer(request.param)


@pytest.fixture(scope="session")
def speech_folder() -> Path:
    """Real speech of four voices, Opus at 16 kHz, in `speaker/name.ogg`."""
    return SPEECH


@pytest.fixture(scope="session")
def mini_speech() -> torch.Tensor:
    """Two seconds of real speech at 16 kHz: [1, T]."""
    wave, _ = load_audio(SPEECH / "allison" / "en-conf-invalid.ogg", 16000, duration=2.0)
    return wave


@pytest.fixture(scope="session")
def tiny_prior() -> Callable[..., CodePrior]:
    """A prior with random weights over `books` codebooks of `size` codes or of `sizes`, 50 frames a second."""

    def make(
        books: int = 1, size: int = 7, weights_sha256: str = "ab" * 32, sizes: list[int] | None = None, **options
    ) -> CodePrior:
        seed_everything("tiny prior")
        codes = CodesConfig(
            weights_sha256=weights_sha256,
            **{"sample_rate": 16000, "hop_length": 320, "frame_rate": 50.0},
            **{"num_codebooks": books, "codebook_size": size, "codebook_sizes": sizes},
        )
        settings = {"layers": 4, "cycle": 2, "residual_channels": 6, "skip_channels": 32, **options}
        config = PriorConfig(codes=codes, **settings)
        network = PriorNetwork(config)
        with torch.no_grad():  # Fresh weights hardly listen to the past; these do.
            for layer in (*network.network.dilated, *network.network.output, *network.network.head):
                layer.weight.mul_(2.5)
        return CodePrior(network, config)

    return make


@pytest.fixture(scope="session")
def write_tokens() -> Callable[..., Path]:
    """Write a token data set in two shards; utterances are [Q, F] codes by (id, speaker), each below `size` or that
    of `sizes`."""

    def write(
        folder: Path,
        codes: Mapping[tuple[str, str | None], np.ndarray],
        size: int,
        weights_sha256: str = "ab" * 32,
        sizes: Sequence[int] = (),
    ) -> Path:
        books = len(next(iter(codes.values()))) if codes else 1
        folder.mkdir(parents=True, exist_ok=True)
        write_tokenizer_info(folder, TokenizerInfo(weights_sha256, 16000, 320, 50.0, books, size, {}, list(sizes)))
        rows = [
            TokenRow(utt_id, speaker, 16000, 320 * found.shape[1], found.astype(np.uint16), f"{utt_id}.wav")
            for (utt_id, speaker), found in codes.items()
        ]
        half = len(rows) // 2
        for number, part in enumerate((rows[:half], rows[half:])):
            write_shard(folder / f"part-{number:05d}.parquet", part)
        return folder

    return write


@pytest.fixture
def run(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Run `audiovq ...` in this process; gives exit code, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["audiovq", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        assert isinstance(code, int)
        return code, *capsys.readouterr()

    return run


# --- a little data set ------------------------------------------------------------------------------------------------


def utterance(path: Path, **known) -> Utterance:
    source = AudioSource.open(path)
    return Utterance(path.stem, path, source.duration, source.sample_rate, source.num_samples, **known)


@pytest.fixture(scope="session")
def six_files(tmp_path_factory) -> Path:
    """Six files of real speech, half a second to two seconds long, at three rates."""
    folder = tmp_path_factory.mktemp("speech")
    originals = sorted((SPEECH / "allison").glob("*.ogg"))
    for number, original in enumerate(originals[:6]):
        wave = AudioSource.open(original).read((8000, 16000, 22050)[number % 3])
        rate = (8000, 16000, 22050)[number % 3]
        samples = wave[0, : round(rate * (2.0, 0.5, 1.3, 1.31, 0.9, 1.7)[number])]
        soundfile.write(folder / f"utt{number}.wav", samples.numpy(), rate)
    return folder


@pytest.fixture
def utterances(six_files) -> list[Utterance]:
    return [utterance(path, speaker="allison") for path in sorted(six_files.glob("*.wav"))]


@pytest.fixture(scope="session")
def model(tiny_tokenizer, tmp_path_factory) -> Path:
    """A released model with random weights."""
    folder = tmp_path_factory.mktemp("tokenizing") / "model"
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def manifest(utterances, tmp_path) -> Path:
    """A manifest of the six utterances."""
    write_manifest(tmp_path / "manifest" / "data.jsonl", utterances)
    return tmp_path / "manifest" / "data.jsonl"
