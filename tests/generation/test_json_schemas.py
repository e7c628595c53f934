"""A thousand JSON schemas: whatever a model writes is valid, it comes to its end, and what is refused is named.

A published suite (JSON-Schema-Test-Suite, draft 2020-12, which the source archive of `jsonschema` carries), schemas
that people use (SchemaStore's and others, from wheels that carry them: whole, and every seventh definition on its own),
and made ones up to a thousand, of the keywords that tool calls and forms use. The model writes noise: nothing but the
constraint makes its answers valid.
"""

import json
import random
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from engines import run
from schema_samples import official_suite, package_schemas, random_walk, validator, writable
from test_constrained import END, TOKENIZER, random_engine

from llm_journey.core.errors import BadInputError
from llm_journey.generation.constrained import make_constraint
from llm_journey.generation.sampling import SamplingConfig

TOKENS = 512
_WORDS = ("name", "age", "tags", "é", "a b", "x-1", 'quo"te', "items", "unit", "on", "")


def made_schema(draw: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema that some value satisfies."""
    kinds = ["string", "string", "integer", "number", "boolean", "null", "enum", "const"]
    if depth < 3:
        kinds += ["object"] * 5 + ["array"] * 3 + ["anyOf", "nullable"] if depth else ["object"] * 9 + ["array"] * 3
    kind = draw.choice(kinds)
    match kind:
        case "string":
            return {"type": "string", **draw.choice(_STRINGS)}
        case "integer" | "number":
            low = draw.randint(-50, 50)
            bounds = [{}, {"minimum": low}, {"maximum": low}, {"minimum": low, "maximum": low + draw.randint(0, 900)}]
            return {"type": kind, **draw.choice(bounds), **draw.choice([{}, {}, {"multipleOf": 5}])}
        case "enum":
            return {"enum": draw.sample([1, "one", None, True, 2.5, "two\n", [1, 2], {"a": "é"}], draw.randint(1, 4))}
        case "const":
            return {"const": draw.choice(["fixed", 7, False, {"k": [1]}])}
        case "object":
            names = draw.sample(_WORDS, draw.randint(0, 5))
            needed = [name for name in names if draw.random() < 0.6]
            more = draw.choice([{}, {"additionalProperties": False}, {"additionalProperties": {"type": "integer"}}])
            fields = {name: made_schema(draw, depth + 1) for name in names}
            return {"type": "object", "properties": fields, "required": needed, **more}
        case "array":
            low = draw.randint(0, 3)
            bounds = draw.choice([{}, {"minItems": low}, {"minItems": low, "maxItems": low + draw.randint(0, 3)}])
            return {"type": "array", "items": made_schema(draw, depth + 1), **bounds}
        case "anyOf":
            return {"anyOf": [made_schema(draw, depth + 1) for _ in range(2)]}
        case "nullable":
            return {"type": ["string", "null"]}
        case _:
            return {"type": kind}


_STRINGS: list[dict[str, Any]] = [
    *({}, {}, {"maxLength": 12}, {"minLength": 2, "maxLength": 5}, {"minLength": 3}),
    *(
        {"pattern": "^[a-z]+[0-9]{2}$"},
        {"pattern": "ab+c"},
        {"format": "date"},
        {"format": "email"},
        {"format": "uuid"},
    ),
]


def judged(schemas: Sequence[Any]) -> tuple[Counter[str], list[tuple[Any, str]]]:
    """How the answers end, and (schema, reason) of what was refused. Asserts that an answer that stopped is valid."""
    an_engine, found, refused = random_engine(), [], []
    for number, schema in enumerate(schemas):
        try:
            constraint = make_constraint(TOKENIZER, schema=schema, max_new_tokens=TOKENS)
        except BadInputError as error:
            refused.append((schema, str(error)))
            continue
        config = SamplingConfig(temperature=1, seed=number, max_new_tokens=TOKENS)
        found.append((schema, an_engine.submit([1, 2, 3], config, stop_ids={END}, constraint=constraint)))
    run(an_engine, limit=TOKENS * len(schemas))
    for schema, request in found:
        if request.finish_reason == "stop":
            text = TOKENIZER.decode(token.id for token in request.tokens)
            check_valid(schema, json.loads(text))
    return Counter(str(request.finish_reason) for _, request in found), refused


def check_valid(schema: Any, answer: Any) -> None:
    """As `jsonschema` has it, but for multiples, which it finds by dividing floats: 19.99 is a multiple of 0.01."""
    for error in validator(schema).iter_errors(answer):
        exact = (
            Decimal(str(error.instance)) % Decimal(str(error.validator_value)) if error.validator == "multipleOf" else 1
        )
        assert exact == 0, f"{answer!r} breaks {json.dumps(schema)[:400]}: {error.message}"


def check(schemas: Sequence[Any]) -> None:
    ends, refused = judged(schemas)
    print(f"{len(schemas)} schemas: {dict(ends)}, {len(refused)} refused:")
    for schema, reason in refused:
        print(f"  {reason} <- {json.dumps(schema)[:160]}")
    assert set(ends) <= {"stop", "length"}
    assert ends["length"] <= 0.02 * len(schemas)
    assert len(refused) <= 0.05 * len(schemas)


def test_thirty_schemas() -> None:
    check([made_schema(random.Random(seed)) for seed in range(30)])


@pytest.mark.full
def test_a_thousand_made_schemas() -> None:
    check([made_schema(random.Random(seed)) for seed in range(1000)])


@pytest.mark.full
@pytest.mark.network
def test_a_thousand_schemas(tmp_path: Path) -> None:
    """The contract: published, used and made ones together."""
    published = [group["schema"] for group in official_suite(tmp_path)]
    whole, parts = package_schemas(tmp_path)
    used = [*whole, *parts[::7]]
    made = [made_schema(random.Random(seed)) for seed in range(1000 - len(published) - len(used))]
    print(f"{len(published)} published, {len(whole)} used, {len(parts[::7])} definitions of them, {len(made)} made")
    assert len(published) > 300 and len(used) > 150 and len(made) > 300
    check([*published, *used, *made])


@pytest.mark.full
@pytest.mark.network
def test_the_official_suite(tmp_path: Path) -> None:
    """Alone: at most 15% are refused, not counting schemas that no value satisfies."""
    schemas = [group["schema"] for group in official_suite(tmp_path)]
    ends, refused = judged(schemas)
    unsatisfiable = [schema for schema, reason in refused if reason.split("narrowed: ")[-1].startswith("Unsatisfiable")]
    print(f"{len(schemas)}: {dict(ends)}, {len(refused)} refused, {len(unsatisfiable)} of them unsatisfiable")
    assert len(refused) - len(unsatisfiable) <= 0.15 * len(schemas) and set(ends) == {"stop"}
    assert all(reason.startswith("schema cannot be followed: ") for _, reason in refused)


@pytest.mark.full
@pytest.mark.network
def test_no_invalid_value_of_the_official_suite_can_be_written(tmp_path: Path) -> None:
    """And of its valid ones, most: what narrowing leaves out is counted."""
    found: Counter[tuple[bool, bool]] = Counter()
    for group in official_suite(tmp_path):
        for each in group["tests"]:
            try:
                found[each["valid"], writable(group["schema"], each["data"])] += 1
            except BadInputError:
                continue
    print({f"valid: {valid}, writable: {can}": count for (valid, can), count in found.items()})
    assert found[False, True] == 0 and found[False, False] > 400
    assert found[True, True] > 0.85 * (found[True, True] + found[True, False])


@pytest.mark.full
@pytest.mark.network
def test_schemas_in_use(tmp_path: Path) -> None:
    """All documents and definitions of the packages, by random walks of the constraint alone."""
    whole, parts = package_schemas(tmp_path)
    for name, schemas in (("documents", whole), ("definitions", parts)):
        ends: Counter[str] = Counter()
        for seed, schema in enumerate(schemas):
            try:
                constraint = make_constraint(TOKENIZER, schema=schema, max_new_tokens=TOKENS)
            except BadInputError:
                ends["refused"] += 1
                continue
            text = random_walk(constraint, random.Random(seed), TOKENS)
            ends["length" if text is None else "stop"] += 1
            if text is not None:
                check_valid(schema, json.loads(text))
        print(f"{len(schemas)} {name}: {dict(ends)}")
        assert ends["refused"] <= (0.2 if schemas is whole else 0.03) * len(schemas)
        assert ends["length"] <= (0.1 if schemas is whole else 0.02) * len(schemas)
