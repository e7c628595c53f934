"""One answer's tokens become text as they come: characters whole, stop strings found, special tokens left out.

Streamed and unstreamed answers both are what `Writer` gives, piece by piece or joined: they cannot differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llm_journey.generation.engine import Token
from llm_journey.generation.prompt import FinishReason
from llm_journey.generation.stop import TextOut
from llm_journey.serving.served import ServedModel

Ended = Literal["stop", "length", "cancelled"]
_ENDED: dict[FinishReason, Ended] = {
    "stop": "stop",
    "length": "length",
    "context": "length",
    "cancelled": "cancelled",
    "error": "cancelled",
}


@dataclass(frozen=True)
class Piece:
    """What an event adds to answer `index`: text (it may be empty), tokens, why it ended."""

    index: int
    text: str = ""
    tokens: tuple[Token, ...] = ()
    ended: Ended | None = None


class Writer:
    """Reads the events of one answer. `num_tokens`: how many were read."""

    def __init__(self, served: ServedModel, index: int, stops: Sequence[str]) -> None:
        self.index, self.num_tokens = index, 0
        self.ended: Ended | None = None
        self._served = served
        self._out = TextOut(stops)

    def read(self, event: Token | FinishReason) -> Piece | None:
        """What an event adds; None for one that comes after the end."""
        if self.ended is not None:
            return None
        if isinstance(event, Token):
            self.num_tokens += 1
            text = self._out.feed(self._served.text_bytes(event.id))
            self.ended = "stop" if self._out.stopped else None
            return Piece(self.index, text, (event,), self.ended)
        text = self._out.finish()
        self.ended = "stop" if self._out.stopped else _ENDED[event]
        return Piece(self.index, text, (), self.ended)
