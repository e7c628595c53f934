"""multipleOf: which of a schema's numbers llguidance can count, and a part of the multiples of those that it cannot.

It follows remainders, one state for each: `{"multipleOf": 12345678}`, or two smaller numbers that hold for one value
and have that common multiple, takes gigabytes and minutes. It writes a float out as an integer and a power of ten by
multiplying in floats, so that 0.12345 becomes 12345000000000002.
"""

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, TypeGuard

MAX_STATES = 50_000  # 0.1 s and 20 MB
_MAX_COEFFICIENT = 1 << 32
_EXACT = 1 << 53  # integers up to here are floats
_COUNT = 8  # multiples above and below zero


def countable(schema: Any) -> frozenset[float]:
    """Of the numbers under multipleOf in a document, smallest first, those whose common multiple can be counted.

    That of their digits alone: places behind the point or zeros before it are no states.
    """
    kept: set[float] = set()
    common = 1
    for value in sorted(set(_found(schema)), key=_digits):
        multiple = math.lcm(common, _digits(value))
        if multiple <= MAX_STATES:
            kept.add(value)
            common = multiple
    return frozenset(kept)


def all_countable(schema: Any) -> bool:
    """Whether llguidance may be given a document as it is."""
    return set(_found(schema)) == countable(schema)


def some_multiples(of: float) -> list[int]:
    """Integers that are multiples of a number, around zero: those of p, for p/q in lowest terms."""
    step = Fraction(str(of)).numerator
    return [count * step for count in range(-_COUNT, _COUNT + 1) if abs(count * step) <= _EXACT]


def is_multiple(value: Any) -> TypeGuard[float]:
    """Whether a value under multipleOf is one that JSON Schema permits."""
    return not isinstance(value, bool) and isinstance(value, int | float) and value > 0


def _found(schema: Any) -> Iterator[float]:
    if isinstance(schema, dict):
        if is_multiple(value := schema.get("multipleOf")):
            yield value
        yield from (each for value in schema.values() for each in _found(value))
    elif isinstance(schema, list):
        yield from (each for value in schema for each in _found(value))


def _digits(value: float) -> int:
    """A number without its point, as llguidance writes it."""
    while value < _MAX_COEFFICIENT and not float(value).is_integer():
        value *= 10
    return int(value)
