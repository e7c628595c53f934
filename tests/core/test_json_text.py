"""JSON from outside: keys that stand twice, and what JSON does not have."""

import json

import pytest

from llm_journey.core.json_text import parse_json


def test_what_json_holds() -> None:
    value = {"a": [1, {"a": None, "b": {}}], "b": "ü", "": 1e30}
    assert parse_json(json.dumps(value)) == parse_json(json.dumps(value).encode("utf-16")) == value


@pytest.mark.parametrize(
    ("text", "key"),
    [('{"a": 1, "b": 2, "a": 1}', "a"), ('[{"x": {"c": 1, "c": 2}}]', "c"), ('{"\\u0061":1,"a":1}', "a")],
)
def test_a_key_that_stands_twice(text: str, key: str) -> None:
    with pytest.raises(ValueError, match=f"^key '{key}' stands twice$"):
        parse_json(text)


def test_numbers_that_are_none() -> None:
    assert parse_json('{"a": Infinity}') == {"a": float("inf")}
    with pytest.raises(ValueError, match="Infinity is no JSON number"):
        parse_json('{"a": Infinity}', numbers_only=True)
