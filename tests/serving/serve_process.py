"""`journey serve` as a process of its own over a small model folder, and raw connections to it."""

import json
import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from small_server import small_model

from llm_journey.checkpoint.model_folder import save_model

NAME = "small"
END_SECONDS = 5.0


@dataclass
class Served:
    """A server's process. `start_bytes`: what it held after its first answers (see `served`)."""

    process: subprocess.Popen[str]
    port: int
    start_bytes: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def bytes(self, name: str = "VmRSS") -> int:
        """Memory of the process: VmRSS now, VmHWM at most so far."""
        found = re.search(rf"^{name}:\s+(\d+) kB$", Path(f"/proc/{self.process.pid}/status").read_text(), re.M)
        assert found is not None
        return int(found[1]) << 10

    @property
    def num_files(self) -> int:
        """Open files and connections of the process."""
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())

    @property
    def most_growth(self) -> int:
        """Bytes by which the process has at most been larger than at its start."""
        return self.bytes("VmHWM") - self.start_bytes

    def connect(self, *, receive_buffer: int | None = None, timeout: float = 10.0) -> socket.socket:
        connection = socket.socket()
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(timeout)
        connection.connect(("127.0.0.1", self.port))
        return connection

    def gauge(self, name: str) -> float:
        found = re.search(rf"^journey_{name}(?:\{{[^}}]*\}})? (\S+)$", httpx.get(f"{self.url}/metrics").text, re.M)
        assert found is not None
        return float(found[1])

    def answers(self, **more: Any) -> bool:
        """Whether a request of four tokens gets its answer now."""
        answer = httpx.post(f"{self.url}/v1/completions", json=asked(**more), timeout=20)
        return answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] <= 4

    def idle(self) -> bool:
        """Whether nothing runs, nothing waits and every block is free."""
        held = self.gauge("cache_blocks") - self.gauge("cache_blocks_free")
        return (self.gauge("running"), self.gauge("waiting"), held) == (0, 0, 0)


def asked(prompt: str = "The river", **more: Any) -> dict[str, Any]:
    return {"model": NAME, "prompt": prompt, "max_tokens": 4, "temperature": 0, **more}


def endless(**more: Any) -> dict[str, Any]:
    """What takes all its tokens to answer: the end is never allowed."""
    return asked(**{"max_tokens": 512, "structured_outputs": {"regex": "[a-z]{900}"}} | more)


def request_bytes(content: dict[str, Any], path: str = "/v1/completions") -> bytes:
    data = json.dumps(content).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def closed(connection: socket.socket, seconds: float) -> bool:
    """Whether the other side ends a connection within so many seconds; what it says is read."""
    end = time.monotonic() + seconds
    connection.settimeout(0.2)
    while time.monotonic() < end:
        try:
            if not connection.recv(1 << 16):
                return True
        except TimeoutError:
            continue
        except ConnectionError:
            return True
    return False


def still_open(connection: socket.socket) -> bool:
    """Whether a connection that nothing has been said on is open."""
    watched = select.poll()  # select() knows no file numbers from 1,024 on
    watched.register(connection, select.POLLIN)
    readable = watched.poll(0)
    return not readable


def save_small_model(folder: Path) -> Path:
    """The tests' small random model as a folder of the name NAME."""
    model = small_model(context=4096)
    save_model(model.decoder, folder / NAME, tokenizer=model.tokenizer)
    return folder / NAME


@contextmanager
def served(
    folder: Path, *limits: str, warm: int = 24, precision: str = "auto", environment: dict[str, str] | None = None
) -> Iterator[Served]:
    """`journey serve` over a model folder; after the block, whatever is still open, SIGTERM must end it within five
    seconds and with exit code 0.

    `start_bytes` is taken after `warm` requests, streamed and whole, of all lengths: what a process takes once (a
    library's first call, a thread's heap, the cache's pages) is there, and growth is what further requests add.
    """
    settings = [part for limit in limits for part in ("--set", limit)]
    command = [sys.executable, "-m", "llm_journey", "serve", str(folder), "--port", "0", *settings]
    command += ["--precision", precision]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | (environment or {})
    log = folder.parent / "log.jsonl"
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://"), log.read_text()
        found = Served(process, int(line.rpartition(":")[2].partition("/")[0]))
        for number in range(warm):
            content = endless(prompt="The old bridge. " * (1 + number * 8 % 200), max_tokens=64, stream=number % 2 == 1)
            assert httpx.post(f"{found.url}/v1/completions", json=content, timeout=60).status_code == 200
        found.start_bytes = found.bytes()
        yield found
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        code = process.wait(20)
        seconds = time.monotonic() - began
    finally:
        process.kill()
        process.wait()
    assert code == 0, log.read_text()[-4000:]
    assert seconds < END_SECONDS, f"it took {seconds:.1f} seconds to end"
    assert "Traceback" not in log.read_text()


@contextmanager
def many_files(count: int) -> Iterator[None]:
    """Room for so many open connections in this process, and in the processes that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(count, hard)), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
