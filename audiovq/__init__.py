"""audiovq: audio tokenizers for speech.

    import audiovq

    tokenizer = audiovq.AudioTokenizer.from_pretrained("path/to/model")
    wave, sample_rate = audiovq.load_audio("speech.flac")
    codes = tokenizer.encode(wave, sample_rate)  # [1, Q, F], int64
    wave = tokenizer.decode(codes)  # [1, 1, T], float32

The names below load torch when they are first used; `import audiovq` alone does not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audiovq.audio.files import load_audio, save_audio
    from audiovq.models.prior import CodePrior
    from audiovq.models.tokenizer import AudioTokenizer

__version__ = "0.1.0"
__all__ = ["AudioTokenizer", "CodePrior", "load_audio", "save_audio"]

_HOMES = {
    "AudioTokenizer": "audiovq.models.tokenizer",
    "CodePrior": "audiovq.models.prior",
    "load_audio": "audiovq.audio",
    "save_audio": "audiovq.audio",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'audiovq' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
