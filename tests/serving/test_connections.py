"""Patience with connections: a slow reader that reads is served to the end, one that does not read is not."""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from threading import Thread
from typing import Any

import pytest
import uvicorn

from llm_journey.serving.connections import patient_protocol
from llm_journey.serving.run import bind

pytestmark = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1"])]
SECONDS, SIZE = 0.5, 600_000


async def app(scope: Any, receive: Any, send: Any) -> None:
    """SIZE bytes, in pieces or at once."""
    pieces = 20 if scope["path"] == "/pieces" else 1
    headers = [(b"content-length", str(SIZE).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for number in range(pieces):
        part = {"type": "http.response.body", "body": b"x" * (SIZE // pieces), "more_body": number + 1 < pieces}
        await send(part)


@contextmanager
def connected(path: str) -> Iterator[socket.socket]:
    """A connection with small buffers on which a response is asked for."""
    listening = bind("127.0.0.1", 0)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    config = uvicorn.Config(app, http=patient_protocol(SECONDS), lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    try:
        with closing(socket.socket()) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(10)
            connection.connect(listening.getsockname())
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
            yield connection
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()
    assert not thread.is_alive()


def read(connection: socket.socket, pause: float) -> int:
    """Bytes that come, at most 8,192 in each `pause` seconds."""
    count = 0
    try:
        while part := connection.recv(8192):
            count += len(part)
            time.sleep(pause)
    except ConnectionError:
        pass
    return count


@pytest.mark.parametrize("path", ["/pieces", "/whole"])
def test_a_slow_reader_gets_everything(path: str) -> None:
    """Some 300 kB a second: the time for reading passes several times over."""
    with connected(path) as connection:
        began = time.monotonic()
        assert read(connection, 0.025) > SIZE
        assert time.monotonic() - began > 2 * SECONDS


@pytest.mark.parametrize("path", ["/pieces", "/whole"])
def test_who_reads_nothing_is_let_go(path: str) -> None:
    with connected(path) as connection:
        time.sleep(4 * SECONDS)
        assert read(connection, 0) < SIZE
