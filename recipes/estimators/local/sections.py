"""What the report says: sections of text, tables and figures, the same for Markdown and HTML."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import tables
from claims import claims
from tables import Table

Results = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """Parts in the order in which they are shown; text may hold `code` between backticks."""

    title: str
    text: list[str]
    table: Table | None = None
    figures: list[tuple[str, str]] = field(default_factory=list)
    """Name and caption of each figure."""


def sections(results: Results) -> list[Section]:
    """The whole report."""
    return [
        _bottlenecks(results),
        _claims(results),
        _reconstruction(results),
        _collapse(results),
        _estimators(results),
        _context(results),
        _textbook(),
        _conditions(results),
    ]


def _bottlenecks(results: Results) -> Section:
    return Section(
        "Bottlenecks",
        [
            "Encoder, decoder, data, steps, frame rate and number of codes are the same for all. Bias: of the gradient "
            "with respect to one frame, relative to the exact one, and in brackets what noise alone would show; a "
            "quantizer chooses its code without chance, so there is no gradient to be biased from. Variance (trace of "
            "the covariance), signal-to-noise ratio and time of a draw: of the whole encoder's gradient on a fixed "
            "batch, with the trained parameters of each bottleneck, which differ; compare ratios, not variances.",
        ],
        tables.mechanisms(results),
    )


def _claims(results: Results) -> Section:
    rows = [[claim.text, claim.source, claim.verdict, claim.evidence] for claim in claims(results)]
    return Section(
        "What is said, and what was found",
        ["Verdicts are computed from the figures below; they hold for this bench, not for all models and data."],
        Table(["claim", "source", "verdict", "evidence"], rows, words=3),
    )


def _reconstruction(results: Results) -> Section:
    return Section(
        "Reconstruction, rate and stability",
        [
            "Mean and standard deviation over seeds, on whole test utterances, with the mode or mean of the posterior. "
            "Rate: entropy of the codes by their frequency; for `gaussian` the KL divergence, which bounds what its "
            "samples tell; the latents of `none` have no finite rate. Time is of a run on one core beside another run.",
            *_evidence_bound(results),
        ],
        tables.reconstruction(results),
        [("loss", "Reconstruction loss on validation utterances: mean over seeds, band from best to worst seed.")],
    )


def _evidence_bound(results: Results) -> list[str]:
    runs = tables.per_bottleneck(results).get("gaussian", [])
    if not tables.values_of(runs, "elbo", "nats_per_second"):
        return []
    nats, bits = (tables.over_seeds(runs, "elbo", f"{unit}_per_second", 0) for unit in ("nats", "bits"))
    return [
        f"ELBO of `gaussian`, with a Gaussian likelihood of the samples whose variance is the mean squared error: "
        f"{nats} nats/s, {bits} bits/s. It is of a density and may have any sign; training weighs spectral losses "
        "against the KL divergence and does not maximise it."
    ]


def _collapse(results: Results) -> Section:
    return Section(
        "Collapse",
        [
            "KL divergence to the prior and mutual information of frame and latent in nats per frame. Information is "
            "that of the aggregate posterior: exact for codes; for `gaussian` estimated from one sample of each of N "
            f"frames, and at most log N = {_ceiling(results)} (Hoffman & Johnson, 2016). Active units: "
            "Var(E[z]) > 0.01 (Burda et al., 2016).",
            "For `vq` the KL divergence to the uniform prior is log K whatever the encoder does, and proves nothing. "
            "What does is the gap: how much the reconstruction loss rises when the decoder gets the latents of another "
            "stretch of speech (all test utterances in a row, shifted by half), or one constant latent.",
        ],
        tables.collapse(results),
        [("schedule", "During training: KL divergence, temperature, and perplexity of the sampled codes.")],
    )


def _estimators(results: Results) -> Section:
    return Section(
        "Gradient estimators",
        [
            "Estimators of the gradient for a categorical posterior, all with the same parameters (those of the first "
            "trained `gumbel`) and batch. Bias, cosine, variance and SNR: gradient of the reconstruction loss with "
            "respect to one frame's latent, when that frame alone is sampled, against the sum over all codes. Bias is "
            "the distance of the mean of all draws from that, relative to its norm; an unbiased estimator shows the "
            "value in the next column. Encoder: variance of the whole encoder's gradient when all frames are sampled; "
            "x s is that variance times the seconds of a draw, the variance of what a second of compute gives.",
            "REINFORCE takes 4 samples of each item, each of which passes through the decoder.",
        ],
        tables.estimators(results),
        [("gradients", "Bias and variance of each estimator; black marks: noise of the bias.")],
    )


def _context(results: Results) -> Section:
    return Section(
        "When the decoder can do without",
        [
            "Part 2 replaces the decoder by an autoregressive one with a likelihood of every sample (Laplace), which "
            "sees so many samples of the true past (teacher forcing), and trains the ELBO in nats with KL weight 1. "
            "Its depth is the same for all contexts. All figures in nats per frame, with the mode or mean of the "
            "posterior; a gap near 0 says that the latents are ignored.",
        ],
        tables.contexts(results),
        [("context", "What the latents are worth to a decoder with more and more context.")],
    )


def _textbook() -> Section:
    return Section(
        "The textbook example",
        [
            "z = 2p is differentiable in p, z ~ Bernoulli(p) is not. Gradient of E[(z - 2)²] with respect to the logit "
            "of p. Autograd gives no gradient through a sample; `torch.bernoulli(p)` even has a `grad_fn`, whose "
            "gradient is zero, so that a forgotten estimator goes unnoticed. The score function is right on average, "
            "with a large variance; the others have less, and are biased.",
        ],
        None,
        [("textbook", "Mean of 20,000 estimates, band of one standard deviation, and the true gradient.")],
    )


def _conditions(results: Results) -> Section:
    facts = results["conditions"]
    rows = [[name.replace("_", " "), str(value)] for name, value in facts.items()]
    return Section("Conditions", ["Made by `recipes/estimators/run.sh`."], Table(["", "value"], rows, words=1))


def _ceiling(results: Results) -> str:
    found = [run["usage"]["information_ceiling"] for run in results["runs"] if run["bottleneck"] == "gaussian"]
    return f"{found[0]:.2f}" if found else "unknown"
