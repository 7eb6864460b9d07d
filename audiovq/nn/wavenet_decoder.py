"""The WaveNet decoder: p(waveform | latents, speaker), a sample after the other (van den Oord et al., 2017)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from audiovq.config import WaveNetDecoderConfig
from audiovq.nn.conv import CausalConv1d, Stream, activate
from audiovq.nn.wavenet import WaveNet


class WaveNetDecoder(nn.Module):
    """p(x_t | x_1 ... x_{t-1}, latents of the frames up to that of x_t, speaker) over the classes of a sample x_t.

    A causal convolution over the latents conditions all layers of a `WaveNet`; what it gives for a frame is held for
    the frame's `hop_length` samples. A speaker is an embedding, learned with the rest: the paper's one-hot vector
    times a matrix of rank `speaker_dim`.

    Args:
        classes: number of classes of a sample.
    """

    def __init__(self, config: WaveNetDecoderConfig, latent_dim: int, hop_length: int, classes: int):
        super().__init__()
        self.hop_length, self.jitter = hop_length, config.jitter
        self.condition = CausalConv1d(latent_dim, config.condition_channels, config.condition_kernel_size)
        self.speakers = nn.Embedding(len(config.speakers), config.speaker_dim) if config.speakers else None
        speaker_dim = config.speaker_dim if config.speakers else 0
        self.network = WaveNet(config, 1, classes, config.condition_channels, speaker_dim)

    def forward(
        self,
        latents: Float[Tensor, "batch dim frames"],
        classes: Int[Tensor, "batch time"],
        speaker: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch classes time"]:
        """Logits of each sample, given the true samples before it: teacher forcing.

        Args:
            classes: of frames * hop_length samples.
            speaker: numbers of the speakers in the config; for a decoder that is told who speaks.
        """
        if self.training and self.jitter:
            latents = jitter(latents, self.jitter)
        return self.network(classes[:, None], self.local(latents), self.embed(speaker)).squeeze(1)

    def local(
        self, latents: Float[Tensor, "batch dim frames"], stream: Stream | None = None
    ) -> Float[Tensor, "batch channels frames"]:
        """What the network is told about each frame."""
        return activate(self.condition(latents, stream))

    def embed(self, speaker: Int[Tensor, " batch"] | None) -> Float[Tensor, "batch channels"] | None:
        """What the network is told about the speaker."""
        if self.speakers is None:
            return None
        assert speaker is not None, "a decoder with speakers is told who speaks"
        return self.speakers(speaker)


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
