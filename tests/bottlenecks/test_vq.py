"""Vector quantization: distances, gradients, moving averages and revival against references written another way."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from audiovq.bottlenecks import vq
from audiovq.bottlenecks.base import count_codes, perplexity
from audiovq.bottlenecks.vq import VectorQuantizer, draw_rows, kmeans, nearest
from audiovq.config import VQConfig

PLAIN = {"code_dim": None, "normalize": False}
VARIANTS = {
    "plain": {**PLAIN},
    "normalized": {"code_dim": None, "normalize": True},
    "projected": {"code_dim": 3, "normalize": False},
    "projected, normalized": {"code_dim": 3},
    "ema": {**PLAIN, "update": "ema"},
    "ema, projected, normalized": {"code_dim": 3, "update": "ema"},
}


def quantizer(dim: int = 4, codes: int = 16, placed: bool = True, **settings) -> VectorQuantizer:
    """A quantizer in training mode; `placed` ones keep their random codebook at the first batch."""
    result = VectorQuantizer(dim, VQConfig(codebook_size=codes, **settings)).train()
    result.initialized.fill_(placed)
    return result


@pytest.fixture(params=VARIANTS)
def variant(request) -> VectorQuantizer:
    return quantizer(**VARIANTS[request.param])


# --- nearest code --------------------------------------------------------------------------------------------


@given(frames=st.integers(1, 70), codes=st.integers(1, 40), dim=st.integers(1, 9), distances=st.integers(1, 400))
def test_the_nearest_code_is_that_of_a_search_in_float64(frames, codes, dim, distances):
    z, codebook = torch.randn(frames, dim), torch.randn(codes, dim)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vq, "SCORES_PER_BLOCK", distances)
        found = nearest(z, codebook)
    reference = torch.cdist(z.double(), codebook.double())
    chosen = reference.gather(1, found[:, None])[:, 0]
    torch.testing.assert_close(chosen, reference.amin(1), atol=1e-6, rtol=1e-5)


def test_the_nearest_code_is_the_same_index_where_no_two_are_close():
    codebook = torch.eye(8) * 3
    order = torch.randint(0, 8, (5000,))
    assert torch.equal(nearest(codebook[order] + 0.1 * torch.randn(5000, 8), codebook), order)


class LargestTensor(TorchDispatchMode):
    """Notes the bytes of the largest tensor that any operation returns."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [t.numel() * t.element_size() for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        self.bytes = max([self.bytes, *sizes])
        return result


@pytest.mark.parametrize(("frames", "codes"), [(20_000, 1024), (200, 65536)])
def test_distances_never_take_more_than_their_block(frames, codes):
    z, codebook = torch.randn(frames, 2), torch.randn(codes, 2)
    with LargestTensor() as largest:
        indices = nearest(z, codebook)
    assert len(indices) == frames
    assert largest.bytes <= 4 * vq.SCORES_PER_BLOCK < 4 * frames * codes


def test_the_largest_codebook_gives_codes_of_16_bits():
    layer = quantizer(dim=2, codes=65536, **PLAIN).eval()
    codes, _ = layer.encode(torch.randn(1, 2, 50))
    assert 0 <= codes.min() <= codes.max() < 65536
    again, margin = layer.encode(layer.decode(codes))
    assert torch.equal(again[margin[:, None] > 0], codes[margin[:, None] > 0])


# --- forward, encode, decode ---------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_forward_encode_and_decode_agree(variant, training):
    if training and variant.config.normalize:
        pytest.skip("in training a batch is normalised by its own moments")
    variant.train(training)
    z = torch.randn(3, 4, 7)
    before = variant.state_dict()
    before = {name: tensor.clone() for name, tensor in before.items()}
    output = variant(z)
    variant.load_state_dict(before)
    codes, _ = variant.encode(z)
    assert codes.shape == (3, 1, 7)
    assert codes.dtype == torch.int64
    assert torch.equal(output.codes, codes)
    torch.testing.assert_close(output.latents, variant.decode(codes), atol=1e-6, rtol=1e-5)


def test_the_quantization_error_is_the_mean_squared_distance_to_the_code():
    layer = quantizer(**PLAIN).eval()
    z = torch.randn(3, 4, 7)
    expected = (z - layer.decode(layer.encode(z)[0])).square().sum(1).mean()
    torch.testing.assert_close(layer(z).metrics["quantization_error"], expected)


def test_normalized_codes_ignore_the_length_of_latents():
    layer = quantizer(code_dim=None)
    z = torch.randn(2, 4, 9)
    assert torch.equal(layer.encode(z)[0], layer.encode(100 * z)[0])
    torch.testing.assert_close(layer.codes().norm(dim=-1), torch.ones(16))


def test_in_eval_mode_nothing_changes(variant):
    variant.eval()
    variant.usage.zero_()  # all codes are dead, which only training may mend
    before = {name: tensor.clone() for name, tensor in variant.state_dict().items()}
    variant(torch.randn(2, 4, 30))
    variant.encode(torch.randn(2, 4, 30))
    assert all(torch.equal(before[name], tensor) for name, tensor in variant.state_dict().items())


def test_a_state_dict_holds_everything_that_training_goes_on_from(variant):
    for _ in range(3):
        variant(torch.randn(2, 4, 30))
    twin = VectorQuantizer(4, variant.config).train()
    twin.load_state_dict(variant.state_dict())
    batches = torch.randn(3, 2, 4, 30)
    for batch in batches:
        outputs = []
        for layer in (variant, twin):
            torch.manual_seed(1)
            outputs.append(layer(batch))
        assert torch.equal(outputs[0].codes, outputs[1].codes)
        assert torch.equal(outputs[0].latents, outputs[1].latents)
    assert all(torch.equal(tensor, twin.state_dict()[name]) for name, tensor in variant.state_dict().items())


# --- gradients -----------------------------------------------------------------------------------------------


def test_the_gradient_of_the_decoder_passes_unchanged():
    layer = quantizer(**PLAIN)
    z = torch.randn(2, 4, 5, requires_grad=True)
    weight = torch.randn(2, 4, 5)
    (layer(z).latents * weight).sum().backward()
    assert torch.equal(z.grad, weight)
    assert layer.codebook.grad is None


@pytest.mark.parametrize("beta", [0.0, 0.25, 1.5])
def test_the_commitment_loss_moves_latents_and_the_codebook_loss_moves_codes(beta):
    layer = quantizer(beta=beta, **PLAIN)
    z = torch.randn(2, 4, 5, requires_grad=True)
    output = layer(z)
    output.loss.backward()
    vectors = z.detach().mT.reshape(-1, 4).double().numpy()
    codebook = layer.codebook.detach().double().numpy()
    codes = output.codes.flatten().numpy()
    distances = vectors - codebook[codes]

    np.testing.assert_allclose(output.loss.item(), (1 + beta) * np.mean((distances**2).sum(1)), rtol=1e-5)
    of_latents = z.grad.mT.reshape(-1, 4).numpy()
    np.testing.assert_allclose(of_latents, beta * 2 * distances / len(distances), rtol=1e-4, atol=1e-7)
    of_codes = np.zeros_like(codebook)
    np.add.at(of_codes, codes, -2 * distances / len(distances))
    np.testing.assert_allclose(layer.codebook.grad.numpy(), of_codes, rtol=1e-4, atol=1e-7)


def test_with_moving_averages_there_is_no_codebook_loss():
    layer = quantizer(update="ema", beta=0.5, **PLAIN)
    z = torch.randn(2, 4, 5, requires_grad=True)
    codes = layer.decode(layer.encode(z)[0]).detach()
    output = layer(z)
    output.loss.backward()
    torch.testing.assert_close(output.loss, 0.5 * (z - codes).square().sum(1).mean())
    torch.testing.assert_close(z.grad, 0.5 * 2 * (z.detach() - codes) / 10)
    assert not layer.codebook.requires_grad


def test_projections_learn_from_both_losses():
    layer = quantizer(code_dim=3)
    z = torch.randn(2, 4, 5, requires_grad=True)
    output = layer(z)
    for loss, learning in (
        (output.latents.square().mean(), (layer.project_in.weight, layer.project_out.weight, z)),
        (output.loss, (layer.project_in.weight, layer.codebook, z)),
    ):
        gradients = torch.autograd.grad(loss, learning, retain_graph=True)
        assert all(gradient.abs().sum() > 0 for gradient in gradients)


# --- moving averages -----------------------------------------------------------------------------------------


def test_moving_averages_follow_a_numpy_reference():
    layer = quantizer(dim=3, codes=6, update="ema", decay=0.8, revive_below=0.0, **PLAIN)
    codebook = layer.codebook.double().numpy().copy()
    share, mass = np.full(6, 1 / 6), codebook / 6
    for _ in range(8):
        batch = torch.randn(4, 3, 10)
        layer(batch)
        vectors = batch.double().numpy().transpose(0, 2, 1).reshape(-1, 3)
        chosen = ((vectors[:, None] - codebook[None]) ** 2).sum(-1).argmin(1)
        for k in range(6):
            mine = vectors[chosen == k]
            share[k] = 0.8 * share[k] + 0.2 * len(mine) / len(vectors)
            mass[k] = 0.8 * mass[k] + 0.2 * mine.sum(0) / len(vectors)
        codebook = mass / share[:, None]
        np.testing.assert_allclose(layer.usage, share, rtol=1e-5)
        np.testing.assert_allclose(layer.codebook, codebook, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_usage_is_a_distribution(update):
    layer = quantizer(update=update, revive_below=0.0, **PLAIN)
    for _ in range(20):
        layer(torch.randn(2, 4, 30))
        torch.testing.assert_close(layer.usage.sum(), torch.tensor(1.0))


def test_a_code_that_nobody_chooses_stays_where_it_is():
    layer = quantizer(update="ema", decay=0.1, revive_below=0.0, **PLAIN)
    with torch.no_grad():
        layer._set_codes(torch.arange(16) == 3, torch.full((16, 4), 500.0))
    for _ in range(60):
        layer(torch.randn(2, 4, 30))
    torch.testing.assert_close(layer.codebook[3], torch.full((4,), 500.0))
    assert layer.codebook.isfinite().all()


# --- first codebook and revival ------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["kmeans", "data"])
def test_the_first_batch_places_the_codebook_on_latents_once(init):
    layer = quantizer(placed=False, init=init, **PLAIN)
    layer.eval()(torch.randn(2, 4, 30))
    assert not layer.initialized
    batch = 100 + torch.randn(2, 4, 30)
    layer.train()(batch)
    first = layer.codebook.clone()
    assert (first - 100).abs().max() < 5
    layer(-batch)
    assert torch.equal(layer.codebook, first)


def test_a_state_with_another_codebook_is_believed_about_whether_it_was_placed():
    layer, fresh = quantizer(placed=False, **PLAIN), quantizer(placed=False, **PLAIN)
    state = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    batch = 100 + torch.randn(2, 4, 30)
    for _ in range(2):
        layer(batch)
    layer.load_state_dict(state)
    layer(-batch)
    assert (layer.codebook + 100).abs().max() < 5


def test_data_init_takes_latents_themselves():
    layer = quantizer(placed=False, init="data", **PLAIN)
    batch = torch.randn(2, 4, 30)
    layer(batch)
    vectors = batch.mT.reshape(-1, 4)
    distances = torch.cdist(layer.codebook.detach(), vectors)
    assert distances.min(-1).values.max() < 10 * vq.DRAW_NOISE


def test_kmeans_lowers_the_error_and_its_centres_are_means():
    corners = torch.tensor([[0.0, 0.0], [0.0, 9.0], [9.0, 0.0], [9.0, 9.0]])
    z = (corners[:, None] + torch.randn(4, 50, 2)).reshape(-1, 2)
    torch.manual_seed(3)
    start = draw_rows(z, 4)
    torch.manual_seed(3)
    centres = kmeans(z, 4)
    assert torch.cdist(z, centres).amin(1).mean() < torch.cdist(z, start).amin(1).mean()
    chosen = torch.cdist(z, centres).argmin(1)
    for k in range(4):
        torch.testing.assert_close(centres[k], z[chosen == k].mean(0))


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_fewer_latents_than_codes_still_give_different_codes(rows):
    drawn = draw_rows(torch.randn(rows, 3), 16)
    assert drawn.shape == (16, 3)
    assert len(drawn.unique(dim=0)) == 16


def stuck(**settings) -> tuple[VectorQuantizer, torch.Tensor]:
    """A quantizer of which only code 0 is near the data, and the data: eight tight clusters."""
    layer = quantizer(codes=8, decay=0.9, **settings)
    centres = torch.nn.functional.normalize(torch.randn(8, 4), dim=-1) * 2
    with torch.no_grad():
        # With normalization, opposite the data; without it, far away.
        away = -centres.mean(0) * 100 + 0.01 * torch.randn(8, 4)
        away[0] = centres.mean(0)
        layer._set_codes(torch.ones(8, dtype=torch.bool), away)
    return layer, centres


def batch_of(centres: torch.Tensor) -> torch.Tensor:
    return (centres[torch.randint(0, 8, (4, 40))] + 0.01 * torch.randn(4, 40, 4)).mT


@pytest.mark.parametrize("update", ["gradient", "ema"])
@pytest.mark.parametrize("normalize", [False, True])
def test_revival_brings_a_stuck_codebook_back_to_use(update, normalize):
    layer, centres = stuck(update=update, code_dim=None, normalize=normalize)
    before = layer.eval()(batch_of(centres))
    assert before.codes.unique().numel() <= 2
    layer.train()
    for _ in range(100):
        layer(batch_of(centres))
    after = layer.eval()(batch_of(centres))
    assert after.codes.unique().numel() >= 6
    # Some codes are revived in the same cluster, which is why the error does not fall to nearly zero.
    assert after.metrics["quantization_error"] < 0.7 * before.metrics["quantization_error"]


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_without_revival_a_stuck_codebook_stays_stuck(update):
    layer, centres = stuck(update=update, revive_below=0.0, **PLAIN)
    for _ in range(100):
        layer(batch_of(centres))
    assert layer.eval()(batch_of(centres)).codes.unique().numel() <= 2


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_a_revived_code_is_not_overwritten_by_old_statistics(update):
    layer, centres = stuck(update=update, **PLAIN)
    revived = 0
    for _ in range(100):
        batch = batch_of(centres)
        output = layer(batch)
        revived += int(output.metrics["revived_codes"])
        if output.metrics["revived_codes"]:
            # In the same step and in the next ones the revived codes are among the data, not where they were.
            for _ in range(3):
                assert layer.codebook.detach().norm(dim=-1).max() < 3
                layer(batch)
            break
    assert revived == 7


def test_revival_sets_code_and_statistics_together():
    layer = quantizer(codes=4, update="ema", **PLAIN)
    layer.usage[2] = 0.0
    layer.sums[2] = 777.0
    z = torch.randn(50, 4)
    assert layer._place_codes(z) == 1
    assert torch.cdist(layer.codebook[2:3].detach(), z).min() < 10 * vq.DRAW_NOISE
    assert layer.usage[2] == 1 / 4
    torch.testing.assert_close(layer.sums[2] / layer.usage[2], layer.codebook[2])


# --- statistics ----------------------------------------------------------------------------------------------


@given(counts=st.lists(st.integers(0, 1000), min_size=1, max_size=50).filter(any))
def test_perplexity_is_the_exponential_of_the_entropy(counts):
    found = perplexity(torch.tensor(counts))
    assert float(found) == pytest.approx(np.exp(scipy.stats.entropy(counts)), rel=1e-9)


def test_perplexity_of_nothing_is_zero():
    assert perplexity(torch.zeros(5)) == 0


def test_counts_include_codes_that_never_occur():
    codes = torch.tensor([[[0, 2, 2]], [[5, 2, 0]]])
    assert count_codes(codes, 8).tolist() == [[2, 0, 3, 0, 0, 1, 0, 0]]
