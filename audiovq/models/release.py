"""Released models: a folder with `model.safetensors`, `config.json` and a model card, on disk or on the Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

import audiovq
from audiovq.config import AutoencoderConfig, parse_config
from audiovq.errors import CheckpointError, ConfigError
from audiovq.files import atomic_path, write_json, write_text

if TYPE_CHECKING:
    from audiovq.models.tokenizer import AudioTokenizer

FORMAT_VERSION = 1
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


def locate(path_or_hub_id: str | Path, revision: str | None = None) -> Path:
    """The local folder of a released model, downloaded from the Hub if it is no folder but a Hub id.

    Raises:
        CheckpointError: neither the folder nor the repository can be had.
    """
    folder = Path(path_or_hub_id)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{folder}: expected a model folder with {CONFIG} and {WEIGHTS}, found a file")
    parts = str(path_or_hub_id).split("/")
    if len(parts) != 2 or not all(parts) or parts[0] in {".", "..", "~"}:
        raise CheckpointError(f"{folder}: no such model folder")

    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            huggingface_hub.snapshot_download(
                str(path_or_hub_id), revision=revision, allow_patterns=[WEIGHTS, CONFIG, CARD]
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{path_or_hub_id}: no such model folder, and the Hugging Face Hub does not give it: {reason}"
        ) from error


def read(folder: Path) -> tuple[AutoencoderConfig, dict[str, Tensor]]:
    """Config and weights of a released model.

    Raises:
        CheckpointError: a file is missing, damaged or of another format version.
    """
    return read_config(folder), read_weights(folder / WEIGHTS)


def read_config(folder: Path) -> AutoencoderConfig:
    """Config of a released model, without its weights."""
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{folder}: is no model folder, it has no {CONFIG}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from error
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: expected format_version {FORMAT_VERSION}, found {version}; "
            "is it an audiovq model, and of this version of audiovq?"
        )
    try:
        return parse_config(data.get("model"), AutoencoderConfig, str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU; nothing else is accepted, nothing is ever unpickled."""
    try:
        return load(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: is no safetensors file or is damaged ({error}); pickled checkpoints are not loaded"
        ) from error


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy weights into a model; every name and shape has to agree.

    Raises:
        CheckpointError: they do not; the message names the first differences.
    """
    expected = model.state_dict()
    wrong = [f"{name} is missing" for name in expected if name not in weights]
    wrong += [f"{name} is unknown" for name in weights if name not in expected]
    wrong += [
        f"{name} is {list(weights[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(f"{source}: weights do not fit the config: {', '.join(wrong[:3])}{more}")
    model.load_state_dict(weights)


def serialize(weights: Mapping[str, Tensor]) -> bytes:
    """The bytes of a safetensors file; equal weights give equal bytes."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})


def write(folder: str | Path, config: AutoencoderConfig, weights: Mapping[str, Tensor], card: str) -> None:
    """Write a released model, each file to a temporary name first; the config, without which it is none, last."""
    folder = Path(folder)
    with atomic_path(folder / WEIGHTS) as temporary:
        temporary.write_bytes(serialize(weights))
    write_text(folder / CARD, card)
    write_json(
        folder / CONFIG,
        {
            "format_version": FORMAT_VERSION,
            "audiovq_version": audiovq.__version__,
            "model": config.model_dump(mode="json"),
        },
    )


def push(tokenizer: AudioTokenizer, hub_id: str, private: bool) -> str:
    """Create the repository if needed and upload the three files of a release in one commit."""
    import tempfile

    import huggingface_hub

    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        api = huggingface_hub.HfApi()
        api.create_repo(hub_id, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=hub_id, folder_path=folder, commit_message="Upload an audiovq tokenizer")
    return commit.commit_url


def model_card(tokenizer: AudioTokenizer) -> str:
    """The README.md of a released model: what it is and how to use it, in the Hub's format."""
    speaker = f', speaker="{tokenizer.speakers[0]}"' if tokenizer.speakers else ""
    table = "\n".join(f"| {name} | {value} |" for name, value in tokenizer.describe().items())
    return f"""---
library_name: audiovq
tags: [audio, speech, tokenizer, codec, vq-vae]
---

# Audio tokenizer

Trained with [audiovq](https://pypi.org/project/audiovq/) {audiovq.__version__}.

| | |
|---|---|
{table}

```python
import audiovq

tokenizer = audiovq.AudioTokenizer.from_pretrained("path/to/this/folder")
wave, sample_rate = audiovq.load_audio("speech.wav")
codes = tokenizer.encode(wave, sample_rate)
wave = tokenizer.decode(codes{speaker})
```
"""
