"""`journey serve` refuses what is wrong before it opens a model, and says why."""

import json
import logging
import socket

import httpx
import pytest
from small_server import MODEL, running

from command_line import Journey
from llm_journey.serving.logs import JsonLines


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--host", "0.0.0.0"), "give keys by --api-key-file"),
        (("--api-key-file", "none.txt"), "none.txt: cannot be read"),
        (("--set", "tempo=1"), "unknown key 'tempo'; allowed: max_running"),
        (("--set", "max_n=0"), "max_n must be at least 1"),
    ],
)
def test_wrong_options(journey: Journey, arguments: tuple[str, ...], said: str) -> None:
    outcome = journey("serve", "no-such-model", *arguments)
    assert outcome.code == 2 and said in outcome.err and outcome.out == ""
    assert outcome.err.count("\n") == 1


@pytest.mark.enable_socket
@pytest.mark.allow_hosts(["127.0.0.1"])
def test_wrong_models_and_a_taken_port(journey: Journey, shared_home: object) -> None:
    assert "unknown model 'no-such-model'" in journey("serve", "no-such-model", "--port", "0").err
    assert "named twice" in journey("serve", "rivers", "rivers", "--port", "0").err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        outcome = journey("serve", "rivers", "--port", str(taken.getsockname()[1]))
    assert outcome.code == 1 and "choose another by --port" in outcome.err


@pytest.mark.enable_socket
@pytest.mark.allow_hosts(["127.0.0.1"])
@pytest.mark.parametrize("asked", [False, True])
def test_prompts_are_logged_where_that_is_asked_for_alone(caplog: pytest.LogCaptureFixture, asked: bool) -> None:
    body = {"model": MODEL, "prompt": "a private\ntext", "max_tokens": 1}
    with caplog.at_level("INFO"), running() as server:
        server.service.log_prompts = asked
        assert httpx.post(f"{server.url}/v1/completions", json=body).status_code == 200
    (record,) = [record for record in caplog.records if record.message == "request"]
    line = JsonLines().format(record)
    assert "\n" not in line
    assert json.loads(line).get("prompt") == ("a private\ntext" if asked else None)
    assert logging.getLevelName(record.levelno) == "INFO"
