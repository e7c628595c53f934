"""Bodies of answers, as OpenAI defines them; they are the OpenAPI document's schemas too."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    """A JSON object that this server writes."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetail(Answer):
    """What was wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(Answer):
    """Every failure has this shape."""

    error: ErrorDetail


class ModelCard(Answer):
    """A model that is served. parent: the model that it is an adapter of. context, kind and parent are ours."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "llm-journey"
    kind: Literal["chat", "completion", "embedding"]
    context: int
    parent: str | None = None


class ModelList(Answer):
    """GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class UsageAnswer(Answer):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(Answer):
    """An alternative to a token."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token with its log-probability."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Answer):
    """Log-probabilities of an answer's tokens."""

    content: list[TokenLogprob]


class FunctionAnswer(Answer):
    """What a tool call asks for."""

    name: str
    arguments: str


class CallAnswer(Answer):
    """A tool call."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionAnswer


class CallDelta(CallAnswer):
    """A tool call in a stream."""

    index: int


class MessageAnswer(Answer):
    """An assistant's message."""

    role: Literal["assistant"] = "assistant"
    content: str | None = None
    tool_calls: list[CallAnswer] | None = None


FinishReason = Literal["stop", "length", "tool_calls"]


class ChatChoice(Answer):
    """One answer."""

    index: int
    message: MessageAnswer
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason


class ChatAnswer(Answer):
    """The answer of POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageAnswer


class MessageDelta(Answer):
    """A piece of an assistant's message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[CallDelta] | None = None


class ChatChoiceDelta(Answer):
    """A piece of one answer."""

    index: int
    delta: MessageDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatEvent(Answer):
    """One event of a streamed chat completion."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChoiceDelta]
    usage: UsageAnswer | None = None


class CompletionLogprobs(Answer):
    """Log-probabilities in the older shape: lists side by side."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(Answer):
    """One continuation, or a piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None


class CompletionAnswer(Answer):
    """The answer of POST /v1/completions, and each event of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageAnswer | None = None


class EmbeddingUsage(Answer):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingItem(Answer):
    """The vector of a text: numbers, or the bytes of little-endian float32 in base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingAnswer(Answer):
    """The answer of POST /v1/embeddings."""

    object: Literal["list"] = "list"
    data: list[EmbeddingItem]
    model: str
    usage: EmbeddingUsage


class Health(Answer):
    """GET /healthz and /readyz."""

    status: Literal["ok", "draining"]
