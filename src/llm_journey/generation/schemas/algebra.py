"""Small pieces that schema narrowing puts together: unions, conjunctions, complements of values, and formats.

Everything here is a schema that llguidance expresses. `False` stands for the schema that nothing satisfies.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llm_journey.generation.schemas.references import Schema

TYPES = ("null", "boolean", "number", "string", "array", "object")
_MAX_LITERALS = 2000  # characters of the strings whose complement is spelled out as a regex

# Formats as patterns. Pointers are RFC 6901's whole language. llguidance's own dates have a 29 February in every year,
# a year 0 and leap seconds at any minute; these have that day in years that four divides and a hundred does not. Of
# the others, which it does not know, these are a plain part.
_LABELS = "[a-z][a-z0-9]{0,20}([.][a-z][a-z0-9]{0,20}){0,3}"
_PATH = "(/[A-Za-z0-9._~-]*)*"
_DATE = (
    "([1-9][0-9]{3}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    "|02-(0[1-9]|1[0-9]|2[0-8]))|[1-9][0-9](0[48]|[2468][048]|[13579][26])-02-29)"
)
_TIME = "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]([.][0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
FORMATS: dict[str, str] = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "json-pointer": "^(/([^~/]|~[01])*)*$",
    "relative-json-pointer": "^(0|[1-9][0-9]*)(#|(/([^~/]|~[01])*)*)$",
    "regex": "^[A-Za-z0-9 _-]*$",
    "uri-template": f"^{_PATH}([{{][A-Za-z][A-Za-z0-9_]*[}}])?$",
    "uri-reference": f"^(https?://{_LABELS})?{_PATH}$",
    "iri-reference": f"^(https?://{_LABELS})?{_PATH}$",
    "iri": f"^https?://{_LABELS}{_PATH}$",
    "idn-email": f"^[A-Za-z0-9_-]{{1,60}}@{_LABELS}$",
    "idn-hostname": f"^{_LABELS}$",
}
WIDER_FORMATS = ("regex", "uri-template", "uri-reference", "iri-reference", "iri", "idn-email", "idn-hostname")
LOOSE_FORMATS = ("date", "time", "date-time")  # which llguidance takes for more than they are
# Known to llguidance, and right there. Every other name says nothing (2020-12 Validation, 7.2.3: unknown formats).
OWN_FORMATS = ("duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")


def any_of(options: Iterable[Schema]) -> Schema:
    """What satisfies at least one of them."""
    kept = []
    for option in options:
        if option is True or option == {}:
            return True
        if option is not False:
            kept.append(option)
    if not kept:
        return False
    return kept[0] if len(kept) == 1 else {"anyOf": kept}


def all_of(parts: Iterable[Schema]) -> Schema:
    """What satisfies all of them."""
    kept = []
    for part in parts:
        if part is False:
            return False
        if part is not True and part != {}:
            kept.append(part)
    if not kept:
        return True
    return kept[0] if len(kept) == 1 else {"allOf": kept}


def unless(kind: str, alternatives: Iterable[Schema]) -> Schema:
    """Anything that is no `kind`, or a `kind` of one of these alternatives (which say nothing about other types)."""
    own = [{"type": kind, **(each if isinstance(each, dict) else {})} for each in alternatives if each is not False]
    return any_of([{"type": [each for each in TYPES if each != kind]}, *own])


def type_of(value: Any) -> str:
    """The JSON type of a value, integers being numbers."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"


def other_types(named: Iterable[str]) -> list[str]:
    """The types that are certainly none of those named; of numbers that are no integers there is no grammar."""
    taken = {"number" if each == "integer" else each for each in named}
    return [each for each in TYPES if each not in taken]


def same(left: Any, right: Any) -> bool:
    """Equality of JSON values: 1 is 1.0, but neither is true."""
    if type_of(left) != type_of(right):
        return False
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return bool(left == right)


def other_than(values: Sequence[Any]) -> Schema:
    """Values that equal none of these."""
    groups: dict[str, list[Any]] = {each: [] for each in TYPES}
    for value in values:
        groups[type_of(value)].append(value)
    options: list[Schema] = [{"type": free} if (free := [kind for kind in TYPES if not groups[kind]]) else False]
    if groups["boolean"]:
        options.append({"enum": left} if (left := [each for each in (False, True) if each not in groups["boolean"]])
                       else False)  # fmt: skip
    if numbers := sorted(set(groups["number"])):
        options.append({"type": "number", "exclusiveMaximum": numbers[0]})
        options += [
            {"type": "number", "exclusiveMinimum": low, "exclusiveMaximum": high}
            for low, high in itertools.pairwise(numbers)
        ]
        options.append({"type": "number", "exclusiveMinimum": numbers[-1]})
    if groups["string"]:
        options.append(strings_unlike(groups["string"]))
    if groups["array"]:  # longer than all of them
        options.append({"type": "array", "minItems": max(map(len, groups["array"])) + 1})
    if groups["object"]:  # with none of a whole one's names, or with fewer properties than each
        fewest = min(map(len, groups["object"]))
        options.append({"type": "object", "minProperties": 1} if not any(groups["object"]) else
                       {"type": "object", "maxProperties": fewest - 1} if fewest else False)  # fmt: skip
    return any_of(options)


def strings_unlike(literals: Iterable[str], *, prefixes: bool = False) -> Schema:
    """Strings that are none of these, or that begin with none of these."""
    wanted = sorted(set(literals))
    if sum(map(len, wanted)) > _MAX_LITERALS or max(map(len, wanted)) > 200:
        return False
    pattern = _unlike(wanted, prefixes)
    return False if pattern is None else {"type": "string", "pattern": f"^{pattern}$"}


def _unlike(literals: Sequence[str], prefixes: bool) -> str | None:
    """A regex of the complement, along the trie of the literals; None for the empty one."""
    if prefixes and "" in literals:
        return None
    tails: dict[str, list[str]] = {}
    for each in literals:
        if each:
            tails.setdefault(each[0], []).append(each[1:])
    options = [] if "" in literals else [""]
    if tails:
        options.append(f"[^{''.join(map(_escaped, tails))}][\\s\\S]*")
    else:
        options.append("[\\s\\S]+")
    for first, rest in tails.items():
        below = _unlike(rest, prefixes)
        if below is not None:
            options.append(_escaped(first) + below)
    return f"({'|'.join(options)})"


def _escaped(character: str) -> str:
    code = ord(character)
    return character if character.isascii() and character.isalnum() else f"\\x{code:02x}" if code < 256 else character


def whole(value: Any) -> Any:
    """A count, which may be written 2.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def negated_bound(keyword: str, value: Any) -> Schema:
    """What breaks one scalar keyword; False where there is no grammar for that."""
    value = whole(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    match keyword:
        case "minimum":
            return {"type": "number", "exclusiveMaximum": value}
        case "maximum":
            return {"type": "number", "exclusiveMinimum": value}
        case "exclusiveMinimum":
            return {"type": "number", "maximum": value}
        case "exclusiveMaximum":
            return {"type": "number", "minimum": value}
        case "multipleOf":  # between nothing and once
            return {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": value} if value > 0 else False
    kind, counted = _COUNTED[keyword]
    if keyword == "maxProperties" and value > 0:
        return False  # a count of properties is no grammar: a name may come twice
    if keyword.startswith("min"):
        return {"type": kind, f"max{counted}": value - 1} if value > 0 else False
    return {"type": kind, f"min{counted}": value + 1}


_COUNTED: Mapping[str, tuple[str, str]] = {
    "minLength": ("string", "Length"),
    "maxLength": ("string", "Length"),
    "minItems": ("array", "Items"),
    "maxItems": ("array", "Items"),
    "minProperties": ("object", "Properties"),
    "maxProperties": ("object", "Properties"),
}
SCALARS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", *_COUNTED)
