"""Token data sets as torch data sets: utterances by number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import Dataset

from audiovq.data.tokens.shards import TokenRow
from audiovq.data.tokens.token_set import TokenSet


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
