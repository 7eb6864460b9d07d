"""Windows of one length over the codes of a whole set, for training language models."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import Dataset

from audiovq.data.tokens.token_set import TokenSet
from audiovq.devices import derive_seed
from audiovq.errors import TokenError


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
