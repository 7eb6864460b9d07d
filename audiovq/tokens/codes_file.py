"""The codes of one audio file, as a `.npz` file."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from audiovq.errors import TokenError
from audiovq.files import atomic_path

if TYPE_CHECKING:
    from jaxtyping import UInt16


@dataclass(frozen=True)
class CodesFile:
    """The codes of one audio file, as `audiovq encode` writes them."""

    codes: UInt16[np.ndarray, "books frames"]
    num_samples: int
    """Length of the audio at the model's rate."""
    sample_rate: int
    """The model's, in Hz."""
    weights_sha256: str
    """Of the model that made the codes."""


def save_codes(path: str | Path, file: CodesFile) -> None:
    """Write a compressed `.npz` file without pickled objects, atomically."""
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        np.savez_compressed(
            handle,
            codes=file.codes,
            num_samples=np.int64(file.num_samples),
            sample_rate=np.int64(file.sample_rate),
            weights_sha256=np.str_(file.weights_sha256),
        )


def load_codes(path: str | Path) -> CodesFile:
    """Read what `save_codes` wrote; pickled objects are refused.

    Raises:
        TokenError: the file is missing, damaged, or holds something else.
    """
    path = Path(path)
    try:
        # NumPy leaves a damaged file open if it opens the path itself.
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as arrays:
            codes = arrays["codes"]
            file = CodesFile(
                codes, int(arrays["num_samples"]), int(arrays["sample_rate"]), str(arrays["weights_sha256"])
            )
    except OSError as error:
        raise TokenError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise TokenError(f"{path}: is no codes file of `audiovq encode`, or is damaged ({error})") from error
    if codes.ndim != 2 or codes.dtype != np.uint16:
        raise TokenError(f"{path}: expected codes uint16 [Q, F], found {codes.dtype} {list(codes.shape)}")
    return file
