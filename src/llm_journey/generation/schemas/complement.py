"""What breaks a JSON schema: for each keyword, a schema of values that do, of what llguidance expresses."""

from collections.abc import Iterator
from typing import Any, Protocol

import regex

from llm_journey.generation.schemas import containers
from llm_journey.generation.schemas.algebra import (
    SCALARS,
    all_of,
    negated_bound,
    other_than,
    other_types,
    strings_unlike,
)
from llm_journey.generation.schemas.references import Place, References, Schema, list_of, map_of

# Keywords of whose complement at most a part is expressed.
_PARTLY = (
    *("pattern", "format", "multipleOf", "items", "uniqueItems", "minContains", "maxProperties", "patternProperties"),
    *("additionalProperties", "propertyNames", "unevaluatedItems", "unevaluatedProperties"),
)
_LITERALS = regex.compile(r"\^\(?([\w/ -]+(?:\|[\w/ -]+)*)\)?(\$?)")


class Narrower(Protocol):
    """What is asked of `narrowing` about the parts of a schema."""

    references: References
    branch_names: tuple[str, ...]

    def accept(self, at: Place) -> Schema:
        """A schema within `at`."""

    def reject(self, at: Place) -> Schema:
        """A schema within the complement of `at`."""

    def referred(self, target: Place, *, accepts: bool) -> Schema:
        """What a reference to `target` stands for."""

    def note(self, note: str) -> None:
        """Keep what is left out."""


def broken(narrower: Narrower, at: Place, keywords: dict[str, Any]) -> Iterator[Schema]:
    """For each keyword, schemas of values that break it; none where there is no grammar for them."""
    below = narrower.references.below
    if "type" in keywords:
        named = keywords["type"]
        kinds = named if isinstance(named, list) else [named]
        free = other_types(kinds)
        if "integer" in kinds and "number" not in kinds:
            narrower.note("not integer: no number at all")
        yield {"type": free} if free else False
    if "const" in keywords or isinstance(keywords.get("enum"), list):
        values = [keywords["const"]] if "const" in keywords else keywords["enum"][:200]
        yield other_than(values) if len(values) < 200 else False
    for keyword in SCALARS:
        if keyword in keywords:
            yield negated_bound(keyword, keywords[keyword])
    yield _unlike(keywords)
    yield from _broken_items(narrower, at, keywords)
    yield from _broken_properties(narrower, at, keywords)
    for keyword in ("$ref", "$dynamicRef"):
        if keyword in keywords:
            yield narrower.referred(narrower.references.target(at, keyword, keywords[keyword]), accepts=False)
    for each in list_of(keywords, "allOf"):
        yield narrower.reject(below(at, each))
    if "anyOf" in keywords:
        yield all_of([narrower.reject(below(at, each)) for each in list_of(keywords, "anyOf")])
    if "oneOf" in keywords:
        yield all_of([narrower.reject(below(at, each)) for each in list_of(keywords, "oneOf")])
    if "not" in keywords:
        yield narrower.accept(below(at, keywords["not"]))
    if "if" in keywords:
        condition, then, other = (below(at, keywords.get(key, True)) for key in ("if", "then", "else"))
        yield all_of([narrower.accept(condition), narrower.reject(then)])
        yield all_of([narrower.reject(condition), narrower.reject(other)])
    partly = [keyword for keyword in _PARTLY if keyword in keywords]
    if any(isinstance(value, list | dict) for value in (keywords.get("const"), *list_of(keywords, "enum"))):
        partly.append("enum")
    if partly:
        narrower.note(f"not, if or oneOf: of what breaks {', '.join(partly)} a part at most")


def _unlike(keywords: dict[str, Any]) -> Schema:
    """Strings that do not match a pattern, where it is a choice of plain words."""
    found = _LITERALS.fullmatch(keywords["pattern"]) if isinstance(keywords.get("pattern"), str) else None
    if found is None or ("|" in found[1] and "(" not in keywords["pattern"]):
        return False
    words = found[1].split("|")
    if found[2]:  # to Python's engine, $ also stands before a last line break
        return strings_unlike([*words, *(f"{word}\n" for word in words)])
    return strings_unlike(words, prefixes=True)


def _broken_items(narrower: Narrower, at: Place, keywords: dict[str, Any]) -> Iterator[Schema]:
    below = narrower.references.below
    prefix = list_of(keywords, "prefixItems")
    wrong = [narrower.reject(below(at, each)) for each in prefix[:16]]
    if "items" in keywords and len(prefix) <= 16:
        wrong.append(narrower.reject(below(at, keywords["items"])))
    for index, each in enumerate(wrong):
        if each is not False:
            yield {"type": "array", "prefixItems": [True] * index + [each], "minItems": index + 1}
    least, most = (containers.count_of(keywords, key) for key in ("minContains", "maxContains"))
    if "contains" in keywords:
        item = below(at, keywords["contains"])
        if least != 0:
            yield {"type": "array", "items": narrower.reject(item)}
        if most is not None and most < 16:
            yield {"type": "array", "prefixItems": [narrower.accept(item)] * (most + 1), "minItems": most + 1}


def _broken_properties(narrower: Narrower, at: Place, keywords: dict[str, Any]) -> Iterator[Schema]:
    below = narrower.references.below

    def wrong(name: str, each: Schema) -> Schema:
        return each and {"type": "object", "properties": {name: each}, "required": [name]}

    properties = map_of(keywords, "properties")
    for name, each in properties.items():
        yield wrong(name, narrower.reject(below(at, each)))
    for name in list_of(keywords, "required"):
        yield {"type": "object", **containers.without(name)}
    if "additionalProperties" in keywords and not keywords.get("patternProperties"):
        rest = narrower.reject(below(at, keywords["additionalProperties"]))
        others = [name for name in (*narrower.branch_names, *narrower.references.names) if name not in properties]
        yield from (wrong(name, rest) for name in list(dict.fromkeys(others))[:4])
    for name, needed in map_of(keywords, "dependentRequired").items():
        yield from (all_of([{"required": [name]}, {"type": "object", **containers.without(n)}]) for n in needed)
    for name, each in map_of(keywords, "dependentSchemas").items():
        yield all_of([{"type": "object", "required": [name]}, narrower.reject(below(at, each))])
