"""Attention maps within a budget of memory, and what each head does in a few figures.

A map of T x T weights for every head of every layer grows with the square of the text. Where all of them would not fit
the budget, each map is pooled to cells of c x c positions: weights are added over the keys of a cell and averaged over
its queries, so a pooled row is still a distribution: where, on average, these queries looked. The figures of a head
are always taken from the whole map.

Legend: T query positions, S key positions, H heads, L layers, G cells along one side of a map.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FloatArray = NDArray[np.float32]
_BYTES_PER_WEIGHT = 4
_ROWS = 512


@dataclass(frozen=True)
class HeadFigures:
    """What a head does, as means over the queries of a text; as arrays (L, H) over all heads.

    entropy: of a query's weights, bits (0: one key gets all). first, previous, itself, following: weight on the text's
    first position, on the one before, on the query's own, on the one behind (0 in a causal model). distance: mean
    |query - key| in positions. first and previous leave out the query at position 0, which has neither. Where queries
    and keys are of two texts, all but entropy and first (over all queries) say nothing: NaN.
    """

    entropy: FloatArray
    first: FloatArray
    previous: FloatArray
    itself: FloatArray
    following: FloatArray
    distance: FloatArray


def cross_figures(weights_ts: Tensor) -> list[float]:
    """The values of HeadFigures, in its order, for a map between two texts."""
    entropy = float(torch.special.entr(weights_ts).sum() / np.log(2)) / weights_ts.shape[0]
    return [entropy, float(weights_ts[:, 0].mean()), *(4 * [math.nan])]


def head_figures(weights_ts: Tensor) -> list[float]:
    """The values of HeadFigures, in its order, for one square map."""
    size = weights_ts.shape[0]
    later = weights_ts[1:] if size > 1 else weights_ts
    positions_t = torch.arange(size, dtype=torch.float32, device=weights_ts.device)
    distance = 0.0
    for start in range(0, size, _ROWS):
        apart_ns = (positions_t - positions_t[start : start + _ROWS, None]).abs()
        distance += float((weights_ts[start : start + _ROWS] * apart_ns).sum())
    return [
        float(torch.special.entr(weights_ts).sum() / np.log(2)) / size,
        float(later[:, 0].mean()),
        float(weights_ts.diagonal(-1).sum()) / max(size - 1, 1),
        float(weights_ts.diagonal().mean()),
        float(weights_ts.diagonal(1).sum()) / max(size - 1, 1),
        distance / size,
    ]


def pooled(weights_ts: FloatArray, cell: int) -> FloatArray:
    """A map in cells of `cell` x `cell` positions: summed over a cell's keys, averaged over its queries."""
    if cell == 1:
        return weights_ts
    query_starts, key_starts = (np.arange(0, size, cell) for size in weights_ts.shape)
    summed = np.add.reduceat(np.add.reduceat(weights_ts, key_starts, axis=1), query_starts, axis=0)
    queries = np.minimum(cell, weights_ts.shape[0] - query_starts)
    result: FloatArray = (summed / queries[:, None]).astype(np.float32)
    return result


def cell_size(length: int, num_maps: int, max_bytes: int) -> int:
    """Positions along a cell's side, so that `num_maps` maps of a text of `length` positions fit `max_bytes`."""
    cell = 1
    while cell < length and num_maps * math.ceil(length / cell) ** 2 * _BYTES_PER_WEIGHT > max_bytes:
        cell += 1
    return cell
