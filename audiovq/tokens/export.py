"""Token data sets in the formats of other tools. Every export is a folder that takes its place whole.

`export.json` in it names the format and the tokenizer; what else it holds is in the docstrings below.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from audiovq.errors import OutputExistsError, TokenError
from audiovq.files import atomic_folder, read_json, refuse_to_overwrite, write_json
from audiovq.tokens import TokenRow, TokenSet
from audiovq.tokens.shards import open_shard

FORMAT_VERSION = 1
EXPORT = "export.json"


def export_tokens(tokens: TokenSet, format: str, output: str | Path, force: bool = False) -> None:
    """Write all utterances to the folder `output` in one of `FORMATS`, a row group in memory at a time.

    Args:
        force: replace an earlier export.

    Raises:
        OutputExistsError: `output` is not empty and `force` is not given, or it holds something else than an export.
        TokenError: the set is empty or damaged, or the format cannot hold an utterance's id.
    """
    output = Path(output)
    _check_output(output, force)
    tokens.require_one_model()
    if not len(tokens):
        raise TokenError(f"{tokens.folder}: holds no utterances")
    with atomic_folder(output.resolve()) as folder:  # What a link names is replaced, not the link.
        FORMATS[format](tokens, folder, output)
        record = {"format_version": FORMAT_VERSION, "format": format, "utterances": len(tokens)}
        write_json(folder / EXPORT, {**record, "frames": int(tokens.lengths.sum()), "tokenizer": asdict(tokens.info)})
        _check_output(output, force)  # Once more: another export may have come meanwhile.


def _check_output(output: Path, force: bool) -> None:
    refuse_to_overwrite(output, force)
    if output.exists() and not _is_export(output):
        raise OutputExistsError(f"{output}: holds something else than an export; choose another output")


def _is_export(folder: Path) -> bool:
    """Whether a folder is empty, or holds an export and nothing else."""
    names = {path.name for path in folder.iterdir()} - {EXPORT}
    try:
        pattern = _FILES[read_json(folder / EXPORT)["format"]]
    except (OSError, ValueError, KeyError, TypeError):
        return not any(folder.iterdir())
    return all(re.fullmatch(pattern, name) for name in names)


def _write_memmap(tokens: TokenSet, folder: Path, _: Path) -> None:
    """One array of all codes, for random access without any library but NumPy.

    - `codes.npy`: uint16 [Q, total frames], utterances one after another; `np.load(path, mmap_mode="r")`;
    - `offsets.npy`: int64 [utterances + 1]; utterance i is `codes[:, offsets[i] : offsets[i + 1]]`;
    - `utterances.jsonl`: what else is known of each utterance, in the same order.
    """
    offsets = np.concatenate([[0], np.cumsum(tokens.lengths)]).astype(np.int64)
    shape = (tokens.info.num_codebooks, int(offsets[-1]))
    header = {"shape": shape, "fortran_order": False, "descr": "<u2"}
    # Written, not mapped: on a full disk a mapped page ends the process, a write says why.
    with (folder / "codes.npy").open("wb") as codes, (folder / "utterances.jsonl").open("w", encoding="utf-8") as file:
        np.lib.format.write_array_header_1_0(codes, header)
        start = codes.tell()
        for number, row in enumerate(tokens):
            for book, values in enumerate(row.codes):
                codes.seek(start + 2 * (book * shape[1] + int(offsets[number])))
                codes.write(values.astype("<u2").tobytes())
            file.write(_json(_about(row)) + "\n")
    (folder / "offsets.npy").write_bytes(_npy(offsets))


def _npy(array: np.ndarray) -> bytes:
    """An array as a `.npy` file; NumPy itself tells nothing of what kept it from writing one."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _write_jsonl(tokens: TokenSet, folder: Path, _: Path) -> None:
    """`codes.jsonl`: one line an utterance, with `codes` as Q lists of F numbers."""
    with (folder / "codes.jsonl").open("w", encoding="utf-8") as file:
        for row in tokens:
            file.write(_json({**_about(row), "codes": row.codes.tolist()}) + "\n")


def _write_webdataset(tokens: TokenSet, folder: Path, _: Path) -> None:
    """A tar for each shard, with `key.npy` (uint16 [Q, F]) and `key.json` for each utterance.

    A key ends at the first dot of a name, so that dots in ids (and the % that would be mistaken for it) are written
    as %2E (and %25). `utt_id` in the JSON is as it was.
    """
    for number, shard in enumerate(tokens.shards):
        if open_shard(shard).metadata.num_rows == 0:  # All of its audio was rejected; readers refuse empty tars.
            continue
        with tarfile.open(folder / f"{shard.stem}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            for row in tokens.rows_of(number):
                key = row.utt_id.replace("%", "%25").replace(".", "%2E")
                _add(tar, f"{key}.npy", _npy(row.codes))
                _add(tar, f"{key}.json", _json(_about(row)).encode())


def _write_kaldi(tokens: TokenSet, folder: Path, output: Path) -> None:
    """Kaldi's binary vectors of int32, as alignments are, in an archive and an index for each codebook.

    - `codebook0.ark`, `codebook0.scp`, `codebook1.ark`, ...; the indices are sorted and name the archives by their
      absolute paths, as is usual, so that they are good only where they are;
    - `utt2num_frames`.
    """
    for utt_id in tokens.ids:
        if len(utt_id.split()) != 1 or utt_id != utt_id.strip():
            raise TokenError(f"{tokens.folder}: utterance {utt_id!r}: Kaldi's ids hold no white space")
    books = range(tokens.info.num_codebooks)
    scps: list[list[str]] = [[] for _ in books]
    lengths: list[str] = []
    arks = [(folder / f"codebook{book}.ark").open("wb") for book in books]
    try:
        for row in tokens:
            for book, ark, scp in zip(books, arks, scps, strict=True):
                ark.write(f"{row.utt_id} ".encode())
                scp.append(f"{row.utt_id} {output.resolve() / f'codebook{book}.ark'}:{ark.tell()}\n")
                ark.write(_kaldi_vector(row.codes[book]))
            lengths.append(f"{row.utt_id} {row.num_frames}\n")
    finally:
        for ark in arks:
            ark.close()
    for name, lines in [*((f"codebook{book}.scp", scps[book]) for book in books), ("utt2num_frames", lengths)]:
        # The folder's name may be no UTF-8.
        text = "".join(sorted(lines, key=lambda line: line.split(" ")[0].encode()))
        (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))


def _kaldi_vector(values: np.ndarray) -> bytes:
    """`std::vector<int32>` as Kaldi writes it: binary mark, then length and values, each after its size in bytes."""
    sized = np.empty(1 + len(values), dtype=[("size", "i1"), ("value", "<i4")])
    sized["size"] = 4
    sized["value"] = [len(values), *values]
    return b"\0B" + sized.tobytes()


FORMATS = {
    "memmap": _write_memmap,
    "webdataset": _write_webdataset,
    "kaldi": _write_kaldi,
    "jsonl": _write_jsonl,
}
_FILES = {
    "memmap": r"codes\.npy|offsets\.npy|utterances\.jsonl",
    "webdataset": r".*\.tar",
    "kaldi": r"codebook\d+\.(ark|scp)|utt2num_frames",
    "jsonl": r"codes\.jsonl",
}
"""What each format calls its files."""


def _about(row: TokenRow) -> dict[str, Any]:
    """Everything but the codes."""
    return {
        "utt_id": row.utt_id,
        "speaker": row.speaker,
        "sample_rate": row.sample_rate,
        "num_samples": row.num_samples,
        "num_frames": row.num_frames,
        "source": row.source,
    }


def _json(data: dict[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)  # Without time and owner: the same codes give the same bytes.
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))
