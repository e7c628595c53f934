"""Bounds of numbers as llguidance keeps to them: closed, and within the integers that a float holds exactly.

It lets an open bound through that is an integer where the interval is shorter than one (0 for {"exclusiveMinimum": 0,
"maximum": 0.5}), and clamps integers to 64 bits, so that bounds beyond them are answered by numbers outside. Here an
open bound moves inwards by a millionth (or a billionth of itself), and large ones to 2^53: always less, never more.
"""

from typing import Any, TypeGuard

from llm_journey.core.errors import BadInputError

_EXACT = 1 << 53


def within_exact_bounds(schema: dict[str, Any]) -> dict[str, Any]:
    """One node of a schema, within it. Raises BadInputError for a const or an enum with an integer beyond 2^53."""
    for key in ("const", "enum"):
        _check(schema.get(key))
    found = dict(schema)
    for bound, exclusive, sign in (("minimum", "exclusiveMinimum", 1), ("maximum", "exclusiveMaximum", -1)):
        opened, closed = found.get(exclusive), found.get(bound)
        if _is_number(opened):
            del found[exclusive]
            if abs(opened) <= _EXACT:
                opened += sign * max(1e-6, abs(opened) * 1e-9)
            closed = sign * max(sign * opened, sign * closed) if _is_number(closed) else opened
        if _is_number(closed):
            if sign * closed > _EXACT:
                raise BadInputError("a bound leaves numbers beyond 2^53 alone")
            found[bound] = closed if abs(closed) <= _EXACT else -sign * _EXACT
    return found


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check(value: Any) -> None:
    if isinstance(value, list):
        for each in value:
            _check(each)
    elif isinstance(value, dict):
        for each in value.values():
            _check(each)
    elif isinstance(value, int) and abs(value) > _EXACT:
        raise BadInputError(f"{str(value)[:40]} is an integer beyond 2^53")
