"""Residual vector quantization: codebooks in a row, each for what those before it leave."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from audiovq.bottlenecks.base import Bottleneck, BottleneckOutput
from audiovq.bottlenecks.vq import VectorQuantizer
from audiovq.config import AutoencoderConfig, QuantizerConfig, ResidualConfig, VQConfig


class ResidualQuantizer(Bottleneck):
    """Q vector quantizers in a row (Zeghidour et al., 2021, "SoundStream", section III-C, algorithm 1).

        r_1 = z,    z_q = V_q(r_q),    r_{q+1} = r_q - sg[z_q],    output sum_q z_q

    Each V_q is a `VectorQuantizer` with projections, codebook and statistics of its own (as in Kumar et al., 2023,
    "High-Fidelity Audio Compression with Improved RVQGAN"); the loss is the sum of theirs. The stop-gradient lets the
    commitment loss of every level reach the encoder. Through the sum the encoder gets the straight-through gradient of
    every level; without projections these are all the same, and it counts once.

    Quantizer dropout (section III-D): of a share of the items of a training batch the decoder sees the first n
    codebooks alone, n uniform from 1 to Q, so that one model serves Q bitrates.
    """

    @classmethod
    def of(cls, config: AutoencoderConfig) -> ResidualQuantizer:
        assert isinstance(config.bottleneck, ResidualConfig)
        return cls(config.latent_dim, config.bottleneck)

    def __init__(self, latent_dim: int, config: ResidualConfig):
        super().__init__()
        self.config = config
        self.codebook_sizes = tuple(config.codebook_sizes)
        shared = {name: getattr(config, name) for name in QuantizerConfig.model_fields}
        self.levels = nn.ModuleList(
            VectorQuantizer(latent_dim, VQConfig(codebook_size=size, **shared)) for size in self.codebook_sizes
        )

    def forward(self, z: Float[Tensor, "batch dim frames"]) -> BottleneckOutput:
        seen = self._seen(len(z), z.device)
        residual, latents, loss = z, torch.zeros_like(z), z.new_zeros(())
        codes, metrics = [], {}
        for number, level in enumerate(self.levels):
            output: BottleneckOutput = level(residual)
            latents = latents + output.latents * seen[:, number, None, None]
            residual = residual - output.latents.detach()
            loss = loss + output.loss
            codes.append(output.codes)
            metrics |= {f"{name}_{number}": value for name, value in output.metrics.items()}
        if self.config.code_dim is None:
            latents = z + (latents - z).detach()
        return BottleneckOutput(latents, torch.cat(codes, 1), loss, metrics)

    def level(self, number: int) -> VectorQuantizer:
        """The quantizer of a codebook."""
        level = self.levels[number]
        assert isinstance(level, VectorQuantizer)
        return level

    def _seen(self, batch_size: int, device: torch.device) -> Bool[Tensor, "batch books"]:
        """Which codebooks of each item the decoder sees."""
        books = torch.arange(self.num_codebooks, device=device)
        if not self.training or not self.config.dropout:
            return torch.ones(batch_size, self.num_codebooks, dtype=torch.bool, device=device)
        dropped = torch.rand(batch_size, 1, device=device) < self.config.dropout
        number = torch.randint(1, self.num_codebooks + 1, (batch_size, 1), device=device)
        return (books < number) | ~dropped

    def encode(
        self, z: Float[Tensor, "batch dim frames"], num_codebooks: int | None = None
    ) -> tuple[Int[Tensor, "batch books frames"], Float[Tensor, "batch frames"]]:
        scale, residual = z.norm(dim=1), z
        codes, margins = [], []
        for number in range(num_codebooks or self.num_codebooks):
            level = self.level(number)
            chosen, margin = level.choose(residual, scale)
            residual = residual - level.decode(chosen[:, None])
            codes.append(chosen)
            margins.append(margin)
        return torch.stack(codes, 1), torch.stack(margins).amin(0)

    def decode(self, codes: Int[Tensor, "batch books frames"]) -> Float[Tensor, "batch dim frames"]:
        return torch.stack(
            [self.level(number).decode(book[:, None]) for number, book in enumerate(codes.unbind(1))]
        ).sum(0)
