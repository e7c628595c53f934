"""Maximal marginal relevance: results that are near the question and unlike each other (Carbonell and Goldstein 1998).

    next = argmax over d not chosen of  lambda rel(d) - (1 - lambda) max over d' chosen of sim(d, d')

The first is the most relevant one. lambda 1 is the order of relevance, 0 asks for difference alone. Ties go to the
candidate that came first. tests/rag/test_mmr.py: equal to LangChain's.
"""

import numpy as np
import numpy.typing as npt

from llm_journey.core.errors import BadInputError

Floats = npt.NDArray[np.floating]


def maximal_marginal_relevance(
    relevance_n: Floats, similarity_nn: Floats, count: int, *, trade_off: float = 0.5
) -> list[int]:
    """Numbers of up to `count` of N candidates, in the order in which they are chosen.

    relevance_n (N,): to the question. similarity_nn (N, N): of the candidates to each other. trade_off: lambda. Raises
    BadInputError for a trade-off outside of 0 to 1.
    """
    if not 0 <= trade_off <= 1:
        raise BadInputError(f"the trade-off must lie in 0 to 1, not {trade_off}")
    relevance = np.asarray(relevance_n, dtype=np.float64)
    if not len(relevance) or count < 1:
        return []
    chosen = [int(relevance.argmax())]
    nearest_n = np.array(similarity_nn[chosen[0]], dtype=np.float64)  # to any that is chosen
    while len(chosen) < min(count, len(relevance)):
        gain_n = trade_off * relevance - (1 - trade_off) * nearest_n
        gain_n[chosen] = -np.inf
        chosen.append(int(gain_n.argmax()))
        nearest_n = np.maximum(nearest_n, similarity_nn[chosen[-1]])
    return chosen


def mean_similarity(similarity_nn: Floats) -> float:
    """Of all pairs of N results; what diversity lowers. 0 for fewer than two."""
    count = len(similarity_nn)
    if count < 2:
        return 0.0
    return float((similarity_nn.sum() - np.trace(similarity_nn)) / (count * (count - 1)))
