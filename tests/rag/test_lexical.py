"""BM25 is Lucene's formula; what holds no word of a question is not found."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_journey.rag.lexical import LexicalConfig, LexicalIndex

WORDS = ("bridge", "river", "stone", "city", "boat", "tower")


def formula(texts: list[list[str]], query: list[str], k1: float, b: float) -> list[float]:
    """Lucene's BM25 in a dozen lines (Kamphuis et al. 2020, table 1)."""
    mean = sum(map(len, texts)) / len(texts)
    holders = Counter(word for text in texts for word in set(text))
    scores = []
    for text in texts:
        counts, score = Counter(text), 0.0
        for word in query:
            if holders[word]:
                idf = math.log(1 + (len(texts) - holders[word] + 0.5) / (holders[word] + 0.5))
                score += idf * counts[word] / (counts[word] + k1 * (1 - b + b * len(text) / mean))
        scores.append(score)
    return scores


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12), min_size=1, max_size=8),
    query=st.lists(st.sampled_from((*WORDS, "whale")), min_size=1, max_size=4),
    k1=st.sampled_from([0.9, 1.2, 2.0]),
    b=st.sampled_from([0.0, 0.4, 0.75, 1.0]),
)
def test_the_formula(texts: list[list[str]], query: list[str], k1: float, b: float) -> None:
    index = LexicalIndex([" ".join(words) for words in texts], LexicalConfig(k1=k1, b=b))
    stems = {"city": "citi"}  # Snowball's
    expected = formula([[stems.get(w, w) for w in text] for text in texts], [stems.get(w, w) for w in query], k1, b)
    np.testing.assert_allclose(index.scores(" ".join(query)), expected, atol=1e-5)


def test_stems_and_stop_words() -> None:
    index = LexicalIndex(["The bridges were crossed", "a tower", "crossing of the river"])
    assert index.search("crossed a bridge", 9).indices.tolist() == [0, 2]
    assert index.search("the of a", 9).indices.tolist() == []
    assert index.search("", 9).indices.tolist() == [] == index.search("whales", 9).indices.tolist()
    assert LexicalIndex(["the of", "a"]).search("bridge", 3).indices.tolist() == []


def test_equal_scores_keep_the_order_of_the_texts() -> None:
    index = LexicalIndex(["a stone"] * 40 + ["stone river"])
    assert index.search("stone", 5).indices.tolist() == [0, 1, 2, 3, 4]
    assert len(index.search("stone", 100)) == 41


def test_wrong_numbers() -> None:
    for choices in ({"k1": -1.0}, {"b": 1.5}, {"k1": float("nan")}):
        with pytest.raises(ValueError, match="must"):
            LexicalConfig(**choices)
