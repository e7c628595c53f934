r"""Patterns of strings and names: what is written matches as Python reads them, in JSON's own quoting too."""

import contextlib
import json
import re
import resource
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from schema_samples import validator, writable, writable_text

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
    *(r"[^\d]", r"[^\W]", r"[^\s\D]", r"[^\S]", r"[\w.-]", "[-a]", "[a-]", r"[\]]", r"[\b]", r"\cJ", r"é", r"\u00e9"),
)


pytestmark = pytest.mark.filterwarnings("ignore:Possible set:FutureWarning")  # Python's, of what Rust reads


def strings(pattern: str) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern}


@pytest.mark.parametrize("pattern", _SETS)
def test_a_set_lets_no_other_character_through(pattern: str) -> None:
    """And of those that both languages let through, all but U+0001."""
    written = [sign for sign in _SIGNS if writable(strings(f"^({pattern})$"), sign)]
    read = [sign for sign in _SIGNS if re.fullmatch(pattern.replace(r"\cJ", r"\n"), sign)]
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
        ("a{1000000000}", r"repeats 'a?\{1000000000\}'; at most 65536"),
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
        (r"^\ud83d\ude00$", "half of a pair of surrogates"),
        (r"(?i)\p{Lu}", "a property where case makes no difference"),
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
        (r"^a\_b$", "a_b"),
        (r"^[^\ud800-\udfff]$", "é"),
        (r"^a{1,4096}$", "aaa"),
        ("(?i)^é$", "É"),
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


# Schemas, and texts that would break them if they could be written.
_BREAKING: list[tuple[dict[str, Any], str]] = [
    ({"properties": {"a": {"type": "integer"}}, "required": ["a"]}, r'{"a": 1,"\u0061": "x"}'),
    ({"properties": {"a": False}}, r'{"\u0061": 1}'),
    ({"patternProperties": {"^x-": {"type": "integer"}}}, r'{"\u0078-": "a"}'),
    ({"properties": {"\n": {"type": "integer"}}}, r'{"\u000a": "x"}'),
    ({"properties": {"größe": {}}, "patternProperties": {r"^\w+$": {"type": "integer"}}}, '{"größe": "x"}'),
    ({"properties": {"é": {"type": "string"}}, "patternProperties": {r"^\w+$": {"maxLength": 3}}}, '{"é": "abcd"}'),
    ({"patternProperties": {"^a$": {"type": "integer"}}}, r'{"a\n": "x"}'),
    ({"patternProperties": {"^a$": {"type": "integer"}}, "properties": {"a\n": {}}}, r'{"a\n": "x"}'),
    ({"oneOf": [{"type": "object", "patternProperties": {r"^\d+$": {"type": "integer"}}},
                {"type": "object", "required": ["kind"]}]}, '{"kind": 1}'),
    ({"oneOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "number", "maximum": 5e-7}]}, "0.0000003"),
    *((strings(each), '"\ue000"') for each in (r"^[^\W]+$", r"^[^\D]+$", r"^[^\u0021-\uffff]$", r"^[^\x00-\uffff]+")),
    *((strings(each), '"\ud7ff"') for each in (r"^[^\D]+$", r'^[^\S"]$')),
    *((strings("(?i)^[^i]$"), f'"{sign}"') for sign in "iİıI"),
    (strings("(?i)^\u1c8a$"), '"\u1c89"'),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "text"), _BREAKING, ids=range(len(_BREAKING)))
def test_no_other_spelling_or_reading_gets_through(schema: dict[str, Any], text: str) -> None:
    assert not validator(schema).is_valid(json.loads(text))
    assert not writable_text(schema, text)


@pytest.mark.parametrize(
    "schema",
    [
        {"propertyNames": {"pattern": "((a{1000}){1000}){1000}", "minLength": 1}, "properties": {"a": {}}},
        {"propertyNames": {"pattern": "a{1000000000}", "minLength": 1}, "properties": {"a": {}}},
        {"propertyNames": {"pattern": "(" * 9000, "minLength": 1}, "properties": {"a": {}}},
        {"patternProperties": {r"^(.|a)*\d$": {}}, "required": ["a" * 30 + f"{n}?" for n in range(2000)]},
        {"patternProperties": {r"\d": {}}, "required": [1]},
        {"patternProperties": {r"\d": {}}, "properties": [1]},
        {"type": "integer", "exclusiveMinimum": 10**400},
        {"type": "integer", "exclusiveMaximum": 10**400},
        {"$id": "http://[", "$ref": "#"},
        {"allOf": [{"pattern": "{" * 16000 + "}"} for _ in range(16)]},
        {"pattern": "\\ud800" * 2700},
    ],
    ids=lambda schema: json.dumps(schema)[:40],
)
def test_hostile_schemas_are_followed_or_refused_in_bounded_time(schema: dict[str, Any]) -> None:
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(BadInputError):
        writable(schema, {"a": 1})
    assert time.monotonic() - began < 8
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 << 10  # kilobytes


def test_two_patterns_that_become_one() -> None:
    schema = {"patternProperties": {"^a": {"type": "integer"}, r"^\x61": {"minimum": 3}}}
    assert writable(schema, {"ab": 4}) and not writable(schema, {"ab": 2}) and not writable(schema, {"ab": "x"})


def test_a_schema_and_its_text_stay_as_they_are() -> None:
    schema = {"properties": {"pattern": {"const": {"pattern": "a**"}}, "default": {"pattern": "^a$"}}}
    before = json.dumps(schema)
    assert writable(schema, {"pattern": {"pattern": "a**"}, "default": "a"}) and json.dumps(schema) == before
