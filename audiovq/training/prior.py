"""Stage 2: train a prior on the codes of a frozen tokenizer, validate on whole held-out utterances."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn import functional as F

from audiovq.batching import evenly_spread, read_ahead
from audiovq.config import CodesConfig, PriorExperimentConfig
from audiovq.data.splits import split_names
from audiovq.devices import seed_everything
from audiovq.distributed import sum_over_processes
from audiovq.errors import SpeakerError, TokenError
from audiovq.models.prior import CodePrior, PriorNetwork
from audiovq.models.speakers import speaker_number
from audiovq.tokens import CodeCrops, TokenSet, code_counts
from audiovq.training.folder import open_run
from audiovq.training.log import RunLog
from audiovq.training.loop import Task, fit
from audiovq.training.state import Progress


@dataclass(frozen=True)
class Part:
    """The utterances of a token data set that are trained or validated on."""

    tokens: TokenSet
    rows: list[int]

    def counts(self) -> Int64[np.ndarray, "books codes"]:
        """How often each code occurs, [Q, K], a row group in memory at a time.

        Raises:
            TokenError: there is a code outside the codebook, or a shard is damaged.
        """
        total = np.zeros((self.tokens.info.num_codebooks, self.tokens.info.codebook_size), np.int64)
        for row in self.rows:
            total += code_counts(self.tokens, self.tokens[row])
        return total

    def speakers(self, config: PriorExperimentConfig) -> Int64[np.ndarray, " rows"] | None:
        """Number of the speaker of each row of the whole set, for a prior that is told who speaks.

        Raises:
            SpeakerError: an utterance has no speaker, or one that the prior does not know, and the prior is not
                trained to do without.
        """
        if not config.speakers:
            return None
        numbers = np.full(len(self.tokens), len(config.speakers))
        names = self.tokens.speakers
        for row in self.rows:
            try:
                numbers[row] = speaker_number(names[row], config.speakers)
            except SpeakerError as error:
                if not config.speaker_dropout:
                    raise SpeakerError(
                        f"{self.tokens.folder}: utterance {self.tokens[row].utt_id!r}: {error}; with "
                        "speaker_dropout=0.1 the prior learns to do without, with speaker_dim=0 it is never told"
                    ) from error
        return numbers


def train_prior(config: PriorExperimentConfig, output: str | Path, device: str = "auto") -> Progress:
    """Train a prior, or go on with the run that `output` holds.

    `output` receives `config.yaml`, `state.safetensors` (the last state), `release/` (the best prior so far, as
    `CodePrior.from_pretrained` reads it), `metrics.jsonl` and `tensorboard/`.

    Raises:
        ConfigError: `output` holds a run with another config or another tokenizer's codes, or there is no such device.
        TokenError: a token data set is none, is damaged or empty, or holds codes outside the codebook, or the two are
            of different tokenizers.
        SpeakerError: the prior is to be told who speaks, and the data do not say it.
        Stopped: SIGTERM or SIGINT arrived; the state was saved first.
    """
    output = Path(output)
    train, valid = read_parts(config)
    config = with_tokens(config, train)
    speakers, valid_speakers = train.speakers(config), valid.speakers(config)
    plain = config.model_dump(mode="json")
    accelerator = open_run(output, plain, config.training, device)
    counts = train.counts()
    valid.counts()  # To find codes outside the codebook before anything is trained.

    seed_everything(config.training.seed, "model")
    model = PriorNetwork(config.model_part())
    crops = CodeCrops(
        train.tokens,
        train.rows,
        model.pattern,
        model.silence,
        config.crop_frames,
        config.batch_size,
        config.training.seed,
    )

    def batch(index: int) -> tuple[Tensor, ...]:
        steps = crops.batch(index)
        return (steps,) if speakers is None else (steps, torch.from_numpy(speakers[crops.rows(index)]))

    def batches(first_step: int) -> Iterator[tuple[Tensor, ...]]:
        # Each process takes its own batches: numbers step * processes + rank. One thread, since it owns the token set.
        processes, rank = accelerator.num_processes, accelerator.process_index
        return read_ahead(batch, count(first_step * processes + rank, processes), threads=1)

    def compute_loss(network: nn.Module, batch: tuple[Tensor, ...], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        with accelerator.autocast():
            logits = network(*batch)
        targets = batch[0][..., 1:]
        loss = F.cross_entropy(logits.float().transpose(1, 2), targets, ignore_index=model.silence)
        return loss, {"bits_per_code": loss.detach() / math.log(2)}

    def validate(network: nn.Module, log: RunLog | None, step: int, brief: bool) -> dict[str, float]:
        assert isinstance(network, PriorNetwork)
        chosen = Part(valid.tokens, evenly_spread(valid.rows, 2 if brief else config.training.valid_utterances))
        return validate_prior(network, chosen, valid_speakers, counts, accelerator)

    def release(network: nn.Module) -> None:
        assert isinstance(network, PriorNetwork)
        CodePrior(copy.deepcopy(network), config.model_part()).save_pretrained(output / "release")

    seconds = config.crop_frames / train.tokens.info.frame_rate * config.batch_size * accelerator.num_processes
    task = Task(model, compute_loss, batches, validate, release, seconds)
    return fit(accelerator, task, config.training, plain, output)


@torch.no_grad()
def validate_prior(
    network: PriorNetwork,
    part: Part,
    speakers: Int64[np.ndarray, " rows"] | None,
    train_counts: Int64[np.ndarray, "books codes"],
    accelerator: Accelerator,
) -> dict[str, float]:
    """Means over all codes of whole utterances, each process taking its share.

    `loss` is in nats a code, `bits_per_code` the same in bits, `bits_per_second` for all codebooks together. The gains
    are the bits a code that the prior saves, compared with

    - `gain_over_uniform`: log2 K bits for every code;
    - `gain_over_train_unigram`: a code of ideal length for how often each code occurs in the training set (plus one);
    - `gain_over_unigram`: the same for these very utterances, their entropy: no model without context costs less.
    """
    network.eval()
    device, info = accelerator.device, part.tokens.info
    nats = torch.zeros(info.num_codebooks, dtype=torch.float64, device=device)
    counts = np.zeros_like(train_counts)
    for row in part.rows[accelerator.process_index :: accelerator.num_processes]:
        found = part.tokens[row]
        codes = torch.from_numpy(found.codes.astype(np.int64))[None].to(device)
        speaker = None if speakers is None else torch.from_numpy(speakers[row : row + 1]).to(device)
        with accelerator.autocast():
            nats -= network.log_prob(codes, speaker).double().sum((0, 2))
        counts += code_counts(part.tokens, found)
    nats = sum_over_processes(nats).cpu()
    counts = sum_over_processes(torch.from_numpy(counts).to(device)).cpu().numpy()
    frames = counts[0].sum()
    bits = float(nats.mean()) / frames / math.log(2)
    metrics = {
        "loss": bits * math.log(2),
        "bits_per_code": bits,
        "bits_per_second": bits * info.num_codebooks * info.frame_rate,
        "gain_over_uniform": math.log2(info.codebook_size) - bits,
        "gain_over_train_unigram": cross_entropy(counts, train_counts + 1) - bits,
        "gain_over_unigram": cross_entropy(counts, counts) - bits,
    }
    if info.num_codebooks > 1:
        for book, value in enumerate((nats / frames / math.log(2)).tolist()):
            metrics[f"bits_per_code_{book}"] = value
    return metrics


def cross_entropy(counts: Int64[np.ndarray, "books codes"], model: Int64[np.ndarray, "books codes"]) -> float:
    """Mean bits of a code, when codes occur `counts` times and have the lengths that suit frequencies `model` best."""
    shares = counts / counts.sum(1, keepdims=True)
    lengths = -np.log2(model / model.sum(1, keepdims=True), where=counts > 0, out=np.zeros(counts.shape))
    return float((shares * lengths).sum(1).mean())


def read_parts(config: PriorExperimentConfig) -> tuple[Part, Part]:
    """What is trained and what is validated on: two token data sets, or one of which a share is held out.

    Which utterances are held out depends on their ids alone. Utterances without frames are left out.

    Raises:
        TokenError: a set is none, or has no utterances, or they are of different tokenizers.
    """
    # Two sets in any case, since each belongs to one thread.
    train, valid = TokenSet(config.tokens), TokenSet(config.valid_tokens or config.tokens)
    if train.info.weights_sha256 != valid.info.weights_sha256:
        raise TokenError(
            f"{valid.folder}: holds codes of another model (weights {valid.info.weights_sha256[:12]}) than "
            f"{train.folder} (weights {train.info.weights_sha256[:12]}); tokenize both with the same"
        )
    whole = _part(train, range(len(train)))
    if config.valid_tokens is not None:
        return whole, _part(valid, range(len(valid)))
    ids = train.ids
    splits = split_names({ids[row] for row in whole.rows}, dev=config.valid_share, test=0.0)
    rows = {split: [row for row in whole.rows if splits[ids[row]] == split] for split in ("train", "dev")}
    if not rows["dev"]:
        raise TokenError(f"{train.folder}: holds too few utterances to hold any out, {len(ids)}; give valid_tokens")
    return Part(train, rows["train"]), Part(valid, rows["dev"])


def _part(tokens: TokenSet, rows: Sequence[int]) -> Part:
    lengths = tokens.lengths
    part = Part(tokens, [row for row in rows if lengths[row]])
    if not part.rows:
        raise TokenError(f"{tokens.folder}: holds no utterances")
    return part


def with_tokens(config: PriorExperimentConfig, train: Part) -> PriorExperimentConfig:
    """The config with the codes that are modelled, and with the speakers, if it is to be told and names none.

    Raises:
        TokenError: the config names other codes.
        SpeakerError: it is to be told who speaks, and no utterance says it.
    """
    info = train.tokens.info
    codes = CodesConfig(**{name: getattr(info, name) for name in CodesConfig.model_fields})
    if config.codes is not None and config.codes != codes:
        raise TokenError(
            f"{train.tokens.folder}: holds codes of another model (weights {codes.weights_sha256[:12]}) than the "
            f"config names (weights {config.codes.weights_sha256[:12]}); leave out `codes` to take them from the tokens"
        )
    speakers = config.speakers
    if config.speaker_dim and not speakers:
        names = train.tokens.speakers
        speakers = sorted({name for row in train.rows if (name := names[row]) is not None})
        if not speakers:
            raise SpeakerError(f"{train.tokens.folder}: no utterance has a speaker; set speaker_dim=0")
    return config.model_copy(update={"codes": codes, "speakers": speakers})


def best_validation(output: str | Path) -> dict[str, float]:
    """The metrics of the validation at which the released prior was the best, from metrics.jsonl."""
    lines = (Path(output) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [line for line in map(json.loads, lines) if line["part"] == "valid"]
    return min(found, key=lambda line: line["loss"])
