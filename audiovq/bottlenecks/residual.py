"""Residual quantization: codebooks in a row, each for what those before it leave."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from audiovq.bottlenecks.base import Bottleneck, BottleneckOutput, Quantizer
from audiovq.bottlenecks.vq import VectorQuantizer
from audiovq.config import AutoencoderConfig, QuantizerConfig, ResidualConfig, VQConfig


class ResidualStack(Bottleneck):
    """Q quantizers in a row (Zeghidour et al., 2021, "SoundStream", section III-C, algorithm 1).

        r_1 = z,    z_q = V_q(r_q),    r_{q+1} = r_q - sg[z_q],    output sum_q z_q

    Each V_q has projections and statistics of its own (as in Kumar et al., 2023, "High-Fidelity Audio Compression with
    Improved RVQGAN"); the loss is the sum of theirs. The stop-gradient lets the commitment loss of every level reach
    the encoder. Through the sum the encoder gets the straight-through gradient of every level.

    The metric `left_q` is the energy that the first q + 1 codebooks leave, relative to the latents' own. It falls from
    level to level where codes describe the latents; where it does not, the levels repeat each other.

    Quantizer dropout (section III-D): of a share of the items of a training batch the decoder sees the first n
    codebooks alone, n uniform from 1 to Q, so that one model serves Q bitrates.
    """

    def __init__(self, levels: Sequence[Quantizer], dropout: float):
        super().__init__()
        self.codebook_sizes = tuple(level.codebook_size for level in levels)
        self.dropout = dropout
        self.levels = nn.ModuleList(levels)

    def forward(self, z: Float[Tensor, "batch dim frames"]) -> BottleneckOutput:
        seen = seen_codebooks(len(z), self.num_codebooks, self.dropout if self.training else 0.0, z.device)
        residual, latents, loss = z, torch.zeros_like(z), z.new_zeros(())
        first, codes, metrics = None, [], {}
        for number, level in enumerate(self.levels):
            output: BottleneckOutput = level(residual)
            latents = latents + output.latents * seen[:, number, None, None]
            residual = residual - output.latents.detach()
            loss = loss + output.loss
            if number == 0 and self.num_codebooks > 1:
                first = output.latents
            codes.append(output.codes)
            metrics |= {f"{name}_{number}": value for name, value in output.metrics.items()}
            metrics[f"left_{number}"] = energy(residual) / energy(z).clamp(min=torch.finfo(z.dtype).tiny)
        return BottleneckOutput(latents, torch.cat(codes, 1), loss, metrics, first=first)

    def hold_statistics(self) -> None:
        self.eval()
        self.training = True  # For quantizer dropout. All statistics are the levels' own.

    def settle(self, z: Float[Tensor, "batch dim frames"]) -> None:
        residual = z
        for number in range(self.num_codebooks):
            level = self.level(number)
            level.settle(residual)
            residual = residual - level(residual).latents

    def level(self, number: int) -> Quantizer:
        """The quantizer of a codebook."""
        level = self.levels[number]
        assert isinstance(level, Quantizer)
        return level

    def encode(
        self, z: Float[Tensor, "batch dim frames"], num_codebooks: int | None = None
    ) -> tuple[Int[Tensor, "batch books frames"], Float[Tensor, "batch frames"]]:
        residual, scale = z, z.mT.norm(dim=-1)
        codes, margins = [], []
        for number in range(num_codebooks or self.num_codebooks):
            level = self.level(number)
            chosen, margin = level.choose(residual, scale)
            residual = level.rest(residual, chosen)
            scale = torch.maximum(scale, residual.mT.norm(dim=-1))
            codes.append(chosen)
            margins.append(margin)
        return torch.cat(codes, 1), torch.cat(margins, 1).amin(1)

    def decode(self, codes: Int[Tensor, "batch books frames"]) -> Float[Tensor, "batch dim frames"]:
        return torch.stack(
            [self.level(number).decode(book[:, None]) for number, book in enumerate(codes.unbind(1))]
        ).sum(0)


class ResidualQuantizer(ResidualStack):
    """Residual vector quantization: each level is a `VectorQuantizer`.

    Without projections the straight-through gradients of the levels are all the same, and count once.
    """

    @classmethod
    def of(cls, config: AutoencoderConfig) -> ResidualQuantizer:
        assert isinstance(config.bottleneck, ResidualConfig)
        return cls(config.latent_dim, config.bottleneck)

    def __init__(self, latent_dim: int, config: ResidualConfig):
        shared = {name: getattr(config, name) for name in QuantizerConfig.model_fields}
        levels = [VectorQuantizer(latent_dim, VQConfig(codebook_size=size, **shared)) for size in config.codebook_sizes]
        super().__init__(levels, config.dropout)
        self.config = config

    def forward(self, z: Float[Tensor, "batch dim frames"]) -> BottleneckOutput:
        output = super().forward(z)
        if self.config.code_dim is None:
            output.latents = z + (output.latents - z).detach()
        return output


def energy(z: Float[Tensor, "batch dim frames"]) -> Float[Tensor, ""]:
    """Mean squared distance of frames from their mean, without gradient."""
    z = z.detach()
    return (z - z.mean((0, 2), keepdim=True)).square().sum(1).mean()


def seen_codebooks(
    batch_size: int, num_codebooks: int, dropout: float, device: torch.device
) -> Bool[Tensor, "batch books"]:
    """Which codebooks of each item the decoder sees: all, or for a share `dropout` of the items the first few."""
    if not dropout:
        return torch.ones(batch_size, num_codebooks, dtype=torch.bool, device=device)
    dropped = torch.rand(batch_size, 1, device=device) < dropout
    number = torch.randint(1, num_codebooks + 1, (batch_size, 1), device=device)
    return (torch.arange(num_codebooks, device=device) < number) | ~dropped
