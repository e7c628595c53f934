"""Recipes: YAML documents validated into frozen dataclasses, overridden by `a.b=c`, dumped back whole.

Each component keeps its own dataclass beside its code; this module knows none of them. An error names the file, the
key, the value and what is allowed. YAML is read with the safe loader; duplicate keys are refused, and so are aliases:
a few lines of them can stand for more values than memory holds.
"""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from llm_journey.core.errors import BadInputError

T = TypeVar("T")
# A component's dataclass carries this as `__pydantic_config__`: unknown keys are errors, and so are NaN and infinity.
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
_MAX_RECIPE_BYTES = 1 << 20
_MAX_SHOWN = 80


class _RecipeLoader(yaml.SafeLoader):
    """PyYAML's safe loader without aliases, and with every key of a mapping a single value that stands once."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "a recipe has no aliases: write the value out", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be one word", key_node.start_mark)
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises BadInputError that names the file, and the line where it can."""
    try:
        if path.stat().st_size > _MAX_RECIPE_BYTES:
            raise BadInputError(f"{path}: larger than {_MAX_RECIPE_BYTES} bytes; this is no recipe")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInputError(f"{path}: no such recipe file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path}: cannot be read as a recipe ({error})") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """The mapping in a YAML text; `where` names it in errors."""
    try:
        value = _load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-99-99
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark else where
        problem = _one_line(getattr(error, "problem", None) or str(error))
        raise BadInputError(f"{place}: not valid YAML ({problem})") from None
    except RecursionError:
        raise BadInputError(f"{where}: nested too deeply for a recipe") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadInputError(f"{where}: a recipe is a mapping of keys to values, not {type(value).__name__}")
    return value


def override(mapping: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """A copy of `mapping` with each `a.b=c` applied; `c` is read as YAML (numbers, lists, null, text)."""
    result: dict[str, Any] = _deep_copy(mapping)
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        *parents, last = key.strip().split(".")
        if not separator or not all((*parents, last)):
            raise BadInputError(f"--set {_shown(assignment)}: write it as key.path=value")
        target = result
        for parent in parents:
            child = target.setdefault(parent, {})
            if not isinstance(child, dict):
                raise BadInputError(f"--set {_shown(assignment)}: {parent!r} holds a value, not a group of keys")
            target = child
        try:
            target[last] = _load(text) if text else ""
        except (yaml.YAMLError, ValueError):
            target[last] = text
        except RecursionError:
            raise BadInputError(f"--set {_shown(assignment)}: nested too deeply for a recipe") from None
    return result


def validate(kind: type[T], value: Mapping[str, Any], where: str) -> T:
    """`value` as a `kind` (a dataclass). Raises BadInputError naming `where`, the key, the value and the reason."""
    try:
        return TypeAdapter(kind).validate_python(dict(value))
    except ValidationError as error:
        raise BadInputError(f"{where}: {_explain(kind, error)}") from None
    except PydanticSchemaGenerationError:
        raise TypeError(f"{kind!r} is no dataclass that can be validated") from None


def dump(config: Any) -> dict[str, Any]:
    """A validated dataclass as plain values: what `validate` takes, what YAML and JSON hold."""
    result: dict[str, Any] = TypeAdapter(type(config)).dump_python(config, mode="json")
    return result


def to_yaml(value: Mapping[str, Any]) -> str:
    """A mapping as YAML text, keys in the order given."""
    return yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True, width=100)


def _load(text: str) -> Any:
    return yaml.load(text, Loader=_RecipeLoader)  # noqa: S506 - a subclass of the safe loader


def _explain(kind: type[Any], error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
        allowed = _field_names(kind, [str(part) for part in first["loc"][:-1]])
        return f"unknown key '{key}'" + (f"; allowed: {', '.join(allowed)}" if allowed else "")
    if first["type"] in {"missing", "missing_argument", "missing_keyword_only_argument"}:
        return f"key '{key}' is missing"
    message = _one_line(first["msg"].removeprefix("Value error, "))
    message = message[:1].lower() + message[1:]
    if first["type"] == "value_error" and isinstance(first["input"], Mapping):  # values that do not go together
        return f"key '{key}': {message}" if key else message
    return f"key '{key}' = {_shown(first['input'])}: {message}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _field_names(kind: Any, parents: Sequence[str]) -> list[str]:
    for parent in parents:
        fields = (
            {field.name: field.type for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else {}
        )
        kind = fields.get(parent)
    return [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def _deep_copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _deep_copy(item) for key, item in value.items()}
    return [_deep_copy(item) for item in value] if isinstance(value, list) else value
