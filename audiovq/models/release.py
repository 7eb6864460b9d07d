"""Released models: a folder with `model.safetensors`, `config.json` and a model card, on disk or on the Hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

import audiovq
from audiovq.config import AutoencoderConfig, PriorConfig, parse_config
from audiovq.errors import CheckpointError, ConfigError
from audiovq.files import atomic_path, write_json, write_text

FORMAT_VERSION = 1
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
KINDS: dict[type[AutoencoderConfig | PriorConfig], str] = {AutoencoderConfig: "tokenizer", PriorConfig: "prior"}
"""What a released model is called, by the schema of its config."""

ConfigT = TypeVar("ConfigT", AutoencoderConfig, PriorConfig)
ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Releasable(Protocol):
    """A model that can be written to a folder as people will use it."""

    def save_pretrained(self, folder: str | Path) -> None: ...


def load_network(
    path_or_hub_id: str | Path, revision: str | None, schema: type[ConfigT], build: Callable[[ConfigT], ModuleT]
) -> tuple[ConfigT, ModuleT]:
    """Config and network of a released model, from a folder or, if there is no such folder, from the Hub.

    Raises:
        CheckpointError: the folder or its files are missing, damaged, another kind of model, or of a format this
            version cannot read.
    """
    folder = locate(path_or_hub_id, revision)
    config = read_config(folder, schema)
    network = build(config)
    load_weights(network, read_weights(folder / WEIGHTS), source=str(path_or_hub_id))
    return config, network


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


def read_config(folder: Path, schema: type[ConfigT]) -> ConfigT:
    """Config of a released model, without its weights.

    Raises:
        CheckpointError: the file is missing, damaged, of another format version, or another kind of model's.
    """
    data, kind, wanted = _read_json(folder), kind_of(folder), KINDS[schema]
    if kind != wanted:
        raise CheckpointError(f"{folder}: is a {kind}, expected a {wanted}")
    try:
        return parse_config(data.get("model"), schema, str(folder / CONFIG))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def kind_of(folder: Path) -> str:
    """What a released model is, one of `KINDS`; raises as `read_config`."""
    kind = _read_json(folder).get("kind", "tokenizer")
    if kind not in KINDS.values():
        raise CheckpointError(f"{folder / CONFIG}: expected kind {' or '.join(KINDS.values())}, found {kind}")
    return kind


def _read_json(folder: Path) -> dict[str, Any]:
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
    return data


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


def write(
    folder: str | Path, config: AutoencoderConfig | PriorConfig, weights: Mapping[str, Tensor], card: str
) -> None:
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
            "kind": KINDS[type(config)],
            "model": config.model_dump(mode="json"),
        },
    )


def push(model: Releasable, hub_id: str, private: bool) -> str:
    """Create the repository if needed and upload the three files of a release in one commit."""
    import tempfile

    import huggingface_hub

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        message = f"Upload an audiovq {kind_of(Path(folder))}"
        api = huggingface_hub.HfApi()
        api.create_repo(hub_id, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=hub_id, folder_path=folder, commit_message=message)
    return commit.commit_url


def model_card(title: str, tags: str, facts: Mapping[str, str], example: str) -> str:
    """The README.md of a released model: what it is and how to use it, in the Hub's format."""
    table = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return f"""---
library_name: audiovq
tags: [{tags}]
---

# {title}

Trained with [audiovq](https://pypi.org/project/audiovq/) {audiovq.__version__}.

| | |
|---|---|
{table}

```python
import audiovq

{example}
```
"""
