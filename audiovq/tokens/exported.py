"""Reading exports back: the rows of a folder that `audiovq tokens export` wrote, whichever its format."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from pydantic import TypeAdapter, ValidationError

from audiovq.data.manifest import check_id, numbered_lines
from audiovq.errors import TokenError
from audiovq.exports import EXPORT, FORMAT_VERSION
from audiovq.files import open_file, read_json
from audiovq.text import reason_of, shown
from audiovq.tokens.info import TokenizerInfo, require_same_model
from audiovq.tokens.shards import TokenRow

if TYPE_CHECKING:
    from audiovq.models.tokenizer import AudioTokenizer

_LONGEST = 2**28  # Bytes of an utterance in a tar or a line.


class ExportedTokens:
    """The rows of an export, one after another; each is checked when it is read.

        exported = ExportedTokens("exp/cuts")
        exported.info.weights_sha256, len(exported)
        for row in exported: ...  # as of a `TokenSet`

    Raises:
        TokenError: the folder is no export, or is damaged; when rows are read, also if some of them are the codes of
            another model, or fewer or more than were exported.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        try:
            record = read_json(self.folder / EXPORT)
            self.format, self._length = record["format"], record["utterances"]
            if record["format_version"] != FORMAT_VERSION:
                raise ValueError(f"expected format_version {FORMAT_VERSION}, found {shown(record['format_version'])}")
            self.info = TypeAdapter(TokenizerInfo).validate_json(json.dumps(record["tokenizer"]), strict=True)
        except OSError as error:
            raise TokenError(f"{self.folder / EXPORT}: cannot be read ({error.strerror or error})") from error
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            raise TokenError(f"{self.folder / EXPORT}: describes no export ({shown(str(error))})") from error
        if self.format not in READERS:
            known = ", ".join(READERS)
            raise TokenError(f"{self.folder}: is of format {shown(self.format)}; those that can be read are {known}")

    def __len__(self) -> int:
        """Utterances that were exported."""
        return self._length

    def __iter__(self) -> Iterator[TokenRow]:
        count = 0
        try:
            for known, codes in READERS[self.format](self.folder):
                yield self._row(known, codes)
                count += 1
        except TokenError:
            raise
        except Exception as error:  # Whatever a damaged file makes its readers raise; NumPy's alone raise ten kinds.
            raise TokenError(f"{self.folder}: is damaged ({reason_of(error):.200})") from error
        if count != self._length:
            raise TokenError(f"{self.folder}: holds {count} utterances, {EXPORT} says {self._length}; export again")

    def require_model(self, tokenizer: AudioTokenizer) -> None:
        """Raise `TokenError` unless the codes are the tokenizer's."""
        require_same_model(self.info.weights_sha256, tokenizer, self.folder)

    def _row(self, known: dict[str, Any], codes: np.ndarray) -> TokenRow:
        """A row, its codes [Q, F]."""
        weights = known.get("weights_sha256", self.info.weights_sha256)
        if weights != self.info.weights_sha256:
            raise TokenError(
                f"{self.folder}: utterance {shown(known['utt_id'])} has codes of another model (weights "
                f"{str(weights)[:12]}, {EXPORT} names {self.info.weights_sha256[:12]}); take it out"
            )
        sizes = np.array(self.info.codebook_sizes)[:, None]
        expected = (len(sizes), known["num_frames"])
        if codes.dtype.kind not in "iu" or codes.shape != expected or not ((codes >= 0) & (codes < sizes)).all():
            raise ValueError(
                f"utterance {shown(known['utt_id'])}: expected codes {list(expected)} below {sizes.ravel().tolist()}, "
                f"found {codes.dtype} {list(codes.shape)}"
            )
        check_id(known["utt_id"])
        expected = (str, str | None, self.info.sample_rate, int, str)
        row = tuple(known[name] for name in _NAMES)
        if not all(map(_fits, row, expected)) or known["num_samples"] < 1:
            raise ValueError(f"utterance {shown(known['utt_id'])}: expected {', '.join(_NAMES)}, found {shown(row)}")
        return TokenRow(codes=np.ascontiguousarray(codes, np.uint16), **dict(zip(_NAMES, row, strict=True)))


_NAMES = ("utt_id", "speaker", "sample_rate", "num_samples", "source")


def _fits(value: Any, expected: Any) -> bool:
    return value == expected if isinstance(expected, int) else isinstance(value, expected)


Rows = Iterator[tuple[dict[str, Any], np.ndarray]]
"""What is known of each utterance, and its codes [Q, F] in any type of integer."""


def _read_jsonl(folder: Path) -> Rows:
    for line in _lines(folder / "codes.jsonl"):
        yield line, np.array(line.pop("codes")).reshape(-1, line["num_frames"])


def _read_memmap(folder: Path) -> Rows:
    codes = np.load(folder / "codes.npy", mmap_mode="r", allow_pickle=False)
    offsets = np.load(folder / "offsets.npy", allow_pickle=False)
    for line, (start, stop) in zip(_lines(folder / "utterances.jsonl"), pairwise(offsets), strict=True):
        yield line, codes[:, start:stop]


def _read_webdataset(folder: Path) -> Rows:
    for path in sorted(folder.glob("*.tar")):
        for codes, known in _pairs(path):
            yield json.loads(known), _array(codes)


def _read_lhotse(folder: Path) -> Rows:
    for path in sorted((folder / "shar").glob("codes.*.tar")):
        cuts = _lines(path.with_name(path.name.replace("codes.", "cuts.", 1).replace(".tar", ".jsonl.gz")))
        for cut, (codes, _) in zip(cuts, _pairs(path), strict=True):
            yield {"weights_sha256": "none", **cut["custom"]}, _array(codes).T


def _read_datasets(folder: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in sorted(folder.glob("train-*.parquet")):
        try:
            file = pq.ParquetFile(path)
            weights = (file.schema_arrow.metadata or {}).get(b"weights_sha256", b"none").decode()
            groups = (file.read_row_group(number, use_threads=False) for number in range(file.num_row_groups))
            for row in chain.from_iterable(group.to_pylist() for group in groups):
                known = {"speaker": row["speaker_id"], "num_frames": row["n_frames"], "weights_sha256": weights}
                yield {**row, **known}, np.array(row["codes"]).reshape(row["k_codebooks"], -1)
        except pa.ArrowException as error:
            raise ValueError(f"{path}: {error}") from error


def _read_kaldi(folder: Path) -> Rows:
    with ExitStack() as files:
        paths = sorted(folder.glob("codebook*.ark"), key=lambda path: int(path.stem.removeprefix("codebook")))
        arks = [files.enter_context(open_file(path)) for path in paths]
        for line in _lines(folder / "utterances.jsonl"):
            yield line, np.stack([_vector(ark, line["utt_id"], line["num_frames"]) for ark in arks])
        if any(ark.read(1) for ark in arks):
            raise ValueError("an archive holds more utterances than utterances.jsonl")


def _vector(ark: BinaryIO, utt_id: str, size: int) -> np.ndarray:
    """The next vector of one of Kaldi's archives: length and values, each after its size in bytes."""
    name = f"{utt_id} \0B".encode()
    data = ark.read(len(name) + 5 * (size + 1))
    entries = np.frombuffer(data[len(name) :], [("size", "i1"), ("value", "<i4")])
    if data[: len(name)] != name or (entries["size"] != 4).any() or entries["value"][:1].tolist() != [size]:
        raise ValueError(f"utterance {shown(utt_id)}: expected {size} codes of 4 bytes in each archive")
    return entries["value"][1:]


READERS: dict[str, Callable[[Path], Rows]] = {
    "memmap": _read_memmap,
    "webdataset": _read_webdataset,
    "kaldi": _read_kaldi,
    "jsonl": _read_jsonl,
    "lhotse": _read_lhotse,
    "datasets": _read_datasets,
}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for _, line in numbered_lines(path, _LONGEST):
        yield json.loads(line)


def _pairs(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """The `.npy` and `.json` of each utterance of a tar, one after the other."""
    with open_file(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        members = iter(tar)
        for codes in members:
            known = next(members, None)
            stem = codes.name.removesuffix(".npy")
            if known is None or known.name != f"{stem}.json" or stem == codes.name:
                raise ValueError(f"{path}: expected NAME.npy and NAME.json, found {shown(codes.name)}")
            yield _content(tar, codes), _content(tar, known)
            tar.members.clear()  # type: ignore[attr-defined]  # They would all be kept.


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member) if member.isfile() and member.size <= _LONGEST else None
    if file is None:
        raise ValueError(f"{shown(member.name)}: is no plain file of at most {_LONGEST} bytes")
    return file.read()


def _array(data: bytes) -> np.ndarray:
    return np.load(io.BytesIO(data), allow_pickle=False)
