"""Narrowing of lists and objects: contains, uniqueItems, the names and the number of properties.

Every function returns alternatives for lists or objects alone; values of other types stay free (`unless`).
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from llm_journey.generation.schemas.algebra import unless, whole
from llm_journey.generation.schemas.references import Schema

_MAX_RUN = 64  # items of a list that a rule will spell out
_MAX_CHOICES = 8  # alternatives that a rule will offer


def containing(matching: Schema, others: Schema, prefix: int, least: int, most: int | None) -> Schema:
    """`contains`: between least and most items match.

    matching: within the item schema; others: within its complement; prefix: how many positions have a schema of
    their own, at any of which the matching run may begin. Either the items around a run do not match, or a list has
    no more than `most` items at all, or there is no `most`.
    """
    if least > _MAX_RUN or (most is not None and most < least):
        return unless("array", [])
    starts = range(min(prefix, _MAX_CHOICES) + 2) if least else range(1)
    options: list[Schema] = []
    if most is None:
        options += [{"prefixItems": [True] * at + [matching] * least, "minItems": at + least} for at in starts]
        return unless("array", options if least else [True])
    options.append({"prefixItems": [matching] * least, "minItems": least, "maxItems": most})
    for length in range(least, min(most, least + 3) + 1):
        options += [
            {"prefixItems": [others] * at + [matching] * length, "items": others, "minItems": at + length}
            for at in (starts if length else range(1))
        ]
    return unless("array", options)


def distinct(values: Sequence[Any] | None, least: int) -> Schema:
    """`uniqueItems`: lists whose items differ because their positions allow no common value.

    values: all that an item can be, no two equal; None where that is unknown. A list of at most one item is distinct.
    Three values are arranged in every way. Of more, one list begins with any and goes on with another; a longer one
    takes its items from consecutive stretches of the values. Where values are unknown and several are asked for, they
    are told apart by their length, or as the numbers 0, 1, 2.
    """
    if values is None:
        return unless("array", [{"maxItems": 1}, *_told_apart(least)])
    if len(values) <= 3:
        lists = [list(each) for n in range(len(values) + 1) for each in itertools.permutations(values, n)]
        return unless("array", [{"const": each} for each in lists])
    options: list[Schema] = [{"maxItems": 0}]
    if len(values) <= 16:
        for index, value in enumerate(values):
            others = {"enum": [*values[:index], *values[index + 1 :]]}
            options.append({"prefixItems": [{"const": value}, others], "minItems": 1, "maxItems": 2})
    else:
        options.append({"prefixItems": [{"enum": list(values)}], "minItems": 1, "maxItems": 1})
    count = min(len(values), _MAX_RUN, max(least, (len(values) + 1) // 2))
    size = -(-len(values) // count)
    stretches: list[Schema] = [{"enum": list(values[at : at + size])} for at in range(0, len(values), size)]
    options += [
        {"prefixItems": stretches[at:], "minItems": 1, "maxItems": len(stretches) - at}
        for at in range(max(1, min(len(stretches), _MAX_CHOICES, 128 // len(values))))
        if len(stretches) - at >= max(least, 3)
    ]
    return unless("array", options)


def _told_apart(least: int) -> list[Schema]:
    if not 2 <= least <= 16:
        return []
    last = least - 1
    strings = [{"type": "string", "minLength": n, "maxLength": n} for n in range(1, least)]
    numbers: list[Schema] = [{"const": n} for n in range(least)]
    shape = {"minItems": least, "maxItems": least}
    return [
        {"prefixItems": [*strings, {"type": "string", "minLength": last + 1}], **shape},
        {"prefixItems": numbers, **shape},
        {"prefixItems": [{"type": "array", "minItems": n, "maxItems": n} for n in range(least)], **shape},
    ]


def only_names(names: Sequence[str]) -> dict[str, Any]:
    """Objects that have no property but these."""
    return {"properties": dict.fromkeys(names, True), "additionalProperties": False}


def of_pattern(pattern: str) -> dict[str, Any]:
    """Objects all of whose names match."""
    return {"patternProperties": {pattern: True}, "additionalProperties": False}


def without(name: str) -> dict[str, Any]:
    """Objects that lack a property."""
    return {"properties": {name: False}}


def at_least(count: int, needed: Sequence[str], optional: Sequence[str], names: Sequence[str], *, free: bool) -> Schema:
    """`minProperties`, by required names: a count alone would take a name that comes twice for two.

    needed, optional: the properties of the schema itself that are required and that are not; names: what a property
    can be called where those are too few. free: one of them may have any name.
    """
    missing = count - len(needed)
    if missing <= 0:
        return True
    if missing > _MAX_RUN:
        return unless("object", [])
    if len(optional) >= missing:
        windows = [list(optional[at : at + missing]) for at in range(len(optional) - missing + 1)][:_MAX_CHOICES]
        return unless("object", [{"required": window} for window in windows])
    missing -= len(optional)
    invented = [name for name in names if name not in needed and name not in optional]
    invented += [name for n in range(missing) if (name := f"property{n + 1}") not in {*needed, *optional, *invented}]
    # One property of any name is certainly another than those that are listed.
    options: list[Schema] = [{"required": [*needed, *optional, *invented[:missing]]}]
    if free:
        options.append({"required": [*needed, *optional, *invented[: missing - 1]], "minProperties": count})
    return unless("object", options)


def at_most(count: int, needed: Sequence[str], optional: Sequence[str]) -> Schema:
    """`maxProperties`, by the names that may be there at all."""
    left = count - len(needed)
    if left < 0:
        return unless("object", [])
    if not optional:
        return {"maxProperties": count}
    if left >= len(optional):
        return unless("object", [only_names([*needed, *optional])])
    windows = [optional[at : at + left] for at in range(len(optional) - left + 1)][:_MAX_CHOICES]
    return unless("object", [only_names([*needed, *window]) for window in windows])


def count_of(keywords: dict[str, Any], keyword: str) -> int | None:
    """A count, where one is given."""
    value = whole(keywords.get(keyword))
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def joined_patterns(patterns: dict[str, Schema], join: Callable[[list[Schema]], Schema]) -> dict[str, Schema]:
    """One pattern for several, whose properties satisfy all of their schemas: a name may match more than one."""
    if len(patterns) < 2:
        return patterns
    return {"|".join(f"({pattern})" for pattern in patterns): join(list(patterns.values()))}
