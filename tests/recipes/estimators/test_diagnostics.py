from __future__ import annotations

import math

import pytest
import torch
from diagnostics import (
    active_units,
    categorical_information,
    drawn,
    gaussian_information,
    latent_gap,
    typical,
    usage,
)

from audiovq.config import GaussianConfig, GumbelConfig, NoBottleneckConfig, VQConfig

K = 8


@pytest.fixture
def build(tiny_config):
    """A bottleneck in evaluation, for latents of 8 channels."""
    return lambda config: config.build(tiny_config().model_copy(update={"bottleneck": config})).eval()


# --- information ---------------------------------------------------------------------------------------------


def test_active_units_are_those_whose_mean_follows_the_data():
    x = torch.randn(1000)
    assert active_units(torch.stack([x, 0.2 * x, 0.05 * x, torch.full_like(x, 3.0)], dim=1)) == 2


def test_categorical_information_is_that_of_the_joint_distribution():
    q = torch.rand(5, 4).softmax(-1).double()
    p = [[float(q[x, k]) / 5 for k in range(4)] for x in range(5)]
    marginal = [sum(row[k] for row in p) for k in range(4)]
    expected = sum(p[x][k] * math.log(p[x][k] / (marginal[k] / 5)) for x in range(5) for k in range(4))
    assert categorical_information(q.log()) == pytest.approx(expected)


def test_categorical_information_is_zero_for_one_posterior_and_log_k_for_certain_ones():
    assert categorical_information(torch.randn(1, K).log_softmax(-1).expand(6, K)) == pytest.approx(0, abs=1e-6)
    certain = torch.eye(K).log().clamp(min=-1000)
    assert categorical_information(certain) == pytest.approx(math.log(K))


@pytest.mark.parametrize("deviation", [0.3, 1.0, 3.0])
def test_gaussian_information_is_that_of_a_gaussian_channel(deviation):
    mean = deviation * torch.randn(4096, 1)
    expected = 0.5 * math.log(1 + deviation**2)
    assert gaussian_information(mean, torch.zeros_like(mean)) == pytest.approx(expected, abs=0.04)


def test_gaussian_information_is_zero_for_one_posterior_and_log_n_for_distant_ones():
    mean = torch.randn(1, 3).expand(300, 3)
    assert gaussian_information(mean, torch.randn(1, 3).expand(300, 3)) == pytest.approx(0, abs=1e-6)
    distant = 1000.0 * torch.arange(300)[:, None]
    assert gaussian_information(distant, torch.zeros_like(distant)) == pytest.approx(math.log(300))


# --- usage ---------------------------------------------------------------------------------------------------


def test_kl_of_vq_is_log_k_even_if_the_encoder_says_nothing(build):
    bottleneck = build(VQConfig(codebook_size=K, code_dim=None))
    for z, used in ((torch.ones(1, 8, 50), 1), (torch.randn(1, 8, 500), K)):
        found = usage(bottleneck, z)
        assert found.kl == pytest.approx(math.log(K))
        assert found.codes_used == used
        assert found.information == pytest.approx(math.log(found.perplexity))
    assert found.perplexity > 4


def test_usage_of_a_categorical_posterior_that_ignores_its_input(build):
    bottleneck = build(GumbelConfig(codebook_size=K))
    torch.nn.init.zeros_(bottleneck.project_in.weight)
    found = usage(bottleneck, torch.randn(1, 8, 100))
    assert found.information == pytest.approx(0, abs=1e-6)
    assert found.perplexity == pytest.approx(1)
    log_q = bottleneck.project_in.bias.detach().log_softmax(-1)
    assert found.kl == pytest.approx(float((log_q.exp() * (log_q + math.log(K))).sum()), rel=1e-4)


def test_usage_of_a_gaussian_posterior_dimension_by_dimension(build):
    bottleneck = build(GaussianConfig(code_dim=2))
    with torch.no_grad():  # The first dimension is the first latent with variance 1, the second is the prior.
        for parameter in bottleneck.project_in.parameters():
            parameter.zero_()
        bottleneck.project_in.weight[0, 0] = 1
    z = torch.randn(1, 8, 5000)
    found = usage(bottleneck, z)
    assert found.kl_per_dimension == pytest.approx([0.5 * float(z[0, 0].square().mean()), 0], abs=1e-4)
    assert found.kl == pytest.approx(sum(found.kl_per_dimension))
    assert found.active_units == 1
    assert found.information == pytest.approx(0.5 * math.log(2), abs=0.04)
    assert found.information_ceiling == pytest.approx(math.log(4096))
    assert found.codes_used is None


def test_no_bottleneck_has_no_such_figures(build):
    found = usage(build(NoBottleneckConfig()), torch.randn(1, 8, 10))
    assert found.frames == 10
    assert (found.kl, found.information, found.perplexity) == (None, None, None)


# --- samples -------------------------------------------------------------------------------------------------


def test_samples_are_those_of_the_posterior(build):
    z = torch.randn(1, 8, 1).expand(1, 8, 20000)
    gaussian = build(GaussianConfig(code_dim=None))
    mean, log_variance = (x[0, 0] for x in gaussian.posterior(z[..., :1]))
    samples = drawn(gaussian, z)[0]
    torch.testing.assert_close(samples.mean(1), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(samples.std(1), (0.5 * log_variance).exp(), atol=0.05, rtol=0)

    gumbel = build(GumbelConfig(codebook_size=K))
    q = gumbel.log_posterior(z[..., :1])[0, 0].exp()
    chosen = torch.cdist(drawn(gumbel, z)[0].T, gumbel.codebook).argmin(1)
    torch.testing.assert_close(torch.bincount(chosen, minlength=K) / 20000, q, atol=0.02, rtol=0)


# --- gap -----------------------------------------------------------------------------------------------------


def test_gap_compares_true_latents_with_those_of_another_stretch_and_constant_ones(build):
    bottleneck = build(NoBottleneckConfig())
    utterances = [torch.full((1, 8, 6), 1.0), torch.full((1, 8, 4), 3.0), torch.full((1, 8, 2), 3.0)]
    gap = latent_gap(bottleneck, utterances, lambda i, z: float((z - utterances[i]).abs().mean()))
    # 12 frames, 6 of each value: shifted by 6, every frame gets the other one.
    assert (gap.true, gap.shuffled, gap.constant, gap.gap) == pytest.approx((0, 2, 1, 2))


def test_gap_of_a_decoder_that_ignores_its_latents_is_zero(build):
    utterances = [torch.randn(1, 8, 6), torch.randn(1, 8, 7)]
    gap = latent_gap(build(VQConfig(codebook_size=K)), utterances, lambda i, z: 1.0 + i)
    assert (gap.true, gap.shuffled, gap.constant, gap.gap) == (1.5, 1.5, 1.5, 0)


def test_typical_latent_is_that_of_the_most_frequent_code(build):
    bottleneck = build(VQConfig(codebook_size=K))
    z = torch.randn(1, 8, 30)
    found, _ = bottleneck.encode(z)
    codes = found[0, 0].tolist()
    most = max(set(codes), key=codes.count)
    typical_code = found[:, :, codes.index(most) : codes.index(most) + 1]
    torch.testing.assert_close(typical(bottleneck, z), bottleneck.decode(typical_code))
