"""The textbook example: z = 2p is differentiable, z ~ Bernoulli(p) is not.

p = sigmoid(theta); the gradient with respect to theta of the cost (z - 2)^2. Of z = 2p autograd knows it,
8 (p - 1) p (1 - p). Of z ~ Bernoulli(p) the expected cost is p + 4 (1 - p), and the gradient -3 p (1 - p), as each
estimator sees it. PyTorch gives torch.bernoulli(p) a grad_fn, so that a cost of it has a gradient without complaint:
zero, whatever the cost.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from audiovq.bottlenecks.categorical import CategoricalBottleneck
from audiovq.bottlenecks.gumbel import GumbelBottleneck
from audiovq.bottlenecks.reinforce import ReinforceBottleneck
from audiovq.config import GumbelConfig, ReinforceConfig
from audiovq.devices import seed_everything

DRAWS = 20_000
PROBABILITIES = [round(0.05 * i, 2) for i in range(1, 20)]


def textbook_cell(_bench: object, _cell: object) -> dict[str, Any]:
    """The example as a cell of the bench."""
    return {"failed": None, **textbook()}


def textbook() -> dict[str, Any]:
    """Mean and standard deviation of every estimator at every p, and the true gradient."""
    seed_everything("textbook")
    estimators = {
        "z = 2p: autograd": through_2p,
        "autograd through the sample": through_the_sample,
        "score function": lambda theta: bottleneck(reinforce("none", 1), theta),
        "score function, moving average": lambda theta: bottleneck(reinforce("moving_average", 1), theta),
        "score function, leave-one-out (S = 4)": lambda theta: bottleneck(reinforce("leave_one_out", 4), theta),
        "Gumbel-Softmax, relaxed (temperature 1)": lambda theta: bottleneck(gumbel(hard=False), theta),
        "Gumbel-Softmax, straight-through (temperature 1)": lambda theta: bottleneck(gumbel(hard=True), theta),
        "straight-through": straight_through,
    }
    thetas = torch.tensor(PROBABILITIES).logit()
    found: dict[str, Any] = {"p": PROBABILITIES, "draws": DRAWS, "estimators": {}}
    found["true"] = [-3 * p * (1 - p) for p in PROBABILITIES]
    for name, draw in estimators.items():
        gradients = [draw(theta.repeat(DRAWS).requires_grad_()) for theta in thetas]
        found["estimators"][name] = {
            "mean": [float(gradient.mean()) for gradient in gradients],
            "deviation": [float(gradient.std()) for gradient in gradients],
        }
    found["estimators"]["z = 2p: autograd"]["true"] = [8 * (p - 1) * p * (1 - p) for p in PROBABILITIES]
    return found


def through_2p(theta: Tensor) -> Tensor:
    cost = (2 * theta.sigmoid() - 2).square().sum()
    return torch.autograd.grad(cost, theta)[0]


def through_the_sample(theta: Tensor) -> Tensor:
    cost = (torch.bernoulli(theta.sigmoid()) - 2).square().sum()
    return torch.autograd.grad(cost, theta)[0]


def straight_through(theta: Tensor) -> Tensor:
    """z + p - sg[p] in place of z (Bengio et al., 2013)."""
    p = theta.sigmoid()
    z = torch.bernoulli(p.detach()) + p - p.detach()
    return torch.autograd.grad((z - 2).square().sum(), theta)[0]


def reinforce(baseline: Any, samples: int) -> ReinforceBottleneck:
    return ReinforceBottleneck(1, ReinforceConfig(codebook_size=2, baseline=baseline, samples=samples))


def settle(made: CategoricalBottleneck, p: float) -> None:
    """Let a moving average of costs be what it comes to, the expected cost."""
    if isinstance(made, ReinforceBottleneck):
        made.cost_sum.fill_(p + 4 * (1 - p))
        made.cost_weight.fill_(1)


def gumbel(hard: bool) -> GumbelBottleneck:
    settings = GumbelConfig(codebook_size=2, start_temperature=1, end_temperature=1, hard=hard)
    return GumbelBottleneck(1, settings)


def bottleneck(bernoulli: CategoricalBottleneck, theta: Tensor) -> Tensor:
    """Gradients through a bottleneck whose latent is theta, q(1) = sigmoid(theta), and whose codes are 0 and 1."""
    with torch.no_grad():
        bernoulli.project_in.weight.copy_(torch.tensor([[0.0], [1.0]]))
        bernoulli.project_in.bias.zero_()
        bernoulli.codebook.copy_(torch.tensor([[0.0], [1.0]]))
        settle(bernoulli, float(theta[0].sigmoid()))
    bernoulli.train().normalize.eval()
    output = bernoulli(theta.view(-1, 1, 1))
    cost = (output.latents - 2).square().flatten()
    loss = cost.mean() + bernoulli.surrogate_loss(output, cost)
    return torch.autograd.grad(loss, theta)[0] * len(theta)
