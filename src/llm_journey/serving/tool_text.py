"""Tools as text: how a model is told of them, how its calls are told from its words, what a call must look like.

A call stands behind a mark, as Hermes, Qwen and SmolLM2 write it:

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Paris"}}

What follows the mark is held to the tools' schemas while it is written (generation.constrained), so that arguments
always validate (ollama#10552: left to itself, a small model breaks the JSON). Where a call is demanded, the mark is
written for the model. A reply holds at most one call.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from llm_journey.client.protocol import ChatDelta, Message, ToolCall
from llm_journey.core.errors import BadInputError
from llm_journey.generation.engine import Constraint
from llm_journey.tokenizer import Tokenizer
from llm_journey.tokenizer.chat_template import render_chat

MARK = "<tool_call>"
_MARK_BYTES = MARK.encode()
_INSTRUCTIONS = (
    "You may call one of these functions, each given as JSON with the schema of its arguments:\n<tools>\n{tools}\n"
    "</tools>\nTo call it, answer with nothing but:\n"
    '<tool_call>\n{{"name": "its name", "arguments": {{its arguments}}}}\n</tool_call>'
)
_PROBE = "probe_of_tools"


def call_schema(tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The JSON schema of a call of any of `tools` (OpenAI's tool objects). Raises BadInputError for one nested too
    deeply."""
    try:
        return _call_schema(tools)
    except RecursionError:
        raise BadInputError("a tool's parameters are nested too deeply") from None


def _call_schema(tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    calls = []
    for index, tool in enumerate(tools):
        function = tool["function"]
        parameters = function.get("parameters") or {"type": "object", "properties": {}}
        at = "#/properties/arguments" if len(tools) == 1 else f"#/anyOf/{index}/properties/arguments"
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": function["name"]}, "arguments": _moved(parameters, at)},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


def _moved(schema: Any, at: str) -> Any:
    """A schema that now stands at `at` of another: its references to its own parts follow."""
    if isinstance(schema, Mapping):
        return {
            key: at + value[1:]
            if key == "$ref" and isinstance(value, str) and (value == "#" or value.startswith("#/"))
            else _moved(value, at)
            for key, value in schema.items()
        }
    return [_moved(item, at) for item in schema] if isinstance(schema, list) else schema


def plain_messages(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A conversation for a template that knows no tools: they, their calls and results become plain text."""
    plain: list[dict[str, Any]] = []
    for message in messages:
        content = message.get("content") or ""
        if message.get("tool_calls"):
            calls = "\n".join(_written(call["function"]) for call in message["tool_calls"])
            plain.append({"role": "assistant", "content": f"{content}\n{calls}".strip()})
        elif message["role"] == "tool":
            plain.append({"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"})
        else:
            plain.append(dict(message))
    if tools:
        listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        told = _INSTRUCTIONS.format(tools=listed)
        if plain and plain[0]["role"] == "system":
            plain[0] = {**plain[0], "content": f"{plain[0]['content']}\n\n{told}"}
        else:
            plain.insert(0, {"role": "system", "content": told})
    return plain


def _written(function: Mapping[str, Any]) -> str:
    called = json.dumps({"name": function["name"], "arguments": function["arguments"]}, ensure_ascii=False)
    return f"{MARK}\n{called}\n</tool_call>"


def renders_tools(tokenizer: Tokenizer) -> bool:
    """Whether a model's template writes tools, calls and results: found out by giving it some."""
    tool = {"type": "function", "function": {"name": f"{_PROBE}_0", "description": "", "parameters": {}}}
    call = {"id": "call_0", "type": "function", "function": {"name": f"{_PROBE}_1", "arguments": {}}}
    messages: list[Message] = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": f"{_PROBE}_2", "tool_call_id": "call_0", "name": f"{_PROBE}_1"},
    ]
    try:
        rendered = render_chat(tokenizer, messages, tools=[tool], add_generation_prompt=True)
    except BadInputError:
        return False
    # Ours alone writes the mark; a template with another form of calls gets plain text instead.
    return MARK in rendered and all(f"{_PROBE}_{number}" in rendered for number in range(3))


@dataclass(frozen=True)
class Closers:
    """Tokens that hold the mark's last character: (id, bytes); vocab_size: V of the model."""

    tokens: tuple[tuple[int, bytes], ...]
    vocab_size: int
    _masks: dict[int, Tensor] = field(default_factory=dict)

    def mask(self, matched: int) -> Tensor:
        """Booleans (V,): False at tokens that would run past the end of a mark of which `matched` bytes stand."""
        if matched not in self._masks:
            allowed_v = torch.ones(self.vocab_size, dtype=torch.bool)
            for token, data in self.tokens:
                text = _MARK_BYTES[:matched] + data
                found = text.find(_MARK_BYTES)
                if found >= 0 and found + len(_MARK_BYTES) < len(text):
                    allowed_v[token] = False
            self._masks[matched] = allowed_v
        return self._masks[matched]


def find_closers(tokenizer: Tokenizer, vocab_size: int) -> Closers:
    """The tokens of a vocabulary that can end the mark."""
    last = _MARK_BYTES[-1:]
    ordinary = [(token, data) for data, token in tokenizer.vocabulary.items() if last in data]
    special = [(token, name.encode()) for name, token in tokenizer.special_tokens.items() if ">" in name]
    return Closers(tuple((token, data) for token, data in ordinary + special if token < vocab_size), vocab_size)


class BoundedConstraint(Constraint, Protocol):
    """A constraint that comes to its end in time once it knows how many tokens are left."""

    def limit(self, tokens_left: int) -> None:
        """From here on, how many tokens the answer may still have."""
        ...


class ToolGate:
    """A constraint that lets everything pass until the mark stands, and then only what `call` allows.

    max_new_tokens: of the whole reply; what is left of them behind the mark is the call's, which ends in time.
    """

    def __init__(self, tokenizer: Tokenizer, closers: Closers, call: BoundedConstraint, *, max_new_tokens: int) -> None:
        self._tokenizer, self._closers, self._call, self._left = tokenizer, closers, call, max_new_tokens
        self._tail = b""
        self._open = False

    def allowed(self) -> Tensor:
        """Everything, but no token that runs past the mark: what is behind it belongs to the call."""
        if self._open:
            return self._call.allowed()
        matched = next(
            count for count in range(len(_MARK_BYTES) - 1, -1, -1) if self._tail.endswith(_MARK_BYTES[:count])
        )
        return self._closers.mask(matched)

    def accept(self, token: int) -> None:
        """Go on past a token."""
        self._left -= 1
        if self._open:
            self._call.accept(token)
            return
        self._tail = (self._tail + self._tokenizer.id_to_bytes(token))[-len(_MARK_BYTES) :]
        self._open = self._tail == _MARK_BYTES
        if self._open:
            self._call.limit(max(self._left, 0))

    @property
    def done(self) -> bool:
        """Whether a call has been written."""
        return self._open and self._call.done


class ReplyReader:
    """A reply's text as it comes, into words and a call. begun: the mark was written for the model."""

    def __init__(self, *, tools: bool, begun: bool) -> None:
        self._tools, self._calling = tools, begun
        self._held = ""

    def read(self, text: str) -> ChatDelta:
        """What may be said of the text so far; what may be the beginning of the mark is held back."""
        if not self._tools:
            return ChatDelta(text)
        self._held += text
        if self._calling:
            return ChatDelta()
        before, mark, behind = self._held.partition(MARK)
        if mark:
            self._calling, self._held = True, behind
            return ChatDelta(before)
        kept = next(n for n in range(min(len(MARK) - 1, len(before)), -1, -1) if before.endswith(MARK[:n]))
        self._held = before[len(before) - kept :]
        return ChatDelta(before[: len(before) - kept])

    def end(self, finish_reason: str) -> ChatDelta:
        """What is left: a call where a whole one stands, and why it ended."""
        if not self._calling:
            return ChatDelta(self._held, None, finish_reason)
        try:
            value = json.loads(self._held)
            arguments = json.dumps(value["arguments"], ensure_ascii=False)
            call = ToolCall(f"call_{uuid.uuid4().hex[:24]}", str(value["name"]), arguments)
        except (ValueError, KeyError, TypeError, RecursionError):  # cut by the token limit
            return ChatDelta("", None, "length")
        return ChatDelta("", call, "tool_calls")


def read_piece(reader: ReplyReader, text: str, ended: str | None) -> Sequence[ChatDelta]:
    """What a piece of text says, and the end where it is one."""
    said = reader.read(text)
    return (said,) if ended is None else (said, reader.end(ended))
