"""Chat templates: a list of messages becomes the text that the model was trained on, as Hugging Face renders it.

Our own template runs here; any other runs in a process of its own (see chat_sandbox for why), which stays up between
calls and is replaced once a template exceeds a limit.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llm_journey.core.errors import BadInputError
from llm_journey.core.line_process import LineProcess

if TYPE_CHECKING:
    from llm_journey.tokenizer.tokenizer import Tokenizer

# ChatML: each turn between a pair of special tokens, its role on the first line. The begin token is the template's to
# write, once: transformers and llama.cpp put none before a rendered chat, or take theirs away.
TURN_TOKENS = ("<|im_start|>", "<|im_end|>")
DEFAULT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
DEFAULT_SECONDS = 2.0
MAX_CHARACTERS = 16 << 20
_MAX_TEMPLATE_CHARACTERS = 1 << 20
# Names under which a model's reasoning is passed; templates read the first, older callers fill the others.
_REASONING = ("reasoning_content", "thinking", "reasoning")


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
    now: datetime.datetime | None = None,
    seconds: float = DEFAULT_SECONDS,
    max_characters: int = MAX_CHARACTERS,
) -> str:
    """`messages` as `template` writes them; equal to transformers' `apply_chat_template(tokenize=False)`.

    `variables` are further names that the template sees (`bos_token`, `enable_thinking`); `now` is its clock. Raises
    BadInputError, with the template's own message where it has one, for a template that fails, breaks out of its
    sandbox, runs for more than `seconds`, or writes more than `max_characters`.
    """
    if len(template) > _MAX_TEMPLATE_CHARACTERS:
        raise BadInputError(f"chat template: longer than {_MAX_TEMPLATE_CHARACTERS} characters; this is no template")
    request = {
        "template": template,
        "variables": {
            **(variables or {}),
            "messages": [_prepare(message) for message in messages],
            "tools": tools,
            "documents": documents,
            "add_generation_prompt": add_generation_prompt,
        },
        "now": (now or datetime.datetime.now()).isoformat(),
        "seconds": seconds,
        "max_characters": max_characters,
    }
    try:
        line = json.dumps(request)
    except (TypeError, ValueError) as error:
        raise BadInputError(f"chat messages must be plain JSON values ({error})") from None
    if template == DEFAULT_TEMPLATE:
        from llm_journey.tokenizer.chat_sandbox import run_request

        reply = run_request(json.loads(line))
    else:
        reply = _ask(line, seconds)
    if "error" in reply:
        raise BadInputError(f"chat template: {' '.join(reply['error'].split())}")
    return reply["text"]


def render_chat(tokenizer: "Tokenizer", messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
    """`render` with the tokenizer's own template and the names of its special tokens."""
    if tokenizer.chat_template is None:
        raise BadInputError("this tokenizer has no chat template; use a chat model, or plain text instead of messages")
    roles = {
        "bos_token": tokenizer.roles.begin,
        "eos_token": tokenizer.roles.end,
        "pad_token": tokenizer.roles.padding,
    }
    named = {key: name for key, name in roles.items() if name is not None}
    return render(
        tokenizer.chat_template, messages, variables={**named, **(options.pop("variables", None) or {})}, **options
    )


def encode_chat(tokenizer: "Tokenizer", messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
    """The ids of a rendered chat: the template's special tokens become ids, those inside a message stay text.

    So no message can end its turn or open another. Takes `render`'s options.
    """
    chat = GuardedChat(tokenizer, messages, **options)
    return chat.ids(chat.render())


class GuardedChat:
    """A chat whose messages can hold no special token: their names in it are broken up by a mark, and put together
    again as plain text once the template's own are ids.

    Of the same chat, beginnings can be rendered and compared: `render(3)` is its first three messages.
    """

    def __init__(self, tokenizer: "Tokenizer", messages: Sequence[Mapping[str, Any]], **options: Any) -> None:
        said = (messages, options.get("tools"), options.get("documents"))
        text = json.dumps(said, ensure_ascii=False, default=str)
        # A private-use character that occurs nowhere breaks up the names in the messages, and is taken out again.
        free = (chr(code) for code in range(0xE000, 0xF900) if chr(code) not in text)
        self._tokenizer, self._mark = tokenizer, next(free)
        names = sorted(tokenizer.special_tokens.keys() - tokenizer.visible_tokens, key=len, reverse=True)
        # A name of one character has no inside: another private-use character stands in for it.
        self._broken = {name: name[:1] + self._mark + name[1:] if len(name) > 1 else next(free) for name in names}
        for name in ("tools", "documents"):
            if options.get(name) is not None:
                options[name] = _break_up(options[name], self._broken)
        self._messages, self._options = _break_up(messages, self._broken), options

    def render(
        self,
        count: int | None = None,
        *,
        further: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = False,
    ) -> str:
        """The first `count` messages (all of them) and perhaps further ones, with marks."""
        options = self._options | ({"add_generation_prompt": True} if add_generation_prompt else {})
        return render_chat(self._tokenizer, [*self._messages[:count], *further], **options)

    def ids(self, rendered: str) -> list[int]:
        """The ids of a rendered text, or of a part of it."""
        ids: list[int] = []
        for ordinary, special in self._tokenizer.split_special(rendered):
            whole = ordinary.replace(self._mark, "")
            for name, stand_in in self._broken.items():
                whole = whole.replace(stand_in, name) if len(name) == 1 else whole
            ids += self._tokenizer.encode(whole)
            if special is not None:
                ids.append(self._tokenizer.special_tokens[special])
        return ids


def _break_up(value: Any, broken: Mapping[str, str]) -> Any:
    """`value` with each name replaced by its broken form wherever it stands in a string."""
    if isinstance(value, str):
        for name, form in broken.items():
            value = value.replace(name, form)
        return value
    if isinstance(value, Mapping):
        return {_break_up(key, broken): _break_up(item, broken) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_break_up(item, broken) for item in value]
    return value


def _prepare(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates expect it: no empty keys, its reasoning under the names that templates read."""
    if not isinstance(message, Mapping):
        raise BadInputError(f"a chat message is a mapping with 'role' and 'content', not {type(message).__name__}")
    prepared = {key: value for key, value in message.items() if value is not None}
    reasoning = next((prepared[name] for name in _REASONING if name in prepared), None)
    if reasoning is not None:
        prepared = {"thinking": reasoning, **prepared, "reasoning_content": reasoning}
    return prepared


def _ask(request: str, seconds: float) -> dict[str, str]:
    """The limited process's reply. Raises BadInputError where it takes more than `seconds`."""
    line = _PROCESS.ask(request.encode(), seconds)
    if line is None:
        raise BadInputError(
            f"chat template: stopped after {seconds:g} seconds or for want of memory; it asks for too much"
        )
    reply: dict[str, str] = json.loads(line)
    if "damaged" in reply:
        _PROCESS.stop()
    return reply


_PROCESS = LineProcess("llm_journey.tokenizer.chat_sandbox")
