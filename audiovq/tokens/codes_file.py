"""The codes of one audio file, as a `.npz` file."""

from __future__ import annotations

import io
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from audiovq.errors import TokenError
from audiovq.files import atomic_path, open_file
from audiovq.text import reason_of

if TYPE_CHECKING:
    from jaxtyping import UInt16


LARGEST = 2**27
"""Bytes of codes that one file holds at most: days of audio, even of eight codebooks."""
_FIELD = 2**12
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class CodesFile:
    """The codes of one audio file, as `audiovq encode` writes them."""

    codes: UInt16[np.ndarray, "books frames"]
    num_samples: int
    """Length of the audio at the model's rate."""
    sample_rate: int
    """The model's, in Hz."""
    weights_sha256: str
    """`AudioTokenizer.codes_sha256` of the model that made the codes."""
    model_codebooks: int | None = None
    """Codebooks of that model, of which the file holds the first ones; None: not told, as in earlier versions."""


def save_codes(path: str | Path, file: CodesFile) -> None:
    """Write a compressed `.npz` file without pickled objects, atomically.

    Raises:
        TokenError: the codes are more than such a file holds.
    """
    if file.codes.nbytes + _FIELD > LARGEST:
        raise TokenError(f"{path}: would hold more than {LARGEST} bytes of codes; use `audiovq tokenize`")
    arrays: dict[str, Any] = {
        "codes": file.codes,
        "num_samples": np.int64(file.num_samples),
        "sample_rate": np.int64(file.sample_rate),
        "weights_sha256": np.str_(file.weights_sha256),
    }
    if file.model_codebooks is not None:
        arrays["model_codebooks"] = np.int64(file.model_codebooks)
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        np.savez_compressed(handle, **arrays)


def load_codes(path: str | Path) -> CodesFile:
    """Read what `save_codes` wrote; pickled objects are refused, and nothing larger than `LARGEST` is unpacked.

    Raises:
        TokenError: the file is missing, damaged, or holds something else.
    """
    path = Path(path)
    try:
        with open_file(path) as handle, zipfile.ZipFile(handle) as archive:
            sizes = {"codes": LARGEST, "num_samples": _FIELD, "sample_rate": _FIELD, "weights_sha256": _FIELD}
            if "model_codebooks.npy" in archive.namelist():
                sizes["model_codebooks"] = _FIELD
            found = {name: _read_array(archive, f"{name}.npy", most) for name, most in sizes.items()}
        codes = found["codes"]
        if codes.ndim != 2 or codes.dtype != np.uint16:
            raise TokenError(f"{path}: expected codes uint16 [Q, F], found {codes.dtype} {list(codes.shape)}")
        samples, rate = (_positive(name, found[name]) for name in ("num_samples", "sample_rate"))
        weights = found["weights_sha256"]
        if weights.shape != () or weights.dtype.kind != "U":
            raise ValueError("weights_sha256: expected text")
        books = _positive("model_codebooks", found["model_codebooks"]) if "model_codebooks" in found else None
        if books is not None and books < len(codes):
            raise ValueError(f"{len(codes)} codebooks of a model that has {books}")
    except TokenError:
        raise
    except OSError as error:
        raise TokenError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # Whatever a hostile archive makes its readers raise.
        reason = reason_of(error)
        raise TokenError(f"{path}: is no codes file of `audiovq encode`, or is damaged ({reason})") from error
    return CodesFile(codes, samples, rate, str(weights), books)


def _read_array(archive: zipfile.ZipFile, name: str, most: int) -> np.ndarray:
    """An array of an archive; its size is known from what the archive and the array declare before it is read."""
    member = archive.getinfo(name)
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name}: expected it stored or deflated")
    if member.file_size > most:
        raise ValueError(f"{name}: expected at most {most} bytes, found {member.file_size}")
    data = archive.read(member)
    file = io.BytesIO(data)
    read_header = _HEADERS.get(np.lib.format.read_magic(file))
    if read_header is None:
        raise ValueError(f"{name}: expected version 1 or 2 of NumPy's format")
    shape, _, dtype = read_header(file)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"{name}: expected {list(shape)} of {dtype}, found {len(data) - file.tell()} bytes")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def _positive(name: str, value: np.ndarray) -> int:
    if value.shape != () or value.dtype.kind not in "iu" or value <= 0:
        raise ValueError(f"{name}: expected a positive integer, found {value!r:.60}")
    return int(value)
