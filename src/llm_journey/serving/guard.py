"""What stands before the routes: host, origin and key, the size and the pace of bodies, request ids and the log.

Plain ASGI middleware: a request that is refused here has been read no further than its header.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import re
import socket
import time
import uuid
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from pathlib import Path
from typing import Any

from llm_journey.core.errors import BadInputError
from llm_journey.serving.errors import ApiError
from llm_journey.serving.logs import facts_of, log

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
OPEN_PATHS = frozenset({"/healthz", "/readyz"})
_LOOPBACK_NAMES = frozenset({"localhost"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MIN_KEY_CHARACTERS = 16
_LINGER_SECONDS, _LINGER_BYTES = 2.0, 16 << 20
_HELD_BODIES = 16  # so many bodies of the largest size at once
_MAX_KEY_FILE_BYTES = 1 << 16


def read_keys(path: Path) -> list[str]:
    """The API keys of a file: one a line; empty lines and lines that begin with # do not count.

    Raises BadInputError, which shows no key, where there is none or one is too short to be a secret.
    """
    try:
        if path.stat().st_size > _MAX_KEY_FILE_BYTES:
            raise BadInputError(f"{path}: larger than {_MAX_KEY_FILE_BYTES} bytes; this is no file of API keys")
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path}: cannot be read as API keys, one a line in ASCII ({error})") from None
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        raise BadInputError(f"{path}: holds no API key; write one a line")
    short = next((number for number, key in enumerate(keys, 1) if len(key) < _MIN_KEY_CHARACTERS), None)
    if short is not None:
        raise BadInputError(f"{path}: key {short} has fewer than {_MIN_KEY_CHARACTERS} characters; take a longer one")
    return keys


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() in _LOOPBACK_NAMES


class Door:
    """Who may come in: hosts that the server answers to, and keys.

    A page of another site reaches a server on the loopback through its reader's browser; its Origin tells it, or, where
    its name was bound to 127.0.0.1 behind the browser's back (DNS rebinding), its Host.
    """

    def __init__(self, host: str, keys: Collection[str], *, more_hosts: Collection[str] = ()) -> None:
        if not keys and not is_loopback(host):
            raise BadInputError(
                f"--host {host} can be reached from other machines: give keys by --api-key-file, or use 127.0.0.1"
            )
        self._hosts = {name.lower() for name in (host, *more_hosts)}
        self._loopback = is_loopback(host)
        if not self._loopback:
            self._hosts |= {socket.gethostname().lower()}
        self._digests = [_digest(key) for key in keys]

    def check(self, path: str, headers: dict[bytes, bytes]) -> None:
        """Raises ApiError where a request may not come in."""
        host = headers.get(b"host", b"").decode("latin-1")
        if not self._answers_to(_without_port(host)):
            raise ApiError(403, f"this server does not answer to the host {host[:80]!r}", code="foreign_host")
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1").lower() not in (
            f"http://{host}".lower(),
            f"https://{host}".lower(),
        ):
            raise ApiError(403, "requests of other sites' pages are refused", code="foreign_origin")
        if self._digests and path not in OPEN_PATHS:
            self._check_key(headers.get(b"authorization", b""))

    def _answers_to(self, name: str) -> bool:
        if name in self._hosts:
            return True
        if self._loopback:
            return is_loopback(name)
        # An address can be no page's name that was bound to it afterwards.
        return _is_address(name)

    def _check_key(self, authorization: bytes) -> None:
        scheme, _, given = authorization.partition(b" ")
        digest = hashlib.sha256(given.strip()).digest()
        # Digests of one length, all compared: the time tells neither which key was near nor how long it is.
        known = [hmac.compare_digest(digest, each) for each in self._digests]
        if scheme.lower() != b"bearer" or not any(known):
            raise ApiError(
                401,
                "no valid API key: send one as `Authorization: Bearer KEY`",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


class Guard:
    """The outermost layer: door, body limits, ids, log lines. on_end: told of (route, status, seconds)."""

    def __init__(
        self,
        app: App,
        *,
        door: Door,
        max_body_bytes: int,
        read_seconds: float,
        on_end: Callable[[str, int, float], None],
    ) -> None:
        self.app, self._door, self._on_end = app, door, on_end
        self._max_body_bytes, self._read_seconds = max_body_bytes, read_seconds
        self._held_bytes = 0  # of bodies that are being read or answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        facts = facts_of(scope)
        facts |= {"id": _request_id(headers), "method": scope["method"], "path": scope["path"][:200], "status": 499}
        began = time.monotonic()
        held = _Held(self)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                facts["status"] = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", facts["id"].encode())]
            await send(message)

        try:
            body = await self._admitted(scope, headers, receive, held)
        except ApiError as refusal:
            response = refusal.response()
            response.headers["connection"] = "close"
            await response(scope, receive, sending)
        except _Gone:
            pass
        else:
            await self.app(scope, _replay(body, receive), sending)
        finally:
            held.give_back()
            seconds = time.monotonic() - began
            log("request", facts | {"seconds": round(seconds, 4)})
            route = getattr(scope.get("route"), "path", "other")
            self._on_end(route, facts["status"], seconds)

    async def _admitted(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, held: "_Held") -> bytes:
        """The body of a request that may come in. Raises ApiError for one that may not."""
        try:
            self._door.check(scope["path"], headers)
            said = headers.get(b"content-length", b"0")
            if said.isdigit() and int(said[:20]) > self._max_body_bytes:
                raise self._too_large()
        except ApiError:
            if b"expect" not in headers:  # else it waits to be told to send, and is told not to
                await _read_off(receive)
            raise
        return await self._body(receive, held)

    async def _body(self, receive: Receive, held: "_Held") -> bytes:
        """The whole body. Raises ApiError where it is too large or too slow."""
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._read_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    held.take(len(parts[-1]))
                    if size > self._max_body_bytes:
                        if message.get("more_body", False):
                            await _read_off(receive)
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise ApiError(408, f"the body did not come within {self._read_seconds:g} seconds") from None

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self._max_body_bytes} bytes", code="body_too_large")


class _Held:
    """What one request's body takes of the room that all of them share."""

    def __init__(self, guard: Guard) -> None:
        self._guard, self._bytes = guard, 0

    def take(self, count: int) -> None:
        """Raises ApiError 429 where the bodies together would take too much memory."""
        if self._guard._held_bytes + count > _HELD_BODIES * self._guard._max_body_bytes:
            raise ApiError(429, "the server reads too many large requests; try again", headers={"Retry-After": "1"})
        self._guard._held_bytes += count
        self._bytes += count

    def give_back(self) -> None:
        """After the answer."""
        self._guard._held_bytes -= self._bytes
        self._bytes = 0


class _Gone(Exception):  # noqa: N818 - no error: the client has left
    pass


async def _read_off(receive: Receive) -> None:
    """Let pass by what is still coming, for a moment: an answer to a client that is sending would be lost."""
    size = 0
    try:
        async with asyncio.timeout(_LINGER_SECONDS):
            message = await receive()
            while message["type"] == "http.request" and message.get("more_body", False) and size < _LINGER_BYTES:
                size += len(message.get("body", b""))
                message = await receive()
    except TimeoutError:
        return


def _replay(body: bytes, receive: Receive) -> Receive:
    """`receive` of a request whose body has been read: the body once, then what comes."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _request_id(headers: dict[bytes, bytes]) -> str:
    """The client's own id where it is one, else a new one."""
    given = headers.get(b"x-request-id", b"").decode("latin-1")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _without_port(host: str) -> str:
    if host.startswith("["):  # an IPv6 address
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if host.count(":") == 1 else host.lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
