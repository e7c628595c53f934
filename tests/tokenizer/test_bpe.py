"""The oracle, on cases small enough to work out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_journey.tokenizer import bpe
from llm_journey.tokenizer.byte_level import BYTE_TO_ID, ID_TO_BYTE, from_characters, to_characters


def ids(text: str) -> list[int]:
    return list(text.encode().translate(BYTE_TO_ID))


def test_the_example_of_the_paper() -> None:
    # Sennrich et al. 2016, figure 1 (without its end-of-word symbol): low, lower, newest, widest. The pair "es"
    # stands 9 times, "st" too; "es" has the smaller ids.
    counts = {"low": 5, "lower": 2, "newest": 6, "widest": 3}
    merges = bpe.train(counts, 4)
    spelled = {index: chr(byte) for index, byte in enumerate(ID_TO_BYTE)}
    for number, (left, right) in enumerate(merges):
        spelled[256 + number] = spelled[left] + spelled[right]
    assert [spelled[256 + number] for number in range(4)] == ["es", "est", "lo", "low"]


def test_ties_go_to_the_smaller_ids() -> None:
    # "ab" and "cd" stand equally often; then the pair of the bytes that come first wins.
    assert bpe.train({"cd": 2, "ab": 2}, 1) == [(ids("a")[0], ids("b")[0])]


def test_training_stops_where_no_pair_is_left() -> None:
    assert len(bpe.train({"abc": 1}, 100)) == 2
    assert bpe.train({"a": 5}, 100) == []


def test_runs_merge_from_the_left() -> None:
    a = ids("a")[0]
    assert bpe.merge([a, a, a], (a, a), 300) == [300, a]
    assert bpe.merge([a, a, a, a], (a, a), 300) == [300, 300]


def test_encoding_applies_the_earliest_merge_first() -> None:
    a, b, c = ids("abc")
    assert bpe.encode_word(b"abc", {(b, c): 256, (a, b): 257}) == [a, 256]
    assert bpe.encode_word(b"abc", {(a, b): 256, (b, c): 257}) == [256, c]


def test_lone_surrogates_have_bytes() -> None:
    assert bpe.word_bytes("\ud800") == b"\xed\xa0\x80"


@given(st.binary())
def test_the_byte_alphabet_spells_every_byte_string(data: bytes) -> None:
    assert from_characters(to_characters(data)) == data
    assert to_characters(data).isprintable()


def test_other_characters_spell_no_byte() -> None:
    with pytest.raises(KeyError):
        from_characters("字")
