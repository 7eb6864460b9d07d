"""Stage 2: train a prior on the codes of a frozen tokenizer, validate on whole held-out utterances."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Int64
from torch import Tensor
from torch.nn import functional as F

from audiovq.batching import evenly_spread
from audiovq.config import CodesConfig, PriorExperimentConfig
from audiovq.data.splits import split_names
from audiovq.devices import seed_everything
from audiovq.distributed import sum_over_processes
from audiovq.errors import SpeakerError, TokenError
from audiovq.models.prior import CodePrior, PriorNetwork
from audiovq.models.speakers import speaker_number
from audiovq.text import shown
from audiovq.tokens import CodeCrops, TokenSet, code_counts
from audiovq.training.folder import RELEASE, open_run, start_accelerator
from audiovq.training.log import RunLog
from audiovq.training.loop import Batch, Task, fit
from audiovq.training.optimization import build_optimizer, descend
from audiovq.training.state import Progress


@dataclass(frozen=True)
class CodeSplit:
    """The utterances of a token data set that are trained or validated on."""

    tokens: TokenSet
    rows: list[int]

    def scan(self) -> tuple[Int64[np.ndarray, "books codes"], str]:
        """How often each code occurs, [Q, K], and a digest of ids, speakers and codes, a row group in memory at a time.

        Raises:
            TokenError: there is a code outside the codebook, or a shard is damaged.
        """
        info = self.tokens.info
        total = np.zeros((info.num_codebooks, max(info.codebook_sizes)), np.int64)
        digest = hashlib.sha256(info.weights_sha256.encode())
        for row in self.rows:
            found = self.tokens[row]
            total += code_counts(self.tokens, found)
            digest.update(json.dumps([found.utt_id, found.speaker, found.num_frames]).encode())
            digest.update(np.ascontiguousarray(found.codes, dtype="<u2").tobytes())
        return total, digest.hexdigest()

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


def train_prior(
    config: PriorExperimentConfig, output: str | Path, device: str = "auto", force: bool = False
) -> Progress:
    """Train a prior, or go on with the run that `output` holds.

    `output` receives `config.yaml`, `state.safetensors` (the last state), `release/` (the best prior so far, as
    `CodePrior.from_pretrained` reads it), `metrics.jsonl` and, if TensorBoard is installed, `tensorboard/`.

    Args:
        force: start anew; the run that `output` holds is removed once the new one has shown that it can begin.

    Raises:
        ConfigError: `output` holds a run with another config or other codes, or there is no such device.
        TokenError: a token data set is none, is damaged or empty, or holds codes outside the codebook, or the two are
            of different tokenizers.
        SpeakerError: the prior is to be told who speaks, and the data do not say it.
        OutputExistsError: another process trains there, or `output` holds files that audiovq did not write.
        CheckpointError: the state is damaged.
        Stopped: SIGTERM or SIGINT arrived; the state was saved first.
    """
    train, valid = read_parts(config)
    config = with_tokens(config, train)
    accelerator = start_accelerator(device, config.training)
    task = PriorTask(config, train, valid, accelerator, Path(output) / RELEASE)
    with open_run(
        output, {"config": config.model_dump(mode="json"), "data": task.digests}, accelerator, force
    ) as folder:
        return fit(accelerator, task, config.training, folder)


class PriorTask(Task[PriorNetwork]):
    """A network that predicts codes, under their cross-entropy."""

    def __init__(
        self,
        config: PriorExperimentConfig,
        train: CodeSplit,
        valid: CodeSplit,
        accelerator: Accelerator,
        released: Path,
    ):
        self.config, self.valid, self.accelerator, self.released = config, valid, accelerator, released
        self.speakers, self.valid_speakers = train.speakers(config), valid.speakers(config)
        # Both, to find codes outside the codebook before anything is trained.
        (self.counts, of_train), (_, of_valid) = train.scan(), valid.scan()
        self.digests = {"tokens": of_train, "valid_tokens": of_valid}
        seed_everything(config.training.seed, "model")
        self.model = PriorNetwork(config.model_part())
        self.modules = {"model": self.model}
        self.optimizers = {"generator": build_optimizer(self.model, config.training)}
        self.crops = CodeCrops(
            train.tokens,
            train.rows,
            self.model.pattern,
            self.model.silence,
            config.crop_frames,
            config.batch_size,
            config.training.seed,
        )
        seconds = config.crop_frames / train.tokens.info.frame_rate
        self.audio_seconds = seconds * config.batch_size * accelerator.num_processes
        self.workers = 1  # It owns the token set.

    def batch(self, index: int) -> Batch:
        steps = self.crops.batch(index)
        return (steps,) if self.speakers is None else (steps, torch.from_numpy(self.speakers[self.crops.rows(index)]))

    def update(self, step: int, batch: Batch) -> dict[str, Tensor]:
        network = self.networks["model"].train()
        with self.accelerator.autocast():
            logits = network(*batch)
        targets = batch[0][..., 1:]
        loss = F.cross_entropy(logits.float().transpose(1, 2), targets, ignore_index=self.model.silence)
        norm = descend(self.accelerator, loss, network, self.optimizers["generator"], self.config.training.clip_norm)
        return {"loss": loss.detach(), "bits_per_code": loss.detach() / math.log(2), "gradient_norm": norm}

    def validate(self, model: PriorNetwork, log: RunLog | None, step: int, brief: bool) -> dict[str, float]:
        rows = evenly_spread(self.valid.rows, 2 if brief else self.config.training.valid_utterances)
        chosen = CodeSplit(self.valid.tokens, rows)
        return validate_prior(model, chosen, self.valid_speakers, self.counts, self.accelerator)

    def release(self, model: PriorNetwork) -> None:
        network = PriorNetwork(self.config.model_part())  # On the CPU, for the release to freeze.
        network.load_state_dict(model.state_dict())
        CodePrior(network, self.config.model_part()).save_pretrained(self.released)


@torch.no_grad()
def validate_prior(
    network: PriorNetwork,
    part: CodeSplit,
    speakers: Int64[np.ndarray, " rows"] | None,
    train_counts: Int64[np.ndarray, "books codes"],
    accelerator: Accelerator,
) -> dict[str, float]:
    """Means over all codes of whole utterances, each process taking its share.

    `loss` is in nats a code, `bits_per_code` the same in bits, `bits_per_second` for all codebooks together. The gains
    are the bits a code that the prior saves, compared with

    - `gain_over_uniform`: log2 K bits for every code of a codebook of K;
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
    sizes = np.array(info.codebook_sizes)
    exists = np.arange(max(sizes)) < sizes[:, None]
    metrics = {
        "loss": bits * math.log(2),
        "bits_per_code": bits,
        "bits_per_second": bits * info.num_codebooks * info.frame_rate,
        "gain_over_uniform": float(np.log2(sizes).mean()) - bits,
        "gain_over_train_unigram": cross_entropy(counts, train_counts + exists) - bits,
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


def read_parts(config: PriorExperimentConfig) -> tuple[CodeSplit, CodeSplit]:
    """What is trained and what is validated on: two token data sets, or one of which a share is held out.

    Which utterances are held out depends on their ids alone. Utterances without frames are left out.

    Raises:
        TokenError: a set is none, or has no utterances, or they are of different tokenizers or numbers of codebooks.
    """
    # Two sets in any case, since each belongs to one thread.
    train, valid = TokenSet(config.tokens), TokenSet(config.valid_tokens or config.tokens)
    if train.info.weights_sha256 != valid.info.weights_sha256:
        raise TokenError(
            f"{valid.folder}: holds codes of another model (weights {valid.info.weights_sha256[:12]}) than "
            f"{train.folder} (weights {train.info.weights_sha256[:12]}); tokenize both with the same"
        )
    if train.info.num_codebooks != valid.info.num_codebooks:
        raise TokenError(
            f"{valid.folder}: holds {valid.info.num_codebooks} of the model's codebooks, {train.folder} holds "
            f"{train.info.num_codebooks}; tokenize both with the same --codebooks"
        )
    whole = _part(train, range(len(train)))
    if config.valid_tokens is not None:
        return whole, _part(valid, range(len(valid)))
    ids = train.ids
    splits = split_names({ids[row] for row in whole.rows}, dev=config.valid_share, test=0.0)
    rows = {split: [row for row in whole.rows if splits[ids[row]] == split] for split in ("train", "dev")}
    if not rows["dev"]:
        raise TokenError(f"{train.folder}: holds too few utterances to hold any out, {len(ids)}; give valid_tokens")
    return CodeSplit(train, rows["train"]), CodeSplit(valid, rows["dev"])


def _part(tokens: TokenSet, rows: Sequence[int]) -> CodeSplit:
    lengths = tokens.lengths
    part = CodeSplit(tokens, [row for row in rows if lengths[row]])
    if not part.rows:
        raise TokenError(f"{tokens.folder}: holds no utterances")
    return part


def with_tokens(config: PriorExperimentConfig, train: CodeSplit) -> PriorExperimentConfig:
    """The config with the codes that are modelled, and with the speakers, if it is to be told and names none.

    Raises:
        TokenError: the config names other codes.
        SpeakerError: it is to be told who speaks, and no utterance says it.
    """
    info = train.tokens.info
    told = {name: getattr(info, name) for name in CodesConfig.model_fields}
    sizes = info.codebook_sizes
    told |= {"codebook_size": max(sizes), "codebook_sizes": sizes if len(set(sizes)) > 1 else None}
    codes = CodesConfig(**told)
    if config.codes is not None and config.codes != codes:
        ours, theirs = codes.model_dump(), config.codes.model_dump()
        name = next(name for name in ours if ours[name] != theirs[name])
        raise TokenError(
            f"{train.tokens.folder}: holds codes with {name} {shown(ours[name])}, the config names codes with "
            f"{shown(theirs[name])}; leave out `codes` to take them from the tokens"
        )
    speakers = config.speakers
    if config.speaker_dim and not speakers:
        names = train.tokens.speakers
        speakers = sorted({name for row in train.rows if (name := names[row]) is not None})
        if not speakers:
            raise SpeakerError(f"{train.tokens.folder}: no utterance has a speaker; set speaker_dim=0")
    return config.model_copy(update={"codes": codes, "speakers": speakers})
