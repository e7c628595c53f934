"""From a request to what the engine is asked for: ids, sampling, what the answer must look like. No network here.

Prompts that do not fit the context and answers that ask for too much are refused with both counts (ollama#17889).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from llm_journey.core.config import validate
from llm_journey.core.errors import BadInputError
from llm_journey.generation.constrained import make_constraint
from llm_journey.generation.engine import Constraint
from llm_journey.generation.prompt import check_prompt
from llm_journey.generation.sampling import SamplingConfig
from llm_journey.serving.requests import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
    NamedTool,
    Sampled,
    StructuredOutputs,
)
from llm_journey.serving.served import ServedModel
from llm_journey.serving.tool_text import MARK, ReplyReader, ToolGate, call_schema, plain_messages
from llm_journey.tokenizer.chat_template import encode_chat

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty")


@dataclass(frozen=True)
class Order:
    """One answer that is wanted. logprobs: how many alternatives to give of each token."""

    ids: list[int]
    sampling: SamplingConfig
    stops: tuple[str, ...] = ()
    constraint: Constraint | None = None
    logprobs: int | None = None


@dataclass(frozen=True)
class ChatOrders:
    """The answers of a chat request; calls: whether tools may be called, begun: whether the call's mark is written."""

    orders: list[Order]
    calls: bool = False
    begun: bool = False

    def reader(self) -> ReplyReader:
        """A reader of one answer."""
        return ReplyReader(tools=self.calls, begun=self.begun)


def chat_orders(served: ServedModel, request: ChatRequest, *, max_new_tokens: int, max_n: int) -> ChatOrders:
    """What a chat request asks for. Raises BadInputError that says what cannot be done."""
    _check_count(request.n or 1, max_n)
    tools = [tool.model_dump(exclude_none=True) for tool in request.tools or ()]
    choice = request.tool_choice or "auto"
    if choice == "none":
        tools = []
    if isinstance(choice, NamedTool):
        tools = [tool for tool in tools if tool["function"]["name"] == choice.function.name]
    begun = bool(tools) and choice != "auto"
    ids = chat_ids(served, request.messages, tools)
    if begun:
        ids = [*ids, *served.tokenizer.encode(f"{MARK}\n")]
    start = partial(_maker, served, _shape(request), tools, begun)
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    orders = _orders(served, request, [ids], start, logprobs, max_new_tokens)
    return ChatOrders(orders, bool(tools), begun)


def completion_orders(
    served: ServedModel, request: CompletionRequest, *, max_new_tokens: int, max_n: int
) -> list[Order]:
    """What a completion request asks for: of each prompt n answers, in order."""
    _check_count(len(request.prompts) * (request.n or 1), max_n)
    prompts = [_prompt_ids(served, prompt) for prompt in request.prompts]
    start = partial(_maker, served, _shape(request), [], begun=False)
    return _orders(served, request, prompts, start, request.logprobs, max_new_tokens)


def chat_ids(served: ServedModel, messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]]) -> list[int]:
    """A conversation as the model's template writes it."""
    if served.renders_tools:
        rendered = [_message(message) for message in messages]
        return encode_chat(served.tokenizer, rendered, add_generation_prompt=True, tools=list(tools) or None)
    plain = plain_messages([_message(message) for message in messages], tools)
    return encode_chat(served.tokenizer, plain, add_generation_prompt=True)


def _check_count(count: int, max_n: int) -> None:
    """Before anything is made of the prompts."""
    if count > max_n:
        raise BadInputError(f"{count} answers are asked for (prompts times n), at most {max_n} are given")


def _message(message: ChatMessage) -> dict[str, Any]:
    """A message as templates read it: text alone, arguments as values."""
    found: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": message.text,
        "name": message.name,
        "tool_call_id": message.tool_call_id,
    }
    if message.tool_calls:
        found["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
            }
            for call in message.tool_calls
        ]
    return {key: value for key, value in found.items() if value is not None}


def _arguments(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadInputError("messages: the arguments of a tool call are no JSON") from None


def _prompt_ids(served: ServedModel, prompt: str | list[int]) -> list[int]:
    """A text as `journey generate` reads it; ids as they are."""
    if not isinstance(prompt, str):
        return prompt
    tokenizer = served.tokenizer
    begin = tokenizer.roles.begin
    if prompt or begin is None:
        return tokenizer.frame(tokenizer.encode(prompt))
    return [tokenizer.special_tokens[begin]]


def _shape(request: Sampled) -> dict[str, Any]:
    """What the answer must look like, as keyword arguments of `make_constraint`; empty for any text."""
    if isinstance(request, ChatRequest):
        match request.response_format:
            case JsonObjectFormat():
                return {"schema": {"type": "object"}}
            case JsonSchemaFormat(json_schema=described):
                return {"schema": described.schema_}
    match request.structured_outputs:
        case StructuredOutputs(regex=str() as regex):
            return {"regex": regex}
        case StructuredOutputs(choice=list() as choices):
            return {"choices": choices}
        case StructuredOutputs(json_=schema):
            return {"schema": schema}
    return {}


def _maker(
    served: ServedModel, shape: Mapping[str, Any], tools: Sequence[Mapping[str, Any]], begun: bool
) -> Callable[[int], Constraint | None]:
    """What gives each answer a constraint of its own, from the most tokens that it may have; their grammar is built
    once."""
    tokenizer = served.tokenizer
    wanted = {"schema": call_schema(tools)} if tools else shape
    if not wanted:
        return lambda _: None
    built = make_constraint(tokenizer, **wanted, stop_ids=served.stop_ids)

    def make(tokens: int) -> Constraint:
        constraint = built.anew()
        if tools and not begun:  # how many tokens are left for a call is known when it begins
            return ToolGate(tokenizer, served.closers, constraint, max_new_tokens=tokens)
        constraint.limit(tokens)
        return constraint

    return make


def _orders(
    served: ServedModel,
    request: ChatRequest | CompletionRequest,
    prompts: Sequence[list[int]],
    start: Callable[[], Callable[[int], Constraint | None]],
    logprobs: int | None,
    max_new_tokens: int,
) -> list[Order]:
    config = served.worker.engine.runner.config
    for ids in prompts:
        check_prompt(ids, config.vocab_size, config.context)
        if len(ids) == config.context:
            raise BadInputError(
                f"the prompt has {len(ids)} tokens, the model's context holds {config.context}: no room for an answer"
            )
    sampling = _sampling(served, request, max_new_tokens)
    count = request.n or 1
    make = start()
    orders = []
    for ids in prompts:
        for number in range(count):
            seed = None if request.seed is None else (request.seed + number) % (1 << 63)
            chosen = validate(SamplingConfig, sampling | {"seed": seed}, "sampling settings")
            tokens = min(chosen.max_new_tokens, config.context - len(ids))
            orders.append(Order(ids, chosen, request.stops, make(tokens), logprobs))
    return orders


def _sampling(served: ServedModel, request: ChatRequest | CompletionRequest, max_new_tokens: int) -> dict[str, Any]:
    """The model's own settings with the request's over them."""
    limit = request.token_limit
    if limit is not None and limit > max_new_tokens:
        raise BadInputError(f"max_tokens is {limit}, this server gives at most {max_new_tokens} for one answer")
    default = 16 if isinstance(request, CompletionRequest) else max_new_tokens  # OpenAI's defaults
    given = {name: getattr(request, name) for name in _SAMPLING if getattr(request, name) is not None}
    own = {key: value for key, value in served.defaults.items() if key not in ("max_new_tokens", "seed", "stop")}
    return {**own, **given, "max_new_tokens": limit or default}
