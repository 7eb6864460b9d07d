"""The cosine distance against NumPy."""

from __future__ import annotations

import numpy as np
import torch

from audiovq.losses.distillation import cosine_distance


def test_the_distance_is_that_of_numpy_over_the_frames_that_are_known():
    predicted, true = torch.randn(3, 7, 5), torch.randn(3, 7, 5)
    true[1, 4:] = 0
    found = cosine_distance(predicted, true)
    for item, count in enumerate((7, 4, 7)):
        x, y = predicted[item, :count].double().numpy(), true[item, :count].double().numpy()
        cosines = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
        np.testing.assert_allclose(found[item], np.mean(1 - cosines), rtol=1e-5)


def test_an_item_of_which_nothing_is_known_costs_nothing_and_moves_nothing():
    predicted = torch.randn(2, 4, 3, requires_grad=True)
    true = torch.randn(2, 4, 3)
    true[0] = 0
    distance = cosine_distance(predicted, true)
    assert distance[0] == 0
    (gradient,) = torch.autograd.grad(distance.sum(), predicted)
    assert gradient[0].abs().max() == 0
    assert gradient[1].abs().min() > 0
