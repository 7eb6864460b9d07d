"""Looking over a token data set: is it whole, does it fit together, and are these the codes of the audio?"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from heapq import heappush, heappushpop
from itertools import count
from pathlib import Path
from typing import Any

from audiovq.audio.files import AudioSource
from audiovq.config import AutoencoderConfig, parse_config
from audiovq.data.items import Item
from audiovq.errors import AudioError, AudioVQError, ConfigError, TokenError
from audiovq.files import sha256_of
from audiovq.models.tokenizer import AudioTokenizer
from audiovq.storage import AnyPath, is_url
from audiovq.tokens import TokenizerInfo, TokenRow, TokenSet
from audiovq.tokens.info import TOKENIZER, require_same_model, set_digest
from audiovq.tokens.records import (
    PLAN,
    REJECTED,
    SIDECARS,
    SUMMARY,
    PlanCounts,
    Record,
    SetSummary,
    Sidecar,
    read_record,
    read_rejected,
)
from audiovq.tokens.shards import RowGroup, open_shard


@dataclass
class Verification:
    """What was looked at, and what was found to be wrong, a line each."""

    checked: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass
class Content:
    """What the rows of a set add up to."""

    shards: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Utterances and frames that could be read of each shard, by its name without suffix."""
    num_samples: dict[str, int] = field(default_factory=dict)
    """Length of each utterance, by its id."""
    sample: list[TokenRow] = field(default_factory=list)
    """A few rows, to be encoded again."""


def verify_tokens(
    tokens: TokenSet,
    items: Iterable[Item] | None = None,
    tokenizer: AudioTokenizer | None = None,
    sample: int = 10,
) -> Verification:
    """Check all rows, shards against their sidecars, ids against what was tokenized, and codes against the audio.

    Args:
        items: what was tokenized: each utterance is in the set or among the rejected.
        tokenizer: encodes `sample` utterances again, the same ones each time.

    Raises:
        TokenError: the codes are another model's.
    """
    if tokenizer is not None:
        require_same_model(tokens.info.weights_sha256, tokenizer, tokens.folder)
    listed = None if items is None else {item.id: item for item in items}
    result = Verification()
    _check_info(tokens, tokenizer, result)
    content = _read_rows(tokens, sample, result)
    rejected = _rejected(tokens.folder, result.problems)
    _check_sidecars(tokens, content, rejected, result)
    if listed is not None:
        _check_items(tokens, content, rejected, listed, result)
    if tokenizer is not None:
        _encode_again(tokenizer, content.sample, listed, result)
    return result


# --- the model -----------------------------------------------------------------------------------------------


def _check_info(tokens: TokenSet, tokenizer: AudioTokenizer | None, result: Verification) -> None:
    """Compare `tokenizer.json` with itself and with the model."""
    info, path = tokens.info, tokens.folder / TOKENIZER
    expected: dict[str, Any] = {
        "frame_rate": info.sample_rate / info.hop_length,
        "codebook_size": max(info.codebook_sizes),
    }
    if "sample_rate" in info.model:
        expected["sample_rate"] = info.model["sample_rate"]
    if tokenizer is not None:
        # A set may hold the first of the model's codebooks only.
        expected = asdict(TokenizerInfo.of(tokenizer, min(info.num_codebooks, tokenizer.num_codebooks)))
        del expected["weights_sha256"], expected["model"]  # The first was compared before.
        if not _encodes_alike(info.model, tokenizer.config):
            result.problems.append(f"{path}: says another config than the model's; tokenize again")
    for name, value in expected.items():
        if (found := getattr(info, name)) != value:
            result.problems.append(f"{path}: says {name} {found}, expected {value}; tokenize again")


def _encodes_alike(model: dict[str, Any], config: AutoencoderConfig) -> bool:
    """Whether a set's config is that of a model but for the decoder, and for settings that had no names then."""
    try:
        return parse_config({**model, "decoder": config.decoder.model_dump()}, AutoencoderConfig, TOKENIZER) == config
    except ConfigError:
        return False


# --- rows ----------------------------------------------------------------------------------------------------


def _read_rows(tokens: TokenSet, sample: int, result: Verification) -> Content:
    content = Content()
    chosen: list[tuple[int, int, TokenRow]] = []
    number = count()
    for shard in tokens.shards:
        utterances = frames = 0
        for row in _readable_rows(tokens, shard, result.problems):
            utterances, frames = utterances + 1, frames + row.num_frames
            seen = row.utt_id in content.num_samples
            problems = [*_row_problems(tokens.info, row), *(["its id occurs a second time"] if seen else [])]
            result.problems += [f"{shard}: utterance {row.utt_id!r}: {problem}" for problem in problems]
            content.num_samples[row.utt_id] = row.num_samples
            # Those whose ids have the largest checksums: spread over the set, and found in one pass.
            item = (zlib.crc32(row.utt_id.encode()), next(number), row)
            if len(chosen) < sample:
                heappush(chosen, item)
            elif sample:
                heappushpop(chosen, item)
        content.shards[shard.stem] = (utterances, frames)
    content.sample = [row for _, _, row in sorted(chosen, key=lambda item: item[1])]
    counted = f"{_count(len(content.num_samples), 'utterance')} in {_count(len(tokens.shards), 'shard')}"
    result.checked.append(f"{counted}: ids, lengths, codes")
    return content


def _count(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def _readable_rows(tokens: TokenSet, shard: AnyPath, problems: list[str]) -> Iterator[TokenRow]:
    """The rows of a shard that can be read; those that cannot are problems."""
    try:
        file = open_shard(shard)
    except TokenError as error:
        problems.append(str(error))
        return
    for group in range(file.num_row_groups):
        try:
            rows = RowGroup(file, shard, group, tokens.info.num_codebooks)
        except TokenError as error:
            problems.append(str(error))
            continue
        for index in range(len(rows)):
            try:
                yield rows[index]
            except TokenError as error:
                problems.append(str(error))


def _row_problems(info: TokenizerInfo, row: TokenRow) -> Iterator[str]:
    if row.sample_rate != info.sample_rate:
        yield f"expected a sample rate of {info.sample_rate} Hz, found {row.sample_rate}"
    frames = -(-row.num_samples // info.hop_length)
    if row.num_frames != frames or not frames:
        yield f"expected {frames} frames, for {row.num_samples} samples, found {row.num_frames}"
    for size, highest in zip(info.codebook_sizes, row.codes.max(axis=1, initial=0), strict=True):
        if highest >= size:
            yield f"expected codes from 0 to {size - 1}, found {highest}"


# --- sidecars ------------------------------------------------------------------------------------------------


def _check_sidecars(tokens: TokenSet, content: Content, rejected: set[str], result: Verification) -> None:
    """Compare shards with what their sidecars say, and the sidecars with the plan and what sums them up."""
    folder = tokens.folder / SIDECARS
    if not folder.exists():
        result.problems.append(f"{folder}: is missing; whether shards are as they were written cannot be told")
        return
    sidecars = {path.stem: path for path in sorted(folder.glob("[!.]*.json")) if path.name != PLAN}
    hashes = {shard.stem: _hash(shard) for shard in tokens.shards}
    for name in sorted(sidecars.keys() | hashes.keys()):
        shard = tokens.folder / f"{name}.parquet"
        if name not in sidecars:
            result.problems.append(f"{shard}: has no sidecar {SIDECARS}/{name}.json; tokenize again")
        elif name not in hashes:
            result.problems.append(f"{shard}: is missing, but {sidecars[name]} is there; tokenize again")
        else:
            found = {
                "shard_sha256": hashes[name],
                "weights_sha256": tokens.info.weights_sha256,
                "num_codebooks": tokens.info.chosen_codebooks,
                "utterances": content.shards[name][0],
                "frames": content.shards[name][1],
            }
            result.problems += [f"{shard}: {problem}" for problem in _differences(sidecars[name], found)]
    records = [record for name in sidecars if (record := _read(sidecars[name], Sidecar, result.problems))]
    plan = _read(folder / PLAN, PlanCounts, result.problems)
    if plan and len(sidecars) < plan.units:
        result.problems.append(
            f"{tokens.folder}: {len(sidecars)} of {_count(plan.units, 'planned shard')} are there; tokenize again"
        )
    result.checked.append(
        f"{_count(len(sidecars), 'sidecar')}: SHA-256, model, numbers of codebooks, utterances and frames"
    )
    digest = set_digest(hashes.items())
    summed = (tokens.folder / SUMMARY).exists()
    if plan and len(sidecars) >= plan.units and not summed:
        result.problems.append(
            f"{tokens.folder / SUMMARY}: is missing, but all planned shards are there; tokenize again"
        )
    elif summed and not result.problems:  # Otherwise they tell why.
        _check_sums(tokens, records, plan, digest, rejected, result)
    result.checked.append(f"digest {digest}")


def _hash(shard: AnyPath) -> str:
    try:
        return sha256_of(shard)
    except OSError:  # Told already, when its rows were read.
        return "not known"


def _check_sums(
    tokens: TokenSet,
    records: list[Sidecar],
    plan: PlanCounts | None,
    digest: str,
    rejected: set[str],
    result: Verification,
) -> None:
    """Compare the summary, the plan and the list of the rejected with what the sidecars, which are right, add up to."""
    path = tokens.folder / SUMMARY
    sums = SetSummary.of(records, digest)
    if summary := _read(path, SetSummary, result.problems):
        for name, value in asdict(sums).items():
            if getattr(summary, name) != value:
                found = getattr(summary, name)
                result.problems.append(f"{path}: says that {name} is {found}, but it is {value}; tokenize again")
    if plan and plan.utterances != sums.utterances + sums.rejected:
        result.problems.append(
            f"{tokens.folder / SIDECARS / PLAN}: says {plan.utterances} utterances, but there are "
            f"{sums.utterances} and {sums.rejected} rejected; tokenize again"
        )
    if odd := rejected ^ {item.utt_id for record in records for item in record.rejected}:
        result.problems.append(
            f"{tokens.folder / REJECTED}: {'lists' if min(odd) in rejected else 'does not list'} {min(odd)!r}, "
            "unlike the sidecars; tokenize again"
        )


def _differences(path: AnyPath, found: Mapping[str, Any]) -> Iterator[str]:
    problems: list[str] = []
    sidecar = _read(path, Sidecar, problems)
    yield from problems
    for name, value in found.items() if sidecar else ():
        if (said := getattr(sidecar, name)) != value:
            yield f"{name} is {value}, but {path.name} says {said}"


def _read(path: AnyPath, schema: type[Record], problems: list[str]) -> Record | None:
    try:
        return read_record(path, schema)
    except TokenError as error:
        problems.append(str(error))
        return None


# --- what was tokenized, and its audio -----------------------------------------------------------------------


def _check_items(
    tokens: TokenSet, content: Content, rejected: set[str], items: Mapping[str, Item], result: Verification
) -> None:
    """Each utterance that was listed is in the set, as long as it should be, or rejected; and no others are."""
    for item in items.values():
        found = content.num_samples.get(item.id)
        if found is None and item.id not in rejected:
            result.problems.append(f"{item.id}: was to be tokenized, but has neither codes nor been rejected")
        elif found is not None and item.num_samples is not None and item.sample_rate is not None:
            expected = -(-item.num_samples * tokens.info.sample_rate // item.sample_rate)
            if found != expected:
                result.problems.append(
                    f"{item.id}: by the manifest it has {expected} samples at {tokens.info.sample_rate} Hz, "
                    f"its codes are those of {found}"
                )
    for name in content.num_samples.keys() - items.keys():
        result.problems.append(f"{name}: has codes, but was not to be tokenized")
    for name in content.num_samples.keys() & rejected:
        result.problems.append(f"{name}: has codes, but is listed in {REJECTED} too")
    both = len(content.num_samples.keys() & items.keys())
    listed = _count(len(items), "utterance")
    result.checked.append(f"{listed} of the input: {both} in the set, {len(rejected)} rejected")


def _rejected(folder: AnyPath, problems: list[str]) -> set[str]:
    try:
        return {item.utt_id for item in read_rejected(folder)}
    except (TokenError, OSError) as error:
        problems.append(str(error))
        return set()


def _encode_again(
    tokenizer: AudioTokenizer,
    rows: Iterable[TokenRow],
    items: Mapping[str, Item] | None,
    result: Verification,
) -> None:
    equal = frames = encoded = 0
    for row in rows:
        try:
            source = _source(row, items)
            codes = tokenizer.encode_source(source, min(len(row.codes), tokenizer.num_codebooks))[0].numpy()
        except AudioVQError as error:
            result.problems.append(f"{row.utt_id}: cannot be encoded again: {error}")
            continue
        same = int((codes == row.codes[: len(codes)]).all(axis=0).sum())
        if same < row.num_frames:
            result.problems.append(
                f"{row.utt_id}: encoded again, {row.num_frames - same} of {row.num_frames} frames are different"
            )
        encoded, equal, frames = encoded + 1, equal + same, frames + row.num_frames
    result.checked.append(f"{_count(encoded, 'utterance')} encoded again: {equal} of {frames} frames are the same")


def _source(row: TokenRow, items: Mapping[str, Item] | None) -> AudioSource:
    """The audio of a row; if nothing tells which part of its file that is, the whole file.

    Raises:
        AudioError: the file cannot be used, or is longer or shorter than the codes say.
    """
    if items is not None and row.utt_id in items:
        source = items[row.utt_id].open()
    elif row.source.startswith("tar://"):
        raise AudioError(f"{row.source}: is in a tar; name that as the input")
    elif "\0" in row.source or not (is_url(row.source) or Path(row.source).is_absolute()):
        raise AudioError(f"{row.source!r}: expected the absolute path of an audio file as its source")
    else:
        source = AudioSource.open(row.source)
    if (found := source.length_at(row.sample_rate)) != row.num_samples:
        raise AudioError(
            f"{source.path}: has {found} samples at {row.sample_rate} Hz, the codes are those of {row.num_samples}; "
            "if they are of a part of the file, name the input that says which"
        )
    return source
