"""Several searches as one.

    reciprocal rank fusion   sum over lists of 1 / (k + rank)            (Cormack et al. 2009; k = 60)
    weighted                 sum over lists of w (s - min) / (max - min)  of the scores of each list

A text that a list lacks gets nothing from it. Equal fused scores keep the order of the first list that has the text.
"""

from collections.abc import Sequence

import numpy as np

from llm_journey.core.errors import BadInputError
from llm_journey.rag.hits import Hits

RANK_CONSTANT = 60


def reciprocal_rank_fusion(lists: Sequence[Hits], *, constant: int = RANK_CONSTANT) -> Hits:
    """By ranks alone, which need no common scale."""
    return _sum([np.array([1 / (constant + rank) for rank in range(1, len(hits) + 1)]) for hits in lists], lists)


def weighted_fusion(lists: Sequence[Hits], weights: Sequence[float]) -> Hits:
    """By scores, each list's brought to 0 to 1. Raises BadInputError for other than one weight a list."""
    if len(weights) != len(lists):
        raise BadInputError(f"{len(lists)} lists and {len(weights)} weights; give each list one")
    parts = [weight * _evened(hits.scores) for hits, weight in zip(lists, weights, strict=True)]
    return _sum(parts, lists)


def _evened(scores: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    if not len(scores):
        return scores
    low, high = scores.min(), scores.max()
    return np.ones_like(scores) if high == low else (scores - low) / (high - low)


def _sum(parts: Sequence["np.ndarray[tuple[int], np.dtype[np.float64]]"], lists: Sequence[Hits]) -> Hits:
    totals: dict[int, float] = {}
    for hits, part in zip(lists, parts, strict=True):
        for index, score in zip(hits.indices.tolist(), part.tolist(), strict=True):
            totals[index] = totals.get(index, 0.0) + score
    ordered = sorted(totals.items(), key=lambda item: -item[1])  # stable: ties as they came
    return Hits(
        np.array([index for index, _ in ordered], dtype=np.int64),
        np.array([score for _, score in ordered], dtype=np.float64),
    )
