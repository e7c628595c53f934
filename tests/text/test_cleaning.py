"""Cleaning gives one spelling, and cleaning twice is cleaning once."""

import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_journey.text.cleaning import clean

# Everything that the rules treat, thickly mixed, beside arbitrary text.
_TRICKY = st.text(
    alphabet="a é́\u0301\r\n\t \x0b\x0c\x85\u2028\u2029\x00\xad\ufeff\ufffe\ud800\xa0\u3000\u200d\u2000Å\u1100\u1161"
)


@settings(max_examples=300)
@given(st.one_of(_TRICKY, st.text()))
@example("a \xad b")
@example("e\xad\u0301")
@example("x \n \n \n y")
def test_cleaning_is_idempotent(text: str) -> None:
    once = clean(text)
    assert clean(once) == once


@settings(max_examples=200)
@given(st.one_of(_TRICKY, st.text()))
def test_clean_text_is_what_the_rules_say(text: str) -> None:
    result = clean(text)
    assert unicodedata.is_normalized("NFC", result)
    assert result.encode("utf-8").decode("utf-8") == result  # no lone surrogates
    assert not any(unicodedata.category(letter) == "Cc" and letter not in "\n\t" for letter in result)
    assert "\n\n\n" not in result
    assert not any(line != line.rstrip(" \t") for line in result.split("\n"))
    assert result == result.strip("\n")


@settings(max_examples=100)
@given(st.text())
def test_no_visible_character_is_lost(text: str) -> None:
    def visible(value: str) -> str:
        dropped = {"Cc", "Zs", "Zl", "Zp", "Cn", "Cs"}
        value = unicodedata.normalize("NFC", value)
        return "".join(letter for letter in value if unicodedata.category(letter) not in dropped | {"Cf"})

    assert visible(clean(text)).replace("\ufffd", "") == visible(text.encode("utf-8", "ignore").decode()).replace(
        "\ufffd", ""
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\r\ntwo\rthree\x85four\u2028five", "one\ntwo\nthree\nfour\nfive"),
        ("\ufeffBOM and soft\xadhyphen\x00", "BOM and softhyphen"),
        ("wide\u3000and\xa0hard", "wide and hard"),
        ("Cafe\u0301", "Café"),
        ("two  spaces \t here", "two spaces here"),
        ("if x:\n    return  1   \n", "if x:\n    return 1"),
        ("a\n\n\n\n\nb\n\n", "a\n\nb"),
        ("lone \ud83d here", "lone \ufffd here"),
        ("می‌خواهم 👩‍💻", "می‌خواهم 👩‍💻"),
    ],
)
def test_each_rule(text: str, expected: str) -> None:
    assert clean(text) == expected


def test_long_runs_of_white_space_cost_no_more_than_their_length() -> None:
    text = ("a" + " " * 2000) * 500 + "\n" * 1_000_000 + " \t" * 500_000
    assert clean(text) == " ".join(["a"] * 500)
