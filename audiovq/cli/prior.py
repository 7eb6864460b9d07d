"""`audiovq train-prior` and `audiovq sample`: stage 2, a prior over a tokenizer's codes and speech drawn from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from audiovq.cli.options import Device, say

app = typer.Typer(rich_markup_mode=None)


@app.command("train-prior")
def train_prior_command(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file with the settings of the run.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run; a run in it is resumed.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, as tokens=DIR or training.steps=1000."),
    ] = None,
    device: Device = "auto",
    force: Annotated[bool, typer.Option("--force", help="Start anew: remove the run that the folder holds.")] = False,
) -> None:
    """Train a prior over the codes of a tokenizer, or resume its training.

    Reports bits a code on held-out utterances, compared with codes that are all alike and with codes drawn by their
    frequencies alone.
    """
    from audiovq.config import PriorExperimentConfig, load_config

    experiment = load_config(config, overrides or [], PriorExperimentConfig)

    from audiovq.distributed import is_first_process
    from audiovq.training.prior import train_prior

    progress = train_prior(experiment, output, device, force)
    if not is_first_process():
        return
    best = progress.best
    assert best is not None
    bits = best["bits_per_code"]
    say(f"{progress.step} steps done, best after {best['step']:.0f}: {output / 'release'}")
    say(f"held-out utterances: {bits:.3f} bits a code, {best['bits_per_second']:.1f} bit/s")
    for name, key in (
        ("uniform codes", "gain_over_uniform"),
        ("unigram of the training set", "gain_over_train_unigram"),
        ("unigram of the held-out utterances", "gain_over_unigram"),
    ):
        say(f"  {name + ':':<36} {bits + best[key]:.3f} bits a code, gain {best[key]:.3f}")


@app.command("sample")
def sample_command(
    prior: Annotated[
        str,
        typer.Argument(
            metavar="PRIOR",
            help="Prior's folder, organisation/name on the Hugging Face Hub, or the name of a model that comes with "
            "audiovq.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the wavs, and their codes as .npz.")
    ],
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="The tokenizer whose codes it models, likewise.  [default: the one that comes with audiovq under the "
            "prior's name]",
        ),
    ] = None,
    num: Annotated[int, typer.Option(min=1, help="Utterances to sample.")] = 4,
    seconds: Annotated[float, typer.Option(help="Length of each, with its prime.")] = 5.0,
    speaker: Annotated[
        str | None, typer.Option(metavar="ID", help="Who speaks, for a prior or a decoder that is told.")
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="Below 1: likelier codes; above 1: less likely ones; 0: always the likeliest.")
    ] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Draw from this many likeliest codes.  [default: all]")] = None,
    top_p: Annotated[
        float, typer.Option(help="Draw from the fewest likeliest codes that have this probability together.")
    ] = 1.0,
    prime: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Audio file that all utterances begin with and continue.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed gives other utterances.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Utterances that are sampled together.")] = 16,
    device: Device = "auto",
    force: Annotated[bool, typer.Option("--force", help="Overwrite wavs and codes files.")] = False,
) -> None:
    """Sample new speech: codes from a prior, decoded to wav files.

    Utterance i depends on the seed and i, and not on how many are sampled.
    """
    from audiovq.models.prior import CodePrior
    from audiovq.models.release import comes_with_audiovq
    from audiovq.models.tokenizer import AudioTokenizer
    from audiovq.synthesis import SamplingSettings, synthesize

    if model is None and not comes_with_audiovq(prior):
        raise typer.BadParameter("is required for a prior that does not come with audiovq", param_hint="MODEL")
    settings = SamplingSettings(seconds, speaker, temperature, top_k, top_p, seed)
    loaded = CodePrior.from_pretrained(prior, device)
    tokenizer = AudioTokenizer.from_pretrained(model or prior, device)
    wavs = synthesize(loaded, tokenizer, output, num, settings, prime, batch_size, force)
    say(f"{len(wavs)} utterances of {seconds:g} s written: {output}")
