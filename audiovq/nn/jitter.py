"""Time jitter: a regularisation of latents (Chorowski et al., 2019)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def jitter(latents: Float[Tensor, "batch dim frames"], probability: float) -> Float[Tensor, "batch dim frames"]:
    """Replace each latent by the one before it with `probability`, and by the one after it with the same probability.

    Chorowski et al., 2019, "Unsupervised speech representation learning using WaveNet autoencoders", section III-C: a
    latent that its neighbours stand in for cannot hold what changes faster than frames do. At both ends, where there
    is no neighbour, it stays. A latent from the right is one of the future; so this is for training alone, and
    nothing that was trained with it is any less causal when it is used.

    Drawn from PyTorch's generator of the latents' device.
    """
    batch, dim, frames = latents.shape
    draw = torch.rand(batch, frames, device=latents.device)
    step = (draw >= 1 - probability).long() - (draw < probability).long()
    sources = (torch.arange(frames, device=latents.device) + step).clamp(0, frames - 1)
    return latents.gather(-1, sources[:, None].expand(-1, dim, -1))
