"""An engine on a thread of its own: any thread submits and cancels, the callbacks are called on the engine's thread.

A pass is never interrupted, so that a cancelled request is gone at the latest when the pass under way ends.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from llm_journey.core.errors import JourneyError
from llm_journey.generation.engine import Engine, Request


class EngineWorker:
    """Runs `engine` until `close`. A pass that fails ends every request that shared it, by `on_error`."""

    def __init__(self, engine: Engine, *, on_error: Callable[[Exception], None] | None = None) -> None:
        self.engine = engine
        self.failure: Exception | None = None
        self._on_error = on_error
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, *args: Any, **options: Any) -> Request:
        """`Engine.submit` on the engine's thread; its errors are raised here."""
        request: Request = self.call(lambda: self.engine.submit(*args, **options))
        return request

    def cancel(self, request: Request) -> None:
        """`Engine.cancel`, as soon as the pass under way has ended; does not wait."""
        self._calls.put(lambda: self.engine.cancel(request))

    def call(self, action: Callable[[], Any]) -> Any:
        """Run `action` between two passes and return what it returns. Raises JourneyError once the worker is closed."""
        return self.post(action).result()

    def post(self, action: Callable[[], Any]) -> Future[Any]:
        """Run `action` between two passes; does not wait. Of a closed worker the future holds a JourneyError."""
        future: Future[Any] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():  # nobody waits any more
                return
            try:
                future.set_result(action())
            except Exception as error:
                future.set_exception(error)

        with self._lock:
            if self._closed:
                future.set_exception(JourneyError("the engine is closed"))
            else:
                self._calls.put(run)
        return future

    def close(self, timeout: float = 10.0) -> bool:
        """Cancel what is left and end the thread; whether it has ended within so many seconds."""
        with self._lock:  # nothing may be put behind the last call
            if not self._closed:
                self._closed = True
                self._calls.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            # Idle: wait for a call. Busy: take what has come, then go on.
            try:
                call = self._calls.get(block=not self.engine.busy)
            except queue.Empty:
                self._step()
                continue
            if call is None:
                self.engine.cancel_all()
                return
            call()

    def _step(self) -> None:
        try:
            self.engine.step()
        except Exception as error:  # a model that fails must not take the server with it
            self.failure = error
            self.engine.cancel_all()
            if self._on_error is not None:
                self._on_error(error)
