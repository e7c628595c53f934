"""One connection's patience: a header that does not come, and an answer that nobody takes, end it.

uvicorn waits without end for both. A body's pace is the guard's (serving.guard).
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

_MIN_BYTES_PER_SECOND = 1024  # slower than this nobody reads


def patient_protocol(seconds: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol. Each request's header must come within `seconds` of the connection's beginning or of its
    own first byte; what was written must be taken, by 1,024 bytes a second at least, looked at every `seconds`."""

    class Patient(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._unsent = 0
            self._header_timer: asyncio.TimerHandle | None = self.loop.call_later(seconds, self._give_up)
            self._unsent_timer: asyncio.TimerHandle | None = None

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting_for_header()
            self._stop_watching_unsent()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            answering = self.cycle is not None and not self.cycle.response_complete
            if answering:
                self._stop_waiting_for_header()
                if not self.flow.write_paused:  # what the last answer left unsent will be written behind
                    self._stop_watching_unsent()
            elif self._header_timer is None and not self.transport.is_closing():
                self._header_timer = self.loop.call_later(seconds, self._give_up)

        def on_response_complete(self) -> None:
            self._watch_unsent()
            super().on_response_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._watch_unsent()

        def resume_writing(self) -> None:
            super().resume_writing()
            if self.cycle is not None and not self.cycle.response_complete:  # more will be written
                self._stop_watching_unsent()

        def _stop_waiting_for_header(self) -> None:
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None

        def _give_up(self) -> None:
            if not self.transport.is_closing():
                self.transport.close()
            self._watch_unsent()

        def _watch_unsent(self) -> None:
            """While something is unsent and nothing more is written, so that it can only become less."""
            self._stop_watching_unsent()
            self._unsent = self.transport.get_write_buffer_size()
            if self._unsent:
                self._unsent_timer = self.loop.call_later(seconds, self._check_unsent)

        def _stop_watching_unsent(self) -> None:
            if self._unsent_timer is not None:
                self._unsent_timer.cancel()
                self._unsent_timer = None

        def _check_unsent(self) -> None:
            before = self._unsent
            self._watch_unsent()
            if self._unsent and self._unsent > before - _MIN_BYTES_PER_SECOND * seconds:
                self.transport.abort()

    return Patient
