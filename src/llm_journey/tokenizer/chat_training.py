"""A chat as what a model learns from: its ids, and which of them the assistant writes.

An assistant's turn is what stands behind the generation prompt of the messages before it, up to and with the special
token that ends it: exactly what the model shall write when it is asked. The token that ends a turn is among it, or the
model never learns to stop (axolotl#3756); the line end that a template puts behind is not. Where a template writes
earlier turns otherwise than it wrote them last (Qwen3 leaves their reasoning out), each such turn is an example of its
own, with the messages before it as they were then.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm_journey.core.errors import BadInputError
from llm_journey.tokenizer.chat_template import GuardedChat

if TYPE_CHECKING:
    from llm_journey.tokenizer.tokenizer import Tokenizer

ASSISTANT = "assistant"
_SOMEBODY = ({"role": "user", "content": "x"},)


@dataclass(frozen=True)
class ChatExample:
    """ids of a rendered chat; trained: for each, whether the assistant wrote it."""

    ids: list[int]
    trained: list[bool]


def chat_examples(
    tokenizer: "Tokenizer", messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] | None = None
) -> list[ChatExample]:
    """What a chat teaches: one example, or more where the template rewrites earlier turns.

    A message of weight 0 is read and not learned, as OpenAI's format has it; what follows the last turn that is learned
    is left out. Raises BadInputError where the assistant says nothing, where the template fails, ends no turn, begins
    one otherwise than its generation prompt does, or leaves out the chat's tools or calls.
    """
    turns = [
        index
        for index, message in enumerate(messages)
        if message.get("role") == ASSISTANT and message.get("weight", 1) != 0
    ]
    if not turns:
        raise BadInputError(f"no message of the role {ASSISTANT!r}: there is nothing to learn from this chat")
    chat = GuardedChat(tokenizer, messages[: turns[-1] + 1], tools=tools)
    written = [_turn(tokenizer, chat, index) for index in turns]
    _check_tools(messages, tools, dict(zip(turns, written, strict=True)))
    whole = written[-1].text
    shared = [turn for turn in written if whole.startswith(turn.text[: turn.end])]
    apart = [turn for turn in written if turn not in shared]
    return [*(_example(chat, turn.text, [turn]) for turn in apart), _example(chat, whole, shared)]


def _check_tools(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None, written: "Mapping[int, _Turn]"
) -> None:
    """A template that knows no tools passes them over: an empty answer would be learned in a call's place."""
    for index, turn in written.items():
        names = _names(messages[index].get("tool_calls") or ())
        if not all(name in turn.text[turn.start : turn.end] for name in names):
            raise BadInputError("the chat template does not write the assistant's tool calls; take a model whose does")
    first = next(iter(written.values()))
    names = _names(tools or ())
    if names and not any(name in first.text[: first.start] for name in names):
        raise BadInputError("the chat template does not write the chat's tools; take a model whose does")


def _names(described: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of tools, or of calls: {"function": {"name"}} or {"name"}."""
    found = []
    for each in described:
        inner = each.get("function")
        name = inner.get("name") if isinstance(inner, Mapping) else each.get("name")
        if isinstance(name, str) and name:
            found.append(name)
    return found


@dataclass(frozen=True)
class _Turn:
    """text: the chat up to this turn, as it is rendered then; the assistant wrote text[start:end]."""

    text: str
    start: int
    end: int


def _turn(tokenizer: "Tokenizer", chat: GuardedChat, index: int) -> _Turn:
    prompt, text = chat.render(index, add_generation_prompt=True), chat.render(index + 1)
    if not text.startswith(prompt):
        raise BadInputError(
            f"the chat template begins the assistant's turn otherwise than its generation prompt {prompt[-40:]!r} "
            "does; what is learned would never be asked for"
        )
    ends = [end for end in tokenizer.special_ends(text) if end > len(prompt)]
    if not ends:
        raise BadInputError("the chat template ends the assistant's turn with no special token: no model could stop")
    # Some templates put the end of the whole text behind its last turn: it is no part of the turn, and goes away once
    # somebody speaks again.
    lasting = len(prompt)
    with suppress(BadInputError):  # of a template that lets nobody speak here
        lasting = _num_shared(text, chat.render(index + 1, further=_SOMEBODY))
    return _Turn(text, len(prompt), max((end for end in ends if end <= lasting), default=ends[-1]))


def _num_shared(left: str, right: str) -> int:
    """Characters that two texts have in common from their beginning."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((index for index, pair in pairs if pair[0] != pair[1]), min(len(left), len(right)))


def _example(chat: GuardedChat, text: str, turns: Sequence[_Turn]) -> ChatExample:
    """Each piece is encoded by itself: a token never lies in two."""
    ids: list[int] = []
    trained: list[bool] = []
    for piece, is_written in _pieces(text, turns):
        found = chat.ids(piece)
        ids += found
        trained += [is_written] * len(found)
    return ChatExample(ids, trained)


def _pieces(text: str, turns: Sequence[_Turn]) -> Iterator[tuple[str, bool]]:
    position = 0
    for turn in turns:
        yield text[position : turn.start], False
        yield text[turn.start : turn.end], True
        position = turn.end
    yield text[position:], False
