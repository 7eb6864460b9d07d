"""Validation of an autoencoder: losses and code statistics over utterances, and what some of them sound like."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from audiovq.bottlenecks.base import bits_per_second, count_codes, perplexity
from audiovq.config import ExperimentConfig
from audiovq.data.manifest import Utterance
from audiovq.distributed import sum_over_processes
from audiovq.models.autoencoder import Autoencoder, AutoencoderOutput
from audiovq.training.log import RunLog
from audiovq.training.speakers import speaker_numbers

EXAMPLES = 4
"""Validation utterances whose audio and mel pictures are logged."""


@torch.no_grad()
def validate_autoencoder(
    model: Autoencoder,
    loss: nn.Module,
    utterances: Sequence[Utterance],
    config: ExperimentConfig,
    accelerator: Accelerator,
    log: RunLog | None,
    step: int,
) -> dict[str, float]:
    """Means over utterances, of each the first `data.valid_seconds`; each process takes its share.

    Code statistics are of the whole set, for each codebook. The process that has a log reconstructs the first few
    utterances once more, since others may have had them.
    """
    model.eval()

    def run(utterance: Utterance) -> tuple[Tensor, AutoencoderOutput]:
        source, most = utterance.source(), max(1, round(config.data.valid_seconds * config.sample_rate))
        length = min(most, source.length_at(config.sample_rate))
        wave = source.read(config.sample_rate, 0, length)[None].to(accelerator.device)
        speakers = speaker_numbers([utterance.speaker], config)
        with accelerator.autocast():
            return wave, model(wave, None if speakers is None else speakers.to(accelerator.device))

    sums: dict[str, Tensor] = {}
    sizes = model.bottleneck.codebook_sizes
    counts = torch.zeros(len(sizes), max(sizes, default=0), device=accelerator.device)
    # With more processes than utterances some take one again, with weight 0, so that all sum the same quantities.
    processes, rank = accelerator.num_processes, accelerator.process_index
    for number in range(rank, max(len(utterances), processes), processes):
        weight = float(number < len(utterances))
        wave, output = run(utterances[number % len(utterances)])
        reconstruction, terms = loss(output.prediction, wave)
        values = {"loss": reconstruction.mean(), **terms, "bottleneck": output.bottleneck.loss}
        values |= {name: v for name, v in output.bottleneck.metrics.items() if not name.startswith("perplexity")}
        for name, value in values.items():
            sums[name] = sums.get(name, 0) + weight * value.double()
        if output.bottleneck.codes is not None:
            counts += weight * count_codes(output.bottleneck.codes, counts.shape[1])
    means = {name: float(sum_over_processes(total)) / len(utterances) for name, total in sums.items()}
    if "kl" in means:
        means["kl_bits_per_second"] = bits_per_second(means["kl"], config.frame_rate)
    if sizes:
        counts = sum_over_processes(counts)
        means |= code_metrics(counts, sizes)
    if log is not None:
        for book, count in enumerate(counts):
            log.code_histogram(step, count[: sizes[book]], book)
        for utterance in utterances[:EXAMPLES]:
            wave, output = run(utterance)
            log.audio(step, f"{utterance.id}/original", wave[0], config.sample_rate)
            kind = "decoded" if output.logits is None else "predicted"
            log.audio(step, f"{utterance.id}/{kind}", output.wave[0], config.sample_rate)
    return means


def code_metrics(counts: Float[Tensor, "books codes"], sizes: Sequence[int]) -> dict[str, float]:
    """Perplexity, codes used and dead codes of each codebook; the names end in its number if there are several."""
    metrics: dict[str, float] = {}
    used = (counts > 0).sum(-1).tolist()
    for book, (size, value) in enumerate(zip(sizes, perplexity(counts).tolist(), strict=True)):
        end = f"_{book}" if len(sizes) > 1 else ""
        metrics |= {f"perplexity{end}": value, f"codes_used{end}": used[book], f"dead_codes{end}": size - used[book]}
    return metrics
