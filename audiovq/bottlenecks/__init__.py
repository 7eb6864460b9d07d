"""Bottlenecks between encoder and decoder."""

from __future__ import annotations

from audiovq.bottlenecks.base import Bottleneck, NoBottleneck
from audiovq.bottlenecks.gaussian import GaussianBottleneck
from audiovq.bottlenecks.gumbel import GumbelBottleneck
from audiovq.bottlenecks.reinforce import ReinforceBottleneck
from audiovq.bottlenecks.vq import VectorQuantizer
from audiovq.config import AutoencoderConfig, GaussianConfig, GumbelConfig, ReinforceConfig, VQConfig


def build_bottleneck(config: AutoencoderConfig) -> Bottleneck:
    """The bottleneck that a model's config asks for."""
    match config.bottleneck:
        case VQConfig() as settings:
            return VectorQuantizer(config.latent_dim, settings)
        case GaussianConfig() as settings:
            return GaussianBottleneck(config.latent_dim, settings)
        case GumbelConfig() as settings:
            return GumbelBottleneck(config.latent_dim, settings)
        case ReinforceConfig() as settings:
            return ReinforceBottleneck(config.latent_dim, settings)
    return NoBottleneck()
