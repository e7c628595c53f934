"""A server's life: it takes connections, answers, and ends within seconds of being told to.

SIGTERM: new requests are refused, answers under way get `drain_seconds`, what is left then is broken off and told so.
"""

import asyncio
import math
import resource
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from llm_journey.core.errors import JourneyError
from llm_journey.serving.api import Service, make_app
from llm_journey.serving.guard import Door
from llm_journey.serving.logs import log

_KEEP_ALIVE_SECONDS = 30
_LAST_SECONDS = 1.0  # after what is left was broken off
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
    """Answer until SIGTERM or Ctrl-C. Raises KeyboardInterrupt for the latter, once all is closed."""
    _raise_file_limit()
    server = make_server(service, door, on_start=on_start)
    # uvicorn raises the signals that it caught once more when it has ended; here that is nobody's end.
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run([listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        service.close()
        listening.close()
    if server.interrupted:
        raise KeyboardInterrupt


def make_server(service: Service, door: Door, *, on_start: Callable[[], None]) -> "DrainingServer":
    """uvicorn, set up; `run` blocks."""
    config = uvicorn.Config(
        make_app(service, door),
        http=_patient(service.config.read_seconds),
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
    return DrainingServer(config, service, on_start)


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which drains by our rules."""

    def __init__(self, config: uvicorn.Config, service: Service, on_start: Callable[[], None]) -> None:
        super().__init__(config)
        self.interrupted = False
        self._service, self._on_start = service, on_start

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
            seconds = self._service.config.drain_seconds
            self._loop.call_soon_threadsafe(lambda: self._loop.call_later(seconds, self._service.break_off))
        else:
            self._service.break_off()
        super().handle_exit(sig, frame)


def _patient(seconds: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol, which closes a connection whose first header does not come within `seconds`."""

    class Patient(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._heard = False
            self._waiting = self.loop.call_later(seconds, self._give_up)

        def connection_lost(self, exc: Exception | None) -> None:
            self._waiting.cancel()
            super().connection_lost(exc)

        def _give_up(self) -> None:
            if not self._heard and not self.transport.is_closing():
                self.transport.close()

        def handle_events(self) -> None:
            super().handle_events()
            self._heard = self._heard or self.cycle is not None

    return Patient


def _raise_file_limit() -> None:
    """As many open connections as the system lets a process have; the default of 1,024 is soon reached."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
