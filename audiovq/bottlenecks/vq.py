"""Vector quantization: nearest neighbour in a learned codebook, with a straight-through gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from audiovq.bottlenecks.base import BottleneckOutput, Quantizer, count_indices, perplexity
from audiovq.bottlenecks.batch_norm import BatchNorm
from audiovq.bottlenecks.choice import SCORES_PER_BLOCK, Scores, choose
from audiovq.config import AutoencoderConfig, VQConfig
from audiovq.distributed import from_first_process, sum_over_processes
from audiovq.nn.linear import Derived

KMEANS_ITERATIONS = 10
ON_DEVICE = 2**26
"""Scores that are computed at a time on an accelerator."""
DRAW_NOISE = 0.01
"""Standard deviation of the noise on a latent that becomes a code, relative to that of the latents."""


class VectorQuantizer(Quantizer):
    """VQ-VAE's bottleneck (van den Oord et al., 2017, "Neural Discrete Representation Learning", eq. 1 to 3).

    Code of a frame: k = argmin_j || z_e - e_j ||^2. The decoder sees z_q = z_e + sg[e_k - z_e], so that its gradient
    goes to the encoder unchanged (straight-through). The loss of a frame, averaged over frames, is

        || sg[z_e] - e_k ||^2 + beta * || z_e - sg[e_k] ||^2

    codebook loss and commitment loss; sg stops gradients. With `update: ema` there is no codebook loss; the codebook
    follows moving averages of the latents instead (appendix A.1 of the paper). Here n_k is the share of frames that
    chose code k and m_k the sum of their latents divided by the number of frames:

        N_k <- decay * N_k + (1 - decay) * n_k,    M_k <- decay * M_k + (1 - decay) * m_k,    e_k = M_k / N_k

    With `code_dim`, z_e is a linear projection of the latents, and a second one takes e_k back. With `normalize`, z_e
    and e_j are scaled to length 1 before all of the above (both: Yu et al., 2022, "Vector-quantized Image Modeling
    with Improved VQGAN"). Before that, batch normalisation brings each dimension of z_e to mean 0 and variance 1 (as in
    Łańcucki et al., 2020, "Robust Training of Vector Quantized Bottleneck Models"): an encoder's latents share a large
    constant part, and scaled to length 1 as they are they would crowd at one point of the sphere, where a few codes
    serve them all.

    Dead codes: N_k is kept with either update. A code with N_k below `revive_below / K`, which is that fraction of
    uniform use, is placed on a random latent of the batch, and its statistics (N_k = 1 / K, M_k = e_k / K) with it.
    Counts, sums and new codes are the same on all processes of a distributed run.
    """

    usage: Tensor
    sums: Tensor
    initialized: Tensor

    @classmethod
    def of(cls, config: AutoencoderConfig) -> VectorQuantizer:
        assert isinstance(config.bottleneck, VQConfig)
        return cls(config.latent_dim, config.bottleneck)

    def __init__(self, latent_dim: int, config: VQConfig):
        super().__init__()
        self.config = config
        self.codebook_sizes = (config.codebook_size,)
        code_dim = config.code_dim or latent_dim
        projected = config.code_dim is not None
        self.project_in = nn.Linear(latent_dim, code_dim) if projected else nn.Identity()
        self.project_out = nn.Linear(code_dim, latent_dim) if projected else nn.Identity()
        self.batch_norm = BatchNorm(code_dim)
        self.codebook = nn.Parameter(torch.randn(config.codebook_size, code_dim), config.update == "gradient")
        self.register_buffer("usage", torch.full((config.codebook_size,), 1 / config.codebook_size))
        self.register_buffer("sums", self.codebook.detach() / config.codebook_size)
        self.register_buffer("initialized", torch.tensor(False))
        self._derived = Derived()
        self._placed = False  # Once it is known to be so: to look at `initialized` is to wait for the device.

    @property
    def follows_means(self) -> bool:
        """Whether codes are moving averages of the latents assigned to them."""
        return self.config.update == "ema"

    def forward(self, z: Float[Tensor, "batch dim frames"]) -> BottleneckOutput:
        z_e = self._project(z)
        flat = rearrange(z_e.detach(), "b f d -> (b f) d")
        metrics: dict[str, Tensor] = {}
        if self.training:
            # Before the codebook enters the graph, since it is changed in place.
            metrics["revived_codes"] = self._place_codes(flat)
        codebook = self.codes()
        indices = nearest(flat, codebook.detach())
        e_k = F.embedding(indices, codebook).view_as(z_e)
        if self.training:
            self._update_statistics(flat, indices)

        commitment = (z_e - e_k.detach()).square().sum(-1).mean()
        loss = self.config.beta * commitment
        if self.config.update == "gradient":
            loss = loss + (z_e.detach() - e_k).square().sum(-1).mean()
        metrics |= {"quantization_error": commitment.detach(), "perplexity": perplexity(self.usage)}
        z_q = z_e + (e_k - z_e).detach()
        return BottleneckOutput(
            latents=self.project_out(z_q).mT,
            codes=indices.view(z_e.shape[0], 1, z_e.shape[1]),
            loss=loss,
            metrics=metrics,
        )

    def choose(
        self, z: Float[Tensor, "batch dim frames"], scale: Float[Tensor, "batch frames"] | None = None
    ) -> tuple[Int[Tensor, "batch 1 frames"], Float[Tensor, "batch 1 frames"]]:
        """By || e ||^2 - 2 z_e.e, since || z_e ||^2 is the same for all codes. With `normalize` all || e ||^2 are, too,
        and the length of z_e does not matter."""
        lookup, z = self._lookup(), z.double()
        if lookup.inward is None:
            features = self.batch_norm.by_averages(z).mT if self.config.normalize else z.mT
        else:
            features = F.linear(z.mT, *lookup.inward)
        indices, margin = choose(z, features, lookup.scores, scale)
        return indices[:, None], margin[:, None]

    def decode(self, codes: Int[Tensor, "batch 1 frames"]) -> Float[Tensor, "batch dim frames"]:
        return F.embedding(codes[:, 0], self._lookup().decoded).to(self.codebook.dtype).mT

    def rest(
        self, z: Float[Tensor, "batch dim frames"], codes: Int[Tensor, "batch 1 frames"]
    ) -> Float[Tensor, "batch dim frames"]:
        return z.double() - F.embedding(codes[:, 0], self._lookup().decoded).mT

    def _lookup(self) -> Lookup:
        """What looking codes up needs of the weights."""
        # Named one by one: `parameters()` would take as long as choosing the codes of a frame.
        weights = [self.codebook, self.batch_norm.mean, self.batch_norm.variance]
        for layer in (self.project_in, self.project_out):
            weights += [layer.weight, layer.bias] if isinstance(layer, nn.Linear) else []
        return self._derived.of(lambda *_: Lookup.of(self), *weights)

    @torch.no_grad()
    def settle(self, z: Float[Tensor, "batch dim frames"]) -> None:
        """Move each code of an EMA codebook to the mean of itself and the latents that choose it."""
        if self.follows_means:
            flat = rearrange(self._project(z), "b f d -> (b f) d")
            indices = nearest(flat, self.codes())
            counts = sum_over_processes(count_indices(indices, self.codebook_size).to(flat.dtype))
            sums = sum_over_processes(torch.zeros_like(self.codebook).index_add_(0, indices, flat))
            self.codebook.copy_((self.codes() + sums) / (1 + counts[:, None]))

    def codes(self) -> Float[Tensor, "codes dim"]:
        """The codebook as it is compared with latents: [K, code_dim]."""
        return F.normalize(self.codebook, dim=-1) if self.config.normalize else self.codebook

    def _project(self, z: Float[Tensor, "batch dim frames"]) -> Float[Tensor, "batch frames code_dim"]:
        """Latents as they are compared with the codes."""
        z_e = self.project_in(z.mT)
        return F.normalize(self.batch_norm(z_e.mT).mT, dim=-1) if self.config.normalize else z_e

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._placed = False

    @torch.no_grad()
    def _place_codes(self, z: Float[Tensor, "frames dim"]) -> Int[Tensor, ""]:
        """First codebook from the first batch, later dead codes onto latents of this batch; how many were revived."""
        if not self._placed and not self.initialized:
            centres = (
                kmeans(z, self.codebook_size) if self.config.init == "kmeans" else draw_rows(z, self.codebook_size)
            )
            self._set_codes(torch.ones_like(self.usage, dtype=torch.bool), from_first_process(centres))
            self.initialized.fill_(True)
            return torch.zeros((), dtype=torch.long, device=z.device)
        self._placed = True
        dead = self.usage < self.config.revive_below / self.codebook_size
        if z.device.type != "cpu" or dead.any():  # Elsewhere, to ask would be to wait.
            self._set_codes(dead, from_first_process(draw_rows(z, self.codebook_size)))
        return dead.sum()

    def _set_codes(self, chosen: Bool[Tensor, " codes"], values: Float[Tensor, "codes dim"]) -> None:
        # Of tensors that are as large as before: how many codes are chosen only the device knows.
        self.codebook.copy_(torch.where(chosen[:, None], values, self.codebook))
        self.sums.copy_(torch.where(chosen[:, None], values / self.codebook_size, self.sums))
        self.usage.masked_fill_(chosen, 1 / self.codebook_size)

    @torch.no_grad()
    def _update_statistics(self, z: Float[Tensor, "frames dim"], indices: Int[Tensor, " frames"]) -> None:
        frames = sum_over_processes(z.new_full((), len(z)))
        counts = sum_over_processes(count_indices(indices, self.codebook_size).to(z.dtype))
        decay = self.config.decay
        self.usage.lerp_(counts / frames, 1 - decay)
        if self.follows_means:
            sums = sum_over_processes(torch.zeros_like(self.sums).index_add_(0, indices, z))
            self.sums.lerp_(sums / frames, 1 - decay)
            # A code that nobody chose keeps its place; without revival its statistics decay towards 0 / 0.
            used = self.usage > torch.finfo(self.usage.dtype).eps
            self.codebook.copy_(torch.where(used[:, None], self.sums / self.usage[:, None], self.codebook))


@dataclass
class Lookup:
    """Matrices in which the weights of a quantizer are multiplied out, for looking codes up; in double precision."""

    inward: tuple[Float[Tensor, "code_dim dim"], Float[Tensor, " code_dim"]] | None
    """Projection and normalisation of latents in one: weight and bias. None without a projection."""
    scores: Scores
    decoded: Float[Tensor, "codes dim"]
    """The latent of each code."""

    @classmethod
    def of(cls, quantizer: VectorQuantizer) -> Lookup:
        config, norm = quantizer.config, quantizer.batch_norm
        mean, scale = norm.mean.double(), norm.scale().double()
        codes = quantizer.codebook.double()
        bias = -0.5 * codes.square().sum(-1)
        if config.normalize:
            codes, bias = F.normalize(codes, dim=-1), torch.zeros_like(bias)
        else:
            mean, scale = torch.zeros_like(mean), torch.ones_like(scale)
        project_in, project_out = quantizer.project_in, quantizer.project_out
        if not isinstance(project_in, nn.Linear) or not isinstance(project_out, nn.Linear):
            return cls(None, Scores(codes, bias, codes * scale), codes)
        weight = scale[:, None] * project_in.weight.double()
        inward = weight, scale * (project_in.bias.double() - mean)
        decoded = F.linear(codes, project_out.weight.double(), project_out.bias.double())
        return cls(inward, Scores(codes, bias, codes @ weight), decoded)


def nearest(z: Float[Tensor, "frames dim"], codebook: Float[Tensor, "codes dim"]) -> Int[Tensor, " frames"]:
    """Index of the code with the least squared Euclidean distance, in blocks of rows to bound memory.

    || z ||^2 is the same for all codes, so || e ||^2 - 2 z.e decides.
    """
    squared, transposed = codebook.square().sum(-1), codebook.mT
    most = SCORES_PER_BLOCK if z.device.type == "cpu" else ON_DEVICE
    rows = max(1, most // len(codebook))
    return torch.cat([torch.addmm(squared, block, transposed, alpha=-2).argmin(-1) for block in z.split(rows)])


def draw_rows(z: Float[Tensor, "frames dim"], count: int) -> Float[Tensor, "count dim"]:
    """`count` rows of `z` at random, repeated if there are fewer, with a little noise: equal codes would make ties."""
    order = torch.randperm(len(z), device=z.device)
    rows = z[order.repeat(-(-count // len(z)))[:count]]
    scale = z.std(0, correction=0).clamp(min=torch.finfo(z.dtype).eps ** 0.5)
    return rows + DRAW_NOISE * scale * torch.randn_like(rows)


def kmeans(z: Float[Tensor, "frames dim"], count: int) -> Float[Tensor, "count dim"]:
    """Centres after a few of Lloyd's iterations from random rows; a centre that loses all its rows stays in place."""
    centres = draw_rows(z, count)
    for _ in range(KMEANS_ITERATIONS):
        indices = nearest(z, centres)
        counts = count_indices(indices, count).to(z.dtype)[:, None]
        means = torch.zeros_like(centres).index_add_(0, indices, z) / counts.clamp(min=1)
        centres = torch.where(counts > 0, means, centres)
    return centres
