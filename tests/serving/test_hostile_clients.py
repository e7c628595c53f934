"""`journey serve` as it is run, among clients that are slow, idle, leave, or send too much.

Each test leaves its connections open to the end: the next request was answered, the process has grown by no more than
a stated number of bytes at any moment, and SIGTERM ends it within five seconds (serve_process.served).
"""

import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import httpx
import pytest
from serve_process import (
    asked,
    closed,
    endless,
    many_files,
    request_bytes,
    save_small_model,
    served,
    still_open,
)

pytestmark = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1"])]
MB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("models"))


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


def reset(connection: socket.socket) -> None:
    """Drop a connection as a client that has died does: by a reset, with nothing said."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_a_thousand_idle_connections(folder: Path) -> None:
    """500 that never say anything, 500 kept alive after an answer; 64 kB each are allowed."""
    with many_files(2048), served(folder) as server, ExitStack() as stack:
        connections = [stack.enter_context(closing(server.connect())) for _ in range(1000)]
        for connection in connections[500:]:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        for connection in connections[500:]:
            assert read_response(connection) == b'{"status":"ok"}'
        assert server.answers()
        assert sum(map(still_open, connections)) == 1000
        assert server.most_growth < 1000 * (64 << 10)


@pytest.mark.full
def test_idle_connections_are_closed_in_time(folder: Path) -> None:
    """Without a first header after read_seconds; kept alive after an answer, after 30 seconds."""
    with served(folder, "read_seconds=1") as server, closing(server.connect()) as new, closing(server.connect()) as old:
        old.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert read_response(old) == b'{"status":"ok"}'
        assert closed(new, 2.5)
        assert still_open(old)
        assert closed(old, 32)
        assert server.answers()


@pytest.mark.parametrize("answered_before", [False, True])
def test_headers_a_byte_at_a_time(folder: Path, answered_before: bool) -> None:
    """Slowloris: each connection sends something now and then, and never all; also behind a first, whole request."""
    with served(folder, "read_seconds=1.5") as server, ExitStack() as stack:
        connections = [stack.enter_context(closing(server.connect())) for _ in range(100)]
        if answered_before:
            for connection in connections:
                connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                assert read_response(connection) == b'{"status":"ok"}'
        began = time.monotonic()
        open_ones = list(connections)
        header = iter(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"y" * 1000)
        while open_ones:
            assert time.monotonic() - began < 6, f"{len(open_ones)} are still open"
            byte = bytes([next(header)])
            for connection in list(open_ones):
                try:
                    connection.sendall(byte)
                except OSError:
                    open_ones.remove(connection)
            time.sleep(0.1)
        assert server.answers()
        assert server.most_growth < 16 * MB


def test_bodies_a_byte_at_a_time(folder: Path) -> None:
    """408 once the time for a body is over, however steadily it trickles in."""
    with served(folder, "read_seconds=1.5") as server, ExitStack() as stack:
        connections = [stack.enter_context(closing(server.connect())) for _ in range(50)]
        data = request_bytes(asked())
        for connection in connections:
            connection.sendall(data[:-40])
        for byte in data[-40:-10]:
            for connection in connections:
                connection.sendall(bytes([byte]))
            time.sleep(0.03)
        assert {connection.recv(4096)[:12] for connection in connections} == {b"HTTP/1.1 408"}
        assert server.answers()
        assert server.most_growth < 16 * MB


def test_readers_of_a_byte_a_second(folder: Path) -> None:
    """Long streams into connections whose clients hardly read: the server stops writing, holds little, lets them go,
    and answers others meanwhile."""
    limits = ("read_seconds=3", "max_running=12")
    with served(folder, *limits) as server, ExitStack() as stack:
        connections = [stack.enter_context(closing(server.connect(receive_buffer=2048))) for _ in range(10)]
        for number, connection in enumerate(connections):
            connection.sendall(request_bytes(endless(max_tokens=4000, stream=True, logprobs=20, seed=number)))
        until(lambda: server.gauge("running") == 10)
        for _ in range(3):
            assert all(connection.recv(1) for connection in connections)
            assert server.answers()
            time.sleep(1)
        until(server.idle, 60)
        assert server.answers()
        # Of each answer the unsent part is at most asyncio's 64 kB; the rest is the tokens that were ready.
        assert server.most_growth < 48 * MB


def test_whole_answers_that_nobody_reads(folder: Path) -> None:
    """Two answers of some nine megabytes each, unstreamed: what the client does not take in time is dropped."""
    with served(folder, "read_seconds=2", "max_running=8") as server, ExitStack() as stack:
        files = server.num_files
        connections = [stack.enter_context(closing(server.connect(receive_buffer=2048))) for _ in range(2)]
        body = endless(max_tokens=800, structured_outputs={"regex": "[a-z]{1000}"}, logprobs=True, top_logprobs=20, n=8)
        message = {"role": "user", "content": body.pop("prompt")}
        data = request_bytes(body | {"messages": [message]}, "/v1/chat/completions")
        for connection in connections:
            connection.sendall(data)
        until(lambda: server.gauge("running") == 8)
        until(server.idle, 120)
        assert server.answers()
        until(lambda: server.num_files <= files, 10)
        # Each is there as objects, as JSON and as what is unsent: 100 MB an answer were seen.
        assert server.most_growth < 2 * 120 * MB


@pytest.mark.parametrize("leave", [socket.socket.close, reset])
def test_connections_dropped_in_the_middle_of_a_stream(folder: Path, leave: Callable[[socket.socket], None]) -> None:
    """60 of them, each after its first events: places and blocks come back, a stream beside them is whole."""
    with served(folder, "max_running=8") as server, closing(server.connect(timeout=60)) as other:
        body = endless(max_tokens=300, stream=True)
        alone = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).text
        other.sendall(request_bytes(body | {"stream": False}))
        for number in range(60):
            connection = server.connect()
            connection.sendall(request_bytes(endless(stream=True, seed=number, temperature=1.0)))
            seen = b""
            while seen.count(b"data: ") < 1 + number % 5:
                seen += connection.recv(4096)
            leave(connection)
        whole = json.loads(read_response(other))["choices"][0]["text"]
        assert whole == "".join(texts(alone)) and len(whole) >= 300
        until(server.idle)
        assert server.answers()
        assert server.most_growth < 32 * MB


def texts(stream: str) -> Iterator[str]:
    """The pieces of a streamed completion."""
    assert stream.endswith("data: [DONE]\n\n")
    for line in stream.split("\n"):
        if line.startswith("data: {"):
            yield json.loads(line[6:])["choices"][0]["text"]


def read_response(connection: socket.socket) -> bytes:
    """The body of a response with a length."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(1 << 16)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(int(line.split()[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
    while len(body) < length:
        body += connection.recv(1 << 16)
    return body


def test_aborts_during_prefill(folder: Path) -> None:
    """Long prompts whose clients leave at once, or after a moment: nothing of them is left."""
    with served(folder, "max_running=4") as server:
        for number in range(40):
            prompt = f"{number} " + "the old stone bridge " * 180
            connection = server.connect()
            connection.sendall(request_bytes(endless(prompt=prompt, stream=number % 2 == 0)))
            time.sleep(0.004 * (number % 10))
            (socket.socket.close if number % 3 else reset)(connection)
        until(server.idle)
        assert server.answers()
        assert server.most_growth < 32 * MB


def test_bodies_of_ten_megabytes(folder: Path) -> None:
    """Refused from the header alone; without a length, at the limit; and never held."""
    with served(folder) as server, ExitStack() as stack:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        for more in (b"Content-Length: 10485760\r\n\r\n", b"Content-Length: 10485760\r\nExpect: 100-continue\r\n\r\n"):
            connection = stack.enter_context(closing(server.connect()))
            connection.sendall(head + more)  # and not a byte of the body
            assert connection.recv(4096).startswith(b"HTTP/1.1 413")
        for _ in range(4):
            whole = httpx.post(f"{server.url}/v1/completions", content=b"x" * (10 * MB), timeout=20)
            assert (whole.status_code, whole.json()["error"]["code"]) == (413, "body_too_large")
        connection = stack.enter_context(closing(server.connect()))
        sent = send_chunks(connection, head + b"Transfer-Encoding: chunked\r\n\r\n", 40 * MB)
        assert sent < 40 * MB  # it was refused and closed on the way
        assert server.answers()
        assert server.most_growth < 40 * MB


def send_chunks(connection: socket.socket, head: bytes, size: int) -> int:
    """Send a body in chunks, as much of it as the other side takes."""
    connection.sendall(head)
    part = b"10000\r\n" + b"z" * 65_536 + b"\r\n"
    sent = 0
    try:
        while sent < size:
            connection.sendall(part)
            sent += 65_536
    except (ConnectionError, TimeoutError):
        pass
    return sent


def test_bodies_that_are_no_proper_json(folder: Path) -> None:
    """Invalid UTF-8, numbers that JSON lacks, a million levels: 400 in OpenAI's shape for each."""
    deep = MB
    bodies = [
        b'{"model": "small", "prompt": "\xff\xfe\x80"}',
        b'{"model": "small", "prompt": "\xed\xa0\x80"}',
        b'{"model": "small", "prompt": "x", "temperature": NaN}',
        b'{"model": "small", "prompt": "x", "top_p": Infinity}',
        b'{"model": "small", "prompt": ' + b"[" * deep + b"]" * deep + b"}",
        b'{"a":' * (deep // 2) + b"1" + b"}" * (deep // 2),
        b'{"model": "small", "prompt": "x", "structured_outputs": {"json": ' + b'{"not":' * 9000 + b"{}" + b"}" * 9002,
        b"[" * (3 * MB),
        b"9" * (3 * MB),
        b'{"model": "small", "prompt": "x", "seed": ' + b"9" * (2 * MB) + b"}",
    ]
    with served(folder) as server:
        for body in bodies * 3:
            answer = httpx.post(
                f"{server.url}/v1/completions", content=body, headers={"content-type": "application/json"}, timeout=20
            )
            assert answer.status_code == 400, body[:60]
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
            assert server.answers()
        assert server.most_growth < 200 * MB


def test_sigterm_among_all_of_them(folder: Path) -> None:
    """Idle, slow and silent connections, streams that run and streams that nobody reads: the default limits."""
    with served(folder) as server, ExitStack() as stack:
        for kind in range(6):
            for number in range(10):
                connection = stack.enter_context(closing(server.connect(receive_buffer=2048)))
                if kind == 1:
                    connection.sendall(b"GET /healthz HTTP/1.1\r\nX")
                if kind == 2:
                    connection.sendall(request_bytes(asked())[:-5])
                if kind == 3:
                    connection.sendall(request_bytes(endless(max_tokens=4000, stream=True, logprobs=20, seed=number)))
                if kind == 4:
                    connection.sendall(request_bytes(endless(max_tokens=4000)))
                if kind == 5:
                    connection.sendall(request_bytes(endless(prompt="an old stone bridge " * 180, max_tokens=1)))
        until(lambda: server.gauge("running") > 0 and server.gauge("waiting") > 0)
        time.sleep(2)
