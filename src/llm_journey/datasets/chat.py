"""Chats from a person's files, in the forms that are about; whatever cannot be used is named by its line.

    messages            {"messages": [{"role", "content"}, ...]}, perhaps with "tools" (OpenAI's, and Hugging Face's)
    prompt, completion  {"prompt": text or messages, "completion": text or messages}
    Alpaca              {"instruction", "output"}, perhaps with "input" (Taori et al. 2023) and "system"
    ShareGPT            {"conversations": [{"from": "human" or "gpt", "value"}, ...]}, perhaps with "system"

The form is that of each row by itself. Texts are taken as they stand, but for white space around a whole message of
Alpaca's. Reading is streamed; what came of the rows is counted by reason, with the first line of each.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from llm_journey.core.errors import BadInputError

Message = dict[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool")
_SHAREGPT = {
    **{"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant"},
    **{"system": "system", "tool": "tool", "observation": "tool", "function_response": "tool"},
}
_MOST_MESSAGES = 1000
_FORMS = "messages, prompt and completion, instruction and output, or conversations"


@dataclass(frozen=True)
class Chat:
    """where: the row that it came from, for a person."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None
    where: str


@dataclass
class ChatCounts:
    """used: rows that gave a chat. bad: how many rows could not be used, by reason, and the first row of each."""

    used: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def note(self, reason: str, where: str) -> None:
        """Count a row that cannot be used."""
        self.bad[reason] += 1
        self.first.setdefault(reason, where)

    def rows(self) -> list[tuple[str, int, str]]:
        """(reason, count, first row), the commonest first."""
        return [(reason, count, self.first[reason]) for reason, count in self.bad.most_common()]


class BadRow(Exception):  # noqa: N818 - a reason that is counted, or made an error of by whoever reads strictly
    """Why a row is no chat."""


def read_chats(rows: Iterable[tuple[str, Any]], counts: ChatCounts, *, strict: bool = False) -> Iterator[Chat]:
    """The chats of some rows (where, decoded row; None for one that is no JSON).

    strict: raise BadInputError, naming the row, for the first that cannot be used; else it is counted and left out.
    """
    for where, row in rows:
        try:
            chat = Chat(*to_messages(row), where)
        except BadRow as reason:
            if strict:
                raise BadInputError(f"{where}: {reason}") from None
            counts.note(str(reason), where)
            continue
        counts.used += 1
        yield chat


def to_messages(row: Any) -> tuple[list[Message], list[dict[str, Any]] | None]:
    """A row's messages and tools. Raises BadRow with the reason, which names no content."""
    if not isinstance(row, Mapping):
        raise BadRow("no JSON object")
    if "messages" in row:
        messages = _checked(row["messages"])
    elif "conversations" in row:
        messages = _checked([*_system(row), *_from_sharegpt(row["conversations"])])
    elif "prompt" in row and "completion" in row:
        messages = _checked([*_said(row["prompt"], "user"), *_said(row["completion"], "assistant")])
    elif "instruction" in row and "output" in row:
        messages = _checked([*_system(row), *_from_alpaca(row)])
    else:
        raise BadRow(f"a field is missing: {_FORMS}")
    return messages, _tools(row.get("tools"))


def _checked(messages: Any) -> list[Message]:
    if not isinstance(messages, list) or not messages:
        raise BadRow("the messages are no list, or an empty one")
    if len(messages) > _MOST_MESSAGES:
        raise BadRow(f"more than {_MOST_MESSAGES} messages")
    found = [_message(message, index) for index, message in enumerate(messages)]
    if not any(message["role"] == "assistant" for message in found):
        raise BadRow("no message of the assistant")
    if found[0]["role"] == "assistant" or (found[0]["role"] in ROLES[:2] and _role_at(found, 1) == "assistant"):
        raise BadRow("the assistant speaks first")
    return found


def _role_at(messages: list[Message], index: int) -> str | None:
    return messages[index]["role"] if index < len(messages) else None


def _message(message: Any, index: int) -> Message:
    if not isinstance(message, Mapping):
        raise BadRow("a message is no object")
    role, content, calls = message.get("role"), message.get("content"), message.get("tool_calls")
    if role not in ROLES:
        raise BadRow(f"a role is none of {', '.join(ROLES)}")
    if role in ROLES[:2] and index:
        raise BadRow(f"a message of the role {role} that is not the first")
    if content is None and calls:
        content = ""
    if isinstance(content, list):
        content = _joined_parts(content)
    if not isinstance(content, str):
        raise BadRow("a content is no text")
    if calls is not None and not (isinstance(calls, list) and all(isinstance(call, Mapping) for call in calls)):
        raise BadRow("tool_calls are no list of objects")
    if not content.strip() and not calls:
        raise BadRow("an empty answer" if role == "assistant" else f"an empty message of the role {role}")
    try:
        json.dumps([content, calls], ensure_ascii=False).encode("utf-8")
    except (UnicodeEncodeError, TypeError, ValueError):
        raise BadRow("a content holds half of a surrogate pair, which is no character") from None
    kept = {key: message[key] for key in ("name", "tool_call_id", "reasoning_content") if message.get(key) is not None}
    if role == "assistant" and message.get("weight") == 0:
        kept["weight"] = 0
    return {"role": role, "content": content, **({"tool_calls": calls} if calls else {}), **kept}


def _joined_parts(parts: list[Any]) -> str:
    texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise BadRow("a content has parts that are no text")
    return "".join(text for text in texts if text is not None)


def _said(value: Any, role: str) -> list[Any]:
    """A text as one message; messages as they are."""
    if isinstance(value, list):
        return value
    return [{"role": role, "content": value}]


def _system(row: Mapping[str, Any]) -> list[Message]:
    system = row.get("system")
    return [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []


def _from_alpaca(row: Mapping[str, Any]) -> list[Message]:
    instruction, given, output = row["instruction"], row.get("input") or "", row["output"]
    if not all(isinstance(text, str) for text in (instruction, given, output)):
        raise BadRow("a content is no text")
    asked = f"{instruction.strip()}\n\n{given.strip()}" if given.strip() else instruction.strip()
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": output.strip()}]


def _from_sharegpt(turns: Any) -> list[Message]:
    if not isinstance(turns, list):
        raise BadRow("the messages are no list, or an empty one")
    messages = []
    for turn in turns:
        if not isinstance(turn, Mapping):
            raise BadRow("a message is no object")
        if turn.get("from") not in _SHAREGPT:
            raise BadRow(f"a speaker is none of {', '.join(_SHAREGPT)}")
        messages.append({"role": _SHAREGPT[turn["from"]], "content": turn.get("value")})
    return messages


def _tools(tools: Any) -> list[dict[str, Any]] | None:
    if tools is None or tools == []:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRow("tools are no list of objects")
    return tools
