"""The inverse-STFT head against an overlap-add written with NumPy, and against torch.istft."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from audiovq.nn.convnext import ConvNeXtBlock
from audiovq.nn.istft import ISTFTHead
from audiovq.nn.stream import Stream


def spectra(head: ISTFTHead, x: Tensor) -> np.ndarray:
    """The complex spectra of one item in order of time: [F * subframes, bins]."""
    linear = head.spectrum(x.mT).double().detach().numpy()[0]
    log_magnitude, phase = linear.reshape(len(linear), 2, head.subframes, head.bins).transpose(1, 0, 2, 3)
    return (np.exp(log_magnitude) * np.exp(1j * phase)).reshape(-1, head.bins)


@pytest.mark.parametrize(("hop_length", "subframes", "overlap"), [(20, 1, 2), (20, 2, 4), (30, 5, 3), (15, 1, 3)])
def test_the_head_is_a_windowed_overlap_add(hop_length, subframes, overlap):
    head = ISTFTHead(6, hop_length, subframes, overlap)
    x = torch.randn(1, 6, 5)
    hop, size = hop_length // subframes, overlap * hop_length // subframes
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    expected = np.zeros(5 * hop_length + size)
    for i, spectrum in enumerate(spectra(head, x)):
        piece = np.fft.irfft(spectrum, n=size) * np.sqrt(size) * window * 2 / overlap
        expected[i * hop : i * hop + size] += piece
    wave = head(x)
    assert wave.shape == (1, 1, 5 * hop_length)
    np.testing.assert_allclose(wave[0, 0].detach(), expected[: 5 * hop_length], atol=1e-5)


def test_spectra_of_a_signal_come_back_as_that_signal(mini_speech):
    """torch.istft divides by the sum of squared windows; plain Hann windows at analysis need none of that."""
    head = ISTFTHead(6, hop_length=64, subframes=1, overlap=4)
    signal = mini_speech[:, 8000 : 8000 + 64 * 40].double()
    frames = signal[0].unfold(0, head.fft_size, 64)
    spectrum = torch.fft.rfft(frames, norm="ortho")
    with torch.no_grad():
        head.spectrum.weight.zero_()
        head.spectrum.bias.zero_()
        head = head.double()
        head.spectrum = Prepared(torch.cat([spectrum.abs().log(), spectrum.angle()], dim=-1))
        wave = head(torch.zeros(1, 6, len(frames), dtype=torch.float64))
    # Every sample from the fourth hop on is covered by four windows.
    torch.testing.assert_close(wave[0, 0, 192:].double(), signal[0, 192 : 64 * len(frames)], atol=1e-6, rtol=0)


class Prepared(torch.nn.Module):
    """Gives the same [F, 2 * bins] to every item instead of a prediction."""

    def __init__(self, value: Tensor):
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return self.value[None]


@pytest.mark.parametrize("overlap", [2, 3, 4, 5, 8])
def test_windows_add_up_to_one_everywhere(overlap):
    head = ISTFTHead(1, hop_length=24, subframes=2, overlap=overlap)
    total = head.window.view(overlap, head.hop).sum(0)
    torch.testing.assert_close(total, torch.ones(head.hop))


def test_frames_through_a_stream_overlap_across_pieces():
    head, stream = ISTFTHead(6, hop_length=20, subframes=2, overlap=4), Stream()
    x = torch.randn(2, 6, 11)
    streamed = torch.cat([head(piece, stream) for piece in x.split([1, 3, 1, 6], dim=-1)], dim=-1)
    torch.testing.assert_close(streamed, head(x), atol=1e-5, rtol=1e-5)


def test_a_huge_magnitude_stays_finite():
    head = ISTFTHead(6, hop_length=20, subframes=2, overlap=4)
    assert head(1e6 * torch.randn(1, 6, 4)).isfinite().all()


def test_a_convnext_block_starts_near_the_identity_and_learns_every_weight():
    block = ConvNeXtBlock(8, kernel_size=7, expansion=2, scale=0.1)
    x = torch.randn(2, 30, 8)
    y = block(x)
    assert 0 < (y - x).std() < 0.2 * x.std()
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())
