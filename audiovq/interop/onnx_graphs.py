"""Encoder and decoder as ONNX can hold them: the same arithmetic without complex numbers, loops and random numbers.

Fourier transforms are products with fixed matrices, of tens or hundreds of rows, which a runtime computes faster than
its own transform. All else is the model's own code. A graph of a signal that arrives in pieces has what the causal
layers keep between them as an input and an output, `state` and `next_state`: all of it in one tensor, 0 at the start.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from audiovq.bottlenecks.base import Bottleneck
from audiovq.interop.onnx_stream import GraphStream, context_shapes
from audiovq.models.autoencoder import Autoencoder
from audiovq.nn import istft, source
from audiovq.nn.istft import ISTFTHead
from audiovq.nn.source import SourceDecoder
from audiovq.nn.spectral import FLOOR, LogSpectrum
from audiovq.nn.stream import Stream, extend_left, overlap_add

LARGEST_TABLES = 2**28
"""Numbers in the tables of all codebooks; an ONNX file holds no more than 2 GiB."""


class EncoderGraph(nn.Module):
    """Waveforms [B, 1, T] of any length to codes [B, Q, ceil(T / hop_length)].

    With a state, of a signal of which this is a piece: T is a multiple of the hop length, and the zeros by which the
    model looks ahead are not put before and behind it.
    """

    def __init__(self, model: Autoencoder):
        super().__init__()
        self.model = copy.deepcopy(model).eval()
        del self.model.decoder
        replace(self.model.encoder, LogSpectrum, ProductSpectrum)
        self.shapes = context_shapes(lambda stream: self.model.encoder(torch.zeros(1, 1, model.hop_length), stream))

    @property
    def state_size(self) -> int:
        """Numbers in the state of an item."""
        return sum(map(math.prod, self.shapes))

    def forward(self, wave: Tensor, state: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        if state is None:
            return self.model.bottleneck.encode(self.model.encode(wave))[0]
        stream = GraphStream(state, self.shapes)
        return self.model.bottleneck.encode(self.model.encoder(wave, stream))[0], stream.state


class DecoderGraph(nn.Module):
    """Codes [B, q, F] of the first q codebooks to waveforms [B, 1, F * hop_length].

    A decoder that draws noise is given it: [B, (F + look_ahead) * hop_length].

    With a state, of a signal of which this is a piece: noise is [B, F * hop_length], the waveform is late by the frames
    that the decoder looks ahead, and codes -1 stand for a frame behind the last one.
    """

    def __init__(self, model: Autoencoder):
        super().__init__()
        self.start, self.look_ahead = model.look_ahead * model.hop_length, model.look_ahead
        self.tables = CodeTables(model.bottleneck)
        decoder = copy.deepcopy(model.decoder).eval()
        self.draws = isinstance(decoder, SourceDecoder)
        self.decoder = SourceGraph(decoder) if isinstance(decoder, SourceDecoder) else decoder
        replace(self.decoder, ISTFTHead, ProductHead)
        latents, noise = torch.zeros(1, self.tables.rows.shape[1], 1), torch.zeros(1, model.hop_length)
        self.shapes = context_shapes(lambda stream: self._decode(latents, noise, stream))

    @property
    def state_size(self) -> int:
        """Numbers in the state of an item."""
        return sum(map(math.prod, self.shapes))

    def forward(
        self, codes: Tensor, noise: Tensor | None = None, state: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        if state is None:
            return self._decode(F.pad(self.tables(codes), (0, self.look_ahead)), noise)[..., self.start :]
        stream = GraphStream(state, self.shapes)
        latents = self.tables(codes.clamp(min=0)) * (codes[:, :1] >= 0)
        return self._decode(latents, noise, stream), stream.state

    def _decode(self, latents: Tensor, noise: Tensor | None, stream: Stream | None = None) -> Tensor:
        return self.decoder(latents, noise, stream) if self.draws else self.decoder(latents, stream)


def replace(network: nn.Module, kind: type[nn.Module], build: type[nn.Module]) -> None:
    """Put what is built of each layer of a kind in its place."""
    for parent in list(network.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, kind):
                setattr(parent, name, build(layer))


class CodeTables(nn.Module):
    """Latents as a sum over codebooks of rows that the codes choose, which is what every bottleneck gives.

    The row of a code is what it adds behind codes 0 of the codebooks before; so codes may be those of the first few.
    """

    rows: Tensor
    starts: Tensor

    def __init__(self, bottleneck: Bottleneck):
        super().__init__()
        exact, sizes = copy.deepcopy(bottleneck).double().eval(), bottleneck.codebook_sizes
        tables, before = [], torch.zeros((), dtype=torch.float64)
        for number, size in enumerate(sizes):
            codes = torch.zeros(1, number + 1, size, dtype=torch.long)
            codes[:, -1] = torch.arange(size)
            latents = exact.decode(codes)[0].mT
            tables.append((latents - before).float())
            before = latents[0]
        self.register_buffer("rows", torch.cat(tables))
        self.register_buffer("starts", torch.tensor([sum(sizes[:number]) for number in range(len(sizes))]))

    def forward(self, codes: Int[Tensor, "batch books frames"]) -> Float[Tensor, "batch dim frames"]:
        return F.embedding(codes + self.starts[: codes.shape[1], None], self.rows).sum(1).mT


class ProductSpectrum(nn.Module):
    """A `LogSpectrum`, by a product in double precision.

    Magnitudes do not depend on where time 0 is. If it is the middle of the window, the real parts depend on the even
    part of the window alone and the imaginary parts on the odd one, which takes half the products.
    """

    window: Tensor
    cosines: Tensor
    sines: Tensor
    bank: Tensor

    def __init__(self, spectrum: LogSpectrum):
        super().__init__()
        self.hop, length = spectrum.hop, spectrum.length
        self.hops = -(-length // self.hop)
        self.unused = self.hops * self.hop - length
        self.middle = -(-length // 2)
        self.register_buffer("window", F.pad(spectrum.window[:length].double(), (2 * self.middle - length, 0)))
        bins = int(spectrum.bank.any(1).nonzero().max()) + 1  # Behind the last that counts there may be many.
        times = torch.arange(self.middle, dtype=torch.float64) + 0.5
        angles = 2 * math.pi / spectrum.fft_size * times[:, None] * torch.arange(bins)
        self.register_buffer("cosines", angles.cos())
        self.register_buffer("sines", angles.sin())
        self.register_buffer("bank", spectrum.bank[:bins].double())

    def forward(
        self, wave: Float[Tensor, "batch 1 time"], stream: Stream | None = None
    ) -> Float[Tensor, "batch spectra bands"]:
        pieces = hop_windows(self, wave[:, 0].double(), self.hop, self.hops, stream)[..., self.unused :]
        pieces = F.pad(pieces, (len(self.window) - pieces.shape[-1], 0)) * self.window
        before, after = pieces[..., : self.middle].flip(-1), pieces[..., self.middle :]
        real, imaginary = (after + before) @ self.cosines, (after - before) @ self.sines
        magnitude = (real * real + imaginary * imaginary).sqrt()
        return (magnitude @ self.bank).clamp(min=FLOOR).log()


class InverseProduct(nn.Module):
    """The inverse of a real Fourier transform of `size` numbers, times a window, by a product.

    Takes real and imaginary parts side by side, [..., 2 * bins]; as usual, imaginary parts that a real signal cannot
    have do not count.
    """

    matrix: Tensor

    def __init__(self, size: int, window: Float[Tensor, " size"]):
        super().__init__()
        bins = size // 2 + 1
        angles = 2 * math.pi / size * torch.arange(bins, dtype=torch.float64)[:, None] * torch.arange(size)
        weight = torch.full((bins, 1), 2 / size, dtype=torch.float64)
        weight[0] = 1 / size
        if size % 2 == 0:
            weight[-1] = 1 / size
        matrix = torch.cat([weight * angles.cos(), -weight * angles.sin()]) * window.double()
        self.register_buffer("matrix", matrix.float())

    def forward(self, spectrum: Float[Tensor, "*batch bins2"]) -> Float[Tensor, "*batch size"]:
        return spectrum @ self.matrix


class ProductHead(nn.Module):
    """An `ISTFTHead` without complex numbers."""

    def __init__(self, head: ISTFTHead):
        super().__init__()
        self.spectrum, self.subframes, self.overlap = head.spectrum, head.subframes, head.overlap
        self.inverse = InverseProduct(head.fft_size, head.window * math.sqrt(head.fft_size))  # Orthonormal.

    def forward(
        self, x: Float[Tensor, "batch dim frames"], stream: Stream | None = None
    ) -> Float[Tensor, "batch 1 time"]:
        log_magnitude, phase = rearrange(
            self.spectrum(x.mT), "b f (part s bin) -> part b (f s) bin", part=2, s=self.subframes
        )
        magnitude = log_magnitude.clamp(max=istft.LOUDEST).exp()
        pieces = self.inverse(torch.cat([magnitude * phase.cos(), magnitude * phase.sin()], -1))
        return overlap_add(self, pieces, self.overlap, stream)


class SourceGraph(nn.Module):
    """A `SourceDecoder` whose phases are added up hop by hop, and whose spectra are products."""

    forward_matrix: Tensor

    def __init__(self, decoder: SourceDecoder):
        super().__init__()
        self.decoder, self.hop, self.overlap, self.bins = decoder, decoder.hop, decoder.overlap, decoder.bins
        self.subframes, self.free, decoder.free = decoder.subframes, decoder.free, None
        size = decoder.fft_size
        angles = 2 * math.pi / size * torch.arange(size, dtype=torch.float64)[:, None] * torch.arange(self.bins)
        matrix = torch.cat([angles.cos(), -angles.sin()], 1) * decoder.window.double()[:, None]
        self.register_buffer("forward_matrix", matrix.float())
        self.inverse = InverseProduct(size, decoder.window / (self.overlap * 3 / 8))

    def forward(
        self,
        latents: Float[Tensor, "batch dim frames"],
        noise: Float[Tensor, "batch time"],
        stream: Stream | None = None,
    ) -> Float[Tensor, "batch 1 time"]:
        features = self.decoder.features(latents, stream)
        controls = self.decoder.controls_of(features)
        pulses = self.pulses(controls.f0, controls.voicing > 0, stream)
        harmonic, hiss = self.spectrum("pulses", pulses, stream), self.spectrum("noise", noise, stream)
        loudness = controls.harmonics.clamp(max=source.LOUDEST).exp()
        a, b = loudness * controls.phase.cos(), loudness * controls.phase.sin()
        hiss = hiss * torch.cat(2 * [controls.noise.clamp(max=source.LOUDEST).exp()], -1)
        real, imaginary = harmonic[..., : self.bins], harmonic[..., self.bins :]
        spectrum = torch.cat([real * a - imaginary * b, real * b + imaginary * a], -1) + hiss
        if self.free is not None:
            free = rearrange(self.free(features), "b f (s bin part) -> b (f s) (part bin)", part=2, s=self.subframes)
            spectrum = spectrum + free
        return overlap_add(self, self.inverse(spectrum), self.overlap, stream)

    def spectrum(
        self, name: str, signal: Float[Tensor, "batch time"], stream: Stream | None
    ) -> Float[Tensor, "batch hops bins2"]:
        """Real and imaginary parts of each hop's window."""
        return hop_windows((self, name), signal, self.hop, self.overlap, stream) @ self.forward_matrix

    def pulses(
        self,
        f0: Float[Tensor, "batch hops"],
        voiced: Float[Tensor, "batch hops"] | Tensor,
        stream: Stream | None = None,
    ) -> Float[Tensor, "batch time"]:
        """`SourceDecoder.pulses`, whose phases are found hop by hop: pitch is linear in each, its sum a parabola."""
        decoder, on = self.decoder, voiced
        known = extend_left((self, "pitch"), torch.stack([f0, on.to(f0)], 1), 1, stream)
        before = torch.where(known[:, 1, :-1] > 0, known[:, 0, :-1], f0)
        step = torch.arange(1, self.hop + 1, dtype=torch.float64)
        first, slope = before.double()[..., None], (f0.double() - before.double())[..., None]
        phase = (first * step + slope * (step * (step + 1) / (2 * self.hop))) / decoder.sample_rate
        phase = phase * on[..., None]  # It does not grow where there is no voice.
        start = torch.zeros_like(phase[:, :1, -1])
        if stream is not None:
            start = stream.recall((self, "phase"), start)
        total = start + phase[..., -1].cumsum(1)
        # Less what it was in the last hop without voice. Hops behind it have the same number of those before them.
        number = (~on).long().cumsum(1)
        spare = torch.full_like(number, 1) + f0.shape[1]
        kept = torch.zeros_like(F.pad(total, (0, 2))).scatter(1, torch.where(on, spare, number), total)
        phase = phase + (torch.cat([start, total[:, :-1]], 1) - kept.gather(1, number))[..., None]
        if stream is not None:  # Of whole periods nothing has to be known.
            end = phase[:, -1:, -1]
            stream.keep((self, "phase"), end - end.round())
        x = ((phase - phase.round()) * 2 * math.pi).to(f0.dtype)
        pitch = torch.lerp(before[..., None], f0[..., None], (step / self.hop).to(f0.dtype))
        return (source.sum_of_harmonics(x, pitch, decoder.sample_rate) * on[..., None]).flatten(1)


def hop_windows(
    layer: Hashable, signal: Float[Tensor, "batch time"], hop: int, hops: int, stream: Stream | None
) -> Float[Tensor, "batch windows size"]:
    """Windows of `hops` hops that end with each hop of a signal, which begins with zeros."""
    pieces = signal.unflatten(-1, (-1, hop))
    count = pieces.shape[1]
    known = extend_left((layer, "windows"), pieces, hops - 1, stream, dim=1)
    return torch.cat([known[:, part : part + count] for part in range(hops)], -1)
