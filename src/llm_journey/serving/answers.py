"""The answers to one request, from the engine's thread to whoever waits for them, and their end when nobody does.

`AsyncAnswers` is the server's; `pieces` the same for a caller that waits on a thread of its own. Whatever ends the
waiting (all is said, a stop string, an error, a client that has gone) cancels what still runs.
"""

import asyncio
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial

from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.generation.engine import Request, Token
from llm_journey.generation.prompt import FinishReason
from llm_journey.serving.orders import Order
from llm_journey.serving.served import ServedModel
from llm_journey.serving.writing import Piece, Writer

Event = tuple[int, Token | FinishReason | JourneyError | TimeoutError]


class _Submission:
    """Requests in an engine: submitted together, cancelled together, each event told by `tell` on its thread."""

    def __init__(self, served: ServedModel, orders: Sequence[Order], tell: Callable[[Event], None]) -> None:
        self._served, self._orders, self._tell = served, orders, tell
        self._requests: list[Request] = []
        self._closed = False

    def submit(self) -> None:
        """To be called on the engine's thread."""
        for index, order in enumerate(self._orders):
            if self._closed:
                return
            tell = partial(self._told, index)
            request = self._served.worker.engine.submit(
                order.ids,
                order.sampling,
                stop_ids=self._served.stop_ids,
                constraint=order.constraint,
                logprobs=order.logprobs,
                adapter=self._served.adapter,
                on_token=tell,
                on_finish=tell,
            )
            self._requests.append(request)

    def _told(self, index: int, event: Token | FinishReason) -> None:
        if event == "error":
            error = self._requests[index].error or JourneyError("the answer failed")
            # What ends one answer alone is what it was held to; the request can be changed, the server is well.
            self._tell((index, BadInputError(str(error)) if self._orders[index].constraint else error))
        else:
            self._tell((index, event))

    def cancel(self, index: int) -> None:
        """Let one answer go; does not wait."""
        self._served.worker.post(lambda: self._served.worker.engine.cancel(self._requests[index]))

    def close(self) -> None:
        """Let every answer go; does not wait. What is not submitted yet never will be."""
        self._closed = True
        self._served.worker.post(self._cancel_all)

    def _cancel_all(self) -> None:
        for request in self._requests:
            self._served.worker.engine.cancel(request)


class _Bell:
    """Tells an event loop that mailboxes were filled: once for all that are until it hears of it, since a pass fills
    one for each of its answers, and each call into a loop costs both threads."""

    def __init__(self) -> None:
        self._rung: list[asyncio.Event] = []
        self._lock = threading.Lock()

    def ring(self, loop: asyncio.AbstractEventLoop, filled: asyncio.Event) -> None:
        """From any thread; a loop that has ended is no error, there is nobody to tell."""
        with self._lock:
            self._rung.append(filled)
            if len(self._rung) > 1:
                return
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self._heard)

    def _heard(self) -> None:
        with self._lock:
            rung, self._rung = self._rung, []
        for filled in rung:
            filled.set()


_bells: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Bell]" = weakref.WeakKeyDictionary()


class _Mailbox:
    """From the engine's thread to an event loop; all that has gathered is handed over at once."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._bell = _bells.setdefault(self._loop, _Bell())
        self._items: deque[Event] = deque()
        self._filled = asyncio.Event()
        self._lock = threading.Lock()  # the engine and a deadline may both be the first to fill it

    def put(self, item: Event) -> None:
        """From any thread."""
        with self._lock:
            first = not self._items
            self._items.append(item)
        if first:
            self._bell.ring(self._loop, self._filled)

    async def get(self) -> Event:
        """The next item."""
        while not self._items:
            self._filled.clear()
            await self._filled.wait()
        return self._items.popleft()


class AsyncAnswers:
    """Answers to one request, within an event loop. `prompt_tokens`, `num_tokens`: read and written so far."""

    def __init__(self, served: ServedModel, orders: Sequence[Order]) -> None:
        self._served = served
        self._mailbox = _Mailbox()
        self._writers = [Writer(served, index, order.stops) for index, order in enumerate(orders)]
        self._submission = _Submission(served, orders, self._mailbox.put)
        self._began = time.monotonic()
        self.first_token_seconds: float | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of all answers so far."""
        return sum(writer.num_tokens for writer in self._writers)

    async def submit(self) -> None:
        """Queue the prompts. Raises BadInputError as `Engine.submit` does."""
        await asyncio.wrap_future(self._served.worker.post(self._submission.submit))

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """The pieces of all answers, as they come. Raises JourneyError where the engine ends one by itself, and
        TimeoutError behind what had come before `expire`."""
        waiting = len(self._writers)
        while waiting:
            index, event = await self._mailbox.get()
            if self.first_token_seconds is None:
                self.first_token_seconds = time.monotonic() - self._began
            if isinstance(event, JourneyError | TimeoutError):
                raise event
            piece = self._writers[index].read(event)
            if piece is None:
                continue
            if piece.ended is not None:
                waiting -= 1
                _check(piece)
                if isinstance(event, Token):  # a stop string; the engine does not know of it
                    self._submission.cancel(index)
            yield piece

    def expire(self) -> None:
        """The time is up. One timer a request: one for each token that is waited for would cost as much as its text."""
        self._mailbox.put((0, TimeoutError()))

    @property
    def unfinished(self) -> bool:
        """Whether something is still to come."""
        return any(writer.ended is None for writer in self._writers)

    def close(self) -> None:
        """Let the answers go; does not wait."""
        if self.unfinished:
            self._submission.close()


def pieces(served: ServedModel, orders: Sequence[Order]) -> Iterator[Piece]:
    """The pieces of the answers, for a thread that waits; leaving off lets them go."""
    mailbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
    submission = _Submission(served, orders, mailbox.put)
    served.worker.call(submission.submit)
    writers = [Writer(served, index, order.stops) for index, order in enumerate(orders)]
    try:
        while any(writer.ended is None for writer in writers):
            index, event = mailbox.get()
            if isinstance(event, JourneyError | TimeoutError):
                raise event
            piece = writers[index].read(event)
            if piece is None:
                continue
            if piece.ended is not None:
                _check(piece)
                if isinstance(event, Token):
                    submission.cancel(index)
            yield piece
    finally:
        if any(writer.ended is None for writer in writers):
            submission.close()


def _check(piece: Piece) -> None:
    if piece.ended == "cancelled":
        raise JourneyError("the answer was broken off: the engine ended it")
