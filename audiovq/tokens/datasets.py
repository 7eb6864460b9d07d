"""Token data sets as torch data sets: utterances by number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor
from torch.utils.data import Dataset

from audiovq.devices import derive_seed
from audiovq.errors import TokenError
from audiovq.nn.pattern import Pattern
from audiovq.tokens.shards import TokenRow
from audiovq.tokens.token_set import TokenSet


class TokenDataset(TokenSet, Dataset[TokenRow]):
    """A token data set with random access, for `torch.utils.data.DataLoader`.

        dataset = TokenDataset("exp/codes")
        dataset[5].codes  # numpy uint16 [Q, F]
        dataset.lengths, dataset.ids, dataset.speakers  # without reading any codes
        DataLoader(dataset, batch_size=8, shuffle=True, num_workers=2, collate_fn=pad_rows)

    Reading one row decodes its row group, about 65,000 codes. Shards are opened when they are first needed, in each
    worker for itself.

    Raises:
        TokenError: the folder is no token data set, or a file in it is damaged.
    """


@dataclass(frozen=True)
class TokenBatch:
    """Utterances of different lengths together."""

    codes: Int64[Tensor, "batch books frames"]
    """Padded on the right with zeros."""
    lengths: Int64[Tensor, " batch"]
    """Frames of each."""
    rows: list[TokenRow]
    """Where they come from, in the same order."""


def pad_rows(rows: Sequence[TokenRow]) -> TokenBatch:
    """Rows as one batch of tensors, for a DataLoader's `collate_fn`."""
    lengths = torch.tensor([row.num_frames for row in rows])
    codes = torch.zeros(len(rows), len(rows[0].codes), int(lengths.max()), dtype=torch.int64)
    for item, row in zip(codes, rows, strict=True):
        item[:, : row.num_frames] = torch.from_numpy(row.codes.astype(np.int64))
    return TokenBatch(codes, lengths, list(rows))


class PackedWindows(Dataset[Int64[Tensor, "books length"]]):
    """All utterances of a token data set, one after another, cut into windows int64 [Q, length] without padding.

        windows = PackedWindows(TokenSet("exp/codes"), length=1024, separator=codebook_size, seed=0)
        for epoch in range(epochs):
            windows.set_epoch(epoch)
            for batch in DataLoader(windows, batch_size=16, num_workers=2): ...  # [B, Q, length]

    Window k holds frames k * length to (k + 1) * length of the stream of utterances. Taken together the windows hold
    every frame of an epoch's stream once, in order, but for the last total % length frames, which fill no window.
    Utterances are shuffled, not windows: neighbours in a window are neighbours by chance, and a stateful model may
    read the windows in order.

    Args:
        length: frames in a window.
        separator: id that takes one frame (in all codebooks) before each utterance, outside the codebook, such as
            `codebook_size`; None lets utterances follow each other directly.
        seed: the order of utterances is a pure function of (seed, epoch); None keeps that of the set.

    Raises:
        TokenError: the set does not fill one window, or the separator is one of the codes.
    """

    def __init__(self, tokens: TokenSet, length: int, separator: int | None = None, seed: int | None = None):
        if separator is not None and separator < tokens.info.codebook_size:
            raise TokenError(f"separator {separator} is a code; take one from {tokens.info.codebook_size} on")
        self.tokens, self.length, self.separator, self.seed = tokens, length, separator, seed
        self.total = int(tokens.lengths.sum()) + (0 if separator is None else len(tokens))
        """Frames in an epoch's stream, separators included."""
        if self.total < length:
            raise TokenError(f"{tokens.folder}: holds {self.total} frames, fewer than one window of {length}")
        # Shared, so that workers that outlive an epoch see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._arranged = -1

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of utterances; to be called before an iteration begins."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return self.total // self.length

    def __getitem__(self, index: int) -> Int64[Tensor, "books length"]:
        if not 0 <= index < len(self):
            raise IndexError(f"no window {index}, there are {len(self)}")
        self._arrange(int(self._epoch))
        window = np.empty((self.tokens.info.num_codebooks, self.length), dtype=np.int64)
        start = index * self.length
        place = int(np.searchsorted(self._ends, start, side="right"))
        filled = 0
        while filled < self.length:
            stretch = self._stretch(int(self._order[place]))
            skipped = max(0, start - (int(self._ends[place]) - stretch.shape[1]))
            piece = stretch[:, skipped : skipped + self.length - filled]
            window[:, filled : filled + piece.shape[1]] = piece
            filled += piece.shape[1]
            place += 1
        return torch.from_numpy(window)

    def _stretch(self, row: int) -> np.ndarray:
        """What an utterance adds to the stream."""
        codes = self.tokens[row].codes.astype(np.int64)
        if self.separator is None:
            return codes
        return np.pad(codes, ((0, 0), (1, 0)), constant_values=self.separator)

    def _arrange(self, epoch: int) -> None:
        """Lay out the stream of an epoch: the order of utterances, and where each ends."""
        if self._arranged == epoch:
            return
        if self.seed is None:
            self._order = np.arange(len(self.tokens))
        else:
            generator = np.random.default_rng(derive_seed(self.seed, "windows", epoch))
            self._order = generator.permutation(len(self.tokens))
        self._ends = np.cumsum(self.tokens.lengths[self._order] + (0 if self.separator is None else 1))
        self._arranged = epoch


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
