"""What a family is: two maps (config, tensors), each both ways, and a reader for configs from outside.

A config.json that was not written here may say anything: each value is checked for its type and range, and the error
names the file, the key and the value.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llm_journey.checkpoint.shapes import MAX_CONTEXT
from llm_journey.checkpoint.tensor_files import Shape
from llm_journey.core.config import validate
from llm_journey.core.errors import BadInputError
from llm_journey.model.config import TransformerConfig

State = Mapping[str, Tensor]
_MAX_SIZE = 1 << 31


@dataclass(frozen=True, kw_only=True)
class Derived:
    """A tensor that a file may hold although it follows from others: a tied head stored again, a table of sines.

    value: what it must be, from the others. reason: the sentence for when it is not. tolerance: 0 for a copy.
    """

    shape: Shape
    value: Callable[[State], Tensor]
    reason: str
    tolerance: float = 0.0

    def check(self, found: Tensor, tensors: State, where: str) -> None:
        """Raise BadInputError with the reason where `found` differs."""
        expected = self.value(tensors)
        equal = torch.equal(found, expected) if not self.tolerance else _is_close(found, expected, self.tolerance)
        if not equal:
            raise BadInputError(f"{where}: {self.reason}")


def _is_close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    return bool(((found.float() - expected.float()).abs() <= tolerance).all())


def copy_of(original: str, name: str, shape: Shape) -> Derived:
    """A copy of the tensor `original`, made because the two are tied."""
    reason = f"tie_word_embeddings is true, yet {name} differs from {original}"
    return Derived(shape=shape, value=lambda tensors: tensors[original], reason=reason)


def _nothing_derived(_config: TransformerConfig) -> dict[str, Derived]:
    return {}


def _as_read(config: TransformerConfig, _names: Collection[str]) -> TransformerConfig:
    return config


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture of Hugging Face transformers that our model can be written as and read from, exactly.

    fits: whether a config is this family's. write_config, read_config: config.json both ways. shapes: name and shape
    of each tensor that the family's file holds for a config. rename: the family's spelling of a stored name ("" for a
    buffer that carries no weights). write_tensors, read_tensors: our state to the family's and back. derived: what a
    file may hold besides. complete: the config once the names in the file are known, where config.json leaves it open
    which parts there are.
    """

    name: str
    fits: Callable[[TransformerConfig], bool]
    write_config: Callable[[TransformerConfig], dict[str, Any]]
    read_config: Callable[["ConfigReader"], TransformerConfig]
    shapes: Callable[[TransformerConfig], dict[str, Shape]]
    rename: Callable[[str], str]
    write_tensors: Callable[[TransformerConfig, State], dict[str, Tensor]]
    read_tensors: Callable[[TransformerConfig, State], dict[str, Tensor]]
    derived: Callable[[TransformerConfig], dict[str, Derived]] = _nothing_derived
    complete: Callable[[TransformerConfig, Collection[str]], TransformerConfig] = _as_read


def is_plain_decoder(config: TransformerConfig) -> bool:
    """A decoder whose embeddings go into the blocks as they are, and all of whose keys and values it computes."""
    return (
        config.kind == "decoder"
        and not config.embedding_norm
        and not config.embedding_scale
        and not config.prefix_tokens
    )


class ConfigReader:
    """Typed, bounded access to a config.json from outside. Raises BadInputError naming file, key, value and bounds."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def size(self, key: str, default: int | None = None, most: int = _MAX_SIZE) -> int:
        """A positive whole number; without a default the key must be there. null counts as absent."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise self.error(key, f"a whole number from 1 to {most}")
        return value

    def context(self, key: str) -> int:
        """The most positions the model accepts."""
        return self.size(key, most=MAX_CONTEXT)

    def number(self, key: str, default: float, *, low: float, high: float) -> float:
        """A number x with low <= x <= high."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.error(key, f"a number from {low} to {high}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def require(self, key: str, allowed: tuple[Any, ...], default: Any) -> None:
        """Refuse a value outside `allowed`: the model computes something that ours does not."""
        if self._get(key, default) not in allowed:
            raise self.error(key, " or ".join(repr(item) for item in allowed))

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None and default is None:
            raise BadInputError(f"{self.where}: key '{key}' is missing")
        return default if value is None else value

    def error(self, key: str, allowed: str) -> BadInputError:
        """The error for a value that is not allowed."""
        return BadInputError(f"{self.where}: key '{key}' = {str(self.values.get(key))[:80]!r}: must be {allowed}")

    def transformer(self, **fields: Any) -> TransformerConfig:
        """`fields` as a TransformerConfig, its own checks turned into errors that name the file."""
        return validate(TransformerConfig, fields, self.where)
