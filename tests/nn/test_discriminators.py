"""Discriminators against the same networks written another way, and whether they learn to hear a difference."""

from __future__ import annotations

import librosa
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

from audiovq.audio import load_audio
from audiovq.config import AdversarialConfig, DiscriminatorConfig
from audiovq.losses.adversarial import discriminator_loss, feature_matching_loss, generator_loss
from audiovq.nn.discriminators import SLOPE, Discriminators, PeriodDiscriminator, STFTDiscriminator


def normalised(layer: nn.Module) -> Tensor:
    """The weight g v / ||v|| of a layer with weight normalisation (Salimans and Kingma, 2016)."""
    size, direction = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    return size * direction / direction.flatten(1).norm(dim=1)[:, None, None, None]


def test_the_spectrograms_are_those_of_librosa(mini_speech):
    judge, seen = STFTDiscriminator(256, [4]), []
    judge.stack.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    wave = mini_speech[None, :, 4000:9000]
    judge(wave)
    spectrum = librosa.stft(
        wave[0, 0].double().numpy(), n_fft=256, hop_length=64, window="hann", center=True, pad_mode="constant"
    )
    window = np.hanning(257)[:-1]
    expected = np.stack([spectrum.real.T, spectrum.imag.T]) / np.sqrt((window**2).sum())
    np.testing.assert_allclose(seen[0][0], expected, atol=1e-5)


def test_noise_is_equally_loud_at_every_resolution():
    noise, levels = torch.randn(1, 1, 160000), []
    for size in (1024, 256, 64):
        judge = STFTDiscriminator(size, [1])
        judge.stack.register_forward_pre_hook(lambda _module, inputs: levels.append(inputs[0].square().sum(1).mean()))
        judge(noise)
    torch.testing.assert_close(torch.stack(levels), torch.ones(3), atol=0.02, rtol=0)


def test_layers_dilate_in_time_and_stride_in_frequency():
    judge = STFTDiscriminator(64, [3, 4, 5, 6])
    scores, features = judge(torch.randn(2, 1, 1600))
    x = functional.leaky_relu(features[0], 1.0)
    for layer, dilation, found in zip(judge.stack.layers[1:], (1, 2, 4), features[1:], strict=True):
        x = functional.pad(x, (4, 4, dilation, dilation))
        x = functional.conv2d(x, normalised(layer), layer.bias, stride=(1, 2), dilation=(dilation, 1))
        x = torch.where(x > 0, x, SLOPE * x)
        torch.testing.assert_close(found, x)
    assert [tuple(feature.shape) for feature in features] == [
        (2, 3, 101, 17),
        (2, 4, 101, 9),
        (2, 5, 101, 5),
        (2, 6, 101, 3),
    ]
    assert scores.shape == (2, 101, 3)


def test_each_place_within_a_period_is_judged_as_a_signal_of_its_own():
    judge = PeriodDiscriminator(5, [3, 4, 2])
    wave = torch.randn(2, 1, 998)
    scores, features = judge(wave)
    padded = torch.cat([wave, torch.zeros(2, 1, 2)], -1)
    for place in range(5):
        x = padded[:, :, place::5]
        for layer, stride, found in zip(judge.stack.layers, (3, 3, 1), features, strict=True):
            x = functional.conv1d(x, normalised(layer)[..., 0], layer.bias, stride=stride, padding=2)
            x = torch.where(x > 0, x, SLOPE * x)
            torch.testing.assert_close(found[..., place], x)
        x = functional.conv1d(x, normalised(judge.stack.score)[..., 0], judge.stack.score.bias, padding=1)
        torch.testing.assert_close(scores[..., place], x[:, 0])


def test_a_config_asks_for_its_discriminators():
    config = DiscriminatorConfig(resolutions=[64, 32], periods=[2, 3, 5], channels=[2, 3])
    judgements = Discriminators(config)(torch.randn(4, 1, 300))
    assert [scores.shape[-1] for scores, _ in judgements] == [9, 5, 2, 3, 5]
    assert all(len(scores) == 4 for scores, _ in judgements)
    assert [[feature.shape[1] for feature in features] for _, features in judgements] == [[2, 3]] * 5


def test_a_config_without_discriminators_is_refused():
    with pytest.raises(ValidationError, match="at least one of resolutions and periods"):
        DiscriminatorConfig(resolutions=[])
    with pytest.raises(ValidationError, match="multiple of 4"):
        DiscriminatorConfig(resolutions=[130])
    assert len(Discriminators(AdversarialConfig().discriminator).members) == 3


def test_losses_stay_in_float32_under_autocast(mini_speech):
    judges = Discriminators(DiscriminatorConfig(resolutions=[64], periods=[3], channels=[2, 3]))
    with torch.autocast("cpu", torch.bfloat16):
        scores, features = zip(*judges(mini_speech[None, :, :4000]), strict=True)
        assert features[0][0].dtype == torch.bfloat16
        losses = [discriminator_loss(scores, scores), generator_loss(scores), feature_matching_loss(features, features)]
    assert {loss.dtype for loss in losses} == {torch.float32}


@pytest.mark.parametrize("settings", [{}, {"resolutions": [], "periods": [2, 7]}], ids=["stft", "period"])
def test_waves_of_one_sample_are_judged(settings):
    for scores, _ in Discriminators(DiscriminatorConfig(**settings))(torch.ones(2, 1, 1)):
        assert scores.isfinite().all()


@pytest.mark.parametrize(
    ("judge", "stretch"),
    [
        # 1 + 2 (1 + 1 + 2 + 4 + 1) frames, 16 samples apart, of 64 samples each.
        (STFTDiscriminator(64, [3, 4, 5, 6]), 18 * 16 + 64),
        # Rows of the layers' inputs, from the last layer to the first: 3, 7, 23, 71 and 215, of 5 samples each.
        (PeriodDiscriminator(5, [3, 4, 5, 6]), 215 * 5),
    ],
    ids=["stft", "period"],
)
def test_a_score_depends_on_a_bounded_stretch_of_the_wave(judge, stretch):
    wave = torch.randn(1, 1, 8000, requires_grad=True)
    score = judge(wave)[0]
    score[0, score.shape[1] // 2].sum().backward()
    seen = wave.grad[0, 0].nonzero().flatten()
    assert stretch // 2 < seen.max() - seen.min() + 1 <= stretch


# --- who learns from which loss ---------------------------------------------------------------------------------------


@pytest.fixture
def players() -> tuple[nn.Module, Discriminators]:
    """A network that makes waves, and its judges."""
    config = DiscriminatorConfig(resolutions=[32], periods=[3], channels=[2, 3])
    return nn.Conv1d(1, 1, 9, padding=4), Discriminators(config)


def gradients(module: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in module.parameters() if parameter.grad is not None]


def test_the_discriminators_loss_teaches_the_discriminators_alone(players, mini_speech):
    generator, judges = players
    x = mini_speech[None, :, 4000:6000]
    true, decoded = judges(x), judges(generator(x).detach())
    discriminator_loss([scores for scores, _ in true], [scores for scores, _ in decoded]).backward()
    assert gradients(generator) == []
    assert len(gradients(judges)) == len(list(judges.parameters()))
    assert any(gradient.any() for gradient in gradients(judges))


def test_the_generators_losses_teach_the_generator_alone(players, mini_speech):
    generator, judges = players
    x = mini_speech[None, :, 4000:6000]
    judges.requires_grad_(False)
    true, decoded = judges(x), judges(generator(x))
    loss = generator_loss([scores for scores, _ in decoded])
    loss = loss + feature_matching_loss([features for _, features in true], [features for _, features in decoded])
    loss.backward()
    assert gradients(judges) == []
    assert all(gradient.any() for gradient in gradients(generator))


# --- what they learn --------------------------------------------------------------------------------------------------


def noise_vocoded(wave: Tensor) -> Tensor:
    """Noise with the wave's energy in bands of 250 Hz: [..., T]."""
    options = {"n_fft": 512, "hop_length": 128, "window": torch.hann_window(512)}
    spectrum, noise = (torch.stft(x, **options, return_complex=True) for x in (wave, torch.randn_like(wave)))
    bands = functional.avg_pool2d(spectrum.abs().square()[:, None].mT, (1, 9), (1, 1), (0, 4))[:, 0].mT
    noise = noise / noise.abs().square().mean().sqrt()
    return torch.istft(noise * bands.sqrt(), **options, length=wave.shape[-1])


@pytest.fixture(scope="module")
def pieces(speech_folder) -> dict[str, Tensor]:
    """Pieces that are not silent, of two voices and, longer ones, of a third: [N, 2, T], true and vocoded."""
    torch.manual_seed(0)
    found = {}
    for name, size, speakers in (("train", 4000, ("allison", "carlo")), ("test", 8000, ("june",))):
        paths = [path for speaker in speakers for path in sorted((speech_folder / speaker).glob("*.ogg"))[:12]]
        waves = torch.cat([load_audio(path, 16000)[0] for path in paths], -1)
        true = waves[0, : waves.shape[-1] // size * size].view(-1, size)
        pairs = torch.stack([true, noise_vocoded(true)], 1)
        found[name] = pairs[true.square().mean(-1).sqrt() > 0.02]
    return found


@pytest.mark.parametrize(
    "settings",
    [{"resolutions": [512], "channels": [8, 8, 16, 16]}, {"resolutions": [], "periods": [2, 3]}],
    ids=["stft", "period"],
)
def test_they_learn_to_tell_speech_from_noise_with_its_envelope(settings, pieces):
    judges = Discriminators(DiscriminatorConfig(**settings))
    steps = 150
    optimizer = torch.optim.AdamW(judges.parameters(), 3e-3, betas=(0.8, 0.99))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, steps)
    for _ in range(steps):
        true, vocoded = pieces["train"][torch.randint(len(pieces["train"]), (8,))].unsqueeze(2).unbind(1)
        both = [scores for scores, _ in judges(torch.cat([true, vocoded]))]
        optimizer.zero_grad()
        discriminator_loss([scores[:8] for scores in both], [scores[8:] for scores in both]).backward()
        optimizer.step()
        schedule.step()

    @torch.no_grad()
    def verdicts(waves: Tensor) -> Tensor:
        return torch.stack([scores.mean((1, 2)) for scores, _ in judges(waves[:, None])]).mean(0)

    true, vocoded = pieces["test"].unbind(1)
    right = torch.cat([verdicts(true) > 0, verdicts(vocoded) < 0]).float().mean()
    assert len(true) > 50
    assert right > 0.9
