"""Batch normalisation as PyTorch's, on one process."""

from __future__ import annotations

import torch

from audiovq.bottlenecks.batch_norm import BatchNorm


def test_output_gradient_and_averages_are_those_of_pytorch():
    ours, theirs = BatchNorm(4), torch.nn.BatchNorm1d(4, affine=False, momentum=0.1)
    for step in range(3):
        z = torch.randn(3, 4, 9) * 2 + step
        found, expected = z.clone().requires_grad_(), z.clone().requires_grad_()
        torch.testing.assert_close(ours(found), theirs(expected))
        ours(found).pow(3).sum().backward()
        theirs(expected).pow(3).sum().backward()
        torch.testing.assert_close(found.grad, expected.grad)
        torch.testing.assert_close(ours.mean, theirs.running_mean)
        torch.testing.assert_close(ours.variance, theirs.running_var)
    torch.testing.assert_close(ours.eval()(z), theirs.eval()(z))


def test_evaluation_changes_no_averages():
    norm = BatchNorm(4).eval()
    norm(torch.randn(3, 4, 9))
    assert torch.equal(norm.mean, torch.zeros(4))
    assert torch.equal(norm.variance, torch.ones(4))
