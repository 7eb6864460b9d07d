"""Reconstruction losses against NumPy and librosa."""

from __future__ import annotations

import librosa
import numpy as np
import pytest
import torch
from torch import Tensor

from audiovq.config import LossConfig
from audiovq.losses.reconstruction import FLOOR, Magnitude, MuLawLoss, ReconstructionLoss, SpectralDistance, build_loss

TERMS = ["l1", "l2", "mel", "stft", "compressed"]
ZERO = dict.fromkeys(TERMS, 0)


def one(term: str, weight: float = 1.0, **settings) -> ReconstructionLoss:
    """A loss of a single term."""
    return ReconstructionLoss(LossConfig(**{**ZERO, term: weight, **settings}), sample_rate=16000)


@pytest.fixture
def pair(mini_speech) -> tuple[Tensor, Tensor]:
    """A distorted copy and its original, three items [3, 1, 8000]."""
    x = torch.stack([mini_speech[:, start : start + 8000] for start in (4000, 9000, 20000)])
    return (0.7 * x + 0.01 * torch.randn_like(x)).contiguous(), x


def magnitude(x: Tensor, size: int) -> np.ndarray:
    spectrum = librosa.stft(x[0].double().numpy(), n_fft=size, hop_length=size // 4, window="hann", pad_mode="constant")
    return np.maximum(np.abs(spectrum), FLOOR)


def log_distance(a: np.ndarray, b: np.ndarray) -> float:
    return np.abs(np.log(np.maximum(a, FLOOR)) - np.log(np.maximum(b, FLOOR))).mean()


def reference(term: str, y: Tensor, x: Tensor, size: int) -> float:
    if term == "l1":
        return float(np.abs(y.numpy() - x.numpy()).mean())
    if term == "l2":
        return float(((y.numpy() - x.numpy()) ** 2).mean())
    ys, xs = magnitude(y, size), magnitude(x, size)
    if term == "stft":
        return np.linalg.norm(ys - xs) / np.linalg.norm(xs) + log_distance(ys, xs)
    mel = librosa.filters.mel(sr=16000, n_fft=size, n_mels=size // 16)
    if term == "compressed":
        y_loud, x_loud = (np.maximum(mel @ magnitudes, FLOOR) ** 0.3 for magnitudes in (ys, xs))
        return np.abs(y_loud - x_loud).mean() / x_loud.mean()
    return log_distance(mel @ ys, mel @ xs)


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("size", [128, 1024])
def test_each_term_is_that_of_a_numpy_reference(term, size, pair):
    y, x = pair
    found, logged = one(term, fft_sizes=[size])(y, x)
    expected = [reference(term, y[i], x[i], size) for i in range(3)]
    np.testing.assert_allclose(found, expected, rtol=2e-3)
    assert logged.keys() == {term}
    assert float(logged[term]) == pytest.approx(np.mean(expected), rel=2e-3)


@pytest.mark.parametrize("term", ["mel", "stft", "compressed"])
def test_spectral_terms_are_averaged_over_the_fft_sizes(term, pair):
    single = [one(term, fft_sizes=[size])(*pair)[0] for size in (256, 512)]
    torch.testing.assert_close(one(term, fft_sizes=[256, 512])(*pair)[0], (single[0] + single[1]) / 2)


def test_the_total_is_the_weighted_sum_and_the_log_is_unweighted(pair):
    weights = {"l1": 3.0, "l2": 5.0, "mel": 0.5, "stft": 2.0, "compressed": 4.0}
    total, logged = ReconstructionLoss(LossConfig(**weights), 16000)(*pair)
    singles = {term: one(term)(*pair)[0] for term in TERMS}
    torch.testing.assert_close(total, sum(weights[term] * singles[term] for term in TERMS))
    for term in TERMS:
        torch.testing.assert_close(logged[term], singles[term].mean())
        assert not logged[term].requires_grad


@pytest.mark.parametrize("term", TERMS)
def test_a_perfect_reconstruction_costs_nothing(term, pair):
    assert one(term)(pair[1], pair[1])[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("term", TERMS)
def test_an_item_costs_the_same_alone_and_in_a_batch(term, pair):
    y, x = pair
    alone = torch.cat([one(term)(y[i : i + 1], x[i : i + 1])[0] for i in range(3)])
    torch.testing.assert_close(one(term)(y, x)[0], alone)


@pytest.mark.parametrize("silent", ["reconstruction", "reference", "both", "one sample"])
def test_gradients_stay_finite_on_silence(silent):
    length = 1 if silent == "one sample" else 4000
    y, x = 0.1 * torch.randn(2, 1, length), 0.1 * torch.randn(2, 1, length)
    y = torch.zeros_like(y) if silent in {"reconstruction", "both"} else y
    x = torch.zeros_like(x) if silent in {"reference", "both"} else x
    y.requires_grad_()
    total, _ = ReconstructionLoss(LossConfig(l1=1, l2=1, compressed=1), 16000)(y, x)
    total.sum().backward()
    assert total.isfinite().all()
    assert y.grad.isfinite().all()


@pytest.mark.parametrize("term", TERMS)
def test_every_term_pulls_towards_the_reference(term, pair):
    y, x = pair[0].clone().requires_grad_(), pair[1]
    loss = one(term)
    before = loss(y, x)[0].sum()
    (gradient,) = torch.autograd.grad(before, y)
    step = 1e-3 * y.detach().norm() * gradient / gradient.norm()
    assert loss(y.detach() - step, x)[0].sum() < before


@pytest.mark.parametrize("size", [16, 17, 2])
def test_the_slopes_of_magnitudes_are_those_of_finite_differences(size):
    pieces = torch.randn(2, 3, size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Magnitude.apply, pieces)


def test_magnitudes_below_the_floor_have_no_slope():
    quiet = (0.01 * FLOOR * torch.randn(3, 16)).requires_grad_()
    magnitude = Magnitude.apply(quiet)
    assert torch.equal(magnitude, torch.full((3, 9), FLOOR))
    magnitude.sum().backward()
    assert torch.equal(quiet.grad, torch.zeros(3, 16))


def test_terms_of_weight_zero_are_not_computed(pair, monkeypatch):
    def refuse(*args):
        raise AssertionError("computed a spectrogram")

    monkeypatch.setattr(SpectralDistance, "magnitude", refuse)
    _, logged = one("l1")(*pair)
    assert logged.keys() == {"l1"}
    with pytest.raises(AssertionError):
        one("mel")(*pair)


def test_the_loss_has_nothing_to_train():
    loss = ReconstructionLoss(LossConfig(), 16000)
    assert list(loss.parameters()) == []


# --- cross-entropy of mu-law samples -------------------------------------------------------------------------


def test_mu_law_is_the_negative_log_probability_of_the_samples_classes(pair):
    _, x = pair
    x = 20 * x  # Some of it beyond 1.
    logits = 3 * torch.randn(3, 256, x.shape[-1])
    found, logged = build_loss(LossConfig(mu_law=2, mel=0, stft=0), 16000)(logits, x)
    samples = x.squeeze(1).double().clamp(-1, 1).numpy()
    companded = np.sign(samples) * np.log(1 + 255 * np.abs(samples)) / np.log(256)
    classes = np.floor((companded + 1) / 2 * 255 + 0.5).astype(int)
    assert classes.min() == 0
    assert classes.max() == 255
    unnormalised = logits.double().numpy()
    log_p = unnormalised - np.log(np.exp(unnormalised).sum(1, keepdims=True))
    nats = -np.take_along_axis(log_p, classes[:, None], axis=1).mean((1, 2))
    # Rounding puts a sample here and there into the next class.
    np.testing.assert_allclose(found, 2 * nats, rtol=1e-3)
    assert float(logged["mu_law"]) == pytest.approx(nats.mean(), rel=1e-3)
    assert logged.keys() == {"mu_law"}


def test_mu_law_of_equal_logits_is_the_uniform_distribution_s(pair):
    found, _ = MuLawLoss(LossConfig(mu_law=1))(torch.zeros(3, 256, 8000, dtype=torch.bfloat16), pair[1])
    torch.testing.assert_close(found, torch.full((3,), float(np.log(256))))


def test_other_weights_give_the_other_losses():
    assert isinstance(build_loss(LossConfig(), 16000), ReconstructionLoss)
