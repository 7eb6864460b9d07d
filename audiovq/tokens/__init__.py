"""Token data sets: the codes of a whole corpus on disk.

A token data set is a folder of Parquet shards, one row an utterance, with a `tokenizer.json` beside them that says
which model the codes belong to. Every reader refuses the codes of another model.

`TokenDataset`, `PackedWindows`, `CodeCrops`, `TokenBatch` and `pad_rows` load torch when they are first used; the rest
does without.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from audiovq.tokens.info import (
    FORMAT_VERSION,
    TOKENIZER,
    TokenizerInfo,
    read_tokenizer_info,
    require_same_model,
    write_tokenizer_info,
)
from audiovq.tokens.shards import TokenRow, schema, write_shard
from audiovq.tokens.token_set import TokenSet, code_counts

if TYPE_CHECKING:
    from audiovq.tokens.datasets import CodeCrops, PackedWindows, TokenBatch, TokenDataset, pad_rows

__all__ = [
    "FORMAT_VERSION",
    "TOKENIZER",
    "CodeCrops",
    "PackedWindows",
    "TokenBatch",
    "TokenDataset",
    "TokenRow",
    "TokenSet",
    "TokenizerInfo",
    "code_counts",
    "pad_rows",
    "read_tokenizer_info",
    "require_same_model",
    "schema",
    "write_shard",
    "write_tokenizer_info",
]

_WITH_TORCH = {"CodeCrops", "PackedWindows", "TokenBatch", "TokenDataset", "pad_rows"}


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module 'audiovq.tokens' has no attribute {name!r}")
    return getattr(importlib.import_module("audiovq.tokens.datasets"), name)
