"""A server's life: it takes connections, answers, and ends within seconds of being told to.

SIGTERM: new requests are refused, answers under way get `drain_seconds`, what is left then is broken off and told so.
"""

import asyncio
import logging
import math
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn

from llm_journey.core.errors import JourneyError
from llm_journey.serving.api import Service, make_app
from llm_journey.serving.connections import patient_protocol
from llm_journey.serving.guard import Door
from llm_journey.serving.logs import log

_KEEP_ALIVE_SECONDS = 30
_LAST_SECONDS = 1.0  # after what is left was broken off
_CLOSE_SECONDS = 0.6  # for the engines, whose last pass may still be under way
_BACKLOG = 1024


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises JourneyError where the address is taken or is none of this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise JourneyError(f"cannot listen on {host} port {port}: {error}; choose another by --port") from None
    listening.listen(_BACKLOG)
    return listening


def serve(service: Service, door: Door, listening: socket.socket, *, on_start: Callable[[], None]) -> None:
    """Answer until SIGTERM or Ctrl-C. Raises KeyboardInterrupt for the latter, once all is closed.

    Where something does not end in time (a pass of a large model, a library's call), the process is ended from here:
    whoever sends SIGTERM sends SIGKILL next.
    """
    _raise_file_limit()
    last_resort: list[threading.Timer] = []

    def on_signal(number: int) -> None:
        seconds = service.config.drain_seconds + _LAST_SECONDS + _CLOSE_SECONDS
        timer = threading.Timer(seconds, _end_at_once, [130 if number == signal.SIGINT else 0])
        timer.daemon = True
        timer.start()
        last_resort.append(timer)

    server = make_server(service, door, on_start=on_start, on_signal=on_signal)
    # uvicorn raises the signals that it caught once more when it has ended; here that is nobody's end.
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run([listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        ended = service.close(_CLOSE_SECONDS)
        listening.close()
        for timer in last_resort if ended else ():
            timer.cancel()
    if server.interrupted:
        raise KeyboardInterrupt


def _end_at_once(code: int) -> None:
    log("ended at once", {"code": code}, level=logging.WARNING)
    os._exit(code)


def make_server(
    service: Service, door: Door, *, on_start: Callable[[], None], on_signal: Callable[[int], None] = lambda _: None
) -> "DrainingServer":
    """uvicorn, set up; `run` blocks. on_signal: told of the first signal."""
    config = uvicorn.Config(
        make_app(service, door),
        http=patient_protocol(service.config.read_seconds),
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=math.ceil(service.config.drain_seconds + _LAST_SECONDS),
        backlog=_BACKLOG,
    )
    return DrainingServer(config, service, on_start, on_signal)


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which drains by our rules."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        on_start: Callable[[], None],
        on_signal: Callable[[int], None],
    ) -> None:
        super().__init__(config)
        self.interrupted = False
        self._service, self._on_start, self._on_signal = service, on_start, on_signal

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say that connections are taken."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self._on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second ends at once."""
        log("ending", {"signal": signal.Signals(sig).name})
        self.interrupted = self.interrupted or sig == signal.SIGINT
        if not self._service.draining:
            self._service.draining = True
            self._on_signal(sig)
            self._loop.call_soon_threadsafe(self._drain)
        else:
            self._service.break_off()
        super().handle_exit(sig, frame)

    def _drain(self) -> None:
        seconds = self._service.config.drain_seconds
        self._loop.call_later(seconds, self._service.break_off)
        self._loop.call_later(seconds + _LAST_SECONDS / 2, self._hang_up)

    def _hang_up(self) -> None:
        """Clients that take nothing would hold the process as long as they like."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def _raise_file_limit() -> None:
    """As many open connections as the system lets a process have; the default of 1,024 is soon reached."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
