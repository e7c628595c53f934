"""Narrowed schemas: nothing that the original forbids can be written, and what is left is what the rules say."""

import json
import random
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schema_samples import drawn_document, drawn_value, random_walk, validator, writable
from test_constrained import TOKENIZER

from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.generation.constrained import make_constraint
from llm_journey.generation.schemas.narrowing import narrow

_OBJECT = {"type": "object"}
# A schema, values that an answer may still be, and values that it may not.
RULES: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "true": (True, [None, {"a": [1]}], []),
    "not a type": ({"not": {"type": "string"}}, [1, None, {}], ["a"]),
    "not an integer": ({"not": {"type": "integer"}}, ["a", None], [1]),
    "not a const": ({"not": {"const": "foo"}}, ["fo", "fooo", "bar", 7], ["foo"]),
    "not an enum": (
        {"type": ["string", "number"], "not": {"enum": ["a", 1, 3]}}, ["b", "", 2, 0.5, 4], ["a", 1, 3, None]
    ),
    "not bounds": ({"type": "number", "not": {"minimum": 5}}, [4.5, -1], [5, 6]),
    "multipleOf of many digits": (
        {"type": "number", "multipleOf": 0.12345}, [0, 2469, -4938, 12345], [1, 0.5, 2470, 246]
    ),
    "multipleOf of more": ({"type": "integer", "multipleOf": 12345678901, "minimum": 1}, [12345678901], [0, 1, 5]),
    "multiples with a large one in common": (
        {"type": "integer", "multipleOf": 1009, "allOf": [{"multipleOf": 1013}]}, [0], [1009, 1013, 1]
    ),
    "a price and a count": (
        {**_OBJECT, "properties": {"p": {"multipleOf": 0.01}, "n": {"multipleOf": 1000}}},
        [{"p": 19.75, "n": 1000000}, {"p": 123456789}], [{"n": 1}],
    ),
    "not required": ({**_OBJECT, "not": {"required": ["a"]}}, [{}, {"b": 1}], [{"a": 1}]),
    "not a pattern of words": (
        {"type": "string", "not": {"pattern": "^(no|off)$"}}, ["on", "noo"], ["no", "off", "no\n"]
    ),
    "not a prefix": ({"type": "string", "not": {"pattern": "^x-"}}, ["x", "y-"], ["x-", "x-1"]),
    "not contains": ({"type": "array", "not": {"contains": {"const": 1}}}, [[], [2, 3]], [[1], [2, 1]]),
    "double negation": ({"not": {"not": {"type": "string"}}}, ["a"], [1]),
    "if, then, else": (
        {**_OBJECT, "if": {"properties": {"a": {"const": 1}}, "required": ["a"]}, "then": {"required": ["b"]},
         "else": {"required": ["c"]}},
        [{"a": 1, "b": 2}, {"c": 1}, {"a": 2, "c": 3}],
        [{"a": 1}, {"a": 1, "c": 1}, {"b": 1}],
    ),
    "ifs about one property": (
        {**_OBJECT, "required": ["kind"], "properties": {"kind": {"enum": ["x", "y", "z"]}}, "allOf": [
            {"if": {"properties": {"kind": {"const": "x"}}}, "then": {"required": ["a"]}},
            {"if": {"properties": {"kind": {"enum": ["y", "z"]}}},
             "then": {"required": ["b"]}, "else": {"maxProperties": 2}},
        ]},
        [{"kind": "x", "a": 1}, {"kind": "y", "b": 1}, {"kind": "z", "b": 1, "c": 2}],
        [{"kind": "x"}, {"kind": "y", "a": 1}, {"kind": "x", "a": 1, "b": 1}, {"kind": "q", "b": 1}],
    ),
    "oneOf by exclusion": (
        {**_OBJECT, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, [{"a": 1}, {"b": 1}], [{}, {"a": 1, "b": 1}]
    ),
    "oneOf told apart by a property": (
        {"oneOf": [{**_OBJECT, "properties": {"k": {"const": k}, "v": {"type": t}, "w": {"not": {"type": "null"}}},
                    "required": ["k"]} for k, t in (("s", "string"), ("n", "number"))]},
        [{"k": "s", "v": "a"}, {"k": "n", "v": 1, "w": 2}],
        [{"k": "s", "v": 1}, {"v": 1}, {"k": "n", "v": 1, "w": None}],
    ),
    "dependentRequired": (
        {**_OBJECT, "dependentRequired": {"a": ["b"]}}, [{}, {"b": 1}, {"a": 1, "b": 2}], [{"a": 1}]
    ),
    "dependentSchemas": (
        {**_OBJECT, "dependentSchemas": {"a": {"properties": {"b": {"type": "null"}}}}},
        [{"b": 1}, {"b": None, "a": 1}], [{"b": 1, "a": 1}],
    ),
    "dependencies of draft 7": (
        {"$schema": "http://json-schema.org/draft-07/schema#", **_OBJECT, "dependencies": {"a": ["b"]}},
        [{"b": 1}], [{"a": 1}],
    ),
    "propertyNames by pattern": ({**_OBJECT, "propertyNames": {"pattern": "^a+$"}}, [{}, {"aa": 1}], [{"b": 1}]),
    "propertyNames by length": ({**_OBJECT, "propertyNames": {"maxLength": 2}}, [{"ab": 1}], [{"abc": 1}]),
    "propertyNames by list": ({**_OBJECT, "propertyNames": {"enum": ["a", "b"]}}, [{"a": 1, "b": 2}], [{"c": 1}]),
    "patterns that overlap": (
        {**_OBJECT, "patternProperties": {"a": {"type": "integer"}, "b": {"maximum": 5}}},
        [{"ab": 5}, {"c": "x"}], [{"ab": 6}, {"a": "x"}],
    ),
    "contains": ({"type": "array", "contains": {"const": 5}}, [[5], [5, 1], [2, 5]], [[], [1]]),
    "minContains, maxContains": (
        {"type": "array", "items": {"enum": [1, 2]}, "contains": {"const": 1}, "minContains": 2, "maxContains": 3},
        [[1, 1], [1, 1, 1, 2]], [[1], [1, 1, 1, 1], [2, 2]],
    ),
    "uniqueItems of two": (
        {"type": "array", "items": {"const": 1}, "uniqueItems": True}, [[], [1]], [[1, 1], [2]]
    ),
    "uniqueItems of an enum": (
        {"type": "array", "items": {"enum": ["a", "b", "c", "d", "e"]}, "uniqueItems": True},
        [[], ["c"], ["e", "a"], ["a", "c", "e"]], [["a", "a"], ["e", "c", "e"], ["f"]],
    ),
    "uniqueItems of anything": ({"type": "array", "uniqueItems": True}, [[], ["x"]], [["x", "x"]]),
    "minProperties": (
        {**_OBJECT, "properties": {"a": True, "b": True, "c": True}, "minProperties": 2},
        [{"a": 1, "b": 2}, {"b": 1, "c": 2}], [{"a": 1}, {}],
    ),
    "maxProperties": (
        {**_OBJECT, "properties": {"a": True, "b": True, "c": True}, "maxProperties": 2},
        [{}, {"a": 1, "b": 2}, {"c": 1}], [{"a": 1, "b": 2, "c": 3}],
    ),
    "unevaluatedProperties": (
        {**_OBJECT, "properties": {"a": True}, "anyOf": [{"properties": {"b": True}, "required": ["b"]}, True],
         "unevaluatedProperties": False},
        [{"a": 1}, {"a": 1, "b": 2}], [{"c": 1}, {"a": 1, "c": 1}],
    ),
    "unevaluatedItems": (
        {"type": "array", "prefixItems": [{"const": 1}], "allOf": [{"prefixItems": [True, {"const": 2}]}],
         "unevaluatedItems": False},
        [[], [1], [1, 2]], [[1, 3], [1, 2, 3]],
    ),
    "$dynamicRef": (
        {"$id": "http://x/root", "$ref": "list", "$defs": {
            "it": {"$dynamicAnchor": "items", "type": "string"},
            "list": {"$id": "list", "type": "array", "items": {"$dynamicRef": "#items"},
                     "$defs": {"items": {"$dynamicAnchor": "items"}}}}},
        [["a"]], [[1]],
    ),
    "recursion": (
        {"type": "object", "properties": {"next": {"$ref": "#"}, "v": {"not": {"type": "null"}}},
         "unevaluatedProperties": False},
        [{}, {"next": {"next": {"v": 1}}}], [{"next": {"x": 1}}, {"next": {"v": None}}],
    ),
    "dates of the calendar": (
        {"type": "string", "format": "date"}, ["2020-02-29", "2021-02-28"], ["2021-02-29", "0000-01-01", "1900-02-29"]
    ),
    "an unknown format says nothing": ({"type": "string", "format": "colour"}, ["x"], [1]),
    "counts with a decimal": ({"type": "array", "maxItems": 1.0}, [[1]], [[1, 2]]),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_each_rule(rule: str) -> None:
    schema, may, may_not = RULES[rule]
    for value in may:
        assert validator(schema).is_valid(value) and writable(schema, value), value
    for value in may_not:
        assert not validator(schema).is_valid(value) and not writable(schema, value), value


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**32))
def test_no_value_that_is_invalid_can_be_written(seed: int) -> None:
    """Any schema of any keywords: values, and random walks of the grammar. A schema said to have no value has none."""
    draw = random.Random(seed)
    schema, values = drawn_document(draw), [drawn_value(draw) for _ in range(8)]
    judge = validator(schema)
    try:
        valid = [judge.is_valid(value) for value in values]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # references that lead nowhere or in circles: it raises what it likes, its Rust parts panic
        return
    try:
        constraint = make_constraint(TOKENIZER, schema=schema, max_new_tokens=200)
    except BadInputError as error:
        reason = str(error).split("narrowed: ")[-1]
        assert not (any(valid) and reason.startswith("Unsatisfiable") and "; " not in reason), reason
        return
    try:
        for value, good in zip(values, valid, strict=True):
            assert good or not writable(schema, value), value
        text = random_walk(constraint, draw, 200)
    except JourneyError:  # too costly to follow: an answer ends as an error, never as a wrong one
        return
    assert text is None or judge.is_valid(json.loads(text)), text


@pytest.mark.parametrize(
    ("schema", "notes"),
    [
        ({"type": "array", "contains": {"const": 5}}, ("contains: what matches stands in a row, near the beginning",)),
        ({"type": "array", "uniqueItems": True}, ("uniqueItems: at most one item",)),
        ({"not": {"type": "string"}}, ()),
        ({"type": "integer"}, ()),
    ],
    ids=str,
)
def test_what_is_narrowed_is_told(schema: dict[str, Any], notes: tuple[str, ...]) -> None:
    assert make_constraint(TOKENIZER, schema=schema).notes == notes


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (False, "narrowed: Unsatisfiable schema: no value satisfies it"),
        ({"not": {}}, r'Unimplemented keys: \["not"\]; narrowed: Unsatisfiable'),
        (
            {"not": {"uniqueItems": True}},
            "no value can be shown to satisfy it.*of what breaks uniqueItems a part at most",
        ),
        ({"not": {"pattern": "a+b"}}, "no value can be shown to satisfy it.*of what breaks pattern a part at most"),
        ({"$ref": "other.json#/a", "uniqueItems": True}, r"\$ref 'other.json#/a' leads into another document"),
        ({"$ref": "#/$defs/a", "uniqueItems": True}, r"\$ref '#/\$defs/a' leads nowhere"),
        ({"not": {"$anchor": "a"}, "items": {"$anchor": "a"}}, "two anchors are named 'a'"),
        ({"uniqueItems": True, "allOf": 3}, "allOf must be a list"),
        ({"uniqueItems": True, "required": "a"}, "required must be a list of names"),
        ({"uniqueItems": True, "items": 3}, "a schema must be an object or a boolean, not '3'"),
        (
            {"$recursiveRef": "#", "$schema": "https://json-schema.org/draft/2019-09/schema"},
            "recursiveRef is not followed",
        ),
    ],
)
def test_what_cannot_be_shown_is_refused(schema: Any, message: str) -> None:
    with pytest.raises(BadInputError, match=message) as caught:
        make_constraint(TOKENIZER, schema=schema)
    assert "\n" not in str(caught.value)


def nested(keyword: str, depth: int, width: int = 1) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(depth):
        schema = {keyword: [schema] * width if keyword in ("oneOf", "anyOf", "allOf") else schema}
    return schema


def unevaluated(depth: int) -> Any:
    schema: Any = True
    for n in range(depth):
        ways = [{"properties": {f"{n}{m}": schema}} for m in range(6)]
        schema = {"anyOf": ways, "allOf": [{"anyOf": ways}], "unevaluatedProperties": False}
    return schema


HOSTILE: dict[str, Any] = {
    "not, deep": nested("not", 5000),
    "not, as deep as is taken": nested("not", 58),
    "oneOf, wide": {"oneOf": [{"required": [f"a{n}"]} for n in range(300)]},
    "oneOf, nested": nested("oneOf", 8, 4),
    "ifs": {"allOf": [{"if": {"required": [f"a{n}"]}, "then": {"required": [f"b{n}"]}} for n in range(200)]},
    "unevaluated over anyOf": {
        "allOf": [{"anyOf": [{"properties": {f"{n}{m}": True}} for m in range(9)]} for n in range(40)],
        "unevaluatedProperties": False,
    },
    "doubling references": {
        "$ref": "#/$defs/d0",
        "uniqueItems": True,
        "$defs": {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)}
        | {"d40": {"type": "null"}},
    },
    "a circle in place": {
        "$ref": "#/$defs/a",
        "not": {"type": "null"},
        "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}},
    },
    "a circle that negates": {"$ref": "#/$defs/a", "$defs": {"a": {"not": {"$ref": "#/$defs/a"}}}},
    "counts": {"contains": {"const": 1}, "minContains": 10**9, "minItems": 10**9, "uniqueItems": True},
    "many values": {"type": "array", "uniqueItems": True, "items": {"enum": list(range(20_000))}},
    "minProperties": {"minProperties": 10**9, "properties": {"a": True}},
    "a slow pattern": {"propertyNames": {"pattern": "(a+)+$", "minLength": 1}, "properties": {"a" * 40 + "b": True}},
    "unevaluated, nested": unevaluated(3),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_schemas_are_followed_or_refused_in_bounded_time(name: str) -> None:
    began = time.monotonic()
    try:
        constraint = make_constraint(TOKENIZER, schema=HOSTILE[name], max_new_tokens=30)
        text = random_walk(constraint, random.Random(0), 30)
        assert text is None or validator(HOSTILE[name]).is_valid(json.loads(text))
    except JourneyError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000
    assert time.monotonic() - began < 10


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32))
def test_what_is_no_schema_is_bad_input(seed: int) -> None:
    """Keywords that hold anything at all: an answer that cannot be, or the reason why not."""
    draw = random.Random(seed)
    schema = drawn_document(draw)
    at = schema
    while isinstance(at, dict) and at:
        key = draw.choice(list(at))
        if draw.random() < 0.4 or not isinstance(at[key], dict):
            at[key] = draw.choice([None, 3, -1, 2.5, "x", "$", [], [1], ["a"], [{}], {}, {"a": 1}, {"a": ["b"]}, 1e300])
            break
        at = at[key]
    try:
        make_constraint(TOKENIZER, schema=schema)
    except BadInputError as error:
        assert "\n" not in str(error)


def test_the_result_holds_only_what_a_grammar_expresses() -> None:
    """And a reference of the original never leads out of it."""
    schema = {"$ref": "#a", "$defs": {"x": {"$anchor": "a", "items": {"$ref": "#a"}, "uniqueItems": True}}}
    text = json.dumps(narrow(schema).schema)
    assert "uniqueItems" not in text and "#a" not in text and "#/$defs/d" in text
