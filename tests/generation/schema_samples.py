"""JSON schemas to try constraints on: drawn ones with every keyword, the official suite's, and those of packages."""

import json
import random
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jsonschema
import pytest
from test_constrained import END, TOKENIZER

from llm_journey.generation.constrained import GrammarConstraint, make_constraint

NAMES = ("a", "b", "c", "foo", "bar")
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -3, 2.5, 7, 6, 14, "a", "foo", "bar", "x y", "", "x-1", "b", "aaaa", "foo\n", "é\n"),
    *([], [1], {}, {"a": 1}, "2020-01-31", "2021-02-29", "/a"),
)
_TYPES = ("string", "integer", "null", "boolean", "number", "array", "object")
_KEYWORDS = (
    *("type", "type", "enum", "const", "bounds", "length", "pattern", "format", "items", "prefixItems", "contains"),
    *("uniqueItems", "properties", "patternProperties", "additionalProperties", "required", "count", "propertyNames"),
    *("dependentRequired", "dependentSchemas", "allOf", "anyOf", "oneOf", "not", "if", "unevaluatedProperties"),
    *("unevaluatedItems", "$ref", "size"),
)


def drawn_document(draw: random.Random) -> Any:
    """A schema with two definitions, which may refer to each other and to themselves."""
    schema = drawn_schema(draw)
    if isinstance(schema, dict):
        anchored = drawn_schema(draw, 1)
        schema["$defs"] = {"p": drawn_schema(draw, 2), "q": anchored}
        if isinstance(anchored, dict):
            anchored["$anchor"] = "q"
    return schema


def drawn_schema(draw: random.Random, depth: int = 0) -> Any:
    """A schema of any keywords, satisfiable or not."""
    if depth > 3 or draw.random() < 0.12:
        return draw.choice([True, {}, False, {"type": draw.choice(_TYPES)}, {"const": draw.choice(VALUES)}])
    schema: dict[str, Any] = {}
    for keyword in draw.sample(_KEYWORDS, draw.randint(1, 5)):
        schema |= _drawn_keyword(draw, keyword, depth + 1)
    return schema


def _drawn_keyword(draw: random.Random, keyword: str, depth: int) -> dict[str, Any]:
    def below(count: int = 1) -> list[Any]:
        return [drawn_schema(draw, depth) for _ in range(count)]

    name = draw.choice(NAMES)
    match keyword:
        case "type":
            return {"type": draw.choice([*_TYPES, "object", "array", ["string", "null"], ["object", "array"]])}
        case "enum":
            return {"enum": draw.sample(VALUES, draw.randint(1, 5))}
        case "const":
            return {"const": draw.choice(VALUES)}
        case "bounds":
            bound = draw.choice(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"])
            return {bound: draw.randint(-5, 9)} | draw.choice([{}, {"multipleOf": draw.choice([2, 3, 7])}])
        case "length":
            return {draw.choice(["minLength", "maxLength"]): draw.randint(0, 4)}
        case "pattern":
            return {"pattern": draw.choice(["^a", "^(foo|bar)$", "b+", "^[a-c]*$", "^x-"])}
        case "format":
            formats = (
                "date",
                "uuid",
                "ipv4",
                "regex",
                "json-pointer",
                "time",
                "date-time",
                "strange",
                "idn-email",
                "uri",
            )
            return {"format": draw.choice(formats)}
        case "prefixItems" | "allOf" | "anyOf" | "oneOf":
            return {keyword: below(draw.randint(1, 3))}
        case "contains":
            counts = [{}, {"minContains": draw.randint(0, 3)}, {"maxContains": draw.randint(0, 3)}]
            return {keyword: below()[0]} | draw.choice([*counts, {"minContains": 1, "maxContains": 2}])
        case "uniqueItems":
            items = [{"enum": ["a", "b", "c", "d", 1, True]}, {"type": "boolean"}, {"enum": ["a", "b"]}]
            more: list[dict[str, Any]] = [{}, {"minItems": 2}, *({"items": each} for each in items)]
            return {keyword: draw.choice([True, True, False])} | draw.choice(more)
        case "properties":
            return {keyword: {each: below()[0] for each in draw.sample(NAMES, draw.randint(1, 3))}}
        case "patternProperties":
            patterns = draw.sample(["^a", "o", "^(foo|bar)$", "^x-"], draw.randint(1, 2))
            return {keyword: {pattern: below()[0] for pattern in patterns}}
        case "required":
            return {keyword: draw.sample(NAMES, draw.randint(1, 2))}
        case "count":
            return {draw.choice(["minProperties", "maxProperties"]): draw.randint(0, 4)}
        case "size":
            return {draw.choice(["minItems", "maxItems"]): draw.randint(0, 3)}
        case "propertyNames":
            rules = [{"pattern": "^[a-c]"}, {"maxLength": 2}, {"enum": ["a", "foo"]}, {"minLength": 1, "pattern": "o"}]
            return {keyword: draw.choice([*rules, *below()])}
        case "dependentRequired":
            return {keyword: {name: draw.sample(NAMES, 1)}}
        case "dependentSchemas":
            return {keyword: {name: below()[0]}}
        case "if":
            branches = {key: below()[0] for key in ("then", "else") if draw.random() < 0.7}
            condition = {"properties": {name: {"const": draw.choice(VALUES)}}}
            return {"if": draw.choice([condition, *below()])} | branches
        case "unevaluatedProperties" | "unevaluatedItems":
            return {keyword: draw.choice([False, False, *below()])}
        case "$ref":
            return {keyword: draw.choice(["#/$defs/p", "#/$defs/q", "#q"])}
    return {keyword: below()[0]}


def drawn_value(draw: random.Random, depth: int = 0) -> Any:
    """A value of the kind that drawn schemas speak of."""
    kind = draw.random()
    if depth < 2 and kind < 0.3:
        return [drawn_value(draw, depth + 1) for _ in range(draw.randint(0, 3))]
    if depth < 2 and kind < 0.65:
        return {name: drawn_value(draw, depth + 1) for name in sorted(draw.sample(NAMES, draw.randint(0, 4)))}
    return draw.choice(VALUES)


def writable(schema: Any, value: Any) -> bool:
    """Whether an answer may be this value, written without spaces and with its properties in this order."""
    return writable_text(schema, json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def writable_text(schema: Any, text: str) -> bool:
    """Whether an answer may be this very text."""
    constraint = make_constraint(TOKENIZER, schema=schema)
    for token in TOKENIZER.encode(text):
        if not constraint.allowed()[token]:
            return False
        constraint.accept(token)
    return constraint.done or bool(constraint.allowed()[END])


def random_walk(constraint: GrammarConstraint, draw: random.Random, tokens: int) -> str | None:
    """An answer of random permitted tokens; None where it did not come to its end."""
    written: list[int] = []
    for _ in range(tokens):
        allowed = constraint.allowed().nonzero().flatten().tolist()
        token = END if END in allowed and draw.random() < 0.3 else draw.choice(allowed)
        if token != END:
            constraint.accept(token)
            written.append(token)
        if token == END or constraint.done:
            return TOKENIZER.decode(written)
    return None


def validator(schema: Any) -> Any:
    """The reference library's, of the schema's own draft, formats included."""
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    return kind(schema, format_checker=kind.FORMAT_CHECKER)


def official_suite(folder: Path) -> list[dict[str, Any]]:
    """The groups (schema, tests) of draft 2020-12 from jsonschema's source archive."""
    name = f"jsonschema=={metadata.version('jsonschema')}"
    found: list[dict[str, Any]] = []
    with tarfile.open(_fetched(folder, name, "--no-binary")) as archive:
        for member in archive.getmembers():
            data = archive.extractfile(member)
            if "/json/tests/draft2020-12/" in member.name and member.name.count("/") == 4 and data is not None:
                found += json.loads(data.read())
    return found


def package_schemas(folder: Path) -> tuple[list[Any], list[Any]]:
    """Schemas that people use, of wheels that carry them: whole documents, and their definitions each on its own.

    check-jsonschema and validate-pyproject-schema-store carry SchemaStore's, nbformat those of notebooks.
    """
    whole, parts = [], []
    for name in ("check-jsonschema==0.39.0", "validate-pyproject-schema-store==2026.10.23", "nbformat==5.11.1"):
        with zipfile.ZipFile(_fetched(folder, name, "--only-binary")) as archive:
            for member in sorted(archive.namelist()):
                schema = json.loads(archive.read(member)) if member.endswith(".json") else None
                if isinstance(schema, dict) and schema.keys() & {"properties", "$ref", "definitions", "anyOf", "oneOf"}:
                    whole.append(schema)
                    parts += _definitions(schema)
    return whole, parts


_DEFINITIONS = ("#/definitions/", "#/$defs/")


def _definitions(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each with what it refers to, and no more of its document; none that refers to the document as a whole."""
    kept = {key: document[key] for key in ("$schema", "$id") if key in document}
    for keyword in ("definitions", "$defs"):
        for name, definition in document.get(keyword, {}).items():
            if not isinstance(definition, dict | bool):
                continue  # SchemaStore has a text there once
            root = f"#/{keyword}/{name.replace('~', '~0').replace('/', '~1')}"
            needed: dict[str, dict[str, Any]] = {}
            waiting = [root]
            while waiting:
                _, place, *path = waiting.pop().split("/")
                found = path[0].replace("~1", "/").replace("~0", "~")
                if found not in needed.get(place, {}):
                    needed.setdefault(place, {})[found] = document[place][found]
                    waiting += [each for each in _references(document[place][found]) if each.startswith(_DEFINITIONS)]
            if all(each.startswith(_DEFINITIONS) for place in needed.values() for each in _references(place)):
                yield {**kept, "$ref": root, **needed}


def _references(schema: Any) -> Iterator[str]:
    """The references within a document that stand in a schema."""
    if isinstance(schema, dict):
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference.startswith("#"):
            yield unquote(reference)
        yield from (each for value in schema.values() for each in _references(value))
    elif isinstance(schema, list):
        yield from (each for value in schema for each in _references(value))


def _fetched(folder: Path, requirement: str, form: str) -> Path:
    """A package's archive, as pip brings it. Skips the test where there is none to be had."""
    target = folder / requirement.split("==")[0]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", form, ":all:", requirement]
    done = subprocess.run([*command, "-d", str(target)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"{requirement} cannot be fetched here: {done.stderr.strip().splitlines()[-1]}")
    return next(target.iterdir())
