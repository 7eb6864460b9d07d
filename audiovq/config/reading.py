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
from audiovq.text import printable, reason_of, shown

ConfigT = TypeVar("ConfigT", bound=BaseModel)

MAX_BYTES, MAX_DEPTH, MAX_DIGITS = 1 << 20, 20, 40
"""Bytes of a file, levels of sections and lists, and characters of a number: more than settings have."""
SHOWN = 10
"""Mistakes that a message names."""


def load_config(path: str | Path, overrides: Sequence[str] = (), schema: type[ConfigT] = ExperimentConfig) -> ConfigT:
    """Read a YAML file, apply `key.subkey=value` overrides and validate.

    An override of a `type` (say `bottleneck.type=none`) keeps those settings of the section that the new type
    also knows and takes its defaults for the rest.

    Raises:
        ConfigError: the file is missing or no YAML mapping, an override is malformed, or a key or value is wrong.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES).decode()
            if file.read(1):
                raise ConfigError(f"{path}: expected settings, found more than {MAX_BYTES} bytes")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    data = _parse_yaml(text, f"{path}:")
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
        found = error.errors(include_url=False)
        problems = [_explain(problem, schema) for problem in found[:SHOWN]]
        more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        raise ConfigError(f"{source}: {'; '.join(problems + more)}") from error


class _SettingsLoader(yaml.SafeLoader):
    """The part of YAML that settings need: no aliases, merges, tags and dates, and every key a name that occurs once.

    What is left out is where a small file can ask for much memory or time, or where plain words turn into something
    else. Numbers and nesting are bounded for the same reason.
    """

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _yaml_error("aliases are not allowed here; write the value out", event)
        if getattr(event, "tag", None) not in (None, "!"):
            raise _yaml_error(f"tags such as {shown(event.tag)} are not allowed here", event)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _yaml_error(f"expected at most {MAX_DEPTH} levels, found more", event)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_scalar(self, node: Any) -> Any:
        if node.tag.endswith((":int", ":float")) and (len(node.value) > MAX_DIGITS or ":" in node.value):
            raise _yaml_error(
                f"expected a plain number of at most {MAX_DIGITS} digits, found {shown(node.value)}", node
            )
        if not _is_text(node.value):
            raise _yaml_error(f"{shown(node.value)} is no text", node)
        return super().construct_scalar(node)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or not key.tag.endswith(":str"):
                raise _yaml_error(f"expected a name as a key, found {shown(self.construct_object(key, True))}", key)
            if key.value in names:
                raise _yaml_error(f"key {shown(key.value)} stands here twice", key)
            names.add(key.value)
        return super().construct_mapping(node, deep)


_SettingsLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag.rpartition(":")[2] not in {"timestamp", "merge", "value"}]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _yaml_error(message: str, place: Any) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=message, problem_mark=place.start_mark)


def _is_text(value: str) -> bool:
    """Whether a string can be written down and can be a path: neither NUL nor half of a surrogate pair."""
    return "\0" not in value and value.encode("utf-8", "ignore").decode() == value


def _parse_yaml(text: str, what: str) -> Any:
    try:
        return yaml.load(text, _SettingsLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ConfigError(f"{what} is not valid YAML: {error.problem or error.context}{place}") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # PyYAML lets Python say that 0x_ is no number.
        raise ConfigError(f"{what} is not valid YAML: {reason_of(error)}") from error


def _apply_override(data: dict[str, Any], override: str, schema: type[BaseModel]) -> None:
    key, equals, text = override.partition("=")
    *parents, last = key.split(".")
    if not equals or not key or len(parents) > MAX_DEPTH or not _is_text(key):
        raise ConfigError(f"override {shown(override)}: expected key.subkey=value, as in training.steps=1000")
    value = _parse_yaml(text, f"override {shown(override)}: the value")
    section = data
    for depth, parent in enumerate(parents, start=1):
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise ConfigError(
                f"override {shown(override)}: {printable('.'.join(parents[:depth]))} is a value, not a section"
            )
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
    tagged = [option for option in options if location and _tag(option) == location[0]]
    rest = location[1:] if tagged else location
    return [found for option in tagged or options for found in _schemas_at(option, rest)]


def _is_key(schema: type[BaseModel], parents: list[str | int], part: str | int) -> bool:
    """Whether a part of pydantic's location is one of the user's key, not the name of a member of a union."""
    if isinstance(part, int):
        return True
    options = _schemas_at(schema, parents)
    return len(options) == 1 or (len(options) > 1 and part not in map(_tag, options))


def _tag(schema: type[BaseModel]) -> Any:
    """The `type` that names a union's member; None for a schema that is none, such as an optional section."""
    return schema.model_fields["type"].default if "type" in schema.model_fields else None


def _explain(problem: Any, schema: type[BaseModel]) -> str:
    location, given = list(problem["loc"]), problem["input"]
    if problem["type"] == "true_for_number":  # Told of the section.
        location, given = [*location, problem["ctx"]["key"]], problem["ctx"]["value"]
    name = ".".join(_short(part) for i, part in enumerate(location) if _is_key(schema, location[:i], part))
    if problem["type"] == "extra_forbidden":
        known = [field for option in _schemas_at(schema, location[:-1]) for field in option.model_fields]
        close = difflib.get_close_matches(str(location[-1])[:60], known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
        return f"{name}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{name}: is required"
    message = problem["msg"].removeprefix("Value error, ")
    found = "" if isinstance(given, dict | BaseModel) else f", found {shown(given)}"
    return f"{name}: {message}{found}" if name else f"{message}{found}"


def _short(part: str | int) -> str:
    return printable(str(part)) if len(str(part)) <= 60 else shown(part)
