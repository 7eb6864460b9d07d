"""What is said of bottlenecks, and what became of it here: every verdict is computed from results alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import judges_of_collapse as collapse
import judges_of_gradients as gradients
import judges_of_trainings as trainings
from results import Results, is_complete

Judge = Callable[[Results], tuple[bool | None, str]]
"""True: holds; False: does not hold here; None: cannot be told. And why."""
VERDICTS = {True: "holds", False: "does not hold here", None: "cannot be told"}


@dataclass(frozen=True)
class Claim:
    """A statement."""

    experiment: str
    text: str
    source: str
    condition: str
    """What it was tried on."""
    figure: str
    judge: Judge


@dataclass(frozen=True)
class Verdict:
    """What became of a statement."""

    experiment: str
    text: str
    source: str
    condition: str
    verdict: str
    """holds, does not hold here, cannot be told, or not run."""
    evidence: str
    figure: str
    command: str


def verdicts(results: Results) -> list[Verdict]:
    """All statements with their verdicts."""
    return [verdict_of(claim, results) for claim in CLAIMS]


def verdict_of(claim: Claim, results: Results) -> Verdict:
    """The verdict of one statement."""
    if is_complete(results, claim.experiment):
        holds, evidence = claim.judge(results)
        verdict = VERDICTS[holds]
    else:
        verdict, evidence = "not run", "not run"
    command = f"recipes/estimators/run.sh --only {claim.experiment}"
    known = (claim.experiment, claim.text, claim.source, claim.condition)
    return Verdict(*known, verdict, evidence, claim.figure, command)


def as_data(results: Results) -> list[dict[str, Any]]:
    """All verdicts as plain data."""
    return [asdict(verdict) for verdict in verdicts(results)]


ONE_MODEL = "one small trained model, 4 stretches of 0.4 s; bias: one frame of each drawn, variance: all frames"
SMALL = "the small form of recipes/speech, all seeds"
TRAINED = f"{SMALL}, an unseen voice"
KNOWN = f"{SMALL}, other utterances of known voices"
STEPS = f"{SMALL}, batches of the training"
CONTEXT = "encoder of the waveform, likelihood of every sample given latents and the true past, the ELBO, all seeds"

CLAIMS = [
    Claim(
        "reparameterisation", "Reparameterised gradients are unbiased.", "Kingma & Welling, 2014",
        f"{ONE_MODEL}; here one dimension of one frame", "gaussian", gradients.reparameterisation_is_unbiased,
    ),
    Claim(
        "reparameterisation", "Their variance is far below that of the score function of the same Gaussian.",
        "Kingma & Welling, 2014, section 2.4; Rezende et al., 2014", ONE_MODEL, "gaussian",
        gradients.reparameterisation_has_low_variance,
    ),
    Claim(
        "score-function", "Score-function gradients are unbiased, whatever the baseline.", "Williams, 1992",
        f"{ONE_MODEL}; and z ~ Bernoulli(p)", "samples", gradients.score_function_is_unbiased,
    ),
    Claim(
        "score-function",
        "Their variance is very high: above that of Gumbel-Softmax at its temperatures of training, for equal compute.",
        "Jang et al., 2017", ONE_MODEL, "samples", gradients.score_function_has_high_variance,
    ),
    Claim(
        "score-function", "Training by them is slow.", "Jang et al., 2017",
        "six trainings each, of equal time and KL weight, other utterances of known voices", "samples",
        trainings.score_function_is_slow,
    ),
    Claim(
        "score-function", "A baseline lowers the variance.", "Williams, 1992; Kool et al., 2019", ONE_MODEL,
        "samples", gradients.baselines_help,
    ),
    Claim(
        "score-function", "More samples lower it, as 1/S (with leave-one-out 1/(S - 1)).", "Kool et al., 2019",
        ONE_MODEL, "samples", gradients.samples_help,
    ),
    Claim(
        "gumbel-softmax", "Gumbel-Softmax is biased, more at a high temperature, and of more variance at a low one.",
        "Jang et al., 2017; Maddison et al., 2017", ONE_MODEL, "temperatures", gradients.gumbel_trades_bias,
    ),
    Claim(
        "gumbel-softmax", "At a low temperature training is unstable.", "Jang et al., 2017", STEPS, "schedules",
        trainings.low_temperature_is_unstable,
    ),
    Claim(
        "gumbel-softmax", "The schedule of the temperature matters.", "Jang et al., 2017", TRAINED, "schedules",
        trainings.schedule_matters,
    ),
    Claim(
        "gumbel-softmax", "The decoder learns to exploit the relaxation.", "lecture notes", KNOWN, "relaxation",
        trainings.relaxation_is_exploited,
    ),
    Claim(
        "straight-through", "The straight-through gradient of VQ has no noise.", "van den Oord et al., 2017", ONE_MODEL,
        "straight", gradients.straight_through_has_no_noise,
    ),
    Claim(
        "straight-through", "It is biased from the gradient of a stochastic VQ.", "Bengio et al., 2013", ONE_MODEL,
        "straight", gradients.straight_through_is_biased,
    ),
    Claim(
        "posterior-collapse", "A VAE ignores its latents under a decoder that sees enough of the past.",
        "Bowman et al., 2016; Chen et al., 2017; van den Oord et al., 2017", CONTEXT, "collapse",
        collapse.context_makes_collapse,
    ),
    Claim(
        "posterior-collapse", "The Gaussian collapses before the categorical ones.", "lecture notes",
        f"{CONTEXT}, all with batch normalisation", "collapse", collapse.gaussian_collapses_first,
    ),
    Claim(
        "posterior-collapse", "Batch normalisation keeps the latents of a Gaussian in use.", "Zhu et al., 2020",
        f"{CONTEXT}; of the encoder's output", "collapse", collapse.normalisation_helps,
    ),
    Claim(
        "posterior-collapse", "KL warm-up keeps the latents in use.", "Bowman et al., 2016", CONTEXT, "kl",
        collapse.warm_up_helps,
    ),
    Claim(
        "posterior-collapse", "Free bits keep the latents in use.", "Kingma et al., 2016", CONTEXT, "kl",
        collapse.free_bits_help,
    ),
    Claim(
        "codebook-collapse", "VQ does not ignore its codes under the same decoders.", "van den Oord et al., 2017",
        f"{CONTEXT}, without and with batch normalisation", "collapse", collapse.vq_does_not_collapse,
    ),
    Claim(
        "codebook-collapse", "Its own failure is that codes are not used.", "Kaiser et al., 2018", KNOWN,
        "codebooks", collapse.codes_die,
    ),
    Claim(
        "codebook-collapse", "Revival, moving averages and a start from the data each keep more codes in use.",
        "Razavi et al., 2019; Łańcucki et al., 2020", KNOWN, "codebooks", collapse.codes_are_kept,
    ),
    Claim(
        "commitment", "Results do not depend much on the commitment loss's weight, from 0.1 to 2.",
        "van den Oord et al., 2017, section 3.2", TRAINED, "commitment", collapse.commitment_does_not_matter,
    ),
    Claim(
        "commitment", "Without it the encoder's output grows and codes switch more.", "van den Oord et al., 2017",
        STEPS, "commitment", collapse.commitment_holds_the_encoder,
    ),
    Claim(
        "k-means", "The codebook loss is online k-means: it arrives where Lloyd's iterations and moving averages do.",
        "van den Oord et al., 2017, appendix A.1", "latents of one trained model, frozen, all seeds", "kmeans",
        collapse.codebook_loss_is_kmeans,
    ),
    Claim(
        "two-stages", "A prior trained afterwards gives up nothing against one trained with the autoencoder.",
        "van den Oord et al., 2017, section 3.3", TRAINED, "stages", trainings.two_stages_lose_nothing,
    ),
    Claim(
        "representations", "Codes tell words about as well as continuous latents.", "van den Oord et al., 2017",
        "linear probes on means of frozen latents over the commonest words of each voice; held-out utterances",
        "probes", trainings.codes_tell_words,
    ),
    Claim(
        "representations", "They tell less of the voice.", "van den Oord et al., 2017; Chorowski et al., 2019",
        "linear probes on means over a second; four voices, no two of which share a language", "probes",
        trainings.codes_tell_less_of_the_voice,
    ),
    Claim(
        "representations", "A prior codes them in fewer bits than their frequencies do.", "van den Oord et al., 2017",
        "a small WaveNet for each model, the unseen voice", "probes", trainings.prior_saves_bits,
    ),
    Claim(
        "rate-quality", "At equal rate and training time VQ keeps the most of the speech.", "van den Oord et al., 2017",
        TRAINED, "rates", trainings.vq_keeps_the_most,
    ),
]  # fmt: skip
