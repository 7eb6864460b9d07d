"""`audiovq encode`, `decode` and `convert`: single files and folders of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from audiovq.cli.options import Codebooks, Device, Model, report_files
from audiovq.errors import TokenError

app = typer.Typer(rich_markup_mode=None)


@app.command()
def encode(
    model: Model,
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT...", help="Audio files, or folders of them.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the codes; folder trees are kept.")
    ],
    codebooks: Codebooks = None,
    device: Device = "auto",
    force: Annotated[bool, typer.Option("--force", help="Overwrite codes files.")] = False,
) -> None:
    """Encode audio files to codes, one .npz file each.

    For a whole data set, `audiovq tokenize` is faster and writes one table.
    """
    from audiovq.models.tokenizer import AudioTokenizer
    from audiovq.tokenization.files import encode_files, find_speech, plan_files

    jobs = plan_files(inputs, output, ".npz", find_speech, force)
    failures = encode_files(AudioTokenizer.from_pretrained(model, device), jobs, codebooks)
    report_files(failures, len(jobs), output)


@app.command()
def decode(
    model: Model,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="CODES...", help="Codes files (.npz), folders of them, or token data sets or their URLs."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the wavs; folder trees are kept.")
    ],
    speaker: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="For a model with speakers: who speaks.  [default: in a token data set, the utterance's own]",
        ),
    ] = None,
    utt_ids: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID",
            help="Decode this utterance of a token data set; may be given many times. @FILE: the ids in a file, one "
            "a line.  [default: all]",
        ),
    ] = None,
    device: Device = "auto",
    force: Annotated[bool, typer.Option("--force", help="Overwrite wavs.")] = False,
) -> None:
    """Decode codes to wav files."""
    from audiovq.models.tokenizer import AudioTokenizer
    from audiovq.storage import RemotePath, locate
    from audiovq.tokenization.files import (
        decode_files,
        decode_tokens,
        find_codes_files,
        plan_files,
        plan_utterances,
        read_ids,
    )
    from audiovq.tokens import TOKENIZER, TokenSet

    places = [locate(given) for given in inputs]
    sets = [TokenSet(path) for path in places if isinstance(path, RemotePath) or (path / TOKENIZER).exists()]
    files = [path for path in places if isinstance(path, Path) and not (path / TOKENIZER).exists()]
    wanted = read_ids(utt_ids) if utt_ids else None
    if wanted is not None and (files or len(sets) != 1):
        raise TokenError("--utt-ids chooses from one token data set; name just one, and no codes files")
    jobs = plan_files(files, output, ".wav", find_codes_files, force)
    total = len(jobs) + plan_utterances(sets, output, force, jobs, wanted)
    tokenizer = AudioTokenizer.from_pretrained(model, device)
    failures = decode_files(tokenizer, jobs, speaker) if jobs else []
    for tokens in sets:
        failures += decode_tokens(tokenizer, tokens, output, speaker, wanted)
    report_files(failures, total, output)


@app.command()
def convert(
    model: Model,
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT...", help="Audio files, or folders of them.")],
    speaker: Annotated[str, typer.Option(metavar="ID", help="Whose voice to speak in, one of the model's speakers.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the wavs; folder trees are kept.")
    ],
    device: Device = "auto",
    force: Annotated[bool, typer.Option("--force", help="Overwrite wavs.")] = False,
) -> None:
    """Say the same in another voice.

    Encodes audio files and decodes them as another speaker, with a model whose decoder is told who speaks.
    """
    from audiovq.models.tokenizer import AudioTokenizer
    from audiovq.tokenization.files import convert_files, find_speech, plan_files

    jobs = plan_files(inputs, output, ".wav", find_speech, force)
    report_files(convert_files(AudioTokenizer.from_pretrained(model, device), jobs, speaker), len(jobs), output)
