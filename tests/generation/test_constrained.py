"""Constrained answers: what is written obeys, whatever the model; what is hostile is refused in bounded time."""

import functools
import json
import re
import resource
import threading
import time
from decimal import Decimal
from typing import Any

import jsonschema
import pytest
import torch
from engines import engine, run
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.generation import constrained, grammar_trial
from llm_journey.generation.constrained import make_constraint
from llm_journey.generation.engine import Engine
from llm_journey.generation.sampling import SamplingConfig
from llm_journey.parity.random_models import random_decoder
from llm_journey.tokenizer import Tokenizer
from llm_journey.tokenizer.tokenizer import from_merges

_WORDS = (b"th", b"he", b"in", b"an", b'"}', b'",', b'":', b"],", b"12", b"  ", b"\xc3\xa9", b"no", b"ye", b"yes")


def tokenizer() -> Tokenizer:
    """Bytes, a few longer tokens, an end, and a special token that no answer may hold."""
    spelled = [bytes([value]) for value in range(256)]
    from llm_journey.tokenizer.byte_level import ID_TO_BYTE

    spelled = [ID_TO_BYTE[value : value + 1] for value in range(256)]
    merges = []
    for word in _WORDS:
        left, right = next((word[:i], word[i:]) for i in range(1, len(word)) if {word[:i], word[i:]} <= set(spelled))
        merges.append((spelled.index(left), spelled.index(right)))
        spelled.append(word)
    return from_merges(merges, pattern="cl100k", special_tokens=["<|endoftext|>", "<|secret|>"])


TOKENIZER = tokenizer()
END = TOKENIZER.end_id


def random_engine(seed: int = 0) -> Engine:
    """A model that writes noise; its vocabulary is a little longer than the tokenizer's."""
    return engine(random_decoder(seed, vocab_size=TOKENIZER.vocab_size + 6, context=600), cache_tokens=2400)


def answers(an_engine: Engine, count: int = 4, tokens: int = 200, **constraint: Any) -> list[tuple[str, str | None]]:
    requests = [
        an_engine.submit(
            [1, 2, 3],
            SamplingConfig(temperature=1.3, seed=seed, max_new_tokens=tokens),
            stop_ids={END},
            constraint=make_constraint(TOKENIZER, **constraint, max_new_tokens=tokens),
        )
        for seed in range(count)
    ]
    run(an_engine, 3000)
    assert all(request.error is None for request in requests)
    return [(TOKENIZER.decode(token.id for token in each.tokens), each.finish_reason) for each in requests]


SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["a", "b"]},
    {"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 9}, "minItems": 2, "maxItems": 4},
    {"enum": ["é", 'quo"te', "back\\slash", 3, None, {"x": [1]}]},
    {"anyOf": [{"type": "boolean"}, {"type": "string", "pattern": "^[a-f]{2,5}$"}]},
    {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "string"}}},
    {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}},
    {"type": "string", "format": "date"},
    {},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_answers_are_json_of_the_schema(schema: dict[str, Any]) -> None:
    """Of a model that writes noise, every answer; and every answer ends, since the grammar closes in time."""
    for text, reason in answers(random_engine(), schema=schema):
        assert reason == "stop", text
        jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize("pattern", [r"[0-9]{3}-[0-9]{4}", r"(yes|no|é+)!?", r"a*b*", r"[0-9]+\.[0-9]{2}", ""])
def test_answers_match_the_regex_as_a_whole(pattern: str) -> None:
    for text, reason in answers(random_engine(), regex=pattern):
        assert reason == "stop" and re.fullmatch(pattern, text), text


@settings(deadline=None, max_examples=25)
@given(st.lists(st.text(min_size=1, max_size=8).filter(lambda text: text.isprintable()), min_size=1, max_size=4))
def test_answers_are_one_of_the_choices(choices: list[str]) -> None:
    for text, reason in answers(SHARED, 2, choices=choices):
        assert reason == "stop" and text in choices


SHARED = random_engine(3)


@pytest.mark.parametrize("choice", ['"', "\\", "\n", "a/b", "\t x", "</s>", "%regex", "<|secret|>"])
def test_choices_are_plain_text(choice: str) -> None:
    """Signs of the grammar's own language, and the name of a special token, which comes as text."""
    assert answers(SHARED, 1, choices=[choice]) == [(choice, "stop")]


def test_special_tokens_never_come_and_the_end_only_where_the_grammar_ends() -> None:
    constraint = make_constraint(TOKENIZER, regex=".{1,3}")
    secret = TOKENIZER.special_tokens["<|secret|>"]
    allowed_v = constraint.allowed()
    assert not allowed_v[END] and not allowed_v[secret] and bool(allowed_v[TOKENIZER.vocabulary[b"a"]])
    constraint.accept(TOKENIZER.vocabulary[b"a"])
    assert bool(constraint.allowed()[END]) and not constraint.allowed()[secret] and not constraint.done
    constraint.accept(TOKENIZER.vocabulary[b"th"])
    assert constraint.done


def test_a_longer_vocabulary_of_the_model_is_never_written() -> None:
    texts = answers(random_engine(1), 8, 30, regex=".*")
    assert len({text for text, _ in texts}) > 4  # ids beyond the tokenizer's would have failed to decode


HOSTILE = [
    "a{1000000000}", "(((a{1,1000}){1,1000}){1,1000}){1,1000}", "(a|b)*a(a|b){900}c", "(.*a){900}.*b.*", "a" * 4096,
    r"\p{L}{1,900}\p{N}{900}", "(.{1,900}x){1,900}", "((((a+)+)+)+)+$", "(" * 2000 + ")" * 2000, "a{99999999999999999}",
    "(?=a)b", r"(a)\1", "[", "\\", "(?P<n>a", "a{5,2}",
]  # fmt: skip


@pytest.mark.parametrize("pattern", HOSTILE, ids=[pattern[:20] for pattern in HOSTILE])
def test_hostile_regexes_are_followed_or_refused_in_bounded_time(pattern: str) -> None:
    began = time.monotonic()
    try:
        constraint = make_constraint(TOKENIZER, regex=pattern)
        for _ in range(20):
            allowed = constraint.allowed().nonzero().flatten().tolist()
            constraint.accept(allowed[0])
            if constraint.done or allowed[0] == END:
                break
    except JourneyError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
    assert time.monotonic() - began < 5  # the slowest took 0.3 s


def test_incident_8_a_wrong_regex_is_bad_input_and_the_next_request_succeeds() -> None:
    """vllm#19270: `foo**` ended the server."""
    an_engine = random_engine()
    with pytest.raises(BadInputError, match=r"the regex 'foo\*\*' is wrong: multiple repeat at position 4") as caught:
        answers(an_engine, regex="foo**")
    assert caught.value.exit_code == 2
    assert answers(an_engine, 1, regex="foo") == [("foo", "stop")]


def test_a_constraint_that_fails_ends_its_own_request_alone() -> None:
    class Failing:
        done = False

        def allowed(self) -> torch.Tensor:
            raise JourneyError("too costly")

        def accept(self, token: int) -> None: ...

    an_engine = random_engine()
    config = SamplingConfig(temperature=0, max_new_tokens=5)
    ends: list[str] = []
    bad = an_engine.submit([1], config, constraint=Failing(), on_finish=ends.append)
    good = an_engine.submit([1], config)
    run(an_engine)
    assert ends == ["error"] and str(bad.error) == "too costly" and len(good.tokens) == 5
    assert an_engine.pool.num_free == an_engine.pool.num_blocks


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        ({}, "give one of schema, regex, choices; given: none"),
        ({"regex": "a", "choices": ["b"]}, "given: regex, choices"),
        ({"schema": {"not": {}}}, "schema cannot be followed: .*not"),
        ({"schema": {"$ref": "http://example.com/x"}}, "schema cannot be followed"),
        ({"schema": {"type": "strang"}}, "schema cannot be followed: .*strang"),
        ({"schema": {"type": "integer", "minimum": 3, "maximum": 2}}, "schema cannot be followed: Unsatisfiable"),
        ({"schema": {"enum": []}}, "schema cannot be followed"),
        ({"schema": {"$ref": "#"}}, "schema cannot be followed"),
        ({"schema": {"type": "string", "pattern": "a" * (1 << 18)}}, "the schema has 26.... bytes; at most 262144"),
        ({"schema": {"x": float("nan")}}, "the schema is no JSON"),
        ({"schema": {"type": "string", "pattern": "a" * 20_000}}, "a pattern in the schema has 20000 characters"),
        ({"choices": []}, "choices must be 1 to 1000 texts"),
        ({"choices": ["a", ""]}, "none of them empty"),
        ({"choices": ["a" * 70_000]}, "more than 65536 characters"),
        ({"regex": "a" * 5000}, "the regex has 5000 characters; at most 4096"),
        ({"regex": "a{2,4000}"}, r"the regex repeats '\{2,4000\}'; at most 1000"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_the_reason(constraint: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=message) as caught:
        make_constraint(TOKENIZER, **constraint)
    assert "\n" not in str(caught.value)


def test_a_schema_cannot_switch_its_own_checks_off() -> None:
    """`x-guidance` in a schema steers the library; what makes answers valid is not for the schema to say."""
    schema = {"x-guidance": {"lenient": True, "whitespace_pattern": "x"}, "type": "array", "contains": {"type": "null"}}
    for text, reason in answers(SHARED, schema=schema):
        assert reason == "stop" and None in json.loads(text)
    with pytest.raises(BadInputError, match="of what breaks uniqueItems a part at most"):
        make_constraint(TOKENIZER, schema=schema | {"not": {"uniqueItems": True}})


def test_deep_schemas_are_refused() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(3000):
        schema = {"type": "object", "properties": {"a": schema}}
    with pytest.raises(BadInputError, match="schema"):
        make_constraint(TOKENIZER, schema=schema)


@pytest.mark.parametrize("keyword", ["items", "contains", "properties", "anyOf", "allOf"])
def test_a_long_chain_of_references_ends_no_process(keyword: str) -> None:
    """100 kB of definitions, each of which refers to the next, overflowed llguidance's stack."""

    def link(to: int) -> dict[str, Any]:
        further: Any = {"$ref": f"#/$defs/{to}"}
        return {keyword: {"a": further} if keyword == "properties" else [further] if "Of" in keyword else further}

    chain: dict[str, Any] = {str(index): link(index + 1) for index in range(4500)}
    schema = {"$ref": "#/$defs/0", "$defs": chain | {"4500": {"type": "integer"}}}
    began = time.monotonic()
    try:
        assert make_constraint(TOKENIZER, schema=schema).allowed().any()
    except BadInputError as error:
        assert str(error).startswith("schema cannot be followed")
    assert time.monotonic() - began < 10


def test_what_takes_all_memory_is_tried_elsewhere_and_the_next_request_succeeds() -> None:
    """The intersection of these patterns asked for 7 GB at once, which ended the process."""
    patterns = [{"pattern": f"(a|b)*a(a|b){{{count}}}$"} for count in range(1, 40)]
    with pytest.raises(BadInputError, match="the grammar takes more than 2 seconds or 1 GB to build"):
        make_constraint(TOKENIZER, schema={"type": "string", "allOf": patterns})
    assert make_constraint(TOKENIZER, schema={"type": "boolean"}).allowed().any()


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5},
        {"type": "number", "exclusiveMinimum": 100, "exclusiveMaximum": 100.5},
        {"type": "number", "minimum": -1.5, "exclusiveMaximum": -1},
        {"type": ["number", "null"], "exclusiveMinimum": -0.5, "exclusiveMaximum": 0},
        {"not": {"const": 0}, "type": "number", "minimum": 0, "maximum": 0.5},
        {"type": "number", "allOf": [{"exclusiveMinimum": 3}, {"maximum": 3.9}]},
        {"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 4},
        {"const": {"exclusiveMinimum": 3}},
        {
            "properties": {"default": {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}},
            "required": ["default"],
            "additionalProperties": False,
            "type": "object",
        },
        {"type": "integer", "minimum": -(10**30), "maximum": 5},
    ],
    ids=lambda schema: json.dumps(schema)[:50],
)
def test_open_and_large_bounds_are_kept_to(schema: dict[str, Any]) -> None:
    """llguidance wrote 0 for the first of these."""
    found = [json.loads(text) for text, reason in answers(random_engine(), 40, schema=schema) if reason == "stop"]
    assert found
    for value in found:
        jsonschema.validate(value, schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": -(2**63), "maximum": -(2**63)},
        {"type": "integer", "minimum": 10**300, "maximum": 10**301},
        {"const": 9007199254740993},
        {"enum": [{"a": [18446744073709551616]}]},
        functools.reduce(lambda inner, _: {"items": inner}, range(600), {"type": "string"}),
    ],
    ids=lambda schema: str(schema)[:40],
)
def test_what_has_no_exact_answer_is_refused(schema: dict[str, Any]) -> None:
    """The first ended the process, the last was a RecursionError."""
    with pytest.raises(BadInputError, match="schema cannot be followed"):
        make_constraint(TOKENIZER, schema=schema)


def test_a_trial_is_an_answer_even_where_the_grammar_is_wrong() -> None:
    assert grammar_trial.passes("start: a b", constrained._LIMITS)  # no such rules: an error, and an end
    assert not grammar_trial._process.ask(b"no JSON", 5)
    assert grammar_trial.passes('start: "x"', constrained._LIMITS)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "multipleOf": 123456789},
        {"type": "number", "multipleOf": 0.123456789},
        {"type": "integer", "multipleOf": 4e9, "minimum": 1},
        {"allOf": [{"multipleOf": prime} for prime in (1009, 1013, 1019, 1021)], "type": "integer"},
        {"type": "integer", "multipleOf": 1009, "not": {"multipleOf": 99991}},
        {"anyOf": [{"multipleOf": 1e300}, {"multipleOf": 5e-324}]},
    ],
    ids=lambda schema: json.dumps(schema)[:40],
)
def test_multiples_of_large_numbers_take_no_gigabytes(schema: dict[str, Any]) -> None:
    """llguidance has a state for each remainder: the first of these took all memory."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = [json.loads(text) for text, reason in answers(SHARED, schema=schema) if reason == "stop"]
    assert time.monotonic() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10  # kilobytes
    steps = [each["multipleOf"] for each in (schema, *schema.get("allOf", ())) if "multipleOf" in each]
    for value in found:
        assert all(Decimal(str(value)) % Decimal(str(step)) == 0 for step in steps if isinstance(value, int | float))


def test_constraints_are_made_on_any_thread() -> None:
    found: list[bool] = []
    threads = [
        threading.Thread(target=lambda: found.append(bool(make_constraint(TOKENIZER, regex="ab").allowed().any())))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4
