"""Fetch a public file over https: resumable, bounded in size, checked by sha256.

What has arrived stays in `<name>.partial`; the next call asks for the rest (RFC 9110, section 14: Range). A server
that ignores the range is read from the start again. Plain http is refused, except on this machine's loopback.
"""

import http.client
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llm_journey.core.files import sha256_file
from llm_journey.core.paths import inside
from llm_journey.datasets.sources import CatalogFile

_CHUNK = 1 << 18
_ATTEMPTS = 3
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


class SourceError(Exception):
    """One source of an item could not serve it; another one may. The message is one line."""


class Readable(Protocol):
    """The part of a response that is needed: up to `size` bytes, b"" at the end."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class Response:
    """A served body, and the offset in the file at which it starts (0 where a range was not honoured)."""

    start: int
    body: Readable


# Opens an address at a byte offset. Raises OSError or SourceError.
Transport = Callable[[str, int], AbstractContextManager[Response]]


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to https (or loopback)."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        _check_scheme(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextmanager
def open_address(address: str, offset: int, *, timeout: float = 15.0) -> Iterator[Response]:
    """The real transport: urllib, which obeys the proxy variables of the environment."""
    _check_scheme(address)
    request = urllib.request.Request(address, headers={"User-Agent": "llm-journey"})  # noqa: S310 - checked above
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    opener = urllib.request.build_opener(_SafeRedirects)
    try:
        response = opener.open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        raise SourceError(f"{address} answered {error.code} {error.reason}") from None
    with response:
        yield Response(_start_of(response, offset), response)


def download(
    address: str,
    file: CatalogFile,
    directory: Path,
    *,
    transport: Transport = open_address,
    on_bytes: Callable[[int], None] | None = None,
) -> Path:
    """The path `directory/<name>.partial`, whole and of the right sha256; what an earlier call left is completed.

    Raises SourceError with what went wrong (the part that has arrived is kept, unless it is wrong), OSError where
    the disk refuses, BadInputError where the name leads outside `directory`.
    """
    partial = inside(directory, f"{file.name}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    failure = ""
    for _ in range(_ATTEMPTS):
        done = partial.stat().st_size if partial.exists() else 0
        if done < file.size:
            try:
                _receive(transport, address, file, partial, done, on_bytes)
            except _ConnectionLostError as error:
                failure = str(error)
                continue
        found = sha256_file(partial)
        if found == file.sha256:
            return partial
        partial.unlink()
        failure = f"{address}: sha256 is {found[:16]}..., expected {file.sha256[:16]}...: changed or damaged on the way"
        if done == 0:
            break
    raise SourceError(failure)


class _ConnectionLostError(Exception):
    """The connection failed or ended early; what has arrived is kept."""


def _receive(
    transport: Transport,
    address: str,
    file: CatalogFile,
    partial: Path,
    done: int,
    on_bytes: Callable[[int], None] | None,
) -> None:
    """Append to `partial` from byte `done` on. Errors of the network and errors of the disk are kept apart."""
    with ExitStack() as stack:
        try:
            response = stack.enter_context(transport(address, done))
        except OSError as error:
            reason = getattr(error, "reason", None) or error or type(error).__name__
            raise _ConnectionLostError(f"{address} cannot be reached ({reason})") from None
        position = response.start
        flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        with os.fdopen(os.open(partial, flags, 0o644), "wb") as sink:
            sink.truncate(position)
            sink.seek(position)
            while chunk := _read(response.body):
                position += len(chunk)
                if position > file.size:
                    raise SourceError(f"{address} serves more than the expected {file.size} bytes")
                sink.write(chunk)
                if on_bytes is not None:
                    on_bytes(position)
    if position < file.size:
        raise _ConnectionLostError(f"{address}: the connection ended after {position} of {file.size} bytes")


def _read(body: Readable) -> bytes:
    """The next bytes; b"" also where the connection broke (the count of bytes tells)."""
    try:
        return body.read(_CHUNK)
    except (OSError, http.client.HTTPException):
        return b""


def _start_of(response: http.client.HTTPResponse, offset: int) -> int:
    if response.status != 206:
        return 0
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if match is None or int(match.group(1)) != offset:
        raise SourceError(f"the server answered a range that was not asked for (from byte {offset})")
    return offset


def _check_scheme(address: str) -> None:
    parts = urllib.parse.urlsplit(address)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise SourceError(f"{address}: only https addresses are fetched")
