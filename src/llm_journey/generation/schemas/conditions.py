"""Many `if`s about one property, decided together: by its value, each of them is known to hold or not.

`allOf: [{if: {properties: {kind: {const: "a"}}}, then: ...}, {if: {properties: {kind: {const: "b"}}}, then: ...}]` is a
union of one alternative for each value, where alternatives for every single `if` would multiply.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llm_journey.generation.schemas.algebra import other_than, same
from llm_journey.generation.schemas.disjoint import finite_values
from llm_journey.generation.schemas.references import Place, References, Schema

_MAX_VALUES = 200


@dataclass(frozen=True)
class Conditional:
    """One member of an allOf: whether its `if` holds for a property's value, and for objects that lack it."""

    index: int
    name: str
    values: tuple[Any, ...]
    holds_without: bool
    then: Place
    other: Place

    def branch(self, value: Any) -> Place:
        """The schema that applies beside a value of the property."""
        return self.then if any(same(value, each) for each in self.values) else self.other


@dataclass(frozen=True)
class Decision:
    """What a property is, and the schemas that then apply."""

    property: Schema
    branches: tuple[Place, ...]


def decided(references: References, at: Place, keywords: dict[str, Any]) -> tuple[set[int], list[Decision]]:
    """Which members of `allOf` are decided by one property, and the decisions, which exclude each other.

    Only for schemas of objects. Values that no condition names, and objects without the property, are decisions too.
    """
    found = [each for each in _conditionals(references, at, keywords) if each is not None]
    if keywords.get("type") != "object" or not found:
        return set(), []
    name, count = Counter(each.name for each in found).most_common(1)[0]
    members = [each for each in found if each.name == name]
    mentioned = [value for each in members for value in each.values]
    if count < 2 or len(mentioned) > _MAX_VALUES:
        return set(), []
    possible = finite_values(references, references.below(at, keywords.get("properties", {}).get(name, True)))
    decisions = _by_branches(members, mentioned if possible is None else possible)
    shapes: list[Decision] = [
        Decision({"required": [name], "properties": {name: {"enum": values}}}, branches)
        for values, branches in decisions
    ]
    if possible is None:
        rest = {"required": [name], "properties": {name: other_than(mentioned)}}
        shapes.append(Decision(rest, tuple(each.other for each in members)))
    if name not in keywords.get("required", ()):
        branches = tuple(each.then if each.holds_without else each.other for each in members)
        shapes.append(Decision({"properties": {name: False}}, branches))
    return {each.index for each in members}, shapes


def _by_branches(members: Sequence[Conditional], values: Sequence[Any]) -> list[tuple[list[Any], tuple[Place, ...]]]:
    """Values that lead to the same branches, together."""
    found: dict[Any, tuple[list[Any], tuple[Place, ...]]] = {}
    for value in values:
        branches = tuple(each.branch(value) for each in members)
        listed, _ = found.setdefault(tuple(id(each.schema) for each in branches), ([], branches))
        if not any(same(value, each) for each in listed):
            listed.append(value)
    return list(found.values())


def _conditionals(references: References, at: Place, keywords: dict[str, Any]) -> list[Conditional | None]:
    return [_conditional(references, at, index, each) for index, each in enumerate(keywords.get("allOf", ()))]


def _conditional(references: References, at: Place, index: int, member: Any) -> Conditional | None:
    """A member that says nothing but if/then/else, the `if` being about one property's value."""
    place = references.below(at, member)
    if isinstance(place.schema, bool) or not isinstance(place.schema.get("if"), dict):
        return None
    if place.schema.keys() - {"if", "then", "else", "title", "description", "$comment"}:
        return None
    said = references.keywords(place.schema)
    if "if" not in said:
        return None
    condition = {key: value for key, value in said["if"].items() if key not in ("title", "description", "$comment")}
    properties = condition.get("properties")
    if condition.keys() - {"properties", "required", "type"} or condition.get("type", "object") != "object":
        return None
    if not isinstance(properties, dict) or len(properties) != 1:
        return None
    name, tested = next(iter(properties.items()))
    if not isinstance(tested, dict) or condition.get("required", [name]) != [name]:
        return None
    plain = tested.keys() - {"title", "description", "$comment"}
    if plain != {"enum"} and (plain != {"const"} or references.draft < 6):
        return None
    values = [tested["const"]] if "const" in tested else tested["enum"]
    then, other = (references.below(place, said.get(key, True)) for key in ("then", "else"))
    return Conditional(index, name, tuple(values), "required" not in condition, then, other)
