"""The one chat-model protocol and the one embedder protocol: what retrieval, chains and agents are handed.

Three things speak the first: a model in this process (app.chat_model), any OpenAI-compatible address (client.http), and
a script for tests (client.scripted). Messages, tools and response formats are OpenAI's JSON, because that is what
every server and every chat template understands. Left out: anything that only one of the three could do.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Message = Mapping[str, Any]
Tool = Mapping[str, Any]
ResponseFormat = Mapping[str, Any]
# "auto" lets the model decide, "none" forbids, "required" demands a call, a mapping names the tool.
ToolChoice = Literal["auto", "none", "required"] | Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ChatSampling:
    """How a reply is drawn; None leaves a choice to the model. Names and meanings are OpenAI's."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: str | Sequence[str] | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None

    def given(self) -> dict[str, Any]:
        """What is not None, under OpenAI's names."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class ToolCall:
    """A call that the model asks for. arguments: a JSON object as text, as OpenAI has it."""

    id: str
    name: str
    arguments: str

    def as_message(self) -> dict[str, Any]:
        """The call as it stands in an assistant's message."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True)
class Usage:
    """Tokens read and tokens written."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class ChatDelta:
    """A piece of a reply: text, a whole tool call, the reason why it ended, what it took."""

    text: str = ""
    tool_call: ToolCall | None = None
    finish_reason: str | None = None
    usage: Usage | None = None


@dataclass(frozen=True)
class ChatReply:
    """A whole reply. finish_reason: stop, length, tool_calls or what else the server says."""

    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None

    def as_message(self) -> dict[str, Any]:
        """The reply as the next message of its conversation."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text or None}
        if self.tool_calls:
            message["tool_calls"] = [call.as_message() for call in self.tool_calls]
        return message


class ChatModel(Protocol):
    """A model that answers conversations.

    Both methods raise BadInputError where the request is wrong (a prompt longer than the context, a schema that cannot
    be followed) and JourneyError where the model cannot be reached or fails.
    """

    @property
    def name(self) -> str:
        """What the model is called."""
        ...

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
        ...

    def stream(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        tool_choice: ToolChoice = "auto",
        response_format: ResponseFormat | None = None,
        sampling: ChatSampling | None = None,
    ) -> Iterator[ChatDelta]:
        """The reply in pieces; `collect` makes the same reply of them as `complete` gives."""
        ...


class Embedder(Protocol):
    """A model that turns texts into vectors."""

    @property
    def name(self) -> str:
        """What the model is called."""
        ...

    def embed(self, texts: Sequence[str]) -> "npt.NDArray[np.float32]":
        """(N, D) vectors of N texts, in their order."""
        ...


def collect(deltas: Iterable[ChatDelta]) -> ChatReply:
    """The reply that a stream of pieces makes."""
    texts, calls = [], []
    finish_reason, usage = None, None
    for delta in deltas:
        texts.append(delta.text)
        if delta.tool_call is not None:
            calls.append(delta.tool_call)
        finish_reason = delta.finish_reason or finish_reason
        usage = delta.usage or usage
    return ChatReply("".join(texts), tuple(calls), finish_reason, usage)
