"""Whether two schemas can be shown to have no value in common; what cannot be shown counts as overlapping."""

from collections.abc import Iterator
from typing import Any

from llm_journey.generation.schemas.algebra import TYPES, same, type_of
from llm_journey.generation.schemas.references import Place, References

_ANNOTATIONS = {"title", "description", "$comment", "default", "examples", "deprecated"}
_MAX_DEPTH = 6  # of properties and references on one way


def are_disjoint(references: References, left: Place, right: Place, depth: int = 0) -> bool:
    """Shown by types, by finite sets of values, or by a property that one needs and the other cannot share.

    A schema lies within each of its conjuncts, so one pair of conjuncts that is disjoint is enough; a union is
    disjoint where every member is.
    """
    if depth > _MAX_DEPTH:
        return False
    lefts, rights = list(_conjuncts(references, left, depth)), list(_conjuncts(references, right, depth))
    if any(_pair(references, one, other, depth) for one in lefts for other in rights):
        return True
    return _by_union(references, lefts, right, depth) or _by_union(references, rights, left, depth)


def finite_values(references: References, at: Place, depth: int = 0) -> list[Any] | None:
    """All values that a schema can have at most, from one of its const, enum, boolean or null; None where unknown."""
    for each in _conjuncts(references, at, depth):
        if isinstance(each.schema, bool):
            if not each.schema:
                return []
            continue
        keywords = references.keywords(each.schema)
        if "const" in keywords:
            return [keywords["const"]]
        if isinstance(keywords.get("enum"), list):
            return _distinct(keywords["enum"])
        named = keywords.get("type")
        kinds = named if isinstance(named, list) else [named]
        if named is not None and all(kind in ("boolean", "null") for kind in kinds):
            return [value for value in (None, False, True) if type_of(value) in kinds]
    return None


def listed_values(references: References, at: Place, depth: int = 0) -> list[Any] | None:
    """All values of a schema that is nothing but a list of them (const, enum, perhaps a type); None for another."""
    if isinstance(at.schema, bool) or depth > _MAX_DEPTH:
        return None
    keywords = references.keywords(at.schema)
    said = keywords.keys() - _ANNOTATIONS
    if said == {"$ref"}:
        return listed_values(references, references.target(at, "$ref", keywords["$ref"]), depth + 1)
    if said - {"type"} not in ({"const"}, {"enum"}):
        return None
    values = [keywords["const"]] if "const" in said else _distinct(keywords["enum"])
    named = keywords.get("type", list(TYPES))
    kinds = named if isinstance(named, list) else [named]
    return [value for value in values if any(_is_of(value, kind) for kind in kinds)]


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value has a type; an integer may be written 2.0."""
    return type_of(value) == kind or (kind == "integer" and type_of(value) == "number" and value == int(value))


def properties_of(references: References, at: Place) -> list[str]:
    """The names that a schema and its conjuncts require or list, those that it requires first."""
    found = [each for each in _conjuncts(references, at, 0) if isinstance(each.schema, dict)]
    said = [references.keywords(each.schema) for each in found if isinstance(each.schema, dict)]
    return [name for key in ("required", "properties") for keywords in said for name in _names(keywords, key)]


def _distinct(values: list[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values[:1000]:
        if not any(same(value, each) for each in found):
            found.append(value)
    return found


def _conjuncts(references: References, at: Place, depth: int) -> Iterator[Place]:
    """A schema itself and what it lies within by allOf and $ref."""
    yield at
    if depth > _MAX_DEPTH or isinstance(at.schema, bool):
        return
    keywords = references.keywords(at.schema)
    if "$ref" in keywords:
        yield from _conjuncts(references, references.target(at, "$ref", keywords["$ref"]), depth + 1)
    for part in keywords.get("allOf", ()):
        yield from _conjuncts(references, references.below(at, part), depth + 1)


def _by_union(references: References, parts: list[Place], other: Place, depth: int) -> bool:
    for part in parts:
        if isinstance(part.schema, bool):
            continue
        for keyword in ("anyOf", "oneOf"):
            branches = references.keywords(part.schema).get(keyword)
            if isinstance(branches, list) and all(
                are_disjoint(references, references.below(part, branch), other, depth + 1) for branch in branches
            ):
                return True
    return False


def _pair(references: References, left: Place, right: Place, depth: int) -> bool:
    """By the keywords that stand in the two schemas themselves."""
    if isinstance(left.schema, bool) or isinstance(right.schema, bool):
        return left.schema is False or right.schema is False
    one, other = references.keywords(left.schema), references.keywords(right.schema)
    ours, theirs = _values(one), _values(other)
    if ours is not None and theirs is not None:
        return not any(same(value, each) for value in ours for each in theirs)
    common = _types(one) & _types(other)
    if not common:
        return True
    if common != {"object"}:
        return False
    names = {*_names(one, "required"), *_names(other, "required")}
    return any(_property_disjoint(references, left, right, name, depth) for name in sorted(names)[:50])


def _values(keywords: dict[str, Any]) -> list[Any] | None:
    if "const" in keywords:
        return [keywords["const"]]
    found = keywords.get("enum")
    return found[:200] if isinstance(found, list) and len(found) <= 200 else None


def _types(keywords: dict[str, Any]) -> set[str]:
    """Types that may occur, integers being numbers."""
    values = _values(keywords)
    if values is not None:
        return {type_of(value) for value in values}
    named = keywords.get("type", list(TYPES))
    named = named if isinstance(named, list) else [named]
    return {"number" if kind == "integer" else str(kind) for kind in named}


def _names(keywords: dict[str, Any], keyword: str) -> list[str]:
    found = keywords.get(keyword, ())
    return [name for name in found if isinstance(name, str)] if isinstance(found, list | dict) else []


def _property_disjoint(references: References, left: Place, right: Place, name: str, depth: int) -> bool:
    ours, theirs = _property(references, left, name), _property(references, right, name)
    return ours is not None and theirs is not None and are_disjoint(references, ours, theirs, depth + 1)


def _property(references: References, at: Place, name: str) -> Place | None:
    """What an object of this schema has to be at a property; None where nothing is said of it."""
    assert isinstance(at.schema, dict)
    keywords = references.keywords(at.schema)
    properties = keywords.get("properties", {})
    if name in properties:
        return references.below(at, properties[name])
    if "additionalProperties" in keywords and not keywords.get("patternProperties"):
        return references.below(at, keywords["additionalProperties"])
    return references.below(at, True)
