"""Clients that are slow, leave, send nonsense or too much: the server lives, and gives back what they held."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from small_server import MODEL, Running, running

from llm_journey.serving.served import ServedEmbedder

pytestmark = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1"])]


@pytest.fixture(scope="module")
def tight(_sockets: None) -> Iterator[Running]:
    """A server with little room: two answers at a time, two waiting, short patience."""
    limits = {"max_running": 2, "max_queue": 2, "max_body_bytes": 20_000, "read_seconds": 0.6, "request_seconds": 20}
    with running(limits=limits, context=4096) as found:
        yield found


def body(text: str | list[str] = "The river", **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": text, "max_tokens": 4, "temperature": 0, **more}


def endless(**more: Any) -> dict[str, Any]:
    """What takes 256 tokens to answer: the end is never allowed."""
    return body(max_tokens=256, structured_outputs={"regex": "[a-z]{900}"}, **more)


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


def idle(server: Running) -> bool:
    engine = server.model.worker.engine
    return (
        not engine.busy and engine.pool.num_free == engine.pool.num_blocks and server.service.places[MODEL].taken == 0
    )


def answers(server: Running) -> bool:
    answer = httpx.post(f"{server.url}/v1/completions", json=body(), timeout=20)
    return answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] <= 4


def raw(server: Running) -> socket.socket:
    address = httpx.URL(server.url)
    return socket.create_connection((address.host, address.port or 80), timeout=10)


def request_bytes(content: dict[str, Any], host: str = "127.0.0.1") -> bytes:
    data = json.dumps(content).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


@contextmanager
def slow_passes(server: Running, seconds: float) -> Iterator[None]:
    engine = server.model.worker.engine
    plain = engine.step

    def step() -> None:
        time.sleep(seconds)
        plain()

    engine.step = step  # type: ignore[method-assign]
    try:
        yield
    finally:
        engine.step = plain  # type: ignore[method-assign]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_during_prefill_ends_its_answer(tight: Running, stream: bool) -> None:
    """llama.cpp#27604: an aborted stream hung the server. Another answer, on its way meanwhile, is whole."""
    engine = tight.model.worker.engine
    with slow_passes(tight, 0.05), ThreadPoolExecutor(1) as pool, closing(raw(tight)) as connection:
        other = pool.submit(answers, tight)
        connection.sendall(request_bytes(endless(stream=stream, text="river bridge " * 400)))
        until(lambda: any(len(each.ids) > 1000 and each.computed > 0 for each in list(engine.scheduler.running)))
        (left,) = [each for each in engine.scheduler.running if len(each.ids) > 1000]
        connection.close()
        until(lambda: left not in list(engine.scheduler))
        assert left.computed == 0 and len(left.table) == 0
        assert other.result(20)
    until(lambda: idle(tight))
    assert answers(tight)


def test_a_client_that_leaves_in_mid_stream(tight: Running) -> None:
    written = tight.service.metrics.new_tokens.labels(MODEL)._value.get()
    with httpx.stream("POST", f"{tight.url}/v1/completions", json=endless(stream=True)) as response:
        lines = response.iter_lines()
        for _ in range(6):
            next(lines)
    until(lambda: idle(tight))
    assert tight.service.metrics.new_tokens.labels(MODEL)._value.get() - written < 200
    assert answers(tight)


def test_more_than_the_queue_holds_is_told_to_come_again(tight: Running) -> None:
    """Every answer that was taken is whole; the others get 429 with Retry-After."""
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda _: httpx.post(f"{tight.url}/v1/completions", json=endless(), timeout=60), range(8))
        )
    refused = [answer for answer in found if answer.status_code == 429]
    assert 1 <= len(refused) <= 4
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert all(answer.json()["error"]["type"] == "rate_limit_error" for answer in refused)
    whole = [answer.json() for answer in found if answer.status_code == 200]
    assert len(whole) + len(refused) == 8
    assert {answer["usage"]["completion_tokens"] for answer in whole} == {256}
    assert len({answer["choices"][0]["text"] for answer in whole}) == 1  # greedy: nobody got another one's tokens
    too_many = httpx.post(f"{tight.url}/v1/completions", json=body(n=5))
    assert too_many.status_code == 400
    until(lambda: idle(tight))


def test_too_large_and_too_slow_bodies(tight: Running) -> None:
    large = httpx.post(f"{tight.url}/v1/completions", content=b"x" * (10 << 20), timeout=20)
    assert (large.status_code, large.json()["error"]["code"]) == (413, "body_too_large")

    def chunks() -> Iterator[bytes]:
        for _ in range(200):
            yield b"y" * 1000

    assert httpx.post(f"{tight.url}/v1/completions", content=chunks(), timeout=20).status_code == 413
    with closing(raw(tight)) as connection:  # a body that stops
        connection.sendall(request_bytes(body())[:-10])
        assert b" 408 " in connection.recv(4096)
    with closing(raw(tight)) as connection:  # a header that never ends
        connection.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
        assert connection.recv(4096) == b""
    assert answers(tight)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"model": "\xff\xfe"}',
        b'{"model": "small", "prompt": "\\ud800"}',
        b'{"model": "small", "prompt": "x", "temperature": NaN}',
        b'{"model": "small", "prompt": "x", "seed": 1e999}',
        b'{"model": "small", "prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"model": "small", "prompt": [1, "x"]}',
        b'{"model": "small", "prompt": [99999999]}',
        b'{"model": "small", "prompt": "x", "max_tokens": ' + b"9" * 5000 + b"}",
    ],
)
def test_nonsense_is_refused_in_openais_shape(tight: Running, content: bytes) -> None:
    answer = httpx.post(f"{tight.url}/v1/completions", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answers(tight)


@pytest.mark.parametrize("kind", ["application/json", "text/plain"])
def test_a_body_that_is_no_json_object_is_called_so(tight: Running, kind: str) -> None:
    for content in (b"{", b"[]", b"7", b'{"model": "\xff"}'):
        answer = httpx.post(f"{tight.url}/v1/completions", content=content, headers={"content-type": kind})
        assert answer.status_code == 400 and "JSON" in answer.json()["error"]["message"], answer.text


def test_bodies_together_take_no_more_than_their_room(tight: Running) -> None:
    """Twenty connections that each send most of a large body and wait: the last are told to come again."""
    connections = [raw(tight) for _ in range(20)]
    try:
        data = request_bytes(body("x" * 19_000))[:-10]
        for connection in connections:
            connection.sendall(data)
        found = [connection.recv(4096)[:12] for connection in connections]
    finally:
        for connection in connections:
            connection.close()
    assert found.count(b"HTTP/1.1 429") == 4 and found.count(b"HTTP/1.1 408") == 16
    until(lambda: tight.server.config.loaded_app._held_bytes == 0)
    assert answers(tight)


def test_more_prompts_than_are_answered_cost_nothing(tight: Running) -> None:
    """They are refused before any is made ready."""
    shape = {"regex": "[a-z]{500}[0-9]{500}"}
    began = time.monotonic()
    many = httpx.post(f"{tight.url}/v1/completions", json=body(["x"] * 3000, n=100, structured_outputs=shape))
    assert many.status_code == 400 and "300000 answers" in many.text
    assert time.monotonic() - began < 2


def test_bytes_that_are_no_http(tight: Running) -> None:
    for data in (
        b"\x00\xff" * 100,
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ):
        with closing(raw(tight)) as connection:
            connection.sendall(data)
            assert connection.recv(4096)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 403", b"")
    assert answers(tight)


def test_a_reader_that_does_not_read_is_let_go(tight: Running) -> None:
    """Its answer fills the connection's buffers, and then its place is given back."""
    with closing(raw(tight)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.sendall(request_bytes(endless(stream=True, logprobs=20)))
        until(lambda: tight.model.worker.engine.busy)
        until(lambda: idle(tight), 20)
    assert answers(tight)


def test_an_answer_that_takes_too_long_is_ended() -> None:
    with running(limits={"request_seconds": 0.15}, context=4096) as server, slow_passes(server, 0.002):
        whole = httpx.post(f"{server.url}/v1/completions", json=endless())
        assert (whole.status_code, whole.json()["error"]["code"]) == (504, "timeout")
        with httpx.stream("POST", f"{server.url}/v1/completions", json=endless(stream=True)) as response:
            lines = [line for line in response.iter_lines() if line]
        assert response.status_code == 200 and "timeout" in lines[-1] and "[DONE]" not in lines[-1]
        until(lambda: idle(server))


def test_a_pass_that_fails_ends_its_answers_and_not_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as server:
        runner = server.model.worker.engine.runner
        original = type(runner).__call__

        def broken(*_: Any) -> Any:
            monkeypatch.setattr(type(runner), "__call__", original)
            raise RuntimeError("out of memory")

        monkeypatch.setattr(type(runner), "__call__", broken)
        failed = httpx.post(f"{server.url}/v1/completions", json=body())
        assert failed.status_code == 500 and "out of memory" not in failed.text
        assert answers(server)
        until(lambda: idle(server))


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.full)])
def test_many_idle_connections(tight: Running, count: int) -> None:
    connections = [raw(tight) for _ in range(count)]
    try:
        assert answers(tight)
    finally:
        for connection in connections:
            connection.close()


def test_embeddings_that_nobody_waits_for_are_not_made() -> None:
    """500 texts in slices: a client that leaves ends them after the slice under way, and so does the server's end."""
    slices: list[int] = []

    def embed(texts: Sequence[str]) -> np.ndarray:
        slices.append(len(texts))
        time.sleep(0.1)
        return np.array([[float(text)] * 4 for text in texts], np.float32)

    embedder = ServedEmbedder("vectors", embed, lambda texts: [1] * len(texts), 4, 16)
    asked = {"model": "vectors", "input": [str(number) for number in range(500)]}
    with running(embedder=embedder, limits={"drain_seconds": 0.2}) as server:
        whole = httpx.post(f"{server.url}/v1/embeddings", json=asked, timeout=20).json()
        assert [item["embedding"] for item in whole["data"]] == [[number] * 4 for number in range(500)]
        slices.clear()
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/embeddings", json=asked, timeout=0.3)
        until(lambda: server.service.places["vectors"].taken == 0)
        time.sleep(0.3)
        assert 1 <= len(slices) < 10
        with ThreadPoolExecutor(1) as pool:
            late = pool.submit(httpx.post, f"{server.url}/v1/embeddings", json=asked, timeout=20)
            until(lambda: server.service.places["vectors"].taken == 1)
            server.server._loop.call_soon_threadsafe(server.server.handle_exit, signal.SIGTERM, None)
            assert late.result().status_code == 503


def test_while_it_drains_nothing_new_is_taken_and_what_runs_is_told() -> None:
    with running(limits={"drain_seconds": 0.3}, context=4096) as server:
        seen: list[Any] = []

        def ask() -> None:
            seen.append(httpx.post(f"{server.url}/v1/completions", json=endless(), timeout=30))

        thread = threading.Thread(target=ask)
        with httpx.Client(base_url=server.url) as client, slow_passes(server, 0.05):
            assert client.get("/readyz").status_code == 200
            thread.start()
            until(lambda: server.model.worker.engine.busy)
            server.server._loop.call_soon_threadsafe(server.server.handle_exit, signal.SIGTERM, None)
            until(lambda: server.service.draining)
            thread.join(10)
        assert seen[0].status_code == 503 and seen[0].json()["error"]["code"] == "draining"


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.full)])
def test_the_command_ends_within_five_seconds(shared_home: Path, number: signal.Signals) -> None:
    """`journey serve` on a trained run, told to end in the middle of answers and a prefill."""
    command = [sys.executable, "-m", "llm_journey", "serve", "rivers", "--port", "0", "--set", "drain_seconds=1"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        asked = {"model": "rivers", "prompt": "The river", "max_tokens": 4}
        assert httpx.post(f"{url}/completions", json=asked, timeout=20).status_code == 200
        message = {"role": "user", "content": "x"}
        unstarted = httpx.post(f"{url}/chat/completions", json={"model": "rivers", "messages": [message]})
        assert unstarted.status_code in {200, 400}
        began = time.monotonic()
        process.send_signal(number)
        _, err = process.communicate(timeout=10)
    finally:
        process.kill()
    assert time.monotonic() - began < 5
    assert process.returncode == (0 if number == signal.SIGTERM else 130), err
    logged = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    assert [line["event"] for line in logged][:2] == ["request", "request"]
    assert "The river" not in err
