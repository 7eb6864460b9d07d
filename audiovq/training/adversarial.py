"""Stage 1 against discriminators: the decoded waves are to seem true, too, and not only near."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from audiovq.devices import seed_everything
from audiovq.losses.adversarial import GradientBalancer, discriminator_loss, feature_matching_loss, generator_loss
from audiovq.nn.discriminators import Discriminators
from audiovq.training.autoencoder import AutoencoderTask, true_waves
from audiovq.training.loop import Batch


class AdversarialTask(AutoencoderTask):
    """An autoencoder whose decoded waves are judged by discriminators, which learn beside it.

    Both sides step from the same judgement: true and decoded waves pass through the discriminators once, the decoded
    ones cut off from the network. The discriminators' loss ends there; what the waves' losses want is their gradient at
    the cut, which then goes on into the network.

    The last model is released, not the one of least loss: nearness is no longer all that counts.
    """

    keeps_best = False

    def __init__(self, *args: Any):
        super().__init__(*args)
        settings = self.config.adversarial
        assert settings is not None
        self.settings = settings
        self.rehearsed = (0, max(1, settings.start_step))
        seed_everything(self.config.training.seed, "discriminators")
        self.modules["discriminators"] = discriminators = Discriminators(settings.discriminator)
        self.optimizers["discriminators"] = torch.optim.AdamW(
            discriminators.parameters(), lr=settings.learning_rate, betas=settings.betas
        )
        self.weights = {
            "reconstruction": settings.reconstruction,
            "features": settings.feature_matching,
            "adversarial": settings.weight,
        }
        if settings.balance:
            self.modules["balancer"] = GradientBalancer(self.weights)

    def update(self, step: int, batch: Batch) -> dict[str, Tensor]:
        if step < self.settings.start_step:
            return super().update(step, batch)
        output = self.run(step, batch)
        true = true_waves(batch, output)
        wave = output.wave.detach().requires_grad_()
        reconstruction, terms = self.loss(wave, true)
        judged = self.judge(true, wave)
        losses = {"reconstruction": reconstruction.mean(), **judged}
        told = losses.pop("discriminators")
        gradient = self.gradient(losses, wave)
        norm = self.step("discriminators", told, self.networks["discriminators"])
        return {
            **self.descend(output, reconstruction.detach(), (output.wave * gradient).sum(), terms),
            **{name: loss.detach() for name, loss in losses.items()},
            "loss": self.weigh(losses).detach(),
            "discriminators": told.detach(),
            "discriminators_gradient_norm": norm,
        }

    def judge(
        self, true: Float[Tensor, "batch 1 time"], wave: Float[Tensor, "batch 1 time"]
    ) -> dict[str, Float[Tensor, ""]]:
        """What discriminators make of the waves: their own loss, and the two that they give the network."""
        kind, network = self.settings.kind, self.networks["discriminators"]
        network.train()
        with self.accelerator.autocast():
            judgements = network(torch.cat([true, wave]))
        halves = [(scores.chunk(2), [feature.chunk(2) for feature in features]) for scores, features in judgements]
        (true_scores, scores), layers = zip(*(pair for pair, _ in halves), strict=True), [part for _, part in halves]
        return {
            "discriminators": discriminator_loss(true_scores, scores, kind),
            "adversarial": generator_loss(scores, kind),
            "features": feature_matching_loss(
                [[x for x, _ in pairs] for pairs in layers], [[y for _, y in pairs] for pairs in layers]
            ),
        }

    def gradient(self, losses: dict[str, Tensor], wave: Tensor) -> Tensor:
        """What the losses of the waves want, at the waves."""
        if self.settings.balance:
            return self.networks["balancer"](losses, wave)
        return torch.autograd.grad(self.weigh(losses), wave, retain_graph=True)[0]

    def weigh(self, losses: dict[str, Tensor]) -> Tensor:
        """The sum of the waves' losses by their weights."""
        return torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()
