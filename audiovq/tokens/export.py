"""Token data sets in the formats of other tools. Every export is a folder that takes its place whole.

`export.json` in it names the format and the tokenizer; what else it holds is in the docstrings below.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from audiovq.errors import TokenError
from audiovq.exports import export_folder
from audiovq.tokens import TokenRow, TokenSet
from audiovq.tokens.shards import open_shard, write_hub_shard


def export_tokens(tokens: TokenSet, format: str, output: str | Path, force: bool = False) -> None:
    """Write all utterances to the folder `output` in one of `FORMATS`, a row group in memory at a time.

    Args:
        force: replace an earlier export.

    Raises:
        OutputExistsError: `output` is not empty and `force` is not given, or it holds something else than an export.
        TokenError: the set is empty or damaged, or the format cannot hold an utterance's id.
    """
    tokens.require_one_model()
    if not len(tokens):
        raise TokenError(f"{tokens.folder}: holds no utterances")
    about = {"format": format, "utterances": len(tokens), "frames": int(tokens.lengths.sum())}
    with export_folder(output, {**about, "tokenizer": asdict(tokens.info)}, force) as folder:
        FORMATS[format](tokens, folder, Path(output))


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
    for number in _filled(tokens):
        with tarfile.open(folder / f"{tokens.shards[number].stem}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            for row in tokens.rows_of(number):
                key = row.utt_id.replace("%", "%25").replace(".", "%2E")
                _add(tar, f"{key}.npy", _npy(row.codes))
                _add(tar, f"{key}.json", _json(_about(row)).encode())


def _write_kaldi(tokens: TokenSet, folder: Path, output: Path) -> None:
    """Kaldi's binary vectors of int32, as alignments are, in an archive and an index for each codebook.

    - `codebook0.ark`, `codebook0.scp`, `codebook1.ark`, ...; the indices are sorted and name the archives by their
      absolute paths, as is usual, so that they are good only where they are;
    - `utt2num_frames`;
    - `utterances.jsonl`: what else is known of each utterance, in the order of the archives.
    """
    for utt_id in tokens.ids:
        if len(utt_id.split()) != 1 or utt_id != utt_id.strip():
            raise TokenError(f"{tokens.folder}: utterance {utt_id!r}: Kaldi's ids hold no white space")
    books = range(tokens.info.num_codebooks)
    scps: list[list[str]] = [[] for _ in books]
    lengths: list[str] = []
    with ExitStack() as files:
        arks = [files.enter_context((folder / f"codebook{book}.ark").open("wb")) for book in books]
        about = files.enter_context((folder / "utterances.jsonl").open("w", encoding="utf-8"))
        for row in tokens:
            for book, ark, scp in zip(books, arks, scps, strict=True):
                ark.write(f"{row.utt_id} ".encode())
                scp.append(f"{row.utt_id} {output.resolve() / f'codebook{book}.ark'}:{ark.tell()}\n")
                ark.write(_kaldi_vector(row.codes[book]))
            lengths.append(f"{row.utt_id} {row.num_frames}\n")
            about.write(_json(_about(row)) + "\n")
    for name, lines in [*((f"codebook{book}.scp", scps[book]) for book in books), ("utt2num_frames", lengths)]:
        # The folder's name may be no UTF-8.
        text = "".join(sorted(lines, key=lambda line: line.split(" ")[0].encode()))
        (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))


def _write_lhotse(tokens: TokenSet, folder: Path, _: Path) -> None:
    """Cuts of lhotse in `shar/`: `CutSet.from_shar(in_dir="OUTPUT/shar")`, then `cut.load_codes()`, uint16 [F, Q].

    The codes are a temporal array in `codes.*.tar`, so that a part of a cut loads its own frames. A cut is as long as
    its frames, and its supervision as the speech; the cut's `custom` has what else is known, and the model's
    `weights_sha256`. Audio is left where it is: its name is `source`.
    """
    (folder / "shar").mkdir()
    shift = tokens.info.hop_length / tokens.info.sample_rate
    for place, number in enumerate(_filled(tokens)):
        with ExitStack() as files:
            tar = files.enter_context(tarfile.open(folder / f"shar/codes.{place:06d}.tar", "w"))
            raw = files.enter_context((folder / f"shar/cuts.{place:06d}.jsonl.gz").open("wb"))
            lines = files.enter_context(gzip.GzipFile("", "wb", fileobj=raw, mtime=0))
            for row in tokens.rows_of(number):
                kept = {"storage_type": "shar", "storage_path": "", "storage_key": "", "shape": [*row.codes.T.shape]}
                codes = {"array": kept, "temporal_dim": 0, "frame_shift": shift, "start": 0}
                _add(tar, f"{row.utt_id}.npy", _npy(row.codes.T))
                _add(tar, f"{row.utt_id}.json", _json(codes).encode())
                lines.write((_json(_cut(row, codes, shift, tokens.info.weights_sha256)) + "\n").encode())


def _cut(row: TokenRow, codes: dict[str, Any], shift: float, weights_sha256: str) -> dict[str, Any]:
    """An utterance as lhotse writes a cut."""
    speech = {"id": row.utt_id, "recording_id": row.utt_id, "start": 0, "channel": 0}
    speech["duration"] = row.num_samples / row.sample_rate
    if row.speaker is not None:
        speech["speaker"] = row.speaker
    return {
        **{"id": row.utt_id, "start": 0, "duration": row.num_frames * shift, "channel": 0, "type": "MonoCut"},
        "supervisions": [speech],
        # lhotse asks a cut for its rate, and one without audio finds it in `custom`.
        "custom": {**_about(row), "sampling_rate": row.sample_rate, "weights_sha256": weights_sha256, "codes": codes},
    }


def _write_datasets(tokens: TokenSet, folder: Path, _: Path) -> None:
    """Parquet as data sets of codes on the Hub have it: `datasets.load_dataset("OUTPUT", split="train")`.

    Columns are `utt_id`, `speaker_id`, `n_frames`, `k_codebooks`, `codes` (int16 [Q][F]; int32 if a codebook has more
    than 32768), `sample_rate`, `num_samples` and `source`. `README.md` is the card that the Hub shows.
    """
    filled = _filled(tokens)
    for place, number in enumerate(filled):
        name = f"train-{place:05d}-of-{len(filled):05d}.parquet"
        write_hub_shard(folder / name, list(tokens.rows_of(number)), tokens.info)
    info = tokens.info
    (folder / "README.md").write_text(
        _CARD.format(
            utterances=len(tokens),
            hours=float(tokens.column("num_samples").to_numpy().sum()) / info.sample_rate / 3600,
            books=info.num_codebooks,
            rate=info.frame_rate,
            weights=info.weights_sha256,
        ),
        encoding="utf-8",
    )


_CARD = """---
configs:
- config_name: default
  data_files: "*.parquet"
---
{utterances} utterances of speech, {hours:.2f} hours, as codes of an audio tokenizer of audiovq: {books} codebooks,
{rate:g} frames a second. `codes` is [k_codebooks][n_frames]; `export.json` describes the tokenizer, whose weights have
the SHA-256 {weights}.
"""


def _filled(tokens: TokenSet) -> list[int]:
    """Numbers of the shards that hold anything: all audio of one may have been rejected, and readers refuse empty
    files."""
    return [number for number, shard in enumerate(tokens.shards) if open_shard(shard).metadata.num_rows]


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
    "lhotse": _write_lhotse,
    "datasets": _write_datasets,
}


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
