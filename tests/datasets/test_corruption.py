"""Masking and span corruption: the papers' rates, nothing lost, nothing touched that must stay."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_journey.core.errors import BadInputError
from llm_journey.datasets.batching import IGNORED
from llm_journey.datasets.corruption import (
    NO_TOKEN,
    corrupt_spans,
    mask_tokens,
    number_of_spans,
    restored,
    tokens_before,
    unmasked,
)

MASK = 99
ORDINARY = np.arange(90)
SENTINELS = tuple(range(1000, 1101))  # one more than the most spans of 200 tokens


def _rows(seed: int, rows: int, length: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(ORDINARY, size=(rows, length))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 20),
    rows=st.integers(1, 6),
    length=st.integers(1, 60),
    rate=st.sampled_from([0.01, 0.15, 0.4, 1.0]),
    share=st.floats(0, 1),
)
def test_masking_chooses_the_stated_number_and_loses_nothing(
    seed: int, rows: int, length: int, rate: float, share: float
) -> None:
    ids = _rows(seed, rows, length)
    eligible = np.random.default_rng(seed + 1).random(ids.shape) < share
    batch = mask_tokens(
        ids, np.random.default_rng(seed), mask_id=MASK, replacements=ORDINARY, eligible_bt=eligible, rate=rate
    )
    chosen = batch.targets != IGNORED
    counts = eligible.sum(axis=1)
    assert chosen.sum(axis=1).tolist() == [max(round(rate * count), 1) if count else 0 for count in counts.tolist()]
    assert not (chosen & ~eligible).any()
    assert np.array_equal(unmasked(batch), ids)
    assert np.array_equal(batch.inputs[~chosen], ids[~chosen])
    assert set(np.unique(batch.inputs)) <= {*ORDINARY.tolist(), MASK}


def test_masking_is_80_10_10_at_places_all_alike() -> None:
    """Over 120,000 chosen tokens; the bounds are five standard deviations of a share of that many."""
    ids = _rows(0, 8000, 100)
    batch = mask_tokens(ids, np.random.default_rng(1), mask_id=MASK, replacements=ORDINARY)
    chosen = batch.targets != IGNORED
    number = int(chosen.sum())
    assert number == 8000 * 15
    masked = chosen & (batch.inputs == MASK)
    same = chosen & (batch.inputs == ids)
    other = chosen & ~masked & ~same
    # One random replacement in 90 is the token itself.
    for found, share in ((masked, 0.8), (same, 0.1 + 0.1 / 90), (other, 0.1 - 0.1 / 90)):
        assert abs(found.sum() / number - share) < 5 * (share * (1 - share) / number) ** 0.5
    by_place = chosen.mean(axis=0)
    assert np.abs(by_place - 0.15).max() < 5 * (0.15 * 0.85 / 8000) ** 0.5
    drawn = np.bincount(batch.inputs[other], minlength=90)
    assert np.abs(drawn / drawn.sum() - 1 / 90).max() < 5 * (1 / 90 / drawn.sum()) ** 0.5


def test_masking_depends_on_the_generator_alone() -> None:
    ids = _rows(3, 4, 40)
    first, second, third = (
        mask_tokens(ids, np.random.default_rng(seed), mask_id=MASK, replacements=ORDINARY) for seed in (5, 5, 6)
    )
    assert np.array_equal(first.inputs, second.inputs) and np.array_equal(first.targets, second.targets)
    assert not np.array_equal(first.targets, third.targets)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 1 << 20),
    length=st.integers(2, 200),
    rate=st.sampled_from([0.01, 0.15, 0.5, 0.9, 1.0]),
    mean_span=st.sampled_from([1.0, 3.0, 8.5]),
)
def test_spans_are_reversible_and_as_many_as_stated(seed: int, length: int, rate: float, mean_span: float) -> None:
    ids = _rows(seed, 1, length)[0]
    source, target = corrupt_spans(
        ids, np.random.default_rng(seed), sentinels=SENTINELS, rate=rate, mean_span=mean_span
    )
    assert np.array_equal(restored(source, target, SENTINELS), ids)
    num_spans = number_of_spans(length, rate, mean_span)
    marks = [token for token in source.tolist() if token >= 1000]
    assert marks == list(SENTINELS[:num_spans])
    assert [token for token in target.tolist() if token >= 1000] == list(SENTINELS[: num_spans + 1])
    assert target[-1] == SENTINELS[num_spans]
    num_noise = len(target) - num_spans - 1
    assert num_noise == min(max(round(rate * length), 1), length - 1)
    assert len(source) == length - num_noise + num_spans
    places = np.flatnonzero(source >= 1000)
    assert (np.diff(places) > 1).all(), "two spans touch"
    assert (np.diff(np.flatnonzero(target >= 1000)) > 1).all(), "a span is empty"


def test_spans_of_the_paper_at_places_all_alike() -> None:
    """512 tokens, 15%, mean length 3: 77 tokens in 26 spans (Raffel et al. 2020: about 26 sentinels)."""
    generator = np.random.default_rng(0)
    gone = np.zeros(512)
    for _ in range(2000):
        source, target = corrupt_spans(np.arange(512), generator, sentinels=SENTINELS)
        assert len(source) == 512 - 77 + 26 and len(target) == 77 + 26 + 1
        gone[target[target < 1000]] += 1
    share = gone / 2000
    assert np.abs(share[20:-20] - 77 / 512).max() < 5 * (0.15 * 0.85 / 2000) ** 0.5
    assert share.min() > 0.03  # towards the ends fewer, yet the first and the last token may go too


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 20), length=st.integers(2, 80), rate=st.sampled_from([0.02, 0.15, 0.5, 0.9]))
def test_the_token_before_each_token_that_was_cut_out(seed: int, length: int, rate: float) -> None:
    """A text that counts: before each number stands the one below it, before 0 nothing, and sentinels have no place."""
    text = np.arange(length)
    source, target = corrupt_spans(text, np.random.default_rng(seed), sentinels=SENTINELS, rate=rate)
    before = tokens_before(source, target, SENTINELS)
    expected = [NO_TOKEN if token in SENTINELS or token == 0 else token - 1 for token in target.tolist()]
    assert before.tolist() == expected


def test_bad_input() -> None:
    ids, generator = np.arange(10), np.random.default_rng(0)
    for rate in (0.0, -1.0, 1.5):
        with pytest.raises(BadInputError, match="rate"):
            mask_tokens(ids[None], generator, mask_id=MASK, replacements=ORDINARY, rate=rate)
        with pytest.raises(BadInputError, match="rate"):
            corrupt_spans(ids, generator, sentinels=SENTINELS, rate=rate)
    with pytest.raises(BadInputError, match="at least 2"):
        corrupt_spans(ids[:1], generator, sentinels=SENTINELS)
    with pytest.raises(BadInputError, match="need 2 sentinel"):
        corrupt_spans(ids, generator, sentinels=SENTINELS[:1])
    with pytest.raises(BadInputError, match="holds a sentinel"):
        corrupt_spans(np.array([1, 1000, 2]), generator, sentinels=SENTINELS)
    with pytest.raises(BadInputError, match="mean_span"):
        corrupt_spans(ids, generator, sentinels=SENTINELS, mean_span=0.5)
    with pytest.raises(BadInputError, match="no span for sentinel 1000"):
        restored(np.array([1, 1000]), np.array([1001]), SENTINELS)
