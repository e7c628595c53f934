"""`journey generate` and `journey chat`: text from a model, as it is written."""

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_journey.cli.options import Json, Model, SetSampling, examples

if TYPE_CHECKING:
    from llm_journey.app.encoders import MaskFiller, Rewriter
    from llm_journey.app.language_model import LanguageModel, Reply

GENERATE_EXAMPLES = examples(
    'journey generate quickstart "The city of"',
    'journey generate quickstart "In 1905" --set temperature=0.5 --set seed=1 --json',
    'journey generate dates "the 3rd of March, 1998"',
)
CHAT_EXAMPLES = examples('journey chat MODEL "Which planets have rings?"', "journey chat MODEL")


def generate(
    model: Model,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What the model goes on from.", show_default=False)],
    settings: SetSampling = None,
    as_json: Json = False,
) -> None:
    """Let a model go on from a text; an encoder fills each [MASK] of it, an encoder-decoder writes its answer."""
    from llm_journey.app.encoders import MaskFiller, Rewriter
    from llm_journey.app.language_model import parse_settings
    from llm_journey.app.opening import open_any

    opened, chosen = open_any(model), parse_settings(settings or [])
    began = time.monotonic()
    if isinstance(opened, MaskFiller):
        _fill(opened, text, chosen, as_json)
        return
    if isinstance(opened, Rewriter):
        _rewrite(opened, text, chosen, as_json)
        return
    opened.sampling(chosen)
    reply = opened.stream(text, settings=chosen)
    if not as_json:
        sys.stdout.write(text)
    _write(reply, as_json)
    if as_json:
        _print(reply, began, {"model": opened.name, "prompt": text})


def chat(
    model: Model,
    text: Annotated[
        str | None, typer.Argument(metavar="[TEXT]", help="One message; without it, a conversation begins.")
    ] = None,
    settings: SetSampling = None,
    as_json: Json = False,
) -> None:
    """Talk with a model.

    Messages pass through its chat template. /new starts over, an empty line or Ctrl-D ends.
    """
    from llm_journey.cli.output import say
    from llm_journey.core.errors import BadInputError

    if text is None and as_json:
        raise BadInputError("--json needs a message: journey chat MODEL TEXT --json")
    opened, chosen = _open(model, settings)
    if opened.run is not None:
        say(f"{opened.name} was trained on plain text, not on conversations: it goes on writing rather than answers")
    if text is None:
        _converse(opened, chosen)
        return
    began = time.monotonic()
    reply = opened.stream_chat(text, settings=chosen)
    _write(reply, as_json)
    if as_json:
        _print(reply, began, {"model": opened.name, "messages": [{"role": "user", "content": text}]})


def _fill(model: "MaskFiller", text: str, settings: dict[str, Any], as_json: bool) -> None:
    """Write the text with its masks filled; as JSON, the likeliest tokens of each mask too (top=5)."""
    from dataclasses import asdict

    from llm_journey.core.console import print_json
    from llm_journey.core.errors import BadInputError

    top = settings.pop("top", 5)
    if settings or type(top) is not int:
        raise BadInputError(f"{model.name} fills masks; it takes --set top=NUMBER alone")
    masks = model.fill(text, top=top)
    filled = model.filled(text, masks)
    if as_json:
        guesses = [[asdict(guess) for guess in mask] for mask in masks]
        print_json({"model": model.name, "prompt": text, "text": filled, "masks": guesses})
    else:
        sys.stdout.write(f"{filled}\n")


def _rewrite(model: "Rewriter", text: str, settings: dict[str, Any], as_json: bool) -> None:
    """Write the best text of a beam search; as JSON, all that it found."""
    from dataclasses import asdict

    from llm_journey.core.console import print_json

    found = model.rewrite(text, settings=settings)
    if as_json:
        candidates = [asdict(candidate) for candidate in found]
        print_json({"model": model.name, "prompt": text, "text": found[0].text, "candidates": candidates})
    else:
        sys.stdout.write(f"{found[0].text}\n")


def _open(model: str, settings: list[str] | None) -> "tuple[LanguageModel, dict[str, Any]]":
    """The model, and its sampling settings once they are checked."""
    from llm_journey.app.language_model import open_model, parse_settings

    opened = open_model(model)
    chosen = parse_settings(settings or [])
    opened.sampling(chosen)
    return opened, chosen


def _converse(model: "LanguageModel", settings: dict[str, Any]) -> None:
    """Turns until an empty line. A conversation that no longer fits is never shortened in silence."""
    from llm_journey.cli.output import say
    from llm_journey.core.errors import BadInputError

    say(f"{model.name}: /new starts over, an empty line ends")
    messages: list[dict[str, str]] = []
    while line := _ask():
        if line == "/new":
            messages = []
            continue
        messages.append({"role": "user", "content": line})
        try:
            reply = model.stream_chat(messages, settings=settings)
        except BadInputError as error:
            if not messages[:-1]:
                raise
            say(f"{error}; /new starts over")
            messages.pop()
            continue
        _write(reply, silent=False)
        messages.append({"role": "assistant", "content": reply.text})


def _ask() -> str:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


def _write(reply: "Reply", silent: bool) -> None:
    """Write the pieces as they come."""
    for piece in reply:
        if not silent:
            sys.stdout.write(piece)
            sys.stdout.flush()
    if not silent:
        sys.stdout.write("\n")


def _print(reply: "Reply", began: float, more: dict[str, Any]) -> None:
    from llm_journey.core.console import print_json

    seconds = time.monotonic() - began
    print_json(
        {
            **more,
            "text": reply.text,
            "finish_reason": reply.finish_reason,
            "prompt_tokens": reply.prompt_tokens,
            "tokens": reply.num_tokens,
            "seconds": round(seconds, 4),
            "tokens_per_second": round(reply.num_tokens / seconds, 2) if seconds else None,
        }
    )
