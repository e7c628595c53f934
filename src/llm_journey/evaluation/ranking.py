"""How good an order of documents is, by judgements of which are relevant; nothing here is ever NaN.

    DCG@k = sum over ranks i <= k of gain_i / log2(i + 1);  nDCG = DCG / that of the best order   (Jaervelin 2002)
    AP = sum over ranks of relevant documents of precision there, over all relevant ones;  MAP its mean
    RR = 1 / rank of the first relevant document;  MRR its mean

A document is relevant where its gain is positive. A query without relevant documents says nothing and is refused where
queries are read. tests/parity: ranx gives the same.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from llm_journey.core.errors import BadInputError, unknown_name

Judgements = Mapping[str, float]  # document -> gain
Ranked = Sequence[str]


def ndcg(ranked: Ranked, gains: Judgements, k: int) -> float:
    """Normalized discounted cumulative gain of the first k."""
    found = _dcg([gains.get(document, 0.0) for document in ranked[:k]])
    return found / _dcg(sorted((gain for gain in gains.values() if gain > 0), reverse=True)[:k])


def recall(ranked: Ranked, gains: Judgements, k: int) -> float:
    """Share of the relevant documents that are among the first k."""
    wanted = _relevant(gains)
    return len(wanted & set(ranked[:k])) / len(wanted)


def precision(ranked: Ranked, gains: Judgements, k: int) -> float:
    """Share of the first k places that hold a relevant document; a place left empty holds none."""
    return len(_relevant(gains) & set(ranked[:k])) / k


def average_precision(ranked: Ranked, gains: Judgements, k: int) -> float:
    """Mean of the precisions at the relevant documents' ranks, of those among the first k."""
    wanted, right, total = _relevant(gains), 0, 0.0
    for rank, document in enumerate(ranked[:k], start=1):
        if document in wanted:
            right += 1
            total += right / rank
    return total / len(wanted)


def reciprocal_rank(ranked: Ranked, gains: Judgements, k: int) -> float:
    """1 / rank of the first relevant document among the first k, else 0."""
    wanted = _relevant(gains)
    return next((1 / rank for rank, document in enumerate(ranked[:k], start=1) if document in wanted), 0.0)


METRICS: dict[str, Callable[[Ranked, Judgements, int], float]] = {
    "ndcg": ndcg,
    "recall": recall,
    "precision": precision,
    "map": average_precision,
    "mrr": reciprocal_rank,
}


def parse_metric(name: str) -> tuple[Callable[[Ranked, Judgements, int], float], int]:
    """The function and the cut of a name such as ndcg@10. Raises BadInputError for another."""
    kind, at, cut = name.partition("@")
    if kind not in METRICS:
        raise unknown_name("metric", kind, METRICS)
    if not at or not cut.isdigit() or int(cut) < 1:
        raise BadInputError(f"metric {name!r}: say how many documents are looked at, such as {kind}@10")
    return METRICS[kind], int(cut)


def per_query(
    name: str, rankings: Mapping[str, Ranked], judgements: Mapping[str, Judgements]
) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """(Q,) of a metric such as ndcg@10, of each judged query in turn; one without an answer has 0."""
    metric, cut = parse_metric(name)
    values = [metric(rankings.get(query, ()), gains, cut) for query, gains in judgements.items()]
    return np.array(values, dtype=np.float64)


def _relevant(gains: Judgements) -> set[str]:
    return {document for document, gain in gains.items() if gain > 0}


def _dcg(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))
