"""The WaveNet decoder: p(waveform | latents, speaker), a sample after the other (van den Oord et al., 2017)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from audiovq.audio.signal import MU_LAW_CLASSES, mu_law_decode, mu_law_encode
from audiovq.config import AutoencoderConfig, WaveNetDecoderConfig
from audiovq.nn.conv import CausalConv1d, activate
from audiovq.nn.decoder import Decoder, DecoderOutput
from audiovq.nn.stream import Stream
from audiovq.nn.wavenet import WaveNet
from audiovq.sampling.base import Stepper
from audiovq.sampling.stepping import fastest_stepper


class WaveNetDecoder(Decoder):
    """p(x_t | x_1 ... x_{t-1}, latents of the frames up to that of x_t, speaker) over the classes of a sample x_t.

    A causal convolution over the latents conditions all layers of a `WaveNet`; what it gives for a frame is held for
    the frame's `hop_length` samples. A speaker is an embedding, learned with the rest: the paper's one-hot vector
    times a matrix of rank `speaker_dim`.

    Args:
        classes: number of classes of a sample.
    """

    @classmethod
    def of(cls, config: AutoencoderConfig) -> WaveNetDecoder:
        assert isinstance(config.decoder, WaveNetDecoderConfig)
        return cls(config.decoder, config.latent_dim, config.hop_length, MU_LAW_CLASSES)

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

    def reconstruct(
        self,
        latents: Float[Tensor, "batch dim frames"],
        wave: Float[Tensor, "batch 1 time"],
        speaker: Int[Tensor, " batch"] | None = None,
        f0: Float[Tensor, "batch hops"] | None = None,
    ) -> DecoderOutput:
        logits = self(latents, mu_law_encode(wave).squeeze(1), speaker)
        return DecoderOutput(mu_law_decode(logits.argmax(1))[:, None], logits)

    def start(
        self, speaker: Int[Tensor, " #batch"] | None, seeds: Sequence[int]
    ) -> Callable[[Float[Tensor, "batch dim frames"]], Float[Tensor, "batch 1 time"]]:
        sampler = WaveNetSampler(self, speaker, seeds)
        return lambda latents: mu_law_decode(sampler(latents))[:, None]

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


class WaveNetSampler:
    """Draws samples from a `WaveNetDecoder`; latents may come in pieces.

    All that is random is one number a sample, drawn on the CPU from the item's seed. So an item depends on its latents,
    its speaker and its seed, and not on what else is in the batch, the pieces or the device, up to rounding: where that
    carries one sample into the next class, the rest is another draw.

    Args:
        speaker: number of the speaker of each item, or of one for all.
        seeds: one for each item.

    Shape:
        each call: latents [B, D, F]; result, classes [B, F * hop_length].
    """

    _last: Tensor

    def __init__(self, decoder: WaveNetDecoder, speaker: Int[Tensor, " #batch"] | None, seeds: Sequence[int]):
        self.decoder, self.speaker = decoder, speaker
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._stream = Stream()
        self._stepper: Stepper | None = None  # Made for the first piece: compiling takes a while.

    @torch.inference_mode()
    def __call__(self, latents: Float[Tensor, "batch dim frames"]) -> Int[Tensor, "batch time"]:
        network = self.decoder.network
        if self._stepper is None:
            self._stepper = fastest_stepper(network, len(latents))
            self._last = self._stepper.start()
        speaker = self.decoder.embed(self.speaker)
        speaker = speaker.expand(len(latents), -1) if speaker is not None else None
        samples = []
        # Frame by frame, so that its length does not change how a piece is rounded.
        for frame in latents.split(1, -1):
            condition = network.conditions(self.decoder.local(frame, self._stream), speaker)
            assert condition is not None
            uniforms = torch.stack([torch.rand(1, self.decoder.hop_length, generator=g) for g in self._generators])
            samples.append(self._stepper.generate(self._last, uniforms, condition[..., 0].contiguous()))
            self._last = samples[-1][..., -1]
        return torch.cat(samples, -1).squeeze(1)
