"""Discriminators: networks that learn to tell true waves from decoded ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from audiovq.config import DiscriminatorConfig

Judgement = tuple[Float[Tensor, "batch _ _"], list[Float[Tensor, "batch _ _ _"]]]
"""Float32 scores of many stretches of a wave, high where it seems true, and the features of every layer below."""
GAIN = 10.0
"""Brings speech, with a root mean square of about 0.1, to about 1, from where networks learn faster."""
SLOPE = 0.2
"""Slope of the leaky ReLUs below zero."""


class Discriminators(nn.Module):
    """All discriminators of a config, those of the resolutions first.

    Shape:
        input [B, 1, T]; output one pair a discriminator: scores [B, R, C] and a list of features [B, channels, R, C],
        where rows R are steps of time and columns C are frequencies or places within a period.
    """

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        self.members = nn.ModuleList(
            [STFTDiscriminator(size, config.channels) for size in config.resolutions]
            + [PeriodDiscriminator(period, config.channels) for period in config.periods]
        )

    def forward(self, wave: Float[Tensor, "batch 1 time"]) -> list[Judgement]:
        return [member(GAIN * wave) for member in self.members]


class STFTDiscriminator(nn.Module):
    """Judges the complex spectrogram at one resolution (Défossez et al., 2022, "High Fidelity Neural Audio
    Compression", section 3.4), with fewer channels and a stride in frequency from the first layer on.

    Real and imaginary parts are two channels. A kernel spans 3 frames and 9 bins; the dilation in time doubles from
    the second layer on.
    """

    window: Tensor

    def __init__(self, fft_size: int, channels: Sequence[int]):
        super().__init__()
        window = torch.hann_window(fft_size)
        # White noise has the same level at every resolution.
        self.register_buffer("window", window / window.norm(), persistent=False)
        dilations = [1, *(2**number for number in range(len(channels) - 1))]
        self.stack = ConvStack(
            nn.Conv2d(c_in, c_out, (3, 9), stride=(1, 2), padding=(dilation, 4), dilation=(dilation, 1))
            for c_in, c_out, dilation in zip([2, *channels], channels, dilations, strict=False)
        )

    def forward(self, wave: Float[Tensor, "batch 1 time"]) -> Judgement:
        size = len(self.window)
        spectrum = torch.stft(
            wave[:, 0].float(), size, size // 4, window=self.window, pad_mode="constant", return_complex=True
        )
        return self.stack(rearrange(torch.view_as_real(spectrum), "b bin frame part -> b part frame bin"))


class PeriodDiscriminator(nn.Module):
    """Judges samples that lie one period apart (Kong et al., 2020, "HiFi-GAN", section 2.3), with fewer channels.

    The wave is folded into rows of one period. A kernel spans 5 rows and one column; all layers but the last have a
    stride of 3 rows.
    """

    def __init__(self, period: int, channels: Sequence[int]):
        super().__init__()
        self.period = period
        strides = [3] * (len(channels) - 1) + [1]
        self.stack = ConvStack(
            nn.Conv2d(c_in, c_out, (5, 1), stride=(stride, 1), padding=(2, 0))
            for c_in, c_out, stride in zip([1, *channels], channels, strides, strict=False)
        )

    def forward(self, wave: Float[Tensor, "batch 1 time"]) -> Judgement:
        padded = nn.functional.pad(wave, (0, -wave.shape[-1] % self.period))
        return self.stack(rearrange(padded, "b 1 (row period) -> b 1 row period", period=self.period))


class ConvStack(nn.Module):
    """Convolutions with leaky ReLUs, whose outputs are the features, then one over 3 rows that gives the scores."""

    def __init__(self, layers: Iterator[nn.Conv2d]):
        super().__init__()
        self.layers = nn.ModuleList(weight_norm(layer) for layer in layers)
        last = self.layers[-1]
        assert isinstance(last, nn.Conv2d)
        self.score = weight_norm(nn.Conv2d(last.out_channels, 1, (3, 1), padding=(1, 0)))

    def forward(self, x: Float[Tensor, "batch channels rows columns"]) -> Judgement:
        features = []
        for layer in self.layers:
            x = nn.functional.leaky_relu(layer(x), SLOPE)
            features.append(x)
        return self.score(x).squeeze(1).float(), features
