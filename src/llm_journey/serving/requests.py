"""Bodies of requests, as OpenAI defines them: strict types, bounds, no unknown key.

What OpenAI's clients send and a local model has no use for (`user`, `store`, `metadata`) is taken and has no effect.
What would change the answer and cannot be done here is refused, never passed over.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

_MAX_STOPS = 8
Text = Annotated[str, Field(max_length=4 << 20)]
ShortText = Annotated[str, Field(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0, le=(1 << 31) - 1)]
ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class Body(BaseModel):
    """A JSON object without unknown keys, NaN or infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class TextPart(Body):
    """A piece of a message; text is the only kind that is read here."""

    type: Literal["text"]
    text: Text


class FunctionCall(Body):
    """What a tool call asks for; arguments is a JSON object as text."""

    name: ToolName
    arguments: Text


class CallMessage(Body):
    """A tool call in an assistant's message."""

    id: ShortText
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart] | None = None
    name: ShortText | None = None
    tool_calls: Annotated[list[CallMessage], Field(max_length=64)] | None = None
    tool_call_id: ShortText | None = None
    refusal: Text | None = None
    # What OpenAI's client sends back of an answer; nothing here fills them.
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None

    @model_validator(mode="after")
    def _has_content(self) -> "ChatMessage":
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("content is missing (only an assistant's message with tool_calls may leave it out)")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("tool_calls stand in an assistant's message only")
        return self

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class Function(Body):
    """A function that the model may call; parameters is a JSON schema of an object."""

    name: ToolName
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    """A function by name."""

    name: ToolName


class NamedTool(Body):
    """The one tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Body):
    """A schema that the answer must follow; `strict` is always so here."""

    name: ToolName
    description: Text | None = None
    schema_: Annotated[dict[str, Any] | bool, Field(alias="schema")] = True
    strict: bool | None = None


class TextFormat(Body):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Body):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class StructuredOutputs(Body):
    """vLLM's extra key: exactly one of a regular expression, a list of choices, a JSON schema."""

    regex: Annotated[str, Field(min_length=1, max_length=1 << 16)] | None = None
    choice: Annotated[list[ShortText], Field(min_length=1, max_length=1024)] | None = None
    json_: Annotated[dict[str, Any] | bool | None, Field(alias="json")] = None

    @model_validator(mode="after")
    def _one_of_them(self) -> "StructuredOutputs":
        if sum(value is not None for value in (self.regex, self.choice, self.json_)) != 1:
            raise ValueError("give exactly one of regex, choice, json")
        return self


class StreamOptions(Body):
    """include_usage: a last event with the counts."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]
Stops = ShortText | Annotated[list[ShortText], Field(max_length=_MAX_STOPS)]


class Sampled(Body):
    """What a chat completion and a plain completion have in common."""

    model: ShortText
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None
    stop: Stops | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    structured_outputs: StructuredOutputs | None = None
    user: Text | None = None
    store: Literal[False] | None = None
    metadata: Annotated[dict[str, Any], Field(max_length=16)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    @model_validator(mode="after")
    def _options_of_streams(self) -> "Sampled":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options goes with stream: true")
        return self


class ChatRequest(Sampled):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _go_together(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs goes with logprobs: true")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("give max_completion_tokens or max_tokens, not both")
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise ValueError("two tools have one name")
        if not names and self.tool_choice not in (None, "none", "auto"):
            raise ValueError("tool_choice asks for a tool, but there are no tools")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f"tool_choice names {self.tool_choice.function.name!r}, which is none of the tools")
        shaped = self.response_format is not None and self.response_format.type != "text"
        if shaped and self.structured_outputs is not None:
            raise ValueError("give response_format or structured_outputs, not both")
        if names and self.tool_choice != "none" and (shaped or self.structured_outputs is not None):
            raise ValueError("tools and a shape of the answer do not go together here; with tools, tool_choice: none")
        return self

    @property
    def token_limit(self) -> int | None:
        """The most new tokens that were asked for."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(Sampled):
    """POST /v1/completions. A prompt is a text or token ids; several make a list."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1)]
    )
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: Literal[False] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        numbers = [item for item in self.prompt if isinstance(item, int)]
        return [numbers] if numbers else [item for item in self.prompt if not isinstance(item, int)]

    @property
    def token_limit(self) -> int | None:
        """The most new tokens that were asked for."""
        return self.max_tokens


class EmbeddingRequest(Body):
    """POST /v1/embeddings. Texts only: an embedder's ids are nobody's business."""

    model: ShortText
    input: Text | Annotated[list[Text], Field(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: Text | None = None

    @property
    def texts(self) -> list[str]:
        """The texts one by one."""
        return [self.input] if isinstance(self.input, str) else self.input
