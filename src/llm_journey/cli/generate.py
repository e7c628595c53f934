"""`journey generate` and `journey chat`: text from a model, as it is written."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_journey.cli import completion
from llm_journey.cli.options import Json, Model, SetSampling, examples

if TYPE_CHECKING:
    from llm_journey.app.encoders import MaskFiller, Rewriter
    from llm_journey.app.language_model import LanguageModel, Reply

GENERATE_EXAMPLES = examples(
    'journey generate quickstart "The city of"',
    'journey generate quickstart "In 1905" --set temperature=0.5 --set seed=1 --json',
    'journey generate dates "the 3rd of March, 1998"',
    'journey generate MODEL "Is a whale a fish? " --choice yes --choice no',
)
CHAT_EXAMPLES = examples(
    'journey chat MODEL "Which planets have rings?"',
    "journey chat MODEL --compile",
    'journey chat smollm2-135m-instruct "Wake me at six" --adapter tool-calls',
    'journey chat MODEL "A city as JSON" --schema city.json --set max_new_tokens=100',
)

Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="NAME",
        help="Of the weights: float32, bfloat16, int8, int4, or auto: as many bits as the model's file holds.",
    ),
]
Compile = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="Steps compiled for this machine, once (half a minute, a C++ compiler): half as fast again.",
        show_default="where compiled before",
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        "--draft",
        metavar="MODEL",
        help="A smaller model of the same tokenizer, whose guesses this one judges; it changes the speed alone.",
        autocompletion=completion.models,
    ),
]
Adapter = Annotated[
    str | None,
    typer.Option("--adapter", metavar="FOLDER", help="Answer with this adapter, or a run's, beside the weights."),
]
Schema = Annotated[
    Path | None, typer.Option("--schema", metavar="FILE", help="A JSON schema; the answer is JSON that it allows.")
]
Regex = Annotated[str | None, typer.Option("--regex", metavar="REGEX", help="The answer as a whole matches this.")]
Choices = Annotated[
    list[str] | None, typer.Option("--choice", metavar="TEXT", help="The answer is one of these; repeatable.")
]


def generate(
    model: Model,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What the model goes on from.", show_default=False)],
    settings: SetSampling = None,
    precision: Precision = "auto",
    compile: Compile = None,
    schema: Schema = None,
    regex: Regex = None,
    choices: Choices = None,
    draft: Draft = None,
    adapter: Adapter = None,
    as_json: Json = False,
) -> None:
    """Let a model go on from a text; an encoder fills each [MASK] of it, an encoder-decoder writes its answer."""
    from llm_journey.app.encoders import MaskFiller, Rewriter
    from llm_journey.app.opening import open_any
    from llm_journey.core.errors import BadInputError

    chosen = _settings(settings, schema, regex, choices)
    if adapter is None:
        opened = open_any(model, precision, compile=compile)
    else:
        opened = _adapted(model, precision, compile, adapter)
    if isinstance(opened, MaskFiller):
        _fill(opened, text, chosen, as_json)
        return
    if isinstance(opened, Rewriter):
        _rewrite(opened, text, chosen, as_json)
        return
    if "num_beams" in chosen:
        if draft is not None:
            raise BadInputError("a beam search takes no draft model: leave out --draft or num_beams")
        _search(opened, text, chosen, as_json)
        return
    reply = opened.stream(text, draft=_draft(draft), **chosen)
    opened.engine  # noqa: B018 - made now, so that the seconds below are those of the answer
    began = time.monotonic()
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
    precision: Precision = "auto",
    compile: Compile = None,
    schema: Schema = None,
    regex: Regex = None,
    choices: Choices = None,
    draft: Draft = None,
    adapter: Adapter = None,
    as_json: Json = False,
) -> None:
    """Talk with a model.

    Messages pass through its chat template. /new starts over, an empty line or Ctrl-D ends.
    """
    from llm_journey.cli.output import say
    from llm_journey.core.errors import BadInputError

    if text is None and as_json:
        raise BadInputError("--json needs a message: journey chat MODEL TEXT --json")
    opened, chosen = _adapted(model, precision, compile, adapter), _settings(settings, schema, regex, choices)
    opened.sampling(chosen)
    guesser = _draft(draft)
    if opened.run is not None and not opened.learned_chats and adapter is None:
        say(f"{opened.name} was trained on plain text, not on conversations: it goes on writing rather than answers")
    if text is None:
        _converse(opened, chosen, guesser)
        return
    reply = opened.stream_chat(text, draft=guesser, **chosen)
    opened.engine  # noqa: B018 - as in generate
    began = time.monotonic()
    _write(reply, as_json)
    if as_json:
        _print(reply, began, {"model": opened.name, "messages": [{"role": "user", "content": text}]})


def _adapted(model: str, precision: str, compile: bool | None, adapter: str | None) -> "LanguageModel":
    """The model, with an adapter where one is named."""
    from llm_journey.app.adapters import find_adapter
    from llm_journey.app.language_model import open_model

    folder = None if adapter is None else find_adapter(adapter)
    return open_model(model, precision, compile=compile, adapter=folder)


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


def _search(model: "LanguageModel", text: str, settings: dict[str, Any], as_json: bool) -> None:
    """Write the best continuation of a beam search; as JSON, all that it found."""
    from llm_journey.core.console import print_json

    found = model.beams(text, **settings)
    if as_json:
        candidates = [{"text": each, "log_probability": value} for each, value in found]
        print_json({"model": model.name, "prompt": text, "text": found[0][0], "candidates": candidates})
    else:
        sys.stdout.write(f"{text}{found[0][0]}\n")


def _settings(
    settings: list[str] | None, schema: Path | None, regex: str | None, choices: list[str] | None
) -> dict[str, Any]:
    """All that says how the answer is to be."""
    from llm_journey.app.language_model import parse_settings
    from llm_journey.checkpoint.tensor_files import read_json

    constraint = {"schema": None if schema is None else read_json(schema), "regex": regex, "choices": choices or None}
    return parse_settings(settings or []) | {key: value for key, value in constraint.items() if value is not None}


def _draft(name: str | None) -> "LanguageModel | None":
    from llm_journey.app.language_model import open_model

    return None if name is None else open_model(name)


def _converse(model: "LanguageModel", settings: dict[str, Any], draft: "LanguageModel | None") -> None:
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
            reply = model.stream_chat(messages, draft=draft, **settings)
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
    guessed, kept = reply.guesses
    if guessed:
        more |= {"guessed": guessed, "kept": kept, "acceptance_rate": round(kept / guessed, 4)}
    if reply.tokens and reply.tokens[0].logprob is not None:
        more |= {"logprobs": [{"id": each.id, "logprob": each.logprob, "top": each.top} for each in reply.tokens]}
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
