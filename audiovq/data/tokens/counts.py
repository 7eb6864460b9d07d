"""How often each code occurs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from audiovq.data.tokens.shards import TokenRow
from audiovq.data.tokens.token_set import TokenSet
from audiovq.errors import TokenError

if TYPE_CHECKING:
    from jaxtyping import Int64


def code_counts(tokens: TokenSet, row: TokenRow) -> Int64[np.ndarray, "books codes"]:
    """How often each code occurs in a row of a token data set: [Q, K].

    Raises:
        TokenError: the row holds a code outside the codebook.
    """
    size = tokens.info.codebook_size
    if row.codes.max(initial=0) >= size:
        raise TokenError(
            f"{tokens.folder}: utterance {row.utt_id!r} holds code {row.codes.max()}, the codebook has {size}; "
            "`audiovq tokens verify` lists all such utterances"
        )
    return np.stack([np.bincount(book, minlength=size) for book in row.codes])
