"""Fusion and diversity: by hand, by their formulas written otherwise, and by their properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_journey.core.errors import BadInputError
from llm_journey.rag.fuse import reciprocal_rank_fusion, weighted_fusion
from llm_journey.rag.hits import Hits, best
from llm_journey.rag.mmr import maximal_marginal_relevance, mean_similarity


def hits(*pairs: tuple[int, float]) -> Hits:
    return Hits(np.array([index for index, _ in pairs]), np.array([score for _, score in pairs], dtype=np.float64))


def test_ranks_fused_by_hand() -> None:
    found = reciprocal_rank_fusion([hits((7, 9.0), (3, 8.0)), hits((3, 0.9), (5, 0.1))])
    assert found.indices.tolist() == [3, 7, 5]
    np.testing.assert_allclose(found.scores, [1 / 62 + 1 / 61, 1 / 61, 1 / 62])


def test_scores_fused_by_hand() -> None:
    lists = [hits((7, 9.0), (3, 5.0), (1, 1.0)), hits((3, 0.9), (5, 0.1))]
    found = weighted_fusion(lists, [0.25, 0.75])
    assert found.indices.tolist() == [3, 7, 1, 5]
    np.testing.assert_allclose(found.scores, [0.75 + 0.125, 0.25, 0.0, 0.0])
    with pytest.raises(BadInputError, match="2 lists and 1 weights"):
        weighted_fusion(lists, [1.0])
    assert len(weighted_fusion([hits(), hits()], [0.5, 0.5])) == 0


@settings(max_examples=100, deadline=None)
@given(scores=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), max_size=30), count=st.integers(1, 35))
def test_the_best_are_those_of_a_whole_sort(scores: list[float], count: int) -> None:
    expected = [index for index in np.argsort(-np.array(scores), kind="stable") if scores[index] > 0][:count]
    assert best(np.array(scores), count, above=0.0).indices.tolist() == expected


def by_definition(relevance: np.ndarray, similarity: np.ndarray, count: int, trade_off: float) -> list[int]:
    chosen: list[int] = []
    while len(chosen) < min(count, len(relevance)):
        left = [index for index in range(len(relevance)) if index not in chosen]
        if not chosen:
            chosen.append(max(left, key=lambda index: relevance[index]))
            continue
        value = {d: trade_off * relevance[d] - (1 - trade_off) * max(similarity[d][c] for c in chosen) for d in left}
        chosen.append(max(left, key=lambda index: value[index]))
    return chosen


@settings(max_examples=100, deadline=None)
@given(
    size=st.integers(0, 9),
    count=st.integers(0, 12),
    trade_off=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    seed=st.integers(0, 999),
)
def test_the_order_is_the_definitions(size: int, count: int, trade_off: float, seed: int) -> None:
    draw = np.random.default_rng(seed)
    vectors = draw.normal(size=(size, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    relevance, similarity = draw.normal(size=size), vectors @ vectors.T
    found = maximal_marginal_relevance(relevance, similarity, count, trade_off=trade_off)
    assert found == by_definition(relevance, similarity, count, trade_off)


def test_diversity_by_hand() -> None:
    similarity = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    relevance = np.array([0.9, 0.8, 0.1])
    assert maximal_marginal_relevance(relevance, similarity, 3, trade_off=1.0) == [0, 1, 2]
    assert maximal_marginal_relevance(relevance, similarity, 3, trade_off=0.5) == [0, 2, 1]
    assert mean_similarity(similarity) == pytest.approx(1 / 3)
    assert mean_similarity(similarity[:1, :1]) == 0
    with pytest.raises(BadInputError, match="trade-off"):
        maximal_marginal_relevance(relevance, similarity, 3, trade_off=1.5)
