"""Experiment 10: codes as a representation. Linear probes for words and voices, and bits a second under a prior."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cell_list import Cell
from cells import Bench
from data import SPLITS, relative_path, whole
from jaxtyping import Float, Int
from stages import rate, train_prior
from torch import Tensor, nn
from torch.nn import functional as F
from training import experiment, load_model

from audiovq.bottlenecks.base import Bottleneck, bits_per_second, count_codes
from audiovq.data.manifest import Utterance, read_manifest
from audiovq.data.splits import split_names
from audiovq.devices import seed_everything

WORDS = Path(__file__).resolve().parents[1] / "words.json"
PIECE_SECONDS = 1.0
"""Length of a stretch of speech whose voice is to be told."""
HELD_OUT = 0.3
"""Share of the utterances on which probes are tested."""
DECAY, ITERATIONS = 1e-2, 100
"""Of the probes' logistic regression."""


@dataclass(frozen=True)
class Item:
    """A stretch of speech and what it is."""

    utterance: int
    start: float
    end: float
    label: str
    group: str = ""
    """Labels are told apart within a group."""


def probe_cell(bench: Bench, cell: Cell) -> dict[str, Any]:
    """What linear probes read from the frozen latents and codes of a model, and what a prior codes these in."""
    settings, (run,) = cell.settings, cell.needs
    trained = bench.result(run)
    if trained["failed"] or trained["out_of_reach"]:
        return {"failed": trained["failed"], "out_of_reach": trained["out_of_reach"]}
    config = experiment(bench, bench.cells.cells[run].settings, trained["overrides"])
    model = load_model(config, bench.run_folder(run))
    listed = [(split, utterance) for split in SPLITS for utterance in read_manifest(bench.manifest(split))]
    utterances = [utterance for _, utterance in listed]
    latents, codes = [], []
    with torch.no_grad():
        for utterance in utterances:
            z = model.encode(whole(utterance, config.sample_rate)).float()
            latents.append(model.bottleneck(z).latents[0])
            codes.append(model.bottleneck.encode(z)[0][0] if model.bottleneck.num_codebooks else None)
    features = {"latents": latents}
    if model.bottleneck.num_codebooks:
        features["codes"] = [one_hot(book, model.bottleneck) for book in codes]
    items = {"voice": voice_items(utterances), "word": word_items(bench, utterances, settings)}
    probes = {
        target: {name: probe(found, utterances, own, config.frame_rate) for name, own in features.items()}
        for target, found in items.items()
        if len({(item.group, item.label) for item in found}) > len({item.group for item in found})
    }
    bits = plain = None
    if model.bottleneck.num_codebooks:
        parts = {
            name: [book for (split, _), book in zip(listed, codes, strict=True) if split == name] for name in SPLITS
        }
        prior = train_prior(settings, config, parts["train"], parts["dev"], bench.run_folder(cell.name) / "prior")
        bits = {split: rate(prior, parts[split], config.frame_rate) for split in ("dev", "test")}
        known, size = parts["train"], config.bottleneck.model_dump()["codebook_size"]
        plain = {split: unigram_rate(known, parts[split], size, config.frame_rate) for split in ("dev", "test")}
    return {
        "failed": None,
        "out_of_reach": None,
        "probes": probes,
        "prior": bits,
        "frequencies": plain,
        "bits_per_second": trained["test"]["bits_per_second"],
        "metrics": trained["test"]["metrics"],
    }


def one_hot(codes: Int[Tensor, "1 frames"], bottleneck: Bottleneck) -> Float[Tensor, "codes frames"]:
    """Which code each frame has, so that a mean over frames is a histogram."""
    return F.one_hot(codes[0], bottleneck.codebook_size).T.float()


def unigram_rate(
    known: Sequence[Int[Tensor, "1 _"]], codes: Sequence[Int[Tensor, "1 _"]], size: int, frame_rate: float
) -> float:
    """Bits a second that codes take by how often each occurs in known utterances, half a time more than it does (the
    estimate of Krichevsky & Trofimov, 1981)."""
    counts = count_codes(torch.cat(list(known), -1)[None], size)[0].double() + 0.5
    nats = -(counts / counts.sum()).log()
    return bits_per_second(float(nats[torch.cat(list(codes), -1)[0]].mean()), frame_rate)


def voice_items(utterances: Sequence[Utterance]) -> list[Item]:
    """Stretches of a second, and who speaks."""
    return [
        Item(number, start * PIECE_SECONDS, (start + 1) * PIECE_SECONDS, str(utterance.speaker))
        for number, utterance in enumerate(utterances)
        for start in range(int(utterance.duration / PIECE_SECONDS))
    ]


def word_items(bench: Bench, utterances: Sequence[Utterance], settings: dict[str, Any]) -> list[Item]:
    """Words that a recogniser heard often enough, of the speech that comes with audiovq; of other speech, none.

    Each voice has words of its own, so that the voice alone would tell much of the word: a voice is a group.
    """
    words = json.loads(WORDS.read_text(encoding="utf-8"))["words"]
    found = [
        Item(number, start, end, word, group=str(utterance.speaker))
        for number, utterance in enumerate(utterances)
        for start, end, word in words.get(relative_path(bench, utterance), ())
    ]
    counts = Counter((item.group, item.label) for item in found).most_common(settings["most_words"])
    kept = {word for word, count in counts if count >= settings["min_count"]}
    return [item for item in found if (item.group, item.label) in kept]


def probe(
    items: Sequence[Item],
    utterances: Sequence[Utterance],
    features: Sequence[Float[Tensor, "dim frames"]],
    frame_rate: float,
) -> dict[str, Any]:
    """Accuracy of logistic regressions on the mean features of stretches, on utterances that they have not seen.

    A group of items has a regression of its own; one with a single label has none.
    """
    splits = split_names({utterance.id for utterance in utterances}, dev=0.0, test=HELD_OUT)
    groups = [[item for item in items if item.group == group] for group in sorted({item.group for item in items})]
    groups = [own for own in groups if len({item.label for item in own}) > 1]
    correct, commonest, labels = [], [], 0
    for own in groups:
        names = sorted({item.label for item in own})
        x = torch.stack([mean_of(features[item.utterance], item, frame_rate) for item in own])
        y = torch.tensor([names.index(item.label) for item in own])
        test = torch.tensor([splits[utterances[item.utterance].id] == "test" for item in own])
        correct.append(logistic_regression(x[~test], y[~test], x[test], len(names)) == y[test])
        commonest.append(y[test] == torch.bincount(y[~test], minlength=len(names)).argmax())
        labels += len(names)
    right = torch.cat(correct).double()
    return {
        "accuracy": float(right.mean()),
        "error": float((right.var() / len(right)).sqrt()),
        "commonest": float(torch.cat(commonest).double().mean()),
        "labels": labels,
        "items": sum(map(len, groups)),
        "tested": len(right),
    }


def mean_of(features: Float[Tensor, "dim frames"], item: Item, frame_rate: float) -> Float[Tensor, " dim"]:
    """Mean over the frames of a stretch, at least one."""
    first = min(round(item.start * frame_rate), features.shape[-1] - 1)
    return features[:, first : max(first + 1, round(item.end * frame_rate))].mean(-1)


def logistic_regression(
    x: Float[Tensor, "items dim"], y: Int[Tensor, " items"], tested: Float[Tensor, "tested dim"], labels: int
) -> Int[Tensor, " tested"]:
    """The likeliest label of each tested item, by L-BFGS on normalised features with weight decay."""
    mean, scale = x.mean(0), x.std(0, correction=0).clamp(min=1e-4)
    x, tested = (x - mean) / scale, (tested - mean) / scale
    seed_everything("probe")
    linear = nn.Linear(x.shape[-1], labels)
    nn.init.zeros_(linear.weight)
    descent = torch.optim.LBFGS(linear.parameters(), max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        descent.zero_grad()
        loss = F.cross_entropy(linear(x), y) + DECAY * linear.weight.square().sum() / 2
        loss.backward()
        return loss

    descent.step(closure)
    with torch.no_grad():
        return linear(tested).argmax(-1)
