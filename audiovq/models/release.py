"""Released models: a folder with `model.safetensors`, `config.json` and a model card, on disk or on the Hub."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

import audiovq
from audiovq.config import AutoencoderConfig, PriorConfig, parse_config
from audiovq.errors import CheckpointError, ConfigError
from audiovq.files import atomic_path, model_folder, read_json, write_json, write_text
from audiovq.text import shown

FORMAT_VERSION = 1
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
KINDS: dict[type[AutoencoderConfig | PriorConfig], str] = {AutoencoderConfig: "tokenizer", PriorConfig: "prior"}
"""What a released model is called, by the schema of its config."""

PRETRAINED = Path(audiovq.__file__).parent / "pretrained"
"""Folder of the models that come with audiovq, each in a folder of its name."""
PRIOR = "prior"
"""Folder in that of a tokenizer, with the prior that comes with it."""
FORMATS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.bool: "BOOL"}
"""Number formats of a network's state, as safetensors calls them."""
HALF = ("F16", "BF16")
LARGEST_CONFIG = 1 << 22
"""Bytes of a config: room for the names of a hundred thousand speakers."""

Header = Mapping[str, tuple[list[int], str]]
"""Shape and number format of each tensor in a file."""
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
    folder = locate(path_or_hub_id, revision, KINDS[schema])
    config = read_config(folder, schema)
    # Before memory is taken: what a damaged or hostile config asks for has to be in the file.
    header = read_header(folder / WEIGHTS)
    compare(_sketch(config, build, len(header), folder), header, str(path_or_hub_id))
    network = build(config)
    load_weights(network, read_weights(folder / WEIGHTS), source=str(path_or_hub_id))
    return config, network


def locate(path_or_hub_id: str | Path, revision: str | None = None, kind: str = "tokenizer") -> Path:
    """The local folder of a released model: a folder, a model that comes with audiovq, or one of the Hub, downloaded.

    Args:
        kind: which of the models of one name that comes with audiovq is meant.

    Raises:
        CheckpointError: neither the folder nor the repository can be had; the message names the models that come with
            audiovq, if one of them may be meant.
    """
    name = str(path_or_hub_id)
    if not comes_with_audiovq(name):
        known = sorted(path.parent.name for path in PRETRAINED.glob(f"*/{CONFIG}"))
        if known and "/" not in name and not Path(name).exists():
            raise CheckpointError(f"{name}: no such model folder; with audiovq comes {', '.join(known)}")
        return model_folder(name, [WEIGHTS, CONFIG, CARD], revision)
    folder = PRETRAINED / name / (PRIOR if kind == "prior" else "")
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{name}: comes without a prior; `audiovq train-prior` trains one over its codes")
    return folder


def comes_with_audiovq(name: str) -> bool:
    """Whether a tokenizer of this name does, and no folder of the name holds a model, or what is left of one."""
    own = any((Path(name) / file).exists() for file in (CONFIG, WEIGHTS))
    return "/" not in name and not own and (PRETRAINED / name / CONFIG).is_file()


def read_config(folder: Path, schema: type[ConfigT]) -> ConfigT:
    """Config of a released model, without its weights.

    Raises:
        CheckpointError: the file is missing, damaged, of another format version, or another kind of model's.
    """
    data, kind, wanted = _read_json(folder), kind_of(folder), KINDS[schema]
    if kind != wanted:
        raise CheckpointError(f"{folder}: is a {kind}, expected a {wanted}")
    try:
        config = parse_config(data.get("model"), schema, str(folder / CONFIG))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    if isinstance(config, PriorConfig) and config.codes is None:
        raise CheckpointError(f"{folder / CONFIG}: codes: is required in a released prior")
    return config


def kind_of(folder: Path) -> str:
    """What a released model is, one of `KINDS`; raises as `read_config`."""
    kind = _read_json(folder).get("kind", "tokenizer")
    if kind not in KINDS.values():
        raise CheckpointError(f"{folder / CONFIG}: expected kind {' or '.join(KINDS.values())}, found {kind!s:.60}")
    return kind


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{folder}: is no model folder, it has no {CONFIG}")
    try:
        data = read_json(path, LARGEST_CONFIG)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from error
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION or type(version) is not int:  # 1 is also true and 1.0.
        raise CheckpointError(
            f"{path}: expected format_version {FORMAT_VERSION}, found {version!s:.60}; "
            "is it an audiovq model, and of this version of audiovq?"
        )
    return data


def read_header(path: Path) -> Header:
    """Shapes and number formats of a safetensors file's tensors, which all lie within the file; reads none of them.

    Raises:
        CheckpointError: the file is missing, damaged or something else.
    """
    try:
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return {name: (list(piece.get_shape()), piece.get_dtype()) for name, piece in slices.items()}
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: is no safetensors file or is damaged ({error}); pickled checkpoints are not loaded"
        ) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU; nothing else is accepted, nothing is ever unpickled.

    Raises:
        CheckpointError: as `read_header`, or a value is NaN or infinite; the message names the tensor.
    """
    read_header(path)
    weights = load(path.read_bytes())
    _require_finite(weights, path)
    return weights


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy weights into a model; every name and shape has to agree. Half precision becomes the model's own.

    Raises:
        CheckpointError: they do not; the message names the first differences.
    """
    compare(
        model.state_dict(), {name: (list(t.shape), FORMATS.get(t.dtype, "")) for name, t in weights.items()}, source
    )
    model.load_state_dict(weights)


def compare(expected: Mapping[str, Tensor], found: Header, source: str) -> None:
    """Raise `CheckpointError` unless all names, shapes and number formats agree, or the format is half precision."""
    wrong = [f"{name} is missing" for name in expected if name not in found]
    wrong += [f"{shown(name)} is unknown" for name in found if name not in expected]
    for name, tensor in expected.items():
        shape, kind = found.get(name, (list(tensor.shape), FORMATS[tensor.dtype]))
        if shape != list(tensor.shape):
            wrong.append(f"{name} is {shown(shape)} instead of {list(tensor.shape)}")
        elif kind != FORMATS[tensor.dtype] and not (tensor.is_floating_point() and kind in HALF):
            wrong.append(f"{name} is {kind or 'of another number format'} instead of {FORMATS[tensor.dtype]}")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(f"{source}: weights do not fit the config: {', '.join(wrong[:3])}{more}")


def _sketch(config: ConfigT, build: Callable[[ConfigT], nn.Module], tensors: int, folder: Path) -> dict[str, Tensor]:
    """The state that a config's network has, without memory for it.

    Raises:
        CheckpointError: the config asks for far more tensors than the file has, or for larger ones than there can be.
    """
    left = itertools.count(8 * tensors + 100, -1)  # Some are replaced while a network is built.

    def count(*_: object) -> None:
        if not next(left):
            raise CheckpointError(
                f"{folder}: weights do not fit the config, which asks for more than {tensors} tensors"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"), _Sketch():
            return build(config).state_dict()
    except (RuntimeError, OverflowError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{folder / CONFIG}: no network can be built from it ({reason})") from error
    finally:
        hook.remove()


class _Sketch(TorchFunctionMode):
    """Draws and computes nothing: of what is made on `meta` shapes count alone.

    PyTorch learns the shapes of these functions' results by way of its compiler, the import of which takes longer than
    all else that loading a model does.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = [*args, *(kwargs or {}).values()]
        first = given[0] if given else None
        device = first.device if isinstance(first, Tensor) else torch.get_default_device()
        if device.type != "meta":
            return func(*args, **(kwargs or {}))
        if func is torch.randn or (func in (torch.hann_window, torch.arange) and len(given) == 1):
            return torch.empty(given)
        if func in (nn.init.normal_, Tensor.normal_, Tensor.div, Tensor.mul):
            return first
        if func is Tensor.ge:
            return torch.broadcast_tensors(*given)[0]
        return func(*args, **(kwargs or {}))


def _require_finite(weights: Mapping[str, Tensor], path: Path) -> None:
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise CheckpointError(
                f"{path}: tensor {shown(name)} holds NaN or infinite values; a model has to be finite"
            )


def serialize(weights: Mapping[str, Tensor]) -> bytes:
    """The bytes of a safetensors file; equal weights give equal bytes."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})


def write(
    folder: str | Path,
    config: AutoencoderConfig | PriorConfig,
    weights: Mapping[str, Tensor],
    card: str,
    half: bool = False,
) -> None:
    """Write a released model, each file to a temporary name first; the config, without which it is none, last.

    Args:
        half: write floating-point weights in half precision.

    Raises:
        CheckpointError: a weight is NaN or infinite, or too large for half precision; nothing is written then.
    """
    folder = Path(folder)
    if half:
        weights = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    _require_finite(weights, folder / WEIGHTS)
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

Trained with audiovq {audiovq.__version__}.

| | |
|---|---|
{table}

```python
import audiovq

{example}
```
"""
