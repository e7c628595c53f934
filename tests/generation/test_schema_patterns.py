r"""Patterns of strings and names: what is written matches as Python reads them, in JSON's own quoting too."""

import json
import re
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from schema_samples import writable

from llm_journey.core.errors import BadInputError
from llm_journey.generation.schemas.patterns import translated

_SIGNS = ('"', "\\", "\n", "\r", "\t", "\x00", "\x01", "\x7f", "/", "-", "^", "&", "]", "a", "b", "Z", "7", "_", " ",
          "é", "٣", "²", "\xa0", "\u2028", "\ufeff", "\x1c", "😀")  # fmt: skip
_SETS = (
    *(
        '[^"]',
        r'[^"\\]',
        r"[^\\]",
        "[^'\"]",
        r'[^\n"]',
        r"[\x00-\x1f]",
        r"[\x00-\x21]",
        "[^#-~]",
        "[^a-z]",
        "[a-z&&[^b]",
    ),
    *(r"[\x00-\x0f]|[\x10-\x1f]", r"\x01|[\x00\x02-\x1f]", r"\d", r"\D", r"\w", r"\W", r"\s", r"\S", ".", r"[\s\S]"),
    *(r"[^\d]", r"[^\W]", r"[^\s\D]", r"[^\S]", r"[\w.-]", "[-a]", "[a-]", r"[\]]", r"[\b]", r"\cB", r"é", r"\u00e9"),
)


pytestmark = pytest.mark.filterwarnings("ignore:Possible set:FutureWarning")  # Python's, of what Rust reads


def strings(pattern: str) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern}


@pytest.mark.parametrize("pattern", _SETS)
def test_a_set_lets_no_other_character_through(pattern: str) -> None:
    """And of those that both languages let through, all but U+0001."""
    written = [sign for sign in _SIGNS if writable(strings(f"^({pattern})$"), sign)]
    read = [sign for sign in _SIGNS if re.fullmatch(pattern.replace(r"\cB", r"\x02"), sign)]
    assert set(written) <= set(read)
    assert {sign for sign in read if sign.isascii() and sign.isprintable()} <= set(written)


@settings(deadline=None, max_examples=150)
@given(
    st.text(st.sampled_from('ab"\\\\[]^-.*+?{}()|$dwsnx01,&~ '), max_size=10),
    st.text(st.sampled_from(_SIGNS), max_size=4),
)
@example('[^"]*', '"')
@example("[a-z&&[^b]]", "b")
def test_what_can_be_written_matches_as_python_reads_it(pattern: str, text: str) -> None:
    try:
        can = writable(strings(pattern), text)
    except BadInputError:
        return
    try:
        compiled = re.compile(pattern)
    except re.error:
        return  # ECMA's alone: [\w-.]
    assert not can or compiled.search(text)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("foo**", "multiple repeat at position 4"),
        ("a++", "multiple repeat at position 2"),
        ("*a", "nothing to repeat at position 0"),
        ("^*a", "nothing to repeat at position 0"),
        ("a{1000000000}", r"repeats 'a?\{1000000000\}'; at most 1000"),
        ("((a{1000}){1000}){1000}", "stands for .* characters"),
        ("a{3,2}", "a least number of repetitions above the most"),
        ("a{,3}", "not all read alike"),
        ("[]a]", "an empty set, which not all read alike"),
        ("[^]", "an empty set, which not all read alike"),
        ("[b-a]", "a range that does not end at a character behind its first"),
        ("[a", "unterminated character set at position 0"),
        ("(a", r"missing \) at position 0"),
        ("a)", "unbalanced parenthesis at position 1"),
        ("(?!a)b", "look-around"),
        ("(?<=a)b", "look-around"),
        (r"(a)\1", r"\\1, which not all read alike"),
        (r"\Aa\Z", r"\\A, which not all read alike"),
        ("a\\", "a backslash at the end"),
        (r"\p{L", "a property"),
        (r"\u12", "a number that stands for no character"),
        ("(" * 200 + ")" * 200, "nested deeper"),
    ],
)
def test_what_is_no_regex_or_read_in_two_ways_is_refused(pattern: str, reason: str) -> None:
    with pytest.raises(BadInputError, match=reason):
        translated(pattern)
    began = time.monotonic()
    with pytest.raises(BadInputError, match="schema cannot be followed"):
        writable(strings(pattern), "a")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("^[a-z&&[^b]]$", "&]"),  # to Rust an intersection
        ("^a{$", "a{"),
        ("^{}$", "{}"),
        ("^(?P<year>[0-9]{4})-(?<month>[0-9]{2})$", "2026-11"),
        ("(?i)^yes$", "YES"),
        ("^(?i:y)es$", "Yes"),
        (r"^\/\-\.$", "/-."),
        (r"^\ud83d\ude00$", "😀"),
        (r"^\p{Lu}$", "É"),
        ("^a+?b$", "aab"),
    ],
)
def test_what_is_read_alike_is_followed(pattern: str, text: str) -> None:
    assert writable(strings(pattern), text) and not writable(strings(pattern), text + "x")


def test_names_that_might_match_are_not_free() -> None:
    """An Arabic digit is one to Python and none to ECMA: no such name is written, whichever of the two judges."""
    schema = {"patternProperties": {r"^\d$": {"type": "integer"}}, "required": ["kind"]}
    assert writable(schema, {"kind": "x", "7": 1}) and not writable(schema, {"kind": 1, "7": "x"})
    assert not writable(schema, {"kind": 1, "٣": "x"})
    exact = {"patternProperties": {"^x-": {"type": "integer"}}}
    assert writable(exact, {"x-1": 1, "other": "x"}) and not writable(exact, {"x-1": "x"})


def test_two_patterns_that_become_one() -> None:
    schema = {"patternProperties": {"^a": {"type": "integer"}, r"^\x61": {"minimum": 3}}}
    assert writable(schema, {"ab": 4}) and not writable(schema, {"ab": 2}) and not writable(schema, {"ab": "x"})


def test_a_schema_and_its_text_stay_as_they_are() -> None:
    schema = {"properties": {"pattern": {"const": {"pattern": "a**"}}, "default": {"pattern": "^a$"}}}
    before = json.dumps(schema)
    assert writable(schema, {"pattern": {"pattern": "a**"}, "default": "a"}) and json.dumps(schema) == before
