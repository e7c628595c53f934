"""Bytes of tokens as they come, text out: whole characters only, and nothing of a text that ends the answer.

An answer ends before the stop text that is complete first (of those that end together, the longest). Tokens border
neither on characters nor on stop texts, so what may still become one of either is held back until that is settled:
what was given out is never taken back, and how the bytes were cut into tokens changes nothing.
"""

import codecs
from collections.abc import Sequence


class TextOut:
    """Text of an answer, piece by piece. `stopped`: a stop text was complete, and nothing more will come."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self.stopped = False
        self._stops = [stop for stop in stops if stop]
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def feed(self, data: bytes) -> str:
        """What can be given out now that these bytes have come; often nothing."""
        return self._take(self._decoder.decode(data))

    def finish(self) -> str:
        """The rest, now that no more bytes will come; bytes of half a character become U+FFFD."""
        rest = self._take(self._decoder.decode(b"", final=True))
        held, self._held = ("" if self.stopped else self._held), ""
        return rest + held

    def _take(self, text: str) -> str:
        if self.stopped:
            return ""
        self._held += text
        ends = [(found + len(stop), found) for stop in self._stops if (found := self._held.find(stop)) >= 0]
        if ends:
            self.stopped = True
            return self._held[: min(ends)[1]]
        given = len(self._held) - self._num_undecided()
        out, self._held = self._held[:given], self._held[given:]
        return out

    def _num_undecided(self) -> int:
        """Length of the longest end of the held text that begins a stop text."""
        longest = min(max(map(len, self._stops), default=1) - 1, len(self._held))
        return next(
            (
                length
                for length in range(longest, 0, -1)
                if any(stop.startswith(self._held[-length:]) for stop in self._stops)
            ),
            0,
        )
