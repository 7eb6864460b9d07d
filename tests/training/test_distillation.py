"""Training under a teacher: what reaches what, features where the crops are, and releases that know nothing of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from audiovq.config import AugmentationConfig
from audiovq.data import features
from audiovq.data.crops import CropSampler
from audiovq.data.manifest import Utterance, read_manifest, write_manifest
from audiovq.data.teachers import Teacher
from audiovq.losses.distillation import cosine_distance
from audiovq.models.tokenizer import AudioTokenizer
from audiovq.training.autoencoder import AutoencoderTask, train_autoencoder
from audiovq.training.targets import TeacherTargets

RATE = 16000
BOTTLENECKS = {
    "vq": {"type": "vq", "codebook_size": 16, "code_dim": 4},
    "residual": {"type": "residual", "num_codebooks": 3, "codebook_size": 8, "code_dim": 4},
    "residual-plain": {"type": "residual", "num_codebooks": 3, "codebook_size": 8, "code_dim": None},
    "fsq": {"type": "fsq", "levels": [5, 4], "num_codebooks": 2},
    "fsq-residual": {"type": "fsq", "levels": [5, 4], "num_codebooks": 2, "structure": "residual"},
    "gumbel": {"type": "gumbel", "codebook_size": 16},
}


@pytest.fixture
def make_task(experiment, taught, tmp_path):
    """A task whose networks can be called, with sections changed."""

    def make(**sections) -> AutoencoderTask:
        config = experiment(**{**taught, **sections})
        train, valid = ({path: read_manifest(path)} for path in (config.data.train, config.data.valid))
        task = AutoencoderTask(config, train, valid, Accelerator(cpu=True), tmp_path)
        task.networks = task.modules
        return task

    return make


@pytest.mark.parametrize("bottleneck", BOTTLENECKS.values(), ids=BOTTLENECKS)
def test_the_distance_reaches_the_encoder_through_the_first_codebook_and_nothing_else(make_task, bottleneck):
    task = make_task(bottleneck=bottleneck)
    output = task.run(0, task.batch(0))
    output.terms["distill"].mean().backward()
    reached = {
        name
        for kind, module in task.modules.items()
        for name, parameter in module.named_parameters(kind)
        if parameter.grad is not None and parameter.grad.abs().max() > 0
    }
    assert {"teacher.weight", "teacher.bias"} <= reached
    assert {name for name, _ in task.model.encoder.named_parameters("model.encoder")} <= reached
    assert not [name for name in reached if name.startswith("model.decoder")]
    assert {name.split(".")[3] for name in reached if name.startswith("model.bottleneck.levels")} <= {"0"}


@pytest.mark.parametrize("bottleneck", BOTTLENECKS.values(), ids=BOTTLENECKS)
def test_what_is_compared_is_what_the_decoder_would_see_of_the_first_code(make_task, bottleneck):
    task = make_task(bottleneck=bottleneck)
    wave, true = task.batch(0)
    task.run(0, (wave, true))  # Places the codebooks.
    model = task.model.eval()
    output = model(wave)
    first = model.bottleneck.decode(output.bottleneck.codes[:, :1])
    seen = output.bottleneck.latents if output.bottleneck.first is None else output.bottleneck.first
    torch.testing.assert_close(seen, first, atol=1e-5, rtol=1e-5)


def test_the_straight_through_gradient_is_that_of_the_first_level_alone(make_task):
    task = make_task()
    task.run(0, task.batch(0))
    bottleneck = task.model.bottleneck.eval()
    z = torch.randn(2, 8, 5, requires_grad=True)
    weight = torch.randn(2, 8, 5)
    (found,) = torch.autograd.grad((bottleneck(z).first * weight).sum(), z)
    (expected,) = torch.autograd.grad((bottleneck.level(0)(z).latents * weight).sum(), z)
    assert expected.abs().min() > 0
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("distilled", ["first", "latents"])
def test_the_loss_holds_the_distance_of_what_the_config_names(make_task, taught, distilled):
    task = make_task(loss={**taught["loss"], "distilled": distilled}, training={"steps": 1, "freeze": ["decoder"]})
    heard = []
    task.modules["teacher"].register_forward_pre_hook(lambda _module, inputs: heard.append(inputs[0]))
    wave, true = task.batch(0)
    output = task.run(0, (wave, true))
    found = output.bottleneck.first if distilled == "first" else output.bottleneck.latents
    assert torch.equal(heard[0], found.mT)
    distance = cosine_distance(task.modules["teacher"](found.mT), true)
    torch.testing.assert_close(output.terms["distill"], distance)
    torch.testing.assert_close(task.config.loss.of_network(output.terms), 2.0 * distance)


def lines_of(folder, part: str) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["part"] == part]


def test_the_distance_falls_and_the_release_knows_nothing_of_it(experiment, taught, tmp_path):
    options = {"steps": 60, "warmup_steps": 5, "learning_rate": 5e-3, "valid_every": 60, "averaging_decay": 0.5}
    config = experiment(**taught, training=options)
    train_autoencoder(config, tmp_path / "run", "cpu")
    distances = [line["distill"] for line in lines_of(tmp_path / "run", "train")]
    assert np.mean(distances[-5:]) < 0.6 * np.mean(distances[:5])
    assert "distill" not in lines_of(tmp_path / "run", "valid")[-1]
    state = load_file(tmp_path / "run/state.safetensors")
    assert state["teacher/weight"].shape == (2, 8)
    released = load_file(tmp_path / "run/release/model.safetensors")
    assert {f"model/{name}" for name in released} == {name for name in state if name.startswith("model/")}
    assert not [name for name in state if name.startswith("average/teacher")]
    (tmp_path / "run/release").rename(tmp_path / "alone")
    assert AudioTokenizer.from_pretrained(tmp_path / "alone", "cpu").num_codebooks == 3


def test_a_teacher_changes_no_first_weight_and_no_crop(make_task):
    plain = make_task(data={}, loss={"fft_sizes": [128]})
    other = make_task()
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], tensor), name
    assert torch.equal(plain.batch(3)[0], other.batch(3)[0])


def test_a_teacher_teaches_beside_discriminators(experiment, taught, tmp_path):
    small = {"discriminator": {"resolutions": [128], "channels": [4]}, "start_step": 2}
    train_autoencoder(experiment(**taught, adversarial=small), tmp_path / "run", "cpu")
    assert all(0 < line["distill"] < 2 for line in lines_of(tmp_path / "run", "train"))


# --- features of crops ---------------------------------------------------------------------------------------


class Clock(Teacher):
    """Reads the time in the middle of each frame off samples that say it, and how far it is from 2 s."""

    source = "clock"

    def __init__(self, rate: float):
        self.rate, self.first = rate, 0.5 / rate

    def hear(self, wave):
        hop = round(RATE / self.rate)
        time = 10 * wave[hop // 2 :: hop]
        return np.stack([time, np.abs(time - 2)], 1)


@pytest.fixture
def clocks(tmp_path, monkeypatch, taught):
    """Targets for frames of 20 ms and their sampler, of two recordings that tell the time, and of a short one."""

    def make(rate: float, speeds: list[float]) -> tuple[TeacherTargets, CropSampler]:
        train = {}
        for manifest, names in (("a", {"one": 4.0, "two": 3.0}), ("b", {"short": 0.1, "three": 5.0})):
            utterances = []
            for name, seconds in names.items():
                samples = (np.arange(round(seconds * RATE)) / RATE / 10).astype(np.float32)
                soundfile.write(tmp_path / f"{name}.wav", samples, RATE, "FLOAT")
                utterances.append(Utterance(name, tmp_path / f"{name}.wav", seconds, RATE, len(samples)))
            write_manifest(tmp_path / f"{manifest}.jsonl", utterances)
            train[tmp_path / f"{manifest}.jsonl"] = utterances
        monkeypatch.setattr(features, "load_teacher", lambda *_: Clock(rate))
        listed = [utterance for part in train.values() for utterance in part]
        augmentation = AugmentationConfig(speeds=speeds)
        sampler = CropSampler(listed, RATE, 16000, 16, 0, [1.0] * 4, augmentation)
        return TeacherTargets(320, sampler, train, taught["data"]["teacher"], torch.device("cpu")), sampler

    return make


@pytest.mark.parametrize("rate", [50.0, 100.0, 25.0])
@pytest.mark.parametrize("speeds", [[1.0], [0.9, 1.1]])
def test_features_are_those_of_the_time_that_a_crop_s_own_samples_tell(clocks, rate, speeds):
    targets, sampler = clocks(rate, speeds)
    assert targets.dim == 2
    told = 0
    for index in range(4):
        crops = sampler.batch(index)
        found = targets.of(crops).numpy() * targets._scale + targets._mean
        for item, number in enumerate(crops.numbers):
            if sampler.utterances[number].id != "short":
                middle = slice(2, 48)  # Resampling rings at the ends.
                time = 10 * crops.wave[item, 0, 160::320].numpy()
                np.testing.assert_allclose(found[item, middle, 0], time[middle], atol=0.012)
                told += 1
    assert told > 20


def test_frames_after_the_end_of_an_utterance_are_not_taught(clocks):
    targets, sampler = clocks(50.0, [1.0])
    crops = sampler.batch(0)
    found = targets.of(crops)
    short = [item for item, number in enumerate(crops.numbers) if sampler.utterances[number].id == "short"]
    assert short
    for item in range(len(found)):
        assert found[item].any(-1).tolist() == ([True] * 5 + [False] * 45 if item in short else [True] * 50)


def test_each_dimension_has_mean_0_and_variance_1_over_speech(make_task):
    targets = make_task().teacher
    every = np.concatenate([targets._features.of(number) for number in range(len(targets._features.frames))])
    normal = (every.astype(float) - targets._mean) / targets._scale
    np.testing.assert_allclose(normal.mean(0), 0, atol=1e-2)
    np.testing.assert_allclose(normal.std(0), 1, atol=1e-2)
