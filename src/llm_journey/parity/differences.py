"""How far two results are apart, whatever they are made of: numbers, arrays, tensors, and sequences of those."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor


def largest(found: Any, expected: Any) -> float:
    """The largest absolute difference of two results of like shape.

    Infinite where shapes or lengths differ, or where a number is no number on one side: nothing hides in a maximum.
    """
    if isinstance(found, list | tuple) and isinstance(expected, list | tuple):
        return _largest_of(found, expected)
    one, other = _array(found), _array(expected)
    if one.shape != other.shape:
        return math.inf
    if one.size == 0:
        return 0.0
    with np.errstate(invalid="ignore"):
        difference = np.abs(one - other)
    return math.inf if np.isnan(difference).any() else float(difference.max())


def num_differing(found: Iterable[Any], expected: Iterable[Any]) -> float:
    """How many of the items differ; items that one side lacks count too."""
    ours, theirs = list(found), list(expected)
    return float(sum(one != other for one, other in zip(ours, theirs, strict=False)) + abs(len(ours) - len(theirs)))


def _largest_of(found: Sequence[Any], expected: Sequence[Any]) -> float:
    if len(found) != len(expected):
        return math.inf
    return max((largest(one, other) for one, other in zip(found, expected, strict=True)), default=0.0)


def _array(value: Any) -> Any:
    value = value.detach().cpu() if isinstance(value, Tensor) else value
    return np.asarray(value.double() if isinstance(value, Tensor) else value, dtype=np.float64)
