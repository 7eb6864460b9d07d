"""Optimisers, their schedule, and one step down a loss."""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from audiovq.config import TrainingConfig
from audiovq.errors import ConfigError


def build_optimizer(model: nn.Module, settings: TrainingConfig) -> torch.optim.AdamW:
    """AdamW, with weight decay on weight matrices only: not on biases, norms and scales, nor on codebooks.

    Raises:
        ConfigError: nothing in the model is trained.
    """
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim < 2 or is_codebook(name) else decayed).append(parameter)
    if not decayed and not plain:
        raise ConfigError("training.freeze: leaves no weights to train")
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas)


def is_codebook(name: str) -> bool:
    """Whether a parameter of that name is a codebook."""
    return name.endswith("codebook")


def schedule(step: int, settings: TrainingConfig) -> float:
    """Learning rate as a share of its peak: a linear warm-up, then a cosine to zero at the last step (Loshchilov &
    Hutter, 2017)."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def descend(
    accelerator: Accelerator, loss: Tensor, model: nn.Module, optimizer: torch.optim.Optimizer, clip_norm: float
) -> Tensor:
    """One optimiser step down the gradient of a loss, clipped to `clip_norm`; returns the norm that it had."""
    accelerator.backward(loss)
    norm = accelerator.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return torch.as_tensor(norm)
