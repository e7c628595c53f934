"""Fakes for tests: a chat model that says what it was told to say, and an embedder without a model.

They keep to the protocol and record what they were asked; a result that a user sees never comes from them.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llm_journey.client.protocol import (
    ChatDelta,
    ChatReply,
    ChatSampling,
    Message,
    ResponseFormat,
    Tool,
    ToolChoice,
    collect,
)
from llm_journey.core.errors import JourneyError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Answer = str | ChatReply | Exception | Callable[[Sequence[Message]], str | ChatReply]


@dataclass(frozen=True)
class Asked:
    """One request, as it came."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    tool_choice: ToolChoice
    response_format: ResponseFormat | None
    sampling: ChatSampling


@dataclass
class ScriptedChatModel:
    """Gives `answers` in order: a text, a reply, an error to raise, or a function of the messages. `asked` holds the
    requests; one more than there are answers is a JourneyError."""

    answers: Sequence[Answer]
    name: str = "scripted"
    asked: list[Asked] = field(default_factory=list)

    def complete(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        tool_choice: ToolChoice = "auto",
        response_format: ResponseFormat | None = None,
        sampling: ChatSampling | None = None,
    ) -> ChatReply:
        """The next answer."""
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
        """The next answer, word by word."""
        self.asked.append(
            Asked(tuple(messages), tuple(tools), tool_choice, response_format, sampling or ChatSampling())
        )
        if len(self.asked) > len(self.answers):
            raise JourneyError(f"the script holds {len(self.answers)} answers; it was asked once more")
        return _pieces(self.answers[len(self.asked) - 1], messages)


def _pieces(answer: Answer, messages: Sequence[Message]) -> Iterator[ChatDelta]:
    if isinstance(answer, Exception):
        raise answer
    found = answer(messages) if callable(answer) else answer
    reply = ChatReply(found, finish_reason="stop") if isinstance(found, str) else found
    for word in re.findall(r"\s*\S+|\s+$", reply.text):
        yield ChatDelta(word)
    for call in reply.tool_calls:
        yield ChatDelta(tool_call=call)
    yield ChatDelta(finish_reason=reply.finish_reason, usage=reply.usage)


@dataclass
class HashedEmbedder:
    """Vectors of length 1 out of each text's words by hashing: equal words, near vectors; no meaning in them."""

    width: int = 64
    name: str = "hashed"

    def embed(self, texts: Sequence[str]) -> "npt.NDArray[np.float32]":
        """(N, D) vectors; a text without a word is all zeros."""
        import numpy as np

        vectors: npt.NDArray[np.float32] = np.zeros((len(texts), self.width), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().split():
                digest = hashlib.sha256(word.encode("utf-8", "surrogatepass")).digest()
                place = int.from_bytes(digest[:4], "little") % self.width
                vectors[row, place] += 1.0 if digest[4] & 1 else -1.0
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return (vectors / np.where(lengths == 0, 1, lengths)).astype(np.float32)
