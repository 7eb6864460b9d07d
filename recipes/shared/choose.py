"""What some stages of run.sh work on, a line each and evenly spread over all.

usage: choose.py ids MANIFEST COUNT
       choose.py speakers MODEL|PRIOR COUNT
"""

from __future__ import annotations

import sys
from pathlib import Path

from audiovq.batching import evenly_spread
from audiovq.config import AutoencoderConfig, PriorConfig
from audiovq.data.manifest import read_manifest
from audiovq.models.release import kind_of, read_config


def names(kind: str, source: Path) -> list[str]:
    """Ids of a manifest's utterances, or the speakers that a tokenizer or a prior knows."""
    if kind == "speakers" and kind_of(source) == "prior":
        return read_config(source, PriorConfig).speakers
    if kind == "speakers":
        return read_config(source, AutoencoderConfig).speakers
    return [utterance.id for utterance in read_manifest(source)]


if __name__ == "__main__":
    kind, source, count = sys.argv[1:]
    print(*evenly_spread(names(kind, Path(source)), int(count)), sep="\n")
