"""Split patterns: nothing is lost, and a long text is cut only where no pre-token is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_journey.tokenizer.pretokenize import PATTERNS, compiled, pieces, split

NAMES = sorted(PATTERNS)
# Characters at which the patterns decide: letters, digits, marks, quotes, white space of every kind, controls.
TRICKY = st.text(st.sampled_from("aZé字🙂 1٣½'ſsStTdlv._-\t\n\r\v\f\x1c\x85\xa0\u2028\u3000\u200b\u0301\x00\ud800"))


@pytest.mark.parametrize("name", NAMES)
@given(text=TRICKY)
def test_pre_tokens_joined_are_the_text(name: str, text: str) -> None:
    assert "".join(split(text, name)) == text


@pytest.mark.parametrize("name", NAMES)
@given(text=TRICKY, size=st.integers(1, 12))
def test_pieces_of_a_long_text_have_the_same_pre_tokens(name: str, text: str, size: int) -> None:
    parts = list(pieces(text, size))
    assert "".join(parts) == text
    assert [word for part in parts for word in split(part, name)] == split(text, name)


def test_pieces_do_cut() -> None:
    # The first cut at or after 100 characters is behind the word that ends at 104; then 105 characters each.
    assert [len(part) for part in pieces("word " * 60, 100)] == [104, 100, 96]
    assert list(pieces("x" * 500, 100)) == ["x" * 500]


def test_known_splits() -> None:
    assert split("It's 1999, isn't  it?\n", "gpt2") == ["It", "'s", " 1999", ",", " isn", "'t", " ", " it", "?", "\n"]
    assert split("It'S 12345\n\n  x", "cl100k") == ["It", "'S", " ", "123", "45", "\n\n", " ", " x"]
    assert split("in 1999 ", "qwen2") == ["in", " ", "1", "9", "9", "9", " "]
    assert split("in  1999", "gpt2_digits") == ["in", "  ", "1", "9", "9", "9"]


def test_a_final_newline_is_no_end_of_text() -> None:
    # `$` in the regex library matches before a final newline; a pattern that used it would cut here.
    assert split("a  \n", "gpt2") == ["a", "  \n"]


@pytest.mark.parametrize("name", NAMES)
def test_white_space_is_unicodes(name: str) -> None:
    # Python's re counts U+001C..U+001F as white space, Unicode and the Rust engines do not.
    assert compiled(name).fullmatch("\x1c\x1f!") is not None
