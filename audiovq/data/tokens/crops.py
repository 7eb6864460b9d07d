"""Random crops of the codes of a token data set, for training a prior."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from audiovq.data.tokens.token_set import TokenSet
from audiovq.devices import derive_seed
from audiovq.nn.pattern import Pattern


class CodeCrops:
    """Random crops of the steps that a pattern makes of utterances' codes; batch `index` is a pure function of
    (seed, index).

    Each crop is around a frame that is drawn from all frames of the set alike, moved to lie within its utterance. In
    front of it is the step before, which a network sees and does not predict: silence at the utterance's beginning.
    Where the utterance ends, silence fills the crop.

    Args:
        rows: numbers of the rows of the set that are used; together they hold at least one frame.
        silence: what stands where a stream is silent.
        crop_frames: frames in a crop; its steps are that times the pattern's stride.

    Raises:
        TokenError: when a batch is read, a shard is damaged.
    """

    def __init__(
        self,
        tokens: TokenSet,
        rows: Sequence[int],
        pattern: Pattern,
        silence: int,
        crop_frames: int,
        batch_size: int,
        seed: int,
    ):
        self.tokens, self.pattern, self.silence = tokens, pattern, silence
        self.crop_steps = crop_frames * pattern.stride
        self.batch_size, self.seed = batch_size, seed
        self._rows = np.asarray(rows)
        self._lengths = tokens.lengths[self._rows]
        self._ends = np.cumsum(self._lengths)

    def batch(self, index: int) -> Int[Tensor, "batch books steps"]:
        """Batch number `index`: [batch_size, Q, 1 + crop_frames * stride]."""
        return torch.stack([self._crop(row, frame) for row, frame in self._places(index)])

    def rows(self, index: int) -> list[int]:
        """Row in the set of each crop of batch number `index`."""
        return [row for row, _ in self._places(index)]

    def _places(self, index: int) -> list[tuple[int, int]]:
        """Row and frame around which each crop of a batch is."""
        generator = np.random.default_rng(derive_seed(self.seed, "crops", index))
        drawn = generator.integers(self._ends[-1], size=self.batch_size)
        chosen = np.searchsorted(self._ends, drawn, side="right")
        frames = drawn - self._ends[chosen] + self._lengths[chosen]
        return list(zip(self._rows[chosen].tolist(), frames.tolist(), strict=True))

    def _crop(self, row: int, frame: int) -> Int[Tensor, "books steps"]:
        codes = torch.from_numpy(self.tokens[row].codes.astype(np.int64))
        steps = self.pattern.arrange(codes, self.silence)
        last = max(0, steps.shape[-1] - self.crop_steps)
        start = min(max(0, frame * self.pattern.stride - self.crop_steps // 2), last)
        steps = torch.nn.functional.pad(steps, (1, self.crop_steps), value=self.silence)
        return steps[:, start : start + self.crop_steps + 1]
