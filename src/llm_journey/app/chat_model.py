"""The chat-model and embedder protocols over models in this process: the server's own path, without the network.

Prompts, tools, constraints and stop strings are made and read by the same functions as the server's, so that a
program may move from one to the other and get the same replies.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm_journey.client.protocol import (
    ChatDelta,
    ChatReply,
    ChatSampling,
    Message,
    ResponseFormat,
    Tool,
    ToolChoice,
    Usage,
    collect,
)
from llm_journey.core.errors import BadInputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from llm_journey.app.embedder import Embedder
    from llm_journey.serving.served import ServedModel


@dataclass(frozen=True)
class LocalChatModel:
    """A chat model in this process, usable from many threads; `client.protocol.ChatModel` says what its methods do."""

    served: "ServedModel"
    max_new_tokens: int = 4096

    @property
    def name(self) -> str:
        """What the model is called."""
        return self.served.name

    def complete(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        tool_choice: ToolChoice = "auto",
        response_format: ResponseFormat | None = None,
        sampling: ChatSampling | None = None,
    ) -> ChatReply:
        """The reply to a conversation."""
        return collect(
            self.stream(
                messages, tools=tools, tool_choice=tool_choice, response_format=response_format, sampling=sampling
            )
        )

    def stream(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        tool_choice: ToolChoice = "auto",
        response_format: ResponseFormat | None = None,
        sampling: ChatSampling | None = None,
    ) -> Iterator[ChatDelta]:
        """The reply in pieces. Closing the iterator lets the answer go."""
        from llm_journey.serving.answers import pieces
        from llm_journey.serving.orders import chat_orders
        from llm_journey.serving.tool_text import read_piece

        body: dict[str, Any] = {"model": self.name, "messages": [dict(message) for message in messages]}
        if tools:
            body |= {"tools": [dict(tool) for tool in tools], "tool_choice": tool_choice}
        if response_format is not None:
            body["response_format"] = dict(response_format)
        given = (sampling or ChatSampling()).given()
        if isinstance(given.get("stop"), tuple):
            given["stop"] = list(given["stop"])
        wanted = chat_orders(self.served, _checked(body | given), max_new_tokens=self.max_new_tokens, max_n=1)
        reader, num_tokens = wanted.reader(), 0
        for piece in pieces(self.served, wanted.orders):
            num_tokens += len(piece.tokens)
            for delta in read_piece(reader, piece.text, piece.ended):
                if delta != ChatDelta():
                    yield delta
        yield ChatDelta(usage=Usage(len(wanted.orders[0].ids), num_tokens))

    def close(self) -> None:
        """End the engine's thread."""
        self.served.worker.close()


@dataclass(frozen=True)
class LocalEmbedder:
    """An embedder in this process. Raises BadInputError for a text that the model would cut, with both counts."""

    embedder: "Embedder"

    @property
    def name(self) -> str:
        """What the model is called."""
        return self.embedder.name

    def embed(self, texts: Sequence[str]) -> "npt.NDArray[np.float32]":
        """(N, D) vectors of the texts, in their order."""
        found = self.embedder.embed_counted(list(texts))
        if found.cut:
            index, limit = found.cut[0], self.embedder.max_tokens
            count = len(self.embedder.tokenizer.encode_batch([texts[index]])[0])
            raise BadInputError(f"text {index} has {count} tokens, {self.name} reads {limit}: shorten or split it")
        return found.vectors


def open_chat_model(
    name_or_path: str, *, precision: str = "auto", compile: bool | None = None, max_running: int = 16
) -> LocalChatModel:
    """A chat model by name, with its engine on a thread of its own. Raises BadInputError as `open_model` does."""
    from llm_journey.app.language_model import open_model
    from llm_journey.app.server import served_model
    from llm_journey.serving.config import ServerConfig

    config = ServerConfig(max_running=max_running)
    return LocalChatModel(
        served_model(open_model(name_or_path, precision, compile=compile), config), config.max_new_tokens
    )


def _checked(body: dict[str, Any]) -> Any:
    """A request as the server checks it."""
    from pydantic import ValidationError

    from llm_journey.serving.requests import ChatRequest

    try:
        return ChatRequest.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInputError(f"chat request: {where}: {first['msg']}") from None
