"""The fast trainer learns exactly the oracle's merges."""

from collections import Counter
from pydoc_data import topics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_journey.tokenizer import bpe, bpe_fast

# Few letters make long runs, overlaps and ties; counts are small so that ties are many.
WORDS = st.dictionaries(st.text("ab ", min_size=1, max_size=12), st.integers(1, 4), max_size=8)


@pytest.fixture(params=["in Python", "in NumPy", "both"])
def each_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"in Python": 1 << 30, "in NumPy": 0, "both": 2}
    monkeypatch.setattr(bpe_fast, "_FEW", limits[request.param])


@pytest.mark.parametrize("few", [0, 2, 1 << 30])
@given(counts=WORDS)
@settings(max_examples=150)
def test_equal_to_the_oracle_on_hard_words(few: int, counts: dict[str, int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe_fast, "_FEW", few)
        assert bpe_fast.train(counts, 40) == bpe.train(counts, 40)


@given(counts=st.dictionaries(st.text(min_size=1, max_size=6), st.integers(1, 9), max_size=12))
def test_equal_to_the_oracle_on_any_words(counts: dict[str, int]) -> None:
    assert bpe_fast.train(counts, 60) == bpe.train(counts, 60)


@pytest.mark.usefixtures("each_path")
def test_equal_to_the_oracle_on_real_text() -> None:
    text = [topics.topics[name] for name in sorted(topics.topics)[:12]]
    counts = bpe.count_words(text, "gpt2")
    assert bpe_fast.train(counts, 120) == bpe.train(counts, 120)


def test_nothing_to_merge() -> None:
    assert bpe_fast.train({}, 10) == []
    assert bpe_fast.train({"a": 3}, 10) == []
    assert bpe_fast.train({"abab": 3}, 0) == []


def test_large_counts_do_not_overflow() -> None:
    counts = {"ab": 1 << 40, "ac": 1 << 41, "bc": 3}
    assert bpe_fast.train(counts, 3) == bpe.train(counts, 3)


def test_progress_is_told() -> None:
    seen: list[tuple[int, int]] = []
    counts = Counter({f"w{number}x{number * 7919}": 1 for number in range(400)})
    bpe_fast.train(counts, 600, lambda done, total: seen.append((done, total)))
    assert seen == [(256, 600), (512, 600)]


def test_too_many_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="at most"):
        bpe_fast.train({"ab": 1}, bpe_fast.MAX_TOKENS)
