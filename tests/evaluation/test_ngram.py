"""N-grams: what is counted, a value worked out by hand, code packing at large vocabularies, bad input, speed."""

import math
import time

import numpy as np
import pytest

from llm_journey.core.errors import BadInputError
from llm_journey.evaluation.ngram import KneserNey, count_ngrams, discounts, join_documents


def test_unigram_by_hand() -> None:
    # Counts: token 1 twice, token 2 once, end once. n1 = 2, n2 = 1: Y = 1/2, D1 = 1/2, D2 = 2 (n3 = 0), D3 falls back.
    # p(1) = (2 - 2)/4 + gamma/4 and p(2) = (1 - 1/2)/4 + gamma/4, gamma = (2 * 1/2 + 1 * 2)/4 = 3/4; V = 4.
    model = KneserNey(1, 4, 0).fit([[1, 2, 1]])
    np.testing.assert_allclose(model.distribution([]), [1 / 8 + 3 / 16, 3 / 16, 1 / 8 + 3 / 16, 3 / 16])


def test_bits_are_those_of_text_tokens_and_the_closing_end_is_not_a_target() -> None:
    model = KneserNey(2, 5, 0).fit([[1, 2, 3], [1, 2, 2], [3, 1]])
    expected = -(
        math.log2(model.distribution([0])[1])
        + math.log2(model.distribution([0, 1])[2])
        + math.log2(model.distribution([0])[3])
    )
    assert model.bits_per_byte([[1, 2], [3]], 7) == pytest.approx(expected / 7, rel=1e-12)
    assert len(model.log2_probabilities(join_documents([[1, 2], [3]], 0))) == 3


def test_documents_with_and_without_their_end_token_are_the_same() -> None:
    assert join_documents([[1, 2, 0], [3]], 0).tolist() == [0, 1, 2, 0, 3, 0]


def test_ngrams_do_not_cross_documents() -> None:
    apart = KneserNey(2, 4, 0).fit([[1], [2]] * 5)
    together = KneserNey(2, 4, 0).fit([[1, 2]] * 5)
    assert apart.distribution([0, 1])[2] < 0.2 < 0.5 < together.distribution([0, 1])[2]


def test_codes_do_not_overflow_at_the_largest_vocabulary() -> None:
    generator = np.random.default_rng(1)
    documents = [generator.integers(65_000, 65_536, size=400) for _ in range(20)]
    counts = count_ngrams(join_documents(documents, 0), order=5, vocab_size=65_536, end_id=0)
    for size, level in enumerate(counts.levels, start=1):
        windows = {tuple(w) for d in documents for w in np.lib.stride_tricks.sliding_window_view([0, *d, 0], size)}
        assert int((level.counts > 0).sum()) == len(windows)
        assert (level.codes >= 0).all()


def test_discounts_fall_back_where_counts_of_counts_are_missing() -> None:
    assert discounts(np.array([5, 5, 6])) == (0.5, 1.0, 1.5)
    n = np.repeat([1, 2, 3, 4], [40, 20, 12, 8])
    y = 40 / 80
    assert discounts(n) == pytest.approx((1 - 2 * y * 20 / 40, 2 - 3 * y * 12 / 20, 3 - 4 * y * 8 / 12))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: KneserNey(6, 4, 0).fit([[1]]), "choose 1 to 5"),
        (lambda: KneserNey(2, 4, 0).fit([[], []]), "hold none"),
        (lambda: KneserNey(2, 4, 0).fit([[1, 4]]), "0..3"),
        (lambda: KneserNey(2, 4, 0).fit([[1]]).bits_per_byte([[1]], 0), "at least one byte"),
        (lambda: KneserNey(2, 4, 0).fit([[1]]).log2_probabilities(np.array([1, 0])), "start and close"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        call()


def test_a_model_that_is_not_fitted_says_so() -> None:
    with pytest.raises(RuntimeError, match="fit"):
        KneserNey(2, 4, 0).distribution([1])


def test_higher_orders_help_on_text_with_structure_and_five_orders_are_quick() -> None:
    generator = np.random.default_rng(3)
    successors = generator.integers(1, 500, size=(500, 4))
    tokens = np.ones(200_000, dtype=np.int64)
    picks = generator.integers(0, 4, size=len(tokens))
    for index in range(1, len(tokens)):
        tokens[index] = successors[tokens[index - 1], picks[index]]
    started = time.process_time()
    counts = count_ngrams(join_documents([tokens[:180_000]], 0), order=5, vocab_size=500, end_id=0)
    held_out = join_documents([tokens[180_000:]], 0)
    bits = [KneserNey.from_counts(counts, order).bits_per_byte_of_stream(held_out, 20_000) for order in range(1, 6)]
    assert time.process_time() - started < 5  # about 0.3 s; 1.2 million tokens take about 1.3 s
    assert bits[1] < 0.5 * bits[0]
    assert bits[1] == pytest.approx(2.0, abs=0.1)  # the source has two bits a token
