"""schemathesis over the OpenAPI document: valid and invalid requests. No 5xx, no answer outside its schema.

20 examples an operation by default, 500 in the full run; after them, the next request succeeds.
"""

from collections import Counter
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from schemathesis import checks
from small_server import MODEL, Running

pytestmark = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1"])]

# What is claimed. That valid input is always taken is not: a schema cannot say that a prompt is too long.
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
]


def tidied(case: schemathesis.Case) -> schemathesis.Case:
    """A valid request whose keys go together too, which a schema cannot say; most of these are answered."""
    body: dict[str, Any] = case.body if isinstance(case.body, dict) else {}
    if body.get("max_tokens") is not None:
        body.pop("max_completion_tokens", None)
    if not body.get("stream"):
        body.pop("stream_options", None)
    if not body.get("logprobs"):
        body.pop("top_logprobs", None)
    if body.get("tools") or (body.get("response_format") or {}).get("type", "text") != "text":
        body.pop("structured_outputs", None)
    if body.get("tools"):
        body.pop("response_format", None)
    body.pop("tool_choice", None)
    shape = body.get("structured_outputs")
    if isinstance(shape, dict):
        body["structured_outputs"] = {"choice": shape.get("choice") or ["yes"]}
    for key, most in (("n", 3), ("max_tokens", 8), ("max_completion_tokens", 8)):
        if isinstance(body.get(key), int):
            body[key] = min(body[key], most)
    if isinstance(body.get("messages"), list):
        body["messages"] = [
            {"role": each["role"], "content": each.get("content") or "Hi"} for each in body["messages"][:4]
        ]
    body.pop("dimensions", None)
    return case


@pytest.mark.parametrize("examples", [20, pytest.param(500, marks=pytest.mark.full)])
def test_every_operation(server: Running, examples: int) -> None:
    document = httpx.get(f"{server.url}/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=server.url)
    seen: Counter[tuple[str, int]] = Counter()
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == 8
    for operation in operations:
        strategies = [operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode]
        strategies.append(operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE).map(tidied))

        @hypothesis.settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=hypothesis.strategies.one_of(*strategies))
        def check(case: schemathesis.Case) -> None:
            response = case.call(timeout=30)
            seen[case.operation.path, response.status_code] += 1
            case.validate_response(response, checks=CHECKS)

        check()
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
        assert seen[path, 200] > 0 and seen[path, 400] > 0, seen
    after = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
    assert httpx.post(f"{server.url}/v1/chat/completions", json=after).status_code == 200
