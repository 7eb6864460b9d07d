"""Configs: overrides, and errors that name the key and say what it should have been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from audiovq.config import (
    AutoencoderConfig,
    ExperimentConfig,
    NoBottleneckConfig,
    PriorConfig,
    PriorExperimentConfig,
    VQConfig,
    load_config,
    parse_config,
)
from audiovq.errors import ConfigError

EXPERIMENT: dict[str, Any] = {
    "sample_rate": 16000,
    "latent_dim": 16,
    "encoder": {"channels": [4, 8, 16], "strides": [4, 5], "dilations": [[], [1], [1, 3]]},
    "bottleneck": {"type": "vq", "codebook_size": 64, "code_dim": 4, "beta": 0.5},
    "decoder": {"type": "transposed", "channels": [16, 8, 4], "dilations": [[1], [1], []], "kernel_size": 5},
    "loss": {"mel": 2.0},
    "data": {"train": "train.jsonl", "valid": "dev.jsonl"},
    "training": {"steps": 100},
}


@pytest.fixture
def load(tmp_path):
    """Writes a config (plain data, or text) and reads it with overrides."""

    def write_and_load(*overrides: str, data: Any = EXPERIMENT, schema: Any = ExperimentConfig) -> Any:
        path = tmp_path / "conf.yaml"
        path.write_text(data if isinstance(data, str) else yaml.safe_dump(data), encoding="utf-8")
        return load_config(path, overrides, schema)

    return write_and_load


def message_of(call, *args, **settings) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*args, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(key: str, value: Any) -> dict[str, Any]:
    """The experiment with one more or another setting; `key` has dots."""
    data = yaml.safe_load(yaml.safe_dump(EXPERIMENT))
    *parents, last = key.split(".")
    section = data
    for parent in parents:
        section = section[parent]
    section[last] = value
    return data


# --- values --------------------------------------------------------------------------------------------------


def test_settings_are_read_and_the_rest_has_defaults(load):
    config = load()
    assert config.bottleneck == VQConfig(codebook_size=64, code_dim=4, beta=0.5)
    assert config.hop_length == 20
    assert config.frame_rate == 800
    assert config.loss.mel == 2.0
    assert config.loss.stft == 1.0
    assert config.data.train == Path("train.jsonl")


@pytest.mark.parametrize(
    "overrides", [[], ["data.train=[a.jsonl, /b/c.jsonl]", "data.shares=[1, 2]", "data.valid=[d]"]]
)
def test_a_config_survives_being_written_and_read(load, overrides):
    config = load(*overrides)
    assert load(data=config.model_dump(mode="json")) == config


def test_the_model_part_is_all_that_a_release_needs(load):
    config = load()
    part = config.model_part()
    assert type(part) is AutoencoderConfig
    assert parse_config(part.model_dump(mode="json"), AutoencoderConfig, "config.json") == part
    assert {name: getattr(config, name) for name in AutoencoderConfig.model_fields} == dict(part)


@pytest.mark.parametrize("name", ["train", "valid"])
def test_a_manifest_is_named_once(load, name):
    message = message_of(load, f"data.{name}=[a.jsonl, b.jsonl, a.jsonl]")
    assert f"data: {name}: a.jsonl occurs twice; name it once" in message


def test_a_config_cannot_be_changed_by_accident(load):
    with pytest.raises(ValueError, match="frozen"):
        load().training.steps = 3


# --- overrides -----------------------------------------------------------------------------------------------


def test_overrides_have_the_types_of_yaml(load):
    config = load(
        "training.steps=7",
        "training.learning_rate=1e-4",
        "training.averaging_decay=null",
        "bottleneck.normalize=false",
        "encoder.dilations=[[1], [1], [9]]",
        "data.train=/some/where/a=b.jsonl",
        "loss.fft_sizes=[64]",
    )
    assert config.training.steps == 7
    assert config.training.learning_rate == 1e-4
    assert config.training.averaging_decay is None
    assert config.bottleneck.normalize is False
    assert config.encoder.dilations == [[1], [1], [9]]
    assert config.data.train == Path("/some/where/a=b.jsonl")
    assert config.loss.fft_sizes == [64]


def test_the_last_override_counts(load):
    assert load("training.steps=7", "training.steps=8").training.steps == 8


def test_an_override_may_name_a_section_that_the_file_leaves_out(load):
    data = {name: value for name, value in EXPERIMENT.items() if name != "loss"}
    assert load("loss.l1=0.5", data=data).loss.l1 == 0.5


def test_another_type_keeps_shared_settings_and_drops_the_others(load):
    config = load("decoder.type=istft", "bottleneck.type=none")
    assert config.decoder.type == "istft"
    assert config.decoder.kernel_size == 5
    assert config.decoder.dim == 384
    assert config.bottleneck == NoBottleneckConfig()


def test_the_same_type_keeps_every_setting(load):
    assert load("bottleneck.type=vq").bottleneck.codebook_size == 64


def test_settings_may_follow_a_change_of_type(load):
    assert load("decoder.type=istft", "decoder.dim=24").decoder.dim == 24


TEACHER = ("loss.distill=1", "data.teacher=whisper")


def test_a_teacher_and_its_weight_go_together_and_reach_codes_that_learn(load):
    assert load(*TEACHER).loss.distilled == "first"
    gaussian = ("bottleneck.type=gaussian", "loss.distilled=latents")
    assert load(*TEACHER, *gaussian).data.teacher == "whisper"
    assert load(*TEACHER, "training.freeze=[encoder, decoder]").loss.distill == 1
    for overrides, expected in (
        (TEACHER[:1], "data.teacher: is required; a teacher and its weight go together"),
        (TEACHER[1:], "loss.distill: needs a weight above 0; a teacher and its weight go together"),
        ((*TEACHER, gaussian[0]), "loss.distilled: bottleneck.type gaussian has no codes; set distilled: latents"),
        (
            (*TEACHER, "bottleneck.type=reinforce"),
            "loss.distill: bottleneck.type reinforce passes the encoder no gradient; set distill: 0",
        ),
        (
            (*TEACHER, "training.freeze=[bottleneck, encoder]", "training.init_from=release"),
            "loss.distill: encoder and bottleneck are frozen and learn nothing; set distill: 0",
        ),
        ((*TEACHER, "loss.distilled=second"), "loss.distilled: Input should be 'first' or 'latents', found 'second'"),
    ):
        assert message_of(load, *overrides).endswith(f"conf.yaml: {expected}")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.steps", "override 'training.steps': expected key.subkey=value"),
        ("=3", "expected key.subkey=value"),
        ("training.steps.more=3", "training.steps is a value, not a section"),
        ("encoder.strides.0=3", "encoder.strides is a value, not a section"),
        ("training.steps=[", "the value is not valid YAML"),
        ("training.step=3", "training.step: unknown key; did you mean 'steps'?"),
        ("bottleneck.type=vqq", "vqq"),
    ],
)
def test_overrides_that_cannot_be_applied(load, override, expected):
    assert expected in message_of(load, override)


# --- mistakes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("sample_rat", 1, "sample_rat: unknown key; did you mean 'sample_rate'?"),
        ("encoder.stride", [1], "encoder.stride: unknown key; did you mean 'strides'?"),
        ("bottleneck.codebok_size", 8, "bottleneck.codebok_size: unknown key; did you mean 'codebook_size'?"),
        ("decoder.chanels", [1], "decoder.chanels: unknown key; did you mean 'channels'?"),
        ("decoder.xyzzy", 1, "decoder.xyzzy: unknown key; known are type, channels, dilations, kernel_size"),
        ("training.steps", 0, "training.steps: Input should be greater than 0, found 0"),
        ("training.steps", True, "training.steps: Input should be a number, found True"),
        ("training.learning_rate", True, "training.learning_rate: Input should be a number, found True"),
        ("training.averaging_decay", False, "training.averaging_decay: Input should be a number, found False"),
        ("training.betas", [0.8, True], "training.betas: Input should be a number, found [0.8, True]"),
        ("encoder.channels", [4, True, 8], "encoder.channels: Input should be a number, found [4, True, 8]"),
        (
            "decoder.dilations",
            [[True], [1], []],
            "decoder.dilations: Input should be a number, found [[True], [1], []]",
        ),
        ("training.steps", "many", "training.steps: Input should be a valid integer"),
        ("training.precision", "fp16", "training.precision: Input should be 'fp32' or 'bf16', found 'fp16'"),
        ("training.learning_rate", float("nan"), "training.learning_rate: "),
        ("bottleneck.codebook_size", 65537, "bottleneck.codebook_size: Input should be less than or equal to 65536"),
        ("bottleneck.codebook_size", 1, "bottleneck.codebook_size: Input should be greater than or equal to 2"),
        ("bottleneck.decay", 1.0, "bottleneck.decay: Input should be less than 1"),
        ("bottleneck.beta", -1, "bottleneck.beta: Input should be greater than or equal to 0"),
        ("loss.mel", float("inf"), "loss.mel: Input should be a finite number"),
        ("loss.fft_sizes", [], "loss.fft_sizes: List should have at least 1 item"),
        ("encoder.channels", [4, 8], "encoder: 2 strides need 3 channels and 3 lists of dilations, found 2 and 3"),
        ("decoder.channels", [4, 8], "decoder: 2 strides need 3 channels and 3 lists of dilations, found 2 and 3"),
        ("decoder", {"type": "istft", "subframes": 3}, "decoder.subframes: 3 does not divide the hop length 20"),
        ("training", None, "training: "),
        (
            "data.augmentation",
            {"gain": [4, -10]},
            "data.augmentation: gain: expected the lowest before the highest, found [4.0, -10.0]",
        ),
    ],
)
def test_a_mistake_names_its_file_and_key(load, tmp_path, key, value, expected):
    message = message_of(load, data=changed(key, value))
    assert message.startswith(f"{tmp_path / 'conf.yaml'}: ")
    assert expected in message


@pytest.mark.parametrize(
    ("sizes", "key"), [("1", "bottleneck.codebook_size"), ("[16, 1, 16, 16]", "bottleneck.codebook_size.1")]
)
def test_what_may_be_of_several_kinds_is_named_as_in_the_file(load, sizes, key):
    message = message_of(load, "bottleneck.type=residual", f"bottleneck.codebook_size={sizes}")
    assert f"{key}: Input should be greater than or equal to 2, found 1" in message
    assert "constrained-int" not in message


WAVENET = ("decoder.type=wavenet", "loss.mu_law=1", "loss.mel=0", "loss.stft=0")


def test_a_wavenet_decoder_is_trained_by_mu_law_alone(load):
    config = load(*WAVENET)
    assert (config.decoder.type, config.decoder.layers) == ("wavenet", 30)
    assert config.speakers == []
    assert load(*WAVENET, "decoder.speaker_dim=4", "decoder.speakers=[b, a]").speakers == ["b", "a"]
    for overrides, zeros in (
        (WAVENET[:1], ", mel: 0, stft: 0"),
        (WAVENET[:3], ", stft: 0"),
        (WAVENET[::3], ", mel: 0"),
    ):
        message = message_of(load, *overrides)
        assert message.endswith(
            f"conf.yaml: loss: decoder.type wavenet is trained by mu_law alone; set mu_law: 1{zeros}"
        )


def test_other_decoders_are_not_trained_by_mu_law(load):
    expected = "loss.mu_law: is for decoder.type wavenet, found transposed; set mu_law: 0"
    assert message_of(load, "loss.mu_law=1").endswith(expected)
    assert "at least one of l1, l2, mel, stft, compressed and mu_law" in message_of(load, "loss.mel=0", "loss.stft=0")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("decoder.speakers=[a]", "decoder: speakers need a speaker_dim of at least 1, found 0"),
        ("decoder.jitter=0.6", "decoder.jitter: Input should be less than or equal to 0.5"),
        ("decoder.speaker_dim=-1", "decoder.speaker_dim: Input should be greater than or equal to 0"),
        ("decoder.speaker=[a]", "decoder.speaker: unknown key; did you mean 'speakers'?"),
    ],
)
def test_mistakes_in_a_wavenet_decoder(load, override, expected):
    assert expected in message_of(load, *WAVENET, override)


def test_a_speaker_is_listed_once(load):
    message = message_of(load, *WAVENET, "decoder.speaker_dim=4", "decoder.speakers=[a, b, a]")
    assert "decoder: speakers: a name occurs twice" in message


PRIOR: dict[str, Any] = {"tokens": "codes", "speaker_dim": 8, "training": {"steps": 100}}


def test_a_prior_s_model_part_is_all_that_a_release_needs(load):
    config = load("speakers=[a, b]", "pattern=flatten", data=PRIOR, schema=PriorExperimentConfig)
    part = config.model_part()
    assert type(part) is PriorConfig
    assert (part.speakers, part.pattern, part.receptive_field) == (["a", "b"], "flatten", 1 + 2 * 1023)
    assert parse_config(part.model_dump(mode="json"), PriorConfig, "config.json") == part


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("pattern=diagonal", "pattern: Input should be 'delay' or 'flatten'"),
        ("speaker_dropout=1", "speaker_dropout: Input should be less than 1"),
        ("speaker_dim=0 speaker_dropout=0.1", "speaker_dropout needs a speaker_dim of at least 1, found 0"),
        ("speaker_dim=0 speakers=[a]", "speakers need a speaker_dim of at least 1, found 0"),
        ("valid_share=0", "valid_share: Input should be greater than 0"),
        ("codes.codebook_size=1", "codes.codebook_size: Input should be greater than or equal to 2"),
        ("codes.codebook_sizes=[8,1]", "codes.codebook_sizes.1: Input should be greater than or equal to 2"),
        ("crop_seconds=1", "crop_seconds: unknown key"),
    ],
)
def test_mistakes_in_a_prior(load, override, expected):
    assert expected in message_of(load, *override.split(), data=PRIOR, schema=PriorExperimentConfig)


def test_what_is_missing_is_named(load):
    data = {name: value for name, value in EXPERIMENT.items() if name != "encoder"}
    assert "encoder: is required" in message_of(load, data=data)
    assert "data.valid: is required" in message_of(load, data=changed("data", {"train": "a"}))


def test_all_mistakes_are_told_at_once(load):
    message = message_of(load, "training.steps=-1", "loss.mell=1")
    assert "training.steps: " in message
    assert "loss.mell: unknown key; did you mean 'mel'?" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected a mapping of settings, found NoneType"),
        ("- 1\n- 2\n", "found list"),
        ("just words", "found str"),
        ("a: [1,\nb: 2\n", "is not valid YAML: "),
        ("a: \t1\n\tb: 2", "is not valid YAML: "),
        ("!!python/object/apply:os.getcwd []", "is not valid YAML: "),
    ],
)
def test_files_that_are_no_settings(load, text, expected):
    assert expected in message_of(load, data=text)


def test_files_that_cannot_be_read(tmp_path):
    assert "nowhere.yaml: cannot be read (No such file" in message_of(load_config, tmp_path / "nowhere.yaml")
    assert "cannot be read (Is a directory)" in message_of(load_config, tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "binary.yaml: " in message_of(load_config, tmp_path / "binary.yaml")
    (tmp_path / "control.yaml").write_bytes(b"a: \x00")
    assert "control.yaml: " in message_of(load_config, tmp_path / "control.yaml")
