"""One prompt's tokens as an iterator, from an engine that takes a step whenever the next one is asked for."""

from collections.abc import Iterator

from llm_journey.generation.engine import Engine, Request, Token
from llm_journey.generation.prompt import FinishReason


class Stream(Iterator[Token]):
    """New tokens of a request, computed as they are asked for; requests beside it move on with it.

    `finish_reason` is None until the last one has been given. `close` lets the request go.
    """

    def __init__(self, engine: Engine, request: Request) -> None:
        self._engine, self._request = engine, request
        self._given = 0

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        return self._request.prompt_length

    @property
    def new_ids(self) -> list[int]:
        """The ids given so far."""
        return [token.id for token in self._request.tokens[: self._given]]

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended, once the last token has been given."""
        return self._request.finish_reason if self._given == len(self._request.tokens) else None

    def __next__(self) -> Token:
        while self._given == len(self._request.tokens):
            if self._request.finish_reason is not None:
                raise StopIteration
            self._engine.step()
        token = self._request.tokens[self._given]
        self._given += 1
        return token

    def close(self) -> None:
        """Let the request go; what it wrote stays."""
        self._engine.cancel(self._request)
