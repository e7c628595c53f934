"""JSON that came from elsewhere: as Python reads it, but an object with a key that stands twice is refused.

RFC 8259, section 4, leaves open what a reader makes of such a key: one program takes the first value, Python the last,
and a file that was checked by the one means something else to the other.
"""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any, NoReturn


def parse_json(data: str | bytes, *, numbers_only: bool = False) -> Any:
    """The value that `data` spells. numbers_only: refuse NaN and Infinity, which JSON does not have.

    Raises ValueError that says what is wrong; RecursionError where the value is nested too deeply.
    """
    constant: Callable[[str], Any] | None = _refuse_constant if numbers_only else None
    return json.loads(data, object_pairs_hook=_unique, parse_constant=constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        double, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"key {double[:80]!r} stands twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
