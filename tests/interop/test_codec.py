"""Models of audiovq in transformers: the calls of its codecs, and the codes of `AudioTokenizer`."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioTokenization,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)

from audiovq.errors import AudioError, CheckpointError, SpeakerError, TokenError
from audiovq.interop.transformers import AudioVQConfig, AudioVQFeatureExtractor, AudioVQModel
from audiovq.models.tokenizer import AudioTokenizer

KINDS = [
    ("istft", "vq"),
    ("transposed", "residual"),
    ("source", "fsq-groups", "spectral"),
    ("istft", "fsq-residual", "conv", (30, 2)),
]
"""Decoder, bottleneck, encoder and look-ahead of tiny models."""


@pytest.fixture(
    scope="module",
    params=["speech-16k", *KINDS],
    ids=lambda kind: kind if isinstance(kind, str) else "-".join(map(str, kind[:3])),
)
def tokenizer(request, shipped, tiny_tokenizer) -> AudioTokenizer:
    if request.param == "speech-16k":
        return shipped
    parts, ahead = request.param[:3], request.param[3:]
    return tiny_tokenizer(*parts, **({"look_ahead": ahead[0]} if ahead else {}))


@pytest.fixture(scope="module")
def codec(tokenizer, export) -> AudioVQModel:
    return AutoModel.from_pretrained(export(tokenizer))


@pytest.fixture(scope="module")
def tiny(tiny_tokenizer, export) -> AudioVQModel:
    return AutoModel.from_pretrained(export(tiny_tokenizer("istft", "residual")))


@pytest.fixture
def batch(waves) -> dict[str, torch.Tensor]:
    return dict(AudioVQFeatureExtractor(sampling_rate=16000)(waves, sampling_rate=16000, return_tensors="pt"))


def same_weights(codec: AudioVQModel, tokenizer: AudioTokenizer) -> bool:
    """Parameters and all buffers, those that are not stored among them."""
    pairs = zip(
        [*codec.audiovq.named_parameters(), *codec.audiovq.named_buffers()],
        [*tokenizer.model.named_parameters(), *tokenizer.model.named_buffers()],
        strict=True,
    )
    return all(a == b and x.dtype == y.dtype and torch.equal(x, y) for (a, x), (b, y) in pairs)


# --- codes ------------------------------------------------------------------------------------------------------------


def test_codes_of_a_padded_batch_are_those_of_each_waveform_alone(codec, tokenizer, waves, batch):
    found = codec.encode(**batch).audio_codes
    assert found.shape == (3, tokenizer.num_codebooks, tokenizer.num_frames(batch["input_values"].shape[-1]))
    assert found.dtype == torch.int64
    frames = codec.get_audio_codes_mask(batch["padding_mask"])
    for codes, mask, wave in zip(found, frames, waves, strict=True):
        assert torch.equal(codes[:, mask], tokenizer.encode(wave, 16000)[0])


def test_a_mask_may_be_an_array_or_a_list(tiny, batch):
    expected = tiny.encode(**batch).audio_codes
    for change in (torch.Tensor.bool, torch.Tensor.numpy, torch.Tensor.tolist):
        mask = change(batch["padding_mask"])
        assert torch.equal(tiny.encode(batch["input_values"].numpy(), mask).audio_codes, expected)
        assert tiny.decode(expected, mask).audio_values.shape == batch["input_values"].shape
        assert torch.equal(tiny.get_audio_codes_mask(mask), tiny.get_audio_codes_mask(batch["padding_mask"]))


def test_what_stands_in_the_padding_counts_for_nothing(codec, batch):
    noise = torch.randn(batch["input_values"].shape)
    noisy = torch.where(batch["padding_mask"][:, None] > 0, batch["input_values"], noise)
    expected = codec.encode(**batch).audio_codes
    assert torch.equal(codec.encode(noisy, batch["padding_mask"].bool()).audio_codes, expected)
    assert not torch.equal(codec.encode(noisy).audio_codes, expected)


def test_decoding_gives_what_the_tokenizer_gives_and_nothing_behind_it(codec, tokenizer, waves, batch):
    output = codec(**batch, seed=[5, 6, 7])
    assert torch.equal(output.audio_codes, codec.encode(**batch).audio_codes)
    assert output.audio_values.shape == batch["input_values"].shape
    for values, wave, seed in zip(output.audio_values, waves, (5, 6, 7), strict=True):
        alone = tokenizer.decode(tokenizer.encode(wave, 16000), len(wave), seed=[seed])
        assert torch.allclose(values[:, : len(wave)], alone[0], atol=1e-5)
        assert not values[:, len(wave) :].any()


def test_the_first_codebooks_alone(codec, tokenizer, waves):
    count = min(2, tokenizer.num_codebooks)
    wave = waves[1][None]
    codes = codec.encode(wave, num_quantizers=count).audio_codes
    assert torch.equal(codes, tokenizer.encode(wave[0], 16000, count))
    values = codec.decode(codes).audio_values
    assert torch.equal(values, tokenizer.decode(codes))
    assert values.shape[-1] == codes.shape[-1] * tokenizer.hop_length


def test_a_decoder_with_speakers_says_it_in_the_voice_that_is_asked_for(tiny_tokenizer, export, waves):
    tokenizer = tiny_tokenizer("wavenet")
    codec = AutoModel.from_pretrained(export(tokenizer))
    codes = codec.encode(waves[0][None, None, :801]).audio_codes
    voices = [codec.decode(codes, speaker=speaker, seed=3).audio_values for speaker in ("allison", "june")]
    assert torch.equal(voices[0], tokenizer.decode(codes, speaker="allison", seed=3))
    assert not torch.equal(*voices)
    with pytest.raises(SpeakerError, match="'carlo'"):
        codec.decode(codes, speaker="carlo")
    with pytest.raises(SpeakerError):
        codec.decode(codes)


def test_plain_tuples(tiny, waves):
    wave = waves[0][None, None]
    codes, values = tiny(wave, return_dict=False)
    assert torch.equal(tiny.encode(wave, return_dict=False)[0], codes)
    assert torch.equal(tiny.decode(codes, return_dict=False)[0][..., : wave.shape[-1]], values)


def test_codes_can_be_trained_on(tiny, waves):
    embedding = torch.nn.Embedding(32, 2)
    embedding(tiny.encode(waves[0][None]).audio_codes).sum().backward()  # Inference tensors could not be.
    assert embedding.weight.grad is not None


def test_the_config_says_what_the_codes_are(shipped, export):
    config = AutoConfig.from_pretrained(export(shipped))
    assert (config.sampling_rate, config.hop_length, config.frame_rate) == (16000, 320, 50.0)
    assert (config.num_quantizers, config.codebook_size, config.codebook_sizes) == (6, 1024, (1024,) * 6)
    assert AudioVQConfig().settings == config.settings


# --- what is refused --------------------------------------------------------------------------------------------------

MASKS = {
    "left": ([[0, 0, 1, 1], [1, 1, 1, 1]], "in row 0; pad on the right"),
    "a hole": ([[1, 1, 1, 1], [1, 0, 1, 0]], "in row 1; pad on the right"),
    "no samples": ([[1, 1, 1, 1], [0, 0, 0, 0]], "in row 1; pad on the right"),
    "another length": ([[1, 1, 1], [1, 1, 1]], r"expected shape \[2, 4\]"),
    "another batch": ([[1, 1, 1, 1]], r"expected shape \[2, 4\]"),
    "another shape": ([1, 1, 1, 1], r"expected shape \[B, T\]"),
}


@pytest.mark.parametrize(("mask", "message"), MASKS.values(), ids=MASKS)
def test_masks_that_do_not_fit_are_refused_in_one_line(tiny, mask, message):
    with pytest.raises(AudioError, match=message) as caught:
        tiny.encode(torch.randn(2, 1, 4), torch.tensor(mask))
    assert "\n" not in str(caught.value)


CODES = {
    "out of range": (torch.full((1, 3, 4), 32), "expected codes from 0 to 31"),
    "negative": (torch.full((1, 3, 4), -1), "expected codes from 0 to 31"),
    "floating point": (torch.zeros(1, 3, 4), "codes are integers"),
    "too many codebooks": (torch.zeros(1, 4, 4).long(), r"\[B, 1 to 3, F\]"),
    "no frames": (torch.zeros(1, 3, 0).long(), r"at least one frame, found \[1, 3, 0\]"),
}


@pytest.mark.parametrize(("codes", "message"), CODES.values(), ids=CODES)
def test_codes_that_do_not_fit_are_refused_in_one_line(tiny, codes, message):
    with pytest.raises(TokenError, match=message) as caught:
        tiny.decode(codes)
    assert "\n" not in str(caught.value)


def test_a_mask_of_another_length_than_the_codes(tiny):
    with pytest.raises(TokenError, match=r"expected codes of shape \[1, Q, 3\] for a padding_mask of 41 samples"):
        tiny.decode(torch.zeros(1, 3, 4).long(), torch.ones(1, 41))


@pytest.mark.parametrize("count", [0, 4])
def test_codebooks_that_the_model_has_not(tiny, waves, count):
    with pytest.raises(TokenError, match="expected 1 to 3"):
        tiny.encode(waves[0][None], num_quantizers=count)


def test_waveforms_that_do_not_fit(tiny):
    for wave in (torch.zeros(1, 2, 100), torch.zeros(1, 1, 100).int(), torch.full((1, 1, 100), torch.nan)):
        with pytest.raises(AudioError):
            tiny.encode(wave)


# --- weights ----------------------------------------------------------------------------------------------------------


def dtypes(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (no mapping)


def test_saved_and_loaded_it_is_the_same_model(codec, tokenizer, export, tmp_path):
    codec.save_pretrained(tmp_path)
    for loaded in (AutoModel.from_pretrained(tmp_path), AutoModelForAudioTokenization.from_pretrained(tmp_path)):
        assert same_weights(loaded, tokenizer)
    assert dtypes(tmp_path) == dtypes(export(tokenizer))


def test_the_folder_stays_a_model_of_audiovq(codec, tokenizer, export, waves, tmp_path):
    codec.save_pretrained(tmp_path)
    for folder in (export(tokenizer), tmp_path):
        loaded = AudioTokenizer.from_pretrained(folder, "cpu")
        assert loaded.weights_sha256 == tokenizer.weights_sha256
        assert loaded.config == tokenizer.config


def test_half_precision_is_stored_only_where_it_loses_nothing(shipped, tiny_tokenizer, export):
    assert dtypes(export(shipped)) == {"F16", "BOOL"}
    assert "F32" in dtypes(export(tiny_tokenizer("istft", "vq")))


@pytest.mark.parametrize("dtype", ["auto", torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_float32_whatever_is_asked_for(shipped, export, dtype):
    codec = AutoModel.from_pretrained(export(shipped), dtype=dtype)
    assert codec.dtype == torch.float32
    assert same_weights(codec, shipped)


CHANGES: dict[str, Callable[[AudioVQModel], object]] = {
    "half": lambda codec: codec.half(),
    "bfloat16": lambda codec: codec.to("cpu", torch.bfloat16),
    "inside a module": lambda codec: torch.nn.ModuleList([codec]).to(torch.float16).train(),
    "training": lambda codec: codec.train(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_codes_stay_the_same_when_a_model_around_it_is_cast_or_trained(tiny, batch, change):
    codec = copy.deepcopy(tiny)
    expected = codec.encode(**batch).audio_codes
    change(codec)
    half = {**batch, "input_values": batch["input_values"].half()}
    assert torch.equal(codec.encode(**batch).audio_codes, expected)
    assert codec.encode(**half).audio_codes.shape == expected.shape
    assert not codec.training
    assert codec.dtype == torch.float32


def test_copies_and_pickles_encode_alike(tiny, batch):
    expected = tiny.encode(**batch).audio_codes
    for other in (copy.deepcopy(tiny), pickle.loads(pickle.dumps(tiny))):  # noqa: S301 (its own)
        assert torch.equal(other.encode(**batch).audio_codes, expected)


def test_other_weights_are_encoded_with_at_once(tiny_tokenizer, batch):
    codec, other = (AudioVQModel.of(tiny_tokenizer("istft", "residual")) for _ in range(2))
    with torch.no_grad():
        other.audiovq.encoder.requires_grad_(False)
        for weight in other.audiovq.encoder.parameters():
            weight.mul_(1.5)
    before, used = codec.encode(**batch).audio_codes, codec.audio_tokenizer
    codec.load_state_dict(other.state_dict())
    assert codec.audio_tokenizer is not used
    assert torch.equal(codec.encode(**batch).audio_codes, other.encode(**batch).audio_codes)
    assert not torch.equal(before, codec.encode(**batch).audio_codes)


@pytest.mark.cuda
def test_it_computes_where_its_weights_are(shipped, export, batch, gpu):
    codec = AutoModel.from_pretrained(export(shipped))
    expected = codec.encode(**batch).audio_codes
    codec.to(gpu)
    output = codec(**{name: tensor.to(gpu) for name, tensor in batch.items()})
    assert output.audio_codes.device.type == output.audio_values.device.type == gpu
    assert torch.equal(output.audio_codes.cpu(), expected)
    assert torch.equal(codec.to("cpu").encode(**batch).audio_codes, expected)


class SpeakingConfig(PreTrainedConfig):
    model_type = "speaking"


class SpeakingModel(PreTrainedModel):
    """A model that holds a codec, as text-to-speech models do."""

    config_class = SpeakingConfig

    def __init__(self, config: SpeakingConfig):
        super().__init__(config)
        self.head = torch.nn.Linear(4, 4)
        self.codec = AutoModel.from_config(AudioVQConfig(model=config.codec))
        self.post_init()


def test_a_model_in_half_precision_that_holds_a_codec_keeps_its_codes(tiny, batch, tmp_path):
    speaking = SpeakingModel(SpeakingConfig(codec=tiny.config.model))
    speaking.codec.load_state_dict(tiny.state_dict())
    speaking.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = SpeakingModel.from_pretrained(tmp_path)
    assert loaded.head.weight.dtype == torch.bfloat16
    assert loaded.codec.dtype == torch.float32
    assert torch.equal(loaded.codec.encode(**batch).audio_codes, tiny.encode(**batch).audio_codes)


DAMAGE = {
    "a missing tensor": (lambda weights, name: weights.pop(name), "is missing"),
    "an unknown tensor": (lambda weights, name: weights.update(other=torch.zeros(1)), "is unknown"),
    "not finite": (lambda weights, name: weights[name].fill_(torch.nan), "is not finite"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_weights_of_something_else_are_refused(tiny, tmp_path, damage, message):
    tiny.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    damage(weights, next(name for name in weights if name.startswith("encoder")))
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"weights do not fit the config: .*{message}"):
        AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("change", [{"format_version": 2}, {"kind": "prior"}])
def test_configs_of_something_else_are_refused(change):
    with pytest.raises(CheckpointError, match="expected kind tokenizer and format_version 1"):
        AudioVQConfig(**change)


def test_a_model_without_codes_is_no_codec(tiny_config):
    with pytest.raises(CheckpointError, match="bottleneck 'none' has no codes"):
        AudioVQModel(AudioVQConfig(model=tiny_config("istft", "none").model_dump(mode="json")))


# --- ways to load it --------------------------------------------------------------------------------------------------


def test_processor_and_feature_extractor_load_without_a_question(tiny, export, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    folder = export(tiny_tokenizer("istft", "residual"))
    for auto in (AutoFeatureExtractor, AutoProcessor):
        extractor = auto.from_pretrained(folder)
        assert isinstance(extractor, AudioVQFeatureExtractor)
        assert (extractor.sampling_rate, extractor.hop_length) == (16000, 20)


def test_remote_code_is_the_code_that_is_installed(tiny, tmp_path, batch, monkeypatch):
    """As where nobody has imported `audiovq.interop.transformers`: all that it registered is taken away."""
    from transformers.models.auto import configuration_auto, feature_extraction_auto, modeling_auto

    for mapping in (
        configuration_auto.CONFIG_MAPPING,
        modeling_auto.MODEL_MAPPING,
        feature_extraction_auto.FEATURE_EXTRACTOR_MAPPING,
    ):
        monkeypatch.setattr(mapping, "_extra_content", {})
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setattr("transformers.dynamic_module_utils.TIME_OUT_REMOTE_CODE", 0)
    tiny.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoModel.from_pretrained(tmp_path / "model")
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "model", trust_remote_code=True)
    loaded = AutoModel.from_pretrained(tmp_path / "model", trust_remote_code=True)
    assert (type(extractor), type(loaded)) == (AudioVQFeatureExtractor, AudioVQModel)
    assert torch.equal(loaded.encode(**batch).audio_codes, tiny.encode(**batch).audio_codes)
    loaded.save_pretrained(tmp_path / "again")
    assert {path.name for path in (tmp_path / "again").iterdir()} == {
        path.name for path in (tmp_path / "model").iterdir()
    }


def test_it_goes_to_the_hub_and_comes_back(tiny, hub, batch, tmp_path):
    tiny.push_to_hub("somebody/codec")
    tiny.save_pretrained(tmp_path / "other", push_to_hub=True, repo_id="somebody/other")
    for name in ("somebody/codec", "somebody/other"):
        files = {"README.md", "config.json", "import_audiovq.py", "model.safetensors", "preprocessor_config.json"}
        assert set(hub[name]) == files
        loaded = AutoModel.from_pretrained(name, cache_dir=tmp_path / name)
        assert torch.equal(loaded.encode(**batch).audio_codes, tiny.encode(**batch).audio_codes)
        assert AutoFeatureExtractor.from_pretrained(name, cache_dir=tmp_path / name).hop_length == 20
        downloaded = AudioTokenizer.from_pretrained(name, "cpu")
        assert downloaded.weights_sha256 == tiny.audio_tokenizer.weights_sha256
