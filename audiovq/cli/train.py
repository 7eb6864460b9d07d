"""`audiovq train`: stage 1, a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from audiovq.cli.options import Device, say

app = typer.Typer(rich_markup_mode=None)


@app.command("train")
def train_command(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file with the settings of the run.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run; a run in it is resumed.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, as training.steps=1000.")
    ] = None,
    device: Device = "auto",
    force: Annotated[bool, typer.Option("--force", help="Start anew: remove the run that the folder holds.")] = False,
) -> None:
    """Train a tokenizer, or resume its training."""
    from audiovq.config import load_config

    experiment = load_config(config, overrides or [])

    from audiovq.distributed import is_first_process
    from audiovq.training.autoencoder import train_autoencoder

    progress = train_autoencoder(experiment, output, device, force)
    if is_first_process():
        which = "best" if experiment.adversarial is None else "last"
        say(f"{progress.step} steps done, {which} validation loss {progress.best_loss:.4f}: {output / 'release'}")
