"""Beam search over step functions written out here: equal to trying every sequence, and to greedy search."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.generation.beam import Hypothesis, beam_search, wu_penalty

END = 0


class Table:
    """A model of next tokens as random tables: each sentence's distribution depends on all tokens so far."""

    def __init__(self, seed: int, vocabulary: int, num_beams: int = 1, num_sentences: int = 1) -> None:
        self.seed, self.vocabulary, self.num_beams, self.num_sentences = seed, vocabulary, num_beams, num_sentences
        self.seen: list[Tensor] = []

    def log_probabilities(self, sentence: int, prefix: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(hash((self.seed, sentence, prefix)) % (1 << 31))
        return (2 * torch.randn(self.vocabulary, generator=generator)).log_softmax(-1)

    def __call__(self, ids_nt: Tensor, rows_n: Tensor) -> Tensor:
        assert len(ids_nt) == self.num_sentences * self.num_beams
        if self.seen:  # what a cache relies on: each row goes on from the row that it names
            assert torch.equal(ids_nt[:, :-1], self.seen[-1][rows_n])
        self.seen.append(ids_nt)
        rows = [tuple(row[1:]) for row in ids_nt.tolist()]
        return torch.stack([self.log_probabilities(n // self.num_beams, row) for n, row in enumerate(rows)])


def exhaustive(table: Table, sentence: int, max_length: int, alpha: float) -> list[tuple[float, tuple[int, ...]]]:
    """(score, ids) of every sequence that ends, or is cut off at max_length; best first."""
    found = []
    ordinary = [token for token in range(table.vocabulary) if token != END]
    for length in range(1, max_length + 1):
        for body in itertools.product(ordinary, repeat=length - 1):
            last = [END] if length < max_length else range(table.vocabulary)
            for token in last:
                ids = (*body, token)
                total = sum(float(table.log_probabilities(sentence, ids[:n])[ids[n]]) for n in range(length))
                found.append((total / ((5 + length) / 6) ** alpha, ids[:-1] if token == END else ids))
    return sorted(found, reverse=True)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    vocabulary=st.integers(2, 4),
    max_length=st.integers(1, 4),
    alpha=st.sampled_from([0.0, 0.6, 1.0, -0.5]),
    num_sentences=st.integers(1, 3),
)
def test_with_room_for_every_sequence_it_is_exhaustive(
    seed: int, vocabulary: int, max_length: int, alpha: float, num_sentences: int
) -> None:
    num_beams = sum((vocabulary - 1) ** n for n in range(max_length)) + vocabulary**max_length
    table = Table(seed, vocabulary, num_beams, num_sentences)
    found = beam_search(
        table,
        begin_id=1,
        end_id=END,
        max_length=max_length,
        num_sentences=num_sentences,
        num_beams=num_beams,
        penalty=wu_penalty(alpha),
    )
    for sentence, hypotheses in enumerate(found):
        expected = exhaustive(table, sentence, max_length, alpha)
        assert len(hypotheses) == len(expected)
        assert [item.score for item in hypotheses] == pytest.approx([score for score, _ in expected], abs=1e-4)
        # Equal scores may stand in any order; seen to the last place they are different sequences all the same.
        assert {item.ids for item in hypotheses} == {ids for _, ids in expected}
        assert hypotheses[0].ids == expected[0][1]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), max_length=st.integers(1, 12))
def test_one_beam_is_greedy(seed: int, max_length: int) -> None:
    table = Table(seed, 5)
    (hypotheses,) = beam_search(table, begin_id=1, end_id=END, max_length=max_length, num_beams=1)
    expected: list[int] = []
    ended = False
    while len(expected) < max_length and not ended:
        token = int(table.log_probabilities(0, tuple(expected)).argmax())
        ended = token == END
        if not ended:
            expected.append(token)
    assert hypotheses[0].ids == tuple(expected) and hypotheses[0].ended == ended and len(hypotheses) == 1


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), num_beams=st.integers(1, 4), num_sentences=st.integers(2, 3))
def test_sentences_of_one_search_are_searched_as_if_alone(seed: int, num_beams: int, num_sentences: int) -> None:
    class Alone(Table):
        def log_probabilities(self, sentence: int, prefix: tuple[int, ...]) -> Tensor:
            return super().log_probabilities(sentence + self.offset, prefix)

    settings_ = {"begin_id": 1, "end_id": END, "max_length": 6, "num_beams": num_beams}
    together = beam_search(Table(seed, 4, num_beams, num_sentences), num_sentences=num_sentences, **settings_)
    for sentence in range(num_sentences):
        alone = Alone(seed, 4, num_beams)
        alone.offset = sentence
        assert beam_search(alone, **settings_)[0] == together[sentence]


def _chain(*rows: tuple[float, ...]):
    """A step function whose distribution depends on the number of tokens so far alone."""
    return lambda ids_nt, rows_n: torch.tensor(rows[ids_nt.shape[1] - 1]).log().expand(len(ids_nt), -1)


def test_two_beams_find_what_greedy_search_misses() -> None:
    """The likeliest first token leads nowhere: 0.6 * 0.3 < 0.4 * 0.9."""

    def step(ids_nt: Tensor, rows_n: Tensor) -> Tensor:
        if ids_nt.shape[1] == 1:
            return torch.tensor([0.0, 0.6, 0.4]).log().expand(len(ids_nt), -1)
        after = {1: [0.3, 0.35, 0.35], 2: [0.9, 0.05, 0.05]}
        return torch.stack([torch.tensor(after[int(row[1])]).log() for row in ids_nt])

    options = {"begin_id": 1, "end_id": END, "max_length": 2, "penalty": wu_penalty(0.0)}
    assert beam_search(step, num_beams=1, **options)[0][0].ids == (1, 1)
    best = beam_search(step, num_beams=2, **options)[0][0]
    assert best.ids == (2,) and best.log_probability == pytest.approx(math.log(0.36)) and best.ended


def test_length_penalty_is_equation_14() -> None:
    """A short sequence of probability 0.5, a longer one of 0.45: a larger alpha prefers the longer one."""
    step = _chain((0.5, 0.5), (0.05, 0.95), (0.95, 0.05))
    short = Hypothesis((), math.log(0.5), math.log(0.5), ended=True)
    for alpha, expected in ((0.0, ()), (1.0, (1, 1))):
        best = beam_search(step, begin_id=1, end_id=END, max_length=3, num_beams=4, penalty=wu_penalty(alpha))[0][0]
        assert best.ids == expected
        if alpha == 0.0:
            assert best.score == pytest.approx(short.score)
        else:
            assert best.score == pytest.approx(math.log(0.5 * 0.95 * 0.95) / (8 / 6))
    assert wu_penalty(0.6)(1) == 1.0 and wu_penalty(0.6)(7) == pytest.approx(2**0.6)


def test_early_stopping_takes_the_first_that_are_finished() -> None:
    step = _chain((0.5, 0.5), (0.05, 0.95), (0.95, 0.05))
    options = {"begin_id": 1, "end_id": END, "max_length": 3, "penalty": wu_penalty(1.0)}
    early = beam_search(step, num_beams=2, early_stopping=True, **options)[0]
    assert [item.ids for item in early] == [(), (1,)] or [item.ids for item in early] == [(), (1, 1)]
    assert beam_search(step, num_beams=2, **options)[0][0].ids == (1, 1)


def test_what_is_cut_off_says_so() -> None:
    (best,) = beam_search(_chain((0.1, 0.9), (0.1, 0.9)), begin_id=1, end_id=END, max_length=2, num_beams=1)[0]
    assert best.ids == (1, 1) and not best.ended


def test_impossible_tokens_are_never_given() -> None:
    (found,) = beam_search(_chain((0.0, 1.0), (1.0, 0.0)), begin_id=1, end_id=END, max_length=5, num_beams=4)
    assert [item.ids for item in found] == [(1,)]


def test_bad_input() -> None:
    for wrong in ({"max_length": 0}, {"num_beams": 0}, {"num_sentences": 0}):
        with pytest.raises(BadInputError, match="at least 1"):
            beam_search(_chain((0.5, 0.5)), begin_id=1, end_id=END, **{"max_length": 1, **wrong})
    with pytest.raises(JourneyError, match="not numbers"):
        beam_search(_chain((math.nan, 0.5)), begin_id=1, end_id=END, max_length=1)
    with pytest.raises(BadInputError, match="one token"):
        beam_search(_chain((1.0,)), begin_id=0, end_id=END, max_length=1)
