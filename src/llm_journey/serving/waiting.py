"""Waiting for an answer only as long as somebody wants it: places in the queue, clients that leave, deadlines."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from starlette.responses import Response

from llm_journey.serving.errors import ApiError

T = TypeVar("T")
_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_RETRY_SECONDS = 1


class ClientGone(Exception):  # noqa: N818 - no error of anybody's
    """The client has closed its connection."""


class Places:
    """Answers under way, at most `limit`. `taken` is how many."""

    def __init__(self, limit: int) -> None:
        self.limit, self.taken = limit, 0

    def take(self, count: int) -> None:
        """Raises ApiError 429, with Retry-After, where there is no room; 400 where there never will be."""
        if count > self.limit:
            raise ApiError(400, f"the request asks for {count} answers, this server holds {self.limit} at a time")
        if self.taken + count > self.limit:
            raise ApiError(
                429,
                f"{self.taken} answers are under way or waiting, {self.limit} are the most; try again",
                code="queue_full",
                headers={"Retry-After": str(_RETRY_SECONDS)},
            )
        self.taken += count

    def give_back(self, count: int) -> None:
        """After `take`, once."""
        self.taken -= count

    @contextmanager
    def held(self, count: int) -> Iterator[None]:
        """`take` for a block."""
        self.take(count)
        try:
            yield
        finally:
            self.give_back(count)


async def while_wanted(work: Coroutine[Any, Any, T], receive: _Receive) -> T:
    """What `work` returns. Raises ClientGone, and ends it, as soon as the client leaves."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_leaves(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for each in (task, watcher):
            each.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await each


async def _leaves(receive: _Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events. A client that leaves, or that takes nothing more (serving.connections ends it then), ends
    `events`; `on_end` is called in any case, once."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], *, on_end: Callable[[], None]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._on_end = events, on_end

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:  # noqa: ARG002 - ASGI's three arguments
        """Send them."""
        try:
            await while_wanted(self._send(send), receive)
        except ClientGone:
            return
        finally:
            self._on_end()

    async def _send(self, send: _Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for event in self._events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
