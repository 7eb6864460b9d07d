"""Finite scalar quantization: each dimension of a latent is rounded by itself, to one of a few levels."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from audiovq.bottlenecks.base import Bottleneck, BottleneckOutput, Quantizer, perplexity, update_usage
from audiovq.bottlenecks.batch_norm import BatchNorm
from audiovq.bottlenecks.choice import SCORE_ERROR
from audiovq.bottlenecks.residual import ResidualStack, seen_codebooks
from audiovq.config import AutoencoderConfig, FSQConfig


class FiniteScalarQuantizer(Quantizer):
    """FSQ (Mentzer et al., 2023, "Finite Scalar Quantization: VQ-VAE Made Simple", section 3.1), Q codebooks in groups.

    Latents are projected to Q * d dimensions. Dimension i of a codebook has L_i levels, evenly spaced from -1 to 1, and
    its number u_i is bounded and rounded to the nearest of them:

        f(u) = tanh(u),    n_i = round((L_i - 1) * (f(u_i) + 1) / 2),    v_i = 2 * n_i / (L_i - 1) - 1

    The decoder sees a projection of f(u) + sg[v - f(u)]: the gradient passes the rounding, not the bound
    (straight-through), dv_i / du_i = 1 - tanh(u_i)^2. The code is n_1 + L_1 * (n_2 + L_2 * (n_3 + ...)), so there are
    K = prod_i L_i codes. There is no codebook to learn and no loss of its own.

    For even L_i the paper shifts the tanh, so that a level lies at 0 and the others unevenly around it, which leaves no
    room for L_i = 2; here levels are symmetric for all L_i, and for odd L_i those of the paper. Before the tanh, batch
    normalisation brings each u_i to mean 0 and variance 1, as in `VectorQuantizer`: the tanh saturates where latents
    share a large constant part, and a rest that a residual level is left with is small (Zhu, 2025, "Robust Residual
    Finite Scalar Quantization for Neural Compression").

    Groups that are not told count as 0, the middle of all levels. With `dropout`, training shows the decoder such
    latents, as `audiovq.bottlenecks.residual` does.
    """

    usage: Tensor
    levels: Tensor
    places: Tensor
    boundaries: Tensor

    @classmethod
    def of(cls, config: AutoencoderConfig) -> Bottleneck:
        settings, dim = config.bottleneck, config.latent_dim
        assert isinstance(settings, FSQConfig)
        if settings.structure == "groups":
            return cls(dim, settings.levels, settings.num_codebooks, settings.dropout)
        return ResidualStack([cls(dim, settings.levels) for _ in range(settings.num_codebooks)], settings.dropout)

    def __init__(self, latent_dim: int, levels: list[int], num_codebooks: int = 1, dropout: float = 0.0):
        super().__init__()
        size, channels = math.prod(levels), num_codebooks * len(levels)
        self.codebook_sizes = num_codebooks * (size,)
        self.dropout = dropout
        self.project_in = nn.Linear(latent_dim, channels)
        self.batch_norm = BatchNorm(channels)
        self.project_out = nn.Linear(channels, latent_dim)
        self.register_buffer("usage", torch.full((num_codebooks, size), 1 / size))
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        places = torch.tensor([math.prod(levels[:i]) for i in range(len(levels))])
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("boundaries", level_boundaries(levels).repeat(num_codebooks, 1), persistent=False)

    def forward(self, z: Float[Tensor, "batch dim frames"]) -> BottleneckOutput:
        u = self.batch_norm(self.project_in(z.mT).mT)
        numbers = self._numbers(u.detach())
        codes, bounded = self._codes(numbers), u.tanh()
        if self.batch_norm.training:
            update_usage(self.usage, codes)
        latents = bounded + (self._values(numbers) - bounded).detach()
        seen = seen_codebooks(len(z), self.num_codebooks, self.dropout if self.training else 0.0, z.device)
        latents = latents * seen.repeat_interleave(len(self.levels), 1)[..., None]
        used = perplexity(self.usage).unbind()
        metrics = {f"perplexity_{number}" if len(used) > 1 else "perplexity": x for number, x in enumerate(used)}
        output = BottleneckOutput(self._project_out(latents), codes, z.new_zeros(()), metrics)
        if self.num_codebooks > 1:
            output.first = self._project_out(latents[:, : len(self.levels)])
        return output

    def hold_statistics(self) -> None:
        self.eval()
        self.training = True  # For quantizer dropout; usage is counted as batch statistics are.

    def choose(
        self, z: Float[Tensor, "batch dim frames"], scale: Float[Tensor, "batch frames"] | None = None
    ) -> tuple[Int[Tensor, "batch books frames"], Float[Tensor, "batch books frames"]]:
        """A number that rounding might bring to either side of a boundary goes to the lower one."""
        u, norm = self._features(z), self.batch_norm
        # How far u may move where a latent moves by 1.
        per_unit = norm.scale() * self.project_in.weight.norm(dim=-1)
        constant = norm.scale() * (self.project_in.bias.abs() + norm.mean.abs())
        lengths = z.norm(dim=1) if scale is None else scale
        rounding = SCORE_ERROR * torch.finfo(z.dtype).eps * (per_unit[:, None] * lengths[:, None] + constant[:, None])
        numbers = self._numbers(u - rounding)
        edges = self.boundaries.expand(z.shape[0], -1, -1)
        room = torch.minimum(u - edges.gather(-1, numbers), edges.gather(-1, numbers + 1) - u)
        margin = (room - rounding) / per_unit[:, None].clamp(min=torch.finfo(z.dtype).tiny)
        return self._codes(numbers), rearrange(margin, "b (q d) f -> b q d f", d=len(self.levels)).amin(2)

    def decode(self, codes: Int[Tensor, "batch books frames"]) -> Float[Tensor, "batch dim frames"]:
        numbers = codes[:, :, None] // self.places[:, None] % self.levels[:, None]
        return self._project_out(self._values(rearrange(numbers, "b q d f -> b (q d) f")))

    def _project_out(self, values: Float[Tensor, "batch channels frames"]) -> Float[Tensor, "batch dim frames"]:
        """Levels of all groups, or of the first few, as the decoder sees them."""
        missing = self.project_out.in_features - values.shape[1]
        return self.project_out(F.pad(values, (0, 0, 0, missing)).mT).mT

    def _features(self, z: Float[Tensor, "batch dim frames"]) -> Float[Tensor, "batch channels frames"]:
        """u, as evaluation computes it."""
        return self.batch_norm.by_averages(self.project_in(z.mT).mT)

    def _numbers(self, u: Float[Tensor, "batch channels frames"]) -> Int[Tensor, "batch channels frames"]:
        """Numbers n of the levels; on a boundary the lower one."""
        return (u[:, :, None] > self.boundaries[:, 1:-1, None]).sum(2)

    def _values(self, numbers: Int[Tensor, "batch channels frames"]) -> Float[Tensor, "batch channels frames"]:
        """Levels v, in [-1, 1], of their numbers."""
        last = (self.levels - 1).repeat(numbers.shape[1] // len(self.levels))
        return 2 * numbers.to(self.boundaries.dtype) / last[:, None] - 1

    def _codes(self, numbers: Int[Tensor, "batch channels frames"]) -> Int[Tensor, "batch books frames"]:
        numbers = rearrange(numbers, "b (q d) f -> b q d f", d=len(self.levels))
        return (numbers * self.places[:, None]).sum(2)


def level_boundaries(levels: list[int]) -> Float[Tensor, "dims edges"]:
    """Where each level begins and the last one ends, in terms of u: level n lies between edges n and n + 1."""
    with torch.device("cpu"):  # They are known before a network that is sketched without memory.
        edges = torch.full((len(levels), max(levels) + 1), math.inf, dtype=torch.float64)
        for row, count in zip(edges, levels, strict=True):
            row[0] = -math.inf
            row[1:count] = torch.atanh((2 * torch.arange(1, count, dtype=torch.float64) - 1) / (count - 1) - 1)
    return edges.float().to(torch.get_default_device())
