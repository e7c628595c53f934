"""Deduplication against the truth: exact equality, and true Jaccard similarity on texts edited by known amounts."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_journey.text import deduplication
from llm_journey.text.deduplication import (
    NUM_HASHES,
    ExactIndex,
    MinHasher,
    MinHashIndex,
    choose_bands,
    collision_probability,
    content_hash,
    jaccard,
    shingles,
    split_words,
)

VOCABULARY = [f"{first}{middle}{last}" for first in "bdgklmprst" for middle in "aeiou" for last in "lnrst"]


def random_text(generator: random.Random, length: int) -> str:
    return " ".join(generator.choices(VOCABULARY, k=length))


def edited(text: str, generator: random.Random, num_edits: int) -> str:
    words = text.split()
    for position in generator.sample(range(len(words)), num_edits):
        words[position] = generator.choice(VOCABULARY)
    return " ".join(words)


def near_pairs(num_pairs: int, seed: int) -> list[tuple[str, str, float]]:
    """(text, edited text, true Jaccard) with similarities all over the range."""
    generator = random.Random(seed)
    pairs = []
    for number in range(num_pairs):
        text = random_text(generator, generator.randint(60, 200))
        other = edited(text, generator, number % 9)
        pairs.append((text, other, jaccard(text, other)))
    return pairs


def test_exact_duplicates_name_their_first() -> None:
    index = ExactIndex()
    texts = ["The cat.", "A dog.", "the  CAT.\n", "A dog", "the cat."]
    assert [index.add(str(number), text) for number, text in enumerate(texts)] == [None, None, "0", None, "0"]


@given(st.text(), st.text())
def test_content_hash_ignores_case_and_white_space_only(first: str, second: str) -> None:
    def even(text: str) -> list[str]:
        return text.casefold().split()

    assert (content_hash(first) == content_hash(second)) == (even(first) == even(second))


def test_bands_are_the_most_selective_that_reach_the_recall() -> None:
    for threshold in (0.5, 0.7, 0.8, 0.9, 1.0):
        bands, rows = choose_bands(threshold)
        assert bands * rows <= NUM_HASHES
        assert collision_probability(threshold, bands, rows) >= 0.95
        if rows < NUM_HASHES:
            more = rows + 1
            assert collision_probability(threshold, NUM_HASHES // more, more) < 0.95
    assert choose_bands(0.8) == (28, 9)


def test_signatures_estimate_the_true_jaccard_similarity() -> None:
    hasher = MinHasher()
    errors = []
    for text, other, truth in near_pairs(120, seed=1):
        first, second = hasher.signature(text), hasher.signature(other)
        assert first is not None
        assert second is not None
        errors.append(float((first == second).mean()) - truth)
    # The standard deviation is at most sqrt(0.25 / 256) = 0.031 (Broder 1997); of a mean over 120 pairs 0.003.
    assert abs(np.mean(errors)) < 0.01
    assert float(np.std(errors)) < 0.035
    assert max(map(abs, errors)) < 0.15


def test_recall_and_precision_against_the_true_similarity() -> None:
    """Pairs clearly above the threshold are found, pairs clearly below it are not (0.1: over 3 standard deviations)."""
    index = MinHashIndex(0.8)
    pairs = near_pairs(300, seed=2)
    above = below = found_above = found_below = found = right = 0
    for number, (text, other, truth) in enumerate(pairs):
        assert index.add(f"first-{number}", text) is None
        earlier = index.add(f"second-{number}", other)
        if earlier is not None:
            found += 1
            right += truth >= 0.75
            assert earlier == f"first-{number}"
        above, found_above = above + (truth >= 0.9), found_above + (truth >= 0.9 and earlier is not None)
        below, found_below = below + (truth < 0.7), found_below + (truth < 0.7 and earlier is not None)
    assert above > 50
    assert below > 80
    assert found_above / above >= 0.99
    assert found_below == 0
    assert right / found >= 0.97


def test_the_most_similar_earlier_document_is_named() -> None:
    generator = random.Random(3)
    text = random_text(generator, 150)
    near, nearer = edited(text, generator, 4), text
    index = MinHashIndex(0.95)
    assert index.add("near", near) is None
    assert index.add("nearer", nearer) is None
    lenient = MinHashIndex(0.5)
    lenient._threshold = 2.0  # remember both, then ask
    lenient.add("near", near)
    lenient.add("nearer", nearer)
    lenient._threshold = 0.5
    assert lenient.add("copy", text.upper()) == "nearer"


def test_short_texts_and_scripts_without_spaces() -> None:
    index = MinHashIndex(0.8)
    assert index.add("a", "Two words") is None
    assert index.add("b", "two, WORDS!") == "a"
    assert index.add("c", "two other words") is None
    assert index.add("none", "?!") is None
    assert index.add("none again", "?!") is None
    chinese = "灯塔是建于航道关键部位附近的一种塔状发光航标用以引导船舶航行中国最早的灯塔出现在福建惠安县" * 2
    assert index.add("zh", chinese) is None
    assert index.add("zh2", chinese + "。") == "zh"
    assert list(shingles("ab")) == [("ab",)]
    assert split_words("灯塔 Leuchtturm Ünser") == ["灯", "塔", "leuchtturm", "ünser"]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(VOCABULARY[:6]), max_size=30), st.lists(st.sampled_from(VOCABULARY[:6]), max_size=30))
def test_hashed_shingles_collide_only_where_shingles_are_equal(first: list[str], second: list[str]) -> None:
    hasher = MinHasher()
    texts = " ".join(first), " ".join(second)
    hashed = [hasher.shingle_hashes(text).tolist() for text in texts]
    named = [list(shingles(text)) for text in texts]
    assert [len(row) for row in hashed] == [len(row) for row in named]
    assert len(set(hashed[0]) & set(hashed[1])) == len(set(named[0]) & set(named[1]))


def test_long_texts_are_hashed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    text = random_text(random.Random(4), 1000)
    whole = MinHasher().signature(text)
    monkeypatch.setattr(deduplication, "_BLOCK_SHINGLES", 7)
    monkeypatch.setattr(deduplication, "_MAX_WORDS_REMEMBERED", 3)
    hasher = MinHasher()
    hasher.signature("other words come first here")
    assert np.array_equal(whole, hasher.signature(text))


def test_signatures_are_the_same_on_every_machine() -> None:
    signature = MinHasher().signature("the quick brown fox jumps over the lazy dog")
    assert signature is not None
    assert signature[:3].tolist() == [1888261815, 1087867337, 99365575]


def test_cost_grows_with_the_number_of_documents() -> None:
    """Near-linear: a document is compared with the few that share a band with it, not with all the earlier ones."""
    generator = random.Random(5)
    index = MinHashIndex(0.8)
    for number in range(1600):
        assert index.add(str(number), random_text(generator, 80)) is None
    shared = [len(documents) - 1 for table in index._tables for documents in table.values()]
    assert sum(shared) < 16
