"""When tiktoken's rank table may stand for a list of merges, and what encodes where it may not."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llm_journey.tokenizer import bpe
from llm_journey.tokenizer.byte_level import ID_TO_BYTE
from llm_journey.tokenizer.cores import MergeCore, RankCore, build_core, rank_table

LETTERS = [ID_TO_BYTE[index : index + 1] for index in range(3)]


@st.composite
def any_merges(draw: st.DrawFn) -> tuple[dict[bytes, int], list[tuple[int, int]]]:
    """Merges that join any two tokens made so far: most were not learned from any text, and many cross each other."""
    spelled = [ID_TO_BYTE[index : index + 1] for index in range(256)]
    usable = list(range(draw(st.integers(1, 3))))
    merges = []
    for _ in range(draw(st.integers(1, 8))):
        pair = draw(st.sampled_from(usable)), draw(st.sampled_from(usable))
        joined = spelled[pair[0]] + spelled[pair[1]]
        if joined not in spelled:
            usable.append(len(spelled))
            spelled.append(joined)
            merges.append(pair)
    return {data: token for token, data in enumerate(spelled)}, merges


@given(parts=any_merges(), words=st.lists(st.lists(st.sampled_from(LETTERS), min_size=1, max_size=14), min_size=1))
def test_any_merges_encode_as_the_oracle(
    parts: tuple[dict[bytes, int], list[tuple[int, int]]], words: list[list[bytes]]
) -> None:
    vocabulary, merges = parts
    core = build_core(vocabulary, merges, "gpt2")
    merge_ids = {pair: 256 + index for index, pair in enumerate(merges)}
    for word in [*map(b"".join, words), *list(vocabulary)[256:]]:
        assert core.encode_word(word) == bpe.encode_word(word, merge_ids)


@given(parts=any_merges())
def test_ids_in_another_order_are_translated(parts: tuple[dict[bytes, int], list[tuple[int, int]]]) -> None:
    vocabulary, merges = parts
    assume(rank_table(vocabulary, merges, whole_words_first=False) is not None)
    top = len(vocabulary) - 1
    turned = {data: top - token for data, token in vocabulary.items()}
    core = build_core(turned, [(top - left, top - right) for left, right in merges], "gpt2")
    assert isinstance(core, RankCore)
    plain = build_core(vocabulary, merges, "gpt2")
    text = b"".join(LETTERS * 5).decode("latin-1")
    assert core.encode_text(text) == [top - token for token in plain.encode_text(text)]


def test_a_merge_that_crosses_a_border_needs_the_merges() -> None:
    vocabulary = {data: token for token, data in enumerate(ID_TO_BYTE[index : index + 1] for index in range(256))}
    # b+c comes first, so "abc" as ab+c can never be reached; tiktoken would reach it in one step.
    vocabulary |= {LETTERS[1] + LETTERS[2]: 256, LETTERS[0] + LETTERS[1]: 257, b"".join(LETTERS): 258}
    merges = [(1, 2), (0, 1), (257, 2)]
    core = build_core(vocabulary, merges, "gpt2")
    assert isinstance(core, MergeCore)
    assert core.encode_word(b"".join(LETTERS)) == [0, 256]
    assert core.encode_text("".join(letter.decode() for letter in LETTERS) + " x")[:2] == [0, 256]


@pytest.mark.parametrize(("whole_words_first", "kind"), [(True, RankCore), (False, MergeCore)])
def test_a_file_with_every_split_of_every_token_is_a_rank_table(whole_words_first: bool, kind: type) -> None:
    vocabulary = {data: token for token, data in enumerate(ID_TO_BYTE[index : index + 1] for index in range(256))}
    vocabulary |= {LETTERS[0] + LETTERS[1]: 256, LETTERS[1] + LETTERS[2]: 257, b"".join(LETTERS): 258}
    merges = [(0, 1), (1, 2), (256, 2), (0, 257)]
    core = build_core(vocabulary, merges, "gpt2", whole_words_first=whole_words_first)
    assert isinstance(core, kind)
    assert core.encode_word(b"".join(LETTERS)) == [258]


def test_a_token_that_no_merge_makes_needs_the_merges() -> None:
    vocabulary = {data: token for token, data in enumerate(ID_TO_BYTE[index : index + 1] for index in range(256))}
    vocabulary[LETTERS[0] + LETTERS[1]] = 256
    assert build_core(vocabulary, [], "gpt2").encode_word(LETTERS[0] + LETTERS[1]) == [0, 1]
    whole = build_core(vocabulary, [], "gpt2", whole_words_first=True)
    assert whole.encode_word(LETTERS[0] + LETTERS[1]) == [256]
