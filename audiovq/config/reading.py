"""Reading configs: YAML with dotted overrides, validated; errors name the key, and the nearest known one."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from audiovq.config.experiments import ExperimentConfig
from audiovq.errors import ConfigError

ConfigT = TypeVar("ConfigT", bound=BaseModel)


def load_config(path: str | Path, overrides: Sequence[str] = (), schema: type[ConfigT] = ExperimentConfig) -> ConfigT:
    """Read a YAML file, apply `key.subkey=value` overrides and validate.

    An override of a `type` (say `bottleneck.type=none`) keeps those settings of the section that the new type
    also knows and takes its defaults for the rest.

    Raises:
        ConfigError: the file is missing or no YAML mapping, an override is malformed, or a key or value is wrong.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, found {type(data).__name__}")
    for override in overrides:
        _apply_override(data, override, schema)
    return parse_config(data, schema, str(path))


def parse_config(data: Any, schema: type[ConfigT], source: str) -> ConfigT:
    """Validate plain data; errors become one line that names `source`, the key and, for a typo, the right key."""
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        problems = "; ".join(_explain(problem, schema) for problem in error.errors())
        raise ConfigError(f"{source}: {problems}") from error


def _apply_override(data: dict[str, Any], override: str, schema: type[BaseModel]) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: expected key.subkey=value, as in training.steps=1000")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from error
    *parents, last = key.split(".")
    section = data
    for depth, parent in enumerate(parents, start=1):
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise ConfigError(f"override {override!r}: {'.'.join(parents[:depth])} is a value, not a section")
    if last == "type" and section.get("type") != value:
        known = {name for option in _schemas_at(schema, [*parents, str(value)]) for name in option.model_fields}
        for name in set(section) - known:
            del section[name]
    section[last] = value


def _schemas_at(schema: Any, location: Sequence[str | int]) -> list[type[BaseModel]]:
    """The schemas that a location can stand for; a union's member is named by its `type`."""
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        if not location:
            return [schema]
        field = schema.model_fields.get(str(location[0]))
        return _schemas_at(field.annotation, location[1:]) if field else []
    options = [option for option in get_args(schema) if isinstance(option, type) and issubclass(option, BaseModel)]
    if not options:
        return [found for option in get_args(schema) for found in _schemas_at(option, location)]
    tagged = [option for option in options if location and option.model_fields["type"].default == location[0]]
    rest = location[1:] if tagged else location
    return [found for option in tagged or options for found in _schemas_at(option, rest)]


def _is_tag(schema: type[BaseModel], parents: list[str | int], part: str | int) -> bool:
    """Whether a part of pydantic's location is the `type` of a union's member, which a user's key does not contain."""
    options = _schemas_at(schema, parents)
    return len(options) > 1 and part in {option.model_fields["type"].default for option in options}


def _explain(problem: Any, schema: type[BaseModel]) -> str:
    location = list(problem["loc"])
    name = ".".join(str(part) for i, part in enumerate(location) if not _is_tag(schema, location[:i], part))
    if problem["type"] == "extra_forbidden":
        known = [field for option in _schemas_at(schema, location[:-1]) for field in option.model_fields]
        close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
        return f"{name}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{name}: is required"
    message = problem["msg"].removeprefix("Value error, ")
    found = "" if isinstance(problem["input"], dict | BaseModel) else f", found {problem['input']!r}"
    return f"{name}: {message}{found}" if name else message
