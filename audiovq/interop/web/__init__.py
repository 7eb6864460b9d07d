"""`audiovq export --format web`: a folder that any web server serves, in which a browser encodes and decodes speech.

The page is plain JavaScript. ONNX Runtime for browsers comes from npm's package onnxruntime-web, of which two files are
copied into the folder, so that the page asks no other server for anything.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import shutil
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

from audiovq.errors import ExportError
from audiovq.files import atomic_path, write_json
from audiovq.interop.folder import exported_model
from audiovq.interop.onnx import write_graphs
from audiovq.interop.onnx_runtime import CONFIG, derive_seed
from audiovq.models.tokenizer import AudioTokenizer

VERSION = "1.30.0"
URL = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""Of the package, as npm's registry gives it."""
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
"""What the page needs of the package's folder `dist`: the program for WebAssembly alone."""
PAGE = Path(__file__).with_name("page")
TIMEOUT = 60
"""Seconds without an answer after which a download is given up."""


def export_web(
    tokenizer: AudioTokenizer, output: str | Path, force: bool = False, onnxruntime_web: str | Path | None = None
) -> None:
    """Write the page, the model's graphs and ONNX Runtime to the folder `output`.

    Args:
        force: replace an earlier export.
        onnxruntime_web: folder or `.tgz` of npm's package onnxruntime-web; None: it is downloaded once, and kept in the
            user's cache.

    Raises:
        ExportError: the model cannot be exported to ONNX, or the package cannot be had.
        OutputExistsError: `output` is not empty and `force` is not given, or it holds something else than an export.
    """
    with exported_model(tokenizer, "web", output, force) as folder:
        shutil.copytree(PAGE, folder, dirs_exist_ok=True)
        copy_runtime(onnxruntime_web, folder / "ort")
        config = write_graphs(tokenizer, folder)
        # What `decode` draws with for the only item of a batch, if nobody says otherwise.
        write_json(folder / CONFIG, {**config, "seed": derive_seed(0, 0) & 0xFFFFFFFF})


def copy_runtime(package: str | Path | None, output: Path) -> None:
    """Copy the files that the page needs out of a package of npm: a folder, an archive, or None, the pinned one.

    Raises:
        ExportError: the package lacks a file, or cannot be had.
    """
    package = Path(package) if package is not None else cached_package()
    output.mkdir()
    for name in RUNTIME_FILES:
        content = read_folder(package, name) if package.is_dir() else read_archive(package, name)
        if content is None:
            raise ExportError(
                f"{package}: expected npm's package onnxruntime-web, as of `npm pack onnxruntime-web@{VERSION}`; "
                f"it has no dist/{name}"
            )
        (output / name).write_bytes(content)


def read_folder(package: Path, name: str) -> bytes | None:
    """A file of an unpacked package."""
    path = package / "dist" / name
    return path.read_bytes() if path.is_file() else None


def read_archive(package: Path, name: str) -> bytes | None:
    """A file of a package as npm packs it; nothing else is unpacked."""
    try:
        with tarfile.open(package) as archive:
            member = archive.extractfile(f"package/dist/{name}")
            return member.read() if member else None
    except KeyError:
        return None
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise ExportError(f"{package}: is no .tgz of npm's package onnxruntime-web ({error})") from error


def cached_package() -> Path:
    """The pinned package in the user's cache, downloaded if it is not there; what is there has the pinned digest."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = cache / "audiovq" / f"onnxruntime-web-{VERSION}.tgz"
    if path.is_file() and digest_of(path.read_bytes()) == SHA512:
        return path
    content = download(URL)
    if digest_of(content) != SHA512:
        raise ExportError(f"{URL}: what was downloaded has another SHA-512 than expected; nothing of it is used")
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return path


def download(url: str) -> bytes:
    """What an address gives.

    Raises:
        ExportError: it cannot be reached; the message says how to do without.
    """
    content = io.BytesIO()
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            shutil.copyfileobj(answer, content)
    except (OSError, urllib.error.URLError) as error:
        raise ExportError(
            f"{url}: cannot be downloaded ({getattr(error, 'reason', error)}); where npm can be reached, run "
            f"`npm pack onnxruntime-web@{VERSION}`, and give --onnxruntime-web onnxruntime-web-{VERSION}.tgz"
        ) from error
    return content.getvalue()


def digest_of(content: bytes) -> str:
    """SHA-512 as npm writes it."""
    return base64.b64encode(hashlib.sha512(content).digest()).decode()
