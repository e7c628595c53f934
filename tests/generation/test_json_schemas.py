"""A thousand JSON schemas: whatever a model writes is valid, it comes to its end, and what is refused is named.

The schemas are made by construction, of the keywords that tool calls and forms use; beside them stands the official
JSON-Schema-Test-Suite (draft 2020-12), which the source archive of `jsonschema` carries. That suite is about the
corners of the language; more than half of its schemas use keywords that no grammar holds, and are refused with the
reason. The model writes noise: nothing but the constraint makes its answers valid.
"""

import json
import random
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from engines import run
from test_constrained import END, TOKENIZER, random_engine

from llm_journey.core.errors import BadInputError
from llm_journey.generation.constrained import make_constraint
from llm_journey.generation.sampling import SamplingConfig

TOKENS = 512
_WORDS = ("name", "age", "tags", "é", "a b", "x-1", 'quo"te', "items", "unit", "on", "")
_VALIDATOR = jsonschema.Draft202012Validator


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
            _VALIDATOR(schema, format_checker=_VALIDATOR.FORMAT_CHECKER).validate(json.loads(text))
    return Counter(str(request.finish_reason) for _, request in found), refused


def check(schemas: Sequence[Any]) -> None:
    ends, refused = judged(schemas)
    print(f"{len(schemas)} schemas: {dict(ends)}, {len(refused)} refused: {refused}")
    assert set(ends) <= {"stop", "length"}
    assert ends["length"] <= 0.02 * len(schemas)
    assert len(refused) <= 0.05 * len(schemas)


def test_thirty_schemas() -> None:
    check([made_schema(random.Random(seed)) for seed in range(30)])


@pytest.mark.full
def test_a_thousand_schemas() -> None:
    check([made_schema(random.Random(seed)) for seed in range(1000)])


@pytest.mark.full
@pytest.mark.network
def test_the_official_suite(tmp_path: Path) -> None:
    """What stops is valid, all that begins stops, and a refusal has its reason."""
    schemas = official_suite(tmp_path)
    ends, refused = judged(schemas)
    print(f"{len(schemas)} schemas: {dict(ends)}, {len(refused)} refused: {Counter(reason for _, reason in refused)}")
    assert len(schemas) > 300 and set(ends) == {"stop"} and ends["stop"] > 150
    assert all(reason.startswith("schema cannot be followed: ") and reason[27:] for _, reason in refused)


def official_suite(folder: Path) -> list[Any]:
    """The schemas of draft 2020-12 from jsonschema's source archive."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    done = subprocess.run(
        [*command, f"jsonschema=={metadata.version('jsonschema')}", "-d", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"the suite cannot be fetched here: {done.stderr.strip().splitlines()[-1]}")
    found = []
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        for member in archive.getmembers():
            data = archive.extractfile(member)
            if "/json/tests/draft2020-12/" in member.name and member.name.count("/") == 4 and data is not None:
                found += [group["schema"] for group in json.loads(data.read())]
    return found
