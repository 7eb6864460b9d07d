"""A decoder that starts from a source: harmonic pulses and noise, shaped by filters that a network predicts.

A magnitude loss learns the phases of a voice last, so that its harmonics come late. Here they are there from the start:
the network says pitch and voicing, a pulse train follows them exactly, and what is left to learn are filters (the
source-filter model; as networks, Wang et al., 2019, "Neural Source-Filter Waveform Models", and Engel et al., 2020,
"DDSP").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from audiovq.config import AutoencoderConfig, SourceDecoderConfig
from audiovq.nn.convnext import ConvNeXtStack
from audiovq.nn.decoder import Decoder, DecoderOutput
from audiovq.nn.linear import Linear
from audiovq.nn.stream import Stream, extend_left, overlap_add

REFERENCE = 100.0
"""Pitch in Hz at which log2 of it counts as 0."""
LOWEST, HIGHEST = 40.0, 1000.0
"""Pitches in Hz that the source can have."""
HARMONIC_BIAS, NOISE_BIAS = -3.0, -5.0
"""Natural logarithms of the filters' magnitudes before training."""
LOUDEST = 5.0
"""The largest logarithm of a magnitude; the clamp keeps a bad first step from overflowing."""


@dataclass
class Controls:
    """What the network says about each of N hops."""

    log_f0: Float[Tensor, "batch hops"]
    """log2(f0 / 100 Hz) at the end of the hop."""
    voicing: Float[Tensor, "batch hops"]
    """Logit of whether the hop is voiced."""
    harmonics: Float[Tensor, "batch hops bins"]
    """Log magnitude of the harmonics' filter."""
    noise: Float[Tensor, "batch hops bins"]
    """Log magnitude of the noise's filter."""
    phase: Float[Tensor, "batch hops bins"]
    """Phase of the harmonics' filter in radians."""
    free: Complex[Tensor, "batch hops bins"] | None = None
    """A spectrum beside the source's, if the decoder has one."""

    @property
    def f0(self) -> Float[Tensor, "batch hops"]:
        """Pitch in Hz at the end of the hop."""
        return (REFERENCE * torch.exp2(self.log_f0)).clamp(LOWEST, HIGHEST)


class SourceDecoder(ConvNeXtStack, Decoder):
    """Blocks at the frame rate, then a source and its filters at `subframes` hops a frame.

    Pulses and noise are cut into windows of `overlap` hops that end with their hop, filtered as spectra, and added up.
    So the sound of a hop comes out `overlap - 1` hops late, when the last window that it is part of has been filtered:
    together with a look-ahead of a frame or more, that is when it is due.
    """

    window: Tensor
    wants_pitch = True

    @classmethod
    def of(cls, config: AutoencoderConfig) -> SourceDecoder:
        assert isinstance(config.decoder, SourceDecoderConfig)
        return cls(config.decoder, config.latent_dim, config.hop_length, config.sample_rate)

    def __init__(self, config: SourceDecoderConfig, latent_dim: int, hop_length: int, sample_rate: int):
        super().__init__(config, latent_dim, config.kernel_size)
        self.subframes, self.overlap, self.sample_rate = config.subframes, config.overlap, sample_rate
        self.hop = hop_length // config.subframes
        self.fft_size = config.overlap * self.hop
        self.bins = self.fft_size // 2 + 1
        self.filters = Linear(config.dim, config.subframes * self.bins * 3)
        self.pitch = Linear(config.dim, config.subframes * 2)
        nn.init.normal_(self.filters.weight, std=0.01)
        harmonics, noise, phase = self.filters.bias.detach().view(3, -1)
        for bias, value in ((harmonics, HARMONIC_BIAS), (noise, NOISE_BIAS), (phase, 0.0)):
            nn.init.constant_(bias, value)
        self.free = nn.Linear(config.dim, config.subframes * self.bins * 2) if config.free_spectrum else None
        if self.free is not None:  # It starts at nothing, so that the source learns first what it can.
            nn.init.zeros_(self.free.weight)
            nn.init.zeros_(self.free.bias)
        self.register_buffer("window", torch.hann_window(self.fft_size), persistent=False)

    def forward(
        self, x: Float[Tensor, "batch dim frames"], stream: Stream | None = None
    ) -> Float[Tensor, "batch 1 time"]:
        noise = torch.randn(len(x), x.shape[-1] * self.subframes * self.hop, device=x.device)
        return self.decode(x, noise, stream)

    def decode(
        self, x: Float[Tensor, "batch dim frames"], noise: Float[Tensor, "batch time"], stream: Stream | None = None
    ) -> Float[Tensor, "batch 1 time"]:
        """Sound of latents, by white noise that is given."""
        controls = self.controls(x, stream)
        return self.synthesize(controls, controls.f0, controls.voicing > 0, noise, stream)

    def reconstruct(
        self,
        latents: Float[Tensor, "batch dim frames"],
        wave: Float[Tensor, "batch 1 time"],
        speaker: Int[Tensor, " batch"] | None = None,
        f0: Float[Tensor, "batch hops"] | None = None,
    ) -> DecoderOutput:
        """With the true pitch, the source follows that, and what the network says of it is compared with it.

        Args:
            f0: true pitch in Hz at the end of each hop of the source, 0 where it is unvoiced; see `pitch_times`.
        """
        noise = torch.randn(len(latents), latents.shape[-1] * self.subframes * self.hop, device=latents.device)
        if f0 is None:
            return DecoderOutput(self.decode(latents, noise))
        controls = self.controls(latents)
        voiced = f0 > 0
        error = (controls.log_f0 - (f0.clamp(min=LOWEST) / REFERENCE).log2()).abs() * voiced
        terms = {
            "pitch": error.sum(-1) / voiced.sum(-1).clamp(min=1),
            "voicing": F.binary_cross_entropy_with_logits(controls.voicing, voiced.float(), reduction="none").mean(-1),
        }
        wave = self.synthesize(controls, torch.where(voiced, f0, controls.f0), voiced, noise)
        return DecoderOutput(wave, terms=terms)

    def pitch_times(self, num_frames: int, look_ahead: int) -> Int[Tensor, " hops"]:
        hops = torch.arange((num_frames + look_ahead) * self.subframes)
        return (hops + self.overlap - look_ahead * self.subframes) * self.hop

    def start(
        self, speaker: Int[Tensor, " #batch"] | None, seeds: Sequence[int]
    ) -> Callable[[Float[Tensor, "batch dim frames"]], Float[Tensor, "batch 1 time"]]:
        stream, noises = Stream(), NoiseMaker(seeds)
        frame = self.subframes * self.hop

        def decode(latents: Tensor) -> Tensor:
            return self.decode(latents, noises(latents.shape[-1], frame).to(latents.device), stream)

        return decode

    def controls(self, x: Float[Tensor, "batch dim frames"], stream: Stream | None = None) -> Controls:
        """What the network says: pitch, voicing and filters."""
        return self.controls_of(self.features(x, stream))

    def controls_of(self, h: Float[Tensor, "batch frames dim"]) -> Controls:
        """The same of the features that the output layers see."""
        harmonics, noise, phase = rearrange(
            self.filters(h).float(), "b f (part s bin) -> part b (f s) bin", part=3, s=self.subframes
        )
        log_f0, voicing = rearrange(self.pitch(h).float(), "b f (part s) -> part b (f s)", part=2)
        return Controls(log_f0, voicing, harmonics, noise, phase, self.free_spectrum(h))

    def free_spectrum(self, h: Float[Tensor, "batch frames dim"]) -> Complex[Tensor, "batch hops bins"] | None:
        if self.free is None:
            return None
        parts = rearrange(self.free(h).float(), "b f (s bin part) -> b (f s) bin part", part=2, s=self.subframes)
        return torch.view_as_complex(parts.contiguous())

    def synthesize(
        self,
        controls: Controls,
        f0: Float[Tensor, "batch hops"],
        voiced: Float[Tensor, "batch hops"] | Tensor,
        noise: Float[Tensor, "batch time"],
        stream: Stream | None = None,
    ) -> Float[Tensor, "batch 1 time"]:
        """Sound of N hops: pulses of pitch `f0` where they are voiced, and noise, both filtered."""
        pulses = self.pulses(f0, voiced, stream)
        source = extend_left((self, "source"), torch.stack([pulses, noise], 1), self.fft_size - self.hop, stream)
        spectra = torch.fft.rfft(source.unfold(-1, self.fft_size, self.hop) * self.window)
        magnitude = controls.harmonics.clamp(max=LOUDEST).exp()
        # Not `torch.polar`, whose sines and cosines come one at a time.
        voice = torch.complex(magnitude * controls.phase.cos(), magnitude * controls.phase.sin())
        spectrum = spectra[:, 0] * voice
        spectrum = spectrum + spectra[:, 1] * controls.noise.clamp(max=LOUDEST).exp()
        if controls.free is not None:
            spectrum = spectrum + controls.free
        # Squared Hann windows at a whole number of hops add up to 3/8 of that number everywhere.
        pieces = torch.fft.irfft(spectrum, n=self.fft_size) * (self.window / (self.overlap * 3 / 8))
        return overlap_add(self, pieces, self.overlap, stream)

    @torch.no_grad()
    def pulses(
        self, f0: Float[Tensor, "batch hops"], voiced: Tensor, stream: Stream | None = None
    ) -> Float[Tensor, "batch time"]:
        """Pulses of unit power with all harmonics below half the sample rate; each voiced stretch begins with one.

        Phases are added up in double precision.
        """
        known = extend_left((self, "pitch"), torch.stack([f0, voiced.to(f0)], 1), 1, stream)
        before = torch.where(known[:, 1, :-1] > 0, known[:, 0, :-1], f0)  # A stretch begins with its own pitch.
        ramp = torch.arange(1, self.hop + 1, device=f0.device) / self.hop
        pitch = torch.lerp(before[..., None], f0[..., None], ramp).flatten(1)
        on = voiced.repeat_interleave(self.hop, 1)
        phase = torch.cumsum(torch.where(on, pitch.double() / self.sample_rate, 0), 1)
        if stream is not None:
            phase = phase + stream.recall((self, "phase"), phase.new_zeros(len(phase), 1))
        # Less what it was when the stretch began: the phase does not grow in between.
        phase = phase - torch.where(on, 0, phase).cummax(1).values
        if stream is not None:
            stream.keep((self, "phase"), phase[:, -1:])
        # Around 0, where pulses are: float32 has many digits there, so that hardly any peak has to be told apart.
        x = ((phase - phase.round()) * 2 * math.pi).to(f0.dtype)
        return sum_of_harmonics(x, pitch, self.sample_rate) * on


def sum_of_harmonics(
    x: Float[Tensor, " *shape"], pitch: Float[Tensor, " *shape"], sample_rate: int
) -> Float[Tensor, " *shape"]:
    """A pulse train of unit power at phases x in radians: all harmonics of a pitch in Hz below half the sample rate.

    The sum of K cosines is sin((K + 1/2) x) / (2 sin(x / 2)) - 1/2.
    """
    # One even of a pitch above half the sample rate.
    harmonics = (sample_rate / 2 / pitch).floor().clamp(min=1)
    half = (x / 2).sin()
    peak = half.abs() < 1e-6
    total = torch.where(peak, harmonics, ((harmonics + 0.5) * x).sin() / (2 * torch.where(peak, 1.0, half)) - 0.5)
    return total * (2 / harmonics).sqrt()


class NoiseMaker:
    """White noise for each item of a batch, frame by frame: a function of the item's seed and the position alone."""

    def __init__(self, seeds: Sequence[int]):
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, num_frames: int, frame_length: int) -> Float[Tensor, "batch time"]:
        """The next `num_frames` frames. PyTorch draws normal numbers by sixteen: frames of a multiple of that are the
        same drawn at once, others are drawn one by one."""
        draws = [num_frames * frame_length] if frame_length % 16 == 0 else num_frames * [frame_length]
        return torch.stack(
            [torch.cat([torch.randn(size, generator=generator) for size in draws]) for generator in self._generators]
        )
