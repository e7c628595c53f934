"""The fast Kneser-Ney model equals a slow one written from the paper, and its probabilities sum to one."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_journey.evaluation.ngram import KneserNey, count_ngrams, join_documents

END = 0


class Oracle:
    """Chen & Goodman (1999), section 3, read literally: dictionaries of tuples and one recursion."""

    def __init__(self, order: int, vocab_size: int, documents: list[list[int]]) -> None:
        self.order, self.vocab_size = order, vocab_size
        occurrences: Counter[tuple[int, ...]] = Counter()
        for document in documents:
            padded = [END, *document, END]
            for size in range(1, order + 1):
                for start in range(len(padded) - size + 1):
                    occurrences[tuple(padded[start : start + size])] += 1
            occurrences[(END,)] -= 1  # the opening end token is context only, never a target
        left: dict[tuple[int, ...], set[int]] = defaultdict(set)
        for ngram in occurrences:
            if len(ngram) > 1:
                left[ngram[1:]].add(ngram[0])
        self.adjusted = {
            ngram: count if len(ngram) == order or (len(ngram) > 1 and ngram[0] == END) else len(left[ngram])
            for ngram, count in occurrences.items()
            if count
        }
        self.discounts = [self._discounts(size) for size in range(1, order + 1)]

    def _discounts(self, size: int) -> list[float]:
        n = Counter(count for ngram, count in self.adjusted.items() if len(ngram) == size)
        found = [0.5, 1.0, 1.5]
        if n[1] and n[2]:
            y = n[1] / (n[1] + 2 * n[2])
            found = [1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3] if n[3] else 1.5]
        return [0.0] + [value if 0 < value <= i else i / 2 for i, value in enumerate(found, start=1)]

    def probability(self, word: int, history: tuple[int, ...]) -> float:
        lower = self.probability(word, history[1:]) if history else 1 / self.vocab_size
        followers = [
            count for ngram, count in self.adjusted.items() if ngram[:-1] == history and len(ngram) == len(history) + 1
        ]
        total = sum(followers)
        if not total:
            return lower
        discount = self.discounts[len(history)]
        gamma = sum(discount[min(count, 3)] for count in followers) / total
        count = self.adjusted.get((*history, word), 0)
        return (count - discount[min(count, 3)]) / total + gamma * lower

    def log2_probabilities(self, documents: list[list[int]]) -> list[float]:
        logs = []
        for document in documents:
            padded = [END, *document]
            for index in range(1, len(padded)):
                history = tuple(padded[max(0, index - self.order + 1) : index])
                logs.append(math.log2(self.probability(padded[index], history)))
        return logs


documents_of = st.lists(st.lists(st.integers(1, 6), max_size=12), min_size=1, max_size=8).filter(
    lambda documents: any(documents)
)


@settings(max_examples=60, deadline=None)
@given(train=documents_of, held_out=documents_of, order=st.integers(1, 5))
def test_equal_to_the_oracle(train: list[list[int]], held_out: list[list[int]], order: int) -> None:
    # Tolerance: both are double precision; a product of at most five interpolations differs by rounding only.
    fast = KneserNey(order, 7, END).fit(train).log2_probabilities(join_documents(held_out, END))
    slow = Oracle(order, 7, train).log2_probabilities(held_out)
    np.testing.assert_allclose(fast, slow, rtol=1e-10, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(train=documents_of, context=st.lists(st.integers(0, 6), max_size=7), order=st.integers(1, 5))
def test_probabilities_sum_to_one(train: list[list[int]], context: list[int], order: int) -> None:
    probabilities = KneserNey(order, 7, END).fit(train).distribution(context)
    assert (probabilities > 0).all()
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_equal_to_the_oracle_where_all_discounts_are_defined(order: int) -> None:
    generator = np.random.default_rng(7)
    weights = 1 / np.arange(1, 40)
    documents = [
        (1 + generator.choice(39, size=generator.integers(1, 60), p=weights / weights.sum())).tolist()
        for _ in range(40)
    ]
    train, held_out = documents[:36], documents[36:]
    oracle = Oracle(order, 64, train)
    assert all(0 < value <= i for row in oracle.discounts for i, value in enumerate(row[1:], start=1))
    fast = KneserNey(order, 64, END).fit(train)
    np.testing.assert_allclose(
        fast.log2_probabilities(join_documents(held_out, END)), oracle.log2_probabilities(held_out), rtol=1e-10
    )


def test_a_context_gives_the_same_probabilities_as_the_stream_it_stands_in() -> None:
    train = [[1, 2, 3, 1, 2, 4], [2, 3, 3, 1], [1, 2, 3]]
    model = KneserNey(4, 6, END).fit(train)
    document = [1, 2, 3, 5, 2, 3]
    by_context = [model.distribution([END, *document[:index]])[token] for index, token in enumerate(document)]
    np.testing.assert_allclose(2 ** model.log2_probabilities(join_documents([document], END)), by_context, rtol=1e-12)


def test_models_from_shared_counts_equal_models_fitted_alone() -> None:
    generator = np.random.default_rng(0)
    train = [generator.integers(1, 9, size=30).tolist() for _ in range(20)]
    counts = count_ngrams(join_documents(train, END), order=5, vocab_size=9, end_id=END)
    held_out = [generator.integers(1, 9, size=30).tolist()]
    for order in range(1, 6):
        shared = KneserNey.from_counts(counts, order).bits_per_byte(held_out, 60)
        assert shared == KneserNey(order, 9, END).fit(train).bits_per_byte(held_out, 60)
